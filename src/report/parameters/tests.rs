use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::report::definition::Definition;

mod properties;
mod relative;

/// A definition with these parameters, each used once in the SQL, in their order.
pub(super) fn definition(parameters: &Json) -> Definition {
    definition_in("UTC", parameters)
}

fn definition_in(time_zone: &str, parameters: &Json) -> Definition {
    let names: Vec<_> = parameters
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| format!(":{}", parameter["name"].as_str().unwrap()))
        .collect();
    let spec = json!({"title": "Test", "time_zone": time_zone, "parameter": parameters});
    let sql = format!("select {}", names.join(", "));
    Definition::from_json("test".parse().unwrap(), &spec, &sql).unwrap_or_else(|e| panic!("{e}"))
}

/// The parameter `p` with these keys.
fn parameter(mut keys: Json) -> Definition {
    keys["name"] = "p".into();
    definition(&json!([keys]))
}

pub(super) fn object(value: Json) -> Map<String, Json> {
    serde_json::from_value(value).unwrap()
}

pub(super) fn today() -> NaiveDate {
    NaiveDate::from_ymd_opt(2024, 3, 31).unwrap()
}

pub(super) fn now() -> DateTime<Utc> {
    "2024-03-31T10:30:00.123456789Z".parse().unwrap()
}

/// What binding `given` as `p` gives: its canonical JSON, or the codes of the errors.
fn bind(definition: &Definition, given: &Json) -> Result<Json, Vec<&'static str>> {
    match definition.bind(&object(json!({"p": given})), today(), now()) {
        Ok(bound) => Ok(bound.canonical_json()["p"].clone()),
        Err(errors) => Err(errors.iter().map(|error| error.code.as_str()).collect()),
    }
}

