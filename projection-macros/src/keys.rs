//! Reads the list of an attribute: `key = value`, or `key(..)` where the value is a list of its own.

use proc_macro2::{Group, Span};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Expr, ExprLit, ExprPath, Ident, Lit, LitBool, LitInt, LitStr, Path, Token};

use crate::report::Report;

/// The keys of one attribute; each is taken once by name.
#[derive(Default)]
pub(crate) struct Keys {
    pairs: Vec<(Ident, Value)>,
    /// The list is no such list: that is the mistake, and no key is missing on top.
    unreadable: bool,
}

impl Parse for Keys {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let pairs = Punctuated::<Pair, Token![,]>::parse_terminated(input)?;
        Ok(Keys { pairs: pairs.into_iter().map(|Pair(key, value)| (key, value)).collect(), unreadable: false })
    }
}

/// What stands behind a key.
enum Value {
    /// `= value`
    Expr(Expr),
    /// `(..)`
    List(Group),
}

struct Pair(Ident, Value);

impl Parse for Pair {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let key =
            input.call(Ident::parse_any).map_err(|error| syn::Error::new(error.span(), "expected `key = value`"))?;
        if input.peek(syn::token::Paren) {
            return Ok(Pair(key, Value::List(input.parse()?)));
        }
        if !input.peek(Token![=]) {
            return Err(syn::Error::new(key.span(), format!("`{key}` needs a value: `{key} = ..`")));
        }
        input.parse::<Token![=]>()?;
        Ok(Pair(key, Value::Expr(input.parse()?)))
    }
}

impl Keys {
    pub(crate) fn read(parsed: syn::Result<Self>, report: &mut Report) -> Self {
        report.ok(parsed).unwrap_or(Keys { pairs: Vec::new(), unreadable: true })
    }

