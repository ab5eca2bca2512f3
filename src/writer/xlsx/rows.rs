//! The rows of a sheet as XML, in a buffer.
//!
//! Cells carry no reference (`r="C7"`): it is optional (ISO/IEC 29500-1, 18.3.1.4), and a cell
//! without one stands beside the cell before it. Half of the file and a third of the time would
//! go into them. So where NULLs stand between two values there are empty cells in the columns'
//! styles; at the end of a row there are none.

use std::collections::BTreeMap;
use std::io::Write;

use super::super::calendar::Zone;
use super::super::number::{held_decimal, push_int};
use super::super::text::push_text;
use super::super::{Adjustment, Cell, Column};
use super::package::Styles;
use super::{markup, serial};

const END_VALUE: &[u8] = b"</v></c>";
const END_STRING: &[u8] = b"</t></is></c>";
const END_ROW: &[u8] = b"</row>";

/// Formats cells into a buffer that its owner empties.
#[derive(Debug)]
pub(super) struct Rows {
    /// XML that is not written yet.
    pub buffer: Vec<u8>,
    /// Cells that are not shown as they are.
    pub adjusted: BTreeMap<Adjustment, u64>,
    columns: Vec<Markup>,
    header: (Markup, Vec<String>),
    remark: Markup,
    totals: Vec<Markup>,
    title: Vec<Markup>,
    zone: Zone,
    scratch: Vec<u8>,
    /// From 1, within the sheet.
    number: u32,
    digits: Vec<u8>,
    next_column: usize,
    /// Up to which column the row has cells in the buffer.
    filled: usize,
}

impl Rows {
    pub fn new(columns: &[Column], styles: &Styles, zone: Zone, buffer: Vec<u8>) -> Self {
        let labels = columns.iter().map(|column| column.label.clone()).collect();
        Self {
            buffer,
            adjusted: BTreeMap::new(),
            columns: styles.columns.iter().map(|&style| Markup::new(style)).collect(),
            header: (Markup::new(styles.header), labels),
            remark: Markup::new(styles.remark),
            totals: styles.totals.iter().map(|&style| Markup::new(style)).collect(),
            title: styles.title.iter().map(|&style| Markup::new(style)).collect(),
            zone,
            scratch: Vec::new(),
            number: 0,
            digits: Vec::new(),
            next_column: 0,
            filled: 0,
        }
    }

    /// The number of the last row begun, from 1.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The column of the next cell; 0 between rows.
    pub const fn next_column(&self) -> usize {
        self.next_column
    }

    /// Begins a sheet: what stands before its rows, the title with an empty row below, and the
    /// header.
    pub fn begin_sheet(&mut self, head: &str, title: &[String]) {
        self.buffer.extend_from_slice(head.as_bytes());
        self.number = 0;
        for (index, line) in title.iter().enumerate() {
            let style = index.min(self.title.len() - 1);
            std::mem::swap(&mut self.remark, &mut self.title[style]);
            self.push_remark(line);
            std::mem::swap(&mut self.remark, &mut self.title[style]);
        }
        if !title.is_empty() {
            self.begin_row();
            self.end_row();
        }
        self.begin_row();
        let (markup, labels) = &self.header;
        for label in labels {
            self.buffer.extend_from_slice(&markup.string);
            push_inline(&mut self.buffer, label);
        }
        self.buffer.extend_from_slice(END_ROW);
    }

    /// Begins the next row.
    pub fn begin_row(&mut self) {
        self.number += 1;
        self.digits.clear();
        push_int(&mut self.digits, i64::from(self.number));
        self.buffer.extend_from_slice(b"<row r=\"");
        self.buffer.extend_from_slice(&self.digits);
        self.buffer.extend_from_slice(b"\">");
        self.filled = 0;
        self.next_column = 0;
    }

    /// Ends the row. A row of nothing but NULLs leaves nothing behind, as with the library.
    pub fn end_row(&mut self) {
        if self.filled > 0 {
            self.buffer.extend_from_slice(END_ROW);
        } else {
            let tag = self.digits.len() + b"<row r=\"\">".len();
            self.buffer.truncate(self.buffer.len() - tag);
        }
        self.next_column = 0;
    }

    /// Adds a row of one text.
    pub fn push_remark(&mut self, text: &str) {
        self.begin_row();
        self.buffer.extend_from_slice(&self.remark.string);
        push_inline(&mut self.buffer, text);
        self.buffer.extend_from_slice(END_ROW);
    }

