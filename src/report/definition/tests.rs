use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::report::parameters::ParameterType;

const FULL: &str = r#"
title = "Enrollments"
description = "Students per programme."
permission = "reports.enrollments"
time_zone = "Africa/Gaborone"
tags = ["registry", "students"]
split_by = "id"

[[parameter]]
name = "since"
type = "date"
label = "Since"
description = "First day."
default = 2024-01-31
min = 2015-01-01
max = "today"
example = "today - 1 year"

[[parameter]]
name = "codes"
type = "text"
list = true
required = true
pattern = "[A-Z]{3}"
max_length = 3
example = ["ABC"]

[[parameter]]
name = "status"
type = "enum"
choices = ["active", "done"]
default = "active"

[[parameter]]
name = "points"
type = "numeric"
min = 0
max = 4.50
default = 1.0

[[parameter]]
name = "account"
type = "bigint"
max = 9007199254740993

[[parameter]]
name = "seen"
type = "timestamptz"
list = true
min = 2020-01-01T00:00:00+02:00
default = ["now - 1 day", 2024-01-01T00:00:00Z]

[[column]]
name = "enrolled"
label = "Enrolled"
format = "integer"
width = 12

[[column]]
name = "when"
format = "datetime"

[limits]
timeout_secs = 300
max_rows = 1000
max_bytes = 5000
on_limit = "truncate"
max_concurrent_per_user = 2

[result]
expires_after_days = 30
"#;

const FULL_SQL: &str = "select :since, :codes, :status, :points, :account, :seen\n";

fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

fn full() -> Definition {
    Definition::from_template(slug("enrollments"), FULL, FULL_SQL).unwrap()
}

/// The faults of a template of this TOML, as they are shown.
fn faults(toml: &str, sql: &str) -> Vec<String> {
    match Definition::from_template(slug("t"), toml, sql) {
        Ok(_) => Vec::new(),
        Err(error) => error.faults().iter().map(DefinitionFault::to_string).collect(),
    }
}

#[test]
fn a_slug_is_words_joined_by_hyphens() {
    for good in ["a", "course-results", "2024-q1", &"a".repeat(100)] {
        assert_eq!(good.parse::<Slug>().unwrap().to_string(), good);
    }
    let long = "a".repeat(101);
    for bad in ["", "-", "-a", "a-", "a--b", "A", "a_b", "a b", "a/b", "..", "a.b", "é", &long] {
        assert_eq!(bad.parse::<Slug>(), Err(SlugError), "{bad}");
    }
    assert_eq!(serde_json::to_value(slug("a-b")).unwrap(), json!("a-b"));
    assert!(serde_json::from_value::<Slug>(json!("A")).is_err());
}

#[test]
fn a_template_is_read_whole() {
    let definition = full();
    assert_eq!(definition.slug().as_str(), "enrollments");
    assert_eq!(definition.title(), "Enrollments");
    assert_eq!(definition.description(), "Students per programme.");
    assert_eq!(definition.permission(), Some("reports.enrollments"));
    assert_eq!(definition.time_zone(), chrono_tz::Africa::Gaborone);
    assert_eq!(definition.tags(), ["registry", "students"]);
    assert_eq!(definition.split_by(), Some("id"));
    assert_eq!(definition.expires_after_days().map(NonZeroU32::get), Some(30));
    assert_eq!(definition.sql(), FULL_SQL);
    assert_eq!(
        definition.statement(),
        "select ($1::date), ($2::text[]), ($3::text), ($4::numeric), ($5::int8), \
         ($6::timestamptz[])"
    );
    let DefinitionLimits { timeout_secs, max_rows, max_bytes, on_limit, max_concurrent_per_user } =
        definition.limits();
    assert_eq!(timeout_secs.map(NonZeroU64::get), Some(300));
    assert_eq!(max_rows.map(NonZeroU64::get), Some(1000));
    assert_eq!(max_bytes.map(NonZeroU64::get), Some(5000));
    assert_eq!(*on_limit, OnLimit::Truncate);
    assert_eq!(max_concurrent_per_user.map(NonZeroU32::get), Some(2));

    let [since, codes, status, points, account, seen] = definition.parameters() else {
        panic!("six parameters");
    };
    assert_eq!((since.name(), since.label()), ("since", "Since"));
    assert_eq!(since.parameter_type(), ParameterType::Date);
    assert_eq!(since.description(), Some("First day."));
    assert_eq!(since.default_value(), Some(&json!("2024-01-31")));
    assert_eq!(since.example(), Some(&json!("today - 1 year")));
    assert!(codes.is_list() && codes.is_required());
    assert_eq!((codes.label(), codes.example()), ("codes", Some(&json!(["ABC"]))));
    assert_eq!(status.choices(), ["active", "done"]);
    assert_eq!(points.default_value(), Some(&json!("1")));
    assert_eq!(account.default_value(), None);
    assert_eq!(seen.default_value(), Some(&json!(["now - 1 day", "2024-01-01T00:00:00.000000Z"])));

    let [enrolled, when] = definition.columns() else { panic!("two columns") };
    assert_eq!((enrolled.label.as_deref(), enrolled.width), (Some("Enrolled"), Some(12.0)));
    assert_eq!(when.format, Some(ColumnFormat::DateTime));
}

