//! Numbers as PostgreSQL's output functions write them.
//!
//! `float4out` and `float8out` print the shortest digits that read back as the same value and lie
//! *strictly* between the two neighbouring midpoints; Rust's shortest digits may lie *on* a
//! midpoint, which round-half-even reads back as well. Of two decimals equally short and near,
//! PostgreSQL takes the even one. Both matter for a few values only (5e-20 and 2 ^ -12 as `real`
//! among them), so Rust's digits are taken and put right where needed.

use std::fmt::LowerExp;
use std::io::Write;
use std::str::FromStr;

use super::{Numeric, NumericSign};

/// Longest `{:e}` of an `f64`: sign, 17 digits, point, `e`, sign and three exponent digits.
const SCRATCH: usize = 32;
/// Decimal digits that an `f64` always keeps.
const KEPT_DIGITS: usize = 15;
/// Powers of ten within which every number of 15 digits is a normal `f64`.
const MAX_MAGNITUDE: usize = 300;

/// The two ASCII digits of a number below 100.
pub(super) const fn pair(value: u32) -> [u8; 2] {
    [b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8]
}

/// The four ASCII digits of a number below 10,000.
pub(super) const fn quad(value: u32) -> [u8; 4] {
    let [a, b] = pair(value / 100);
    let [c, d] = pair(value % 100);
    [a, b, c, d]
}

/// Appends a whole number.
#[inline]
pub(super) fn push_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    push_unsigned(out, value.unsigned_abs());
}

