//! The code of a projection: dispatch, reset and registration. ARCHITECTURE.md shows what comes out.

use proc_macro2::{Delimiter, Group, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Attribute, Expr, Generics, Ident, ItemImpl, Path, Type};

use super::handler::{Form, Handler};
use super::model::{Projection, is_generic};
use crate::spans::{ends, moved};
use crate::sql::quoted;

pub(crate) fn projection(projection: &Projection, block: &ItemImpl) -> TokenStream {
    let runtime = crate::runtime();
    // A name for it, so that what comes out can be read.
    let private = quote!(__private);
    let self_ty = &block.self_ty;
    let Projection { name, tables, cascade, after, by_aggregate, partitions, covers, ignores, handlers, others } =
        projection;

    let partitions = (1..=*partitions).filter(|_| *partitions > 1).map(|n| format!("{name}:{n}/{partitions}"));
    let order = if *by_aggregate { quote!(Aggregate) } else { quote!(Stream) };
    let truncate = truncate(tables, *cascade);
    let registrations = handlers.iter().enumerate().map(|(i, handler)| registration(i, handler, &private));
    let events = handlers.iter().enumerate().map(|(i, Handler { cfg, .. })| {
        let this = as_handler(i, &private);
        quote!(#(#cfg)* #this::EVENT_TYPE)
    });
    let numbered = || handlers.iter().enumerate();
    let one = numbered().filter(|(_, handler)| matches!(handler.form(), Form::Event));
    let one = one.map(|(i, handler)| arm(i, handler, &private));
    let run = handlers.iter().any(|handler| matches!(handler.form(), Form::Run)).then(|| {
        let run = numbered().filter(|(_, handler)| matches!(handler.form(), Form::Run));
        let run = run.map(|(i, handler)| arm(i, handler, &private));
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
    let rows = row_types(handlers);
    let row_aliases = rows.iter().enumerate().map(|(r, row)| row_registration(r, row, &private));
    let row_tables = (0..rows.len()).map(|r| {
        let (cfg, row) = (&rows[r].cfg, as_row(r, &private));
        quote!(#cfg #row::TABLE)
    });
    let apply_rows = (!rows.is_empty()).then(|| apply_rows(name, handlers, &rows, &runtime, &private));
    let row_checks = (!rows.is_empty()).then(|| row_checks(&rows, self_ty, &private));
    let ignored = ignores.iter().map(|event| quote!(<#event as #runtime::DomainEvent>::NAME));
    let coverage = (!covers.is_empty()).then(|| coverage(covers, ignores, self_ty, &runtime, &private));
    let lints = lints(&block.attrs);

    quote! {
        #block

        const _: () = {
            use #runtime::__private;

            struct ThisProjection;


            #(#registrations)*

            #(#row_aliases)*

            #[automatically_derived]
            #lints
            impl #runtime::Projection for #self_ty {
                const DEFINITION: &'static #runtime::Definition = &#runtime::Definition {
                    name: #name,
                    tables: &[#(#tables),*],
                    after: &[#(#after),*],
                    order: #runtime::Order::#order,
                    partitions: &[#(#partitions),*],
                    events: &[#(#events),*],
                    ignores: &[#(#ignored),*],
                    rows: &[#(#row_tables),*],
                    fingerprint: #others,
                };

                async fn apply(
                    &self,
                    event: &#runtime::StoredEvent,
                    tx: &mut #runtime::PgConnection,
                ) -> #private::Result<(), #runtime::ApplyError> {
                    match &*event.name {
                        #(#one)*
                        _ => #private::not_handled(#name, event),
                    }
                }

                #run

                #apply_rows

                async fn reset(tx: &mut #runtime::PgConnection) -> #private::Result<(), #private::SqlxError> {
                    #private::execute(#truncate, tx).await
                }
            }

            #coverage

            #row_checks
        };
    }
}

/// A row's type and the handlers that take it.
struct RowType<'a> {
    ty: &'a Type,
    /// Its rows come of their aggregates' events alone: before the first of them there is none.
    by_aggregate: bool,
    /// Where all these handlers have a `#[cfg(..)]`.
    cfg: Option<TokenStream>,
    handlers: Vec<&'a Handler>,
}

/// The types of rows, as they are written; rustc sees an alias.
fn row_types(handlers: &[Handler]) -> Vec<RowType<'_>> {
    let mut rows: Vec<RowType<'_>> = Vec::new();
    for handler in handlers {
        let Some(ty) = handler.row() else { continue };
        match rows.iter_mut().find(|row| crate::is_same(row.ty, ty)) {
            Some(row) => row.handlers.push(handler),
            None => rows.push(RowType { ty, by_aggregate: true, cfg: None, handlers: vec![handler] }),
        }
    }
    // SQL may write to any of the projection's tables.
    let all_take_rows = handlers.iter().all(|handler| handler.row().is_some());
    for RowType { by_aggregate, cfg, handlers, .. } in &mut rows {
        *by_aggregate = all_take_rows && handlers.iter().all(|handler| handler.key.is_none());
        if handlers.iter().all(|handler| !handler.cfg.is_empty()) {
            let each = handlers.iter().map(|handler| {
                let conditions = handler.cfg.iter().filter_map(|cfg| cfg.meta.require_list().ok());
                let conditions = conditions.map(|list| &list.tokens);
                quote!(all(#(#conditions),*))
            });
            *cfg = Some(quote!(#[cfg(any(#(#each),*))]));
        }
    }
    rows
}

fn row_alias(r: usize) -> Ident {
    format_ident!("__Row{r}")
}

/// A row's type as the generated code names it.
fn as_row(r: usize, private: &TokenStream) -> TokenStream {
    let alias = row_alias(r);
    quote!(<ThisProjection as #private::RowOf<#alias>>)
}

/// The row's path stands once in the output, and its bound as well, so that a mistake in it is reported once.
fn row_registration(r: usize, RowType { ty, cfg, .. }: &RowType<'_>, private: &TokenStream) -> TokenStream {
    let alias = row_alias(r);
    let head = moved(ends(ty), quote!(impl #private::RowOf<#alias> for ThisProjection));
    let bound = moved(ends(ty), quote!(#alias));
    let mut body = Group::new(Delimiter::Brace, quote!(type Row = #bound;));
    body.set_span(ends(ty).0);
    quote! {
        #cfg
        type #alias = #ty;

        #cfg
        #head #body
    }
}

/// What changes the rows of a run of events.
fn apply_rows(
    name: &str,
    handlers: &[Handler],
    rows: &[RowType<'_>],
    runtime: &TokenStream,
    private: &TokenStream,
) -> TokenStream {
    let changes = |r: usize| format_ident!("rows{r}");
    let begin = rows.iter().enumerate().map(|(r, RowType { cfg, .. })| {
        let (changes, row) = (changes(r), as_row(r, private));
        quote!(#cfg let mut #changes = #row::changes(events.len());)
    });
    let end = rows.iter().enumerate().map(|(r, RowType { cfg, .. })| {
        let changes = changes(r);
        quote!(#cfg #changes.apply(tx).await?;)
    });
    let arms = handlers.iter().enumerate().filter_map(|(i, handler)| {
        let row = handler.row()?;
        let r = rows.iter().position(|known| crate::is_same(known.ty, row))?;
        Some(row_arm(i, handler, &changes(r), rows[r].by_aggregate, private))
    });
    quote! {
        async fn apply_rows(
            &self,
            events: &[&#runtime::StoredEvent],
            tx: &mut #runtime::PgConnection,
        ) -> #private::Result<(), #private::RunError> {
            #(#begin)*
            for (at, event) in events.iter().enumerate() {
                match &*event.name {
                    #(#arms)*
                    _ => #private::at(at, #private::not_handled(#name, event))?,
                }
            }
            #(#end)*
            #private::Result::Ok(())
        }
    }
}

/// The arm of an event whose handler takes a row.
fn row_arm(i: usize, handler: &Handler, changes: &Ident, by_aggregate: bool, private: &TokenStream) -> TokenStream {
    let Handler { cfg, sig, .. } = handler;
    let (this, function) = (as_handler(i, private), &sig.ident);
    let receiver = sig.receiver().map(|_| quote!(self,));
    let decode = quote!(#this::decode(event));
    // A key of the handler's own is in the payload. Otherwise that is decoded when its turn comes: decoded events take more
    // room than those that were read.
    let (early, late, key) = if let Some(key) = &handler.key {
        // As the user's tokens see it, also where they come out of a macro.
        let event = Ident::new("event", ends(key).0);
        let value = key_value(key, private);
        let checked = moved(ends(key), quote!(#private::key(&#changes, key)));
        let early = quote!(let event = #private::at(at, #decode)?;);
        (Some(early), None, quote!({ let #event = &event; let key = #value; #checked }))
    } else {
        let late = quote!(let event = #decode?;);
        (None, Some(late), moved(ends(&handler.event), quote!(#private::aggregate_key(&#changes, event))))
    };
    let argument = moved(ends(handler.parameter(1)), quote!(#private::argument(&event)));
    let is_new = if by_aggregate { quote!(#private::is_first(event)) } else { quote!(false) };
    let outcome = quote!(#private::row_outcome(result));
    let outcome = handler.output().map_or(outcome.clone(), |output| moved(ends(output), outcome));
    quote! {
        #(#cfg)*
        name if name == #this::EVENT_NAME => {
            #early
            let key = #key;
            #changes.add(at, key, #is_new, move |row| {
                #late
                let result = Self::#function(#receiver row, #argument);
                #outcome
            });
        }
    }
}

/// The user's expression, or its parts, of which each stays in the event.
fn key_value(key: &Expr, private: &TokenStream) -> TokenStream {
    let part = |part: &Expr| {
        let (function, reference) = (moved(ends(part), quote!(#private::key_part)), moved(ends(part), quote!(&)));
        quote!(#function(#reference #part))
    };
    match key {
        Expr::Tuple(parts) => {
            let parts = parts.elems.iter().map(part);
            quote!((#(#parts),*))
        }
        one => part(one),
    }
}

/// That the projection owns the tables of its rows, and has one type for each.
fn row_checks(rows: &[RowType<'_>], self_ty: &impl ToTokens, private: &TokenStream) -> TokenStream {
    let names = rows.iter().map(|RowType { ty, cfg, .. }| {
        let name = ty.to_token_stream().to_string().replace(' ', "");
        quote!(#cfg #name)
    });
    // Counted as they are in the definition, from which a `#[cfg(..)]` may have taken one.
    let checks = rows.iter().enumerate().map(|(r, RowType { ty, cfg, .. })| {
        let before = rows[..r].iter().map(|RowType { cfg, .. }| quote!(#cfg ()));
        let place = quote!({ const BEFORE: &[()] = &[#(#before),*]; BEFORE.len() });
        let check = moved(ends(ty), quote!(#private::check_row::<#self_ty>(ROWS, #place)));
        quote!(#cfg const _: () = #check;)
    });
    quote! {
        const ROWS: &[&str] = &[#(#names),*];
        #(#checks)*
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
    let Handler { cfg, event, sig, fingerprint, .. } = handler;
    let (alias, function) = (event_alias(i), sig.ident.to_string());
    let head = moved(ends(event), quote!(impl #private::Handler<#alias> for ThisProjection));
    let bound = moved(ends(event), quote!(#alias));
    let form = match handler.form() {
        Form::Event => None,
        Form::Run => Some(quote!(Run)),
        Form::Row(_) => Some(quote!(Row)),
    };
    let form = form.map(|form| quote!(const FORM: #private::Form = #private::Form::#form;));
    let mut body = Group::new(
        Delimiter::Brace,
        quote! {
            type Event = #bound;
            const FUNCTION: &'static str = #function;
            const FINGERPRINT: u64 = #fingerprint;
            #form
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
    let (decode, given, argument) = match handler.form() {
        Form::Run => (quote!(decode_run), quote!(events), quote!(run)),
        Form::Event | Form::Row(_) => (quote!(decode), quote!(event), quote!(argument)),
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
    let quoted: Vec<String> = tables.iter().map(|table| quoted(table)).collect();
    let cascade = if cascade { " CASCADE" } else { "" };
    format!("TRUNCATE TABLE {}{cascade}", quoted.join(", "))
}

/// The lint levels that the user set on the impl block hold for the generated one as well.
fn lints(attrs: &[Attribute]) -> TokenStream {
    let levels = ["allow", "warn", "deny", "forbid"];
    let lints = attrs.iter().filter(|attr| levels.iter().any(|level| attr.path().is_ident(level)));
    quote!(#(#lints)*)
}
