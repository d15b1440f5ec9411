//! The AsyncAPI document: valid, stable, and honest about what it cannot describe. `rabbitmq::asyncapi` compares it with
//! messages.

use std::collections::BTreeMap;
use std::process::Command;

use dancefinder_projections::{BandProjection, DanceHallProjection, EventProjection, UserPreferencesProjection};
use jsonschema::{Draft, Validator};
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};
use projection_runtime::schemars::{self, JsonSchema};
use projection_runtime::{
    AsyncApi, DomainEvent, MessageFormat, PgConnection, ProjectionSet, Recorded, Result, domain_events, projection,
    projections,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tests::TestDatabase;
use tests::interop::Client;
use uuid::Uuid;

use super::http::Service;

domain_events! {
    /// What happens to a home.
    pub HomeEvents: "test.Home" => [HomeMoved, HomePraised]
}

/// A home moved: of its older versions one has a schema, one has none, and one has the form of the newest.
#[derive(Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = HomeEvents,
    version = 4,
    upcast(1 => from_v1, 2 => from_v2, 3 => core::convert::identity)
)]
#[serde(rename_all = "camelCase")]
pub struct HomeMoved {
    #[serde(alias = "Ort", alias = "Town")]
    home_town: String,
    #[serde(default, alias = "Year")]
    year: Option<u16>,
    #[serde(default)]
    at: Option<Place>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Place {
    latitude: f64,
    longitude: f64,
}

#[derive(Deserialize, JsonSchema)]
struct HomeMovedV1 {
    text: String,
}

#[derive(Deserialize)]
struct HomeMovedV2 {
    town: String,
}

fn from_v1(old: HomeMovedV1) -> HomeMovedV2 {
    HomeMovedV2 { town: old.text }
}

fn from_v2(old: HomeMovedV2) -> HomeMoved {
    HomeMoved { home_town: old.town, year: None, at: None }
}

mod other {
    use super::*;

    /// Has the routing key of another event, and a type of the same name in it.
    #[derive(Serialize, Deserialize, JsonSchema, DomainEvent)]
    #[event(aggregate = "test.Home", routing_key = "HomeMoved")]
    pub struct HomeDescribed {
        at: Place,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Place {
        street: String,
    }
}
use other::HomeDescribed;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = HomeEvents)]
pub struct HomePraised {}

/// Handles the events that moved.
pub struct Homes;

