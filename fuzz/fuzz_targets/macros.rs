//! The macros, on whatever tokens: they do not panic, and rustc can parse what they write.
//!
//! An input is what a user writes: `#[projection(..)] impl .. {}`, `domain_events! {..}`, `projections![..]`, or an item with
//! derives. `__none(..)` stands for the invisible brackets that a `$value` of a `macro_rules!` comes in.
#![no_main]

#[path = "../../projection-macros/src/aliases.rs"]
mod aliases;
#[path = "../../projection-macros/src/event.rs"]
mod event;
#[path = "../../projection-macros/src/event_set.rs"]
mod event_set;
#[path = "../../projection-macros/src/fingerprint.rs"]
mod fingerprint;
#[path = "../../projection-macros/src/keys.rs"]
mod keys;
#[path = "../../projection-macros/src/projection/mod.rs"]
mod projection;
#[path = "../../projection-macros/src/read_model.rs"]
mod read_model;
#[path = "../../projection-macros/src/report.rs"]
mod report;
#[path = "../../projection-macros/src/set.rs"]
mod set;
#[path = "../../projection-macros/src/spans.rs"]
mod spans;
#[path = "../../projection-macros/src/sql.rs"]
mod sql;

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use proc_macro2::{Delimiter, Group, Literal, TokenStream, TokenTree};

// As in the macros' own `lib.rs`, which only a compiler can call.

fn path_string(path: &syn::Path) -> String {
    let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    names.join("::")
}

fn is_same<T: quote::ToTokens>(a: &T, b: &T) -> bool {
    quote::quote!(#a).to_string() == quote::quote!(#b).to_string()
}

fn runtime() -> TokenStream {
    quote::quote!(::projection_runtime)
}

/// Brackets in brackets: rustc itself goes no deeper than some hundreds.
const DEEPEST: usize = 64;

fuzz_target!(|input: &[u8]| -> Corpus {
    // Else the text of every input stays in memory.
    proc_macro2::extra::invalidate_current_thread_spans();
    let Some(tokens) = lexed(input).and_then(|tokens| with_invisible(tokens, 0)) else { return Corpus::Reject };
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(name), TokenTree::Punct(bang), TokenTree::Group(input)] if bang.as_char() == '!' => {
            if name == "domain_events" {
                parses::<syn::File>(event_set::expand(input.stream()));
            } else {
                let output = set::expand(input.stream());
                // Of a statement that begins with `crate`, syn thinks that it is an item with an old visibility.
                if !input.to_string().contains("crate") {
                    parses::<syn::Expr>(output);
                }
            }
        }
        [TokenTree::Punct(hash), TokenTree::Group(attr), item @ ..] if hash.as_char() == '#' && is_projection(attr) => {
            let attr = attr.stream().into_iter().nth(1);
            let attr = attr.map(|attr| if let TokenTree::Group(attr) = attr { attr.stream() } else { attr.into() });
            let item: TokenStream = item.iter().cloned().collect();
            let output = projection::expand(attr.unwrap_or_default(), &item);
            // Anything else rustc has refused before.
            if syn::parse2::<syn::Item>(item).is_ok() {
                parses::<syn::File>(output);
            }
        }
        item => {
            let item: TokenStream = item.iter().cloned().collect();
            parses::<syn::File>(event::expand(item.clone()));
            parses::<syn::File>(read_model::expand(item));
        }
    }
    Corpus::Keep
});

fn lexed(input: &[u8]) -> Option<TokenStream> {
    std::str::from_utf8(input).ok()?.parse().ok()
}

fn is_projection(attr: &Group) -> bool {
    matches!(attr.stream().into_iter().next(), Some(TokenTree::Ident(name)) if name == "projection")
}

fn with_invisible(tokens: TokenStream, depth: usize) -> Option<TokenStream> {
    let mut with: Vec<TokenTree> = Vec::new();
    for token in tokens {
        let TokenTree::Group(group) = token else {
            with.push(token);
            continue;
        };
        let invisible = matches!(with.last(), Some(TokenTree::Ident(name)) if name == "__none");
        let delimiter = if invisible { Delimiter::None } else { group.delimiter() };
        if invisible {
            with.pop();
        }
        if depth == DEEPEST {
            return None;
        }
        with.push(Group::new(delimiter, with_invisible(group.stream(), depth + 1)?).into());
    }
    Some(with.into_iter().collect())
}

fn parses<T: syn::parse::Parse>(output: TokenStream) {
    if let Err(error) = syn::parse2::<T>(output.clone()) {
        panic!("{error} in the output {output}");
    }
}

// Mostly changes tokens, so that brackets stay closed and words whole.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    proc_macro2::extra::invalidate_current_thread_spans();
    let mut random = Random(u64::from(seed));
    if random.below(4) > 0
        && let Some(tokens) = lexed(&data[..size])
    {
        let text = (0..=random.below(3)).fold(tokens, |tokens, _| changed(tokens, &mut random)).to_string();
        if text.len() <= max_size {
            data[..text.len()].copy_from_slice(text.as_bytes());
            return text.len();
        }
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
});

