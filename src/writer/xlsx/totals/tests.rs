//! Totals against 128-bit arithmetic, and at the edges of what `numeric` and `double` hold.

use proptest::prelude::*;

use super::super::super::number::push_numeric;
use super::*;

/// `mantissa × 10^-scale` as PostgreSQL would send it, through the code under test's own digits.
fn numeric(mantissa: i128, scale: u16) -> Decimal {
    let digits = Digits {
        negative: mantissa < 0,
        digits: whole_digits(mantissa),
        exponent: -i32::from(scale),
    };
    Decimal { scale, ..digits.decimal() }
}

fn text(value: &Value) -> String {
    match value.cell() {
        Cell::Numeric(numeric) => {
            let mut out = Vec::new();
            push_numeric(&mut out, &numeric);
            String::from_utf8(out).unwrap()
        }
        Cell::Int(value) => value.to_string(),
        Cell::Float8(value) => value.to_string(),
        Cell::Null => String::new(),
        other => format!("{other:?}"),
    }
}

fn total<'a>(total: Total, cells: impl IntoIterator<Item = Cell<'a>>) -> String {
    let mut totals = Totals::new(1, &[(0, total)]);
    for cell in cells {
        totals.add(0, cell);
    }
    text(totals.values()[0].as_ref().unwrap())
}

fn of_decimals(kind: Total, values: &[(i128, u16)]) -> String {
    let values: Vec<_> =
        values.iter().map(|&(m, scale)| Value::Decimal(numeric(m, scale))).collect();
    total(kind, values.iter().map(Value::cell))
}

fn of_special(kind: Total, signs: &[NumericSign]) -> String {
    let values: Vec<_> = signs
        .iter()
        .map(|&sign| match sign {
            NumericSign::Positive => Value::Decimal(numeric(1, 0)),
            sign => Value::Decimal(special(sign)),
        })
        .collect();
    total(kind, values.iter().map(Value::cell))
}

#[test]
fn sums_of_decimals_are_exact() {
    for (values, sum) in [
        (&[(1, 1), (2, 1)][..], "0.3"),
        (&[(999_999, 2), (1, 2)], "10000.00"),
        (&[(-5, 0), (3, 1)], "-4.7"),
        (&[(12_345, 4), (-12_345, 4)], "0.0000"),
        (&[(10_i128.pow(37), 0), (1, 9)], "10000000000000000000000000000000000000.000000001"),
        (&[(-1, 20), (1, 0)], "0.99999999999999999999"),
    ] {
        assert_eq!(of_decimals(Total::Sum, values), sum, "{values:?}");
    }
    let millions = std::iter::repeat_n(Value::Decimal(numeric(1, 1)), 1_000_000);
    let mut totals = Totals::new(1, &[(0, Total::Sum)]);
    millions.for_each(|value| totals.add(0, value.cell()));
    assert_eq!(text(totals.values()[0].as_ref().unwrap()), "100000.0");
}

#[test]
fn means_are_rounded_once_to_15_digits() {
    for (values, mean) in [
        (&[(1, 0), (2, 0), (2, 0)][..], "1.66666666666667"),
        (&[(2, 0), (0, 0), (0, 0)], "0.666666666666667"),
        (&[(-1, 0), (0, 0), (0, 0)], "-0.333333333333333"),
        (&[(1, 0), (2, 0)], "1.5"),
        (&[(0, 3)], "0"),
        (&[(9_999_999_999_999_995, 1)], "1000000000000000"),
        (&[(1, 30), (0, 0), (0, 0)], "0.000000000000000000000000000000333333333333333"),
        (&[(10_i128.pow(30), 0), (1, 0)], "500000000000000000000000000000"),
    ] {
        let found = of_decimals(Total::Avg, values);
        let trimmed = match found.contains('.') {
            true => found.trim_end_matches('0').trim_end_matches('.'),
            false => &found,
        };
        assert_eq!(trimmed, mean, "{values:?}");
    }
    assert_eq!(total(Total::Avg, [Cell::Int(1), Cell::Null, Cell::Int(2)]), "1.50000000000000");
}

#[test]
fn whole_numbers_outgrow_64_bits() {
    let many = [Cell::Int(i64::MAX); 4];
    assert_eq!(total(Total::Sum, many), "36893488147419103228");
    assert_eq!(total(Total::Sum, [Cell::Int(i64::MIN); 2]), "-18446744073709551616");
    assert_eq!(total(Total::Sum, [Cell::Int(i64::MAX), Cell::Int(-1)]), "9223372036854775806");
}

