//! Layouts: what a reader finds, and part by part what the library alone would write.

use rust_xlsxwriter::{self as library, Chart as LibraryChart, ChartType, Color, FormatBorder};

use super::super::layout::{
    CellStyle, Chart, ChartKind, Conditional, Operand, Operator, Rgb, Sheet, SheetLayout, Total,
};
use super::*;

const BLUE: Rgb = Rgb::new(0x001F_4E78);
const RED: Rgb = Rgb::new(0x00F8_696B);
const GREEN: Rgb = Rgb::new(0x0063_BE7B);

fn columns() -> Vec<Column> {
    let mut columns =
        vec![column("grade", Kind::Text), column("n", Kind::Int), column("share", Kind::Numeric)];
    columns[2].number_format = Some("0.0%".to_owned());
    columns
}

fn chart(kind: ChartKind, values: Vec<usize>) -> Chart<usize> {
    Chart {
        kind,
        title: Some("Grades".to_owned()),
        categories: 0,
        values,
        stacked: false,
        x_title: None,
        y_title: (kind != ChartKind::Pie).then(|| "Number".to_owned()),
        width: 480,
        height: 300,
    }
}

fn layout() -> SheetLayout {
    SheetLayout {
        title: vec!["Grades".to_owned(), "All of them".to_owned()],
        header: CellStyle { background: Some(BLUE), bold: Some(false), ..CellStyle::default() },
        freeze_columns: 1,
        styles: vec![(0, CellStyle { bold: Some(true), ..CellStyle::default() })],
        totals: vec![(1, Total::Sum), (2, Total::Avg)],
        conditionals: vec![
            Conditional::DataBar { column: 1, color: Some(GREEN) },
            Conditional::ColorScale { column: 2, low: RED, middle: None, high: GREEN },
            Conditional::Cell {
                column: 1,
                operator: Operator::Between,
                value: Operand::Number(1.0),
                and: Some(Operand::Number(2.5)),
                style: CellStyle { color: Some(RED), ..CellStyle::default() },
            },
            Conditional::Cell {
                column: 0,
                operator: Operator::Equal,
                value: Operand::Text("=1".to_owned()),
                and: None,
                style: CellStyle { italic: Some(true), ..CellStyle::default() },
            },
        ],
        charts: vec![chart(ChartKind::Column, vec![1, 2])],
        ..SheetLayout::default()
    }
}

/// `n` thousandths as the only digit of a `numeric`.
fn thousandths(n: u16) -> [u8; 2] {
    (n * 10).to_be_bytes()
}

