//! `#[derive(DomainEvent)] #[event(aggregate = "domain.Band")] struct BandCreated { .. }`

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{Attribute, DeriveInput, LitStr, Meta};

use crate::keys::Keys;
use crate::report::Report;

const FULL_FORM: &str = "`#[event(aggregate = \"domain.Band\")]`";

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let input: DeriveInput = match syn::parse2(item) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let mut report = Report::default();
    let event = read(&input, &mut report);
    let errors = report.into_compile_errors();
    if !input.generics.params.is_empty() {
        // An impl would bring a mistake for each bound that the type parameters lack.
        return errors.unwrap_or_default();
    }

    let runtime = crate::runtime();
    let ident = &input.ident;
    let Event { name, aggregate, version, routing_key } = event;
    quote! {
        #errors

        #[automatically_derived]
        impl #runtime::DomainEvent for #ident {
            const NAME: &'static str = #name;
            const AGGREGATE: &'static str = #aggregate;
            const VERSION: i32 = #version;
            const ROUTING_KEY: &'static str = #routing_key;
        }
    }
}

struct Event {
    name: String,
    aggregate: String,
    version: i32,
    routing_key: String,
}

fn read(input: &DeriveInput, report: &mut Report) -> Event {
    const NAME: &str = "name";
    const AGGREGATE: &str = "aggregate";
    const VERSION: &str = "version";
    const ROUTING_KEY: &str = "routing_key";

    if !input.generics.params.is_empty() {
        report.error(&input.generics, "an event has no type parameters or lifetimes: its payload is one JSON form");
    }
    let attrs: Vec<&Attribute> = input.attrs.iter().filter(|attr| attr.path().is_ident("event")).collect();
    if let Some(second) = attrs.get(1) {
        report.error(second, "`#[event(..)]` stands twice: make them one");
    }
    let mut keys = match attrs.first().map(|attr| &attr.meta) {
        Some(Meta::List(list)) => Keys::read(list.parse_args(), report),
        _ => Keys::default(),
    };
    keys.check(&[NAME, AGGREGATE, VERSION, ROUTING_KEY], report);
    if let Some(missing) = keys.missing(&[AGGREGATE]) {
        let message = format!("{missing}: say which aggregate the event is of, {FULL_FORM}");
        match attrs.first() {
            Some(attr) => report.error(attr, message),
            None => report.add(syn::Error::new(Span::call_site(), message)),
        }
    }

    let mut text = |key: &str| -> Option<String> {
        let literal: LitStr = keys.string(key, report)?;
        if literal.value().trim().is_empty() {
            report.error(&literal, format!("`{key}` is empty"));
        }
        Some(literal.value())
    };
    let name = text(NAME).unwrap_or_else(|| input.ident.to_string());
    let aggregate = text(AGGREGATE).unwrap_or_default();
    let routing_key = text(ROUTING_KEY).unwrap_or_else(|| name.clone());
    let version = keys.integer(VERSION, report).and_then(|literal| {
        let version = literal.base10_parse::<i32>().ok().filter(|version| *version >= 1);
        if version.is_none() {
            report.error(&literal, "a version is a whole number from 1");
        }
        version
    });
    Event { name, aggregate, version: version.unwrap_or(1), routing_key }
}
