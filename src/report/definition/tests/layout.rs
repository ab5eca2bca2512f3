//! Layouts: what is read, what is refused and in which words.

use super::super::*;
use super::slug;

const WHOLE: &str = r##"
title = "Counts"
sheet_name = "By day"

[[parameter]]
name = "since"
type = "date"

[[parameter]]
name = "level"
type = "text"

[[column]]
name = "day"
style = { italic = true, align = "center" }

[[column]]
name = "n"
number_format = '#,##0 "people"'
total = "sum"
style = { bold = false, color = "#1f4e78", background = "#FFFFFF", wrap = true }

[layout]
title = ["{title}", "{{as of}} {snapshot} ({time_zone})", "{parameters}"]
header = { background = "#1F4E78", color = "#FFFFFF" }
freeze_header = false
freeze_columns = 1
autofilter = false
totals_label = "All days"

[[conditional]]
type = "data_bar"
column = "n"
color = "#638EC6"

[[conditional]]
type = "color_scale"
column = "n"
low = "#F8696B"
high = "#63BE7B"

[[conditional]]
type = "cell"
column = "n"
operator = "between"
value = 1
and = 2.5
style = { bold = true }

[[chart]]
type = "line"
title = "Per day"
categories = "day"
values = ["n"]
y_title = "People"
height = 400

[[sheet]]
name = "By level"
query = "select :level::text as level, 1 as n"

[sheet.layout]
title = ["{description}"]

[[sheet.column]]
name = "level"
label = "Level"

[[sheet.chart]]
type = "pie"
categories = "level"
values = ["n"]
"##;

const SQL: &str = "select :since as day, 1 as n";

fn whole() -> Definition {
    Definition::from_template(slug("counts"), WHOLE, SQL).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn sheets_come_in_order_with_what_they_say() {
    let definition = whole();
    let sheets: Vec<_> = definition.sheets().collect();
    assert_eq!(sheets.iter().map(|sheet| sheet.name).collect::<Vec<_>>(), ["By day", "By level"]);
    assert_eq!(sheets[0].conditionals.len(), 3);
    assert_eq!(sheets[1].charts.len(), 1);
    assert_eq!(
        definition.statement_of(sheets[1].query),
        "select ($1::text)::text as level, 1 as n"
    );
    let plain = Definition::from_template(slug("t"), "title = 'T'", "select 1").unwrap();
    assert_eq!(plain.main_sheet_name(), "T");
}

#[test]
fn a_layout_is_the_same_after_it_was_stored() {
    let definition = whole();
    let text = definition.spec().to_string();
    let spec = serde_json::from_str(&text).unwrap();
    let read = Definition::from_json(slug("counts"), &spec, SQL).unwrap();
    assert_eq!(read, definition);
    assert_eq!(read.content_digest(), definition.content_digest());
}

#[test]
fn a_definition_without_a_layout_is_stored_as_before() {
    let spec = Definition::from_template(slug("t"), "title = 'T'", "select 1").unwrap().spec();
    let keys: Vec<_> = spec.as_object().unwrap().keys().cloned().collect();
    let before =
        ["title", "description", "time_zone", "tags", "parameter", "column", "limits", "result"];
    let mut before = before.map(str::to_owned).to_vec();
    before.sort();
    let mut keys = keys;
    keys.sort();
    assert_eq!(keys, before);
}

#[test]
fn lines_of_titles_have_places_and_brackets() {
    for (line, filled) in [
        ("{title}", "<title>"),
        ("a {{b}} {snapshot}c", "a {b} <snapshot>c"),
        ("{owner}{execution}", "<owner><execution>"),
        ("{{{time_zone}}}", "{<time_zone>}"),
    ] {
        let read = TitleLine::try_from(line.to_owned()).unwrap();
        let value = |place: Place| -> std::borrow::Cow<'static, str> {
            match place {
                Place::Title => "<title>",
                Place::Description => "<description>",
                Place::Parameters => "<parameters>",
                Place::Snapshot => "<snapshot>",
                Place::TimeZone => "<time_zone>",
                Place::Owner => "<owner>",
                Place::Execution => "<execution>",
            }
            .into()
        };
        assert_eq!(read.fill(value), filled);
        assert_eq!(read.to_string(), line);
    }
    for line in ["{", "}", "{nobody}", "{title", "{ title }", "a}b"] {
        assert!(TitleLine::try_from(line.to_owned()).is_err(), "{line}");
    }
}

