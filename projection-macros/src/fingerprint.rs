//! A number that changes with code, and not with how that is laid out: of the tokens, without comments and documentation,
//! and without the comma that rustfmt puts before a closing bracket. The same in every build.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// FNV-1a with 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub(crate) fn of(tokens: TokenStream) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    walk(tokens, &mut |text| {
        // No text holds the byte that ends one.
        for byte in text.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    });
    hash
}

fn walk(tokens: TokenStream, say: &mut impl FnMut(&str)) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' && tokens.peek().is_some_and(is_documentation) => {
                tokens.next();
            }
            TokenTree::Punct(punct) if punct.as_char() == ',' && tokens.peek().is_none() => {}
            TokenTree::Punct(punct) => say(punct.as_char().encode_utf8(&mut [0; 4])),
            TokenTree::Ident(ident) => say(&ident.to_string()),
            // Of a text that is broken over several lines by `\`, the value.
            TokenTree::Literal(literal) => match syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                Ok(text) => say(&format!("{:?}", text.value())),
                Err(_) => say(&literal.to_string()),
            },
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                say(open);
                walk(group.stream(), say);
                say(close);
            }
        }
    }
}

/// `[doc = ".."]`, as a comment `///` is to a macro.
fn is_documentation(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else { return false };
    let first = group.stream().into_iter().next();
    matches!(first, Some(TokenTree::Ident(ident)) if ident == "doc")
}

#[cfg(test)]
mod tests {
    use super::of;

    fn hash(code: &str) -> u64 {
        of(code.parse().unwrap())
    }

    #[test]
    fn layout_does_not_count() {
        let code = r#"{ let x = f(a, "b c"); g(&x) }"#;
        let same = [
            "{\n    let x = f(a, \"b c\"); // why\n    g(&x)\n}",
            "{ /* why */ let x = f(\n a,\n \"b c\",\n ); g(& x) }",
            "{ /// Why.\n let x = f(a, \"b \\\n        c\"); g(&x) }",
            r##"{ let x = f(a, r#"b c"#); g(&x) }"##,
        ];
        for same in same {
            assert_eq!(hash(code), hash(same), "{same}");
        }
    }

    #[test]
    fn code_counts() {
        let code = r#"{ let x = f(a, "b c"); g(&x) }"#;
        let other = [
            r#"{ let x = f(a, "b  c"); g(&x) }"#,
            r#"{ let x = f(a, "bc"); g(&x) }"#,
            r#"{ let x = f("b c", a); g(&x) }"#,
            r#"{ let x = f[a, "b c"]; g(&x) }"#,
            r#"{ let x = f((a, "b c")); g(&x) }"#,
            r#"{ let x = f(a, b"b c"); g(&x) }"#,
            r#"{ let x = f(a, "b c"); #[cold] g(&x) }"#,
            r#"{ let x = f(a, "b c"), g(&x) }"#,
        ];
        for other in other {
            assert_ne!(hash(code), hash(other), "{other}");
        }
    }

    /// What is stored in a database by one build is compared by another.
    #[test]
    fn every_build_has_the_same() {
        assert_eq!(hash("async fn created() { let n = 1.5; }"), 10_809_963_670_633_317_643);
    }
}
