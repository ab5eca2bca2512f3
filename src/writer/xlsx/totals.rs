//! The totals below a sheet's rows, right for any number of rows in bounded memory.
//!
//! They are values and not formulas: a formula would see one sheet of several, and Excel would add
//! up binary fractions.
//! - `integer` and `numeric` are added up exactly: whole numbers in 128 bits, decimals in an array
//!   with a 64-bit sum for each group of four digits, carried over only at the end, as PostgreSQL
//!   does it. It is as long as the longest number, not as the number of rows.
//! - Floating point is added up with the error of each addition kept apart (Neumaier 1974), so
//!   the sum does not depend on the number of rows, nor in practice on their order. A `real` counts as
//!   the decimal that its cell shows.
//! - A mean is the exact sum divided by the number of values, NULL apart, rounded half away from
//!   zero to the 15 digits that a cell holds; of floating point, the quotient.
//! - NaN and the infinities follow PostgreSQL: NaN is above all numbers, and `Infinity` added to
//!   `-Infinity` is NaN. The sum, mean, least and greatest of nothing is an empty cell.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::super::{Cell, Numeric, NumericSign};
use super::layout::Total;

/// Digits of a mean: what a cell keeps.
const MEAN_DIGITS: usize = 15;
/// The base of the digits of a `numeric`.
const BASE: i64 = 10_000;

/// The totals of a sheet, while its rows pass.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// By column; empty if no column has one.
    columns: Vec<Option<Accumulator>>,
}

/// A total. A borrowed [`Cell`] of it can be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A value that owns nothing.
    Plain(Cell<'static>),
    /// A decimal.
    Decimal(Decimal),
}

/// A `numeric` that owns its digits.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decimal {
    digits: Vec<u8>,
    weight: i16,
    sign: NumericSign,
    scale: u16,
}

impl Totals {
    pub fn new(columns: usize, declared: &[(usize, Total)]) -> Self {
        if declared.is_empty() {
            return Self::default();
        }
        let mut all = Vec::new();
        all.resize_with(columns, || None);
        for &(column, total) in declared {
            if let Some(place) = all.get_mut(column) {
                *place = Some(Accumulator::new(total));
            }
        }
        Self { columns: all }
    }

    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Counts in the cell of a column.
    pub fn add(&mut self, column: usize, cell: Cell<'_>) {
        if let Some(Some(accumulator)) = self.columns.get_mut(column) {
            accumulator.add(cell);
        }
    }

    /// The totals by column, `None` where there is none.
    pub fn values(&self) -> Vec<Option<Value>> {
        self.columns.iter().map(|column| column.as_ref().map(Accumulator::value)).collect()
    }
}

impl Value {
    pub fn cell(&self) -> Cell<'_> {
        match self {
            Self::Plain(cell) => *cell,
            Self::Decimal(Decimal { digits, weight, sign, scale }) => {
                Cell::Numeric(Numeric { digits, weight: *weight, sign: *sign, scale: *scale })
            }
        }
    }

    /// Keeps a value, where its kind can be compared.
    fn keep(cell: Cell<'_>) -> Self {
        Self::Plain(match cell {
            Cell::Int(value) => Cell::Int(value),
            Cell::Float4(value) => Cell::Float4(value),
            Cell::Float8(value) => Cell::Float8(value),
            Cell::Date(value) => Cell::Date(value),
            Cell::Timestamp(value) => Cell::Timestamp(value),
            Cell::TimestampTz(value) => Cell::TimestampTz(value),
            Cell::Time(value) => Cell::Time(value),
            Cell::Numeric(Numeric { digits, weight, sign, scale }) => {
                return Self::Decimal(Decimal { digits: digits.to_vec(), weight, sign, scale });
            }
            // Definitions with such totals are refused.
            Cell::Null
            | Cell::Bool(_)
            | Cell::Text(_)
            | Cell::Json(_)
            | Cell::Bytes(_)
            | Cell::Uuid(_) => Cell::Null,
        })
    }
}

#[derive(Debug)]
enum Accumulator {
    Count(i64),
    Amount { mean: bool, count: u64, amount: Amount },
    Extreme { wanted: Ordering, found: Option<Value> },
}

