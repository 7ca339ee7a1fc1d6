//! Horizontal bars, one row each, grouped by setup: medians with their intervals, and costs by consumer.

use super::svg::{Anchor, Scale, Svg};
use super::{class, in_order, party_class};
use crate::format;
use crate::report_data::Series;
use crate::statistics::Distribution;

const WIDTH: f64 = 530.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 20.0;
const HEAD: f64 = 22.0;
const AXIS: f64 = 26.0;

/// The stacked parts of the bar of one setup and path.
pub(crate) struct Stack {
    pub(crate) setup: String,
    pub(crate) path: String,
    pub(crate) parts: Vec<(String, f64)>,
}

/// Draws rows below the names of their setups.
struct Rows<'a> {
    svg: Svg,
    scale: Scale,
    y: f64,
    setup: Option<&'a str>,
}

impl<'a> Rows<'a> {
    fn new(title: &str, setups: usize, rows: usize, scale: Scale, shown: fn(f64) -> String) -> Self {
        let bottom = setups as f64 * HEAD + rows as f64 * ROW;
        let mut svg = Svg::new(title, WIDTH, bottom + AXIS);
        svg.axis(scale, bottom, shown);
        Self { svg, scale, y: 0.0, setup: None }
    }

    /// Starts a row, and returns its upper edge.
    fn next(&mut self, setup: &'a str, path: &str) -> f64 {
        if self.setup != Some(setup) {
            self.setup = Some(setup);
            self.svg.text((0.0, self.y + HEAD - 6.0), Anchor::Start, "head", setup);
            self.y += HEAD;
        }
        let y = self.y;
        self.svg.text((LEFT - 8.0, y + 14.0), Anchor::End, "label", path);
        self.y += ROW;
        y
    }
}

/// Draws the medians of one call.
pub(crate) fn medians(call: &str, of_call: &[&Series]) -> String {
    let setups = in_order(of_call, |series| &*series.key.setup);
    let estimates: Vec<_> = of_call
        .iter()
        .map(|series| {
            let all = Distribution::of(&series.samples_ns);
            (all.percentile(0.5).map(|median| median as f64), all.median())
        })
        .collect();
    let ends =
        estimates.iter().filter_map(|(median, interval)| interval.map_or(*median, |found| Some(found.high)));
    let scale = Scale::linear(ends, LEFT, WIDTH - RIGHT);
    let title = format!("{call}: medians with their intervals, by setup and path");
    let mut rows = Rows::new(&title, setups.len(), of_call.len(), scale, format::milliseconds);
    for setup in setups {
        for (series, (median, interval)) in
            of_call.iter().zip(&estimates).filter(|(series, _)| series.key.setup == setup)
        {
            let y = rows.next(setup, &series.key.path);
            let Some(median) = *median else {
                rows.svg.text((LEFT + 4.0, y + 14.0), Anchor::Start, "quiet", "no call went well");
                continue;
            };
            let (x, middle) = (rows.scale.at(median), y + ROW / 2.0);
            let label = format::milliseconds(median);
            let tip = format!("{}, {}: {label}", series.key.path, setup);
            rows.svg.rect((LEFT, y + 4.0), (x - LEFT, ROW - 8.0), class(&series.key.path), &tip);
            let mut end = x;
            if let Some(interval) = interval {
                let (low, high) = (rows.scale.at(interval.low), rows.scale.at(interval.high));
                rows.svg.line((low, middle), (high, middle), "whisker");
                for edge in [low, high] {
                    rows.svg.line((edge, middle - 4.0), (edge, middle + 4.0), "whisker");
                }
                end = end.max(high);
            }
            rows.svg.text((end + 6.0, y + 14.0), Anchor::Start, "label", &label);
        }
    }
    rows.svg.finish()
}

pub(crate) fn stacks(title: &str, stacks: &[Stack], shown: fn(f64) -> String) -> String {
    let mut setups: Vec<&str> = Vec::new();
    for stack in stacks {
        if !setups.contains(&&*stack.setup) {
            setups.push(&stack.setup);
        }
    }
    let sum = |stack: &Stack| stack.parts.iter().map(|(_, value)| value).sum::<f64>();
    let scale = Scale::linear(stacks.iter().map(sum), LEFT, WIDTH - RIGHT);
    let mut rows = Rows::new(title, setups.len(), stacks.len(), scale, shown);
    for setup in setups {
        for stack in stacks.iter().filter(|stack| stack.setup == setup) {
            let y = rows.next(setup, &stack.path);
            let mut so_far = 0.0;
            for (party, value) in &stack.parts {
                let (from, to) = (rows.scale.at(so_far), rows.scale.at(so_far + value));
                let tip = format!("{party}: {}", shown(*value));
                rows.svg.rect((from, y + 4.0), (to - from, ROW - 8.0), party_class(party), &tip);
                so_far += value;
            }
            rows.svg.text((rows.scale.at(so_far) + 6.0, y + 14.0), Anchor::Start, "label", &shown(so_far));
        }
    }
    rows.svg.finish()
}
