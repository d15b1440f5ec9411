//! One handler: the event that its `#[on(..)]` names, and its signature.

use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Expr, FnArg, GenericArgument, Ident, ImplItemFn, LitStr, Meta, PatType, Path, PathArguments,
    ReceiverKind, ReturnType, Safety, Signature, Stmt, Token, Type, TypeReference, parse_quote,
};

use crate::fingerprint;
use crate::report::Report;

pub(crate) struct Handler {
    /// The `#[cfg(..)]` of the function: they hold for everything generated for it.
    pub(crate) cfg: Vec<Attribute>,
    pub(crate) event: Path,
    /// Which row it changes, an expression of `event`, where that is not the one of the event's aggregate.
    pub(crate) key: Option<Expr>,
    pub(crate) sig: Signature,
    /// Of what it does: of its event, key, parameters and body.
    pub(crate) fingerprint: u64,
}

/// What a handler takes: its signature decides.
#[derive(Clone, Copy)]
pub(crate) enum Form<'a> {
    /// `&Recorded<..>`
    Event,
    /// `&[Recorded<..>]`
    Run,
    /// `&mut Option<..>`, with the row's type
    Row(&'a Type),
}

impl Handler {
    /// The type of a parameter, not counting a receiver: 0 is the event's, 1 the connection's; of a row handler 0 is the
    /// row's, 1 the event's.
    pub(crate) fn parameter(&self, i: usize) -> Option<&Type> {
        parameters(&self.sig).nth(i).map(|parameter| &*parameter.ty)
    }

    pub(crate) fn form(&self) -> Form<'_> {
        match self.parameter(0) {
            Some(Type::Reference(reference)) if matches!(*reference.elem, Type::Slice(_)) => Form::Run,
            Some(ty) => row(ty).map_or(Form::Event, Form::Row),
            None => Form::Event,
        }
    }

    pub(crate) fn row(&self) -> Option<&Type> {
        match self.form() {
            Form::Row(row) => Some(row),
            Form::Event | Form::Run => None,
        }
    }

    pub(crate) fn output(&self) -> Option<&Type> {
        match &self.sig.output {
            ReturnType::Type(_, ty) => Some(ty),
            ReturnType::Default => None,
        }
    }
}

/// The row's type of a parameter `&mut Option<..>`.
fn row(ty: &Type) -> Option<&Type> {
    let Type::Reference(TypeReference { mutability: Some(_), elem, .. }) = ty else { return None };
    let Type::Path(path) = &**elem else { return None };
    let option = path.path.segments.last().filter(|last| last.ident == "Option")?;
    match &option.arguments {
        PathArguments::AngleBracketed(of) => match of.args.first() {
            Some(GenericArgument::Type(row)) => Some(row),
            _ => None,
        },
        _ => None,
    }
}

/// Whether it is meant to take a row.
fn is_row(sig: &Signature) -> bool {
    let mut types = parameters(sig).map(|parameter| &*parameter.ty);
    match (types.next(), types.next()) {
        // Without `Option`, but no connection that a handler with SQL would take.
        (Some(first), Some(second)) if sig.asyncness.is_none() && is_reference(first, true) => {
            is_reference(second, false)
        }
        (first, second) => first.into_iter().chain(second).any(|ty| row(ty).is_some()),
    }
}

