//! The workbook's package: everything but the rows.
//!
//! `rust_xlsxwriter` makes it and stays the only owner of styles, widths, panes and filters. It
//! is asked for a workbook of the right sheets with next to nothing in them, and its parts are
//! taken apart: what stands before and after a sheet's rows, which style each column has, and the
//! parts that are copied as they are.

use std::borrow::Cow;
use std::io::{Cursor, Read};

use rust_xlsxwriter::{
    Color, DocProperties, Format, FormatAlign, FormatBorder, Workbook, Worksheet, XlsxError,
};
use zip::ZipArchive;

use super::super::{Column, Kind, WriteError};
use super::chart::{self, Points};
use super::conditional;
use super::layout::{Align, CellStyle, Sheet, SheetLayout, Total};

/// Sheet names are limited to this many UTF-16 code units.
const MAX_NAME: usize = 31;
/// Excel's column width in characters is at most this.
const MAX_WIDTH: f64 = 255.0;
/// A header asks for no more than this width, in characters.
const MAX_HEADER_WIDTH: usize = 50;

/// What the package of a report depends on.
#[derive(Debug)]
pub(super) struct Package {
    title: String,
    sheets: Vec<Sheet>,
}

/// Which cell formats the rows of a sheet use: indices into `xl/styles.xml`.
#[derive(Debug)]
pub(super) struct Styles {
    /// Of the header row.
    pub header: u32,
    /// Of the data, by column.
    pub columns: Vec<u32>,
    /// Of a remark below the rows.
    pub remark: u32,
    /// Of the totals, by column; none if there are none.
    pub totals: Vec<u32>,
    /// Of the first and of every further line of the title; none if there are none.
    pub title: Vec<u32>,
}

/// A sheet of the file. The rows of a query that is too long for one go on in the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Which of the package's sheets, from 0.
    pub sheet: usize,
    /// Which of its pieces, from 0.
    pub number: usize,
    /// Its last row but for totals and remarks, from 1.
    pub last_row: u32,
}

impl Package {
    pub fn new(sheets: Vec<Sheet>) -> Self {
        let title = sheets.first().map(|sheet| legal_name(&sheet.name)).unwrap_or_default();
        let mut legal: Vec<Sheet> = Vec::with_capacity(sheets.len());
        for mut sheet in sheets {
            let name = legal_name(&sheet.name);
            sheet.name = free_name(&name, 1, |name| legal.iter().any(|s| same_name(&s.name, name)));
            legal.push(sheet);
        }
        Self { title, sheets: legal }
    }

    pub fn sheets(&self) -> &[Sheet] {
        &self.sheets
    }

    /// The row of the header of a piece, from 1.
    pub fn header_row(&self, sheet: usize, number: usize) -> u32 {
        match self.sheets[sheet].layout.title.len() {
            0 => 1,
            lines if number == 0 => lines as u32 + 2,
            _ => 1,
        }
    }

    /// The first and a further piece of each sheet, with a row each: what shows every style.
    pub fn specimens(&self) -> Vec<Piece> {
        let pieces = (0..self.sheets.len()).flat_map(|sheet| [(sheet, 0), (sheet, 1)]);
        let last_row = |sheet, number| self.header_row(sheet, number) + 1;
        pieces
            .map(|(sheet, number)| Piece { sheet, number, last_row: last_row(sheet, number) })
            .collect()
    }

    /// The parts of a workbook of these pieces. `points` are what its charts show, by sheet; none
    /// to show the styles instead.
    pub fn parts(&self, pieces: &[Piece], points: &[Points]) -> Result<Parts, WriteError> {
        let bytes = self.workbook(pieces, points).map_err(|error| failed(&error))?;
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| failed(&error))?;
        Ok(Parts { archive })
    }

    /// The names of these pieces, unique as Excel counts: without regard to case.
    pub fn names(&self, pieces: &[Piece]) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let name = &self.sheets[piece.sheet].name;
            let taken = |name: &str| {
                names.iter().chain(self.sheets.iter().map(|s| &s.name)).any(|n| same_name(n, name))
            };
            let name = match piece.number {
                0 => name.clone(),
                number => free_name(name, number + 1, taken),
            };
            names.push(name);
        }
        names
    }

    fn workbook(&self, pieces: &[Piece], points: &[Points]) -> Result<Vec<u8>, XlsxError> {
        let mut workbook = Workbook::new();
        workbook.set_zip_compression_level(1);
        let properties = DocProperties::new().set_title(&self.title).set_author("Registrar");
        workbook.set_properties(&properties);
        for (piece, name) in pieces.iter().zip(self.names(pieces)) {
            let sheet = workbook.add_worksheet();
            sheet.set_name(&name)?;
            self.fill(sheet, &name, *piece, points.get(piece.sheet))?;
        }
        workbook.save_to_buffer()
    }

    /// Formats a piece as the report's, with the points of its charts or with every style in a
    /// cell, in the order of [`Parts::styles`].
    fn fill(
        &self,
        sheet: &mut Worksheet,
        name: &str,
        piece: Piece,
        points: Option<&Points>,
    ) -> Result<(), XlsxError> {
        let Sheet { name: _, columns, layout } = &self.sheets[piece.sheet];
        let header_row = self.header_row(piece.sheet, piece.number) - 1;
        let last_row = piece.last_row - 1;
        let header = styled(header_format(), &layout.header);
        for (column, index) in columns.iter().zip(0_u16..) {
            sheet.set_column_width(index, width(column))?;
            let format = column_format(column, layout, index);
            sheet.set_column_format(index, &format)?;
            if points.is_none() {
                sheet.write_number_with_format(0, index, 0, &header)?;
                sheet.write_number_with_format(1, index, 0, &format)?;
            }
        }
        if points.is_none() {
            show_other_styles(sheet, columns, layout)?;
        }
        let frozen_rows = if layout.freeze_header { header_row + 1 } else { 0 };
        if frozen_rows > 0 || layout.freeze_columns > 0 {
            sheet.set_freeze_panes(frozen_rows, layout.freeze_columns)?;
        }
        if layout.autofilter {
            let last_column = columns.len().saturating_sub(1) as u16;
            sheet.autofilter(header_row, 0, last_row, last_column)?;
        }
        conditional::add(sheet, &layout.conditionals, (header_row + 1, last_row))?;
        if piece.number == 0 && last_row > header_row {
            let rows = (header_row, last_row);
            chart::insert(sheet, name, &layout.charts, columns.len(), rows)?;
            if let Some(points) = points {
                points.write(sheet, columns, header_row, last_row + 1)?;
            }
        }
        Ok(())
    }
}