#[test]
fn faults_name_sheet_and_key() {
    let faults = |toml: &str| match Definition::from_template(slug("t"), toml, "select 1 as n") {
        Ok(_) => Vec::new(),
        Err(error) => error.faults().iter().map(DefinitionFault::to_string).collect::<Vec<_>>(),
    };
    let head = "title = 'T'\n";
    let sheet = "[[sheet]]\nname = 'S'\nquery = 'select 1 as n'\n";
    let chart = "[[sheet.chart]]\ntype = 'pie'\ncategories = 'n'\n";
    let cell = "[[conditional]]\ntype = 'cell'\ncolumn = 'n'\nstyle = {}\n";
    for (toml, expected) in [
        ("sheet_name = 'a/b'\n".to_owned(), "t.toml: sheet_name must be 1 to 31 characters"),
        ("sheet_name = 's'\n".to_owned() + sheet, "t.toml: sheet `S` name must not be there twice"),
        (sheet.replace("'S'", "' '"), "t.toml: sheet number 1 name must be 1 to 31 characters"),
        (sheet.replace("'S'", "'History'"), "t.toml: sheet number 1 name must be 1 to 31"),
        (sheet.replace("select 1 as n", ""), "t.toml: sheet `S` query "),
        (
            sheet.replace("select 1", "select :x"),
            "t.toml: sheet `S` query `:x` must be declared as a parameter",
        ),
        (sheet.replace("query", "sql"), "t.toml:4:1: unknown field `sql`"),
        (
            format!("{sheet}[[sheet.column]]\nname = 'n'\nwidth = 0"),
            "t.toml: sheet `S` column `n` width",
        ),
        (
            "[[column]]\nname = 'n'\nformat = 'text'\nnumber_format = '0'".to_owned(),
            "t.toml: column `n` number_format must be left out",
        ),
        (
            "[[column]]\nname = 'n'\ntotal = 'median'".to_owned(),
            "t.toml:4:9: unknown variant `median`",
        ),
        (
            "[layout]\nheader = { color = 'red' }".to_owned(),
            "t.toml:3:20: a colour must be written like #1F4E78",
        ),
        (
            "[layout]\ntitle = ['{who}']".to_owned(),
            "t.toml:3:9: a line of a title may hold {title},",
        ),
        ("[layout]\ntitle = ['']".to_owned(), "t.toml: layout title item 0 must be 1 to 500"),
        (
            "[layout]\nfreeze_columns = 51".to_owned(),
            "t.toml: layout freeze_columns must be at most 50",
        ),
        (
            format!("{cell}operator = 'between'\nvalue = 1"),
            "t.toml: conditional number 1 and must be given: the upper end",
        ),
        (
            format!("{cell}operator = '>'\nvalue = 1\nand = 2"),
            "t.toml: conditional number 1 and must be left out",
        ),
        (
            format!("{cell}operator = '='\nvalue = '\"'"),
            "t.toml: conditional number 1 value must not hold a double quote",
        ),
        (
            format!("{sheet}{chart}values = ['a', 'b']"),
            "t.toml: sheet `S` chart number 1 values must be one column: a pie has one series",
        ),
        (
            format!("{sheet}{chart}values = ['n']\nstacked = true"),
            "t.toml: sheet `S` chart number 1 stacked must be left out: a pie has none",
        ),
        (
            format!("{sheet}{chart}values = ['n']\ntitle = '=A1'"),
            "t.toml: sheet `S` chart number 1 title must not begin with `=`",
        ),
        (
            format!("{sheet}{chart}values = ['n']\nwidth = 1"),
            "t.toml: sheet `S` chart number 1 width must be 100 to 4000 pixels",
        ),
    ] {
        let faults = faults(&format!("{head}{toml}"));
        assert_eq!(faults.len(), 1, "{toml}: {faults:?}");
        assert!(faults[0].starts_with(expected), "{toml}: {faults:?}");
    }
    assert_eq!(faults(&format!("{head}{sheet}")), [""; 0]);
}

#[test]
fn the_example_of_the_documentation_can_be_used() {
    let text = include_str!("../../../../docs/workbooks.md");
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let toml = format!("title = 'T'\n{example}");
    let definition = Definition::from_template(slug("t"), &toml, "select 1 as n").unwrap();
    assert_eq!(definition.sheets().count(), 2);
    assert_eq!(definition.sheets().next().unwrap().conditionals.len(), 3);
}
