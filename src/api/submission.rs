//! The body of a submit.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::error::ProblemKind;
use super::problem::{FieldError, Problem};
use crate::report::Presentation;
use crate::service::executions::{IdempotencyKey, Reuse, Submission};
use crate::service::object::Object;
use crate::writer::{Compression, Format, Reader};

/// What separates the fields of a CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Delimiter {
    /// Comma.
    #[serde(rename = ",")]
    Comma,
    /// Semicolon.
    #[serde(rename = ";")]
    Semicolon,
    /// Tabulator.
    #[serde(rename = "\t")]
    Tab,
    /// Vertical bar.
    #[serde(rename = "|")]
    Bar,
}

impl Delimiter {
    fn character(self) -> char {
        match self {
            Self::Comma => ',',
            Self::Semicolon => ';',
            Self::Tab => '\t',
            Self::Bar => '|',
        }
    }
}

/// What `format` may be.
const FORMATS: &str = "must be `csv`, `xlsx`, `parquet` or `ndjson`";

/// What to run a report with. Every field may be left out.
#[derive(Debug, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmissionBody {
    /// Values for the report's parameters; the report's `parameters` is their JSON Schema.
    #[schema(value_type = Object, required = false, default = json!({}))]
    pub parameters: Map<String, Value>,
    /// Format of the file.
    #[schema(required = false, default = "csv")]
    pub format: Format,
    /// Who reads the file.
    #[schema(required = false, default = "machine")]
    pub reader: Reader,
    /// Whether a CSV starts with a byte order mark, which some spreadsheets need to see UTF-8.
    #[schema(required = false, default = false)]
    pub byte_order_mark: bool,
    /// What separates the fields of a CSV.
    #[schema(required = false, default = ",")]
    pub delimiter: Delimiter,
    /// How a CSV or NDJSON is compressed as a whole; the other formats are compressed inside.
    #[schema(required = false)]
    pub compression: Option<Compression>,
    /// Whether the result of an identical run will do: the same version, parameters, file and
    /// rights, on its way or finished.
    #[schema(required = false)]
    pub reuse: Option<ReuseBody>,
}

/// How old a shared result may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReuseBody {
    /// Most seconds between the snapshot of the shared result and this submit, at most 30 days. 0
    /// shares only a run that has not begun.
    #[schema(maximum = 2_592_000, example = 600)]
    pub max_age_secs: u32,
}

/// Most of `max_age_secs`: 30 days.
const MAX_REUSE_SECS: u32 = 30 * 24 * 60 * 60;

/// The file of a further format. Every field may be left out, and is then as in a submission.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read as a part of a submission")]
pub struct FormatBody {
    /// Format of the file.
    #[schema(required = false, default = "csv")]
    format: Format,
    /// Who reads the file.
    #[schema(required = false, default = "machine")]
    reader: Reader,
    /// Whether a CSV starts with a byte order mark.
    #[schema(required = false, default = false)]
    byte_order_mark: bool,
    /// What separates the fields of a CSV.
    #[schema(required = false, default = ",")]
    delimiter: Delimiter,
    /// How a CSV or NDJSON is compressed as a whole.
    #[schema(required = false)]
    compression: Option<Compression>,
}

