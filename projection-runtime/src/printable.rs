//! Escapes text of events, rows and errors for display: no character in it controls a terminal, or hides or reorders
//! the text around it.

use std::borrow::Cow;

/// Returns the text with control characters, direction marks and line separators escaped, like `\u{1b}` and `\n`.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Like [`printable`], for text that has lines of its own.
pub(crate) fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

/// Like [`printable`], for text that was coloured after its parts were made printable.
pub(crate) fn printable_styled(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\u{1b}')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let acts = |c: char| acts(c) && !is_kept(c);
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    Cow::Owned(printable)
}

fn acts(c: char) -> bool {
    // C0, DEL and C1; direction marks, embeddings, overrides and isolates; separators of lines and paragraphs.
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_acts_is_escaped() {
        for text in ["", "Grönlunds ÅÄÖ", "日本語", "שלום", "👩‍🎤", "a — b \\ \"c\""] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(printable("a\u{1b}[2J\r\n\tb\u{7f}\u{9b}m"), r"a\u{1b}[2J\r\n\tb\u{7f}\u{9b}m");
        assert_eq!(
            printable("x\u{202e}y\u{2066}\u{200f}\u{61c}\u{2028}"),
            r"x\u{202e}y\u{2066}\u{200f}\u{61c}\u{2028}"
        );
        assert_eq!(printable_lines("one\n\u{1b}two"), "one\n\\u{1b}two");
        assert_eq!(printable_styled("\u{1b}[31mred\u{1b}[0m\n"), "\u{1b}[31mred\u{1b}[0m\\n");
    }
}