impl Accumulator {
    const fn new(total: Total) -> Self {
        match total {
            Total::Count => Self::Count(0),
            Total::Sum => Self::Amount { mean: false, count: 0, amount: Amount::Nothing },
            Total::Avg => Self::Amount { mean: true, count: 0, amount: Amount::Nothing },
            Total::Min => Self::Extreme { wanted: Ordering::Less, found: None },
            Total::Max => Self::Extreme { wanted: Ordering::Greater, found: None },
        }
    }

    fn add(&mut self, cell: Cell<'_>) {
        if cell == Cell::Null {
            return;
        }
        match self {
            Self::Count(count) => *count += 1,
            Self::Amount { mean: _, count, amount } => {
                *count += 1;
                amount.add(cell);
            }
            Self::Extreme { wanted, found } => {
                let better = match found {
                    Some(best) => compare(cell, best.cell()) == *wanted,
                    None => true,
                };
                if better {
                    *found = Some(Value::keep(cell));
                }
            }
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Count(count) => Value::Plain(Cell::Int(*count)),
            Self::Amount { mean, count, amount } => amount.value(mean.then_some(*count)),
            Self::Extreme { wanted: _, found } => found.clone().unwrap_or(Value::Plain(Cell::Null)),
        }
    }
}

/// A sum of values of one kind.
#[derive(Debug)]
enum Amount {
    Nothing,
    Whole(i128),
    Decimal(DecimalSum),
    Float(FloatSum),
}

impl Amount {
    fn add(&mut self, cell: Cell<'_>) {
        if let Self::Nothing = self {
            *self = match cell {
                Cell::Int(_) => Self::Whole(0),
                Cell::Numeric(_) => Self::Decimal(DecimalSum::default()),
                Cell::Float4(_) | Cell::Float8(_) => Self::Float(FloatSum::default()),
                _ => return,
            };
        }
        match (self, cell) {
            // 2⁶⁴ values of 64 bits fit.
            (Self::Whole(sum), Cell::Int(value)) => *sum += i128::from(value),
            (Self::Decimal(sum), Cell::Numeric(value)) => sum.add(&value),
            (Self::Float(sum), Cell::Float8(value)) => sum.add(value),
            (Self::Float(sum), Cell::Float4(value)) => {
                sum.add(value.to_string().parse().unwrap_or(f64::from(value)));
            }
            _ => {}
        }
    }

    /// The sum, or divided by a number of values the mean.
    fn value(&self, divisor: Option<u64>) -> Value {
        match (self, divisor) {
            (Self::Nothing, _) => Value::Plain(Cell::Null),
            (Self::Whole(sum), None) => match i64::try_from(*sum) {
                Ok(sum) => Value::Plain(Cell::Int(sum)),
                Err(_) => Value::Decimal(
                    Digits { negative: *sum < 0, digits: whole_digits(*sum), exponent: 0 }
                        .decimal(),
                ),
            },
            (Self::Whole(sum), Some(count)) => {
                let sum = Digits { negative: *sum < 0, digits: whole_digits(*sum), exponent: 0 };
                Value::Decimal(sum.divided(count).decimal())
            }
            (Self::Decimal(sum), None) => Value::Decimal(sum.value()),
            (Self::Decimal(sum), Some(count)) => Value::Decimal(match sum.special() {
                Some(sign) => special(sign),
                None => sum.digits().divided(count).decimal(),
            }),
            (Self::Float(sum), None) => Value::Plain(Cell::Float8(sum.value())),
            (Self::Float(sum), Some(count)) => {
                Value::Plain(Cell::Float8(sum.value() / count as f64))
            }
        }
    }
}

fn whole_digits(value: i128) -> Vec<u8> {
    value.unsigned_abs().to_string().into_bytes().into_iter().map(|byte| byte - b'0').collect()
}

/// Floating point values, and apart from them what their additions lost.
#[derive(Debug, Default)]
struct FloatSum {
    sum: f64,
    lost: f64,
    /// The sum of the infinities and NaNs, if there are some.
    special: Option<f64>,
}

impl FloatSum {
    fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.special = Some(self.special.unwrap_or_default() + value);
            return;
        }
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    fn value(&self) -> f64 {
        self.special.unwrap_or(self.sum + self.lost)
    }
}

