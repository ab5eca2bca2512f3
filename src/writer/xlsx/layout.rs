//! How the sheets of a workbook look beyond the kinds of their columns: what a report declares and
//! the writer carries out.
//!
//! [`Conditional`] and [`Chart`] speak of columns by name (`C = String`) where they are declared,
//! and by index (`C = usize`) once the columns of the result are known.

use serde::{Deserialize, Serialize};

use super::super::{Column, Kind};

/// One sheet of a workbook: the rows of one query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sheet {
    /// Its name; made legal for Excel and unique by the writer.
    pub name: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// How it looks.
    pub layout: SheetLayout,
}

/// How a sheet looks. The default is a header that stays in view, with filters.
#[derive(Debug, Clone, PartialEq)]
pub struct SheetLayout {
    /// Lines above the header, with an empty row below them.
    pub title: Vec<String>,
    /// Style of the header, on top of its own.
    pub header: CellStyle,
    /// Whether the rows down to the header stay in view.
    pub freeze_header: bool,
    /// How many columns stay in view.
    pub freeze_columns: u16,
    /// Whether the header has filters.
    pub autofilter: bool,
    /// Styles of columns, by index.
    pub styles: Vec<(usize, CellStyle)>,
    /// What stands below columns, by index.
    pub totals: Vec<(usize, Total)>,
    /// The word before the totals, in the first column if that has none.
    pub totals_label: String,
    /// Rules that show values by colour.
    pub conditionals: Vec<Conditional<usize>>,
    /// Charts, right of the columns.
    pub charts: Vec<Chart<usize>>,
}

impl Default for SheetLayout {
    fn default() -> Self {
        Self {
            title: Vec::new(),
            header: CellStyle::default(),
            freeze_header: true,
            freeze_columns: 0,
            autofilter: true,
            styles: Vec::new(),
            totals: Vec::new(),
            totals_label: "Total".to_owned(),
            conditionals: Vec::new(),
            charts: Vec::new(),
        }
    }
}

/// How a cell looks. What is not said stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CellStyle {
    /// Heavier letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bold: Option<bool>,
    /// Slanted letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub italic: Option<bool>,
    /// Colour of the letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<Rgb>,
    /// Colour behind them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<Rgb>,
    /// Where the text stands in the cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<Align>,
    /// Whether long texts take several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrap: Option<bool>,
}

/// Where a text stands in its cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Align {
    /// At the left edge.
    Left,
    /// In the middle.
    Center,
    /// At the right edge.
    Right,
}

/// A colour, written `#1F4E78`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rgb(u32);

impl Rgb {
    /// From 0xRRGGBB; higher bits are dropped.
    pub const fn new(value: u32) -> Self {
        Self(value & 0x00FF_FFFF)
    }

    /// As 0xRRGGBB.
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl TryFrom<String> for Rgb {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.strip_prefix('#')
            .filter(|digits| digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or("a colour must be written like #1F4E78")
    }
}

impl From<Rgb> for String {
    fn from(color: Rgb) -> Self {
        format!("#{:06X}", color.0)
    }
}

/// What stands below a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Total {
    /// The values added up.
    Sum,
    /// Their mean.
    Avg,
    /// How many there are, NULL apart.
    Count,
    /// The least.
    Min,
    /// The greatest.
    Max,
}

impl Total {
    /// Whether columns of this kind can have it.
    pub const fn fits(self, kind: Kind) -> bool {
        match self {
            Self::Count => true,
            Self::Sum | Self::Avg => matches!(kind, Kind::Int | Kind::Float | Kind::Numeric),
            Self::Min | Self::Max => matches!(
                kind,
                Kind::Int
                    | Kind::Float
                    | Kind::Numeric
                    | Kind::Date
                    | Kind::Timestamp
                    | Kind::TimestampTz
                    | Kind::Time
            ),
        }
    }
}

/// A rule that shows the values of a column by colour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Conditional<C> {
    /// A bar in each cell, as long as its value is large.
    DataBar {
        /// The column.
        column: C,
        /// Colour of the bars.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        color: Option<Rgb>,
    },
    /// A background between two or three colours.
    ColorScale {
        /// The column.
        column: C,
        /// At the least value.
        low: Rgb,
        /// At the median, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        middle: Option<Rgb>,
        /// At the greatest value.
        high: Rgb,
    },
    /// A style for the cells that a comparison holds for.
    Cell {
        /// The column.
        column: C,
        /// The comparison.
        operator: Operator,
        /// What the cell is compared with.
        value: Operand,
        /// The upper end, of `between` and `not_between` only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        and: Option<Operand>,
        /// How those cells look.
        style: CellStyle,
    },
}

impl<C> Conditional<C> {
    /// The column that it shows.
    pub const fn column(&self) -> &C {
        match self {
            Self::DataBar { column, .. }
            | Self::ColorScale { column, .. }
            | Self::Cell { column, .. } => column,
        }
    }

    /// The same rule for another name of its column.
    pub fn with_column<D>(self, column: D) -> Conditional<D> {
        match self {
            Self::DataBar { column: _, color } => Conditional::DataBar { column, color },
            Self::ColorScale { column: _, low, middle, high } => {
                Conditional::ColorScale { column, low, middle, high }
            }
            Self::Cell { column: _, operator, value, and, style } => {
                Conditional::Cell { column, operator, value, and, style }
            }
        }
    }
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// Equal to the value.
    #[serde(rename = "=")]
    Equal,
    /// Not equal to it.
    #[serde(rename = "!=")]
    NotEqual,
    /// Greater.
    #[serde(rename = ">")]
    Greater,
    /// Greater or equal.
    #[serde(rename = ">=")]
    GreaterOrEqual,
    /// Less.
    #[serde(rename = "<")]
    Less,
    /// Less or equal.
    #[serde(rename = "<=")]
    LessOrEqual,
    /// From the value to the second one, both included.
    #[serde(rename = "between")]
    Between,
    /// Outside of that.
    #[serde(rename = "not_between")]
    NotBetween,
}

impl Operator {
    /// Whether there is a second value.
    pub const fn takes_two(self) -> bool {
        matches!(self, Self::Between | Self::NotBetween)
    }
}

/// What a cell is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Operand {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// A chart of columns of its sheet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chart<C> {
    /// Its form.
    #[serde(rename = "type")]
    pub kind: ChartKind,
    /// What stands above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The column that names the points.
    pub categories: C,
    /// The columns of numbers, a series each.
    pub values: Vec<C>,
    /// Series on top of each other instead of side by side.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stacked: bool,
    /// Title of the axis of the categories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_title: Option<String>,
    /// Title of the axis of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y_title: Option<String>,
    /// Width in pixels.
    #[serde(default = "default_width")]
    pub width: u32,
    /// Height in pixels.
    #[serde(default = "default_height")]
    pub height: u32,
}

const fn default_width() -> u32 {
    640
}

const fn default_height() -> u32 {
    320
}

/// The form of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChartKind {
    /// Points joined by lines.
    Line,
    /// Upright bars.
    Column,
    /// Bars to the right.
    Bar,
    /// Parts of a whole: one series.
    Pie,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_six_hexadecimal_digits() {
        for (text, value) in [("#000000", Some(0)), ("#1f4E78", Some(0x001F_4E78))] {
            assert_eq!(Rgb::try_from(text.to_owned()).ok().map(Rgb::value), value);
        }
        for text in ["", "#", "1F4E78", "#1F4E7", "#1F4E788", "#+F4E78", "red"] {
            assert!(Rgb::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(String::from(Rgb::new(0xAB)), "#0000AB");
    }
}
