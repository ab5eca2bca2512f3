//! The manifest: what a result holds and how it was made, beside the file in the store.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::writer::{Adjustment, Compression, Format, Kind, Reader};

/// What a result holds and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    /// The execution.
    pub execution_id: i64,
    /// The attempt that made the file.
    pub attempt: i32,
    /// The execution that this is a further format of: the same version and parameters, and a
    /// snapshot of its own.
    #[serde(default)]
    pub format_of: Option<i64>,
    /// The definition's slug.
    pub report: String,
    /// The definition's version.
    pub definition_version: i32,
    /// SHA-256 of the definition's content, in hex.
    pub definition_sha256: String,
    /// The resolved parameters.
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// Name of the file.
    pub file_name: String,
    /// Format of the file.
    pub format: Format,
    /// How the whole file is compressed, if it is.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// Whom the file is written for.
    pub reader: Reader,
    /// IANA zone that dates were computed and are shown in.
    pub time_zone: String,
    /// Columns, in order, of the main sheet.
    pub columns: Vec<ManifestColumn>,
    /// Rows, without headers, of all sheets together.
    pub row_count: u64,
    /// Sheets of a workbook; 1 for other formats.
    pub sheets: u32,
    /// These sheets, in order.
    #[serde(default)]
    pub sheet_list: Vec<ManifestSheet>,
    /// Sheets of the definition that only a workbook holds, if this is none.
    #[serde(default)]
    pub sheets_left_out: Vec<String>,
    /// Size of the file as it is stored.
    pub size_bytes: u64,
    /// SHA-256 of the file as it is stored, in hex.
    pub sha256: String,
    /// Where the file was cut, if it was: it is never cut without this.
    pub truncated: Option<String>,
    /// How many cells could not be shown as they are, by rule.
    #[schema(value_type = Object)]
    pub adjusted_cells: BTreeMap<Adjustment, u64>,
    /// Instant of the snapshot that was read.
    pub snapshot_at: DateTime<Utc>,
    /// Position in the write-ahead log, where the server told it.
    pub snapshot_lsn: Option<String>,
    /// When the attempt began.
    pub started_at: DateTime<Utc>,
    /// Time from the claim to the whole file.
    pub duration_ms: u64,
    /// The process that made the file.
    pub worker: String,
    /// Trace of the request that submitted it: the same as in the logs.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Largest memory of that process so far, where the system tells it.
    pub peak_memory_bytes: Option<u64>,
    /// Version of Registrar.
    pub registrar_version: String,
}

/// A sheet of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ManifestSheet {
    /// Its name.
    pub name: String,
    /// Rows of data: without title, header and totals.
    pub rows: u64,
    /// Its columns, in order.
    pub columns: Vec<ManifestColumn>,
    /// The row of the header, from 1, in a workbook.
    pub header_row: Option<u32>,
}

/// A column of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ManifestColumn {
    /// As the query names it.
    pub name: String,
    /// As people read it.
    pub label: String,
    /// PostgreSQL's type.
    pub postgres_type: String,
    /// What it is written as.
    pub kind: Kind,
}
