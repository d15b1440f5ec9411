//! What the documentation says of the tests is true.

use std::path::Path;

/// Each test that RELIABILITY.md names is there.
#[test]
fn the_tests_of_the_promises() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/RELIABILITY.md")).unwrap();
    let named = text.split('`').skip(1).step_by(2).filter(|word| word.contains("::") && !word.ends_with("::"));
    let mut found = 0;
    for name in named {
        let parts: Vec<&str> = name.split("::").collect();
        let (test, modules) = parts.split_last().unwrap();
        let file = match modules {
            ["it", modules @ ..] => format!("tests/tests/it/{}.rs", modules.join("/")),
            binary => format!("tests/tests/{}.rs", binary.join("/")),
        };
        let source =
            std::fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
        let test = format!("fn {test}() {{");
        assert!(source.contains(&test), "{name}: no `{test}` in {file}");
        found += 1;
    }
    assert!(found > 40, "{found}");
}
