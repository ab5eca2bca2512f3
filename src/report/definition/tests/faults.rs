//! What is refused, and in which words.

use serde_json::json;

use super::super::{Definition, DefinitionFault};
use super::slug;

/// The faults of a template of this TOML, as they are shown.
fn faults(toml: &str, sql: &str) -> Vec<String> {
    match Definition::from_template(slug("t"), toml, sql) {
        Ok(_) => Vec::new(),
        Err(error) => error.faults().iter().map(DefinitionFault::to_string).collect(),
    }
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
