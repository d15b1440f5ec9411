//! What the user wrote, checked: the item, the keys of the attribute, and which handlers there are.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::{Attribute, Generics, Ident, ImplItem, ItemImpl, LitInt, LitStr, Path};

use super::handler::{self, Handler};
use crate::fingerprint;
use crate::keys::Keys;
use crate::report::Report;

/// Each is a loop of its own, with a connection.
const MOST_PARTITIONS: u32 = 256;

const FULL_FORM: &str = "`#[projection(name = \"band\", tables = [\"band\"])]`";

/// A projection as the attribute and the impl block tell it.
///
/// Where something is missing or wrong, it is in the report, and what stands here is not used.
pub(crate) struct Projection {
    pub(crate) name: String,
    pub(crate) tables: Vec<String>,
    pub(crate) cascade: bool,
    pub(crate) after: Vec<String>,
    /// Events of different aggregates commute.
    pub(crate) by_aggregate: bool,
    /// In how many parts its events are applied, each by itself.
    pub(crate) partitions: u32,
    /// The event sets of which each event is handled or ignored.
    pub(crate) covers: Vec<Path>,
    pub(crate) ignores: Vec<Path>,
    pub(crate) handlers: Vec<Handler>,
    /// Of whatever else stands in the impl block, in any order.
    pub(crate) others: u64,
}

/// The item as an impl block; anything else is a mistake.
pub(crate) fn impl_block(item: TokenStream, report: &mut Report) -> Option<ItemImpl> {
    let message =
        format!("`#[projection]` belongs on an impl block: write {FULL_FORM} on `impl BandProjection {{ .. }}`");
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
        report.error(path, "`#[projection]` belongs on an impl block of the type itself, not on the impl of a trait");
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
    } else if is_generic(&block.generics, &block.self_ty) {
        report.error(&block.self_ty, "a projection has no lifetimes: name a plain type, or one with `'static`");
    }
    for second in block.attrs.extract_if(.., |attr| is(attr, "projection")) {
        report.error(second, "`#[projection(..)]` stands twice: a type is one projection");
    }
    let mut projection = attributes(&mut Keys::read(syn::parse2(attr), report), report);
    projection.others = others(block);
    projection.handlers = handlers(block, report);
    check_ignored(&projection, report);
    check_partitioned(&projection, report);
    projection
}

/// Whether it is more than one type: `'_` stands for a lifetime parameter.
pub(crate) fn is_generic(generics: &Generics, ty: &impl ToTokens) -> bool {
    !generics.params.is_empty() || ty.to_token_stream().to_string().contains("'_")
}

