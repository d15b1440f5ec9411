//! What the compiler says of each misuse of the macros: a class a folder, a mistake a file, the right form in `pass`.
//! The number in a file's name is that of the catalogue of misuse. The expected messages are those of the pinned
//! toolchain; `TRYBUILD=overwrite cargo test -p tests --test ui` writes them anew.

#[test]
fn a_mistake_is_one_error_where_it_stands() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("ui/*/fail/*.rs");
    cases.pass("ui/*/pass/*.rs");
}

/// Beside each bad line stands what is said of it, and nothing else is said: as many errors as such lines.
#[test]
fn every_error_stands_beside_its_line() {
    let mut checked = 0;
    for class in std::fs::read_dir("ui").unwrap() {
        for file in std::fs::read_dir(class.unwrap().path().join("fail")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let said = std::fs::read_to_string(path.with_extension("stderr")).unwrap();
                let expected: Vec<&str> =
                    source.lines().filter_map(|line| line.split_once("//~ ERROR ")).map(|(_, text)| text).collect();
                let errors = said.lines().filter(|line| line.starts_with("error")).count();
                assert_eq!(errors, expected.len(), "{}", path.display());
                for text in expected {
                    assert!(said.contains(text), "{}: {text}", path.display());
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 70, "only {checked} files");
}
