//! Treatments over any value: fixed points that keep their promises.

use proptest::prelude::*;

use super::*;
use crate::retention::keyring::Key;

fn key() -> Key {
    Key::from_bytes([7; 32])
}

fn at(row: &[String]) -> Place<'_> {
    Place { table: "people", column: "name", row }
}

fn apply(treatment: &Treatment, value: &str) -> Option<String> {
    treatment.apply(&key(), at(&["1".to_owned()]), Some(value))
}

fn token(chars: u8) -> Treatment {
    let chars = NonZeroU8::new(chars).unwrap();
    Treatment::Token(TokenShape { prefix: "x-".into(), chars, suffix: "@erased.invalid".into() })
}

fn all() -> Vec<Treatment> {
    vec![
        Treatment::Null,
        Treatment::Constant("gone".into()),
        token(24),
        Treatment::Truncate(Truncation::Year),
        Treatment::Truncate(Truncation::Month),
        Treatment::Truncate(Truncation::Chars(NonZeroU32::new(3).unwrap())),
        Treatment::Network(NetworkBits { v4: 24, v6: 48 }),
        Treatment::Family,
        Treatment::ScrubJson(json::Scrub::new(["name"], vec![])),
        Treatment::UnusablePassword,
        Treatment::DeleteObject,
        Treatment::Keep,
    ]
}

#[test]
fn dates_become_the_first_of_their_year_or_month() {
    let (year, month) =
        (Treatment::Truncate(Truncation::Year), Treatment::Truncate(Truncation::Month));
    for (value, of_year, of_month) in [
        ("2001-05-17", Some("2001-01-01"), Some("2001-05-01")),
        ("2024-02-29", Some("2024-01-01"), Some("2024-02-01")),
        (
            "2001-05-17 10:20:30.5+00",
            Some("2001-01-01 00:00:00+00"),
            Some("2001-05-01 00:00:00+00"),
        ),
        ("0044-03-15 BC", Some("0044-01-01 BC"), Some("0044-03-01 BC")),
        ("12345-06-07", Some("12345-01-01"), Some("12345-06-01")),
        ("infinity", Some("infinity"), Some("infinity")),
        ("yesterday", None, None),
        ("", None, None),
    ] {
        assert_eq!(apply(&year, value).as_deref(), of_year, "{value}");
        assert_eq!(apply(&month, value).as_deref(), of_month, "{value}");
    }
}

#[test]
fn addresses_become_networks() {
    let network = Treatment::Network(NetworkBits { v4: 24, v6: 48 });
    for (value, expected) in [
        ("10.1.2.3", Some("10.1.2.0/24")),
        ("10.1.2.3/32", Some("10.1.2.0/24")),
        ("10.20.0.0/16", Some("10.20.0.0/16")),
        ("2001:db8:1:2::5", Some("2001:db8:1::/48")),
        ("::ffff:10.1.2.3", Some("::/48")),
        ("0.0.0.0/0", Some("0.0.0.0/0")),
        ("10.1.2.3/x", None),
        ("here", None),
    ] {
        assert_eq!(apply(&network, value).as_deref(), expected, "{value}");
    }
    let none = Treatment::Network(NetworkBits { v4: 0, v6: 0 });
    assert_eq!(apply(&none, "255.255.255.255").as_deref(), Some("0.0.0.0/0"));
    assert_eq!(apply(&none, "ffff::").as_deref(), Some("::/0"));
}

#[test]
fn tokens_are_keyed_and_fit() {
    let one = apply(&token(24), "ann").unwrap();
    assert_eq!(one.chars().count(), 24 + 2 + 15);
    assert!(one.starts_with("x-") && one.ends_with("@erased.invalid"));
    let other_key =
        token(24).apply(&Key::from_bytes([8; 32]), at(&["1".to_owned()]), Some("ann")).unwrap();
    assert_ne!(one, other_key);
    assert!(token(16).facts().keeps_unique, "80 bits");
    assert!(!token(15).facts().keeps_unique);
    // Parts of a key cannot run into each other.
    let split = |a: &str, b: &str| {
        token(24).apply(&key(), at(&[a.to_owned(), b.to_owned()]), Some("")).unwrap()
    };
    assert_ne!(split("1", "23"), split("12", "3"));
    assert_eq!(apply(&Treatment::UnusablePassword, "pbkdf2$1$x").unwrap().len(), 41);
}

#[test]
fn nothing_known_stays_nothing_known() {
    for treatment in all() {
        assert_eq!(treatment.apply(&key(), at(&[]), None), None, "{treatment:?}");
    }
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,40}",
        "[0-9]{4}-[01][0-9]-[0-3][0-9]( [0-9]{2}:[0-9]{2}:[0-9]{2}\\+00)?",
        any::<std::net::IpAddr>().prop_map(|address| address.to_string()),
        "[a-z]{1,6}/[0-9.]{1,4} \\(.{0,9}\\)",
    ]
}

proptest! {
    #[test]
    fn every_treatment_is_a_fixed_point_within_its_facts(value in any_value(), row in 0_u64..1_000) {
        let row = [row.to_string()];
        for treatment in all() {
            let facts = treatment.facts();
            let once = treatment.apply(&key(), at(&row), Some(&value));
            let again = treatment.apply(&key(), at(&row), once.as_deref());
            prop_assert_eq!(&once, &again, "{:?}", treatment);
            if let (Some(text), Some(max)) = (&once, facts.max_chars) {
                prop_assert!(text.chars().count() <= max as usize, "{:?}: {}", treatment, text);
            }
            if let (Some(text), None) = (&once, facts.max_chars)
                && !matches!(treatment, Treatment::ScrubJson(_))
            {
                // A time of day becomes midnight, which may be written longer than it was.
                let slack = if matches!(treatment, Treatment::Truncate(_)) { 12 } else { 0 };
                prop_assert!(text.chars().count() <= value.chars().count() + slack);
            }
        }
    }

    #[test]
    fn tokens_of_different_rows_differ(rows in prop::collection::btree_set(any::<u32>(), 2..50)) {
        let tokens: std::collections::BTreeSet<_> = rows
            .iter()
            .map(|row| token(24).apply(&key(), at(&[row.to_string()]), Some("")))
            .collect();
        prop_assert_eq!(tokens.len(), rows.len());
    }
}
