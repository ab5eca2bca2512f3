//! One trace per request: in logs, problem bodies, audit rows and the execution it submits.
//!
//! A client's `traceparent` (W3C Trace Context, level 1) is continued; without one, or with one
//! that does not hold, a new trace begins.

use std::fmt;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use uuid::Uuid;

/// Tells the client which trace its request belongs to.
const TRACE_ID: HeaderName = HeaderName::from_static("trace-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Route of requests that no route matches: one label, whatever was asked for.
const UNMATCHED: &str = "unmatched";

/// A trace: 32 hexadecimal digits, not all zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceId(String);

impl TraceId {
    /// The client's trace, or a new one.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut given = headers.get_all(TRACEPARENT).iter();
        match (given.next(), given.next()) {
            (Some(one), None) => Self::from_traceparent(one.as_bytes()).unwrap_or_default(),
            // None, or two that contradict each other.
            _ => Self::default(),
        }
    }

    /// A trace for the documentation.
    pub(super) fn from_static(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// Reads `version-trace-parent-flags`. Later versions may append further fields.
    fn from_traceparent(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut fields = text.split('-');
        let (version, trace, parent, flags) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let known = version != "ff" && (version != "00" || fields.next().is_none());
        let legal = known
            && is_hex(version, 2)
            && is_hex(trace, 32)
            && is_hex(parent, 16)
            && is_hex(flags, 2)
            && trace.bytes().any(|b| b != b'0')
            && parent.bytes().any(|b| b != b'0');
        legal.then(|| Self(trace.to_owned()))
    }

    /// `traceparent` of our part of the trace.
    fn traceparent(&self) -> String {
        let span = &Uuid::new_v4().simple().to_string()[..16];
        format!("00-{}-{span}-01", self.0)
    }
}

impl Default for TraceId {
    fn default() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Middleware: trace, access log and histogram of a request. Its time ends when the answer
/// begins: a download goes on after that.
pub async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let trace_id = TraceId::from_headers(request.headers());
    let method = method_label(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| UNMATCHED.to_owned(), |path| path.as_str().to_owned());
    request.extensions_mut().insert(trace_id.clone());
    let span = tracing::info_span!("request", %trace_id, method, route);
    let mut response = next.run(request).instrument(span.clone()).await;
    let duration = started.elapsed();
    let status = response.status().as_u16();
    metrics::histogram!(
        "registrar_http_request_duration_seconds",
        "method" => method, "route" => route.clone(), "status" => status.to_string(),
    )
    .record(duration.as_secs_f64());
    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| {
        tracing::info!(status, duration_ms, "{method} {route} answered {status}");
    });
    let headers = response.headers_mut();
    for (name, value) in [(TRACE_ID, trace_id.0.clone()), (TRACEPARENT, trace_id.traceparent())] {
        headers.insert(name, HeaderValue::try_from(value).expect("hexadecimal digits"));
    }
    response
}

/// A bounded set: clients can make methods up.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_gives_its_trace() {
        for text in [
            format!("00-{TRACE}-00f067aa0ba902b7-01"),
            format!("01-{TRACE}-00f067aa0ba902b7-01-later"),
        ] {
            assert_eq!(
                TraceId::from_traceparent(text.as_bytes()),
                Some(TraceId(TRACE.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_traceparent_that_does_not_hold_is_ignored() {
        for text in [
            String::new(),
            TRACE.to_owned(),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-00f067aa0ba902b7"),
        ] {
            assert_eq!(TraceId::from_traceparent(text.as_bytes()), None, "{text}");
        }
    }

    /// Where a test's log goes.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_request_is_one_log_line_without_what_was_asked() {
        use tower::Service;
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let mut app = axum::Router::<()>::new()
            .fallback(|| async { axum::http::StatusCode::IM_A_TEAPOT })
            .layer(axum::middleware::from_fn(observe));
        let request = Request::builder()
            .uri("/people/42?email=ana@tesc.example")
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .body(axum::body::Body::empty())
            .expect("a request");
        app.call(request).await.expect("a router cannot fail");
        let text = String::from_utf8(log.0.lock().expect("nobody panics").clone()).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        for needle in [TRACE, "GET unmatched answered 418", "status=418", "duration_ms="] {
            assert!(text.contains(needle), "{needle} in {text}");
        }
        assert!(!text.contains("people") && !text.contains("ana@"), "{text}");
    }

    proptest! {
        #[test]
        fn every_request_has_a_legal_trace(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(TRACEPARENT, value);
            }
            prop_assert!(is_hex(&TraceId::from_headers(&headers).0, 32));
        }
    }
}
