//! `#[derive(ReadModel)] #[read_model(table = "event")] struct DanceEvent { #[key] id: Uuid, .. }`

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::ext::IdentExt;
use syn::{Attribute, Data, DataStruct, DeriveInput, Fields, Ident, Meta, Type};

use crate::keys::Keys;
use crate::projection::model::check_table;
use crate::report::Report;
use crate::spans::{ends, moved};
use crate::sql::quoted;

const FULL_FORM: &str = "`#[read_model(table = \"band\")]`";

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let input: DeriveInput = match syn::parse2(item) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let mut report = Report::default();
    let model = read(&input, &mut report);
    let errors = report.into_compile_errors();
    if !input.generics.params.is_empty() {
        // An impl would bring a mistake for each bound that the type parameters lack.
        return errors.unwrap_or_default();
    }
    match errors {
        None => implementation(&input.ident, &model),
        Some(errors) => {
            let stand_in = stand_in(&input.ident, &model);
            quote!(#errors #stand_in)
        }
    }
}

struct Model {
    table: String,
    columns: Vec<Column>,
}

struct Column {
    field: Ident,
    ty: Type,
    is_key: bool,
}

impl Column {
    fn name(&self) -> String {
        self.field.unraw().to_string()
    }
}

fn read(input: &DeriveInput, report: &mut Report) -> Model {
    const TABLE: &str = "table";
    if !input.generics.params.is_empty() {
        report.error(&input.generics, "a row has no type parameters or lifetimes: its columns have one type each");
    }
    let attrs: Vec<&Attribute> = input.attrs.iter().filter(|attr| attr.path().is_ident("read_model")).collect();
    if let Some(second) = attrs.get(1) {
        report.error(second, "`#[read_model(..)]` stands twice: make them one");
    }
    let mut keys = match attrs.first().map(|attr| &attr.meta) {
        Some(Meta::List(list)) => Keys::read(list.parse_args(), report),
        _ => Keys::default(),
    };
    keys.check(&[TABLE], report);
    if let Some(missing) = keys.missing(&[TABLE]) {
        let message = format!("{missing}: say which table the rows are of, {FULL_FORM}");
        match attrs.first() {
            Some(attr) => report.error(attr, message),
            None => report.add(syn::Error::new(Span::call_site(), message)),
        }
    }
    let table = keys.string(TABLE, report);
    if let Some(table) = &table {
        check_table(table, report);
    }
    Model { table: table.map(|table| table.value()).unwrap_or_default(), columns: columns(input, report) }
}

fn columns(input: &DeriveInput, report: &mut Report) -> Vec<Column> {
    const FORM: &str =
        "a row is a struct with a named field for each column: `struct Band { #[key] id: Uuid, name: String }`";
    let Data::Struct(DataStruct { fields: Fields::Named(fields), .. }) = &input.data else {
        match &input.data {
            Data::Enum(data) => report.error(data.enum_token, FORM),
            Data::Union(data) => report.error(data.union_token, FORM),
            Data::Struct(_) => report.error(&input.ident, FORM),
        }
        return Vec::new();
    };
    let mut columns = Vec::new();
    for field in &fields.named {
        let keys: Vec<&Attribute> = field.attrs.iter().filter(|attr| attr.path().is_ident("key")).collect();
        if let Some(key) = keys.iter().find(|key| !matches!(key.meta, Meta::Path(_))) {
            report.error(key, "`#[key]` says all by itself: the field is, or is a part of, the table's key");
        }
        if let Some(second) = keys.get(1) {
            report.error(second, "`#[key]` stands twice: keep one");
        }
        let Some(ident) = field.ident.clone() else { continue };
        columns.push(Column { field: ident, ty: field.ty.clone(), is_key: !keys.is_empty() });
    }
    if !columns.iter().any(|column| column.is_key) {
        report.error(
            &input.ident,
            "no key: mark the field, or the fields, by which the table knows a row, with `#[key]`",
        );
    }
    columns
}