/// The words of the macros, and tokens that are at home elsewhere.
const FRAGMENTS: [&str; 61] = [
    "#[projection(name = \"band\", tables = [\"band\"])]",
    "#[on(BandCreated)]",
    "#[on(BandCreated, key = event.data.name)]",
    "#[on(A, key = (event.data.a, event.data.b))]",
    "#[event(aggregate = \"domain.Band\")]",
    "#[read_model(table = \"band\")]",
    "#[key]",
    "#[cfg(test)]",
    "#[doc = \"text\"]",
    "async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> { Ok(()) }",
    "#[on(A)] async fn many(&self, events: &[Recorded<A>], tx: &mut PgConnection) -> sqlx::Result<()> { todo!() }",
    "#[on(B)] fn row(row: &mut Option<Row>, event: &Recorded<B>) {}",
    "#[on(C, key = event.data.x)] fn row(&self, row: &mut Option<Row>, event: &Recorded<C>) -> Result<()> { Ok(()) }",
    "impl Bands {}",
    "struct Band { #[key] id: Uuid, name: String }",
    "struct Pair(u8, u8);",
    "enum Kind { One { a: u8 }, Two(u8), Three }",
    "union Bits { a: u8, b: i8 }",
    "name = \"band\"",
    "tables = [\"band\", \"archive.stop\"]",
    "cascade = true",
    "after = [\"band\"]",
    "order = \"aggregate\"",
    "order = \"stream\"",
    "covers = [BandEvents]",
    "covers = BandEvents",
    "ignores = [BandPraised]",
    "aggregate = BandEvents",
    "routing_key = \"Band.Created\"",
    "version = 3",
    "version = 2147483647",
    "upcast(1 => from_v1, 2 => core::convert::identity)",
    "upcast(2147483647 => f, 0 => f)",
    "upcast(1 => |old: Old| New { a: old.a })",
    "message(aggregate_id = \"Id\", recorded_at = \"Time\")",
    "table = \"schema.table\"",
    "key = event.aggregate_id",
    "pub BandEvents: \"domain.Band\" => [BandCreated, BandRenamed],",
    "Greetings = Greetings { greeting: String::new() }",
    "__none(\"band\")",
    "__none(Band)",
    "pub(crate)",
    "where Self: Sized",
    "<'a, T: ?Sized, const N: usize>",
    "&'static str",
    "dyn Fn(u8) -> u8",
    "Option<Row>",
    "&mut self",
    "self: Box<Self>",
    "unsafe extern \"C\"",
    "r#type",
    "r#\"raw\"#",
    "b\"bytes\"",
    "\"\"",
    "\"Ünïcode \\u{0}\"",
    "1u8",
    "-1",
    "..",
    "=>",
    "<Band as Trait>::Type",
    "::path::to::Type<u8>",
];

/// In the place of another literal.
const LITERALS: [&str; 12] = [
    "0",
    "1",
    "3",
    "2147483647",
    "2147483648",
    "99999999999999999999999",
    "1u8",
    "1.5",
    "'c'",
    "\"\"",
    "\"Ünïcode.\\0\"",
    "b\"bytes\"",
];

fn changed(tokens: TokenStream, random: &mut Random) -> TokenStream {
    let mut tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let groups: Vec<usize> = (0..tokens.len()).filter(|i| matches!(tokens[*i], TokenTree::Group(_))).collect();
    if !groups.is_empty() && random.below(4) > 0 {
        let at = groups[random.below(groups.len())];
        if let TokenTree::Group(group) = &tokens[at] {
            tokens[at] = Group::new(group.delimiter(), changed(group.stream(), random)).into();
        }
        return tokens.into_iter().collect();
    }
    let from = random.below(tokens.len() + 1);
    let to = (from + random.below(4)).min(tokens.len());
    let some: Vec<TokenTree> = tokens[from..to].to_vec();
    let place = random.below(tokens.len() + 1);
    let fragment: TokenStream = FRAGMENTS[random.below(FRAGMENTS.len())].parse().unwrap();
    match random.below(8) {
        0 => drop(tokens.drain(from..to)),
        1 => drop(tokens.splice(place..place, some)),
        2 => drop(tokens.splice(from..to, fragment)),
        3 => drop(tokens.splice(from..from, fragment)),
        4 => {
            let brackets = [Delimiter::Parenthesis, Delimiter::Brace, Delimiter::Bracket][random.below(3)];
            let group = TokenTree::from(Group::new(brackets, some.into_iter().collect()));
            tokens.splice(from..to, [group]);
        }
        5 => {
            if let Some(TokenTree::Group(group)) = some.first() {
                let inside = group.stream();
                tokens.splice(from..=from, inside);
            }
        }
        6 => {
            let literals: Vec<usize> =
                (0..tokens.len()).filter(|i| matches!(tokens[*i], TokenTree::Literal(_))).collect();
            let literal: TokenTree = LITERALS[random.below(LITERALS.len())].parse::<Literal>().unwrap().into();
            if !literals.is_empty() {
                tokens[literals[random.below(literals.len())]] = literal;
            }
        }
        _ => tokens.extend(some),
    }
    tokens.into_iter().collect()
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12 ^ 0x9e37_79b9_7f4a_7c15;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or(0) % n
    }
}