impl SubmissionBody {
    /// Reads a body, field by field, so that every fault is told at once, each with its place.
    ///
    /// # Errors
    /// A [`Problem`] with a pointer to each field that is unknown or has the wrong type.
    pub fn read(mut object: Map<String, Value>) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let body = Self {
            parameters: field(&mut object, "parameters", "must be an object", &mut errors)
                .unwrap_or_default(),
            format: field(&mut object, "format", FORMATS, &mut errors).unwrap_or(Format::Csv),
            reader: field(&mut object, "reader", "must be `machine` or `spreadsheet`", &mut errors)
                .unwrap_or_default(),
            byte_order_mark: field(
                &mut object,
                "byte_order_mark",
                "must be true or false",
                &mut errors,
            )
            .unwrap_or(false),
            delimiter: field(
                &mut object,
                "delimiter",
                "must be a comma, a semicolon, a tab or a vertical bar",
                &mut errors,
            )
            .unwrap_or(Delimiter::Comma),
            compression: field(
                &mut object,
                "compression",
                "must be `gzip`, `zstd` or null",
                &mut errors,
            )
            .flatten(),
            reuse: field::<Option<Object<ReuseBody>>>(
                &mut object,
                "reuse",
                "must be an object with `max_age_secs`, a whole number",
                &mut errors,
            )
            .flatten()
            .map(|Object(reuse)| reuse),
        };
        if body.reuse.is_some_and(|reuse| reuse.max_age_secs > MAX_REUSE_SECS) {
            let expected = format!("must be at most {MAX_REUSE_SECS}");
            errors.push(FieldError::at("/reuse/max_age_secs", "max", expected));
        }
        errors.extend(object.keys().map(|name| {
            FieldError::at(pointer(name), "unknown", "a submission has no such field")
        }));
        if errors.is_empty() {
            return Ok(body);
        }
        Err(Problem::with_errors(ProblemKind::InvalidInput, errors))
    }

    /// Reads the body of a further format, which has a file and nothing to run it with.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_format(object: Map<String, Value>) -> Result<(Format, Presentation), Problem> {
        let errors: Vec<_> = ["parameters", "reuse"]
            .into_iter()
            .filter(|name| object.contains_key(*name))
            .map(|name| FieldError::at(pointer(name), "unknown", "a format has no such field"))
            .collect();
        if !errors.is_empty() {
            return Err(Problem::with_errors(ProblemKind::InvalidInput, errors));
        }
        let Submission { format, presentation, .. } = Self::read(object)?.into_submission(None);
        Ok((format, presentation))
    }

    /// As the service takes it.
    pub fn into_submission(self, idempotency_key: Option<IdempotencyKey>) -> Submission {
        let Self { parameters, format, reader, byte_order_mark, delimiter, compression, reuse } =
            self;
        let delimiter = delimiter.character();
        Submission {
            parameters,
            format,
            presentation: Presentation { reader, byte_order_mark, delimiter, compression },
            idempotency_key,
            reuse: reuse.map(|ReuseBody { max_age_secs }| Reuse { max_age_secs }),
            as_of: None,
        }
    }
}

/// Takes a field and reads it. `None` where it is not given, or refused.
pub(super) fn field<T: DeserializeOwned>(
    object: &mut Map<String, Value>,
    name: &'static str,
    expected: &str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let value = object.shift_remove(name)?;
    let read = serde_json::from_value(value).ok();
    if read.is_none() {
        errors.push(FieldError::at(pointer(name), "type", expected));
    }
    read
}

/// Takes a field that must be there.
pub(super) fn required<T: DeserializeOwned>(
    object: &mut Map<String, Value>,
    name: &'static str,
    expected: &str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    if !object.contains_key(name) {
        errors.push(FieldError::at(pointer(name), "required", "must be given"));
    }
    field(object, name, expected, errors)
}

/// A member of the body (RFC 6901).
pub(super) fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<SubmissionBody, Problem> {
        let Value::Object(object) = body else { panic!("an object") };
        SubmissionBody::read(object)
    }

    #[test]
    fn everything_may_be_left_out() {
        let body = read(json!({})).expect("an empty submission");
        let submission = body.into_submission(None);
        assert_eq!(submission.format, Format::Csv);
        assert_eq!(submission.presentation, Presentation::default());
    }

    #[test]
    fn every_field_is_read() {
        let body = read(json!({
            "parameters": {"a": 1}, "format": "xlsx", "reader": "spreadsheet",
            "byte_order_mark": true, "delimiter": "\t", "compression": "zstd",
            "reuse": {"max_age_secs": 60},
        }))
        .expect("a whole submission");
        let submission = body.into_submission(None);
        assert_eq!(submission.parameters["a"], 1);
        assert_eq!(submission.format, Format::Xlsx);
        assert_eq!(submission.reuse, Some(Reuse { max_age_secs: 60 }));
        assert_eq!(
            submission.presentation,
            Presentation {
                reader: Reader::Spreadsheet,
                byte_order_mark: true,
                delimiter: '\t',
                compression: Some(Compression::Zstd),
            }
        );
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let problem = read(json!({
            "parameters": [], "format": "pdf", "reader": 1, "byte_order_mark": "yes",
            "delimiter": "\0", "colour/~": 1, "reuse": {"max_age_secs": 2_592_001},
        }))
        .expect_err("seven faults");
        let text = format!("{problem:?}");
        for pointer in [
            "/parameters",
            "/format",
            "/reader",
            "/byte_order_mark",
            "/delimiter",
            "/colour~1~0",
            "/reuse/max_age_secs",
        ] {
            assert!(text.contains(&format!("{pointer:?}")), "{pointer} in {text}");
        }
    }
}