fn attributes(keys: &mut Keys, report: &mut Report) -> Projection {
    const NAME: &str = "name";
    const TABLES: &str = "tables";
    const CASCADE: &str = "cascade";
    const AFTER: &str = "after";
    const ORDER: &str = "order";
    const PARTITIONS: &str = "partitions";
    const COVERS: &str = "covers";
    const IGNORES: &str = "ignores";
    keys.check(&[NAME, TABLES, CASCADE, AFTER, ORDER, PARTITIONS, COVERS, IGNORES], report);

    if let Some(missing) = keys.missing(&[NAME, TABLES]) {
        report.add(syn::Error::new(Span::call_site(), format!("{missing}: write {FULL_FORM}")));
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

    let order = keys.string(ORDER, report);
    if let Some(order) = order.as_ref().filter(|order| !["stream", "aggregate"].contains(&order.value().as_str())) {
        report.error(
            order,
            "the orders are `\"stream\"`, that of all events, and `\"aggregate\"`, where events of different aggregates \
             commute",
        );
    }

    let by_aggregate = order.is_some_and(|order| order.value() == "aggregate");
    let partitions = keys.integer(PARTITIONS, report);
    let number = partitions.as_ref().map_or(Ok(1), LitInt::base10_parse);
    if let Some(partitions) = &partitions {
        if !matches!(number, Ok(1..=MOST_PARTITIONS)) {
            report.error(partitions, format!("a projection has from 1 to {MOST_PARTITIONS} partitions"));
        } else if !by_aggregate {
            report.error(
                keys.key(PARTITIONS).into_token_stream(),
                "each partition applies the events of other aggregates, at a time of its own: where events of different \
                 aggregates commute, say so, `order = \"aggregate\"`",
            );
        }
    }

    let covers = keys.paths(COVERS, "BandEvents", report);
    let ignores = keys.paths(IGNORES, "BandRenamed", report);
    if let (Some(key), None) = (keys.key(IGNORES), keys.key(COVERS)) {
        report.error(key, "`ignores` names events of a set that is covered: add `covers = BandEvents`");
    }

    Projection {
        name: name.map(|name| name.value()).unwrap_or_default(),
        tables: values(tables.unwrap_or((Vec::new(), Span::call_site())).0),
        cascade: keys.boolean(CASCADE, report).is_some_and(|cascade| cascade.value),
        after: values(after),
        by_aggregate,
        partitions: number.unwrap_or(1),
        covers,
        ignores,
        handlers: Vec::new(),
        others: 0,
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

/// Reports what is no plain identifier of a table.
pub(crate) fn check_table(literal: &LitStr, report: &mut Report) {
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

/// Handlers may call what stands beside them.
fn others(block: &ItemImpl) -> u64 {
    let is_handler = |item: &&ImplItem| match item {
        ImplItem::Fn(function) => function.attrs.iter().any(|attr| is(attr, "on")),
        _ => false,
    };
    let others = block.items.iter().filter(|item| !is_handler(item));
    others.fold(0, |sum, item| sum.wrapping_add(fingerprint::of(item.to_token_stream())))
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
        let on: Vec<Attribute> = attrs.extract_if(.., |attr| is(attr, "on")).collect();
        if on.is_empty() {
            continue;
        }
        marked = true;
        if let ImplItem::Fn(function) = item {
            handlers.extend(handler::read(&on, function, report));
        } else {
            report.error(&*item, "`#[on(..)]` belongs on an `async fn`");
        }
    }
    if !marked {
        let message = "nothing to project: mark at least one function of the impl block with `#[on(Event)]`";
        report.add(syn::Error::new(Span::call_site(), message));
    }
    check_once(&handlers, report);
    handlers
}

/// Reports an event that has two handlers.
///
/// With `#[cfg]` two handlers of one event may exclude each other: rustc sees which of them is left.
fn check_once(handlers: &[Handler], report: &mut Report) {
    let always: Vec<&Handler> = handlers.iter().filter(|handler| handler.cfg.is_empty()).collect();
    for (i, handler) in always.iter().enumerate() {
        if let Some(first) = always[..i].iter().find(|first| crate::is_same(&first.event, &handler.event)) {
            let message = |other: &Handler| {
                let event = crate::path_string(&handler.event);
                format!("`{event}` is handled twice, here and in `{}`: make them one handler", other.sig.ident)
            };
            report.error(&first.event, message(handler));
            report.error(&handler.event, message(first));
        }
    }
}

/// Reports an event that is ignored twice, or ignored and handled.
///
/// By the path that was written; an alias is found by the constants that `expand` writes.
fn check_ignored(projection: &Projection, report: &mut Report) {
    let Projection { ignores, handlers, .. } = projection;
    for (i, event) in ignores.iter().enumerate() {
        let name = crate::path_string(event);
        if ignores[..i].iter().any(|first| crate::is_same(first, event)) {
            report.error(event, format!("`{name}` stands twice in `ignores`: keep one"));
        }
        if let Some(handler) =
            handlers.iter().find(|handler| handler.cfg.is_empty() && crate::is_same(&handler.event, event))
        {
            let function = &handler.sig.ident;
            report.error(event, format!("`{name}` is ignored, but `{function}` handles it: keep one of them"));
        }
    }
}

/// Reports a row that events of several partitions may change at once: each would write what it has read before the other
/// wrote.
fn check_partitioned(projection: &Projection, report: &mut Report) {
    if projection.partitions > 1 {
        for key in projection.handlers.iter().filter_map(|handler| handler.key.as_ref()) {
            report.error(
                key,
                "with `partitions`, a row belongs to one aggregate, and its id is the key: two partitions could change a row \
                 of another key at once; leave `key` out, or `partitions`",
            );
        }
    }
}

/// Whether it is this attribute of ours, by any path.
fn is(attr: &Attribute, name: &str) -> bool {
    attr.path().segments.last().is_some_and(|last| last.ident == name)
}