/// Shows every style of a sheet but those of header and data in a cell.
fn show_other_styles(
    sheet: &mut Worksheet,
    columns: &[Column],
    layout: &SheetLayout,
) -> Result<(), XlsxError> {
    sheet.write_number_with_format(2, 0, 0, &Format::new().set_bold())?;
    if !layout.totals.is_empty() {
        for (column, index) in columns.iter().zip(0_u16..) {
            sheet.write_number_with_format(3, index, 0, &total_format(column, layout, index))?;
        }
    }
    if !layout.title.is_empty() {
        let first = Format::new().set_bold().set_font_size(14);
        sheet.write_number_with_format(4, 0, 0, &first)?;
        let further = Format::new().set_font_color(Color::RGB(0x0059_5959));
        sheet.write_number_with_format(5, 0, 0, &further)?;
    }
    Ok(())
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
        names.retain(|name| !name.starts_with("xl/worksheets/sheet"));
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

    /// The styles of the sheet with this number, from 1, read from the cells that show them.
    pub fn styles(
        &mut self,
        number: usize,
        columns: usize,
        layout: &SheetLayout,
    ) -> Result<Styles, WriteError> {
        let sheet = self.read(&sheet_path(number))?;
        let cells: Vec<u32> = sheet.split("<c r=").skip(1).map(style_of).collect();
        let totals = if layout.totals.is_empty() { 0 } else { columns };
        let title = if layout.title.is_empty() { 0 } else { 2 };
        if columns == 0 || cells.len() != 2 * columns + 1 + totals + title {
            return Err(unknown_layout());
        }
        Ok(Styles {
            header: cells[0],
            columns: cells[columns..2 * columns].to_vec(),
            remark: cells[2 * columns],
            totals: cells[2 * columns + 1..][..totals].to_vec(),
            title: cells[2 * columns + 1 + totals..].to_vec(),
        })
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

/// The format of a column's cells, with the style that the layout gives it.
fn column_format(column: &Column, layout: &SheetLayout, index: u16) -> Format {
    let format = data_format(column);
    match layout.styles.iter().find(|(styled, _)| *styled == usize::from(index)) {
        Some((_, style)) => styled(format, style),
        None => format,
    }
}

/// A column's format below a line, in bold. How many there are is a whole number whatever they are.
fn total_format(column: &Column, layout: &SheetLayout, index: u16) -> Format {
    let total = layout.totals.iter().find(|(column, _)| *column == usize::from(index));
    let format = match total {
        Some((_, Total::Count)) => Format::new().set_num_format("0"),
        Some((_, Total::Sum | Total::Avg | Total::Min | Total::Max)) | None => data_format(column),
    };
    format.set_bold().set_border_top(FormatBorder::Thin)
}

/// A format with what a style says.
pub(super) fn styled(mut format: Format, style: &CellStyle) -> Format {
    let CellStyle { bold, italic, color, background, align, wrap } = style;
    match bold {
        Some(true) => format = format.set_bold(),
        Some(false) => format = format.unset_bold(),
        None => {}
    }
    if *italic == Some(true) {
        format = format.set_italic();
    }
    if let Some(color) = color {
        format = format.set_font_color(conditional::color(*color));
    }
    if let Some(background) = background {
        format = format.set_background_color(conditional::color(*background));
    }
    if let Some(align) = align {
        format = format.set_align(match align {
            Align::Left => FormatAlign::Left,
            Align::Center => FormatAlign::Center,
            Align::Right => FormatAlign::Right,
        });
    }
    if *wrap == Some(true) {
        format = format.set_text_wrap();
    }
    format
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

/// The name with this number, or with the next one that is free; number 1 is the name itself.
fn free_name(name: &str, number: usize, taken: impl Fn(&str) -> bool) -> String {
    // Ends: each turn finds another name, and there are finitely many sheets.
    let mut number = number;
    loop {
        let found = numbered_name(name, number);
        if !taken(&found) {
            return found;
        }
        number += 1;
    }
}

fn same_name(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
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