#[test]
fn floating_point_sums_keep_what_additions_lose() {
    let tenths = std::iter::repeat_n(Cell::Float8(0.1), 10);
    assert_eq!(total(Total::Sum, tenths), "1");
    let cancelled = [1e100, 1.0, -1e100].map(Cell::Float8);
    assert_eq!(total(Total::Sum, cancelled), "1");
    assert_eq!(total(Total::Sum, [Cell::Float4(0.1), Cell::Float4(0.2)]), "0.30000000000000004");
    assert_eq!(total(Total::Sum, [f64::INFINITY, 1.0].map(Cell::Float8)), "inf");
    assert_eq!(total(Total::Sum, [f64::INFINITY, f64::NEG_INFINITY].map(Cell::Float8)), "NaN");
}

#[test]
fn what_is_no_number_follows_postgresql() {
    use NumericSign::{Infinity, NaN, NegativeInfinity, Positive};
    for (signs, sum, least, greatest) in [
        (&[Positive, NaN][..], "NaN", "1", "NaN"),
        (&[Positive, Infinity], "Infinity", "1", "Infinity"),
        (&[Infinity, NegativeInfinity], "NaN", "-Infinity", "Infinity"),
        (&[NegativeInfinity, Positive], "-Infinity", "-Infinity", "1"),
    ] {
        assert_eq!(of_special(Total::Sum, signs), sum, "{signs:?}");
        assert_eq!(of_special(Total::Avg, signs), sum, "{signs:?}");
        assert_eq!(of_special(Total::Min, signs), least, "{signs:?}");
        assert_eq!(of_special(Total::Max, signs), greatest, "{signs:?}");
    }
    let floats = [2.0, f64::NAN, -1.0].map(Cell::Float8);
    assert_eq!((total(Total::Min, floats), total(Total::Max, floats)), ("-1".into(), "NaN".into()));
}

#[test]
fn nothing_has_a_count_and_no_other_total() {
    for kind in [Total::Sum, Total::Avg, Total::Min, Total::Max] {
        assert_eq!(total(kind, [Cell::Null]), "");
        assert_eq!(total(kind, []), "");
    }
    assert_eq!(total(Total::Count, [Cell::Null, Cell::Text(""), Cell::Bool(false)]), "2");
}

#[test]
fn the_least_and_greatest_of_days() {
    let days = [5, i32::MAX, -3].map(Cell::Date);
    assert_eq!(total(Total::Min, days), "Date(-3)");
    assert_eq!(total(Total::Max, days), format!("Date({})", i32::MAX));
}

proptest! {
    #[test]
    fn decimals_agree_with_128_bits(
        values in prop::collection::vec((any::<i64>(), 0_u16..12), 1..60),
    ) {
        let values: Vec<(i128, u16)> = values.into_iter().map(|(m, s)| (m.into(), s)).collect();
        let whole = |&(mantissa, scale): &(i128, u16)| mantissa * 10_i128.pow(12 - u32::from(scale));
        let sum: i128 = values.iter().map(whole).sum();
        let scale = values.iter().map(|v| v.1).max().unwrap();
        let expected = numeric(sum / 10_i128.pow(12 - u32::from(scale)), scale);
        prop_assert_eq!(of_decimals(Total::Sum, &values), text(&Value::Decimal(expected)));

        let by_size = |greatest: bool| {
            let order = |v: &&(i128, u16)| whole(v);
            let all = values.iter();
            let found = if greatest { all.max_by_key(order) } else { all.min_by_key(order) };
            whole(found.unwrap()) as f64
        };
        let read = |kind| of_decimals(kind, &values).parse::<f64>().unwrap() * 1e12;
        for (kind, greatest) in [(Total::Min, false), (Total::Max, true)] {
            let (found, expected) = (read(kind), by_size(greatest));
            prop_assert!((found - expected).abs() <= expected.abs() * 1e-12);
        }
        let mean = of_decimals(Total::Avg, &values).parse::<f64>().unwrap();
        let expected = sum as f64 / values.len() as f64 / 1e12;
        prop_assert!((mean - expected).abs() <= expected.abs() * 1e-12, "{} {}", mean, expected);
    }
}
