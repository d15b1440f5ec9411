//! The further names by which serde reads the fields of a payload, `#[serde(alias = "..")]`: schemars leaves them out.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use serde_derive_internals::ast::{Container, Data, Field};
use serde_derive_internals::{Ctxt, Derive};
use syn::DeriveInput;

/// The fields that have aliases, each with them; `None` if no field has.
pub(crate) fn of(input: &DeriveInput) -> Option<TokenStream> {
    let context = Ctxt::new();
    let container = Container::from_ast(&context, input, Derive::Deserialize, &format_ident!("__private"));
    // Mistakes in serde's attributes are reported by serde's own derive.
    context.check().ok()?;
    let Container { data: Data::Struct(_, fields), attrs, .. } = container? else { return None };
    if attrs.type_from().is_some() || attrs.type_try_from().is_some() {
        return None; // another type's fields are read
    }
    let aliases: Vec<TokenStream> = fields.iter().filter_map(of_field).collect();
    (!aliases.is_empty()).then(|| quote!(&[#(#aliases),*]))
}

fn of_field(field: &Field<'_>) -> Option<TokenStream> {
    let name = &field.attrs.name().deserialize_name().value;
    // The name itself is one of them.
    let aliases: Vec<&String> =
        field.attrs.aliases().iter().map(|alias| &alias.value).filter(|alias| *alias != name).collect();
    (!aliases.is_empty() && !field.attrs.skip_deserializing()).then(|| quote!((#name, &[#(#aliases),*])))
}