    /// Adds a row of totals, a cell for each column.
    pub fn push_totals<'a>(&mut self, cells: impl Iterator<Item = Cell<'a>>) {
        std::mem::swap(&mut self.columns, &mut self.totals);
        self.begin_row();
        for cell in cells {
            self.push(cell);
        }
        self.end_row();
        std::mem::swap(&mut self.columns, &mut self.totals);
    }

    /// Adds the next cell of the row.
    pub fn push(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Null => {}
            Cell::Bool(value) => {
                self.begin_cell(|markup| &markup.bool);
                self.buffer.push(if value { b'1' } else { b'0' });
                self.buffer.extend_from_slice(END_VALUE);
            }
            Cell::Int(value) if serial::holds_int(value) => self.push_int(value),
            Cell::Float4(value) if value.is_finite() => self.push_number(value),
            Cell::Float8(value) if serial::holds_float(value) => self.push_number(value),
            Cell::Int(_) | Cell::Float4(_) | Cell::Float8(_) => {
                self.push_as_text(cell, Some(Adjustment::NumberAsText));
            }
            Cell::Numeric(_) => self.push_numeric(cell),
            Cell::Text(text) | Cell::Json(text) => self.push_string(text),
            // Two digits a byte: what is left out would be cut in any case.
            Cell::Bytes(bytes) => {
                self.push_as_text(Cell::Bytes(&bytes[..bytes.len().min(markup::MAX_TEXT)]), None);
            }
            Cell::Uuid(_) => self.push_as_text(cell, None),
            // Infinities lie outside of Excel's years.
            Cell::Date(days) => match serial::of_day(i64::from(days)) {
                Some(serial) => self.push_int(serial),
                None => self.push_as_text(cell, Some(Adjustment::DateAsText)),
            },
            Cell::Timestamp(micros) => self.push_moment(cell, serial::of_moment(micros)),
            Cell::TimestampTz(micros) => {
                let offset = i64::from(self.zone.offset_at(micros)) * 1_000_000;
                self.push_moment(cell, serial::of_moment(micros.saturating_add(offset)));
            }
            Cell::Time(micros) => {
                self.push_moment(cell, Some(serial::of_time(micros)).filter(|&time| time < 1.0));
            }
        }
        self.next_column += 1;
    }

    /// Begins the cell of the next column, after empty ones for the NULLs before it.
    fn begin_cell(&mut self, kind: impl Fn(&Markup) -> &[u8]) {
        for markup in &self.columns[self.filled..self.next_column] {
            self.buffer.extend_from_slice(&markup.empty);
        }
        self.buffer.extend_from_slice(kind(&self.columns[self.next_column]));
        self.filled = self.next_column + 1;
    }

    fn push_int(&mut self, value: i64) {
        self.begin_cell(|markup| &markup.number);
        push_int(&mut self.buffer, value);
        self.buffer.extend_from_slice(END_VALUE);
    }

    fn push_number(&mut self, value: impl std::fmt::Display) {
        self.begin_cell(|markup| &markup.number);
        write!(self.buffer, "{value}").expect("writing to memory cannot fail");
        self.buffer.extend_from_slice(END_VALUE);
    }

    fn push_moment(&mut self, cell: Cell<'_>, serial: Option<f64>) {
        match serial {
            Some(serial) => self.push_number(serial),
            None => self.push_as_text(cell, Some(Adjustment::DateAsText)),
        }
    }

    fn push_numeric(&mut self, cell: Cell<'_>) {
        let text = self.text_of(cell);
        if let Some(decimal) = held_decimal(&text) {
            self.begin_cell(|markup| &markup.number);
            self.buffer.extend_from_slice(decimal);
            self.buffer.extend_from_slice(END_VALUE);
            self.scratch = text;
        } else {
            self.push_ascii(text, Some(Adjustment::NumberAsText));
        }
    }

    fn push_as_text(&mut self, cell: Cell<'_>, adjustment: Option<Adjustment>) {
        let text = self.text_of(cell);
        self.push_ascii(text, adjustment);
    }

    /// The text of a cell in the scratch buffer, to be given back.
    fn text_of(&mut self, cell: Cell<'_>) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        push_text(&mut text, cell, &mut self.zone);
        text
    }

    fn push_ascii(&mut self, text: Vec<u8>, adjustment: Option<Adjustment>) {
        self.push_string(str::from_utf8(&text).expect("only text and JSON are not ASCII"));
        if let Some(adjustment) = adjustment {
            self.count(adjustment);
        }
        self.scratch = text;
    }

    fn push_string(&mut self, text: &str) {
        self.begin_cell(|markup| &markup.string);
        let pushed = push_inline(&mut self.buffer, text);
        if pushed.cut {
            self.count(Adjustment::TextCut);
        }
        if pushed.escaped {
            self.count(Adjustment::CharacterEscaped);
        }
    }

    fn count(&mut self, adjustment: Adjustment) {
        *self.adjusted.entry(adjustment).or_default() += 1;
    }
}

/// How the cells of a column begin, by what is in them.
#[derive(Debug)]
struct Markup {
    /// A whole cell.
    empty: Box<[u8]>,
    number: Box<[u8]>,
    bool: Box<[u8]>,
    /// Ends before the attributes of the text.
    string: Box<[u8]>,
}

impl Markup {
    fn new(style: u32) -> Self {
        let style = if style == 0 { String::new() } else { format!(" s=\"{style}\"") };
        let cell = |rest: &str| format!("<c{style}{rest}").into_bytes().into_boxed_slice();
        Self {
            empty: cell("/>"),
            number: cell("><v>"),
            bool: cell(" t=\"b\"><v>"),
            string: cell(" t=\"inlineStr\"><is><t"),
        }
    }
}

/// What had to be done to a text.
#[derive(Debug, Clone, Copy)]
struct Pushed {
    cut: bool,
    escaped: bool,
}

/// Appends the rest of a cell that was begun as a string.
fn push_inline(out: &mut Vec<u8>, text: &str) -> Pushed {
    let kept = markup::cut(text);
    let preserve = markup::needs_preserving(kept);
    out.extend_from_slice(if preserve { b" xml:space=\"preserve\">" } else { b">" });
    let escaped = markup::push_escaped(out, kept);
    out.extend_from_slice(END_STRING);
    Pushed { cut: kept.len() < text.len(), escaped }
}
