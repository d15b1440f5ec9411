//! `projections![BandProjection, Greetings = Greetings { .. }]`

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::punctuated::Punctuated;
use syn::{Expr, ExprAssign, ExprPath, Path, Token};

use crate::report::Report;
use crate::spans::{ends, moved};

/// A projection of the set: its type, and its value where it has fields.
struct Entry {
    ty: Path,
    value: Option<Expr>,
}

pub(crate) fn expand(input: TokenStream) -> TokenStream {
    use syn::parse::Parser;
    let mut report = Report::default();
    let list = report.ok(Punctuated::<Expr, Token![,]>::parse_terminated.parse2(input));
    let entries: Vec<Entry> = list.into_iter().flatten().filter_map(|entry| read(entry, &mut report)).collect();
    match report.into_compile_errors() {
        None => set(&entries, true),
        // What one projection says of another can't be judged where some are missing.
        Some(errors) => {
            let set = set(&entries, false);
            quote!({ #errors #set })
        }
    }
}

fn read(entry: Expr, report: &mut Report) -> Option<Entry> {
    const FORM: &str = "expected a projection's type, or `Type = value` for one that has fields";
    match entry {
        Expr::Path(ExprPath { qself: None, path, .. }) => Some(Entry { ty: path, value: None }),
        Expr::Assign(ExprAssign { left, right, .. }) => match *left {
            Expr::Path(ExprPath { qself: None, path, .. }) => Some(Entry { ty: path, value: Some(*right) }),
            other => {
                report.error(other, FORM);
                None
            }
        },
        Expr::Struct(value) => {
            let ty = crate::path_string(&value.path);
            report.error(&value, format!("{FORM}: `{ty} = {ty} {{ .. }}`"));
            None
        }
        other => {
            report.error(other, FORM);
            None
        }
    }
}

fn set(entries: &[Entry], complete: bool) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    let function = |i: usize| format_ident!("__projection{i}");

    // A projection is named once, so that a mistake in it is reported once.
    let functions = entries.iter().enumerate().map(|(i, Entry { ty, value })| {
        let function = function(i);
        if value.is_none() {
            quote!(fn #function() -> impl #runtime::Projection { #ty })
        } else {
            let given = moved(ends(ty), quote!(projection));
            quote!(fn #function(projection: #ty) -> impl #runtime::Projection { #given })
        }
    });
    let members = entries.iter().enumerate().map(|(i, Entry { ty, value })| {
        let (function, ty) = (function(i), crate::path_string(ty));
        if value.is_none() {
            quote!(#private::member(#ty, #function))
        } else {
            quote!(#private::member_with_value(#ty, #function))
        }
    });
    let checks = entries.iter().enumerate().map(|(i, Entry { ty, .. })| {
        let check = moved(ends(ty), quote!(#private::check_set(__PROJECTIONS, #i)));
        quote!(const _: () = #check;)
    });
    let projections = entries.iter().enumerate().map(|(i, Entry { value, .. })| {
        let function = function(i);
        quote!(.with(#function(#value)))
    });
    let checks = complete.then(|| {
        quote! {
            const __PROJECTIONS: &[#private::SetEntry] = &[#(#members),*];
            #(#checks)*
        }
    });
    quote! {{
        #(#functions)*

        #checks

        #runtime::ProjectionSet::new() #(#projections)*
    }}
}
