//! Renders the timelines of starts and teardowns: a bar for each step, from where it begins, and a table of the same.

use super::svg::{Anchor, Scale, Svg, escape};
use super::table::{Cell, table};
use crate::format;
use crate::report_data::Timeline;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 140.0;
const RIGHT: f64 = 70.0;
const ROW: f64 = 18.0;
const AXIS: f64 = 26.0;

pub(crate) fn of(timelines: &[&Timeline]) -> String {
    if timelines.is_empty() {
        return String::new();
    }
    let mut text = "<h2 id=\"timelines\">Where the time goes</h2>\n<p>Steps of a driver's starts and teardowns by its own \
                    word, medians. What overlaps ran side by side; a step with / is a part of another.</p>\n"
        .to_owned();
    for timeline in timelines {
        let title = format::where_time_goes(&timeline.key);
        let (count, calls) = (timeline.count, timeline.containerd_calls);
        let total = format::milliseconds(timeline.total_ns as f64);
        text += &format!("<h3>{}</h3>\n", escape(&title));
        text += &format!("<p>{count} of them, medians: {total} in all, {calls} calls to containerd.</p>\n");
        text += &draw(&title, timeline);
        text += &figures(timeline);
    }
    text
}

fn draw(title: &str, timeline: &Timeline) -> String {
    let bottom = timeline.steps.len() as f64 * ROW;
    let ends = timeline.steps.iter().map(|step| (step.begin_ns + step.length_ns) as f64);
    let scale = Scale::linear(ends.chain([timeline.total_ns as f64]), LEFT, WIDTH - RIGHT);
    let mut svg = Svg::new(title, WIDTH, bottom + AXIS);
    svg.axis(scale, bottom, format::milliseconds);
    for (number, step) in timeline.steps.iter().enumerate() {
        let (y, begin) = (number as f64 * ROW, step.begin_ns as f64);
        let (from, to) = (scale.at(begin), scale.at(begin + step.length_ns as f64));
        let class = if step.name.contains('/') { "other" } else { "plugin" };
        let takes = format::milliseconds(step.length_ns as f64);
        let tip = format!("{}: at {} for {takes}", step.name, format::milliseconds(begin));
        svg.text((LEFT - 8.0, y + 13.0), Anchor::End, "label", &step.name);
        svg.rect((from, y + 3.0), ((to - from).max(1.0), ROW - 6.0), class, &tip);
        svg.text((to + 6.0, y + 13.0), Anchor::Start, "label", &takes);
    }
    svg.finish()
}

fn figures(timeline: &Timeline) -> String {
    let ms = |ns: u64| Cell::Figure(format::milliseconds(ns as f64));
    let rows = timeline.steps.iter().map(|step| {
        vec![
            Cell::Word(step.name.clone()),
            Cell::Figure(step.count.to_string()),
            ms(step.begin_ns),
            ms(step.length_ns),
            ms(step.length_p90_ns),
        ]
    });
    table("Steps", &["step", "n", "begins", "takes", "takes p90"], &rows.collect::<Vec<_>>())
}