/// Exact decimals.
#[derive(Debug, Default)]
struct DecimalSum {
    /// A sum for each power of [`BASE`], the highest first. No row adds more than 9,999 to one, so
    /// there is room for 9 × 10¹⁴ rows.
    groups: VecDeque<i64>,
    /// The power of the first group.
    weight: i32,
    scale: u16,
    is_nan: bool,
    is_infinite: bool,
    is_negative_infinite: bool,
}

impl DecimalSum {
    fn add(&mut self, value: &Numeric<'_>) {
        let sign = match value.sign {
            NumericSign::Positive => 1,
            NumericSign::Negative => -1,
            NumericSign::NaN => return self.is_nan = true,
            NumericSign::Infinity => return self.is_infinite = true,
            NumericSign::NegativeInfinity => return self.is_negative_infinite = true,
        };
        self.scale = self.scale.max(value.scale);
        let count = value.digits.len() / 2;
        if count == 0 {
            return;
        }
        let weight = i32::from(value.weight);
        if self.groups.is_empty() {
            self.weight = weight;
        }
        while self.weight < weight {
            self.groups.push_front(0);
            self.weight += 1;
        }
        let first = usize::try_from(self.weight - weight).unwrap_or_default();
        if self.groups.len() < first + count {
            self.groups.resize(first + count, 0);
        }
        for (group, digit) in self.groups.range_mut(first..).zip(value.digits.chunks_exact(2)) {
            *group += sign * i64::from(u16::from_be_bytes([digit[0], digit[1]]));
        }
    }

    /// What the sum is if it is no number.
    const fn special(&self) -> Option<NumericSign> {
        match (self.is_nan, self.is_infinite, self.is_negative_infinite) {
            (true, _, _) | (_, true, true) => Some(NumericSign::NaN),
            (_, true, _) => Some(NumericSign::Infinity),
            (_, _, true) => Some(NumericSign::NegativeInfinity),
            (false, false, false) => None,
        }
    }

    fn value(&self) -> Decimal {
        match self.special() {
            Some(sign) => special(sign),
            None => Decimal { scale: self.scale, ..self.digits().decimal() },
        }
    }

    fn digits(&self) -> Digits {
        let (mut groups, mut carry) = carried(self.groups.iter().rev().copied());
        let negative = carry < 0;
        if negative {
            (groups, carry) = carried(self.groups.iter().rev().map(|group| -group));
        }
        let exponent = (self.weight + 1 - self.groups.len() as i32) * 4;
        while carry > 0 {
            groups.push((carry % BASE) as u16);
            carry /= BASE;
        }
        let digits = groups.iter().rev().flat_map(|&group| {
            [group / 1_000, group / 100 % 10, group / 10 % 10, group % 10].map(|digit| digit as u8)
        });
        Digits { negative, digits: digits.collect(), exponent }
    }
}

/// Digits in [`BASE`] of groups, the lowest first, and what goes beyond them.
fn carried(groups: impl Iterator<Item = i64>) -> (Vec<u16>, i64) {
    let mut carry = 0;
    let digits = groups.map(|group| {
        let sum = group + carry;
        carry = sum.div_euclid(BASE);
        sum.rem_euclid(BASE) as u16
    });
    (digits.collect(), carry)
}

const fn special(sign: NumericSign) -> Decimal {
    Decimal { digits: Vec::new(), weight: 0, sign, scale: 0 }
}

/// Decimal digits, the highest first, of which the last counts 10 to the power of `exponent`.
#[derive(Debug)]
struct Digits {
    negative: bool,
    digits: Vec<u8>,
    exponent: i32,
}

impl Digits {
    /// The quotient, rounded half away from zero to [`MEAN_DIGITS`] digits. The next digit alone
    /// decides: from 5 on, the rest is a half or more.
    fn divided(&self, divisor: u64) -> Self {
        let divisor = u128::from(divisor.max(1));
        let mut exponent = self.exponent + self.digits.len() as i32;
        let mut quotient: Vec<u8> = Vec::with_capacity(MEAN_DIGITS + 1);
        let mut remainder: u128 = 0;
        // Ends: the divisor has at most 20 digits, so that many zeros may stand in front.
        for digit in self.digits.iter().copied().chain(std::iter::repeat_n(0, 40)) {
            remainder = remainder * 10 + u128::from(digit);
            exponent -= 1;
            let next = (remainder / divisor) as u8;
            remainder %= divisor;
            if next != 0 || !quotient.is_empty() {
                quotient.push(next);
            }
            if quotient.len() > MEAN_DIGITS {
                break;
            }
        }
        if quotient.len() > MEAN_DIGITS {
            exponent += 1;
            if quotient.pop().is_some_and(|digit| digit >= 5) {
                increase(&mut quotient);
            }
        }
        Self { negative: self.negative, digits: quotient, exponent }
    }

