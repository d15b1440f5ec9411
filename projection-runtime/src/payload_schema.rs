//! JSON Schemas of payloads, of those types that have one.
//!
//! The derive writes `(&SchemaOf::<E>::new()).schema()`. The method is that of [`WithSchema`], or, since its receiver needs
//! one more borrow, that of [`WithoutSchema`] if `E` does not implement `JsonSchema`. So no event must have a schema.

use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::event::{DomainEvent, StoredEvent};
use crate::projection::EventType;

const NO_SCHEMA: &str = "The program has no schema of this payload: its type does not implement `JsonSchema`.";

/// Generates the schema of a payload; `None` if its type does not implement `JsonSchema`.
pub type PayloadSchema = Option<fn(&mut SchemaGenerator) -> Schema>;

/// Where the schemas of an event's older versions are added, from version 1 on.
pub type OlderSchemas<'a> = Option<&'a mut Vec<PayloadSchema>>;

/// A field of a payload, and the further names by which serde reads it.
pub type FieldAliases = (&'static str, &'static [&'static str]);

/// Stands for the payload type `P`.
pub struct SchemaOf<P>(PhantomData<fn() -> P>);

impl<P> SchemaOf<P> {
    /// Of the type.
    #[expect(clippy::new_without_default, reason = "for generated code")]
    #[must_use]
    pub const fn new() -> Self {
        SchemaOf(PhantomData)
    }

    /// Of the type of the payload.
    #[must_use]
    pub const fn of(_payload: &Option<P>) -> Self {
        SchemaOf(PhantomData)
    }
}

/// The schema of a type that implements `JsonSchema`.
pub trait WithSchema {
    /// Its schema.
    fn schema(&self) -> PayloadSchema;
}

impl<P: JsonSchema> WithSchema for SchemaOf<P> {
    fn schema(&self) -> PayloadSchema {
        Some(P::json_schema)
    }
}

/// No schema of any other type.
pub trait WithoutSchema {
    /// None.
    fn schema(&self) -> PayloadSchema;
}

impl<P> WithoutSchema for &SchemaOf<P> {
    fn schema(&self) -> PayloadSchema {
        None
    }
}

/// The payloads of an event, as its type describes them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payloads {
    schemas: fn() -> Vec<PayloadSchema>,
    /// Of the newest version.
    pub(crate) aliases: &'static [FieldAliases],
}

impl Payloads {
    pub(crate) const fn of<E: DomainEvent>() -> Self {
        Payloads { schemas: schemas::<E>, aliases: E::ALIASES }
    }

    /// The schema of each version, from version 1 on.
    pub(crate) fn schemas(self) -> Vec<PayloadSchema> {
        (self.schemas)()
    }
}

/// All values are equal: `EventType::ty` identifies the type, and function addresses are not reliable.
impl PartialEq for Payloads {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Payloads {}

fn schemas<E: DomainEvent>() -> Vec<PayloadSchema> {
    let mut schemas = Vec::new();
    // Carries nothing up, since the event is of no version.
    let _ = E::carried(&StoredEvent::of_no_version(E::NAME), Some(&mut schemas));
    // An implementation by hand may know nothing of its older versions.
    schemas.resize(usize::try_from(E::VERSION - 1).unwrap_or(0), None);
    schemas.push(E::schema());
    schemas
}

/// Generates the schema; types within it go to the generator's definitions.
pub(crate) fn generate(
    schema: fn(&mut SchemaGenerator) -> Schema,
    generator: &mut SchemaGenerator,
) -> Map<String, Value> {
    let mut schema = schema(generator);
    for transform in generator.transforms_mut() {
        transform.transform(&mut schema);
    }
    std::mem::take(schema.ensure_object())
}

/// Returns the schema of a payload whose type has none.
pub(crate) fn open() -> Map<String, Value> {
    Map::from_iter([("description".to_owned(), json!(NO_SCHEMA))])
}

/// Returns the schema of a payload as ingest reads it: fields have further names, and two more fields may hold what the
/// headers leave out.
pub(crate) fn ingested(payload: Option<Map<String, Value>>, event: &EventType, version: i32) -> Map<String, Value> {
    let described = payload.is_some();
    let mut schema = payload.unwrap_or_else(open);
    if !described {
        schema.insert("type".to_owned(), json!("object"));
    }
    if version == event.version {
        for (field, aliases) in event.payloads.aliases {
            add_aliases(&mut schema, field, aliases);
        }
    }
    // A payload that has no other fields than its type's has these only if the type has them.
    if schema.get("additionalProperties") != Some(&json!(false)) {
        let fields = [
            (event.message.aggregate_id, "uuid", "The aggregate of the event, if no header `aggregate_id` names it."),
            (event.message.recorded_at, "date-time", "When the event happened, if no header `recorded_at` says it."),
        ];
        for (field, format, description) in fields {
            let Some(field) = field else { continue };
            let property = || json!({ "type": "string", "format": format, "description": description });
            if let Some(properties) = schema.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
                properties.entry(field).or_insert_with(property);
            }
        }
    }
    schema
}

/// Lets a field have one of several names; serde refuses two of them at once.
fn add_aliases(schema: &mut Map<String, Value>, field: &str, aliases: &[&str]) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    let Some(property) = properties.get(field).cloned() else { return };
    for alias in aliases {
        let mut property = property.clone();
        if property.get("$ref").is_none() && property.is_object() {
            property["description"] = json!(format!("Another name of `{field}`."));
        }
        properties.insert((*alias).to_owned(), property);
    }
    let names = [field].into_iter().chain(aliases.iter().copied());
    let mut one: Vec<Value> = names.map(|name| json!({ "required": [name] })).collect();
    let mut is_required = false;
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        is_required = required.iter().any(|name| name == field);
        required.retain(|name| name != field);
        if required.is_empty() {
            schema.remove("required");
        }
    }
    if !is_required {
        one.push(json!({ "not": { "anyOf": one } }));
    }
    if let Some(all) = schema.entry("allOf").or_insert_with(|| json!([])).as_array_mut() {
        all.push(json!({ "oneOf": one }));
    }
}