#[test]
fn values_are_read_by_their_type() {
    let id = "123e4567-e89b-12d3-a456-426614174000";
    let cases = [
        ("text", json!("x"), Ok(json!("x"))),
        ("text", json!(""), Ok(json!(""))),
        ("text", json!(" é\n"), Ok(json!(" é\n"))),
        ("text", json!(1), Err("type")),
        ("text", json!(["x"]), Err("type")),
        ("text", json!({"a": 1}), Err("type")),
        ("text", json!("a\0"), Err("nul_character")),
        ("text", json!("x".repeat(10_000)), Ok(json!("x".repeat(10_000)))),
        ("text", json!("x".repeat(10_001)), Err("max_length")),
        ("integer", json!(1), Ok(json!(1))),
        ("integer", json!(-2_147_483_648_i64), Ok(json!(-2_147_483_648_i64))),
        ("integer", json!(2_147_483_647), Ok(json!(2_147_483_647))),
        ("integer", json!(2_147_483_648_i64), Err("max")),
        ("integer", json!(-2_147_483_649_i64), Err("min")),
        ("integer", json!(18_446_744_073_709_551_615_u64), Err("type")),
        ("integer", json!(1.0), Err("type")),
        ("integer", json!(1.5), Err("type")),
        ("integer", json!("1"), Err("type")),
        ("integer", json!(true), Err("type")),
        ("bigint", json!(1), Ok(json!("1"))),
        ("bigint", json!("1"), Ok(json!("1"))),
        ("bigint", json!("-9223372036854775808"), Ok(json!("-9223372036854775808"))),
        ("bigint", json!(9_223_372_036_854_775_807_i64), Ok(json!("9223372036854775807"))),
        ("bigint", json!("9223372036854775808"), Err("type")),
        ("bigint", json!("+1"), Err("type")),
        ("bigint", json!("01"), Err("type")),
        ("bigint", json!("-0"), Err("type")),
        ("bigint", json!(" 1"), Err("type")),
        ("bigint", json!(""), Err("type")),
        ("bigint", json!(1.0), Err("type")),
        ("numeric", json!(1), Ok(json!("1"))),
        ("numeric", json!(-1.5), Ok(json!("-1.5"))),
        ("numeric", json!(0.1), Ok(json!("0.1"))),
        ("numeric", json!(1e20), Ok(json!("100000000000000000000"))),
        ("numeric", json!(1e-7), Ok(json!("0.0000001"))),
        ("numeric", json!(0.1 + 0.2), Err("type")),
        ("numeric", json!("0.30000000000000000001"), Ok(json!("0.30000000000000000001"))),
        ("numeric", json!("007.500"), Ok(json!("7.5"))),
        ("numeric", json!("-0.00"), Ok(json!("0"))),
        ("numeric", json!("1e5"), Err("type")),
        ("numeric", json!("NaN"), Err("type")),
        ("numeric", json!("infinity"), Err("type")),
        ("numeric", json!("1."), Err("type")),
        ("numeric", json!(".5"), Err("type")),
        ("numeric", json!("-"), Err("type")),
        ("numeric", json!("1,5"), Err("type")),
        ("numeric", json!("٣"), Err("type")),
        ("numeric", json!("1".repeat(1_000)), Ok(json!("1".repeat(1_000)))),
        ("numeric", json!("1".repeat(1_001)), Err("type")),
        ("boolean", json!(true), Ok(json!(true))),
        ("boolean", json!("true"), Err("type")),
        ("boolean", json!(1), Err("type")),
        ("date", json!("2024-02-29"), Ok(json!("2024-02-29"))),
        ("date", json!("0001-01-01"), Ok(json!("0001-01-01"))),
        ("date", json!("9999-12-31"), Ok(json!("9999-12-31"))),
        ("date", json!("2023-02-29"), Err("type")),
        ("date", json!("0000-01-01"), Err("type")),
        ("date", json!("10000-01-01"), Err("type")),
        ("date", json!("2024-1-31"), Err("type")),
        ("date", json!("20240131"), Err("type")),
        ("date", json!("2024-01-31T00:00:00Z"), Err("type")),
        ("date", json!("infinity"), Err("type")),
        ("date", json!("2024-01-31\0"), Err("type")),
        (
            "timestamptz",
            json!("2024-01-31T09:00:00+02:00"),
            Ok(json!("2024-01-31T07:00:00.000000Z")),
        ),
        (
            "timestamptz",
            json!("2024-01-31T09:00:00.1234567Z"),
            Ok(json!("2024-01-31T09:00:00.123456Z")),
        ),
        ("timestamptz", json!("2024-01-31T09:00:00"), Err("type")),
        ("timestamptz", json!("2024-01-31"), Err("type")),
        ("timestamptz", json!("2016-12-31T23:59:60Z"), Err("type")),
        ("timestamptz", json!(1_706_684_400), Err("type")),
        ("uuid", json!(id), Ok(json!(id))),
        ("uuid", json!(id.to_uppercase()), Ok(json!(id))),
        ("uuid", json!(id.replace('-', "")), Err("type")),
        ("uuid", json!(format!("{{{id}}}")), Err("type")),
        ("uuid", json!(format!("urn:uuid:{id}")), Err("type")),
        ("uuid", json!("123e4567-e89b-12d3-a456-42661417400g"), Err("type")),
    ];
    for (parameter_type, given, expected) in cases {
        let definition = parameter(json!({"type": parameter_type}));
        let expected = expected.map_err(|code| vec![code]);
        assert_eq!(bind(&definition, &given), expected, "{parameter_type} {given:.60}");
    }
}

