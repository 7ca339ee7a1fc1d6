//! Renders a section for each call: its medians by setup and path, its percentiles, its cost, and all of that as a
//! table.

use std::collections::BTreeMap;

use anyhow::Result;

use super::svg::escape;
use super::table::{Cell, keys, table};
use super::{bars, class, curves, in_order, party_class};
use crate::format::{self, MEBIBYTE};
use crate::report_data::{Key, Series};
use crate::statistics::{Distribution, ratio_within_run};

/// The path that others are compared with.
const REFERENCE: &str = "direct";

/// # Errors
/// Fails if samples can't be counted.
pub(crate) fn of(all: &[&Series]) -> Result<String> {
    if all.is_empty() {
        return Ok(String::new());
    }
    let calls = in_order(all, |series| format::call(&series.key));
    let links = calls.iter().map(|call| format!("<a href=\"#{}\">{}</a>\n", anchor(call), escape(call)));
    let mut text = format!("<h2 id=\"calls\">Calls</h2>\n<nav>\n{}</nav>\n", links.collect::<String>());
    text += &overview(&calls, all);
    for call in &calls {
        let of_call: Vec<&Series> =
            all.iter().filter(|series| format::call(&series.key) == *call).copied().collect();
        text += &section(call, &of_call)?;
    }
    Ok(text + &memory(all))
}

/// Renders a table of all medians, with a column for each path.
fn overview(calls: &[String], all: &[&Series]) -> String {
    let paths = in_order(all, |series| &*series.key.path);
    let setups = in_order(all, |series| &*series.key.setup);
    let mut rows = Vec::new();
    for (call, setup) in calls.iter().flat_map(|call| setups.iter().map(move |setup| (call, setup))) {
        let of = |path: &&str| {
            let is_it = |series: &&&Series| {
                series.key.path == *path && series.key.setup == *setup && format::call(&series.key) == *call
            };
            let median =
                all.iter().find(is_it).and_then(|it| Distribution::of(&it.samples_ns).percentile(0.5));
            Cell::Figure(median.map_or("-".to_owned(), |ns| format::milliseconds(ns as f64)))
        };
        let names = [Cell::Word(call.clone()), Cell::Word((*setup).to_owned())];
        rows.push(names.into_iter().chain(paths.iter().map(of)).collect());
    }
    let heads: Vec<&str> = ["call", "setup"].into_iter().chain(paths.iter().copied()).collect();
    table("Medians by path", &heads, &rows)
}

fn section(call: &str, of_call: &[&Series]) -> Result<String> {
    let mut text = format!("<h3 id=\"{}\">{}</h3>\n", anchor(call), escape(call));
    let paths = in_order(of_call, |series| &*series.key.path);
    text += &keys(paths.iter().map(|path| (class(path), *path)));
    text += "<div class=\"drawings\">\n";
    text += &bars::medians(call, of_call);
    let setups = in_order(of_call, |series| &*series.key.setup);
    for setup in &setups {
        let of_setup: Vec<&Series> =
            of_call.iter().filter(|series| series.key.setup == *setup).copied().collect();
        text += &curves::percentiles(call, setup, &of_setup, of_call)?;
    }
    text += "</div>\n";
    text += &figures(call, of_call);
    text += &cost(call, of_call);
    Ok(text + &failures(of_call))
}

fn figures(call: &str, of_call: &[&Series]) -> String {
    let ms =
        |value: Option<u64>| Cell::Figure(value.map_or("-".to_owned(), |ns| format::milliseconds(ns as f64)));
    let rows = of_call.iter().map(|series| {
        let all = Distribution::of(&series.samples_ns);
        let interval = all.median().map_or("-".to_owned(), |median| {
            format!("{} to {}", format::milliseconds(median.low), format::milliseconds(median.high))
        });
        let failed = series.failures.len();
        let failed = if failed > 0 { Cell::Bad(failed.to_string()) } else { Cell::Figure("0".to_owned()) };
        vec![
            Cell::Word(series.key.setup.clone()),
            Cell::Word(series.key.path.clone()),
            Cell::Figure(all.count().to_string()),
            failed,
            ms(all.least()),
            ms(all.percentile(0.5)),
            Cell::Figure(interval),
            ms(all.percentile(0.9)),
            ms(all.percentile(0.99)),
            ms(all.most()),
            Cell::Figure(all.mean().map_or("-".to_owned(), format::milliseconds)),
            Cell::Figure(against_reference(series, of_call)),
        ]
    });
    let heads = [
        "setup",
        "path",
        "n",
        "failed",
        "least",
        "median",
        "19 times in 20",
        "p90",
        "p99",
        "most",
        "mean",
        "times direct",
    ];
    table(&format!("{call}: times"), &heads, &rows.collect::<Vec<_>>())
}

