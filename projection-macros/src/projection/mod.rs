//! `#[projection(..)] impl Type { #[on(Event)] async fn .. }`

mod expand;
mod handler;
pub(crate) mod model;

use proc_macro2::TokenStream;
use quote::quote;
use syn::DeriveInput;

use crate::report::Report;

pub(crate) fn expand(attr: TokenStream, item: &TokenStream) -> TokenStream {
    let mut report = Report::default();
    let Some(mut block) = model::impl_block(item.clone(), &mut report) else {
        let errors = report.into_compile_errors();
        let stand_in = syn::parse2(item.clone())
            .map(|DeriveInput { ident, generics, .. }| expand::stand_in("", &generics, &ident))
            .unwrap_or_default();
        return quote!(#errors #item #stand_in);
    };
    let projection = model::read(attr, &mut block, &mut report);
    match report.into_compile_errors() {
        None => expand::projection(&projection, &block),
        Some(errors) => expand::fallback(&errors, &projection, &block),
    }
}
