//! Holds the OpenAPI file against the answers: each answer that a test of this binary gets is looked up in it.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex};

use projection_runtime::Status;
use serde_json::{Value, json};

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../projection-runtime/src/http/openapi.json")).unwrap());

/// What was answered so far, by this process.
static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Panics where the answer is not one that the file tells of.
pub fn check(method: &str, path: &str, code: u16, body: &str) {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let path = path.split('?').next().unwrap();
    let Some((template, operations)) = paths.iter().find(|(template, _)| is_of(path, template)) else {
        // Not one of the service's: no answer is right but that there is nothing.
        assert!(
            [400, 401, 404].contains(&code) || ["/page.css", "/page.js"].contains(&path),
            "{method} {path}: {code}"
        );
        return;
    };
    let Some(operation) = operations.get(method.to_lowercase()) else {
        assert_eq!(code, 405, "{method} {path}");
        return;
    };
    let Some(answer) = operation["responses"].get(code.to_string()) else {
        panic!("{method} {path} answered {code}, which is not in the OpenAPI file: {body}")
    };
    let (kind, content) = answer["content"].as_object().unwrap().iter().next().unwrap();
    if kind == "application/json" {
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{method} {path}: {error}: {body}"));
        fits(&content["schema"], &body).unwrap_or_else(|error| panic!("{method} {path} {code}: {error}: {body}"));
    }
    SEEN.lock().unwrap().insert(format!("{method} {template} {code}"));
}

/// Panics where `/api/projections` would answer with what the file does not tell of.
pub fn check_status(status: &Status) {
    let answer = &DOCUMENT["paths"]["/api/projections"]["get"]["responses"]["200"]["content"]["application/json"];
    let body = serde_json::to_value(status).unwrap();
    fits(&answer["schema"], &body).unwrap_or_else(|error| panic!("{error}: {body}"));
}

fn is_of(path: &str, template: &str) -> bool {
    let (path, template) = (path.split('/'), template.split('/'));
    path.clone().count() == template.clone().count()
        && path.zip(template).all(|(part, known)| part == known || (known.starts_with('{') && !part.is_empty()))
}

fn fits(schema: &Value, value: &Value) -> Result<(), String> {
    let schema = json!({ "allOf": [schema], "components": DOCUMENT["components"] });
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).map_err(|e| e.to_string())?;
    let errors: Vec<String> = validator.iter_errors(value).map(|e| format!("{} at {}", e, e.instance_path())).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Each example of the file fits its own schema, and a field too many or too few does not.
#[test]
fn examples() {
    let mut examples = 0;
    for (path, operations) in DOCUMENT["paths"].as_object().unwrap() {
        for operation in operations.as_object().unwrap().values() {
            for answer in operation["responses"].as_object().unwrap().values() {
                let Some(content) = answer["content"].get("application/json") else { continue };
                let told = [content.get("example")].into_iter().flatten();
                let more = content["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
                for example in told.chain(more) {
                    fits(&content["schema"], example).unwrap_or_else(|error| panic!("{path}: {error}"));
                    if path == "/api/openapi.json" {
                        continue;
                    }
                    let mut other = example.clone();
                    other.as_object_mut().unwrap().insert("surplus".to_owned(), json!(1));
                    assert!(fits(&content["schema"], &other).is_err(), "{path}: {other}");
                    let required: Vec<String> = example.as_object().unwrap().keys().cloned().collect();
                    let mut other = example.clone();
                    other.as_object_mut().unwrap().remove(&required[0]);
                    assert!(fits(&content["schema"], &other).is_err(), "{path}: {other}");
                    examples += 1;
                }
            }
        }
    }
    assert!(examples > 30, "{examples}");
}

/// What the tests of HTTP have asked for so far.
pub fn seen() -> BTreeSet<String> {
    SEEN.lock().unwrap().clone()
}

/// Each operation of the file.
pub fn operations() -> BTreeSet<String> {
    let paths = DOCUMENT["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, operations)| {
        let successes = operations.as_object().unwrap().iter().flat_map(|(method, operation)| {
            let codes = operation["responses"].as_object().unwrap().keys().filter(|code| code.starts_with('2'));
            codes.map(move |code| format!("{} {path} {code}", method.to_uppercase()))
        });
        successes.collect::<Vec<_>>()
    });
    operations.collect()
}