    /// Reports keys that `known` doesn't have and keys that stand twice.
    ///
    /// From then on a misspelt key is the one that was meant: its value is read, and it isn't missing.
    pub(crate) fn check(&mut self, known: &[&str], report: &mut Report) {
        for (i, (key, _)) in self.pairs.iter().enumerate() {
            let name = key.to_string();
            if !known.contains(&name.as_str()) {
                let hint = match closest(&name, known) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => format!("the keys are {}", list(known)),
                };
                report.error(key, format!("unknown key `{name}`; {hint}"));
            } else if let Some((first, _)) = self.pairs[..i].iter().find(|(first, _)| first == key) {
                let line = first.span().start().line;
                report.error(key, format!("`{name}` stands twice; the first is on line {line}: keep one"));
            }
        }
        for (key, _) in &mut self.pairs {
            if let Some(meant) = closest(&key.to_string(), known) {
                *key = Ident::new(meant, key.span());
            }
        }
    }

    /// Which of the `needed` keys are missing, as `` `name` and `tables` are missing ``.
    pub(crate) fn missing(&self, needed: &[&str]) -> Option<String> {
        let missing: Vec<&str> = needed.iter().copied().filter(|name| self.get(name).is_none()).collect();
        match missing.len() {
            _ if self.unreadable => None,
            0 => None,
            1 => Some(format!("{} is missing", list(&missing))),
            _ => Some(format!("{} are missing", list(&missing))),
        }
    }

    /// The key as the user wrote it, for what is wrong with all of it.
    pub(crate) fn key(&self, name: &str) -> Option<&Ident> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(key, _)| key)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The value behind `name =`; `form` says how it is written.
    fn value(&self, name: &str, form: &str, report: &mut Report) -> Option<&Expr> {
        match self.get(name)? {
            Value::Expr(value) => Some(ungrouped(value)),
            Value::List(group) => {
                report.error(group, format!("`{name}` takes no parentheses: `{form}`"));
                None
            }
        }
    }

    /// The list behind `name`, in its parentheses; `form` says how it is written.
    pub(crate) fn list<T: Parse>(&self, name: &str, form: &str, report: &mut Report) -> Option<(Vec<T>, Span)> {
        match self.get(name)? {
            Value::Expr(value) => {
                report.error(value, format!("`{name}` takes a list in parentheses: `{form}`"));
                None
            }
            Value::List(group) => {
                use syn::parse::Parser;
                let parsed = Punctuated::<T, Token![,]>::parse_terminated.parse2(group.stream());
                report.ok(parsed).map(|list| (list.into_iter().collect(), group.span()))
            }
        }
    }

    /// The keys inside of `name(..)`; `form` says how it is written.
    pub(crate) fn nested(&self, name: &str, form: &str, report: &mut Report) -> Option<Keys> {
        match self.get(name)? {
            Value::Expr(value) => {
                report.error(value, format!("`{name}` takes keys in parentheses: `{form}`"));
                None
            }
            Value::List(group) => Some(Keys::read(syn::parse2(group.stream()), report)),
        }
    }

    pub(crate) fn string(&self, name: &str, report: &mut Report) -> Option<LitStr> {
        let form = format!("{name} = \"..\"");
        let value = self.value(name, &form, report)?;
        string(value).or_else(|| {
            report.error(value, format!("expected a string literal: `{form}`"));
            None
        })
    }

    /// `name = "text"` or `name = Type`.
    pub(crate) fn string_or_path(&self, name: &str, report: &mut Report) -> Option<Result<LitStr, Path>> {
        let form = format!("{name} = \"..\"");
        let value = self.value(name, &form, report)?;
        match (string(value), path(value)) {
            (Some(literal), _) => Some(Ok(literal)),
            (_, Some(path)) => Some(Err(path)),
            _ => {
                report.error(value, format!("expected a string literal, `{form}`, or the type of an event set"));
                None
            }
        }
    }

    pub(crate) fn boolean(&self, name: &str, report: &mut Report) -> Option<LitBool> {
        let value = self.value(name, &format!("{name} = true"), report)?;
        if let Expr::Lit(ExprLit { lit: Lit::Bool(lit), .. }) = value {
            return Some(lit.clone());
        }
        report.error(value, format!("expected `{name} = true` or `{name} = false`"));
        None
    }

    pub(crate) fn integer(&self, name: &str, report: &mut Report) -> Option<LitInt> {
        let value = self.value(name, &format!("{name} = 1"), report)?;
        if let Expr::Lit(ExprLit { lit: Lit::Int(lit), .. }) = value {
            return Some(lit.clone());
        }
        report.error(value, format!("expected a number: `{name} = 1`"));
        None
    }

    /// The elements of `name = ["a", "b"]` and the span of the whole value.
    pub(crate) fn strings(&self, name: &str, report: &mut Report) -> Option<(Vec<LitStr>, Span)> {
        use syn::spanned::Spanned;
        let form = format!("{name} = [\"..\"]");
        let value = self.value(name, &form, report)?;
        let Expr::Array(array) = value else {
            let hint = match string(value) {
                Some(one) => format!("wrap it in brackets: `{name} = [\"{}\"]`", one.value()),
                None => format!("expected a list of string literals: `{form}`"),
            };
            report.error(value, hint);
            return None;
        };
        let mut strings = Vec::new();
        for element in &array.elems {
            match string(ungrouped(element)) {
                Some(lit) => strings.push(lit),
                None => report.error(element, format!("expected a string literal in `{form}`")),
            }
        }
        // A list of nothing but mistakes is not an empty one.
        (array.elems.is_empty() || !strings.is_empty()).then(|| (strings, array.span()))
    }

    /// The elements of `name = [A, B]`, or the one of `name = A`; `example` is such a type.
    pub(crate) fn paths(&self, name: &str, example: &str, report: &mut Report) -> Vec<Path> {
        let Some(value) = self.value(name, &format!("{name} = [{example}]"), report) else { return Vec::new() };
        let elements: Vec<&Expr> = match value {
            Expr::Array(array) => array.elems.iter().map(ungrouped).collect(),
            one => vec![one],
        };
        let mut paths = Vec::new();
        for element in elements {
            match path(element) {
                Some(path) => paths.push(path),
                None => report.error(element, format!("expected a type: `{name} = [{example}]`")),
            }
        }
        paths
    }
}

/// The value itself, where it came as a `$value` of a `macro_rules!`.
fn ungrouped(mut value: &Expr) -> &Expr {
    while let Expr::Group(group) = value {
        value = &group.expr;
    }
    value
}

fn string(value: &Expr) -> Option<LitStr> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(lit), .. }) => Some(lit.clone()),
        _ => None,
    }
}

fn path(value: &Expr) -> Option<Path> {
    match value {
        Expr::Path(ExprPath { qself: None, path, .. }) => Some(path.clone()),
        _ => None,
    }
}

/// `` `a`, `b` and `c` ``
pub(crate) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// The known name that a typing mistake was most likely meant to be.
pub(crate) fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, known) = known.iter().map(|known| (edits(name, known), *known)).min()?;
    (distance <= 2 && distance < name.len()).then_some(known)
}

/// How many letters must be added, removed, changed or swapped with their neighbour to make `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
