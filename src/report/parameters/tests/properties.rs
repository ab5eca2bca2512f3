//! Rules that hold for all values.

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::super::decimal::Decimal;
use super::super::{BoundParameters, ParameterType};
use super::{definition, now, object, today};

/// Appears in no message, name or rule.
const MARK: &str = "QqZz";

fn json_value() -> impl Strategy<Value = Json> {
    let text = prop_oneof![
        any::<String>(),
        "[0-9]{1,20}",
        "-?[0-9]{1,12}\\.[0-9]{1,12}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}",
        "20[0-9]{2}-0[1-9]-[12][0-9]T1[0-9]:[0-5][0-9]:00(\\.[0-9]{1,9})?(Z|[+-]0[0-9]:30)",
        "(today|now)( [+-] [0-9]{1,6} (hour|day|week|month|year)s?)?",
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        Just("a".to_owned()),
    ];
    let one = prop_oneof![
        text.prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<i32>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        (-1e6..1e6).prop_map(|number: f64| Json::from((number * 100.0).round() / 100.0)),
        any::<bool>().prop_map(Json::from),
        Just(Json::Null),
    ];
    prop_oneof![3 => one.clone(), 1 => prop::collection::vec(one, 0..4).prop_map(Json::Array)]
}

const TYPES: [ParameterType; 9] = [
    ParameterType::Text,
    ParameterType::Integer,
    ParameterType::Bigint,
    ParameterType::Numeric,
    ParameterType::Boolean,
    ParameterType::Date,
    ParameterType::Timestamptz,
    ParameterType::Uuid,
    ParameterType::Enum,
];

fn parameters() -> Json {
    TYPES
        .into_iter()
        .flat_map(|parameter_type| [false, true].map(|list| (parameter_type, list)))
        .map(|(parameter_type, list)| {
            let name = format!("{parameter_type}{}", if list { "_list" } else { "" });
            let mut keys = json!({"name": name, "type": parameter_type, "list": list});
            if parameter_type == ParameterType::Enum {
                keys["choices"] = json!(["a", "b"]);
            }
            keys
        })
        .collect()
}

proptest! {
    /// Given to every parameter, a value is refused or comes back from the store as it was bound;
    /// what comes back is given again with the same result, on any day.
    #[test]
    fn bound_values_survive_the_store(value in json_value()) {
        let definition = definition(&parameters());
        let mut all = Map::new();
        for parameter in definition.parameters() {
            for given in [value.clone(), json!([value])] {
                let one = object(json!({parameter.name(): given}));
                if definition.bind(&one, today(), now()).is_ok() {
                    all.insert(parameter.name().to_owned(), given);
                }
            }
        }
        let bound = definition.bind(&all, today(), now()).unwrap();
        let canonical = bound.canonical_json();
        // The database keeps text: what is read back was written and parsed.
        let stored: Json = serde_json::from_str(&canonical.to_string()).unwrap();
        let read = BoundParameters::from_canonical(&definition, &stored).unwrap();
        prop_assert!(read == bound);
        prop_assert_eq!(read.canonical_json().to_string(), canonical.to_string());
        let later = today() + chrono::Days::new(400);
        let again = definition.bind(&object(stored), later, now()).unwrap();
        prop_assert!(again == bound);
    }

    /// Messages may be logged, values may not.
    #[test]
    fn errors_never_hold_what_was_given(
        before in "[ -~é]{0,12}",
        after in "[ -~é\\x00]{0,12}",
        shape in 0..4_usize,
    ) {
        let text = format!("{before}{MARK}{after}");
        let value = match shape {
            0 => json!(text),
            1 => json!([text, 1]),
            2 => json!({text.as_str(): text.as_str()}),
            _ => json!([[text]]),
        };
        let mut parameters = parameters();
        for parameter in parameters.as_array_mut().unwrap() {
            if parameter["type"] == "text" {
                parameter["pattern"] = json!("[0-9]+");
            }
        }
        let definition = definition(&parameters);
        let given = definition
            .parameters()
            .iter()
            .map(|parameter| (parameter.name().to_owned(), value.clone()))
            .collect();
        let errors = definition.bind(&given, today(), now()).unwrap_err();
        prop_assert!(errors.len() >= definition.parameters().len());
        let stored = BoundParameters::from_canonical(&definition, &Json::Object(given)).unwrap_err();
        for error in errors.iter().chain(&stored) {
            let shown = format!("{error} {error:?} {}", serde_json::to_string(error).unwrap());
            prop_assert!(!shown.contains(MARK), "{}", shown);
        }
    }

    /// Decimals are ordered as numbers are, and equal numbers are one text.
    #[test]
    fn decimals_are_ordered_as_numbers(
        a in -10_000_000_i64..10_000_000, b in -10_000_000_i64..10_000_000, places in 0..7_usize,
        zeros in 0..3_usize,
    ) {
        let decimal = |number: i64| {
            let digits = format!("{:0>width$}", number.unsigned_abs(), width = places + 1);
            let (whole, fraction) = digits.split_at(digits.len() - places);
            let sign = if number < 0 { "-" } else { "" };
            let zeros = "0".repeat(zeros);
            let point = if fraction.is_empty() { String::new() } else { format!(".{fraction}{zeros}") };
            Decimal::parse(&format!("{sign}{zeros}{whole}{point}")).unwrap()
        };
        prop_assert_eq!(decimal(a).cmp(&decimal(b)), a.cmp(&b));
        prop_assert_eq!(decimal(a) == decimal(b), a == b);
    }
}
