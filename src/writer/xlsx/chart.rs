//! Charts, and the values that they show.
//!
//! A chart points to cells; beside that a file keeps the values of those cells for readers that
//! draw without computing. They are gathered while the rows pass, for as many rows as a chart
//! shows at most, so that memory does not grow with the rows.

use std::collections::BTreeMap;

use rust_xlsxwriter::{self as library, ChartType, Worksheet, XlsxError};

use super::super::calendar::Zone;
use super::super::text::push_text;
use super::super::{Cell, Column};
use super::layout::{Chart, ChartKind};
use super::serial;

/// A chart shows at most this many rows, the first ones: ten years of days.
pub(super) const MAX_ROWS: u32 = 4_000;
/// Longest text of a point that is kept beside its cell, in characters.
const MAX_POINT_TEXT: usize = 255;
/// Pixels of a row as Excel has it by default.
const ROW_PIXELS: u32 = 20;
/// Rows between two charts.
const GAP_ROWS: u32 = 1;

/// The values of the columns that charts show.
#[derive(Debug, Default)]
pub(super) struct Points {
    columns: BTreeMap<usize, Vec<Point>>,
    rows: u32,
}

#[derive(Debug)]
enum Point {
    Nothing,
    Number(f64),
    Text(String),
}

impl Points {
    pub fn new(charts: &[Chart<usize>]) -> Self {
        let columns =
            charts.iter().flat_map(|chart| chart.values.iter().chain([&chart.categories]));
        Self { columns: columns.map(|&column| (column, Vec::new())).collect(), rows: 0 }
    }

    /// Whether there is a chart that has not all its rows.
    pub fn is_open(&self) -> bool {
        self.rows < MAX_ROWS && !self.columns.is_empty()
    }

    pub fn add(&mut self, column: usize, cell: Cell<'_>, zone: &mut Zone) {
        if let Some(points) = self.columns.get_mut(&column) {
            points.push(Point::of(cell, zone));
        }
    }

    pub fn end_row(&mut self) {
        self.rows += 1;
    }

    /// Puts the values into the library's sheet, which then copies them into its charts. `header`
    /// is the row of the header, from 0, and `end` the first row that has none.
    pub fn write(
        &self,
        sheet: &mut Worksheet,
        columns: &[Column],
        header: u32,
        end: u32,
    ) -> Result<(), XlsxError> {
        for (&index, points) in &self.columns {
            let column = column_number(index);
            sheet.write_string(header, column, point_text(&columns[index].label))?;
            for (point, row) in points.iter().zip(header + 1..end) {
                match point {
                    Point::Nothing => continue,
                    Point::Number(number) => sheet.write_number(row, column, *number)?,
                    Point::Text(text) => sheet.write_string(row, column, text)?,
                };
            }
        }
        Ok(())
    }
}

impl Point {
    fn of(cell: Cell<'_>, zone: &mut Zone) -> Self {
        let number = match cell {
            Cell::Null => return Self::Nothing,
            Cell::Int(value) => Some(value as f64),
            Cell::Float4(value) => Some(f64::from(value)),
            Cell::Float8(value) => Some(value),
            Cell::Date(days) => serial::of_day(i64::from(days)).map(|serial| serial as f64),
            Cell::Text(text) | Cell::Json(text) => return Self::Text(point_text(text)),
            Cell::Numeric(_)
            | Cell::Bool(_)
            | Cell::Bytes(_)
            | Cell::Timestamp(_)
            | Cell::TimestampTz(_)
            | Cell::Time(_)
            | Cell::Uuid(_) => None,
        };
        if let Some(number) = number.filter(|number| number.is_finite()) {
            return Self::Number(number);
        }
        let mut bytes = Vec::new();
        push_text(&mut bytes, cell, zone);
        let text = String::from_utf8_lossy(&bytes);
        match (cell, text.parse::<f64>()) {
            (Cell::Numeric(_), Ok(number)) if number.is_finite() => Self::Number(number),
            _ => Self::Text(point_text(&text)),
        }
    }
}

fn point_text(text: &str) -> String {
    text.chars().take(MAX_POINT_TEXT).collect()
}

/// Places the charts of a sheet right of its columns, one below the other. `last` is its last row
/// of data, from 0, and `header` that of the header.
pub(super) fn insert(
    sheet: &mut Worksheet,
    name: &str,
    charts: &[Chart<usize>],
    columns: usize,
    (header, last): (u32, u32),
) -> Result<(), XlsxError> {
    let column = column_number(columns + 1);
    let mut row = header;
    let last = last.min(header + MAX_ROWS);
    for chart in charts {
        sheet.insert_chart(row, column, &library_chart(chart, name, header, last))?;
        row += chart.height.div_ceil(ROW_PIXELS) + GAP_ROWS;
    }
    Ok(())
}

fn library_chart(chart: &Chart<usize>, sheet: &str, header: u32, last: u32) -> library::Chart {
    let kind = match (chart.kind, chart.stacked) {
        (ChartKind::Line, false) => ChartType::Line,
        (ChartKind::Line, true) => ChartType::LineStacked,
        (ChartKind::Column, false) => ChartType::Column,
        (ChartKind::Column, true) => ChartType::ColumnStacked,
        (ChartKind::Bar, false) => ChartType::Bar,
        (ChartKind::Bar, true) => ChartType::BarStacked,
        (ChartKind::Pie, _) => ChartType::Pie,
    };
    let mut made = library::Chart::new(kind);
    let categories = column_number(chart.categories);
    for &values in &chart.values {
        let values = column_number(values);
        made.add_series()
            .set_name((sheet, header, values))
            .set_categories((sheet, header + 1, categories, last, categories))
            .set_values((sheet, header + 1, values, last, values));
    }
    if let Some(title) = &chart.title {
        made.title().set_name(title);
    }
    if let Some(title) = &chart.x_title {
        made.x_axis().set_name(title);
    }
    if let Some(title) = &chart.y_title {
        made.y_axis().set_name(title);
    }
    if chart.kind == ChartKind::Bar {
        // The first row on top, as in the sheet.
        made.x_axis().set_reverse();
    }
    if chart.values.len() == 1 && chart.kind != ChartKind::Pie {
        made.legend().set_hidden();
    }
    made.set_width(chart.width).set_height(chart.height);
    made
}

/// The library's number of a column. There are at most 16,384; what would stand right of the last
/// one stands on it.
pub(super) fn column_number(index: usize) -> u16 {
    index.min(super::MAX_COLUMNS - 1) as u16
}
