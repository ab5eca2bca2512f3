//! The first rows of a result, for people who want to look before they download.

use futures::TryStreamExt;
use serde_json::{Value, json};

use super::{Caller, ServiceError, Services};
use crate::db::audit;
use crate::report::Presentation;
use crate::store::ByteRange;

/// Rows that are shown.
pub const MAX_ROWS: usize = 100;
/// Bytes of the file that are read for it.
const MAX_BYTES: u64 = 262_144;
/// Longest value that is shown, in characters.
const MAX_CELL_CHARS: usize = 500;

/// The beginning of a result.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Head {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The first rows.
    pub rows: Vec<Vec<String>>,
}

impl Services {
    /// The first rows of a completed execution. `None` where the format cannot be read from its
    /// beginning: workbooks, Parquet, and what is compressed. It is recorded like a download.
    ///
    /// # Errors
    /// As [`Services::result`].
    pub async fn preview_result(
        &self,
        caller: &Caller,
        id: i64,
    ) -> Result<Option<Head>, ServiceError> {
        let execution = self.readable(caller, id).await?;
        let presentation: Presentation = serde_json::from_value(execution.options.clone())
            .map_err(|error| ServiceError::Internal(error.into()))?;
        let is_csv = match execution.format.as_str() {
            "csv" => true,
            "ndjson" => false,
            _ => return Ok(None),
        };
        if presentation.compression.is_some() {
            return Ok(None);
        }
        let file = self.find_result(caller, id).await?;
        let mut connection = self.db.acquire().await?;
        let event = audit::Event {
            action: "execution.previewed",
            entity_type: "report_executions",
            entity_id: Some(id),
            details: json!({ "trace_id": caller.trace_id }),
        };
        audit::record(&mut connection, &caller.actor, event).await?;
        drop(connection);
        let is_whole = file.size_bytes <= MAX_BYTES;
        let range = (!is_whole).then_some(ByteRange::Bounded(0..MAX_BYTES));
        let mut bytes = Vec::new();
        let mut stream = self.read_result(&file, range).await?.into_stream();
        while let Some(piece) = stream.try_next().await.map_err(broken)? {
            bytes.extend_from_slice(&piece);
        }
        if !is_whole {
            // The last line may be cut. A line break within quotes may be too: one row less.
            let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            bytes.truncate(end);
        }
        let delimiter = u8::try_from(presentation.delimiter).unwrap_or(b',');
        Ok(Some(if is_csv { csv_head(&bytes, delimiter) } else { ndjson_head(&bytes) }))
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> ServiceError {
    ServiceError::Internal(anyhow::Error::new(error).context("read a result"))
}

fn csv_head(bytes: &[u8], delimiter: u8) -> Head {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bytes);
    let columns = reader.byte_headers().map(row).unwrap_or_default();
    let rows = reader.byte_records().map_while(Result::ok).take(MAX_ROWS);
    Head { columns, rows: rows.map(|record| row(&record)).collect() }
}

fn row(record: &csv::ByteRecord) -> Vec<String> {
    record.iter().map(|cell| shown(&String::from_utf8_lossy(cell))).collect()
}

fn ndjson_head(bytes: &[u8]) -> Head {
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).take(MAX_ROWS) {
        let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(line) else { break };
        if columns.is_empty() {
            columns = object.keys().cloned().collect();
        }
        let cell = |name: &String| match object.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => shown(text),
            Some(other) => shown(&other.to_string()),
        };
        rows.push(columns.iter().map(cell).collect());
    }
    Head { columns, rows }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_CELL_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_delimiters_are_read() {
        let head = csv_head(b"a;b\r\n\"x;\"\"y\"\"\";\r\n2;\"line\nbreak\"\r\n", b';');
        assert_eq!(head.columns, ["a", "b"]);
        assert_eq!(head.rows, [["x;\"y\"", ""], ["2", "line\nbreak"]]);
    }

    #[test]
    fn objects_become_rows() {
        let head = ndjson_head(b"{\"a\":1,\"b\":null}\n{\"a\":\"x\",\"b\":[1]}\n{\"a\":");
        assert_eq!(head.columns, ["a", "b"]);
        assert_eq!(head.rows, [["1", ""], ["x", "[1]"]]);
    }

    #[test]
    fn no_more_than_a_page_is_shown() {
        let text: String = (0..500).map(|n| format!("{n}\n")).collect();
        assert_eq!(csv_head(format!("n\n{text}").as_bytes(), b',').rows.len(), MAX_ROWS);
    }
}
