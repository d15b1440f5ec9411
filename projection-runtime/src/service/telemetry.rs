//! Log lines and traces. docs/LOGGING.md says what is in them.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::Service;
use crate::printable::{printable, printable_styled};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For a person.
    Human,
    /// An object a line, for a program.
    Json,
}

/// How long the last spans may take.
const LAST: Duration = Duration::from_secs(1);

/// Sends what spans are left when it is dropped.
pub(super) struct Telemetry(Option<SdkTracerProvider>);

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(LAST)
        {
            eprintln!("warning: the last spans were not sent: {error}");
        }
    }
}

/// Writes each log event as one line to standard error, with terminal control characters escaped.
struct OneLine {
    /// Whether the line has colour escapes; the layer has already escaped those in values.
    colours: bool,
}

impl Write for OneLine {
    /// Writes a whole line: the layer writes each line with one call.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = if self.colours { printable_styled(text) } else { printable(text) };
        std::io::stderr().write_all(format!("{text}\n").as_bytes()).map(|()| line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Log lines go to standard error; `RUST_LOG` says which. Spans go to the collector that the environment names, if it does.
pub(super) fn start(service: &Service, format: LogFormat) -> Result<Telemetry, String> {
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Human => {
            let colours =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            let writer = move || OneLine { colours };
            tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).boxed()
        }
        LogFormat::Json => {
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            json.with_writer(std::io::stderr).boxed()
        }
    };
    let provider = provider(service)?;
    let traced = filter()?;
    let spans = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(service.name)).with_filter(traced));
    tracing_subscriber::registry().with(lines.with_filter(filter()?)).with(spans).init();
    Ok(Telemetry(provider))
}

fn filter() -> Result<EnvFilter, String> {
    let said = std::env::var("RUST_LOG").ok().filter(|said| !said.is_empty());
    let filter = said.as_deref().unwrap_or("info,sqlx=warn,sqlx::pool=error");
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("RUST_LOG: {error}; it expects levels, like info or info,projection_runtime=debug"))?;
    // Its traces may hold the frame with the password. What it has to say, our own lines do.
    Ok(match "lapin=off".parse() {
        Ok(silent) => filter.add_directive(silent),
        Err(_) => filter,
    })
}

fn provider(service: &Service) -> Result<Option<SdkTracerProvider>, String> {
    // The variables of the OpenTelemetry specification, of which the exporter reads these and the others by itself.
    let endpoint = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(|name| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    });
    let Some((name, endpoint)) = endpoint else { return Ok(None) };
    if !endpoint.starts_with("http://") || endpoint.contains('@') {
        return Err(format!(
            "{name} expects a collector near by, like http://localhost:4318; TLS and passwords are the collector's"
        ));
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .build()
        .map_err(|error| format!("{name}: {error}"))?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(service.name);
    }
    let resource = resource.with_attribute(opentelemetry::KeyValue::new("service.version", service.version)).build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}
