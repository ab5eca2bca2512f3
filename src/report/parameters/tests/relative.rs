//! Dates and instants told from the day of the run.

use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};

use super::super::Value;
use super::{bind, definition_in, object, parameter};

#[test]
fn relative_values_are_resolved_against_the_day_of_the_run() {
    let cases = [
        ("date", "today", Ok("2024-03-31")),
        ("date", "today - 30 days", Ok("2024-03-01")),
        ("date", "today-1day", Ok("2024-03-30")),
        ("date", "today  +  2   weeks", Ok("2024-04-14")),
        ("date", "today - 1 month", Ok("2024-02-29")),
        ("date", "today + 2 months", Ok("2024-05-31")),
        ("date", "today + 1 month", Ok("2024-04-30")),
        ("date", "today - 13 months", Ok("2023-02-28")),
        ("date", "today + 11 years", Ok("2035-03-31")),
        ("date", "today - 0 days", Ok("2024-03-31")),
        ("date", "today - 99999 days", Ok("1750-06-17")),
        ("date", "today - 2024 years", Err("type")),
        ("date", "today + 99999 months", Err("type")),
        ("date", "today + 100000 days", Err("type")),
        ("date", "today + 99999999999 days", Err("type")),
        ("date", "today + days", Err("type")),
        ("date", "today 3 days", Err("type")),
        ("date", "today - -3 days", Err("type")),
        ("date", "today - 3 day ago", Err("type")),
        ("date", "today - 3 fortnights", Err("type")),
        ("date", "today - 3 hours", Err("type")),
        ("date", "todays", Err("type")),
        ("date", "Today", Err("type")),
        ("date", " today", Err("type")),
        ("date", "now", Err("type")),
        ("date", "now - 1 day", Err("type")),
        ("timestamptz", "now", Ok("2024-03-31T10:30:00.123456Z")),
        ("timestamptz", "now - 2 hours", Ok("2024-03-31T08:30:00.123456Z")),
        ("timestamptz", "now - 1 day", Ok("2024-03-30T10:30:00.123456Z")),
        ("timestamptz", "now - 1 month", Ok("2024-02-29T10:30:00.123456Z")),
        ("timestamptz", "today", Ok("2024-03-31T00:00:00.000000Z")),
        ("timestamptz", "today + 1 day", Ok("2024-04-01T00:00:00.000000Z")),
        ("timestamptz", "today - 2 hours", Err("type")),
        ("timestamptz", "now + 9000 years", Err("type")),
        ("text", "today", Ok("today")),
    ];
    for (parameter_type, given, expected) in cases {
        let definition = parameter(json!({"type": parameter_type}));
        let expected = expected.map(Json::from).map_err(|code| vec![code]);
        assert_eq!(bind(&definition, &given.into()), expected, "{parameter_type} {given}");
    }
}

#[test]
fn relative_instants_follow_the_clocks_of_the_time_zone() {
    // Clocks go forward from 02:00 to 03:00 in Berlin on 2024-03-31, from 00:00 to 01:00 in Beirut
    // on the same day, and back from 03:00 to 02:00 in Berlin on 2024-10-27.
    let cases = [
        ("Europe/Berlin", "2024-03-31", "2024-03-31T10:00:00Z", "today", "2024-03-30T23:00:00Z"),
        ("Europe/Berlin", "2024-04-01", "2024-04-01T10:00:00Z", "today", "2024-03-31T22:00:00Z"),
        (
            "Europe/Berlin",
            "2024-03-31",
            "2024-03-31T10:00:00Z",
            "now - 1 day",
            "2024-03-30T11:00:00Z",
        ),
        (
            "Europe/Berlin",
            "2024-03-31",
            "2024-03-31T10:00:00Z",
            "now - 24 hours",
            "2024-03-30T10:00:00Z",
        ),
        (
            "Europe/Berlin",
            "2024-03-30",
            "2024-03-30T01:30:00Z",
            "now + 1 day",
            "2024-03-31T01:30:00Z",
        ),
        (
            "Europe/Berlin",
            "2024-10-28",
            "2024-10-28T01:30:00Z",
            "now - 1 day",
            "2024-10-27T00:30:00Z",
        ),
        ("Europe/Berlin", "2024-10-27", "2024-10-27T01:30:00Z", "now", "2024-10-27T01:30:00Z"),
        ("Asia/Beirut", "2024-03-31", "2024-03-31T10:00:00Z", "today", "2024-03-30T22:00:00Z"),
        (
            "Pacific/Apia",
            "2011-12-29",
            "2011-12-29T12:00:00Z",
            "today + 1 day",
            "2011-12-30T10:00:00Z",
        ),
    ];
    for (time_zone, today, now, given, expected) in cases {
        let definition = definition_in(time_zone, &json!([{"name": "p", "type": "timestamptz"}]));
        let given_object = object(json!({"p": given}));
        let bound =
            definition.bind(&given_object, today.parse().unwrap(), now.parse().unwrap()).unwrap();
        let expected: DateTime<Utc> = expected.parse().unwrap();
        assert_eq!(bound.get("p"), Some(&Value::Timestamptz(expected)), "{time_zone} {given}");
    }
}
