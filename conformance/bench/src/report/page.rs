//! Renders the page around all drawings and tables.

use anyhow::Result;

use super::{calls, environment, many_tasks, timelines};
use crate::report_data::{Report, Series};

const STYLE: &str = include_str!("style.css");

/// # Errors
/// Fails if samples can't be counted.
pub(crate) fn of(reports: &[Report]) -> Result<String> {
    let series: Vec<&Series> = reports.iter().flat_map(|report| &report.series).collect();
    let points: Vec<_> = reports.iter().flat_map(|report| &report.scale).collect();
    let all: Vec<_> = reports.iter().flat_map(|report| &report.timelines).collect();
    let mut page = head();
    page += &environment::of(reports);
    page += &calls::of(&series)?;
    page += &timelines::of(&all);
    page += &many_tasks::of(&points);
    page += &environment::not_measured(reports);
    page += "</main>\n</body>\n</html>\n";
    Ok(page)
}

fn head() -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/>\n<title>Shim calls, measured</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main>\n<h1>Shim calls, measured</h1>\n\
         <p>Each bar is a median; the line across its end is the interval in which the median lies 19 times out of 20. \
         Paths took turns within a run, so figures of one run can be held against each other; those of different \
         machines can't. A call that failed has no time and is counted.</p>\n"
    )
}
