//! What the compiler says of each misuse of the macros: a class a folder, a mistake a file, the right form in `pass`.
//! The number in a file's name is that of the catalogue of misuse. The expected messages are those of the pinned
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
#[path = "../ui/set/pass/values.rs"]
mod set;

#[test]
fn a_mistake_is_one_error_where_it_stands() {
    trybuild::TestCases::new().compile_fail("ui/*/fail/*.rs");
}

/// Beside each bad line stands what is said of it (`//~ ERROR`, or below it where there is more), and nothing else is
/// said, so that a `.stderr` that was written anew without a look is found.
#[test]
fn every_error_stands_beside_its_line() {
    let mut checked = 0;
    for class in std::fs::read_dir("ui").unwrap() {
        for file in std::fs::read_dir(class.unwrap().path().join("fail")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let expected = comments(&std::fs::read_to_string(&path).unwrap());
                let said = errors(&std::fs::read_to_string(path.with_extension("stderr")).unwrap());
                let stands =
                    |(line, text): &(usize, String)| said.iter().any(|(at, it)| at == line && it.contains(text));
                let same = said.len() == expected.len() && expected.iter().all(stands);
                assert!(same, "{}: said {said:#?}, beside the lines {expected:#?}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 70, "only {checked} files");
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
