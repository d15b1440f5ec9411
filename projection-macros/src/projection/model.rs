//! What the user wrote, checked: the keys of the attribute and the handlers of the impl block.

use proc_macro2::{Span, TokenStream};
use syn::spanned::Spanned;
use syn::{
    Attribute, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, LitStr, Meta, Path, ReceiverKind, ReturnType, Safety, Type,
};

use crate::keys::Keys;
use crate::report::Report;

const FULL_FORM: &str = "`#[projection(name = \"band\", tables = [\"band\"])]`";
const SIGNATURE: &str = "`async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()>`";

/// A projection as the attribute and the impl block tell it.
///
/// Where something is missing or wrong, it is in the report, and what stands here is not used.
pub(crate) struct Projection {
    pub(crate) name: String,
    pub(crate) tables: Vec<String>,
    pub(crate) cascade: bool,
    pub(crate) after: Vec<String>,
    pub(crate) handlers: Vec<Handler>,
}

pub(crate) struct Handler {
    /// The `#[cfg(..)]` of the function: they hold for everything generated for it.
    pub(crate) cfg: Vec<Attribute>,
    pub(crate) event: Path,
    pub(crate) function: Ident,
    /// Takes `&self`.
    pub(crate) receiver: bool,
    /// Where the event's parameter has its type: a type that doesn't fit is reported here.
    pub(crate) parameter: Span,
    /// Where the return type stands.
    pub(crate) output: Span,
}

/// The item as an impl block; anything else is a mistake.
pub(crate) fn impl_block(item: TokenStream, report: &mut Report) -> Option<ItemImpl> {
    let message = format!("`#[projection]` belongs on an impl block: {FULL_FORM} `impl BandProjection {{ .. }}`");
    let block = match syn::parse2::<ItemImpl>(item.clone()) {
        Ok(block) => block,
        Err(error) => {
            match keyword(item) {
                Some(keyword) if keyword != "impl" => report.error(keyword, message),
                _ => report.add(error),
            }
            return None;
        }
    };
    if let Some((path, _)) = &block.trait_ {
        report.error(path, format!("{message}, not on the impl of a trait"));
        return None;
    }
    Some(block)
}

/// The word that says what kind of item this is.
fn keyword(item: TokenStream) -> Option<Ident> {
    const KINDS: [&str; 11] =
        ["struct", "enum", "union", "fn", "trait", "mod", "impl", "const", "static", "type", "use"];
    item.into_iter().find_map(|token| match token {
        proc_macro2::TokenTree::Ident(ident) if KINDS.contains(&ident.to_string().as_str()) => Some(ident),
        _ => None,
    })
}

/// Reads the attribute and the handlers, and takes every `#[on(..)]` off the block.
pub(crate) fn read(attr: TokenStream, block: &mut ItemImpl, report: &mut Report) -> Projection {
    if !block.generics.params.is_empty() {
        report.error(&block.generics, "a projection has no type parameters or lifetimes: name a plain type");
    }
    let keys = syn::parse2::<Keys>(attr).unwrap_or_else(|error| {
        report.add(error);
        Keys::none()
    });
    let mut projection = attributes(&keys, report);
    projection.handlers = handlers(block, report);
    projection
}

fn attributes(keys: &Keys, report: &mut Report) -> Projection {
    const NAME: &str = "name";
    const TABLES: &str = "tables";
    const CASCADE: &str = "cascade";
    const AFTER: &str = "after";
    keys.check(&[NAME, TABLES, CASCADE, AFTER], report);

    for key in [NAME, TABLES] {
        if !keys.has(key) {
            let message = format!("`{key}` is missing: write {FULL_FORM}");
            report.add(syn::Error::new(Span::call_site(), message));
        }
    }

    let name = keys.string(NAME, report);
    if let Some(name) = &name {
        check_name(name, report);
    }

    let tables = keys.strings(TABLES, report);
    if let Some((tables, span)) = &tables {
        if tables.is_empty() {
            report.add(syn::Error::new(*span, "a projection owns at least one table: `tables = [\"band\"]`"));
        }
        for (i, table) in tables.iter().enumerate() {
            check_table(table, report);
            if tables[..i].iter().any(|first| first.value() == table.value()) {
                report.error(table, format!("table `{}` stands twice in the list: keep one", table.value()));
            }
        }
    }

    let after = keys.strings(AFTER, report).unwrap_or((Vec::new(), Span::call_site())).0;
    for other in &after {
        if name.as_ref().is_some_and(|name| name.value() == other.value()) {
            report.error(other, "a projection cannot wait for itself: take it out of `after`");
        }
    }

    Projection {
        name: name.map(|name| name.value()).unwrap_or_default(),
        tables: values(tables.unwrap_or((Vec::new(), Span::call_site())).0),
        cascade: keys.boolean(CASCADE, report).is_some_and(|cascade| cascade.value),
        after: values(after),
        handlers: Vec::new(),
    }
}

fn values(literals: Vec<LitStr>) -> Vec<String> {
    literals.into_iter().map(|literal| literal.value()).collect()
}

