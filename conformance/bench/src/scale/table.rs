//! Prints the results of runs with many tasks as a table for a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::format;
use crate::growth::{self, KNEE, PerTask};
use crate::report_data::ScalePoint;
use crate::statistics::Distribution;

pub(crate) fn render(points: &[ScalePoint]) -> String {
    let mut text = format!(
        "\n{:<26} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {:<34} memory of all, PSS, and a task's share\n",
        "", "tasks", "failed", "start", "a task", "exec p50", "stop", "a task", "read, CPU", "of which"
    );
    for line in growth::lines(&points.iter().collect::<Vec<_>>()) {
        let each: Vec<PerTask> = line.iter().map(|point| PerTask::of(point)).collect();
        for (point, each) in line.iter().zip(&each) {
            render_point(&mut text, point, each);
        }
        let name = format!("{} by {}", line[0].setup, line[0].path);
        let knee = growth::knee(&each).map_or_else(
            || "none: no count takes so much a task".to_owned(),
            |tasks| format!("at {tasks} tasks"),
        );
        let _ =
            writeln!(text, "{name}: the knee, {KNEE} times the best start storm's time a task, is {knee}\n");
    }
    for point in points.iter().filter(|point| !point.failures.is_empty()) {
        let (failed, first) = (point.failures.len(), point.failures[0].error.trim());
        let _ = writeln!(
            text,
            "{} by {}, {} tasks: {failed} failed, first: {first}",
            point.setup, point.path, point.tasks
        );
    }
    text
}

fn render_point(text: &mut String, point: &ScalePoint, each: &PerTask) {
    let name = format!("{} by {}", point.setup, point.path);
    let seconds = |ns: u64| format!("{:.2} s", ns as f64 / 1e9);
    let ms = |ns: Option<f64>| ns.map_or_else(|| "-".to_owned(), format::milliseconds);
    let exec = Distribution::of(&point.exec_ns).percentile(0.5).map(|ns| ns as f64);
    let _ = writeln!(
        text,
        "{name:<26} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {:<34} {}, {} each",
        point.tasks,
        point.failures.len(),
        seconds(point.start_storm_ns),
        ms(each.start_ns),
        ms(exec),
        seconds(point.stop_storm_ns),
        ms(each.stop_ns),
        ms(each.steady_cpu_ns_per_second),
        parties(&point.steady_cpu_ns_per_task_second, format::milliseconds),
        parties(&point.memory_bytes, format::bytes),
        each.memory_bytes.map_or_else(|| "-".to_owned(), format::bytes),
    );
}

fn parties(parts: &BTreeMap<String, u64>, shown: fn(f64) -> String) -> String {
    let shares = parts.iter().filter(|(_, value)| **value > 0);
    shares.map(|(who, value)| format!("{who} {}", shown(*value as f64))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::growth::tests::point;

    #[test]
    fn each_count_has_a_row_and_each_path_a_knee() {
        let text = render(&[point("direct", 1, 100), point("direct", 10, 5_000), point("daemon", 1, 100)]);
        assert!(text.contains(
            "here by direct: the knee, 1.25 times the best start storm's time a task, is at 10 tasks"
        ));
        assert!(
            text.contains("here by daemon: the knee, 1.25 times the best start storm's time a task, is none")
        );
        assert_eq!(text.lines().filter(|line| line.starts_with("here by direct ")).count(), 2);
    }
}
