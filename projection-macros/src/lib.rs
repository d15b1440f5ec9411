//! The macros of `projection-runtime`, which re-exports and documents them.
//!
//! Reading order, which is the data's way: `report` gathers mistakes; `keys` reads `key = value` lists;
//! `projection` turns `#[projection(..)] impl` into its model (`projection/model`) and that into code
//! (`projection/expand`); `event` does the same for `#[derive(DomainEvent)]`.
//!
//! What must hold: a mistake is reported at the narrowest span, all mistakes of one input are reported
//! together, and the user's own items are always in the output, so that a mistake brings no follow-up errors.

mod event;
mod keys;
mod projection;
mod report;

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
