//! Messages as services of other languages see and send them: Python with pika, Node with amqplib.

mod cloud_events;
mod ingested;
mod refused;
mod relayed;

use serde_json::{Value, json};
use tests::TestDatabase;
use tests::interop::Client;

use super::Exchange;

impl Exchange {
    /// Arguments of a client: URL and exchange.
    fn place(&self) -> (&str, &str) {
        (&self.url, &self.options.exchange)
    }
}

/// Text in letters of ASCII only, as Python's `json.dumps` writes it, or as it is, as JavaScript's `JSON.stringify` does.
fn json_of(client: Client, name: &str) -> String {
    let escaped = |letter: char| {
        let mut units = [0; 2];
        let units = letter.encode_utf16(&mut units).iter();
        units.map(|unit| format!("\\u{unit:04x}")).collect::<String>()
    };
    match client {
        Client::Python => {
            let letters =
                name.chars().map(|letter| if letter.is_ascii() { letter.to_string() } else { escaped(letter) });
            format!(r#"{{"name": "{}"}}"#, letters.collect::<String>())
        }
        Client::Node => json!({ "name": name }).to_string(),
    }
}

/// Every column of the events but `tstamp`, in the order of the store; `data` byte for byte.
async fn stored(db: &TestDatabase) -> Vec<Value> {
    sqlx::query_scalar(
        r#"SELECT to_jsonb(e) - 'tstamp' || jsonb_build_object('data', data::text, 'recorded_at',
                  to_char(recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
           FROM events e ORDER BY tstamp"#,
    )
    .fetch_all(&db.pool)
    .await
    .unwrap()
}
