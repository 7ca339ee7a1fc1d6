//! What a run was, in words, and its report for people and programs: tables on the terminal and in files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use harness::apparmor;
use harness::fixture::process::output;
use harness::page;
use sha2::{Digest as _, Sha256};

use super::side::{USUAL_LOG_LEVEL, VARIATION, tick};
use super::{Args, aims, pair, table};
use crate::csv;
use crate::machine;
use crate::report_data::{Report, Setup};

/// Words that frame the table of two variations in a page.
const FRAME: &str = "hack/differ";
/// The variations that others are held against, if one of them is measured.
const REFERENCES: [&str; 2] = ["go-driver", "docker"];

/// Returns on what the figures are taken, and when. Files are in a directory. `others` are the numbers of
/// rounds at rest, and of all other kinds but single tasks.
///
/// # Errors
/// Names what can't be found out.
pub(crate) fn heading(args: &Args, directory: &Path, others: [u32; 2], seed: u64) -> Result<String> {
    let [at_rest, others] = others;
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let machine = machine::look()?;
    Ok(format!(
        "Seen on {}: {}, Linux {}, {} CPUs, ticks of {} ms, cgroup {},\nfiles on {}, AppArmor {}. Agents log at {}. {} rounds \
         with a single task, {at_rest} at rest, {others} of each other kind, seed {seed}.\n",
        date.trim(),
        nomads_version(args)?,
        kernel.trim(),
        machine.cores,
        tick().as_millis(),
        machine.cgroups,
        file_system(directory)?,
        if apparmor::is_enabled() { "on (each driver has its default profile)" } else { "off" },
        if args.timelines { "DEBUG" } else { USUAL_LOG_LEVEL },
        args.rounds,
    ))
}

fn nomads_version(args: &Args) -> Result<String> {
    let printed = output(Command::new(&args.nomad).arg("version"))?;
    Ok(printed.lines().next().unwrap_or_default().to_owned())
}

fn file_system(directory: &Path) -> Result<String> {
    let mut find = Command::new("findmnt");
    let found = output(find.args(["--noheadings", "--output", "FSTYPE", "--target"]).arg(directory))?;
    Ok(found.trim().to_owned())
}

/// Returns what a report has of the run besides its figures: its arguments, and a hash of each of its programs.
///
/// # Errors
/// Names the program that can't be read.
pub(crate) fn details(
    args: &Args,
    directory: &Path,
    seed: u64,
    programs: BTreeSet<PathBuf>,
) -> Result<BTreeMap<String, String>> {
    let words: Vec<_> = std::env::args().collect();
    let is_debug = cfg!(debug_assertions);
    let mut details = BTreeMap::from([
        ("arguments".to_owned(), words.join(" ")),
        ("nomad".to_owned(), nomads_version(args)?),
        ("seed".to_owned(), seed.to_string()),
        ("tick".to_owned(), format!("{} ms", tick().as_millis())),
        ("files on".to_owned(), file_system(directory)?),
        ("apparmor".to_owned(), apparmor::is_enabled().to_string()),
        ("steady".to_owned(), format!("{} s", args.steady.as_secs_f64())),
        ("logs".to_owned(), format!("{} MB", args.log_megabytes)),
        ("benchmark's build".to_owned(), if is_debug { "debug" } else { "release" }.to_owned()),
    ]);
    for program in programs {
        let name = format!("sha256 of {}", program.display());
        details.insert(name, hash_of(&program).with_context(|| format!("read {}", program.display()))?);
    }
    Ok(details)
}

fn hash_of(file: &Path) -> io::Result<String> {
    Ok(Sha256::digest(fs::read(file)?).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the tables and all that explains them.
pub(crate) fn text(args: &Args, heading: &str, report: &Report) -> String {
    let setups: String = report.setups.iter().map(described).collect();
    let names = || report.setups.iter().map(|setup| &*setup.name);
    let usual = || REFERENCES.into_iter().find(|reference| names().any(|name| name == *reference));
    let reference = args.reference.as_deref().or_else(usual).or_else(|| names().next()).unwrap_or_default();
    let (tables, aims) = (table::text(report, reference), aims::text(report));
    let details: String =
        report.settings.details.iter().map(|(what, words)| format!("- {what}: `{words}`\n")).collect();
    format!(
        "{heading}\n{setups}\n## Aims\n\n{aims}\n## Figures\n{}{tables}\n## The run\n\n{details}",
        pair_of(report)
    )
}

/// Returns the tables of two variations, if those are all that there are.
fn pair_of(report: &Report) -> String {
    let is_pair = report.setups.iter().filter(|setup| setup.parts.contains_key(VARIATION)).count() == 2;
    if is_pair { format!("\n{}", pair::text(report)) } else { String::new() }
}

/// Writes the files that are asked for, but for the page. A run does so after each kind of figures.
///
/// # Errors
/// Names the file that can't be written.
pub(crate) fn files(args: &Args, heading: &str, report: &Report) -> Result<()> {
    if let Some(path) = &args.markdown {
        fs::write(path, text(args, heading, report)).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(report)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.csv {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        csv::write(report, &mut BufWriter::new(file))?;
    }
    Ok(())
}

/// Puts the table of two variations into the page that is asked for.
///
/// # Errors
/// Fails if the page has no place for it.
pub(crate) fn page(args: &Args, heading: &str, report: &Report) -> Result<()> {
    let setups: String = report.setups.iter().map(described).collect();
    let text = format!("{heading}\n{setups}{}", pair_of(report));
    args.page.as_ref().map_or(Ok(()), |path| page::write_into(path, FRAME, &text))
}

/// Returns a setup with its parts as an item of a list.
fn described(setup: &Setup) -> String {
    let parts: Vec<_> = setup.parts.iter().map(|(what, words)| format!("{what}: {words}")).collect();
    format!("- {}: {}\n", setup.name, parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::{args, report};

    #[test]
    fn a_setup_is_an_item_of_a_list() {
        let parts = [("plugin", "0.1.0"), (VARIATION, "name=a,runtime=crun")];
        let parts = parts.map(|(what, words)| (what.to_owned(), words.to_owned())).into();
        assert_eq!(
            described(&Setup { name: "a".to_owned(), parts }),
            "- a: plugin: 0.1.0; variation: name=a,runtime=crun\n"
        );
    }

    #[test]
    fn a_report_has_what_its_run_was() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "abc").unwrap();
        assert!(hash_of(&program).unwrap().starts_with("ba7816bf8f01cfea"));
        let mut report = report(&[("a", "exec", &[1])]);
        report.settings.details.insert("seed".to_owned(), "7".to_owned());
        let markdown = directory.path().join("report.md");
        let args = args(&["--markdown", markdown.to_str().unwrap()]);
        files(&args, "Seen.\n", &report).unwrap();
        let text = fs::read_to_string(markdown).unwrap();
        assert!(text.starts_with("Seen.\n") && text.contains("## The run\n\n- seed: `7`\n"), "{text}");
    }
}