/// Reads a function and its `#[on(..)]`. More than one handler comes of it only where that is a mistake.
pub(crate) fn read(on: &[Attribute], function: &mut ImplItemFn, report: &mut Report) -> Vec<Handler> {
    let cfg: Vec<Attribute> = function.attrs.iter().filter(|attr| attr.path().is_ident("cfg")).cloned().collect();
    let On { events, key } = events(on, report);
    let handler = |event| {
        let (inputs, block) = (&function.sig.inputs, &function.block);
        let fingerprint = fingerprint::of(quote!(#event, #key, (#inputs) #block));
        Handler { cfg: cfg.clone(), event, key: key.clone(), sig: function.sig.clone(), fingerprint }
    };
    let handlers: Vec<Handler> = events.iter().cloned().map(handler).collect();
    let is_row = is_row(&function.sig);
    if is_row {
        check_row_signature(&function.sig, events.first(), report);
    } else {
        check_signature(&function.sig, events.first(), report);
        put_right(function);
        if let Some(key) = &key {
            report.error(key, "`key` says which row an event changes: only a handler that takes a row has it");
        }
    }
    handlers
}

/// What `#[on(..)]` says.
#[derive(Default)]
struct On {
    /// The event type; where there are several, that is in the report.
    events: Vec<Path>,
    key: Option<Expr>,
}

/// `BandCreated` or `key = event.data.name`
enum Part {
    Event(Path),
    Key(Ident, Box<Expr>),
}

impl Parse for Part {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if !(input.peek(Ident) && input.peek2(Token![=])) {
            return Ok(Part::Event(input.parse()?));
        }
        let key: Ident = input.parse()?;
        input.parse::<Token![=]>()?;
        if input.is_empty() {
            return Err(syn::Error::new(key.span(), format!("`{key}` needs a value: `{KEY_FORM}`")));
        }
        Ok(Part::Key(key, Box::new(input.parse()?)))
    }
}

const KEY_FORM: &str = "key = event.data.name";

fn events(on: &[Attribute], report: &mut Report) -> On {
    const FORM: &str = "name the event's type: `#[on(BandCreated)]`";
    let mut found = On::default();
    for attr in on {
        let Meta::List(list) = &attr.meta else {
            report.error(attr, FORM);
            continue;
        };
        let parts = match attr.parse_args_with(Punctuated::<Part, Token![,]>::parse_terminated) {
            Ok(parts) => parts,
            Err(error) => {
                match syn::parse2::<LitStr>(list.tokens.clone()).map(|name| name.parse::<Path>()) {
                    Ok(Ok(path)) => {
                        let path = crate::path_string(&path);
                        report.error(&list.tokens, format!("write the event's type, not its name: `#[on({path})]`"));
                    }
                    // It says what is missing behind a key.
                    _ if list.tokens.to_string().contains('=') => report.add(error),
                    _ => report.error(&list.tokens, FORM),
                }
                continue;
            }
        };
        let mut events = Vec::new();
        let no_event = !parts.iter().any(|part| matches!(part, Part::Event(_)));
        if no_event {
            report.error(if list.tokens.is_empty() { quote!(#attr) } else { list.tokens.clone() }, FORM);
            continue;
        }
        for part in parts {
            match part {
                Part::Event(event) => events.push(event),
                Part::Key(name, _) if name != "key" => {
                    report.error(&name, format!("unknown key `{name}`; `#[on(..)]` knows `{KEY_FORM}`"));
                }
                Part::Key(name, _) if found.key.is_some() => report.error(name, "`key` stands twice: keep one"),
                Part::Key(_, key) => found.key = Some(*key),
            }
        }
        if let Some(second) = events.get(1) {
            report.error(second, "a handler takes one event: write a handler for each");
        }
        found.events.extend(events);
    }
    if let Some(second) = on.get(1) {
        report.error(second, "a handler has one `#[on(..)]`: write a handler for each event");
    }
    found
}

/// The signature of a handler that takes a row.
fn check_row_signature(sig: &Signature, event: Option<&Path>, report: &mut Report) {
    let form = {
        let receiver = if sig.receiver().is_some() { "&self, " } else { "" };
        let event = event.map_or("BandCreated".to_owned(), crate::path_string);
        format!("`fn {}({receiver}row: &mut Option<..>, event: &Recorded<{event}>)`", sig.ident)
    };
    if let Some(token) = sig.asyncness {
        report.error(
            token,
            format!("a handler that takes a row is a function of the row and the event, not async: {form}"),
        );
    }
    check_qualifiers(sig, report);
    let parameters: Vec<&PatType> = parameters(sig).collect();
    match parameters[..] {
        [first, _] if is_reference(&first.ty, true) && row(&first.ty).is_none() => {
            report.error(&first.ty, format!("the row may not be there: take it as `&mut Option<..>`: {form}"));
        }
        [first, _] if row(&first.ty).is_none() => {
            report.error(&first.ty, format!("a handler that takes a row takes it first: {form}"));
        }
        [_, event] if !is_reference(&event.ty, false) => {
            let connection = "what it needs besides comes by `&self`, or it is an async handler with SQL";
            report
                .error(&event.ty, format!("a handler that takes a row takes an event beside it: {form}; {connection}"));
        }
        [_, event] if matches!(&*event.ty, Type::Reference(slice) if matches!(*slice.elem, Type::Slice(_))) => {
            report.error(&event.ty, format!("a handler that takes a row takes one event: {form}"));
        }
        [_, _, extra, ..] => {
            report.error(extra, format!("a handler that takes a row takes an event beside it, nothing more: {form}"));
        }
        [_] if sig.variadic.is_none() => {
            let message = format!("a handler that takes a row takes an event beside it: {form}");
            report.add(syn::Error::new(sig.paren_token.span.join(), message));
        }
        _ => {}
    }
}

/// What no handler may be.
fn check_qualifiers(sig: &Signature, report: &mut Report) {
    if let Safety::Unsafe(token) = &sig.safety {
        report.error(token, "a handler is not unsafe: take `unsafe` away");
    }
    if let Some(abi) = &sig.abi {
        report.error(abi, "a handler has Rust's own ABI: take `extern` away");
    }
    if !sig.generics.params.is_empty() {
        report.error(&sig.generics, "a handler has no type parameters or lifetimes");
    }
    if let Some(receiver) = sig.receiver()
        && !matches!(&receiver.kind, ReceiverKind::Reference(_, None, None))
    {
        report.error(receiver, "a handler takes `&self` or no receiver: many events are applied by one projection");
    }
}

fn check_signature(sig: &Signature, event: Option<&Path>, report: &mut Report) {
    const RESULT: &str = "a handler says whether it succeeded:";
    let function = &sig.ident;
    let form = {
        let receiver = if sig.receiver().is_some() { "&self, " } else { "" };
        let event = event.map_or("BandCreated".to_owned(), crate::path_string);
        format!("`async fn {function}({receiver}event: &Recorded<{event}>, tx: &mut PgConnection) -> Result<()>`")
    };

    if let Some(token) = sig.constness {
        report.error(token, format!("a handler is async, not const: write `async fn {function}`"));
    } else if sig.asyncness.is_none() {
        report.error(sig.fn_token, format!("a handler is async: write `async fn {function}`"));
    }
    check_qualifiers(sig, report);
    if let Some(variadic) = &sig.variadic {
        report.error(variadic, format!("a handler takes an event and a connection: {form}"));
    }

    let parameters: Vec<&PatType> = parameters(sig).collect();
    match parameters[..] {
        [event, connection] => {
            // One of them tells enough: both are wrong where they stand the other way round.
            if !is_reference(&event.ty, false) {
                report.error(
                    &event.ty,
                    format!("a handler takes the event first, as `&Recorded<..>`, or a run, `&[Recorded<..>]`: {form}"),
                );
            } else if !is_reference(&connection.ty, true) {
                report.error(&connection.ty, format!("a handler takes the connection as `&mut PgConnection`: {form}"));
            }
        }
        [_, _, extra, ..] => {
            report.error(extra, format!("a handler takes an event and a connection, nothing more: {form}"));
        }
        _ if sig.variadic.is_none() => {
            let message = format!("a handler takes an event and a connection: {form}");
            report.add(syn::Error::new(sig.paren_token.span.join(), message));
        }
        _ => {}
    }

    match &sig.output {
        ReturnType::Default => {
            let message = format!("{RESULT} add `-> Result<()>`");
            report.add(syn::Error::new(sig.paren_token.span.close(), message));
        }
        ReturnType::Type(_, ty) if is_unit(ty) => report.error(ty, format!("{RESULT} write `-> Result<()>`")),
        ReturnType::Type(..) => {}
    }
}

/// Puts right what [`check_signature`] has reported, so that the function's body brings no follow-up errors.
fn put_right(function: &mut ImplItemFn) {
    let sig = &mut function.sig;
    sig.constness = None;
    sig.asyncness.get_or_insert_default();
    sig.variadic = None;
    let unit = match &sig.output {
        ReturnType::Default => true,
        ReturnType::Type(_, ty) => is_unit(ty),
    };
    if unit {
        let runtime = crate::runtime();
        sig.output = parse_quote!(-> #runtime::Result<()>);
        if !matches!(function.block.stmts.last(), Some(Stmt::Expr(_, None))) {
            function.block.stmts.push(parse_quote!(return #runtime::__private::Result::Ok(());));
        }
    }
}

fn parameters(sig: &Signature) -> impl Iterator<Item = &PatType> {
    sig.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(parameter) => Some(parameter),
        FnArg::Receiver(_) => None,
    })
}

fn is_reference(ty: &Type, mutable: bool) -> bool {
    matches!(ty, Type::Reference(reference) if reference.mutability.is_some() == mutable)
}

fn is_unit(ty: &Type) -> bool {
    matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty())
}
