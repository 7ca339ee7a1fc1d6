//! The page around all drawings and tables.

use anyhow::Result;

use super::svg::escape;
use super::{calls, ground, many_tasks};
use crate::bench::record::{Report, Series};

const STYLE: &str = include_str!("style.css");

/// # Errors
/// When samples can't be counted.
pub fn of(reports: &[Report]) -> Result<String> {
    let series: Vec<&Series> = reports.iter().flat_map(|report| &report.series).collect();
    let points: Vec<_> = reports.iter().flat_map(|report| &report.scale).collect();
    let mut page = head();
    page += &ground::of(reports);
    page += &calls::of(&series)?;
    page += &many_tasks::of(&points);
    page += &ground::not_measured(reports);
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

/// What each colour is, under a drawing.
pub fn keys<'a>(keys: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let keys = keys.map(|(class, name)| format!("<span class=\"key {class}\"></span>{}", escape(name)));
    format!("<p class=\"keys\" aria-hidden=\"true\">{}</p>\n", keys.collect::<String>())
}

/// A cell of a table.
pub enum Cell {
    Word(String),
    /// May be broken into lines.
    Long(String),
    Figure(String),
    /// A figure that ought to be none.
    Bad(String),
}

pub fn table(caption: &str, heads: &[&str], rows: &[Vec<Cell>]) -> String {
    let is_word = |column: usize| {
        rows.first()
            .and_then(|row| row.get(column))
            .is_some_and(|cell| matches!(cell, Cell::Word(_) | Cell::Long(_)))
    };
    let heads = heads.iter().enumerate().map(|(column, head)| {
        let class = if is_word(column) { " class=\"word\"" } else { "" };
        format!("<th scope=\"col\"{class}>{}</th>", escape(head))
    });
    let heads: String = heads.collect();
    let rows: String =
        rows.iter().map(|row| format!("<tr>{}</tr>\n", row.iter().map(cell).collect::<String>())).collect();
    let caption = escape(caption);
    format!(
        "<div class=\"scroll\"><table><caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn cell(cell: &Cell) -> String {
    match cell {
        Cell::Word(text) => format!("<td class=\"word\">{}</td>", escape(text)),
        Cell::Long(text) => format!("<td class=\"word long\">{}</td>", escape(text)),
        Cell::Figure(text) => format!("<td>{}</td>", escape(text)),
        Cell::Bad(text) => format!("<td class=\"bad\">{}</td>", escape(text)),
    }
}