    fn decimal(mut self) -> Decimal {
        let scale = u16::try_from(-self.exponent).unwrap_or(0);
        let missing = self.exponent.rem_euclid(4);
        self.digits.extend(std::iter::repeat_n(0, missing as usize));
        let in_front = (4 - self.digits.len() % 4) % 4;
        let padded: Vec<u8> = std::iter::repeat_n(0, in_front).chain(self.digits).collect();
        let groups = padded
            .chunks_exact(4)
            .map(|four| four.iter().fold(0_u16, |group, &digit| group * 10 + u16::from(digit)));
        let groups: Vec<u16> = groups.collect();
        let last = (self.exponent - missing) / 4;
        let leading = groups.iter().take_while(|&&group| group == 0).count();
        let groups = &groups[leading..];
        let Ok(weight) = i16::try_from(last + groups.len() as i32 - 1) else {
            // Beyond what `numeric` itself holds.
            return special(match self.negative {
                true => NumericSign::NegativeInfinity,
                false => NumericSign::Infinity,
            });
        };
        if groups.is_empty() {
            return Decimal { scale, ..special(NumericSign::Positive) };
        }
        Decimal {
            digits: groups.iter().flat_map(|group| group.to_be_bytes()).collect(),
            weight,
            sign: if self.negative { NumericSign::Negative } else { NumericSign::Positive },
            scale,
        }
    }
}

/// Adds one to the last of decimal digits. All nines become a one and as many zeros: one digit
/// more, which is a zero and does no harm.
fn increase(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit < 9 {
            *digit += 1;
            return;
        }
        *digit = 0;
    }
    digits.insert(0, 1);
}

/// PostgreSQL's order of two values of one kind.
fn compare(a: Cell<'_>, b: Cell<'_>) -> Ordering {
    match (a, b) {
        (Cell::Int(a), Cell::Int(b)) => a.cmp(&b),
        (Cell::Date(a), Cell::Date(b)) => a.cmp(&b),
        (Cell::Timestamp(a), Cell::Timestamp(b))
        | (Cell::TimestampTz(a), Cell::TimestampTz(b))
        | (Cell::Time(a), Cell::Time(b)) => a.cmp(&b),
        (Cell::Float4(a), Cell::Float4(b)) => compare_floats(f64::from(a), f64::from(b)),
        (Cell::Float8(a), Cell::Float8(b)) => compare_floats(a, b),
        (Cell::Numeric(a), Cell::Numeric(b)) => compare_numerics(&a, &b),
        _ => Ordering::Equal,
    }
}

fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn compare_numerics(a: &Numeric<'_>, b: &Numeric<'_>) -> Ordering {
    let rank = |value: &Numeric<'_>| match value.sign {
        NumericSign::NegativeInfinity => -2,
        NumericSign::Negative if significant(value).0.is_empty() => 0,
        NumericSign::Negative => -1,
        NumericSign::Positive if significant(value).0.is_empty() => 0,
        NumericSign::Positive => 1,
        NumericSign::Infinity => 2,
        NumericSign::NaN => 3,
    };
    let (rank_a, rank_b) = (rank(a), rank(b));
    rank_a.cmp(&rank_b).then_with(|| {
        let ((digits_a, weight_a), (digits_b, weight_b)) = (significant(a), significant(b));
        let magnitude = weight_a.cmp(&weight_b).then_with(|| digits_a.cmp(digits_b));
        match rank_a {
            1 => magnitude,
            -1 => magnitude.reverse(),
            _ => Ordering::Equal,
        }
    })
}

/// The digits without zeros at either end, and the power of the first one.
fn significant<'a>(value: &Numeric<'a>) -> (&'a [u8], i32) {
    let (mut digits, mut weight) = (value.digits, i32::from(value.weight));
    while let [0, 0, rest @ ..] = digits {
        (digits, weight) = (rest, weight - 1);
    }
    while let [rest @ .., 0, 0] = digits {
        digits = rest;
    }
    (digits, weight)
}

#[cfg(test)]
mod tests;
