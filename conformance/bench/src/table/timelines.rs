//! Renders a timeline of starts or teardowns for a terminal: a line for each step, in the order in which they begin.

use std::fmt::Write as _;

use crate::format;
use crate::report_data::{Timeline, TimelineStep};

pub(crate) fn render(timeline: &Timeline) -> String {
    let Timeline { key, count, total_ns, containerd_calls, steps } = timeline;
    let width = steps.iter().map(|step| step.name.len()).max().unwrap_or(0).max(18);
    let mut text = format!(
        "\n{}: {count} of them, medians: {} in all, {containerd_calls} calls to containerd\n\
         what overlaps ran side by side; a step with / is a part of another\n\
         {:<width$} {:>5} {:>9} {:>9} {:>9}\n",
        format::where_time_goes(key),
        format::milliseconds(*total_ns as f64),
        "step, milliseconds",
        "n",
        "begins",
        "takes",
        "takes p90"
    );
    for TimelineStep { name, count, begin_ns, length_ns, length_p90_ns } in steps {
        let [begins, takes, p90] = [begin_ns, length_ns, length_p90_ns].map(|ns| *ns as f64 / 1e6);
        let _ = writeln!(text, "{name:<width$} {count:>5} {begins:>9.1} {takes:>9.1} {p90:>9.1}");
    }
    text
}