#[test]
fn a_template_needs_only_a_title_and_a_query() {
    let definition = Definition::from_template(slug("t"), "title = 'T'", "select 1").unwrap();
    assert_eq!(definition.time_zone(), Tz::UTC);
    assert_eq!(definition.limits(), &DefinitionLimits::default());
    let spec = json!({
        "title": "T", "description": "", "time_zone": "UTC", "tags": [], "parameter": [],
        "column": [], "limits": {"on_limit": "fail"}, "result": {},
    });
    assert_eq!(definition.spec(), spec);
    assert_eq!(definition.parameters_json(), json!([]));
}

#[test]
fn column_formats_are_those_of_spreadsheets() {
    let cases = [
        ("integer", "0"),
        ("decimal1", "0.0"),
        ("decimal2", "0.00"),
        ("decimal3", "0.000"),
        ("percent", "0.0%"),
        ("date", "yyyy-mm-dd"),
        ("datetime", "yyyy-mm-dd hh:mm:ss"),
        ("time", "hh:mm:ss"),
        ("text", "@"),
    ];
    for (name, number_format) in cases {
        let format: ColumnFormat = serde_json::from_value(json!(name)).unwrap();
        assert_eq!(format.number_format(), number_format, "{name}");
    }
}

#[test]
fn what_the_database_keeps_is_the_same_definition() {
    let definition = full();
    let spec = definition.spec();
    // jsonb forgets the order of keys.
    let mut sorted = spec.clone();
    sorted.sort_all_objects();
    for spec in [&spec, &sorted] {
        let read = Definition::from_json(slug("enrollments"), spec, FULL_SQL).unwrap();
        assert_eq!(read, definition);
        assert_eq!(read.spec().to_string(), definition.spec().to_string());
        assert_eq!(read.content_digest(), definition.content_digest());
    }
    assert_eq!(definition.parameters_json(), definition.spec()["parameter"]);
}

#[test]
fn the_digest_changes_with_the_content_and_only_with_it() {
    let digest = |toml: &str, sql: &str| {
        Definition::from_template(slug("t"), toml, sql).unwrap().content_digest()
    };
    let same = digest(FULL, FULL_SQL);
    assert_eq!(same.len(), 64);
    let respelled = [
        ("4.50", "\"4.5\""),
        ("default = 1.0", "default = \"1.00\""),
        ("default = 2024-01-31", "default = '2024-01-31'"),
        ("\"today - 1 year\"", "\"today-1years\""),
        ("width = 12", "width = 12.0  # wide"),
        ("2020-01-01T00:00:00+02:00", "2019-12-31T22:00:00Z"),
    ];
    for (from, to) in respelled {
        assert!(FULL.contains(from), "{from}");
        assert_eq!(digest(&FULL.replace(from, to), FULL_SQL), same, "{to}");
    }
    let changed = [
        ("Enrollments", "Enrolments"),
        ("4.50", "4.51"),
        ("2015-01-01", "2015-01-02"),
        ("[A-Z]{3}", "[A-Z]{1,3}"),
        ("\"truncate\"", "\"fail\""),
        ("expires_after_days = 30", ""),
        ("label = \"Since\"", ""),
        ("max_rows = 1000", "max_rows = 1001"),
    ];
    for (from, to) in changed {
        assert!(FULL.contains(from), "{from}");
        assert_ne!(digest(&FULL.replace(from, to), FULL_SQL), same, "{to}");
    }
    assert_ne!(digest(FULL, FULL_SQL.trim_end()), same);
}

