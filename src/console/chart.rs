//! Charts as SVG, made on the server: no script, no inline style, and a table's worth of words for
//! those who do not see them.

use std::fmt::Write;

use minijinja::Value;

/// Drawing area, in the units of the `viewBox`.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 150.0;
const BASE: f64 = 124.0;
const TOP: f64 = 14.0;
/// Most labels below the bars.
const MAX_LABELS: usize = 7;

/// A bar of parts, each with the class that colours it.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Below it.
    pub label: String,
    /// From below to above.
    pub parts: Vec<(&'static str, f64)>,
}

impl Bar {
    fn sum(&self) -> f64 {
        self.parts.iter().map(|(_, value)| value).sum()
    }
}

/// Bars of parts on each other. `title` says what is drawn, `unit` what its figures are.
pub fn stacked(title: &str, unit: &str, bars: &[Bar]) -> Value {
    let most = bars.iter().map(Bar::sum).fold(0.0, f64::max);
    let words: Vec<_> = bars.iter().map(|bar| format!("{}: {:.0}", bar.label, bar.sum())).collect();
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escaped(&format!("{title}. {}", words.join(", ")))
    );
    let scale = if most > 0.0 { (BASE - TOP) / most } else { 0.0 };
    let step = WIDTH / usize_to_f64(bars.len().max(1));
    let every = bars.len().div_ceil(MAX_LABELS).max(1);
    for (index, bar) in bars.iter().enumerate() {
        let left = step * usize_to_f64(index) + step * 0.16;
        let mut bottom = BASE;
        let _ = write!(svg, "<g><title>{}: {:.1} {unit}</title>", escaped(&bar.label), bar.sum());
        for (class, value) in bar.parts.iter().filter(|(_, value)| *value > 0.0) {
            let height = (value * scale).max(1.0);
            bottom -= height;
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{bottom:.1}\" width=\"{:.1}\" \
                 height=\"{height:.1}\" rx=\"2\"/>",
                step * 0.68
            );
        }
        svg.push_str("</g>");
        if index % every == 0 {
            let middle = left + step * 0.34;
            let _ = write!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                BASE + 17.0,
                escaped(&bar.label)
            );
        }
    }
    let _ = write!(
        svg,
        "<path class=\"axis\" d=\"M0 {BASE}H{WIDTH}\"/><text x=\"0\" y=\"10\">{most:.0} {unit}</text></svg>"
    );
    Value::from_safe_string(svg)
}

/// One bar across, of parts of a whole.
pub fn share(parts: &[(&'static str, i64)]) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a share needs no last digit")]
    let parts: Vec<_> = parts.iter().map(|(class, rows)| (*class, (*rows).max(0) as f64)).collect();
    let whole: f64 = parts.iter().map(|(_, rows)| rows).sum::<f64>().max(1.0);
    let mut svg =
        "<svg class=\"chart\" viewBox=\"0 0 160 12\" aria-hidden=\"true\" width=\"160\" height=\"12\">"
            .to_owned();
    let mut left = 0.0;
    for (class, rows) in parts.iter().filter(|(_, rows)| *rows > 0.0) {
        // What is there at all is seen, however small its share.
        let width = (160.0 * rows / whole).max(2.0).min(160.0 - left);
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{left:.1}\" width=\"{width:.1}\" height=\"12\"/>"
        );
        left += width;
    }
    svg.push_str("</svg>");
    Value::from_safe_string(svg)
}

fn usize_to_f64(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_label_breaks_out() {
        let bar = Bar { label: "\"><script>".to_owned(), parts: vec![("c-good", 1.0)] };
        let svg = stacked("<b>", "rows", &[bar]).to_string();
        assert!(!svg.contains("<script>") && !svg.contains("<b>"), "{svg}");
    }

    proptest! {
        #[test]
        fn any_figures_are_drawn(rows in proptest::collection::vec(any::<i64>(), 0..6)) {
            let parts: Vec<_> = rows.iter().map(|rows| ("c-good", *rows)).collect();
            prop_assert!(!share(&parts).to_string().contains("NaN"));
        }
    }
}