/// `[a-z][a-z0-9_]*`, at most 63 bytes as PostgreSQL has it.
fn is_identifier(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn check_name(literal: &LitStr, report: &mut Report) {
    let name = literal.value();
    if name.trim().is_empty() {
        report.error(literal, "the name is empty: write the projection's name, like `name = \"band\"`");
    } else if name.len() > 63 {
        report.error(literal, format!("the name has {} bytes; at most 63 are allowed", name.len()));
    } else if !is_identifier(&name) {
        let offer = snake_case(&name);
        let offer = if is_identifier(&offer) { format!("; write `{offer}`") } else { String::new() };
        report.error(literal, format!("a name is lower-case letters, digits and `_`, beginning with a letter{offer}"));
    }
}

fn check_table(literal: &LitStr, report: &mut Report) {
    let table = literal.value();
    let parts: Vec<&str> = table.split('.').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_identifier(part.trim_start_matches('_'))) {
        report.error(
            literal,
            "a table is a plain identifier, `band` or `schema.band`: lower-case letters, digits and `_`, unquoted",
        );
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.trim().chars() {
        if c.is_ascii_uppercase() && snake.ends_with(|last: char| last.is_ascii_lowercase() || last.is_ascii_digit()) {
            snake.push('_');
        }
        snake.push(if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    }
    snake
}

fn handlers(block: &mut ItemImpl, report: &mut Report) -> Vec<Handler> {
    let mut handlers: Vec<Handler> = Vec::new();
    let mut marked = false;
    for item in &mut block.items {
        let attrs = match item {
            ImplItem::Fn(function) => &mut function.attrs,
            ImplItem::Const(item) => &mut item.attrs,
            ImplItem::Type(item) => &mut item.attrs,
            ImplItem::Macro(item) => &mut item.attrs,
            _ => continue,
        };
        let on: Vec<Attribute> = attrs.extract_if(.., |attr| is_on(attr)).collect();
        if on.is_empty() {
            continue;
        }
        marked = true;
        if let ImplItem::Fn(function) = item {
            let event = event(&on, report);
            let handler = handler(function, event, report);
            handlers.extend(handler);
        } else {
            report.error(&*item, "`#[on(..)]` belongs on an `async fn`");
        }
    }
    if !marked {
        let message = "nothing to project: mark at least one function of the impl block with `#[on(Event)]`";
        report.add(syn::Error::new(Span::call_site(), message));
    }
    for (i, handler) in handlers.iter().enumerate() {
        // With #[cfg] two handlers of one event may exclude each other; rustc sees which of them is left.
        let same = |first: &&Handler| {
            path_string(&first.event) == path_string(&handler.event) && first.cfg.is_empty() && handler.cfg.is_empty()
        };
        if let Some(first) = handlers[..i].iter().find(same) {
            let message = |other: &Handler| {
                let event = path_string(&handler.event);
                format!("`{event}` is handled twice, here and in `{}`: make them one handler", other.function)
            };
            report.error(&handler.event, message(first));
            report.error(&first.event, message(handler));
        }
    }
    handlers
}

fn path_string(path: &Path) -> String {
    let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    names.join("::")
}

fn is_on(attr: &Attribute) -> bool {
    attr.path().segments.last().is_some_and(|last| last.ident == "on")
}

/// The event type that `#[on(..)]` names.
fn event(on: &[Attribute], report: &mut Report) -> Option<Path> {
    if let Some(second) = on.get(1) {
        report.error(second, "a handler has one `#[on(..)]`: write a handler for each event");
    }
    let attr = on.first()?;
    let Meta::List(list) = &attr.meta else {
        report.error(attr, "name the event's type: `#[on(BandCreated)]`");
        return None;
    };
    if let Ok(literal) = syn::parse2::<LitStr>(list.tokens.clone()) {
        report.error(&literal, format!("write the event's type, not its name: `#[on({})]`", literal.value()));
        return None;
    }
    let paths = attr.parse_args_with(syn::punctuated::Punctuated::<Path, syn::Token![,]>::parse_terminated);
    let paths = report.ok(paths)?;
    if let Some(second) = paths.iter().nth(1) {
        report.error(second, "a handler takes one event: write a handler for each");
        return None;
    }
    let first = paths.into_iter().next();
    if first.is_none() {
        report.error(attr, "name the event's type: `#[on(BandCreated)]`");
    }
    first
}

fn handler(function: &ImplItemFn, event: Option<Path>, report: &mut Report) -> Option<Handler> {
    let sig = &function.sig;
    if sig.asyncness.is_none() {
        report.error(sig.fn_token, format!("a handler is async: write `async fn {}`", sig.ident));
    }
    if let Some(token) = sig.constness {
        report.error(token, "a handler is not const: take `const` away");
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
        report.error(variadic, format!("a handler takes an event and a connection: {SIGNATURE}"));
    }
    let receiver = sig.receiver();
    if let Some(receiver) = receiver {
        let shared = matches!(&receiver.kind, ReceiverKind::Reference(_, _, None));
        if !shared {
            report.error(receiver, "a handler takes `&self` or no receiver: many events are applied by one projection");
        }
    }
    let parameters: Vec<_> = sig.inputs.iter().filter(|input| matches!(input, FnArg::Typed(_))).collect();
    if let Some(extra) = parameters.get(2) {
        report.error(extra, format!("a handler takes an event and a connection, nothing more: {SIGNATURE}"));
    } else if parameters.len() < 2 {
        let message = format!("a handler takes an event and a connection: {SIGNATURE}");
        report.add(syn::Error::new(sig.paren_token.span.join(), message));
    }
    if let ReturnType::Default = sig.output {
        report.add(syn::Error::new(
            sig.paren_token.span.close(),
            "a handler says whether it succeeded: add `-> Result<()>`",
        ));
    }
    let parameter = match parameters.first() {
        Some(FnArg::Typed(parameter)) => event_type_span(&parameter.ty),
        _ => sig.ident.span(),
    };
    Some(Handler {
        cfg: function.attrs.iter().filter(|attr| attr.path().is_ident("cfg")).cloned().collect(),
        event: event?,
        function: sig.ident.clone(),
        receiver: receiver.is_some(),
        parameter,
        output: sig.output.span(),
    })
}

/// The span of the type behind `&`, where rustc is to point.
fn event_type_span(ty: &Type) -> Span {
    match ty {
        Type::Reference(reference) => reference.elem.span(),
        other => other.span(),
    }
}
