//! The macros of `projection-runtime`, which re-exports and documents them.
//!
//! Reading order, which is the data's way: `report` gathers mistakes; `keys` reads `key = value` lists;
//! `projection` turns `#[projection(..)] impl` into its model (`projection/model`) and that into code
//! (`projection/expand`); `event` does the same for `#[derive(DomainEvent)]` (`aliases` reads what serde accepts), `read_model`
//! for `#[derive(ReadModel)]`, `event_set` for `domain_events!` and `set`
//! for `projections!`. `spans` moves code to where a mistake in it is to be shown.
//!
//! What must hold: a mistake is reported at the narrowest span, all mistakes of one input are reported
//! together, and the user's own items are always in the output, so that a mistake brings no follow-up errors.

mod aliases;
mod event;
mod event_set;
mod fingerprint;
mod keys;
mod projection;
mod read_model;
mod report;
mod set;
#[cfg(test)]
mod snapshots;
mod spans;
mod sql;

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;
use quote::{format_ident, quote};

/// Makes an impl block of handlers a projection.
#[proc_macro_attribute]
pub fn projection(attr: TokenStream, item: TokenStream) -> TokenStream {
    projection::expand(attr.into(), &item.into()).into()
}

// `#[projection(..)]` takes the attribute off the handlers that it finds. What reaches this macro stands elsewhere.
/// Names the event of a handler.
#[proc_macro_attribute]
pub fn on(_attr: TokenStream, item: TokenStream) -> TokenStream {
    let error = syn::Error::new(
        proc_macro2::Span::call_site(),
        "`#[on(..)]` belongs on a handler inside of an impl block with `#[projection(..)]`",
    )
    .into_compile_error();
    let item = TokenStream2::from(item);
    quote!(#error #item).into()
}

/// Implements `DomainEvent`.
#[proc_macro_derive(DomainEvent, attributes(event))]
pub fn domain_event(item: TokenStream) -> TokenStream {
    event::expand(item.into()).into()
}

/// Implements `ReadModel`.
#[proc_macro_derive(ReadModel, attributes(read_model, key))]
pub fn read_model(item: TokenStream) -> TokenStream {
    read_model::expand(item.into()).into()
}

/// Declares the events of an aggregate, for `covers`.
#[proc_macro]
pub fn domain_events(input: TokenStream) -> TokenStream {
    event_set::expand(input.into()).into()
}

/// Makes a set of projections, and checks what they say of each other.
#[proc_macro]
pub fn projections(input: TokenStream) -> TokenStream {
    set::expand(input.into()).into()
}

/// The path as messages give it.
fn path_string(path: &syn::Path) -> String {
    let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    names.join("::")
}

/// Whether two paths or types are written alike; rustc sees an alias.
fn is_same<T: quote::ToTokens>(a: &T, b: &T) -> bool {
    quote!(#a).to_string() == quote!(#b).to_string()
}

/// The path of the runtime crate as the user's crate knows it, also where it is renamed in `Cargo.toml`.
fn runtime() -> TokenStream2 {
    use proc_macro_crate::{FoundCrate, crate_name};
    match crate_name("projection-runtime") {
        Ok(FoundCrate::Name(name)) => {
            let name = format_ident!("{name}");
            quote!(::#name)
        }
        // Itself: the runtime says `extern crate self as projection_runtime`. An error: no Cargo.toml to read,
        // as with a build system of one's own; rustc then says whether the usual name is there.
        Ok(FoundCrate::Itself) | Err(_) => quote!(::projection_runtime),
    }
}
