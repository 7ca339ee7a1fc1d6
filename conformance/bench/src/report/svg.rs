//! Draws SVG as text within a page: shapes have classes, which the page's style sheet colours for dark and light.
//! Knows nothing of benchmarks. Written by hand, as libraries that draw SVG have fixed colours or bring a script of
//! megabytes.

use std::fmt::Write as _;

/// Escapes characters that can't stand in a text or an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no way to express control characters.
            control if control.is_control() && control != '\n' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

pub(crate) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// Starts a drawing. Screen readers read its title aloud.
    pub(crate) fn new(title: &str, width: f64, height: f64) -> Self {
        let mut svg = Self { body: String::new(), width, height };
        svg.add(format_args!("<title>{}</title>", escape(title)));
        svg
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string can't fail.
        let _ = writeln!(self.body, "{element}");
    }

    pub(crate) fn text(&mut self, at: (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let ((x, y), text) = (at, escape(text));
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        ));
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    /// Draws a rectangle. `tip` is shown when the pointer is over it.
    pub(crate) fn rect(&mut self, at: (f64, f64), size: (f64, f64), class: &str, tip: &str) {
        let ((x, y), (width, height), tip) = (at, size, escape(tip));
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"><title>{tip}</title></rect>"#
        ));
    }

    pub(crate) fn dot(&mut self, at: (f64, f64), radius: f64, class: &str, tip: &str) {
        let ((x, y), tip) = (at, escape(tip));
        self.add(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" class="{class}"><title>{tip}</title></circle>"#
        ));
    }

    pub(crate) fn curve(&mut self, points: &[(f64, f64)], class: &str, tip: &str) {
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (points, tip) = (points.join(" "), escape(tip));
        self.add(format_args!(
            r#"<polyline points="{points}" class="curve {class}"><title>{tip}</title></polyline>"#
        ));
    }

    /// Draws the axis below horizontal bars: a line and a label for each tick.
    pub(crate) fn axis(&mut self, scale: Scale, bottom: f64, shown: fn(f64) -> String) {
        for tick in scale.ticks() {
            let x = scale.at(tick);
            self.line((x, 0.0), (x, bottom + 4.0), "axis");
            self.text((x, bottom + 18.0), Anchor::Middle, "quiet", &shown(tick));
        }
    }

    pub(crate) fn finish(self) -> String {
        let Self { body, width, height } = self;
        format!(
            "<svg role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\">\n{body}</svg>\n"
        )
    }
}

/// Maps values to positions between two edges of a drawing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// Returns a linear scale from 0 to a round number that is at least the maximum of `values`.
    pub(crate) fn linear(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let most = values.fold(0.0, f64::max);
        let step = round_step(most / 4.0);
        let most = if most > 0.0 { (most / step).ceil() * step } else { 1.0 };
        Self { least: 0.0, most, from, to, logarithmic: false }
    }

    /// Returns a logarithmic scale around `values`, which have to be positive. It ends at steps of 1, 2 or 5.
    pub(crate) fn logarithmic(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (least, most) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0), |(least, most), value| (value.min(least), value.max(most)));
        let (least, most) = if least.is_finite() { (least, most) } else { (1.0, 10.0) };
        let (least, most) = (step_below(least), step_above(most));
        Self { least, most: if most > least { most } else { least * 2.0 }, from, to, logarithmic: true }
    }

    pub(crate) fn at(self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.least) / self.least).ln() / (self.most / self.least).ln()
        } else {
            (value - self.least) / (self.most - self.least)
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    pub(crate) fn ticks(self) -> Vec<f64> {
        if !self.logarithmic {
            let step = round_step(self.most / 4.0);
            let count = (self.most / step).round() as u32;
            return (0..=count).map(|tick| f64::from(tick) * step).collect();
        }
        let mut ticks = vec![self.least];
        while let Some(last) = ticks.last().copied().filter(|last| *last < self.most * 0.999) {
            ticks.push(step_above(last * 1.001));
        }
        // If there are many ticks, those at powers of ten are enough.
        let is_power = |tick: &f64| (tick.log10() - tick.log10().round()).abs() < 1e-6;
        if ticks.len() > 7 { ticks.into_iter().filter(is_power).collect() } else { ticks }
    }
}

/// Returns the smallest of 1, 2, 5 times a power of ten that is at least `value`.
fn step_above(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= value * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

fn step_below(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [5.0, 2.0, 1.0].map(|step| step * power);
    steps.into_iter().find(|step| *step <= value * (1.0 + 1e-9)).unwrap_or(power)
}

fn round_step(value: f64) -> f64 {
    if value > 0.0 { step_above(value) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_report_says_cant_become_part_of_the_page() {
        assert_eq!(escape("<b a=\"1\">&\u{1}"), "&lt;b a=&quot;1&quot;&gt;&amp;\u{fffd}");
        let mut svg = Svg::new("</title><script>", 10.0, 10.0);
        svg.text((0.0, 0.0), Anchor::Start, "label", "<script>");
        svg.rect((0.0, 0.0), (1.0, 1.0), "bar", "<script>");
        assert!(!svg.finish().contains("<script>"));
    }

    #[test]
    fn a_linear_scale_has_round_ticks_from_nothing_on() {
        let scale = Scale::linear([3.0, 8.7].into_iter(), 100.0, 200.0);
        assert_eq!(scale.ticks(), [0.0, 5.0, 10.0]);
        assert_eq!((scale.at(0.0), scale.at(5.0), scale.at(10.0)), (100.0, 150.0, 200.0));
        assert_eq!(Scale::linear([].into_iter(), 0.0, 1.0).ticks().first(), Some(&0.0));
    }

    #[test]
    fn a_logarithmic_scale_is_as_far_from_1_to_10_as_from_10_to_100() {
        let scale = Scale::logarithmic([1.0, 99.0].into_iter(), 200.0, 0.0);
        assert_eq!(scale.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!((scale.at(10.0) - 100.0).abs() < 1e-9);
        assert_eq!(Scale::logarithmic([0.001, 10_000.0].into_iter(), 0.0, 1.0).ticks().len(), 8);
        assert!(Scale::logarithmic([5.0].into_iter(), 0.0, 1.0).at(5.0).is_finite());
    }
}
