//! Renders reports as an HTML page: one file that needs nothing else, not even a network. Reads what was measured, and
//! measures nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use super::report_data::{Report, Series};
use super::report_file;

mod bars;
mod calls;
mod curves;
mod environment;
mod many_tasks;
mod page;
mod svg;
mod table;
mod timelines;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Reports written by `bench --json`. Several are shown side by side.
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// Write the page to this file.
    #[arg(long)]
    html: PathBuf,
}

/// # Errors
/// Names the file that can't be read or written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut reports = Vec::new();
    for path in &args.reports {
        reports.push((path.as_path(), report_file::read(path)?));
    }
    let reports = name_apart(reports)?;
    let page = page::of(&reports)?;
    fs::write(&args.html, &page).with_context(|| format!("write {}", args.html.display()))?;
    println!("{}: {} kB, from {} report(s)", args.html.display(), page.len() / 1024, reports.len());
    Ok(ExitCode::SUCCESS)
}

/// Makes the names of setups unique: a name that several reports have gets the name of the file added.
fn name_apart(mut reports: Vec<(&Path, Report)>) -> Result<Vec<Report>> {
    let setups = reports.iter().flat_map(|(_, report)| &report.setups);
    let all: Vec<String> = setups.map(|setup| setup.name.clone()).collect();
    let is_double = |name: &str| all.iter().filter(|other| *other == name).count() > 1;
    for (path, report) in &mut reports {
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        let rename = |name: &mut String| {
            if is_double(name) {
                *name = format!("{file}: {name}");
            }
        };
        report.setups.iter_mut().for_each(|setup| rename(&mut setup.name));
        report.series.iter_mut().for_each(|series| rename(&mut series.key.setup));
        report.scale.iter_mut().for_each(|point| rename(&mut point.setup));
        report.timelines.iter_mut().for_each(|timeline| rename(&mut timeline.key.setup));
    }
    let reports: Vec<Report> = reports.into_iter().map(|(_, report)| report).collect();
    let mut names: Vec<_> =
        reports.iter().flat_map(|report| &report.setups).map(|setup| &setup.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    ensure!(
        names.len() == count,
        "two files of the same name have setups of the same name: rename one of the files"
    );
    Ok(reports)
}

/// Returns the CSS class of a path. Unknown paths share one.
fn class(path: &str) -> &str {
    match path {
        "direct" | "daemon" | "cli" | "plugin" | "agent" => path,
        _ => "other",
    }
}

/// Returns the CSS class of a consumer of CPU time and memory: the colour of the path that it first takes part in.
fn party_class(party: &str) -> &str {
    match party {
        "shims" => "direct",
        "runtime" => "cli",
        "daemon" | "plugin" | "agent" => party,
        _ => "other",
    }
}

/// Returns the distinct values of `of` over all series, in the order in which they first appear.
fn in_order<'a, K: PartialEq>(series: &[&'a Series], of: impl Fn(&'a Series) -> K) -> Vec<K> {
    let mut met = Vec::new();
    for key in series.iter().map(|series| of(series)) {
        if !met.contains(&key) {
            met.push(key);
        }
    }
    met
}

#[cfg(test)]
mod tests;