#[test]
fn rules_bound_what_a_type_allows() {
    let text = json!({"type": "text", "pattern": "[A-Z]{2}|x", "max_length": 2});
    let number = json!({"type": "integer", "min": 1, "max": 5});
    let big = json!({"type": "bigint", "min": "-5", "max": 9_007_199_254_740_993_i64});
    let numeric = json!({"type": "numeric", "min": -1.5, "max": "10.25"});
    let date = json!({"type": "date", "min": "2024-01-01", "max": "today"});
    let time = json!({"type": "timestamptz", "min": "today", "max": "2030-01-01T00:00:00Z"});
    let pick = json!({"type": "enum", "choices": ["active", "done"]});
    let cases = [
        (&text, json!("AB"), Ok(())),
        (&text, json!("x"), Ok(())),
        (&text, json!("éé"), Err("pattern")),
        (&text, json!("ABC"), Err("max_length")),
        (&text, json!("xA"), Err("pattern")),
        (&text, json!("x\n"), Err("pattern")),
        (&number, json!(0), Err("min")),
        (&number, json!(1), Ok(())),
        (&number, json!(5), Ok(())),
        (&number, json!(6), Err("max")),
        (&number, json!(9_999_999_999_i64), Err("max")),
        (&big, json!(-6), Err("min")),
        (&big, json!("9007199254740993"), Ok(())),
        (&big, json!("9007199254740994"), Err("max")),
        (&numeric, json!("-1.50"), Ok(())),
        (&numeric, json!("-1.51"), Err("min")),
        (&numeric, json!(-10), Err("min")),
        (&numeric, json!("10.250"), Ok(())),
        (&numeric, json!("10.2500001"), Err("max")),
        (&numeric, json!(9.75), Ok(())),
        (&numeric, json!(100), Err("max")),
        (&date, json!("2023-12-31"), Err("min")),
        (&date, json!("2024-01-01"), Ok(())),
        (&date, json!("2024-03-31"), Ok(())),
        (&date, json!("2024-04-01"), Err("max")),
        (&date, json!("today + 1 day"), Err("max")),
        (&time, json!("2024-03-31T00:00:00Z"), Ok(())),
        (&time, json!("2024-03-30T23:59:59.999999Z"), Err("min")),
        (&time, json!("2030-01-01T00:00:00.000001Z"), Err("max")),
        (&pick, json!("active"), Ok(())),
        (&pick, json!("Active"), Err("choice")),
        (&pick, json!(""), Err("choice")),
        (&pick, json!(1), Err("type")),
    ];
    for (keys, given, expected) in cases {
        let result = bind(&parameter(keys.clone()), &given).map(|_| ());
        assert_eq!(result, expected.map_err(|code| vec![code]), "{keys} {given}");
    }
}

#[test]
fn lists_are_checked_item_by_item() {
    let list = |keys: Json| {
        let mut keys = keys;
        keys["list"] = true.into();
        parameter(keys)
    };
    let integers = list(json!({"type": "integer", "max": 9}));
    assert_eq!(bind(&integers, &json!([3, 1, 1])), Ok(json!([3, 1, 1])));
    assert_eq!(bind(&integers, &json!([])), Ok(json!([])));
    assert_eq!(bind(&integers, &json!(3)), Err(vec!["type"]));
    assert_eq!(bind(&integers, &json!([1, null])), Err(vec!["type"]));
    assert_eq!(bind(&integers, &json!([[1]])), Err(vec!["type"]));
    assert_eq!(bind(&integers, &json!(vec![1; MAX_LIST_ITEMS])).map(|_| ()), Ok(()));
    assert_eq!(bind(&integers, &json!(vec![1; MAX_LIST_ITEMS + 1])), Err(vec!["too_many"]));
    assert_eq!(bind(&integers, &json!(vec![10; 1_000])), Err(vec!["max"; 20]));
    let required = list(json!({"type": "text", "required": true}));
    assert_eq!(bind(&required, &json!([])), Err(vec!["required"]));

    let errors = integers.bind(&object(json!({"p": [1, "x", 2, 10]})), today(), now()).unwrap_err();
    let pointers: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!(pointers, ["/parameters/p/1", "/parameters/p/3"]);
}

