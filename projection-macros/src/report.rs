//! Gathers every mistake of one input, so that all are reported in one compilation.
//! After `syntax/report.rs` of dtolnay/cxx.

use quote::ToTokens;

#[derive(Default)]
pub(crate) struct Report {
    errors: Option<syn::Error>,
}

impl Report {
    /// Adds a mistake at the tokens that hold it.
    pub(crate) fn error(&mut self, at: impl ToTokens, message: impl std::fmt::Display) {
        self.add(syn::Error::new_spanned(at, message));
    }

    pub(crate) fn add(&mut self, error: syn::Error) {
        match &mut self.errors {
            Some(errors) => errors.combine(error),
            None => self.errors = Some(error),
        }
    }

    /// The value, or `None` and the mistake added.
    pub(crate) fn ok<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// All mistakes as `compile_error!`, or `None` where there are none.
    pub(crate) fn into_compile_errors(self) -> Option<proc_macro2::TokenStream> {
        self.errors.map(syn::Error::into_compile_error)
    }
}
