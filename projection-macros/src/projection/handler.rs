//! One handler: the event that its `#[on(..)]` names, and its signature.

use syn::punctuated::Punctuated;
use syn::{
    Attribute, FnArg, ImplItemFn, LitStr, Meta, PatType, Path, ReceiverKind, ReturnType, Safety, Signature, Stmt,
    Token, Type, parse_quote,
};

use crate::report::Report;

pub(crate) struct Handler {
    /// The `#[cfg(..)]` of the function: they hold for everything generated for it.
    pub(crate) cfg: Vec<Attribute>,
    pub(crate) event: Path,
    pub(crate) sig: Signature,
}

impl Handler {
    /// The type of a parameter, not counting a receiver: 0 is the event's, 1 the connection's.
    pub(crate) fn parameter(&self, i: usize) -> Option<&Type> {
        parameters(&self.sig).nth(i).map(|parameter| &*parameter.ty)
    }

    /// Whether it takes a run of events, `&[Recorded<..>]`.
    pub(crate) fn takes_run(&self) -> bool {
        matches!(self.parameter(0), Some(Type::Reference(reference)) if matches!(*reference.elem, Type::Slice(_)))
    }

    pub(crate) fn output(&self) -> Option<&Type> {
        match &self.sig.output {
            ReturnType::Type(_, ty) => Some(ty),
            ReturnType::Default => None,
        }
    }
}

/// Reads a function and its `#[on(..)]`. More than one handler comes of it only where that is a mistake.
pub(crate) fn read(on: &[Attribute], function: &mut ImplItemFn, report: &mut Report) -> Vec<Handler> {
    let cfg: Vec<Attribute> = function.attrs.iter().filter(|attr| attr.path().is_ident("cfg")).cloned().collect();
    let events = events(on, report);
    check_signature(&function.sig, events.first(), report);
    let handler = |event| Handler { cfg: cfg.clone(), event, sig: function.sig.clone() };
    let handlers = events.into_iter().map(handler).collect();
    put_right(function);
    handlers
}

/// The event type that `#[on(..)]` names; where there are several, that is in the report.
fn events(on: &[Attribute], report: &mut Report) -> Vec<Path> {
    const FORM: &str = "name the event's type: `#[on(BandCreated)]`";
    let mut events = Vec::new();
    for attr in on {
        let Meta::List(list) = &attr.meta else {
            report.error(attr, FORM);
            continue;
        };
        let Ok(paths) = attr.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated) else {
            match syn::parse2::<LitStr>(list.tokens.clone()).map(|name| name.parse::<Path>()) {
                Ok(Ok(path)) => {
                    let path = crate::path_string(&path);
                    report.error(&list.tokens, format!("write the event's type, not its name: `#[on({path})]`"));
                }
                _ => report.error(&list.tokens, FORM),
            }
            continue;
        };
        if paths.is_empty() {
            report.error(attr, FORM);
        }
        if let Some(second) = paths.iter().nth(1) {
            report.error(second, "a handler takes one event: write a handler for each");
        }
        events.extend(paths);
    }
    if let Some(second) = on.get(1) {
        report.error(second, "a handler has one `#[on(..)]`: write a handler for each event");
    }
    events
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
    if let Safety::Unsafe(token) = &sig.safety {
        report.error(token, "a handler is not unsafe: take `unsafe` away");
    }
    if let Some(abi) = &sig.abi {
        report.error(abi, "a handler has Rust's own ABI: take `extern` away");
    }
    if !sig.generics.params.is_empty() {
        report.error(&sig.generics, "a handler has no type parameters or lifetimes");
    }
    if let Some(variadic) = &sig.variadic {
        report.error(variadic, format!("a handler takes an event and a connection: {form}"));
    }
    if let Some(receiver) = sig.receiver()
        && !matches!(&receiver.kind, ReceiverKind::Reference(_, None, None))
    {
        report.error(receiver, "a handler takes `&self` or no receiver: many events are applied by one projection");
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