#[test]
fn every_type_has_its_value_and_its_list() {
    let day = NaiveDate::from_ymd_opt(2024, 1, 31).unwrap();
    let instant: DateTime<Utc> = "2024-01-31T00:00:00Z".parse().unwrap();
    let id = uuid::Uuid::from_u128(7);
    let cases = [
        ("text", json!("x"), Value::Text("x".into()), Value::TextList(vec!["x".into()])),
        ("integer", json!(1), Value::Integer(1), Value::IntegerList(vec![1])),
        ("bigint", json!(1), Value::Bigint(1), Value::BigintList(vec![1])),
        ("numeric", json!(1), Value::Numeric("1".into()), Value::NumericList(vec!["1".into()])),
        ("boolean", json!(true), Value::Boolean(true), Value::BooleanList(vec![true])),
        ("date", json!("2024-01-31"), Value::Date(day), Value::DateList(vec![day])),
        (
            "timestamptz",
            json!("2024-01-31T00:00:00Z"),
            Value::Timestamptz(instant),
            Value::TimestamptzList(vec![instant]),
        ),
        ("uuid", json!(id), Value::Uuid(id), Value::UuidList(vec![id])),
        ("enum", json!("a"), Value::Text("a".into()), Value::TextList(vec!["a".into()])),
    ];
    for (parameter_type, given, one, many) in cases {
        for (list, given, expected) in [(false, given.clone(), one), (true, json!([given]), many)] {
            let mut keys = json!({"type": parameter_type, "list": list});
            if parameter_type == "enum" {
                keys["choices"] = json!(["a"]);
            }
            let definition = parameter(keys);
            let bound = definition.bind(&object(json!({"p": given})), today(), now()).unwrap();
            assert_eq!(
                bound.iter().map(|bound| bound.value()).collect::<Vec<_>>(),
                [&expected],
                "{parameter_type} {list}"
            );
            let expected = format!("select ($1::{})", definition.parameters()[0].pg_type());
            assert_eq!(definition.statement(), expected);
        }
    }
}

#[test]
fn defaults_stand_in_for_what_is_not_given_and_null_is_no_value() {
    let definition = definition(&json!([
        {"name": "needed", "type": "text", "required": true},
        {"name": "since", "type": "date", "default": "today - 1 week"},
        {"name": "free", "type": "numeric"},
        {"name": "days", "type": "date", "list": true, "default": ["today", "2024-01-01"]},
    ]));
    let bind = |given: Json| definition.bind(&object(given), today(), now());

    let bound = bind(json!({"needed": "x"})).unwrap();
    let expected = json!({
        "days": ["2024-03-31", "2024-01-01"], "free": null, "needed": "x", "since": "2024-03-24",
    });
    assert_eq!(bound.canonical_json(), expected);
    let keys: Vec<_> = bound.canonical_json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["days", "free", "needed", "since"]);
    let numbered: Vec<_> = bound.iter().map(|p| (p.name(), p.pg_type())).collect();
    let expected = [("needed", "text"), ("since", "date"), ("free", "numeric"), ("days", "date[]")];
    assert_eq!(numbered, expected);

    // Left out or null: the same, or an error.
    let nullable = bind(json!({"needed": "x", "free": null})).unwrap();
    assert_eq!(nullable, bound);
    let errors = bind(json!({"needed": "x", "since": null, "days": null})).unwrap_err();
    let pointers: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!(pointers, ["/parameters/since", "/parameters/days"]);
    assert!(errors.iter().all(|error| error.code == ParameterErrorCode::Type));
    assert_eq!(errors[0].message, "must not be null: leave it out for its default");
    // What an execution of before has stored is still run.
    let stored = json!({"days": null, "free": null, "needed": "x", "since": null});
    let bound = BoundParameters::from_canonical(&definition, &stored).unwrap();
    assert_eq!(bound.get("since"), Some(&Value::Null));

    for given in [json!({}), json!({"needed": null})] {
        let errors = bind(given).unwrap_err();
        assert_eq!(errors[0].pointer, "/parameters/needed");
        assert_eq!(errors[0].code, ParameterErrorCode::Required);
    }
}

#[test]
fn values_come_in_the_order_of_the_sql() {
    let spec = json!({"title": "Test", "parameter": [
        {"name": "a", "type": "integer"}, {"name": "b", "type": "text"},
    ]});
    let definition =
        Definition::from_json("test".parse().unwrap(), &spec, "select :b, :a, :b").unwrap();
    assert_eq!(definition.statement(), "select ($1::text), ($2::int4), ($1::text)");
    let bound = definition.bind(&object(json!({"a": 1, "b": "x"})), today(), now()).unwrap();
    let values: Vec<_> = bound.iter().map(|bound| bound.value()).collect();
    assert_eq!(values, [&Value::Text("x".into()), &Value::Integer(1)]);
}

