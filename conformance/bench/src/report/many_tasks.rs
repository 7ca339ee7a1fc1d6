//! Renders the cost of a task against the number of tasks: drawings by setup, and a table.

use super::class;
use super::svg::{Anchor, Scale, Svg, escape};
use super::table::{Cell, keys, table};
use crate::format::{self, MEBIBYTE};
use crate::growth::{self, KNEE, PerTask};
use crate::report_data::ScalePoint;
use crate::statistics::Distribution;

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 30.0;

type Figure = (&'static str, fn(&PerTask) -> Option<f64>, fn(f64) -> String);
/// The drawings: title, value, and format of each.
const FIGURES: [Figure; 4] = [
    ("start storm, time a task", |each| each.start_ns, format::milliseconds),
    ("stop storm, time a task", |each| each.stop_ns, format::milliseconds),
    (
        "CPU time each second of a task that is read",
        |each| each.steady_cpu_ns_per_second,
        format::milliseconds,
    ),
    (
        "memory a task, everybody's share in it",
        |each| each.memory_bytes.map(|bytes| bytes / MEBIBYTE),
        format::mebibytes,
    ),
];

/// The path whose setups share their drawings: each of them is a driver of its own.
const SHARED: &str = "agent";
/// Number of CSS classes of lines whose setups share a drawing.
const CLASSES: usize = 12;

/// The results of one path on one setup.
struct Line<'a> {
    path: &'a str,
    setup: &'a str,
    /// Title of the drawings that the line is in, and its name and CSS class in them.
    title: &'a str,
    name: &'a str,
    class: String,
    each: Vec<PerTask>,
    knee: Option<u32>,
}

pub(crate) fn of(points: &[&ScalePoint]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let merged = growth::merged(&points.iter().map(|point| (*point).clone()).collect::<Vec<_>>());
    let points: Vec<&ScalePoint> = merged.iter().collect();
    let lines: Vec<_> =
        growth::lines(&points).iter().enumerate().map(|(number, points)| line(number, points)).collect();
    let mut text = format!(
        "<h2 id=\"many-tasks\">Many tasks</h2>\n<p>A storm asks for all tasks at once. Its time is divided by the tasks. The \
         ring is the knee: the first count with which that is {KNEE} times the best of the smaller counts.</p>\n"
    );
    let mut titles: Vec<&str> = lines.iter().map(|line| line.title).collect();
    titles.dedup();
    for title in titles {
        let of_title: Vec<&Line<'_>> = lines.iter().filter(|line| line.title == title).collect();
        text += &format!("<h3>{}</h3>\n", escape(title));
        text += &keys(of_title.iter().map(|line| (&*line.class, line.name)));
        let drawings =
            FIGURES.iter().enumerate().map(|(number, figure)| draw(title, figure, &of_title, number == 0));
        text += &format!("<div class=\"drawings\">\n{}</div>\n", drawings.collect::<String>());
    }
    text + &figures(&points, &lines)
}

fn line<'a>(number: usize, points: &[&'a ScalePoint]) -> Line<'a> {
    let each: Vec<_> = points.iter().map(|point| PerTask::of(point)).collect();
    let (path, setup) = (&*points[0].path, &*points[0].setup);
    let (title, name, class) = if path == SHARED {
        ("under an agent", setup, format!("line-{}", number % CLASSES))
    } else {
        (setup, path, class(path).to_owned())
    };
    Line { path, setup, title, name, class, knee: growth::knee(&each), each }
}

fn draw(title: &str, (name, value, shown): &Figure, lines: &[&Line<'_>], has_knee: bool) -> String {
    let mut svg = Svg::new(&format!("{title}: {name}, by number of tasks"), WIDTH, HEIGHT);
    let all = || lines.iter().flat_map(|line| &line.each);
    let x = Scale::logarithmic(all().map(|each| f64::from(each.tasks)), LEFT, WIDTH - RIGHT);
    let y = Scale::linear(all().filter_map(value), HEIGHT - BOTTOM, TOP);
    svg.text((0.0, 14.0), Anchor::Start, "head", name);
    for tick in y.ticks() {
        svg.line((LEFT, y.at(tick)), (WIDTH - RIGHT, y.at(tick)), "axis");
        svg.text((LEFT - 6.0, y.at(tick) + 4.0), Anchor::End, "quiet", &shown(tick));
    }
    let mut counts: Vec<u32> = all().map(|each| each.tasks).collect();
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        let at = x.at(f64::from(count));
        svg.text((at, HEIGHT - BOTTOM + 18.0), Anchor::Middle, "quiet", &count.to_string());
    }
    for line in lines {
        let points = line.each.iter().filter_map(|each| Some((each.tasks, value(each)?)));
        let points: Vec<_> = points.collect();
        let at = |(tasks, value): &(u32, f64)| (x.at(f64::from(*tasks)), y.at(*value));
        svg.curve(&points.iter().map(at).collect::<Vec<_>>(), &line.class, line.name);
        for point in &points {
            let tip = format!("{}, {} tasks: {}", line.name, point.0, shown(point.1));
            svg.dot(at(point), 3.5, &line.class, &tip);
            if has_knee && line.knee == Some(point.0) {
                svg.dot(at(point), 7.0, "knee", &format!("the knee of {}", line.name));
            }
        }
    }
    svg.finish()
}

fn figures(points: &[&ScalePoint], lines: &[Line<'_>]) -> String {
    let median = |samples: &[u64]| {
        let median = Distribution::of(samples).percentile(0.5);
        Cell::Figure(median.map_or("-".to_owned(), |ns| format::milliseconds(ns as f64)))
    };
    let shown = |value: Option<f64>, shown: fn(f64) -> String| {
        Cell::Figure(value.map_or_else(|| "-".to_owned(), shown))
    };
    let storm = |ns: u64| shown((ns > 0).then_some(ns as f64), |ns| format!("{:.2} s", ns / 1e9));
    let rows = points.iter().map(|point| {
        let each = PerTask::of(point);
        let line = lines.iter().find(|line| line.setup == point.setup && line.path == point.path);
        let is_knee = line.is_some_and(|line| line.knee == Some(point.tasks));
        let failed = point.failures.len();
        vec![
            Cell::Word(point.setup.clone()),
            Cell::Word(point.path.clone()),
            Cell::Figure(format!("{}{}", point.tasks, if is_knee { " (knee)" } else { "" })),
            if failed > 0 { Cell::Bad(failed.to_string()) } else { Cell::Figure("0".to_owned()) },
            storm(point.start_storm_ns),
            median(&point.start_ns),
            median(&point.exec_ns),
            storm(point.stop_storm_ns),
            median(&point.stop_ns),
            shown(each.steady_cpu_ns_per_second, format::milliseconds),
            shown(each.memory_bytes, format::bytes),
            Cell::Long(parties(point)),
        ]
    });
    let heads = [
        "setup",
        "path",
        "tasks",
        "failed",
        "start storm",
        "median start",
        "median exec meanwhile",
        "stop storm",
        "median stop",
        "CPU a task and second",
        "memory a task",
        "memory of",
    ];
    table("All counts", &heads, &rows.collect::<Vec<_>>())
}

fn parties(point: &ScalePoint) -> String {
    let parts =
        point.memory_bytes.iter().map(|(party, bytes)| format!("{party} {}", format::bytes(*bytes as f64)));
    parts.collect::<Vec<_>>().join(", ")
}
