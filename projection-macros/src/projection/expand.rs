//! The code of a projection: dispatch, reset and registration. ARCHITECTURE.md shows what comes out.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{Attribute, ItemImpl};

use super::model::{Handler, Projection};

pub(crate) fn projection(projection: &Projection, block: &ItemImpl) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    let self_ty = &block.self_ty;
    let Projection { name, tables, cascade, after, handlers } = projection;

    let truncate = truncate(tables, *cascade);
    let aliases = handlers.iter().enumerate().map(|(i, Handler { cfg, event, .. })| {
        // Each event path stands once in the output, so that rustc reports a misspelt one once.
        let alias = alias(i);
        quote!(#(#cfg)* type #alias = #event;)
    });
    let events = handlers.iter().enumerate().map(|(i, Handler { cfg, function, .. })| {
        let (alias, function) = (alias(i), function.to_string());
        quote!(#(#cfg)* #runtime::EventType::of::<#alias>(#function))
    });
    let arms = handlers.iter().enumerate().map(|(i, handler)| {
        let Handler { cfg, function, .. } = handler;
        let alias = alias(i);
        let receiver = handler.receiver.then(|| quote!(self,));
        let event = quote_spanned!(handler.parameter=> &event);
        // The call has the span of the return type: what doesn't fit there is reported there.
        let outcome = quote_spanned!(handler.output=> #private::outcome(result));
        quote! {
            #(#cfg)*
            <#alias as #runtime::DomainEvent>::NAME => {
                let event = event.decode::<#alias>()?;
                let result = Self::#function(#receiver #event, tx).await;
                #outcome
            }
        }
    });
    let lints = lints(&block.attrs);

    quote! {
        #block

        const _: () = {
            #(#aliases)*

            #[automatically_derived]
            #lints
            impl #runtime::Projection for #self_ty {
                const DEFINITION: &'static #runtime::Definition = &#runtime::Definition {
                    name: #name,
                    tables: &[#(#tables),*],
                    after: &[#(#after),*],
                    events: &[#(#events),*],
                };

                async fn apply(
                    &self,
                    event: &#runtime::StoredEvent,
                    tx: &mut #runtime::PgConnection,
                ) -> #private::Result<(), #runtime::ApplyError> {
                    match event.name.as_str() {
                        #(#arms)*
                        _ => #private::not_handled(Self::DEFINITION, event),
                    }
                }

                async fn reset(tx: &mut #runtime::PgConnection) -> #private::Result<(), #private::SqlxError> {
                    #private::execute(#truncate, tx).await
                }
            }
        };
    }
}

fn alias(i: usize) -> syn::Ident {
    format_ident!("__Event{i}")
}

/// One statement for all tables. Quoted, so that a table may be called `order` or `user`.
fn truncate(tables: &[String], cascade: bool) -> String {
    let quoted: Vec<String> = tables.iter().map(|table| format!("\"{}\"", table.replace('.', "\".\""))).collect();
    let cascade = if cascade { " CASCADE" } else { "" };
    format!("TRUNCATE TABLE {}{cascade}", quoted.join(", "))
}

/// The lint levels that the user set on the impl block hold for the generated one as well.
fn lints(attrs: &[Attribute]) -> TokenStream {
    let lints = attrs.iter().filter(|attr| {
        ["allow", "expect", "warn", "deny", "forbid"].iter().any(|level| attr.path().is_ident(level))
            && !attr.path().is_ident("expect")
    });
    quote!(#(#lints)*)
}

/// The mistakes, the user's own code without our attributes, and an impl that keeps `projections![..]` and
/// everything else that needs the trait from complaining on top.
pub(crate) fn fallback(errors: &TokenStream, block: &ItemImpl) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    let (impl_generics, _, where_clause) = block.generics.split_for_impl();
    let self_ty = &block.self_ty;
    quote! {
        #errors

        #[allow(dead_code, unused_variables)]
        #block

        const _: () = {
            #[automatically_derived]
            impl #impl_generics #runtime::Projection for #self_ty #where_clause {
                const DEFINITION: &'static #runtime::Definition =
                    &#runtime::Definition { name: "", tables: &[], after: &[], events: &[] };

                async fn apply(
                    &self,
                    event: &#runtime::StoredEvent,
                    _: &mut #runtime::PgConnection,
                ) -> #private::Result<(), #runtime::ApplyError> {
                    #private::not_handled(Self::DEFINITION, event)
                }

                async fn reset(_: &mut #runtime::PgConnection) -> #private::Result<(), #private::SqlxError> {
                    #private::Result::Ok(())
                }
            }
        };
    }
}
