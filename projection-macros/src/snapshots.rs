//! What the macro writes, formatted: the files in `tests/expand` show it beside what the user wrote. After a change that
//! is meant, `EXPAND=overwrite cargo test -p projection-macros` writes them anew.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use proc_macro2::TokenStream;
use syn::{ItemImpl, Meta};

fn expanded(source: &str) -> String {
    let mut block: ItemImpl = syn::parse_str(source).unwrap();
    let attr = block.attrs.remove(0);
    let Meta::List(list) = attr.meta else { panic!("the projection's attribute comes first") };
    let tokens: TokenStream = crate::projection::expand(list.tokens, &quote::quote!(#block));
    rustfmt(&tokens.to_string())
}

fn rustfmt(code: &str) -> String {
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024", "--config", "max_width=120,use_small_heuristics=Max"]);
    let mut rustfmt = rustfmt.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("rustfmt");
    rustfmt.stdin.take().unwrap().write_all(code.as_bytes()).unwrap();
    let output = rustfmt.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn is_as_expected(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/expand");
    let expanded = expanded(&std::fs::read_to_string(folder.join(name).with_extension("rs")).unwrap());
    let snapshot = folder.join(name).with_extension("expanded.rs");
    if std::env::var_os("EXPAND").is_some_and(|what| what == "overwrite") {
        std::fs::write(&snapshot, &expanded).unwrap();
    }
    let expected = std::fs::read_to_string(&snapshot).unwrap_or_default();
    assert!(expanded == expected, "{} is not what the macro writes now:\n{expanded}", snapshot.display());
    expanded
}

#[test]
fn the_smallest_projection_reads_as_if_written_by_hand() {
    let expanded = is_as_expected("smallest");
    let lines = expanded.lines().count();
    assert!(lines < 80, "{lines} lines:\n{expanded}");
}

#[test]
fn a_projection_with_every_key() {
    is_as_expected("every_key");
}
