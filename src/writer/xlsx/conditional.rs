//! Rules that show values by colour, in the library's words.

use rust_xlsxwriter::{
    Color, ConditionalFormat2ColorScale, ConditionalFormat3ColorScale, ConditionalFormatCell,
    ConditionalFormatCellRule as Rule, ConditionalFormatDataBar, ConditionalFormatValue, Worksheet,
    XlsxError,
};

use super::chart::column_number;
use super::layout::{Conditional, Operand, Operator, Rgb};
use super::package::styled;

/// Where the rules of a sheet without rows lie: below all that it holds. They stay, because the
/// styles of later rules are told by their number.
const BELOW: u32 = 10;

/// Adds the rules of a sheet for its rows of data, from 0, the first and the last.
pub(super) fn add(
    sheet: &mut Worksheet,
    rules: &[Conditional<usize>],
    (first, last): (u32, u32),
) -> Result<(), XlsxError> {
    let (first, last) = if first <= last { (first, last) } else { (first + BELOW, first + BELOW) };
    for rule in rules {
        let column = column_number(*rule.column());
        match rule {
            Conditional::DataBar { column: _, color } => {
                let mut bar = ConditionalFormatDataBar::new();
                if let Some(color) = color {
                    bar = bar.set_fill_color(self::color(*color)).set_solid_fill(true);
                }
                sheet.add_conditional_format(first, column, last, column, &bar)?;
            }
            Conditional::ColorScale { column: _, low, middle: Some(middle), high } => {
                let scale = ConditionalFormat3ColorScale::new()
                    .set_minimum_color(color(*low))
                    .set_midpoint_color(color(*middle))
                    .set_maximum_color(color(*high));
                sheet.add_conditional_format(first, column, last, column, &scale)?;
            }
            Conditional::ColorScale { column: _, low, middle: None, high } => {
                let scale = ConditionalFormat2ColorScale::new()
                    .set_minimum_color(color(*low))
                    .set_maximum_color(color(*high));
                sheet.add_conditional_format(first, column, last, column, &scale)?;
            }
            Conditional::Cell { column: _, operator, value, and, style } => {
                let value = operand(value);
                let upper = and.as_ref().map_or_else(|| value.clone(), operand);
                let cell = ConditionalFormatCell::new()
                    .set_rule(comparison(*operator, value, upper))
                    .set_format(styled(rust_xlsxwriter::Format::new(), style));
                sheet.add_conditional_format(first, column, last, column, &cell)?;
            }
        }
    }
    Ok(())
}

fn comparison(
    operator: Operator,
    value: ConditionalFormatValue,
    upper: ConditionalFormatValue,
) -> Rule<ConditionalFormatValue> {
    match operator {
        Operator::Equal => Rule::EqualTo(value),
        Operator::NotEqual => Rule::NotEqualTo(value),
        Operator::Greater => Rule::GreaterThan(value),
        Operator::GreaterOrEqual => Rule::GreaterThanOrEqualTo(value),
        Operator::Less => Rule::LessThan(value),
        Operator::LessOrEqual => Rule::LessThanOrEqualTo(value),
        Operator::Between => Rule::Between(value, upper),
        Operator::NotBetween => Rule::NotBetween(value, upper),
    }
}

fn operand(operand: &Operand) -> ConditionalFormatValue {
    match operand {
        Operand::Number(number) => (*number).into(),
        Operand::Text(text) => text.as_str().into(),
    }
}

pub(super) const fn color(color: Rgb) -> Color {
    Color::RGB(color.value())
}
