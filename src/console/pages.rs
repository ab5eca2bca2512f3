//! Templates: inside the program, escaped, strict. A name that a template uses and a page does not
//! give is an error, which the tests that open every page find.

use axum::http::StatusCode;
use axum::response::Response;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use serde::Serialize;

use super::navigation;
use super::response::html;
use crate::service::sessions::Session;

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("templates/", $name)))),*]
    };
}

const TEMPLATES: &[(&str, &str)] = templates![
    "base.html",
    "sign_in.html",
    "problem.html",
    "reports.html",
    "report.html",
    "definition.html",
    "estimate.html",
    "executions.html",
    "execution.html",
    "execution_panel.html",
    "schedules.html",
    "schedule.html",
    "queues.html",
    "webhooks.html",
    "webhook.html",
    "audit.html",
    "tokens.html",
    "overview.html",
    "policies.html",
    "policy.html",
    "runs.html",
    "runs_table.html",
    "run.html",
    "run_panel.html",
    "archives.html",
    "holds.html",
    "erasures.html",
    "backups.html",
];

/// The templates, compiled.
#[derive(Debug)]
pub struct Pages {
    environment: Environment<'static>,
    assets_version: String,
}

/// What a template is given, of anything that serde writes.
pub fn of<T: Serialize>(content: T) -> Value {
    Value::from(Serde(content))
}

/// A page of somebody who is signed in.
#[derive(Debug)]
pub struct Page<'a> {
    /// Its template.
    pub template: &'a str,
    /// What the browser's tab says.
    pub title: &'a str,
    /// Path of the entry of the navigation that it belongs to.
    pub place: &'a str,
    /// What was just done, for people.
    pub notice: Option<&'static str>,
}

impl Pages {
    /// Compiles the templates.
    pub fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in TEMPLATES {
            environment.add_template(name, source).expect("templates are tested");
        }
        environment.add_filter("number", number);
        environment.add_filter("bytes", bytes);
        environment.add_filter("duration", duration);
        environment.add_filter("when", when);
        environment.add_filter("tone", tone);
        Self { environment, assets_version: super::assets::version() }
    }

    /// A page for a session.
    pub fn show(
        &self,
        status: StatusCode,
        session: &Session,
        page: &Page<'_>,
        content: Value,
    ) -> Response {
        let csrf_field = format!(
            "<input type=\"hidden\" name=\"csrf\" value=\"{}\">",
            session.csrf_token // hexadecimal digits
        );
        let common = context! {
            me => session.username.as_str(),
            nav => of(navigation::entries(&session.caller, page.place)),
            csrf_field => Value::from_safe_string(csrf_field),
            notice => page.notice,
            title => page.title,
            assets_version => self.assets_version.as_str(),
        };
        html(status, self.render(page.template, context! { ..content, ..common }))
    }

    /// A page for somebody who is not signed in.
    pub fn render_alone(&self, template: &str, title: &str, content: Value) -> String {
        let common = context! {
            me => (), notice => (), title => title, assets_version => self.assets_version.as_str(),
        };
        self.render(template, context! { ..content, ..common })
    }

    /// A part of a page.
    pub fn render(&self, template: &str, content: Value) -> String {
        let rendered = self.environment.get_template(template).and_then(|t| t.render(content));
        rendered.unwrap_or_else(|error| {
            tracing::error!(template, error = format!("{error:#}"), "cannot render a page");
            "<!doctype html><title>Registrar</title><p>This page cannot be shown.</p>".to_owned()
        })
    }
}

/// `1 234 567`, with thin spaces; nothing for nothing.
#[expect(clippy::needless_pass_by_value, reason = "filters take values")]
fn number(value: Value) -> String {
    match number_of(&value) {
        Some(number) => grouped(number.round()),
        None => String::new(),
    }
}

fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = if number < 0.0 { "−".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `1.4 MB`.
#[expect(clippy::needless_pass_by_value, reason = "filters take values")]
fn bytes(value: Value) -> String {
    let Some(mut size) = number_of(&value) else { return String::new() };
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 1_000.0 {
            let digits = usize::from(unit != "B" && size < 100.0);
            return format!("{size:.digits$} {unit}");
        }
        size /= 1_000.0;
    }
    format!("{size:.1} TB")
}

/// Seconds as `0.4 s`, `3 min 20 s`, `2 h 5 min`, `3 days`.
#[expect(clippy::needless_pass_by_value, reason = "filters take values")]
fn duration(value: Value) -> String {
    let Some(secs) = number_of(&value) else { return String::new() };
    let secs = secs.max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let whole = secs.round() as u64;
    match whole {
        0..=9 => format!("{secs:.1} s"),
        10..=59 => format!("{whole} s"),
        60..=3_599 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..=172_799 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} days", whole / 86_400),
    }
}

/// An instant for people and for the browser.
#[expect(clippy::needless_pass_by_value, reason = "filters take values")]
fn when(value: Value) -> Value {
    let Some(text) = value.as_str() else { return Value::from("") };
    let Ok(instant) = chrono::DateTime::parse_from_rfc3339(text) else { return Value::from("") };
    let instant = instant.to_utc();
    Value::from_safe_string(format!(
        "<time datetime=\"{}\">{} UTC</time>",
        instant.format("%Y-%m-%dT%H:%M:%SZ"),
        instant.format("%Y-%m-%d %H:%M"),
    ))
}

/// The colour of a state.
#[expect(clippy::needless_pass_by_value, reason = "filters take values")]
fn tone(value: Value) -> &'static str {
    match value.as_str().unwrap_or_default() {
        "completed" | "verified" | "delivered" | "done" => "good",
        "failed" | "bad" => "bad",
        "processing" | "pending" | "sending" | "started" => "busy",
        "cancelling" | "paused" | "needs_approval" | "waiting" | "blocked" => "warn",
        _ => "",
    }
}

fn number_of(value: &Value) -> Option<f64> {
    f64::try_from(value.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        for (value, expected) in [(0, "0"), (999, "999"), (1_234_567, "1\u{202f}234\u{202f}567")] {
            assert_eq!(number(Value::from(value)), expected);
        }
        for (value, expected) in [(0, "0 B"), (999, "999 B"), (1_400_000, "1.4 MB")] {
            assert_eq!(bytes(Value::from(value)), expected);
        }
        for (value, expected) in
            [(0.42, "0.4 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (7_500.0, "2 h 5 min")]
        {
            assert_eq!(duration(Value::from(value)), expected);
        }
        assert_eq!(number(Value::from(())), "");
    }

    #[test]
    fn what_comes_from_elsewhere_is_escaped() {
        let pages = Pages::new();
        let evil = "<script>alert(1)</script>\"'";
        let page = pages.render_alone(
            "problem.html",
            evil,
            context! { detail => evil, errors => vec![evil, evil], status => 400, trace_id => evil },
        );
        assert!(!page.contains("<script>alert"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
        assert_eq!(when(Value::from(evil)).to_string(), "");
    }
}
