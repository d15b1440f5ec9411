//! What the compiler says of each misuse of the macros: a class a folder, a mistake a file, the right form in `pass`.
//! The number in a file's name is that of the row in `ui/README.md`. The expected messages are those of the pinned
//! toolchain; `TRYBUILD=overwrite cargo test -p tests --test ui` writes them anew.

// The right forms are a part of this binary: as soon as one case of trybuild is to pass, trybuild builds all cases one
// after another.
#[path = "../ui/attribute/pass/all_keys.rs"]
mod attribute;
#[path = "../ui/event/pass/all_keys.rs"]
mod event;
#[path = "../ui/event_set/pass/sets.rs"]
mod event_set;
#[path = "../ui/handler/pass/forms.rs"]
mod handler;
#[path = "../ui/on/pass/paths.rs"]
mod on;
#[path = "../ui/read_model/pass/columns.rs"]
mod read_model;
#[path = "../ui/set/pass/values.rs"]
mod set;
#[path = "../ui/several/pass/no_mistake.rs"]
mod several;

#[test]
fn a_mistake_is_one_error_where_it_stands() {
    trybuild::TestCases::new().compile_fail("ui/*/fail/*.rs");
}

/// Beside each bad line stands what is said of it (`//~ ERROR`, or below it where there is more), and nothing else is
/// said, so that a `.stderr` that was written anew without a look is found.
#[test]
fn every_error_stands_beside_its_line() {
    let cases = cases();
    for path in &cases {
        let expected = comments(&std::fs::read_to_string(path).unwrap());
        let said = errors(&std::fs::read_to_string(path.with_extension("stderr")).unwrap());
        let stands = |(line, text): &(usize, String)| said.iter().any(|(at, it)| at == line && it.contains(text));
        let same = said.len() == expected.len() && expected.iter().all(stands);
        assert!(same, "{}: said {said:#?}, beside the lines {expected:#?}", path.display());
    }
    assert!(cases.len() > 110, "only {} files", cases.len());
}

/// `make misuse` shows the list that is printed here.
#[test]
fn every_row_of_the_catalogue_has_a_case() {
    let catalogue = include_str!("../ui/README.md");
    let columns = |line: &'static str| -> Vec<&str> { line.split('|').map(str::trim).collect() };
    let rows: Vec<Vec<&str>> = catalogue.lines().map(columns).filter(|row| is_row(row)).collect();
    assert_eq!(rows.len(), 37);
    let mut cases = cases();
    for row in rows {
        let [_, number, misuse, by, _] = row[..] else { panic!("{row:?}") };
        println!("{number:>2}  {misuse} ({by})");
        let prefix = format!("r{number:0>2}_");
        let of_row = cases
            .extract_if(.., |path| path.file_name().unwrap().to_str().is_some_and(|name| name.starts_with(&prefix)));
        let mut files: Vec<String> = of_row.map(|path| format!("tests/{}", path.display())).collect();
        if by == "R" {
            // Not the compiler's to find: a test on a database.
            let tests = include_str!("it/check.rs");
            assert!(tests.contains(&format!("row {number}")), "row {number} has no test in it/check.rs");
            files.push("tests/tests/it/check.rs".to_owned());
        }
        assert!(!files.is_empty(), "row {number} has no case");
        files.iter().for_each(|file| println!("      {file}"));
    }
    println!(" -  beyond the rows");
    cases.iter().for_each(|path| println!("      tests/{}", path.display()));
}

fn is_row(row: &[&str]) -> bool {
    row.get(1).is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The files of `fail` folders.
fn cases() -> Vec<std::path::PathBuf> {
    let classes = std::fs::read_dir("ui").unwrap().map(|class| class.unwrap().path().join("fail"));
    let files = classes.filter(|fail| fail.is_dir()).flat_map(|fail| std::fs::read_dir(fail).unwrap());
    let mut cases: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    cases.sort();
    cases
}

/// The `//~ ERROR` comments and their lines; one that has a line to itself is for the code above it.
fn comments(source: &str) -> Vec<(usize, String)> {
    let mut comments = Vec::new();
    let mut code = 0;
    for (i, line) in source.lines().enumerate() {
        if !line.trim_start().starts_with("//~") {
            code = i + 1;
        }
        comments.extend(line.split_once("//~ ERROR ").map(|(_, text)| (code, text.to_owned())));
    }
    comments
}

/// The messages of the errors, and the lines that they point to.
fn errors(stderr: &str) -> Vec<(usize, String)> {
    let place = |place: &str| place.trim_start().strip_prefix("--> ui/")?.split(':').nth(1)?.parse().ok();
    let lines: Vec<&str> = stderr.lines().collect();
    let heads = lines.windows(2).filter(|pair| pair[0].starts_with("error"));
    heads.map(|pair| (place(pair[1]).unwrap_or(0), pair[0].to_owned())).collect()
}