fn with_sheets(
    layout: SheetLayout,
    more_sheets: Vec<Sheet>,
    sheets: &[&[Vec<Cell<'_>>]],
    remark: Option<&str>,
    limits: Limits,
) -> (Vec<u8>, Summary) {
    let options = Options { layout, more_sheets, ..Options::default() };
    let sink = Sink::default();
    let file = XlsxWriter::with_limits(columns(), options, sink.clone(), limits).unwrap();
    let mut file: Box<dyn RowWriter> = Box::new(file);
    for (index, rows) in sheets.iter().enumerate() {
        if index > 0 {
            file.next_sheet().unwrap();
        }
        push_rows(&mut *file, rows);
    }
    let summary = file.finish(remark).unwrap();
    (sink.bytes(), summary)
}

fn second() -> Sheet {
    let conditionals = vec![Conditional::Cell {
        column: 0,
        operator: Operator::Greater,
        value: Operand::Number(1.0),
        and: None,
        style: CellStyle { background: Some(RED), ..CellStyle::default() },
    }];
    let charts = vec![chart(ChartKind::Pie, vec![0])];
    let layout = SheetLayout { autofilter: false, conditionals, charts, ..SheetLayout::default() };
    Sheet { name: "Numbers".to_owned(), columns: vec![column("n", Kind::Int)], layout }
}

fn rows(shares: &[[u8; 2]]) -> Vec<Vec<Cell<'_>>> {
    let grades = ["A", "=1", "C"];
    let counts = [Cell::Int(3), Cell::Null, Cell::Int(-1)];
    shares
        .iter()
        .enumerate()
        .map(|(index, share)| {
            vec![Cell::Text(grades[index % 3]), counts[index % 3], numeric(share, -1, 3)]
        })
        .collect()
}

/// The same two sheets by the library alone, with the same values.
fn by_the_library_alone() -> Vec<u8> {
    let mut book = Workbook::new();
    let blue = library::Format::new()
        .set_background_color(Color::RGB(0x001F_4E78))
        .set_border_bottom(FormatBorder::Thin);
    let percent = library::Format::new().set_num_format("0.0%");
    let whole = library::Format::new().set_num_format("0");
    let bold = library::Format::new().set_bold();
    let total =
        |format: &library::Format| format.clone().set_bold().set_border_top(FormatBorder::Thin);
    let sheet = book.add_worksheet();
    sheet.set_name("Report").unwrap();
    let plain = columns();
    for (index, format) in [&bold, &whole, &percent].into_iter().enumerate() {
        sheet.set_column_width(index as u16, package::width(&plain[index])).unwrap();
        sheet.set_column_format(index as u16, format).unwrap();
    }
    let large = library::Format::new().set_bold().set_font_size(14);
    let grey = library::Format::new().set_font_color(Color::RGB(0x0059_5959));
    sheet.write_string_with_format(0, 0, "Grades", &large).unwrap();
    sheet.write_string_with_format(1, 0, "All of them", &grey).unwrap();
    for (index, column) in plain.iter().enumerate() {
        sheet.write_string_with_format(3, index as u16, &column.label, &blue).unwrap();
    }
    for (row, (grade, n, share)) in
        [("A", Some(3), 0.25), ("=1", None, 0.5), ("C", Some(-1), 0.125)].into_iter().enumerate()
    {
        let row = row as u32 + 4;
        sheet.write_string(row, 0, grade).unwrap();
        if let Some(n) = n {
            sheet.write_number(row, 1, n).unwrap();
        }
        sheet.write_number(row, 2, share).unwrap();
    }
    sheet.write_string_with_format(7, 0, "Total", &total(&library::Format::new())).unwrap();
    sheet.write_number_with_format(7, 1, 2, &total(&whole)).unwrap();
    sheet.write_number_with_format(7, 2, 0.291_666_666_666_667, &total(&percent)).unwrap();
    sheet.set_freeze_panes(4, 1).unwrap();
    sheet.autofilter(3, 0, 6, 2).unwrap();
    conditional::add(sheet, &layout().conditionals, (4, 6)).unwrap();
    let mut chart = LibraryChart::new(ChartType::Column);
    for values in [1, 2] {
        chart
            .add_series()
            .set_name(("Report", 3, values))
            .set_categories(("Report", 4, 0, 6, 0))
            .set_values(("Report", 4, values, 6, values));
    }
    chart.title().set_name("Grades");
    chart.y_axis().set_name("Number");
    chart.set_width(480).set_height(300);
    sheet.insert_chart(3, 4, &chart).unwrap();

    let sheet = book.add_worksheet();
    sheet.set_name("Numbers").unwrap();
    let n = column("n", Kind::Int);
    sheet.set_column_width(0, package::width(&n)).unwrap();
    sheet.set_column_format(0, &whole).unwrap();
    sheet.write_string_with_format(0, 0, &n.label, &package::header_format()).unwrap();
    sheet.write_number(1, 0, 1).unwrap();
    sheet.write_number(2, 0, 2).unwrap();
    sheet.set_freeze_panes(1, 0).unwrap();
    conditional::add(sheet, &second().layout.conditionals, (1, 2)).unwrap();
    let mut chart = LibraryChart::new(ChartType::Pie);
    chart
        .add_series()
        .set_name(("Numbers", 0, 0))
        .set_categories(("Numbers", 1, 0, 2, 0))
        .set_values(("Numbers", 1, 0, 2, 0));
    chart.title().set_name("Grades");
    chart.set_width(480).set_height(300);
    sheet.insert_chart(0, 2, &chart).unwrap();
    book.save_to_buffer().unwrap()
}

/// The parts of a workbook that do not depend on the numbers of its styles and texts.
fn comparable(file: &[u8]) -> Vec<(String, String)> {
    let mut parts: Vec<_> = part_names(file)
        .into_iter()
        .filter(|name| {
            !["xl/styles.xml", "docProps/core.xml", "xl/sharedStrings.xml"].contains(&&**name)
        })
        .map(|name| {
            let text = part(file, &name);
            let text = match name.starts_with("xl/worksheets/sheet") {
                true => text.split_once("</sheetData>").unwrap().1.to_owned(),
                false => text,
            };
            (name, text)
        })
        .collect();
    parts.sort();
    parts
}

/// A workbook with a layout, ours and the library's.
pub(super) fn both() -> (Vec<u8>, Vec<u8>) {
    let shares = [250, 500, 125].map(thousandths);
    let numbers = [vec![Cell::Int(1)], vec![Cell::Int(2)]];
    let sheets: [&[Vec<Cell<'_>>]; 2] = [&rows(&shares), &numbers];
    let (ours, summary) = with_sheets(layout(), vec![second()], &sheets, None, Limits::EXCEL);
    assert_eq!((summary.rows, summary.sheets), (5, 2));
    (ours, by_the_library_alone())
}

#[test]
fn a_layout_is_part_by_part_the_librarys() {
    let (ours, library) = both();
    for (ours, library) in comparable(&ours).iter().zip(&comparable(&library)) {
        assert_eq!(ours, library);
    }
    assert_eq!(comparable(&ours).len(), comparable(&library).len());
    // The rules by colour use the same formats, in the same order.
    let dxfs = |file: &[u8]| {
        let styles = part(file, "xl/styles.xml");
        let start = styles.find("<dxfs").unwrap();
        styles[start..styles.find("</dxfs>").unwrap()].to_owned()
    };
    assert_eq!(dxfs(&ours), dxfs(&library));
    assert_eq!(read(ours), read(library));
}

#[test]
fn a_long_sheet_goes_on_with_title_and_charts_on_the_first_and_totals_on_the_last() {
    let shares = [125; 11].map(thousandths);
    let limits = Limits { rows: 10, ..Limits::EXCEL };
    let sheets: [&[Vec<Cell<'_>>]; 2] = [&rows(&shares), &[vec![Cell::Int(7)]]];
    let (file, summary) = with_sheets(layout(), vec![second()], &sheets, Some("Cut."), limits);
    let list = summary.sheet_list.iter().map(|s| (&*s.name, s.source, s.rows, s.header_row));
    assert_eq!(
        list.collect::<Vec<_>>(),
        [("Report", 0, 6, 4), ("Report (2)", 0, 5, 1), ("Numbers", 1, 1, 1)]
    );
    let rules = |number| part(&file, &sheet_path(number)).matches("<cfRule").count();
    assert_eq!([1, 2, 3].map(rules), [4, 4, 1]);
    let drawn = |number| part(&file, &sheet_path(number)).contains("<drawing");
    assert_eq!([1, 2, 3].map(drawn), [true, false, true]);
    let chart = part(&file, "xl/charts/chart1.xml");
    assert!(chart.contains("Report!$A$5:$A$10"), "{chart}");
    let sheets = read(file);
    assert_eq!(strings(&sheets[0].1)[..4], ["Grades", "All of them", "", "GRADE"]);
    assert_eq!(sheets[0].1.len(), 10);
    // 3, NULL and -1 by turns: four times 3, three times -1.
    let last = &sheets[1].1[6];
    let mean = Data::Float(0.125);
    assert_eq!(last[..], [Data::String("Total".to_owned()), Data::Float(9.0), mean]);
    assert_eq!(sheets[1].1.len(), 7);
    assert_eq!(sheets[2].1.last().unwrap()[0], Data::String("Cut.".to_owned()));
}

#[test]
fn totals_and_remark_go_on_together_when_a_sheet_is_full() {
    let shares = [125; 5].map(thousandths);
    let mut layout = layout();
    layout.title.clear();
    for (limit, names) in [(8, 1), (7, 2), (6, 2)] {
        let limits = Limits { rows: limit, ..Limits::EXCEL };
        let sheets: [&[Vec<Cell<'_>>]; 1] = [&rows(&shares)];
        let (file, summary) =
            with_sheets(layout.clone(), Vec::new(), &sheets, Some("Cut."), limits);
        assert_eq!(summary.sheets, names, "{limit}");
        let (_, cells) = read(file).pop().unwrap();
        let end: Vec<_> = strings(&cells).into_iter().rev().take(2).collect();
        assert_eq!(end, ["Cut.", "Total"], "{limit}");
    }
}

#[test]
fn sheets_that_a_cut_left_without_rows_say_so() {
    let (file, summary) =
        with_sheets(layout(), vec![second()], &[&[]], Some("Cut."), Limits::EXCEL);
    assert_eq!((summary.rows, summary.sheets), (0, 2));
    let sheets = read(file.clone());
    assert_eq!(strings(&sheets[1].1), ["N", "Cut."]);
    assert_eq!(strings(&sheets[0].1).last().unwrap(), "Cut.");
    // Without rows there is nothing to draw; the rules keep their styles' numbers.
    assert!(!part_names(&file).iter().any(|name| name.starts_with("xl/charts")));
    assert!(part(&file, &sheet_path(2)).contains("dxfId=\"2\""));
}

#[test]
fn names_of_sheets_that_go_on_avoid_those_that_are_there() {
    let numbers: Vec<_> = (0..4).map(|n| vec![Cell::Int(n)]).collect();
    let named = |name: &str| Sheet { name: name.to_owned(), ..second() };
    let more = vec![named("REPORT (2)"), named("report")];
    let limits = Limits { rows: 3, ..Limits::EXCEL };
    let shares = [[0, 1]; 4];
    let sheets: [&[Vec<Cell<'_>>]; 3] = [&rows(&shares), &numbers, &numbers];
    let (_, summary) = with_sheets(SheetLayout::default(), more, &sheets, None, limits);
    let names: Vec<_> = summary.sheet_list.iter().map(|sheet| &*sheet.name).collect();
    let expected =
        ["Report", "Report (4)", "REPORT (2)", "REPORT (2) (2)", "report (3)", "report (3) (2)"];
    assert_eq!(names, expected);
}

#[test]
fn there_is_no_sheet_after_the_last() {
    let file = XlsxWriter::new(columns(), Options::default(), Sink::default()).unwrap();
    let mut file: Box<dyn RowWriter> = Box::new(file);
    assert!(matches!(file.next_sheet(), Err(WriteError::NoSuchSheet)));
}