#[test]
fn faults_name_file_and_key_and_what_was_expected() {
    let cases = [
        ("", "t.toml:1:1: missing field `title`"),
        ("title = 1", "t.toml:1:9: invalid type: integer `1`, expected a string"),
        ("title = 'T'\nmore = 1", "t.toml:2:1: unknown field `more`"),
        ("title = 'T'\n\n[limits]\nrows = 1", "t.toml:4:1: unknown field `rows`"),
        ("title = 'T'\n[result]\ndays = 1", "t.toml:3:1: unknown field `days`"),
        ("title = 'T'\n[[column]]\nname = 'a'\nkind = 1", "t.toml:4:1: unknown field `kind`"),
        (
            "title = 'T'\n[limits]\nmax_rows = 0",
            "t.toml:3:12: invalid value: integer `0`, expected a nonzero u64",
        ),
        ("title = 'T'\n[limits]\non_limit = 'cut'", "t.toml:3:12: unknown variant `cut`"),
        ("title = ", "t.toml:1:9: "),
        ("title = ' '", "t.toml: title must be 1 to 255 characters"),
        ("title = \"a\\u0000\"", "t.toml: title must not hold control characters"),
        (
            "title = 'T'\ntime_zone = 'Botswana'",
            "t.toml: time_zone must be a name of the IANA database like Africa/Gaborone",
        ),
        ("title = 'T'\npermission = 'a b'", "t.toml: permission must be a codename without spaces"),
        ("title = 'T'\ntags = ['a', 'a']", "t.toml: tags item 1 must not be there twice"),
        ("title = 'T'\nsplit_by = ''", "t.toml: split_by must be 1 to 63 characters"),
        (
            "title = 'T'\n[[column]]\nname = 'a'\n[[column]]\nname = 'a'",
            "t.toml: column `a` name must not be declared twice",
        ),
        (
            "title = 'T'\n[[column]]\nname = 'a'\nwidth = 256",
            "t.toml: column `a` width must be above 0 and at most 255",
        ),
        (
            "title = 'T'\n[[column]]\nname = 'a'\nwidth = nan",
            "t.toml: column `a` width must be above 0 and at most 255",
        ),
        ("title = 'T'\n[[column]]\nname = ''", "t.toml: column number 1 name must be 1 to 63"),
    ];
    for (toml, expected) in cases {
        let faults = faults(toml, "select 1");
        assert_eq!(faults.len(), 1, "{toml}: {faults:?}");
        assert!(faults[0].starts_with(expected), "{toml}: {faults:?}");
    }
}

#[test]
fn declarations_that_contradict_themselves_are_refused() {
    let long = format!("type = 'text'\npattern = '{}'", "a".repeat(501));
    let cases = [
        ("type = 'money'", ":4:8: unknown variant `money`"),
        ("type = 'text'\nsize = 1", ":5:1: unknown field `size`"),
        ("type = 'date'\ndefault = 2024-02-30", ":5:11: "),
        ("type = 'date'\ndefault = {a = 1}", ":5:11: invalid type: map, expected a text, number,"),
        ("type = 'numeric'\ndefault = nan", ":5:11: must be a finite number"),
        ("type = 'date'\ndefault = '31.1.2024'", " default must be a date like 2024-01-31"),
        ("type = 'date'\ndefault = 'now'", " default must be a date like 2024-01-31"),
        ("type = 'date'\ndefault = 2024-01-31T00:00:00Z", " default must be a date like"),
        ("type = 'timestamptz'\ndefault = 2024-01-31T00:00:00", " default must be a time with"),
        ("type = 'text'\ndefault = 1", " default must be text"),
        ("type = 'text'\nmax_length = 2\ndefault = 'abc'", " default must have at most 2 char"),
        ("type = 'text'\npattern = '[a-z]'\ndefault = 'A'", " default must match the pattern"),
        ("type = 'text'\nlist = true\ndefault = 'a'", " default must be a list"),
        ("type = 'text'\ndefault = ['a']", " default must be text"),
        ("type = 'integer'\nlist = true\ndefault = [1, 'a']", " default item 1: must be a whole"),
        ("type = 'date'\nlist = true\ndefault = ['today', 'x']", " default must be a date like"),
        ("type = 'integer'\nmin = 2\ndefault = 1", " default must be at least 2"),
        ("type = 'date'\nmax = 2024-01-01\ndefault = 2024-01-02", " default must be at most 2024-"),
        ("type = 'integer'\ndefault = 'today'", " default must be a whole number"),
        ("type = 'enum'\nchoices = ['a']\ndefault = 'b'", " default must be one of `a`"),
        ("type = 'enum'\nchoices = ['a']\nexample = 'b'", " example must be one of `a`"),
        ("type = 'text'\nrequired = true\ndefault = 'a'", " default must be left out, as the para"),
        ("type = 'enum'", " choices must be a list of 1 to 1000 texts"),
        ("type = 'enum'\nchoices = []", " choices must be a list of 1 to 1000 texts"),
        ("type = 'enum'\nchoices = ['a', 'a']", " choices item 1: must not be there twice"),
        ("type = 'enum'\nchoices = ['']", " choices item 0: must be 1 to 255 characters"),
        ("type = 'text'\nchoices = ['a']", " choices must be left out, as the type `text` has"),
        ("type = 'text'\nmin = 1", " min must be left out, as the type `text` has none"),
        ("type = 'uuid'\nmax = 1", " max must be left out, as the type `uuid` has none"),
        ("type = 'integer'\npattern = 'a'", " pattern must be left out, as the type `integer`"),
        ("type = 'enum'\nchoices = ['a']\nmax_length = 1", " max_length must be left out"),
        ("type = 'integer'\nmin = 2\nmax = 1", " min must not be above max"),
        ("type = 'numeric'\nmin = 2\nmax = '1.99'", " min must not be above max"),
        ("type = 'date'\nmin = 2024-01-02\nmax = 2024-01-01", " min must not be above max"),
        ("type = 'integer'\nmin = 1.5", " min must be a whole number of up to 32 bits"),
        ("type = 'integer'\nmax = 3000000000", " max must be a whole number of up to 32 bits"),
        ("type = 'bigint'\nmin = 'a'", " min must be a whole number of up to 64 bits"),
        ("type = 'date'\nmin = 'yesterday'", " min must be a date like 2024-01-31, or relative"),
        ("type = 'text'\npattern = '['", " pattern must be a regular expression"),
        ("type = 'text'\npattern = 'a)|(b'", " pattern must be a regular expression"),
        ("type = 'text'\npattern = '(?:\\w{100}){100}'", " pattern must be a regular expression"),
        (long.as_str(), " pattern must be a regular expression"),
        ("type = 'text'\nmax_length = 0", ":5:14: invalid value: integer `0`"),
        ("type = 'text'\nmax_length = 1000001", " max_length must be at most 1000000"),
        ("type = 'text'\nlabel = ''", " label must be 1 to 255 characters"),
        ("type = 'text'\ndescription = ''", " description must be 1 to 2000 characters"),
    ];
    for (keys, expected) in cases {
        let toml = format!("title = 'T'\n[[parameter]]\nname = 'p'\n{keys}");
        let faults = faults(&toml, "select :p");
        let prefix = if expected.starts_with(':') { "t.toml" } else { "t.toml: parameter `p`" };
        assert_eq!(faults.len(), 1, "{keys}: {faults:?}");
        assert!(faults[0].starts_with(&format!("{prefix}{expected}")), "{keys}: {faults:?}");
    }
}

