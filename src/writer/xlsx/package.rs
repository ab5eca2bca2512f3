//! The workbook's package: everything but the rows.
//!
//! `rust_xlsxwriter` makes it and stays the only owner of styles, widths, panes and filters. It
//! is asked for a workbook of the right sheets with next to nothing in them, and its parts are
//! taken apart: what stands before and after a sheet's rows, which style each column has, and the
//! parts that are copied as they are.

use std::borrow::Cow;
use std::io::{Cursor, Read};

use rust_xlsxwriter::{Color, DocProperties, Format, FormatBorder, Workbook, Worksheet, XlsxError};
use zip::ZipArchive;

use super::super::{Column, Kind, WriteError};

/// Sheet names are limited to this many UTF-16 code units.
const MAX_NAME: usize = 31;
/// Excel's column width in characters is at most this.
const MAX_WIDTH: f64 = 255.0;
/// A header asks for no more than this width, in characters.
const MAX_HEADER_WIDTH: usize = 50;

/// What the package of a report depends on.
#[derive(Debug)]
pub(super) struct Package {
    columns: Vec<Column>,
    sheet_name: String,
}

/// Which cell formats the rows use: indices into `xl/styles.xml`.
#[derive(Debug)]
pub(super) struct Styles {
    /// Of the header row.
    pub header: u32,
    /// Of a remark below the rows.
    pub remark: u32,
    /// Of the data, by column.
    pub columns: Vec<u32>,
}

impl Package {
    pub fn new(columns: Vec<Column>, sheet_name: &str) -> Self {
        Self { columns, sheet_name: legal_name(sheet_name) }
    }

    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The parts of a workbook whose sheets end in these rows, headers included.
    pub fn parts(&self, last_rows: &[u32]) -> Result<Parts, WriteError> {
        let bytes = self.workbook(last_rows).map_err(|error| failed(&error))?;
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| failed(&error))?;
        Ok(Parts { archive })
    }

    fn workbook(&self, last_rows: &[u32]) -> Result<Vec<u8>, XlsxError> {
        let mut workbook = Workbook::new();
        workbook.set_zip_compression_level(1);
        let properties = DocProperties::new().set_title(&self.sheet_name).set_author("Registrar");
        workbook.set_properties(&properties);
        for (index, &last_row) in last_rows.iter().enumerate() {
            let sheet = workbook.add_worksheet();
            sheet.set_name(numbered_name(&self.sheet_name, index + 1))?;
            self.fill(sheet, last_row)?;
        }
        workbook.save_to_buffer()
    }

    /// Formats a sheet as the report's, and shows every style in one cell.
    fn fill(&self, sheet: &mut Worksheet, last_row: u32) -> Result<(), XlsxError> {
        let header = header_format();
        for (column, index) in self.columns.iter().zip(0_u16..) {
            sheet.set_column_width(index, width(column))?;
            let format = data_format(column);
            sheet.set_column_format(index, &format)?;
            sheet.write_number_with_format(0, index, 0, &header)?;
            sheet.write_number_with_format(1, index, 0, &format)?;
        }
        sheet.write_number_with_format(2, 0, 0, &Format::new().set_bold())?;
        sheet.set_freeze_panes(1, 0)?;
        let last_column = self.columns.len().saturating_sub(1) as u16;
        sheet.autofilter(0, 0, last_row - 1, last_column)?;
        Ok(())
    }
}

/// A workbook of the library, to be read part by part.
#[derive(Debug)]
pub(super) struct Parts {
    archive: ZipArchive<Cursor<Vec<u8>>>,
}

impl Parts {
    /// Names of the parts that are not sheets, in the library's order.
    pub fn names(&self) -> Result<Vec<String>, WriteError> {
        let names: Result<Vec<String>, _> =
            self.archive.file_names().map(|name| name.map(Cow::into_owned)).collect();
        let mut names = names.map_err(|error| failed(&error))?;
        names.retain(|name| !name.starts_with("xl/worksheets/"));
        Ok(names)
    }

    /// One part as the package has it.
    pub fn read(&mut self, name: &str) -> Result<String, WriteError> {
        let mut part = self.archive.by_name(name).map_err(|error| failed(&error))?;
        let mut text = String::new();
        part.read_to_string(&mut text)?;
        if name == "docProps/core.xml" {
            // The same rows give the same file: when it was made is in the manifest.
            remove(&mut text, "<dcterms:created", "</dcterms:created>");
            remove(&mut text, "<dcterms:modified", "</dcterms:modified>");
        }
        Ok(text)
    }

    /// What stands before and after the rows of the sheet with this number, from 1.
    pub fn around_rows(&mut self, number: usize) -> Result<(String, String), WriteError> {
        let mut sheet = self.read(&sheet_path(number))?;
        // The extent is not known when the first byte is written; it is optional (18.3.1.35).
        remove(&mut sheet, "<dimension", "/>");
        let (head, rest) = sheet.split_once("<sheetData>").ok_or_else(unknown_layout)?;
        let (_, tail) = rest.split_once("</sheetData>").ok_or_else(unknown_layout)?;
        Ok((format!("{head}<sheetData>"), format!("</sheetData>{tail}")))
    }

