//! `#[derive(DomainEvent)] #[event(aggregate = "domain.Band")] struct BandCreated { .. }`

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, DeriveInput, Expr, LitInt, LitStr, Meta, Path, Token};

use crate::aliases;
use crate::keys::{Keys, list};
use crate::report::Report;
use crate::spans::{ends, moved};

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
    let private = quote!(#runtime::__private);
    let ident = &input.ident;
    let Event { name, aggregate, version, routing_key, message, upcasts } = event;
    let path = path_of(ident);
    let (aggregate, set) = match aggregate {
        Aggregate::Name(name) => (quote!(#name), None),
        Aggregate::Set(set) => {
            (quote!(<#ident as #private::SetMember>::AGGREGATE), Some(set_member(ident, &set, &private)))
        }
    };
    // After a mistake the chain may be one that cannot be: its follow-up errors would tell nothing.
    let numbered = (!upcasts.is_empty()).then(|| {
        let steps = upcasts.iter().map(|Upcast { from, function }| quote!(#from => #function));
        let number = crate::fingerprint::of(quote!(#(#steps),*));
        quote!(const UPCASTS: u64 = #number;)
    });
    let routing_key = routing_key.map_or_else(
        || {
            quote!({
                const BYTES: [u8; #private::routing_key_length(#aggregate, #name)] =
                    #private::routing_key_bytes(#aggregate, #name);
                #private::routing_key(&BYTES)
            })
        },
        |key| quote!(#key),
    );
    let carried = (errors.is_none() && !upcasts.is_empty()).then(|| carried(&upcasts, &runtime));
    let schema = schema(&private);
    let aliases =
        aliases::of(&input).map(|aliases| quote!(const ALIASES: &'static [#private::FieldAliases] = #aliases;));
    let message = message.map(|[aggregate_id, recorded_at]| {
        let none = || quote!(::core::option::Option::None);
        let field =
            |field: Option<String>| field.map_or_else(none, |field| quote!(::core::option::Option::Some(#field)));
        let [aggregate_id, recorded_at] = [aggregate_id, recorded_at].map(field);
        quote! {
            const MESSAGE: #runtime::MessageFields =
                #runtime::MessageFields { aggregate_id: #aggregate_id, recorded_at: #recorded_at };
        }
    });
    quote! {
        #errors

        #[automatically_derived]
        impl #runtime::DomainEvent for #ident {
            const NAME: &'static str = #name;
            const AGGREGATE: &'static str = #aggregate;
            const VERSION: i32 = #version;
            #numbered
            const ROUTING_KEY: &'static str = #routing_key;
            const TYPE: &'static str = #path;
            #message
            #aliases
            #carried
            #schema
        }

        #set
    }
}

/// The type's path, by which two types of one event name are told apart.
fn path_of(ident: &syn::Ident) -> TokenStream {
    let name = format!("::{ident}");
    quote!(::core::concat!(::core::module_path!(), #name))
}

/// That the event is in the set which its attribute names; the set's path stands once, so that a mistake in it is
/// reported once.
fn set_member(ident: &syn::Ident, set: &Path, private: &TokenStream) -> TokenStream {
    let name = crate::path_string(set);
    let check = moved(ends(set), quote!(#private::check_member::<#ident>(#name)));
    quote! {
        #[automatically_derived]
        impl #private::SetMember for #ident {
            type Set = #set;
        }

        const _: () = #check;
    }
}

/// Carries a payload up from the version in which it was stored, and knows the types of the older versions.
fn carried(upcasts: &[Upcast], runtime: &TokenStream) -> TokenStream {
    let private = quote!(#runtime::__private);
    // Each step stands at the function that takes what it gives, where a mistake in that function is told.
    let oldest = upcasts.first().map(|first| moved(ends(&first.function), quote!(#private::oldest(event)?)));
    let schema_of = |from: i32| format_ident!("schema_of_v{from}");
    let steps = upcasts.iter().zip(2..).map(|(Upcast { function, .. }, to): (_, i32)| {
        let step = moved(ends(function), quote!(#private::upcast));
        let place = moved(ends(function), quote!(event, #to, payload));
        // The type of the last step is known, so that it is the upcast which does not fit.
        let last = usize::try_from(to - 1) == Ok(upcasts.len());
        let newest = last.then(|| moved(ends(function), quote!(::<_, _, Self>)));
        let schema = schema_of(to - 1);
        quote! {
            let #schema = #private::SchemaOf::of(&payload);
            let payload = #step #newest(#place, #function)?;
        }
    });
    let schemas = upcasts.iter().zip(1..).map(|(_, from)| schema_of(from));
    quote! {
        fn carried(
            event: &#runtime::StoredEvent,
            older: #private::OlderSchemas<'_>,
        ) -> #private::Result<::core::option::Option<Self>, #runtime::ApplyError> {
            use #private::{WithSchema as _, WithoutSchema as _};
            let payload = #oldest;
            #(#steps)*
            // Here, because the types of the steps are inferred from each other.
            if let ::core::option::Option::Some(older) = older {
                older.extend([#((&#schemas).schema()),*]);
            }
            ::core::result::Result::Ok(payload)
        }
    }
}

/// The schema of the newest payload: a borrow more or less decides which trait's method it is, by whether the type
/// implements `JsonSchema`.
fn schema(private: &TokenStream) -> TokenStream {
    quote! {
        fn schema() -> #private::PayloadSchema {
            use #private::{WithSchema as _, WithoutSchema as _};
            (&#private::SchemaOf::<Self>::new()).schema()
        }
    }
}

struct Event {
    name: String,
    aggregate: Aggregate,
    version: i32,
    /// By the rule if there is none.
    routing_key: Option<String>,
    /// The fields of a foreign message's body that hold `aggregate_id` and `recorded_at`.
    message: Option<[Option<String>; 2]>,
    /// From version 1 on, each to the next.
    upcasts: Vec<Upcast>,
}

enum Aggregate {
    Name(String),
    /// The event set that names it.
    Set(Path),
}

/// `1 => from_v1`
struct Upcast {
    from: LitInt,
    function: Expr,
}

impl Parse for Upcast {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        const FORM: &str = "expected the older version and the function that carries it up: `1 => from_v1`";
        let from = input.parse().map_err(|error: syn::Error| syn::Error::new(error.span(), FORM))?;
        input.parse::<Token![=>]>().map_err(|error| syn::Error::new(error.span(), FORM))?;
        Ok(Upcast { from, function: input.parse()? })
    }
}

fn read(input: &DeriveInput, report: &mut Report) -> Event {
    const NAME: &str = "name";
    const AGGREGATE: &str = "aggregate";
    const VERSION: &str = "version";
    const ROUTING_KEY: &str = "routing_key";
    const UPCAST: &str = "upcast";
    const MESSAGE: &str = "message";
    const MESSAGE_KEYS: [&str; 2] = ["aggregate_id", "recorded_at"];

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
    keys.check(&[NAME, AGGREGATE, VERSION, ROUTING_KEY, UPCAST, MESSAGE], report);
    if let Some(missing) = keys.missing(&[AGGREGATE]) {
        let message = format!("{missing}: say which aggregate the event is of, {FULL_FORM}");
        match attrs.first() {
            Some(attr) => report.error(attr, message),
            None => report.add(syn::Error::new(Span::call_site(), message)),
        }
    }

    let filled = |key: &str, literal: &LitStr, report: &mut Report| {
        if literal.value().trim().is_empty() {
            report.error(literal, format!("`{key}` is empty"));
        }
        literal.value()
    };
    let text = |key, report: &mut Report| keys.string(key, report).map(|literal| filled(key, &literal, report));
    let name = text(NAME, report).unwrap_or_else(|| input.ident.to_string());
    let aggregate = match keys.string_or_path(AGGREGATE, report) {
        Some(Ok(literal)) => Aggregate::Name(filled(AGGREGATE, &literal, report)),
        Some(Err(set)) => Aggregate::Set(set),
        None => Aggregate::Name(String::new()),
    };
    let routing_key = text(ROUTING_KEY, report);
    let version = keys.integer(VERSION, report);
    let number = version.as_ref().map(|literal| {
        let number = literal.base10_parse::<i32>().ok().filter(|version| *version >= 1);
        if number.is_none() {
            report.error(literal, "a version is a whole number from 1");
        }
        number
    });
    let message = keys.nested(MESSAGE, "message(aggregate_id = \"EventAggregateId\")", report).map(|mut fields| {
        fields.check(&MESSAGE_KEYS, report);
        MESSAGE_KEYS.map(|key| fields.string(key, report).map(|literal| filled(key, &literal, report)))
    });
    let upcasts = keys.list(UPCAST, "upcast(1 => from_v1)", report);
    let readable = keys.key(UPCAST).is_none() || upcasts.is_some();
    let mut upcasts = upcasts.map(|(upcasts, _)| upcasts).unwrap_or_default();
    // With a version that is no number, or upcasts that can't be read, nothing more is to be said of the chain.
    if let (true, Some(newest)) = (readable, number.unwrap_or(Some(1))) {
        let at = keys.key(UPCAST).map(|key| quote!(#key)).or(version.map(|literal| quote!(#literal)));
        check_chain(&mut upcasts, newest, at.unwrap_or_default(), report);
    }
    Event { name, aggregate, version: number.flatten().unwrap_or(1), routing_key, message, upcasts }
}

/// Every version before the newest has one upcast; afterwards they stand in order.
fn check_chain(upcasts: &mut [Upcast], newest: i32, at: TokenStream, report: &mut Report) {
    let from = |upcast: &Upcast| upcast.from.base10_parse::<i32>().unwrap_or(0);
    for (i, upcast) in upcasts.iter().enumerate() {
        let version = from(upcast);
        if version < 1 {
            report.error(&upcast.from, "a version is a whole number from 1");
        } else if version >= newest {
            let next = version.saturating_add(1);
            report.error(
                &upcast.from,
                format!(
                    "an upcast begins at an older version, and the event's is {newest}: is it `version = {next}` by now?"
                ),
            );
        } else if upcasts[..i].iter().any(|first| from(first) == version) {
            report.error(&upcast.from, format!("version {version} has an upcast already: keep one"));
        }
    }
    // An event may have come a long way: the first few tell enough.
    let gaps: Vec<i32> = (1..newest).filter(|version| !upcasts.iter().any(|u| from(u) == *version)).take(5).collect();
    if !gaps.is_empty() {
        let names: Vec<String> = gaps.iter().map(ToString::to_string).collect();
        let names = list(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let form: Vec<String> = gaps.iter().map(|version| format!("{version} => from_v{version}")).collect();
        report.error(
            at,
            format!(
                "no upcast from version {names}: stored events of every older version must be carried up, \
                 `upcast({})`",
                form.join(", ")
            ),
        );
    }
    upcasts.sort_by_key(from);
}
