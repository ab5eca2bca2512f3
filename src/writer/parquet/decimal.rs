//! `numeric` as a whole number of the last decimal that its column keeps.

use super::super::{Numeric, NumericSign};

/// What `numeric` counts in.
const BASE: i128 = 10_000;

/// `value * 10 ^ scale`, `None` where that is not a whole number of at most `precision` digits: a
/// server sends no such number for a `numeric(precision, scale)`, but it does send NaN.
pub(super) fn unscaled(value: &Numeric<'_>, precision: u8, scale: u8) -> Option<i128> {
    let negative = match value.sign {
        NumericSign::Positive => false,
        NumericSign::Negative => true,
        NumericSign::NaN | NumericSign::Infinity | NumericSign::NegativeInfinity => return None,
    };
    let mut unscaled: i128 = 0;
    // The power of ten of the current digit, in units of the last decimal.
    let mut power = 4 * i32::from(value.weight) + i32::from(scale);
    for pair in value.digits.chunks_exact(2) {
        let digit = i128::from(u16::from_be_bytes([pair[0], pair[1]]));
        unscaled = match power {
            0.. => unscaled.checked_mul(BASE)?.checked_add(digit)?,
            // The point is inside of this digit: what stands behind it must be zeros.
            -3..=-1 => {
                let behind = 10_i128.pow(power.unsigned_abs());
                if digit % behind != 0 {
                    return None;
                }
                unscaled.checked_mul(BASE / behind)?.checked_add(digit / behind)?
            }
            _ if digit == 0 => unscaled,
            _ => return None,
        };
        power -= 4;
    }
    // Zeros that end a number are not sent.
    let missing = u32::try_from(power + 4).unwrap_or(0);
    if missing > 0 && unscaled != 0 {
        unscaled = unscaled.checked_mul(10_i128.checked_pow(missing)?)?;
    }
    let held = unscaled < 10_i128.pow(u32::from(precision));
    held.then_some(if negative { -unscaled } else { unscaled })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numeric(digits: &[u8], weight: i16) -> Numeric<'_> {
        Numeric { digits, weight, sign: NumericSign::Positive, scale: 0 }
    }

    fn bytes(digits: &[u16]) -> Vec<u8> {
        digits.iter().flat_map(|digit| digit.to_be_bytes()).collect()
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        for (digits, weight, precision, scale, expected) in [
            (vec![], 0, 5, 2, Some(0)),
            (vec![1], 0, 3, 2, Some(100)),
            (vec![9], 0, 3, 2, Some(900)),
            (vec![10], 0, 3, 2, None),
            (vec![1, 2_300], 0, 3, 2, Some(123)),
            (vec![1, 2_340], 0, 3, 2, None),
            (vec![1, 2_300, 0], 0, 3, 2, Some(123)),
            (vec![1, 2_300, 1], 0, 3, 2, None),
            (vec![5], -2, 8, 8, Some(5)),
            (vec![5], -3, 8, 8, None),
            (vec![0], -3, 8, 8, Some(0)),
            (vec![1], 9, 37, 0, Some(10_i128.pow(36))),
            (vec![1], 10, 38, 0, None),
            (vec![1], i16::MAX, 38, 0, None),
            (vec![1], i16::MIN, 38, 38, None),
        ] {
            let raw = bytes(&digits);
            let found = unscaled(&numeric(&raw, weight), precision, scale);
            assert_eq!(found, expected, "{digits:?} {weight} {precision} {scale}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for sign in [NumericSign::NaN, NumericSign::Infinity, NumericSign::NegativeInfinity] {
            let value = Numeric { digits: &[], weight: 0, sign, scale: 0 };
            assert_eq!(unscaled(&value, 38, 0), None);
        }
    }

    proptest! {
        /// 38 digits with the point anywhere come back as they are.
        #[test]
        fn every_number_that_fits_is_held(
            expected in -(10_i128.pow(38) - 1)..10_i128.pow(38),
            scale in 0..=38_u8,
            cut in 0..38_u32,
        ) {
            let expected = expected / 10_i128.pow(cut);
            // The digits in base 10,000, aligned with the point.
            let padding = usize::from((4 - scale % 4) % 4);
            let mut text = format!("{}{}", expected.unsigned_abs(), "0".repeat(padding));
            text = "0".repeat((4 - text.len() % 4) % 4) + &text;
            let digits: Vec<u16> = text
                .as_bytes()
                .chunks(4)
                .map(|four| std::str::from_utf8(four).unwrap().parse().unwrap())
                .collect();
            let behind = (usize::from(scale) + padding) / 4;
            let weight = digits.len() as i16 - behind as i16 - 1;
            let raw = bytes(&digits);
            let sign = if expected < 0 { NumericSign::Negative } else { NumericSign::Positive };
            let value = Numeric { sign, ..numeric(&raw, weight) };
            prop_assert_eq!(unscaled(&value, 38, scale), Some(expected));
        }
    }
}