#[test]
fn relative_bounds_and_defaults_wait_for_the_day_of_the_run() {
    let keys = [
        "type = 'date'\nmin = 'today'\nmax = 2020-01-01",
        "type = 'date'\nmax = 2020-01-01\ndefault = 'today'",
        "type = 'timestamptz'\nmin = 'today - 1 day'\nmax = 'now'\ndefault = 'now - 2 hours'",
        "type = 'date'\nmax = 'today'\ndefault = 2999-01-01",
    ];
    for keys in keys {
        let toml = format!("title = 'T'\n[[parameter]]\nname = 'p'\n{keys}");
        assert_eq!(faults(&toml, "select :p"), Vec::<String>::new(), "{keys}");
    }
}

#[test]
fn sql_and_parameters_must_name_each_other() {
    let parameter = |name: &str| format!("[[parameter]]\nname = '{name}'\ntype = 'text'\n");
    let one = format!("title = 'T'\n{}", parameter("a"));
    assert_eq!(faults(&one, "select :a"), Vec::<String>::new());
    assert_eq!(
        faults(&one, "select 1,\n :b"),
        [
            "t.sql:2:2: `:b` must be declared as a parameter",
            "t.toml: parameter `a` must be used in the SQL as `:a`",
        ]
    );
    assert_eq!(
        faults(&one, "select ':a'"),
        ["t.toml: parameter `a` must be used in the SQL as `:a`"]
    );
    assert_eq!(faults(&one, "select :a, 'x"), ["t.sql:1:12: this string must be closed"]);
    assert_eq!(faults(&one, "select :a; select 2").len(), 1);
    assert_eq!(faults("title = 'T'", ""), ["t.sql: the query must not be empty"]);

    let twice = format!("{one}{}", parameter("a"));
    assert_eq!(
        faults(&twice, "select :a"),
        ["t.toml: parameter `a` name must not be declared twice"]
    );
    for name in ["A", "1a", "a-b", "é", &"a".repeat(64)] {
        let faults = faults(&format!("title = 'T'\n{}", parameter(name)), "select 1");
        assert!(faults[0].contains("name must be lower case letters"), "{faults:?}");
    }
    let many: String = (0..101).map(|n| parameter(&format!("p{n}"))).collect();
    let faults = faults(&format!("title = 'T'\n{many}"), "select 1");
    assert_eq!(faults[0], "t.toml: parameter must be declared at most 100 times");
}