#[inline]
fn push_unsigned(out: &mut Vec<u8>, mut value: u64) {
    // `u64::MAX` has 20 digits.
    let mut digits = [0; 20];
    let mut start = digits.len();
    while value >= 100 {
        start -= 2;
        digits[start..start + 2].copy_from_slice(&pair((value % 100) as u32));
        value /= 100;
    }
    if value >= 10 {
        start -= 2;
        digits[start..start + 2].copy_from_slice(&pair(value as u32));
    } else {
        start -= 1;
        digits[start] = b'0' + value as u8;
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends a `numeric` with all the decimals of its scale.
pub(super) fn push_numeric(out: &mut Vec<u8>, value: &Numeric<'_>) {
    match value.sign {
        NumericSign::Positive => {}
        NumericSign::Negative => out.push(b'-'),
        NumericSign::NaN => return out.extend_from_slice(b"NaN"),
        NumericSign::Infinity => return out.extend_from_slice(b"Infinity"),
        NumericSign::NegativeInfinity => return out.extend_from_slice(b"-Infinity"),
    }
    let digit = |index: i32| -> u32 {
        usize::try_from(index)
            .ok()
            .and_then(|index| value.digits.get(index * 2..index * 2 + 2))
            .map_or(0, |pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
    };
    let weight = i32::from(value.weight);
    if weight < 0 {
        out.push(b'0');
    } else {
        push_unsigned(out, u64::from(digit(0)));
        for index in 1..=weight {
            out.extend_from_slice(&quad(digit(index)));
        }
    }
    let mut left = usize::from(value.scale);
    if left > 0 {
        out.push(b'.');
    }
    let mut index = weight + 1;
    while left > 0 {
        let shown = left.min(4);
        out.extend_from_slice(&quad(digit(index))[..shown]);
        left -= shown;
        index += 1;
    }
}

/// The decimal without the zeros that end its fraction, `None` when a reader that makes an `f64`
/// of it, as Excel and JavaScript do, does not keep all of its digits.
pub(super) fn held_decimal(text: &[u8]) -> Option<&[u8]> {
    if !text.last().is_some_and(u8::is_ascii_digit) {
        return None; // NaN or an infinity
    }
    let point = text.iter().position(|&byte| byte == b'.');
    let text = match point {
        Some(point) => {
            let last = text.iter().rposition(|&byte| byte != b'0').unwrap_or(0);
            &text[..if last == point { point } else { last + 1 }]
        }
        None => text,
    };
    if text.len() > MAX_MAGNITUDE {
        return None;
    }
    let significant = |byte: &u8| matches!(byte, b'1'..=b'9');
    let Some(first) = text.iter().position(significant) else { return Some(text) };
    let last = text.iter().rposition(significant).unwrap_or(first);
    let inner_point = point.is_some_and(|point| first < point && point < last);
    (last - first + 1 - usize::from(inner_point) <= KEPT_DIGITS).then_some(text)
}

/// Appends a `double precision`, or with `f32` a `real`.
pub(super) fn push_float<F: Float>(out: &mut Vec<u8>, value: F) {
    let wide = value.widen();
    if wide.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if wide.is_sign_negative() {
        out.push(b'-');
    }
    let wide = wide.abs();
    if wide.is_infinite() {
        return out.extend_from_slice(b"Infinity");
    }
    // Most columns of floats hold many whole numbers; below the limit they are exact.
    if wide < F::FIXED_BELOW && wide.fract() == 0.0 {
        return push_unsigned(out, wide as u64);
    }
    let shortest = Decimal::shortest(value.magnitude());
    let (digits, len) = shortest.text();
    let digits = &digits[..len];
    let exponent = shortest.exponent + len as i32 - 1;
    if exponent < -4 || wide >= F::FIXED_BELOW {
        push_scientific(out, digits, exponent);
    } else if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend_from_slice(&b"000"[..(-exponent - 1) as usize]);
        out.extend_from_slice(digits);
    } else {
        // Whole numbers were written above, so there are digits behind the point unless a
        // rounding made them zeros.
        let whole = exponent as usize + 1;
        if digits.len() <= whole {
            out.extend_from_slice(digits);
            out.resize(out.len() + whole - digits.len(), b'0');
        } else {
            out.extend_from_slice(&digits[..whole]);
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
    }
}

fn push_scientific(out: &mut Vec<u8>, digits: &[u8], exponent: i32) {
    out.push(digits[0]);
    if digits.len() > 1 {
        out.push(b'.');
        out.extend_from_slice(&digits[1..]);
    }
    out.push(b'e');
    out.push(if exponent < 0 { b'-' } else { b'+' });
    let size = exponent.unsigned_abs();
    if size >= 100 {
        push_unsigned(out, u64::from(size));
    } else {
        out.extend_from_slice(&pair(size));
    }
}

/// A binary floating point type that PostgreSQL has.
pub(super) trait Float: Copy + PartialEq + LowerExp + FromStr {
    /// From here on the scientific notation is used: as many digits as the type always keeps.
    const FIXED_BELOW: f64;
    /// This many digits tell any two values apart.
    const MAX_DIGITS: usize;
    /// The same value as an `f64`.
    fn widen(self) -> f64;
    /// The value without its sign.
    fn magnitude(self) -> Self;
    /// Mantissa and power of two of a finite, positive value, and whether the gap to the next
    /// smaller value is half of that to the next larger one.
    fn parts(self) -> (u64, i32, bool);
}

impl Float for f64 {
    const FIXED_BELOW: f64 = 1e15;
    const MAX_DIGITS: usize = 17;

    fn widen(self) -> f64 {
        self
    }

    fn magnitude(self) -> Self {
        self.abs()
    }

    fn parts(self) -> (u64, i32, bool) {
        parts(self.to_bits(), 52, 1023)
    }
}

impl Float for f32 {
    const FIXED_BELOW: f64 = 1e6;
    const MAX_DIGITS: usize = 9;

    fn widen(self) -> f64 {
        f64::from(self)
    }

    fn magnitude(self) -> Self {
        self.abs()
    }

    fn parts(self) -> (u64, i32, bool) {
        parts(u64::from(self.to_bits()), 23, 127)
    }
}

fn parts(bits: u64, mantissa_bits: u32, bias: i32) -> (u64, i32, bool) {
    let fraction = bits & ((1 << mantissa_bits) - 1);
    let exponent = (bits >> mantissa_bits) as i32;
    let least = 1 - bias - mantissa_bits as i32;
    match exponent {
        0 => (fraction, least, false),
        1 => (fraction | 1 << mantissa_bits, least, false),
        _ => (fraction | 1 << mantissa_bits, least + exponent - 1, fraction == 0),
    }
}

/// `digits * 10 ^ exponent`, without trailing zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decimal {
    digits: u64,
    exponent: i32,
}

impl Decimal {
    /// The digits that PostgreSQL prints for a finite value above zero.
    fn shortest<F: Float>(value: F) -> Self {
        let mut scratch = [0; SCRATCH];
        let shortest = Self::read(format_into(&mut scratch, format_args!("{value:e}")));
        if !shortest.is_midpoint(value) {
            return shortest.even_of_tie(value);
        }
        for digits in shortest.text().1..=F::MAX_DIGITS {
            let places = digits - 1;
            let text = format_into(&mut scratch, format_args!("{value:.places$e}"));
            let nearest = Self::read_padded(text);
            for digits in [nearest.digits, nearest.digits + 1, nearest.digits - 1] {
                let candidate = Self { digits, ..nearest }.normal();
                if candidate.reads_back(value) && !candidate.is_midpoint(value) {
                    return candidate;
                }
            }
        }
        shortest
    }

    fn read(text: &str) -> Self {
        Self::read_padded(text).normal()
    }

    /// Reads `d.ddde±x` with the zeros at its end.
    fn read_padded(text: &str) -> Self {
        let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
        let mut digits = 0_u64;
        let mut places = 0;
        for byte in mantissa.bytes().filter(u8::is_ascii_digit) {
            digits = digits * 10 + u64::from(byte - b'0');
            places += 1;
        }
        let exponent: i32 = exponent.parse().unwrap_or(0);
        Self { digits, exponent: exponent - (places - 1) }
    }

    fn normal(mut self) -> Self {
        while self.digits != 0 && self.digits.is_multiple_of(10) {
            self.digits /= 10;
            self.exponent += 1;
        }
        self
    }

    fn text(self) -> ([u8; 20], usize) {
        let mut text = [0; 20];
        let len = format_into(&mut text, format_args!("{}", self.digits)).len();
        (text, len)
    }

    fn reads_back<F: Float>(self, value: F) -> bool {
        let mut scratch = [0; SCRATCH];
        let text = format_into(&mut scratch, format_args!("{}e{}", self.digits, self.exponent));
        text.parse::<F>().is_ok_and(|read| read == value)
    }

    /// The even one of two decimals that are equally short and equally near to `value`.
    fn even_of_tie<F: Float>(self, value: F) -> Self {
        if self.digits.is_multiple_of(2) {
            return self;
        }
        let (mantissa, power, _) = value.parts();
        [self.digits - 1, self.digits + 1]
            .into_iter()
            .filter(|&other| {
                let doubled = Self { digits: self.digits + other, ..self };
                doubled.equals(mantissa, power + 1)
            })
            .map(|digits| Self { digits, ..self }.normal())
            .find(|other| other.reads_back(value) && !other.is_midpoint(value))
            .unwrap_or(self)
    }

    /// Whether this lies exactly half way between `value` and one of its neighbours.
    fn is_midpoint<F: Float>(self, value: F) -> bool {
        let (mantissa, power, narrow_below) = value.parts();
        self.equals(2 * mantissa + 1, power - 1)
            || if narrow_below {
                self.equals(4 * mantissa - 1, power - 2)
            } else {
                mantissa > 0 && self.equals(2 * mantissa - 1, power - 1)
            }
    }

    /// Whether this is exactly `numerator * 2 ^ power`.
    fn equals(self, numerator: u64, power: i32) -> bool {
        // The odd numerator (below 2 ^ 55) or the digits (below 2 * 10 ^ 17) must have the other
        // side's fives as a factor.
        if !(-24..=23).contains(&self.exponent) {
            return false;
        }
        let fives = 5_u128.pow(self.exponent.unsigned_abs());
        let (left, right) = (u128::from(numerator), u128::from(self.digits));
        let (left, right) =
            if self.exponent < 0 { (left * fives, right) } else { (left, right * fives) };
        odd_part(left, power) == odd_part(right, self.exponent)
    }
}

/// `value * 2 ^ power` as an odd number and its power of two.
fn odd_part(value: u128, power: i32) -> (u128, i32) {
    let twos = value.trailing_zeros();
    (value >> (twos & 127), power + twos as i32)
}

fn format_into<'a>(scratch: &'a mut [u8], text: std::fmt::Arguments<'_>) -> &'a str {
    let size = scratch.len();
    let mut rest = &mut *scratch;
    // A scratch that were too small would cut the text, never overrun it.
    let _ = rest.write_fmt(text);
    let used = size - rest.len();
    std::str::from_utf8(&scratch[..used]).unwrap_or_default()
}
