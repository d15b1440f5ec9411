//! `domain_events! { pub BandEvents: "domain.Band" => [BandCreated, BandRenamed] }`

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Attribute, Ident, LitStr, Path, Token, Visibility, bracketed};

use crate::report::Report;
use crate::spans::{ends, moved};

const FORM: &str = "expected `BandEvents: \"domain.Band\" => [BandCreated, ..]`";

/// The events of one aggregate.
struct EventSet {
    attrs: Vec<Attribute>,
    vis: Visibility,
    ident: Ident,
    aggregate: LitStr,
    events: Vec<Path>,
}

struct EventSets(Vec<EventSet>);

impl Parse for EventSets {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        Ok(EventSets(Punctuated::<EventSet, Token![,]>::parse_terminated(input)?.into_iter().collect()))
    }
}

impl Parse for EventSet {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let form = |error: syn::Error| syn::Error::new(error.span(), FORM);
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let ident = input.parse().map_err(form)?;
        input.parse::<Token![:]>().map_err(form)?;
        let aggregate = input.parse().map_err(form)?;
        input.parse::<Token![=>]>().map_err(form)?;
        let events;
        if !input.peek(syn::token::Bracket) {
            return Err(input.error(FORM));
        }
        bracketed!(events in input);
        let events = Punctuated::<Path, Token![,]>::parse_terminated(&events)?.into_iter().collect();
        Ok(EventSet { attrs, vis, ident, aggregate, events })
    }
}

pub(crate) fn expand(input: TokenStream) -> TokenStream {
    let mut report = Report::default();
    let sets = report.ok(syn::parse2::<EventSets>(input)).map_or(Vec::new(), |sets| sets.0);
    for set in &sets {
        check(set, &mut report);
    }
    let errors = report.into_compile_errors();
    let sets = sets.iter().map(event_set);
    quote!(#errors #(#sets)*)
}

fn check(set: &EventSet, report: &mut Report) {
    if set.aggregate.value().trim().is_empty() {
        report.error(&set.aggregate, "the aggregate's name is empty");
    }
    if set.events.is_empty() {
        let ident = &set.ident;
        report.error(ident, format!("`{ident}` has no events: name those of the aggregate"));
    }
    for (i, event) in set.events.iter().enumerate() {
        if set.events[..i].iter().any(|first| crate::is_same(first, event)) {
            report.error(event, format!("`{}` stands twice in the set: keep one", crate::path_string(event)));
        }
    }
}

fn event_set(EventSet { attrs, vis, ident, aggregate, events }: &EventSet) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    let documented = attrs.iter().any(|attr| attr.path().is_ident("doc"));
    let doc = (!documented).then(|| {
        let doc = format!("The events of `{}`.", aggregate.value());
        quote!(#[doc = #doc])
    });
    let name = ident.to_string();
    // Each event's path stands once, so that a mistake in it is reported once.
    let member = |i: usize| format_ident!("__Member{i}");
    let members = events.iter().enumerate().map(|(i, event)| {
        let member = member(i);
        let check = moved(ends(event), quote!(#private::check_aggregate::<#member>(#aggregate, #name)));
        quote! {
            struct #member;

            impl #private::Member for #member {
                type Event = #event;
            }

            const _: () = #check;
        }
    });
    let names = (0..events.len()).map(|i| {
        let member = member(i);
        quote!(<#member as #private::Member>::NAME)
    });
    quote! {
        #(#attrs)*
        #doc
        #[derive(::core::fmt::Debug, ::core::clone::Clone, ::core::marker::Copy)]
        #vis enum #ident {}

        const _: () = {
            #(#members)*

            #[automatically_derived]
            impl #runtime::EventSet for #ident {
                const AGGREGATE: &'static str = #aggregate;
                const EVENTS: &'static [&'static str] = &[#(#names),*];
            }
        };
    }
}