    /// The styles of the first sheet, read from the cells that show them.
    pub fn styles(&mut self, columns: usize) -> Result<Styles, WriteError> {
        let sheet = self.read(&sheet_path(1))?;
        let cells: Vec<u32> = sheet.split("<c r=").skip(1).map(style_of).collect();
        match cells.as_slice() {
            [header, .., remark] if cells.len() == 2 * columns + 1 => Ok(Styles {
                header: *header,
                remark: *remark,
                columns: cells[columns..2 * columns].to_vec(),
            }),
            _ => Err(unknown_layout()),
        }
    }
}

/// The path of the sheet with this number, from 1.
pub(super) fn sheet_path(number: usize) -> String {
    format!("xl/worksheets/sheet{number}.xml")
}

/// Reads `"A1" s="3"><v>…`; a cell without the attribute has style 0.
fn style_of(cell: &str) -> u32 {
    let attributes = cell.split('>').next().unwrap_or_default();
    attributes
        .split_once(" s=\"")
        .and_then(|(_, rest)| rest.split('"').next())
        .and_then(|index| index.parse().ok())
        .unwrap_or(0)
}

fn remove(text: &mut String, start: &str, end: &str) {
    if let Some(from) = text.find(start)
        && let Some(length) = text[from..].find(end)
    {
        text.replace_range(from..from + length + end.len(), "");
    }
}

fn failed(error: &dyn std::error::Error) -> WriteError {
    WriteError::Workbook(error.to_string())
}

fn unknown_layout() -> WriteError {
    WriteError::Workbook("the library's sheet has an unknown layout".to_owned())
}

pub(super) fn header_format() -> Format {
    Format::new()
        .set_bold()
        .set_background_color(Color::RGB(0x00D9_E1F2))
        .set_border_bottom(FormatBorder::Thin)
}

pub(super) fn data_format(column: &Column) -> Format {
    let default = match column.kind {
        // Excel's general format would show identifiers of 12 digits and more as 1.23E+11.
        Kind::Int => Some("0"),
        Kind::Date => Some("yyyy-mm-dd"),
        Kind::Timestamp | Kind::TimestampTz => Some("yyyy-mm-dd hh:mm:ss"),
        Kind::Time => Some("hh:mm:ss"),
        Kind::Bool
        | Kind::Float
        | Kind::Numeric
        | Kind::Text
        | Kind::Json
        | Kind::Bytes
        | Kind::Uuid => None,
    };
    match column.number_format.as_deref().or(default) {
        Some(format) => Format::new().set_num_format(format),
        None => Format::new(),
    }
}

/// The column's width in characters: as declared, or with room for the header and its filter.
pub(super) fn width(column: &Column) -> f64 {
    if let Some(width) = column.width.filter(|width| width.is_finite() && *width > 0.0) {
        return width.min(MAX_WIDTH);
    }
    let content = match column.kind {
        Kind::Bool => 8,
        Kind::Int | Kind::Date | Kind::Time => 12,
        Kind::Float | Kind::Numeric => 14,
        Kind::Timestamp | Kind::TimestampTz => 20,
        Kind::Text | Kind::Bytes => 24,
        Kind::Json | Kind::Uuid => 38,
    };
    let header = (column.label.chars().count() + 4).min(MAX_HEADER_WIDTH);
    content.max(header) as f64
}

/// A name that Excel accepts: 1 to 31 units, none of `[]:*?/\`, no apostrophe at either end, and
/// not the reserved word.
fn legal_name(name: &str) -> String {
    let replaced: String = name
        .chars()
        .map(|character| match character {
            '[' | ']' | ':' | '*' | '?' | '/' | '\\' | '\u{fffe}' | '\u{ffff}' => '_',
            character if character.is_control() => '_',
            character => character,
        })
        .collect();
    let edge = |character: char| character == '\'' || character.is_whitespace();
    let name = first_units(replaced.trim_matches(edge), MAX_NAME).trim_end_matches(edge);
    match name {
        "" => "Report".to_owned(),
        name if name.eq_ignore_ascii_case("history") => format!("{name}_"),
        name => name.to_owned(),
    }
}

fn numbered_name(name: &str, number: usize) -> String {
    if number == 1 {
        return name.to_owned();
    }
    let suffix = format!(" ({number})");
    format!("{}{suffix}", first_units(name, MAX_NAME - suffix.len()))
}

fn first_units(text: &str, max: usize) -> &str {
    let mut units = 0;
    let end = text.char_indices().find(|(_, character)| {
        units += character.len_utf16();
        units > max
    });
    end.map_or(text, |(index, _)| &text[..index])
}