#[test]
fn every_fault_is_reported_at_once() {
    let toml = "title = ''\ntime_zone = 'x'\n\
                [[parameter]]\nname = 'a'\ntype = 'enum'\nmin = 1\n\
                [[parameter]]\nname = 'b'\ntype = 'date'\ndefault = 'x'\n";
    let error = Definition::from_template(slug("t"), toml, "select :a, :b, :c").unwrap_err();
    let keys: Vec<_> = error.faults().iter().map(|fault| fault.key.as_str()).collect();
    let expected = [
        "title",
        "time_zone",
        "parameter `a` min",
        "parameter `a` choices",
        "parameter `b` default",
        "",
    ];
    assert_eq!(keys, expected);
    assert_eq!(error.to_string().lines().count(), expected.len());
}

#[test]
fn stored_json_is_checked_like_a_template() {
    let refused = [
        (json!([]), "spec: invalid"),
        (json!({}), "spec: missing field `title`"),
        (json!({"title": "T", "more": 1}), "spec: unknown field `more`"),
        (json!({"title": "T", "limits": {"max_rows": -1}}), "spec: invalid value"),
        (json!({"title": "T", "time_zone": "x"}), "spec: time_zone must be a name"),
        (
            json!({"title": "T", "parameter": [{"name": "p", "type": "date", "default": {}}]}),
            "spec: invalid type: map, expected a text",
        ),
    ];
    for (spec, expected) in refused {
        let error = Definition::from_json(slug("t"), &spec, "select 1").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{spec}: {error}");
    }
    let error = Definition::from_json(slug("t"), &json!({"title": "T"}), "select :p").unwrap_err();
    assert_eq!(error.to_string(), "query:1:8: `:p` must be declared as a parameter");
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

#[test]
fn templates_are_loaded_in_the_order_of_their_slugs() {
    let dir = tempfile::tempdir().unwrap();
    // Sorted as texts, `a-b.sql` stands before `a.sql`.
    for slug in ["b", "a-b", "a"] {
        write(dir.path(), &format!("{slug}.toml"), "title = 'T'");
        write(dir.path(), &format!("{slug}.sql"), "select 1");
    }
    write(dir.path(), "README.md", "Templates.");
    write(dir.path(), ".a.toml", "not saved yet");
    let definitions = load_templates(dir.path()).unwrap();
    let slugs: Vec<_> = definitions.iter().map(|d| d.slug().as_str()).collect();
    assert_eq!(slugs, ["a", "a-b", "b"]);
}

#[test]
fn every_bad_template_is_reported_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["good", "Bad_Name", "broken"] {
        write(dir.path(), &format!("{name}.sql"), "select 1");
    }
    for name in ["good", "Bad_Name", "lonely", "latin"] {
        write(dir.path(), &format!("{name}.toml"), "title = 'T'");
    }
    write(dir.path(), "broken.toml", "title = ''");
    write(dir.path(), "orphan.sql", "select 1");
    std::fs::write(dir.path().join("latin.sql"), b"select '\xe9'").unwrap();
    write(dir.path(), "large.toml", "title = 'T'");
    write(dir.path(), "large.sql", &" ".repeat(1024 * 1024 + 1));

    let errors = load_templates(dir.path()).unwrap_err();
    let shown: Vec<_> = errors
        .iter()
        .map(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
        .collect();
    assert_eq!(
        shown,
        [
            "Bad_Name.toml: the name of a template",
            "broken.toml: title must be 1 to 255 characters",
            "large.sql: a template's file must be at most 1048576 bytes",
            "cannot read latin.sql",
            "lonely.toml: must have lonely.sql beside it",
            "orphan.sql: must have orphan.toml beside it",
        ]
    );
    let missing = load_templates(&dir.path().join("none")).unwrap_err();
    assert!(matches!(missing.as_slice(), [TemplateError::Read { .. }]));
}

proptest! {
    /// No text is a panic.
    #[test]
    fn any_template_is_read_or_refused(toml in any::<String>(), sql in any::<String>()) {
        let _ = Definition::from_template(slug("t"), &toml, &sql);
        let titled = format!("title = 'T'\ndescription = '''{toml}'''");
        if let Ok(definition) = Definition::from_template(slug("t"), &titled, &sql) {
            let read = Definition::from_json(slug("t"), &definition.spec(), &sql).unwrap();
            prop_assert_eq!(read, definition);
        }
    }
}