fn against_reference(series: &Series, of_call: &[&Series]) -> String {
    let is_reference = |other: &&&Series| other.key.path == REFERENCE && other.key.setup == series.key.setup;
    let reference = of_call.iter().find(is_reference).filter(|reference| reference.key != series.key);
    let ratio = reference.and_then(|reference| ratio_within_run(reference, series));
    ratio.map_or_else(
        || "-".to_owned(),
        |ratio| format!("{:.2} ({:.2} to {:.2})", ratio.value, ratio.low, ratio.high),
    )
}

fn cost(call: &str, of_call: &[&Series]) -> String {
    let costs =
        of_call.iter().filter_map(|series| Some((&series.key, &series.cost.as_ref()?.cpu_ns_per_call)));
    let rows: Vec<bars::Stack> = costs.map(|(key, parts)| stack(key, parts, 1.0)).collect();
    let title = format!("{call}: CPU time a call, by who takes it");
    stacked(&title, &rows, format::milliseconds)
}

/// Renders the memory usage of the processes that take part. It hardly differs from call to call, so the maximum over
/// all calls is shown.
fn memory(all: &[&Series]) -> String {
    let mut most: Vec<(&Key, BTreeMap<String, u64>)> = Vec::new();
    for series in all {
        let Some(cost) = &series.cost else { continue };
        let is_same =
            |(key, _): &&mut (&Key, _)| key.setup == series.key.setup && key.path == series.key.path;
        let parts =
            if cost.proportional_bytes.is_empty() { &cost.resident_bytes } else { &cost.proportional_bytes };
        match most.iter_mut().find(is_same) {
            None => most.push((&series.key, parts.clone())),
            Some((_, known)) => parts.iter().for_each(|(party, bytes)| {
                let known = known.entry(party.clone()).or_default();
                *known = (*known).max(*bytes);
            }),
        }
    }
    let rows: Vec<_> = most.iter().map(|(key, parts)| stack(key, parts, MEBIBYTE)).collect();
    stacked("Memory of those who take part, the most of all calls", &rows, format::mebibytes)
}

fn stack(key: &Key, parts: &BTreeMap<String, u64>, unit: f64) -> bars::Stack {
    let parts = parts
        .iter()
        .filter(|(_, value)| **value > 0)
        .map(|(party, value)| (party.clone(), *value as f64 / unit));
    bars::Stack { setup: key.setup.clone(), path: key.path.clone(), parts: parts.collect() }
}

/// Draws stacked bars, with a table of the same values.
fn stacked(title: &str, rows: &[bars::Stack], shown: fn(f64) -> String) -> String {
    let mut parties: Vec<&str> = rows.iter().flat_map(|row| &row.parts).map(|(party, _)| &**party).collect();
    parties.sort_unstable();
    parties.dedup();
    if parties.is_empty() {
        return String::new();
    }
    let cells = rows.iter().map(|row| {
        let of = |party: &&str| {
            let part = row.parts.iter().find(|(name, _)| name == party);
            Cell::Figure(part.map_or("-".to_owned(), |(_, value)| shown(*value)))
        };
        let names = [Cell::Word(row.setup.clone()), Cell::Word(row.path.clone())];
        names.into_iter().chain(parties.iter().map(of)).collect()
    });
    let heads: Vec<&str> = ["setup", "path"].into_iter().chain(parties.iter().copied()).collect();
    let legend = keys(parties.iter().map(|party| (party_class(party), *party)));
    let drawing = bars::stacks(title, rows, shown);
    format!(
        "<h4>{}</h4>\n{legend}{drawing}{}",
        escape(title),
        table(title, &heads, &cells.collect::<Vec<_>>())
    )
}

fn failures(of_call: &[&Series]) -> String {
    let rows = of_call.iter().flat_map(|series| {
        series.failures.iter().map(|failure| {
            vec![
                Cell::Word(series.key.setup.clone()),
                Cell::Word(series.key.path.clone()),
                Cell::Figure(failure.turn.to_string()),
                Cell::Long(failure.error.clone()),
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        String::new()
    } else {
        table("What failed", &["setup", "path", "turn", "error"], &rows)
    }
}

/// Returns the call's name as an anchor that a URL can have.
fn anchor(call: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    format!("call-{}", call.chars().map(plain).collect::<String>())
}
