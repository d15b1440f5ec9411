//! `#[projection(..)] impl Type { #[on(Event)] async fn .. }`

mod expand;
mod model;

use proc_macro2::TokenStream;

use crate::report::Report;

pub(crate) fn expand(attr: TokenStream, item: &TokenStream) -> TokenStream {
    let mut report = Report::default();
    let Some(mut block) = model::impl_block(item.clone(), &mut report) else {
        let errors = report.into_compile_errors();
        return quote::quote!(#errors #item);
    };
    let projection = model::read(attr, &mut block, &mut report);
    match report.into_compile_errors() {
        None => expand::projection(&projection, &block),
        Some(errors) => expand::fallback(&errors, &block),
    }
}
