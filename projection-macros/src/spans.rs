//! Moves generated tokens to where the user wrote something, so that rustc points there.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::ToTokens;

/// The first and the last span of the tokens: rustc points from the one to the other.
pub(crate) fn ends(tokens: impl ToTokens) -> (Span, Span) {
    let mut spans = tokens.to_token_stream().into_iter().map(|token| token.span());
    let first = spans.next().unwrap_or_else(Span::call_site);
    (first, spans.last().unwrap_or(first))
}

/// The tokens, moved to where the user wrote something: rustc points there for each expression of them.
pub(crate) fn moved((start, end): (Span, Span), tokens: TokenStream) -> TokenStream {
    let mut tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let last = tokens.len().saturating_sub(1);
    for (i, token) in tokens.iter_mut().enumerate() {
        if let TokenTree::Group(group) = token {
            *group = Group::new(group.delimiter(), moved((start, end), group.stream()));
        }
        token.set_span(if i > 0 && i == last { end } else { start });
    }
    tokens.into_iter().collect()
}
