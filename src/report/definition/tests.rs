use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::report::parameters::ParameterType;

mod faults;
mod layout;
mod templates;

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
    let DefinitionLimits {
        timeout_secs,
        max_rows,
        max_bytes,
        on_limit,
        over_estimate,
        max_concurrent_per_user,
    } = definition.limits();
    assert_eq!(*over_estimate, OverEstimate::Run);
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
