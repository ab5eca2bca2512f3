//! Spans to a collector, as OTLP over HTTP in JSON (OpenTelemetry Protocol 1.x).
//!
//! Only spans that carry a `trace_id` go: a request and an attempt, under the one id that leads
//! from the request to its file. Of their fields and events only those listed below go along, none
//! of which can be personal. Written by hand, because the exporter that OpenTelemetry offers brings
//! a second HTTP client and gRPC's machinery for what is one document.
//!
//! A collector that is slow or away costs spans, never work: the queue is bounded, and what does
//! not fit is counted and dropped.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Spans that wait to be sent.
const WAITING: usize = 4_096;
/// Spans in one document, and the longest that one waits for others.
const BATCH: usize = 512;
const BATCH_PERIOD: Duration = Duration::from_secs(1);
/// Longest time for one document.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// What goes along as an attribute.
const ATTRIBUTES: [&str; 10] = [
    "method",
    "route",
    "status",
    "duration_ms",
    "execution.id",
    "attempt",
    "rows",
    "size_bytes",
    "code",
    "retried",
];

/// Collects spans.
#[derive(Debug)]
pub struct OtlpLayer(mpsc::Sender<Value>);

/// Sends what was collected.
#[derive(Debug)]
pub struct OtlpExporter {
    ending: oneshot::Sender<()>,
    sending: tokio::task::JoinHandle<()>,
}

/// A layer, and what sends its spans to `{endpoint}/v1/traces`.
///
/// # Errors
/// There is no HTTP client to be had.
pub fn start(endpoint: &url::Url) -> anyhow::Result<(OtlpLayer, OtlpExporter)> {
    let client = reqwest::Client::builder().timeout(SEND_LIMIT).build()?;
    let url = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
    let (sender, spans) = mpsc::channel(WAITING);
    let (ending, ended) = oneshot::channel();
    let sending = tokio::spawn(send(client, url, spans, ended));
    Ok((OtlpLayer(sender), OtlpExporter { ending, sending }))
}

impl OtlpExporter {
    /// Sends what is left, within the time of one document.
    pub async fn finish(self) {
        let _ = self.ending.send(());
        let _ = tokio::time::timeout(SEND_LIMIT, self.sending).await;
    }
}

async fn send(
    client: reqwest::Client,
    url: String,
    mut spans: mpsc::Receiver<Value>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut ticks = tokio::time::interval(BATCH_PERIOD);
    let mut batch = Vec::new();
    loop {
        let is_last = tokio::select! {
            _ = &mut ended => true,
            _ = ticks.tick() => false,
        };
        loop {
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                break;
            }
            let count = batch.len() as u64;
            let document = document(&batch);
            batch.clear();
            let sent = client.post(&url).json(&document).send().await;
            let is_taken = sent.is_ok_and(|answer| answer.status().is_success());
            let outcome = if is_taken { "sent" } else { "refused" };
            metrics::counter!("registrar_spans_total", "outcome" => outcome).increment(count);
        }
        if is_last {
            return;
        }
    }
}

fn document(spans: &[Value]) -> Value {
    let service = json!([
        { "key": "service.name", "value": { "stringValue": "registrar" } },
        { "key": "service.version", "value": { "stringValue": env!("CARGO_PKG_VERSION") } },
    ]);
    json!({ "resourceSpans": [{
        "resource": { "attributes": service },
        "scopeSpans": [{ "scope": { "name": "registrar" }, "spans": spans }],
    }] })
}

/// A span that has begun.
struct Open {
    trace_id: String,
    span_id: String,
    began: SystemTime,
    fields: Map<String, Value>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for OtlpLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let (Some(trace_id), Some(span)) = (fields.trace_id, context.span(id)) else { return };
        let span_id = uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
        let began = SystemTime::now();
        span.extensions_mut().insert(Open { trace_id, span_id, began, fields: fields.known });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            open.fields.extend(fields.known);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            let mut fields = Fields::default();
            event.record(&mut fields);
            open.fields.extend(fields.known);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(Open { trace_id, span_id, began, fields }) = span.extensions_mut().remove() else {
            return;
        };
        let attributes: Vec<_> =
            fields.into_iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        let sent = self.0.try_send(json!({
            "traceId": trace_id,
            "spanId": span_id,
            "name": span.name(),
            // 2: it serves a request; 5: it takes from a queue.
            "kind": if span.name() == "request" { 2 } else { 5 },
            "startTimeUnixNano": nanos(began),
            "endTimeUnixNano": nanos(SystemTime::now()),
            "attributes": attributes,
        }));
        if sent.is_err() {
            metrics::counter!("registrar_spans_total", "outcome" => "dropped").increment(1);
        }
    }
}

/// 64-bit numbers are texts in OTLP's JSON.
fn nanos(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

/// The fields that may go, and the trace.
#[derive(Default)]
struct Fields {
    trace_id: Option<String>,
    known: Map<String, Value>,
}

impl Fields {
    fn note(&mut self, field: &Field, value: Value) {
        if ATTRIBUTES.contains(&field.name()) {
            self.known.insert(field.name().to_owned(), value);
        }
    }

    fn note_text(&mut self, field: &Field, text: String) {
        if field.name() != "trace_id" {
            self.note(field, json!({ "stringValue": text }));
        } else if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.trace_id = Some(text);
        }
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, json!({ "intValue": value.to_string() }));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, json!({ "intValue": value.to_string() }));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, json!({ "boolValue": value }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note_text(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note_text(field, format!("{value:?}"));
    }
}
