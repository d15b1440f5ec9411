//! The code of a projection: dispatch, reset and registration. ARCHITECTURE.md shows what comes out.

use proc_macro2::{Delimiter, Group, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Attribute, Generics, Ident, ItemImpl, Path};

use super::handler::Handler;
use super::model::{Projection, is_generic};
use crate::spans::{ends, moved};

pub(crate) fn projection(projection: &Projection, block: &ItemImpl) -> TokenStream {
    let runtime = crate::runtime();
    // A name for it, so that what comes out can be read.
    let private = quote!(__private);
    let self_ty = &block.self_ty;
    let Projection { name, tables, cascade, after, by_aggregate, covers, ignores, handlers } = projection;

    let order = if *by_aggregate { quote!(Aggregate) } else { quote!(Stream) };
    let truncate = truncate(tables, *cascade);
    let registrations = handlers.iter().enumerate().map(|(i, handler)| registration(i, handler, &private));
    let events = handlers.iter().enumerate().map(|(i, Handler { cfg, .. })| {
        let this = as_handler(i, &private);
        quote!(#(#cfg)* #this::EVENT_TYPE)
    });
    let arms = |runs: bool| {
        let private = private.clone();
        let numbered = handlers.iter().enumerate().filter(move |(_, handler)| handler.takes_run() == runs);
        numbered.map(move |(i, handler)| arm(i, handler, &private))
    };
    let one = arms(false);
    let run = handlers.iter().any(Handler::takes_run).then(|| {
        let run = arms(true);
        quote! {
            async fn apply_run(
                &self,
                events: &[&#runtime::StoredEvent],
                tx: &mut #runtime::PgConnection,
            ) -> #private::Result<(), #runtime::ApplyError> {
                match #private::run_name(events) {
                    #(#run)*
                    _ => #private::run_not_handled(#name, events),
                }
            }
        }
    });
    let ignored = ignores.iter().map(|event| quote!(<#event as #runtime::DomainEvent>::NAME));
    let coverage = (!covers.is_empty()).then(|| coverage(covers, ignores, self_ty, &runtime, &private));
    let lints = lints(&block.attrs);

    quote! {
        #block

        const _: () = {
            use #runtime::__private;

            struct ThisProjection;


            #(#registrations)*

            #[automatically_derived]
            #lints
            impl #runtime::Projection for #self_ty {
                const DEFINITION: &'static #runtime::Definition = &#runtime::Definition {
                    name: #name,
                    tables: &[#(#tables),*],
                    after: &[#(#after),*],
                    order: #runtime::Order::#order,
                    events: &[#(#events),*],
                    ignores: &[#(#ignored),*],
                };

                async fn apply(
                    &self,
                    event: &#runtime::StoredEvent,
                    tx: &mut #runtime::PgConnection,
                ) -> #private::Result<(), #runtime::ApplyError> {
                    match event.name.as_str() {
                        #(#one)*
                        _ => #private::not_handled(#name, event),
                    }
                }

                #run

                async fn reset(tx: &mut #runtime::PgConnection) -> #private::Result<(), #private::SqlxError> {
                    #private::execute(#truncate, tx).await
                }
            }

            #coverage
        };
    }
}

/// That each event of the sets is handled or ignored. Each set's path stands once.
fn coverage(
    covers: &[Path],
    ignores: &[Path],
    self_ty: &impl ToTokens,
    runtime: &TokenStream,
    private: &TokenStream,
) -> TokenStream {
    let sets = covers.iter().map(|set| {
        let name = crate::path_string(set);
        quote!((#name, <#set as #runtime::EventSet>::EVENTS))
    });
    let check = |at: &Path, check: &str, i: usize| {
        let check = format_ident!("{check}");
        let call = moved(ends(at), quote!(#private::#check::<#self_ty>(COVERED, #i)));
        quote!(const _: () = #call;)
    };
    let checks = covers.iter().enumerate().map(|(i, set)| check(set, "check_coverage", i));
    let more = ignores.iter().enumerate().map(|(i, event)| check(event, "check_ignored", i));
    quote! {
        const COVERED: &[(&str, &[&str])] = &[#(#sets),*];
        #(#checks)*
        #(#more)*
    }
}

/// The event of a handler. Its path stands once in the output, so that a mistake in it is reported once.
fn event_alias(i: usize) -> Ident {
    format_ident!("__Event{i}")
}

/// A handler as an implementation of a trait: two handlers of one event, also under two names of its type, are two
/// implementations, and rustc points to both. Not the projection's own type has them: of that there may be a second
/// projection by mistake, which is one mistake.
fn registration(i: usize, handler: &Handler, private: &TokenStream) -> TokenStream {
    let Handler { cfg, event, sig } = handler;
    let (alias, function) = (event_alias(i), sig.ident.to_string());
    let head = moved(ends(event), quote!(impl #private::Handler<#alias> for ThisProjection));
    let bound = moved(ends(event), quote!(#alias));
    let takes_run = handler.takes_run().then(|| {
        quote! {
            const TAKES_RUN: bool = true;
        }
    });
    let mut body = Group::new(
        Delimiter::Brace,
        quote! {
            type Event = #bound;
            const FUNCTION: &'static str = #function;
            #takes_run
        },
    );
    // Where rustc points for the whole of it.
    body.set_span(ends(event).0);
    quote! {
        #(#cfg)*
        type #alias = #event;

        #(#cfg)*
        #head #body
    }
}

/// A handler as the generated code names it.
fn as_handler(i: usize, private: &TokenStream) -> TokenStream {
    let alias = event_alias(i);
    quote!(<ThisProjection as #private::Handler<#alias>>)
}

/// The arm of the dispatch: each part has the span of what the user wrote, where a mistake in it is reported.
///
/// A guard, not a constant as the pattern: that would bring a second error where the type is no event.
fn arm(i: usize, handler: &Handler, private: &TokenStream) -> TokenStream {
    let Handler { cfg, sig, .. } = handler;
    let (this, function) = (as_handler(i, private), &sig.ident);
    let receiver = sig.receiver().map(|_| quote!(self,));
    let (decode, given, argument) = if handler.takes_run() {
        (quote!(decode_run), quote!(events), quote!(run))
    } else {
        (quote!(decode), quote!(event), quote!(argument))
    };
    let argument = moved(ends(handler.parameter(0)), quote!(#private::#argument(&#given)));
    let tx = moved(ends(handler.parameter(1)), quote!(&mut *tx));
    let future = moved(ends(function), quote!(#private::send(future).await));
    let result = moved(ends(handler.output()), quote!(#private::outcome(result)));
    quote! {
        #(#cfg)*
        name if name == #this::EVENT_NAME => {
            let #given = #this::#decode(#given)?;
            let future = Self::#function(#receiver #argument, #tx);
            let result = #future;
            #result
        }
    }
}

/// The mistakes, the user's own code without our attributes, and a [`stand_in`].
pub(crate) fn fallback(errors: &TokenStream, projection: &Projection, block: &ItemImpl) -> TokenStream {
    // The types are named, so that a misspelt one is told in the same run, and an import of one is used.
    let named = |cfg: &[Attribute], ty: &Path| quote!(#(#cfg)* const _: ::core::marker::PhantomData<#ty> = ::core::marker::PhantomData;);
    let events = projection.handlers.iter().map(|Handler { cfg, event, .. }| named(cfg, event));
    let others = projection.covers.iter().chain(&projection.ignores).map(|ty| named(&[], ty));
    let stand_in = stand_in(&projection.name, &block.generics, &block.self_ty);
    quote! {
        #errors

        #[allow(dead_code, unused_variables)]
        #block

        #(#events)*
        #(#others)*

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
                const DEFINITION: &'static #runtime::Definition = &#private::stand_in(#name);

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
