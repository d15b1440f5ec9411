//! The code of a projection: dispatch, reset and registration. ARCHITECTURE.md shows what comes out.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::{Attribute, Generics, Ident, ItemImpl};

use super::handler::Handler;
use super::model::{Projection, is_generic};

pub(crate) fn projection(projection: &Projection, block: &ItemImpl) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    let self_ty = &block.self_ty;
    let Projection { name, tables, cascade, after, handlers } = projection;

    let truncate = truncate(tables, *cascade);
    let registrations = handlers.iter().enumerate().map(|(i, handler)| registration(i, handler, &private));
    let events = handlers.iter().enumerate().map(|(i, Handler { cfg, .. })| {
        let ty = handler_type(i);
        quote!(#(#cfg)* <#ty as #private::Handler>::EVENT_TYPE)
    });
    let arms = handlers.iter().enumerate().map(|(i, handler)| arm(i, handler, &private));
    let lints = lints(&block.attrs);

    quote! {
        #block

        const _: () = {
            // Two handlers of one event, also under two names of its type, are two implementations.
            #[allow(dead_code)]
            trait HandledOnce {}

            #(#registrations)*

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
                        _ => #private::not_handled(#name, event),
                    }
                }

                async fn reset(tx: &mut #runtime::PgConnection) -> #private::Result<(), #private::SqlxError> {
                    #private::execute(#truncate, tx).await
                }
            }
        };
    }
}

/// The type that stands for a handler.
fn handler_type(i: usize) -> Ident {
    format_ident!("Handler{i}")
}

fn registration(i: usize, Handler { cfg, event, sig }: &Handler, private: &TokenStream) -> TokenStream {
    let (ty, function) = (handler_type(i), sig.ident.to_string());
    let once = moved(ends(event), quote!(impl HandledOnce for <#ty as #private::Handler>::Event {}));
    quote! {
        #(#cfg)*
        struct #ty;

        #(#cfg)*
        impl #private::Handler for #ty {
            // The event's path stands once in the output, so that a mistake in it is reported once.
            type Event = #event;
            const FUNCTION: &'static str = #function;
        }

        #(#cfg)*
        #once
    }
}

/// The arm of the dispatch: each part has the span of what the user wrote, where a mistake in it is reported.
///
/// A guard, not a constant as the pattern: that would bring a second error where the type is no event.
fn arm(i: usize, handler: &Handler, private: &TokenStream) -> TokenStream {
    let Handler { cfg, sig, .. } = handler;
    let (ty, function) = (handler_type(i), &sig.ident);
    let receiver = sig.receiver().map(|_| quote!(self,));
    let event = moved(ends(handler.parameter(0)), quote!(#private::argument(&event)));
    let tx = moved(ends(handler.parameter(1)), quote!(&mut *tx));
    let future = moved(ends(function), quote!(#private::send(future).await));
    let result = moved(ends(handler.output()), quote!(#private::outcome(result)));
    quote! {
        #(#cfg)*
        name if name == <#ty as #private::Handler>::EVENT_NAME => {
            let event = <#ty as #private::Handler>::decode(event)?;
            let future = Self::#function(#receiver #event, #tx);
            let result = #future;
            #result
        }
    }
}

/// The mistakes, the user's own code without our attributes, and a [`stand_in`].
pub(crate) fn fallback(errors: &TokenStream, projection: &Projection, block: &ItemImpl) -> TokenStream {
    // The events are named, so that a misspelt one is told in the same run, and an import of one is used.
    let events = projection.handlers.iter().map(|Handler { cfg, event, .. }| {
        quote!(#(#cfg)* const _: ::core::marker::PhantomData<#event> = ::core::marker::PhantomData;)
    });
    let stand_in = stand_in(&projection.name, &block.generics, &block.self_ty);
    quote! {
        #errors

        #[allow(dead_code, unused_variables)]
        #block

        #(#events)*

        #stand_in
    }
}

/// An impl that keeps `projections![..]` and everything else that needs the trait from complaining on top.
///
/// A generic type has none: it would bring a mistake for each bound that the type parameters lack.
pub(crate) fn stand_in(name: &str, generics: &Generics, ty: &impl ToTokens) -> TokenStream {
    if is_generic(generics, ty) {
        return TokenStream::new();
    }
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    // Without a name of its own, one that no other projection has.
    let name = if name.is_empty() { ty.to_token_stream().to_string() } else { name.to_owned() };
    quote! {
        const _: () = {
            #[automatically_derived]
            impl #runtime::Projection for #ty {
                const DEFINITION: &'static #runtime::Definition =
                    &#runtime::Definition { name: #name, tables: &[], after: &[], events: &[] };

                async fn apply(
                    &self,
                    event: &#runtime::StoredEvent,
                    _: &mut #runtime::PgConnection,
                ) -> #private::Result<(), #runtime::ApplyError> {
                    #private::not_handled(#name, event)
                }

                async fn reset(_: &mut #runtime::PgConnection) -> #private::Result<(), #private::SqlxError> {
                    #private::Result::Ok(())
                }
            }
        };
    }
}

/// One statement for all tables. Quoted, so that a table may be called `order` or `user`.
fn truncate(tables: &[String], cascade: bool) -> String {
    let quoted: Vec<String> = tables.iter().map(|table| format!("\"{}\"", table.replace('.', "\".\""))).collect();
    let cascade = if cascade { " CASCADE" } else { "" };
    format!("TRUNCATE TABLE {}{cascade}", quoted.join(", "))
}

/// The lint levels that the user set on the impl block hold for the generated one as well.
fn lints(attrs: &[Attribute]) -> TokenStream {
    let levels = ["allow", "warn", "deny", "forbid"];
    let lints = attrs.iter().filter(|attr| levels.iter().any(|level| attr.path().is_ident(level)));
    quote!(#(#lints)*)
}

/// The first and the last span of the tokens: rustc points from the one to the other.
fn ends(tokens: impl ToTokens) -> (Span, Span) {
    let mut spans = tokens.to_token_stream().into_iter().map(|token| token.span());
    let first = spans.next().unwrap_or_else(Span::call_site);
    (first, spans.last().unwrap_or(first))
}

/// The tokens, moved to where the user wrote something: rustc points there for each expression of them.
fn moved((start, end): (Span, Span), tokens: TokenStream) -> TokenStream {
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