/// An impl that keeps the handlers of the row from complaining on top.
fn stand_in(ident: &Ident, Model { columns, .. }: &Model) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(#runtime::__private);
    let keys: Vec<&Column> = columns.iter().filter(|column| column.is_key).collect();
    let key_type = if keys.is_empty() { quote!(#private::Uuid) } else { key_type(&keys) };
    quote! {
        const _: () = {
            #[automatically_derived]
            impl #runtime::ReadModel for #ident {
                // Of no table: whether the projection owns it is not asked.
                const TABLE: &'static str = "";
                const KEY: &'static [&'static str] = &[];
                const COLUMNS: &'static [&'static str] = &[];
                const TYPES: &'static [#private::FieldType] = &[];
                const SELECT: &'static str = "";
                const INSERT: &'static str = "";
                const UPSERT: &'static str = "";
                const DELETE: &'static str = "";
                type Key = #key_type;

                fn key(&self) -> Self::Key {
                    ::core::unimplemented!()
                }

                fn read(_: &#private::PgRow) -> #private::Result<Self, #private::SqlxError> {
                    ::core::unimplemented!()
                }

                fn is_same(&self, _: &Self) -> bool {
                    true
                }

                fn bind_keys<'q>(query: #private::PgQuery<'q>, _: &'q [&'q Self::Key]) -> #private::PgQuery<'q> {
                    query
                }

                fn bind_rows<'q>(query: #private::PgQuery<'q>, _: &'q [&'q Self]) -> #private::PgQuery<'q> {
                    query
                }
            }
        };
    }
}