#[projection(name = "homes", tables = ["homes"], covers = HomeEvents, ignores = [HomePraised])]
impl Homes {
    #[on(HomeMoved)]
    async fn moved(_: &Recorded<HomeMoved>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Descriptions;

#[projection(name = "descriptions", tables = ["descriptions"])]
impl Descriptions {
    #[on(HomeDescribed)]
    async fn described(_: &Recorded<HomeDescribed>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

/// A message of the broker, as JSON.
#[derive(Clone)]
pub struct Message {
    pub routing_key: String,
    pub properties: Map<String, Value>,
    pub headers: Map<String, Value>,
    pub body: Value,
}

impl From<&Delivery> for Message {
    fn from(delivery: &Delivery) -> Self {
        let of = &delivery.properties;
        let text = |text: &Option<ShortString>| text.as_ref().map(|text| json!(text.as_str()));
        let properties = [
            ("message_id", text(of.message_id())),
            ("type", text(of.kind())),
            ("content_type", text(of.content_type())),
            ("timestamp", of.timestamp().map(|seconds| json!(seconds))),
            ("delivery_mode", of.delivery_mode().map(|mode| json!(mode))),
        ];
        let headers = of.headers().iter().flat_map(|headers| headers.inner()).map(|(name, value)| {
            let value = match value {
                AMQPValue::LongString(text) => json!(text.to_string()),
                AMQPValue::LongLongInt(number) => json!(number),
                AMQPValue::LongInt(number) => json!(number),
                other => panic!("{name}: {other:?}"),
            };
            (name.to_string(), value)
        });
        Message {
            routing_key: delivery.routing_key.to_string(),
            properties: properties.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
            headers: headers.collect(),
            body: serde_json::from_slice(&delivery.data).unwrap(),
        }
    }
}

/// A document, and its schemas by message.
pub struct Document {
    pub value: Value,
    validators: BTreeMap<String, [Validator; 3]>,
}

impl Document {
    pub fn of(set: &ProjectionSet) -> Self {
        Self::in_format(set, MessageFormat::Plain)
    }

    pub fn in_format(set: &ProjectionSet, format: MessageFormat) -> Self {
        let mut api = AsyncApi::new("tests", "1.0.0");
        api.format = format;
        let value = api.document(set);
        let validators = value["components"]["messages"].as_object().unwrap().iter().map(|(id, message)| {
            let validator = |schema: &Value| {
                let schema = json!({ "allOf": [schema], "components": value["components"] });
                let options = jsonschema::options().with_draft(Draft::Draft7).should_validate_formats(true);
                // Newer than that draft.
                let options = options.with_format("uuid", |text: &str| text.parse::<Uuid>().is_ok());
                options.build(&schema).unwrap_or_else(|error| panic!("{id}: {error}"))
            };
            let properties = validator(&message["x-amqp-properties"]);
            (id.clone(), [properties, validator(&message["headers"]), validator(&message["payload"])])
        });
        Document { validators: validators.collect(), value }
    }

    /// Returns which message of the operations with this action it is: exactly one, as AsyncAPI demands.
    pub fn find(&self, action: &str, message: &Message) -> Result<String, String> {
        let operations = self.value["operations"].as_object().unwrap().values();
        let channels = operations.filter(|operation| operation["action"] == action).filter_map(|operation| {
            let channel = self.resolved(&operation["channel"]);
            (channel["address"] == message.routing_key).then_some(channel)
        });
        let (mut fits, mut errors) = (Vec::new(), Vec::new());
        for of in channels.flat_map(|channel| channel["messages"].as_object().unwrap().values()) {
            let id = of["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            let name = &self.resolved(of)["name"];
            if message.properties.get("type").is_some_and(|of| of != name) {
                continue;
            }
            let parts = [json!(message.properties), json!(message.headers), message.body.clone()];
            let found =
                self.validators[id].iter().zip(&parts).flat_map(|(validator, part)| validator.iter_errors(part));
            let found: Vec<String> = found.map(|error| format!("{id}: {error} at {}", error.instance_path())).collect();
            if found.is_empty() {
                fits.push(id.to_owned());
            }
            errors.extend(found);
        }
        match &fits[..] {
            [one] => Ok(one.clone()),
            [] => Err(format!("{}: no message fits: {}", message.routing_key, errors.join("; "))),
            several => panic!("{}: several messages fit: {several:?}", message.routing_key),
        }
    }

    fn resolved(&self, reference: &Value) -> &Value {
        let reference = reference["$ref"].as_str().unwrap();
        self.value.pointer(&reference[1..]).unwrap_or_else(|| panic!("nothing is at {reference}"))
    }
}

/// Each version has the schema of the type that is read, and a version without one says so.
#[test]
fn each_version_has_its_schema() {
    let document = Document::of(&projections![Homes]).value;
    let payload = |message: &str| document["components"]["messages"][message]["payload"].clone();
    let fields = |message: &str| payload(message)["properties"].as_object().map(|of| of.keys().cloned().collect());
    assert_eq!(fields("HomeMoved.v1"), Some(vec!["text".to_owned()]));
    assert_eq!(fields("HomeMoved.v2"), None);
    assert!(payload("HomeMoved.v2")["description"].as_str().unwrap().contains("no schema"));
    let newest = vec!["at".to_owned(), "homeTown".to_owned(), "year".to_owned()];
    assert_eq!(fields("HomeMoved.v3"), Some(newest.clone()));
    assert_eq!(fields("HomeMoved.v4"), Some(newest));
    assert_eq!(
        payload("HomeMoved.v4")["required"],
        json!(["homeTown"]),
        "an older program may have left out the others"
    );
    assert_eq!(payload("HomeMoved.v5"), Value::Null);
    let ingested = payload("HomeMoved.v4-ingest")["properties"].as_object().unwrap().len();
    assert_eq!(ingested, 6, "the names of serde, with all aliases");
}

/// What the relay publishes beside the described messages is named where it is known.
#[test]
fn what_is_not_described_is_said() {
    let document = Document::of(&projections![Homes]).value;
    let description = document["info"]["description"].as_str().unwrap();
    assert!(description.contains("that no projection of this program handles"), "{description}");
    assert!(description.contains("Known by name only: `HomePraised`."), "{description}");
    assert!(!document["components"].to_string().contains("HomePraised"));
}

/// Equal registrations make equal documents, though two of the types within have one name.
#[test]
fn the_document_is_stable() {
    let text = |set: &ProjectionSet| serde_json::to_string_pretty(&AsyncApi::new("tests", "1").document(set)).unwrap();
    let one = ProjectionSet::new().with(Homes).with(BandProjection).with(Descriptions);
    let other = ProjectionSet::new().with(Descriptions).with(BandProjection).with(Homes);
    assert_eq!(text(&one), text(&other));
    assert!(text(&one).contains("Place2"), "two types of one name");
    let named = |set: ProjectionSet| text(&set.with(UserPreferencesProjection).with(EventProjection));
    assert_eq!(
        named(ProjectionSet::new().with(DanceHallProjection)),
        named(ProjectionSet::new().with(DanceHallProjection))
    );
}

fn dancefinder(arguments: &[&str], exchange: Option<&str>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(arguments).env_remove("DATABASE_URL").env_remove("AMQP_EXCHANGE");
    if let Some(exchange) = exchange {
        command.env("AMQP_EXCHANGE", exchange);
    }
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The command needs no database and prints nothing but the document, which a running service answers as well.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_and_the_service_agree() {
    let printed: Value = serde_json::from_str(&dancefinder(&["asyncapi"], None)).unwrap();
    assert_eq!(printed["info"]["title"], "dancefinder-projections");
    assert_eq!(printed["channels"].as_object().unwrap().len(), 2 * 18);
    let db = TestDatabase::new().await;
    let service = Service::start(&db, &[]).await;
    let (code, answered) = service.get("/api/asyncapi.json").await;
    assert_eq!((code, serde_json::from_str::<Value>(&answered).unwrap()), (200, printed));

    let other: Value = serde_json::from_str(&dancefinder(&["asyncapi"], Some("other"))).unwrap();
    assert_eq!(other["channels"]["Band.Created"]["bindings"]["amqp"]["exchange"]["name"], "other");
    // Nobody is there: what it would publish is described all the same.
    let broker = ["--amqp-url", "amqp://127.0.0.1:1/x", "--amqp-exchange", "other"];
    let service = Service::start(&db, &broker).await;
    let (_, answered) = service.get("/api/asyncapi.json").await;
    assert_eq!(serde_json::from_str::<Value>(&answered).unwrap(), other);

    let format = ["--amqp-format", "cloudevents"];
    let printed: Value =
        serde_json::from_str(&dancefinder(&[&["asyncapi"], &format[..]].concat(), Some("other"))).unwrap();
    assert_ne!(printed, other);
    let service = Service::start(&db, &[broker, [format[0], format[1], "--no-listen", "--no-relay"]].concat()).await;
    let (_, answered) = service.get("/api/asyncapi.json").await;
    assert_eq!(serde_json::from_str::<Value>(&answered).unwrap(), printed);
}

/// AsyncAPI's own parser finds no mistake in the documents of DanceFinder and of events of every kind.
#[test]
fn the_documents_are_valid() {
    let folder = std::env::temp_dir().join(format!("asyncapi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let printed = folder.join("dancefinder.json");
    std::fs::write(&printed, dancefinder(&["asyncapi"], None)).unwrap();
    let cloud_events = folder.join("cloudevents.json");
    std::fs::write(&cloud_events, dancefinder(&["asyncapi", "--amqp-format", "cloudevents"], None)).unwrap();
    let of_all = folder.join("tests.json");
    let set = projections![Homes, Descriptions, BandProjection];
    std::fs::write(&of_all, AsyncApi::new("tests", "1.0.0").document(&set).to_string()).unwrap();
    let output = Client::Node.command("asyncapi").args([printed, cloud_events, of_all]).output().expect("node");
    std::fs::remove_dir_all(&folder).unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{found}{}", String::from_utf8_lossy(&output.stderr));
    // A newer version of AsyncAPI is recommended, which fewer tools read.
    let found: Vec<&str> = found.lines().filter(|line| !line.starts_with("information: The latest version")).collect();
    let dancefinder = "valid: 36 channels, 36 operations, 36 messages";
    let valid = [dancefinder, dancefinder, "valid: 6 channels, 6 operations, 12 messages"];
    assert_eq!(found, valid);
}
