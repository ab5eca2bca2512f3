//! What a report is: its SQL, its typed parameters, its columns and limits.
//!
//! A [`Definition`] cannot be wrong in itself: it is only made by [`Definition::from_template`] (two
//! files, TOML and SQL) or [`Definition::from_json`] (what the database keeps), both of which check
//! the same rules and report every fault at once, each with its file and key. Whether the SQL runs,
//! only PostgreSQL can tell.
//!
//! A template in TOML; unknown keys are refused:
//!
//! ```toml
//! title = "Enrollments by programme"
//! description = "Students per programme and session."
//! permission = "reports.enrollments"       # codename; left out: every user may run it
//! time_zone = "Africa/Gaborone"            # IANA name, default UTC
//! tags = ["registry"]
//! split_by = "id"                          # column to read in ranges by, see report/split
//! sheet_name = "Programmes"                # of the main sheet; left out: the title
//!
//! [[parameter]]                            # one for each :name in the SQL
//! name = "since"
//! type = "date"       # text integer bigint numeric boolean date timestamptz uuid enum
//! list = false
//! label = "Since"
//! description = "First day."
//! required = false
//! default = "today - 1 year"               # only without `required`
//! # choices = ["a", "b"]                   # enum only, where it must be
//! # choices_query = "select code, name from units order by code"   # text, integer, bigint, uuid
//! min = 2015-01-01                         # numbers and dates; dates may be relative
//! max = "today"
//! # pattern = "[A-Z]{3}[0-9]+"             # text only; the whole text must match
//! # max_length = 50                        # text only, in characters
//! example = 2024-01-31
//!
//! [[column]]                               # only those that want a label, format or width
//! name = "enrolled"
//! label = "Enrolled"
//! format = "integer"  # decimal1 decimal2 decimal3 percent date datetime time text
//! # number_format = "#,##0 \"credits\""    # instead of `format`: Excel's own
//! width = 12
//! total = "sum"                            # avg count min max: the last row of a workbook
//! style = { bold = true, align = "right" } # italic color background wrap
//!
//! [layout]                                 # of the main sheet of a workbook
//! title = ["{title}", "{parameters}", "Read {snapshot}, {owner}, {execution}"]
//! header = { background = "#1F4E78", color = "#FFFFFF" }
//! freeze_header = true
//! freeze_columns = 0
//! autofilter = true
//! totals_label = "Total"
//!
//! [[conditional]]                          # data_bar, color_scale (low, middle, high), cell
//! type = "cell"
//! column = "enrolled"
//! operator = ">="                          # > >= < <= = != between not_between
//! value = 100                              # a number or a text; `and` is the upper end
//! style = { background = "#C6EFCE" }
//!
//! [[chart]]                                # line column bar pie
//! type = "column"
//! title = "Enrolled"
//! categories = "programme"
//! values = ["enrolled"]
//! # stacked x_title y_title width height
//!
//! [[sheet]]                                # a further sheet, with the same parameters
//! name = "Totals"
//! query = "select count(*) as n from …"
//! # layout, column, conditional and chart as above: [sheet.layout], [[sheet.column]], …
//!
//! [limits]                                 # each may be left out for the service's own
//! timeout_secs = 300
//! max_rows = 1000000
//! max_bytes = 500000000
//! on_limit = "fail"                        # or "truncate", which marks the file as cut
//! over_estimate = "run"                    # or "refuse" at submit when the planner expects more
//! max_concurrent_per_user = 2
//!
//! [result]
//! expires_after_days = 30
//! ```

use std::num::{NonZeroU32, NonZeroU64};

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use self::document::Document;
use self::layout::Look;
use super::parameters::Parameter;
use super::sql::NamedSql;
use crate::writer::xlsx::layout::{CellStyle, Total};

mod check;
mod document;
mod error;
mod layout;
mod slug;
mod templates;
#[cfg(test)]
mod tests;
mod title;

pub use self::error::{DefinitionError, DefinitionFault};
pub use self::layout::{LayoutSpec, SheetSpec, SheetView};
pub use self::slug::{MAX_SLUG_LENGTH, Slug, SlugError};
pub use self::templates::{TemplateError, load_templates};
pub use self::title::{Place, TitleLine};

/// A report that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    slug: Slug,
    title: String,
    description: String,
    permission: Option<String>,
    time_zone: Tz,
    tags: Vec<String>,
    sql: String,
    query: NamedSql,
    parameters: Vec<Parameter>,
    columns: Vec<ColumnSpec>,
    limits: DefinitionLimits,
    expires_after_days: Option<NonZeroU32>,
    split_by: Option<String>,
    sheet_name: Option<String>,
    look: Look,
    more_sheets: Vec<SheetSpec>,
}

/// How a column of the result is shown. Columns without one are shown by their type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSpec {
    /// The column's name in the result of the query.
    pub name: String,
    /// The header that a person reads, `None` for the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How values are shown, `None` for the type's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ColumnFormat>,
    /// A number format of Excel's, instead of one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_format: Option<String>,
    /// Width in Excel's character units, `None` for a width from label and type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<f64>,
    /// How its cells look in a workbook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<CellStyle>,
    /// What stands below it in a workbook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Total>,
}

/// How the values of a column are shown where the format can show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnFormat {
    /// No decimals.
    Integer,
    /// One decimal.
    Decimal1,
    /// Two decimals.
    Decimal2,
    /// Three decimals.
    Decimal3,
    /// A fraction of one, shown as percent with one decimal.
    Percent,
    /// Year, month, day.
    Date,
    /// Date and time of day to the second.
    DateTime,
    /// Time of day to the second.
    Time,
    /// As it is, also where it looks like a number.
    Text,
}