#[test]
fn every_bad_parameter_is_reported_at_once() {
    let definition = definition(&json!([
        {"name": "a", "type": "integer", "required": true},
        {"name": "b", "type": "enum", "choices": ["x", "y"]},
        {"name": "c", "type": "date", "max": "today"},
        {"name": "d", "type": "text", "list": true, "pattern": "[A-Z]+"},
    ]));
    let given = json!({
        "b": "z", "c": "2999-01-01", "d": ["A", "a", "\0"], "e/f~": 1, "n".repeat(64): 2,
    });
    let errors = definition.bind(&object(given), today(), now()).unwrap_err();
    let shown: Vec<_> = errors.iter().map(|e| format!("{e} ({})", e.code)).collect();
    let unknown = "is unknown: the parameters of this report are `a`, `b`, `c`, `d` (unknown)";
    assert_eq!(
        shown,
        [
            "/parameters/a: must be given (required)".to_owned(),
            "/parameters/b: must be one of `x`, `y` (choice)".to_owned(),
            "/parameters/c: must be at most today (max)".to_owned(),
            "/parameters/d/1: must match the pattern `[A-Z]+` (pattern)".to_owned(),
            "/parameters/d/2: must not hold the character U+0000 (nul_character)".to_owned(),
            format!("/parameters/e~1f~0: {unknown}"),
            format!("/parameters: {unknown}"),
        ]
    );
}

#[test]
fn many_unknown_names_are_reported_in_part() {
    let given: Map<_, _> = (0..1_000).map(|n| (format!("x{n}"), json!(n))).collect();
    let errors = parameter(json!({"type": "text"})).bind(&given, today(), now()).unwrap_err();
    assert_eq!(errors.len(), 20);
}

#[test]
fn stored_values_are_read_back_and_nothing_else() {
    let definition = definition(&json!([
        {"name": "since", "type": "date", "default": "today", "max": "today"},
        {"name": "count", "type": "integer", "required": true, "max": 5},
    ]));
    let stored = json!({"count": 5, "since": "2024-03-31"});
    let bound = BoundParameters::from_canonical(&definition, &stored).unwrap();
    assert_eq!(bound.canonical_json(), stored);
    assert_eq!(format!("{bound:?}"), "[since: date, count: int4]");

    let refused = [
        (json!({"count": 5, "since": "today"}), "/parameters/since"),
        (json!({"count": 5}), "/parameters/since"),
        (json!({"count": 6, "since": null}), "/parameters/count"),
        (json!({"count": null, "since": null}), "/parameters/count"),
        (json!({"count": 5, "since": null, "more": 1}), "/parameters/more"),
        (json!([]), "/parameters"),
    ];
    for (stored, pointer) in refused {
        let errors = BoundParameters::from_canonical(&definition, &stored).unwrap_err();
        assert_eq!(errors.len(), 1, "{stored}");
        assert_eq!(errors[0].pointer, pointer, "{stored}");
    }
}

#[test]
fn the_schema_says_what_is_accepted() {
    let definition = definition(&json!([
        {"name": "session", "type": "text", "required": true, "label": "Session",
         "description": "Code of the session.", "pattern": "[0-9]{4}", "max_length": 4,
         "example": "2024"},
        {"name": "states", "type": "enum", "list": true, "choices": ["active", "done"]},
        {"name": "state", "type": "enum", "choices": ["active"], "default": "active"},
        {"name": "since", "type": "date", "min": "2015-01-01", "default": "today - 1 year"},
        {"name": "number", "type": "integer", "min": 1},
        {"name": "account", "type": "bigint", "max": 9},
        {"name": "points", "type": "numeric", "min": "0.5", "max": "12345678901234567890.5"},
    ]));
    insta::assert_json_snapshot!(definition.json_schema());
}