/// The field's type, or a tuple of the fields' types.
fn key_type(keys: &[&Column]) -> TokenStream {
    match keys {
        [key] => {
            let ty = &key.ty;
            quote!(#ty)
        }
        keys => {
            let types = keys.iter().map(|key| &key.ty);
            quote!((#(#types),*))
        }
    }
}

fn implementation(ident: &Ident, Model { table, columns }: &Model) -> TokenStream {
    let runtime = crate::runtime();
    let private = quote!(__private);
    let keys: Vec<&Column> = columns.iter().filter(|column| column.is_key).collect();
    let Statements { select, insert, upsert, delete } = statements(table, columns, &keys);
    let names = columns.iter().map(Column::name);
    let key_names = keys.iter().map(|key| key.name());

    let field = |i: usize| quote!(<#ident as #private::Field<#i>>);
    let bounds = columns.iter().enumerate().map(|(i, Column { ty, .. })| {
        let head = moved(ends(ty), quote!(impl #private::Field<#i> for #ident));
        let own = field(i);
        quote! {
            #head {
                type Type = #ty;
                const IS_OPTION: bool = #private::IsOption::<#own::Type>::YES;
            }
        }
    });
    let position = |key: &Column| columns.iter().position(|column| column.field == key.field).unwrap_or(0);
    let key_fields: Vec<TokenStream> = keys.iter().map(|key| field(position(key))).collect();
    let key_idents: Vec<&Ident> = keys.iter().map(|key| &key.field).collect();
    let key_type = key_type(&keys);
    let key_value = match &key_idents[..] {
        [one] => quote!(#private::key_part(&self.#one)),
        many => quote!((#(#private::key_part(&self.#many)),*)),
    };
    let key_binds = key_fields.iter().enumerate().map(|(i, field)| {
        let part = syn::Index::from(i);
        let part = if key_fields.len() == 1 { quote!(*key) } else { quote!(&key.#part) };
        quote!(let query = #field::bind(query, keys.iter().map(|key| #part));)
    });
    let types = (0..columns.len()).map(|i| {
        let field = field(i);
        quote!(#field::TYPE)
    });
    let fields = columns.iter().map(|column| &column.field);
    let reads = fields.clone().enumerate().map(|(i, name)| {
        let field = field(i);
        quote!(#name: #field::read(row)?)
    });
    let same = fields.clone().enumerate().map(|(i, name)| {
        let field = field(i);
        quote!(#field::is_same(&self.#name, &other.#name))
    });
    let binds = fields.enumerate().map(|(i, name)| {
        let field = field(i);
        quote!(let query = #field::bind(query, rows.iter().map(|row| &row.#name));)
    });
    quote! {
        const _: () = {
            use #runtime::__private;
            #[allow(unused_imports)] // where each field is an `Option`
            use #runtime::__private::AnyType as _;

            #(#bounds)*

            #[automatically_derived]
            impl #runtime::ReadModel for #ident {
                const TABLE: &'static str = #table;
                const KEY: &'static [&'static str] = &[#(#key_names),*];
                const COLUMNS: &'static [&'static str] = &[#(#names),*];
                const TYPES: &'static [#private::FieldType] = &[#(#types),*];
                const SELECT: &'static str = #select;
                const INSERT: &'static str = #insert;
                const UPSERT: &'static str = #upsert;
                const DELETE: &'static str = #delete;
                type Key = #key_type;

                fn key(&self) -> Self::Key {
                    #key_value
                }

                fn read(row: &#private::PgRow) -> #private::Result<Self, #private::SqlxError> {
                    #private::Result::Ok(#ident { #(#reads),* })
                }

                fn is_same(&self, other: &Self) -> bool {
                    #(#same)&&*
                }

                fn bind_keys<'q>(query: #private::PgQuery<'q>, keys: &'q [&'q Self::Key]) -> #private::PgQuery<'q> {
                    #(#key_binds)*
                    query
                }

                fn bind_rows<'q>(query: #private::PgQuery<'q>, rows: &'q [&'q Self]) -> #private::PgQuery<'q> {
                    #(#binds)*
                    query
                }
            }
        };
    }
}

/// What reads, writes and removes many rows.
struct Statements {
    select: String,
    insert: String,
    upsert: String,
    delete: String,
}

fn statements(table: &str, columns: &[Column], keys: &[&Column]) -> Statements {
    let table = quoted(table);
    let name = |column: &Column| format!("\"{}\"", column.name());
    let list = |names: Vec<String>| names.join(", ");
    let parameters = |n: usize| list((1..=n).map(|i| format!("${i}")).collect());
    let all = list(columns.iter().map(name).collect());
    let key = list(keys.iter().map(|key| name(key)).collect());
    let keys_bound = parameters(keys.len());
    let matches: Vec<String> = keys.iter().map(|key| format!("this.{0} = wanted.{0}", name(key))).collect();
    // One step of the key's index for each key: of a join PostgreSQL thinks that reading all of the table is cheaper.
    let found = |columns: &str| {
        format!(
            "UNNEST({keys_bound}) AS wanted ({key}) \
             CROSS JOIN LATERAL (SELECT {columns} FROM {table} AS this WHERE {} LIMIT 1) AS found",
            matches.join(" AND ")
        )
    };
    let select = format!("SELECT found.* FROM {}", found(&all));
    // The key as well, because a partitioned table has a `ctid` more than once.
    let delete = format!(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT found.ctid FROM {})) \
         AND ({key}) IN (SELECT * FROM UNNEST({keys_bound}))",
        found("ctid")
    );
    let rest: Vec<String> = columns.iter().filter(|column| !column.is_key).map(name).collect();
    let rest: Vec<String> = rest.iter().map(|column| format!("{column} = EXCLUDED.{column}")).collect();
    let update = if rest.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", list(rest)) };
    // In step; FROM UNNEST(..) would keep each array's values beside before it gives the first row. In the order of the key,
    // so that neighbours in its index are written one after the other.
    let values = (1..).zip(columns).map(|(i, column)| format!("UNNEST(${i}) AS {}", name(column)));
    let insert = format!("INSERT INTO {table} ({all}) SELECT {} ORDER BY {key}", list(values.collect()));
    let upsert = format!("{insert} ON CONFLICT ({key}) DO {update}");
    Statements { select, insert, upsert, delete }
}