impl ColumnFormat {
    /// The number format of a spreadsheet (ECMA-376 part 1, 18.8.31).
    pub const fn number_format(self) -> &'static str {
        match self {
            Self::Integer => "0",
            Self::Decimal1 => "0.0",
            Self::Decimal2 => "0.00",
            Self::Decimal3 => "0.000",
            Self::Percent => "0.0%",
            Self::Date => "yyyy-mm-dd",
            Self::DateTime => "yyyy-mm-dd hh:mm:ss",
            Self::Time => "hh:mm:ss",
            Self::Text => "@",
        }
    }
}

/// What an execution may use. `None` is the service's own limit; a definition's limit never raises
/// that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefinitionLimits {
    /// Wall time of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<NonZeroU64>,
    /// Rows of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<NonZeroU64>,
    /// Bytes of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<NonZeroU64>,
    /// What happens at `max_rows` and `max_bytes`.
    #[serde(default)]
    pub on_limit: OnLimit,
    /// What happens to a submit of which the planner expects too much.
    #[serde(default, skip_serializing_if = "OverEstimate::is_run")]
    pub over_estimate: OverEstimate,
    /// Executions of this definition that one user may have in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_per_user: Option<NonZeroU32>,
}

/// What happens to an execution at its limit of rows or bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OnLimit {
    /// It fails, with a code that says so.
    #[default]
    Fail,
    /// The file ends there, and is marked as truncated wherever it is shown.
    Truncate,
}

/// What happens to a submit when the planner expects more rows than the report may have, or, for a
/// workbook, than a sheet holds. Estimates can be far off, in both directions.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OverEstimate {
    /// It runs, and its limits decide.
    #[default]
    Run,
    /// It is refused with a code, and nothing is queued.
    Refuse,
}

impl OverEstimate {
    // Left out where it is the default: specs from before there was a choice keep their digest.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_run(&self) -> bool {
        *self == Self::Run
    }
}

impl Definition {
    /// Reads a template: `<slug>.toml` and `<slug>.sql`, which errors name.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, see [`DefinitionError`].
    pub fn from_template(slug: Slug, toml: &str, sql: &str) -> Result<Self, DefinitionError> {
        let (spec_file, sql_file) = (format!("{slug}.toml"), format!("{slug}.sql"));
        let document = Document::from_toml(toml, &spec_file)?;
        check::definition(slug, document, sql, &spec_file, &sql_file)
    }

    /// Reads what the database keeps: [`Self::spec`] and [`Self::sql`]. Errors call them `spec`
    /// and `query`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, see [`DefinitionError`].
    pub fn from_json(slug: Slug, spec: &Json, sql: &str) -> Result<Self, DefinitionError> {
        let document = Document::from_json(spec, "spec")?;
        check::definition(slug, document, sql, "spec", "query")
    }

    /// Everything but slug and SQL as JSON, with the keys of the template and in their order.
    /// Defaults are filled in, so that one meaning has one spec.
    pub fn spec(&self) -> Json {
        serde_json::to_value(self.document()).expect("its keys are strings and its numbers finite")
    }

    /// The declarations of the parameters alone: a JSON array, in the form of [`Self::spec`].
    pub fn parameters_json(&self) -> Json {
        let documents: Vec<_> = self.parameters.iter().map(Parameter::document).collect();
        serde_json::to_value(documents).expect("its keys are strings and its numbers finite")
    }

    /// SHA-256 of the content, in hex: of the spec with sorted keys and of the SQL. It changes when
    /// the content does and at no other time; the slug has no part in it.
    pub fn content_digest(&self) -> String {
        let mut content = serde_json::json!({"spec": self.spec(), "sql": self.sql});
        content.sort_all_objects();
        hex::encode(Sha256::digest(content.to_string()))
    }

    /// The SQL to prepare, with `($n::type)` for each parameter.
    pub fn statement(&self) -> String {
        self.statement_of(&self.query)
    }

    /// The SQL to prepare for a query of one of its sheets.
    pub fn statement_of(&self, query: &NamedSql) -> String {
        query.render(|name| {
            let parameter = self.parameters.iter().find(|parameter| parameter.name() == name);
            parameter.expect("every name in the SQL is declared").pg_type()
        })
    }

    /// The name in URLs and file names.
    pub fn slug(&self) -> &Slug {
        &self.slug
    }

    /// The name that people read.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What the report shows; empty if the template does not say.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The codename of the permission that its callers need, `None` if every user may run it.
    pub fn permission(&self) -> Option<&str> {
        self.permission.as_deref()
    }

    /// The zone of "today" and of the instants in its files.
    pub fn time_zone(&self) -> Tz {
        self.time_zone
    }

    /// Words to find it by.
    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// The SQL as its author wrote it.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The SQL with its placeholders found.
    pub fn query(&self) -> &NamedSql {
        &self.query
    }

    /// The parameters in the order of their declaration: exactly the names in the SQL of all
    /// sheets.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// How columns are shown, in the order of their declaration.
    pub fn columns(&self) -> &[ColumnSpec] {
        &self.columns
    }

    /// What an execution may use.
    pub fn limits(&self) -> &DefinitionLimits {
        &self.limits
    }

    /// After how many days results are deleted, `None` for the service's own time.
    pub fn expires_after_days(&self) -> Option<NonZeroU32> {
        self.expires_after_days
    }

    /// The column by which the result may be read in ranges over several connections. The rows come
    /// in ascending order of it, NULL last: a query that is ordered must be ordered by it.
    pub fn split_by(&self) -> Option<&str> {
        self.split_by.as_deref()
    }
}
