//! One job on one side: it is run to its end, and looked at from inside and from outside.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use harness::agent::job_api::{events, is_terminal, until};
use harness::agent::{Client, JobApi};
use serde_json::Value;

use super::facts::{Facts, Names, add, add_probed};
use super::images::AT;
use super::job::{Ending, Job, KILL_TIMEOUT};

/// Timeout of each step of a job's life.
const STEP: Duration = Duration::from_secs(60);
/// Time in which the last lines of a task that has ended are written.
const LAST_LINES: Duration = Duration::from_secs(5);
/// Time in which a job is placed on a node, if it can be.
const PLACED: Duration = Duration::from_secs(30);
/// Time after which a task that runs has nothing to say.
const SILENT: Duration = Duration::from_secs(10);
const END: &str = "== end\n";
const NOT_PLACED: &str = "the job isn't placed on the node";

/// Where jobs run, and how it is looked at.
pub struct Bench<'a> {
    pub api: JobApi,
    pub client: &'a Client,
    /// Name of the node.
    pub node: String,
    /// Directory of the allocations on the host.
    pub allocations: std::path::PathBuf,
    pub registry: String,
    /// What is replaced in a job's texts: placeholders and their values.
    pub places: Vec<(&'static str, String)>,
    /// What the side has that is only its own.
    pub names: Names,
}

/// How a job's run turned out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Whether the task was started.
    pub started: bool,
    pub facts: Facts,
    /// Why it wasn't started, in the driver's words.
    pub error: String,
}

impl Outcome {
    /// Returns whether Nomad has placed the job. One that is placed on neither side says nothing of the drivers.
    pub fn is_placed(&self) -> bool {
        self.error != NOT_PLACED
    }

    /// Returns the outcome of a job that Nomad's server itself has refused.
    fn refused(error: String) -> Self {
        Self { started: false, facts: Facts::new(), error }
    }
}

impl Bench<'_> {
    /// Runs a job under a name, and forgets it afterwards.
    ///
    /// # Errors
    /// Fails if Nomad refuses the job, doesn't place it, or if it doesn't end.
    pub fn run(&self, name: &str, job: &Job) -> Result<Outcome> {
        if let Some(reason) = self.submit(name, job)? {
            return Ok(Outcome::refused(reason));
        }
        let outcome = self.look(name, job);
        // However it turned out.
        self.api.stop(name, true)?;
        outcome.with_context(|| format!("{} on {}", job.about, self.node))
    }

    /// Submits a job under a name, and returns the reason if Nomad refuses it.
    ///
    /// # Errors
    /// Fails if the server doesn't answer.
    pub fn submit(&self, name: &str, job: &Job) -> Result<Option<String>> {
        let image = format!("{}/{}:{}", self.registry, super::images::REPOSITORY, job.image);
        let put_in = |text: &str| {
            self.places.iter().fold(text.to_owned(), |text, (place, with)| text.replace(place, with))
        };
        self.api.submit(&job.text(name, &self.node, &image, &put_in))
    }

    fn look(&self, name: &str, job: &Job) -> Result<Outcome> {
        let Ok(id) = self.api.placed(name, PLACED) else {
            return Ok(Outcome::refused(NOT_PLACED.to_owned()));
        };
        let mut names = self.names.clone();
        names.add(&*id, "{alloc}");
        names.add(&id[..8], "{alloc 8}");
        // The host name of a group's network: under docker the id of the container that keeps it.
        names.add(format!("{}{}", &id[..8], &id[9..13]), "{short id}");
        names.add(name, "{job}");
        let mut facts = Facts::new();
        let logs = self.allocations.join(&id).join("alloc/logs");
        let mut last = Value::Null;
        let mut running = None;
        until("task that is up or has ended", STEP, || {
            last = self.api.allocation(&id)?;
            if running.is_none() && last["TaskStates"]["main"]["State"] == "running" {
                running = Some(Instant::now());
            }
            // Some write nothing that could be read.
            let is_silent = running.is_some_and(|since| since.elapsed() > SILENT);
            Ok(is_terminal(&last) || is_silent || read(&logs, "stdout").contains(END))
        })
        .with_context(|| shown(&last))?;
        if !is_terminal(&last) {
            // A task that ends by itself may do so meanwhile.
            if !matches!(job.ending, Ending::Itself(_)) {
                self.exec(&id, &names, &mut facts)?;
                self.api.stop(name, false)?;
            }
            until("ended task", STEP, || {
                last = self.api.allocation(&id)?;
                Ok(is_terminal(&last))
            })
            .with_context(|| shown(&last))?;
        }
        let started = events(&last).iter().any(|event| event["Type"] == "Started");
        if started {
            // Whoever collects the output may be behind.
            let _ = until("end of the output", LAST_LINES, || Ok(read(&logs, "stdout").contains(END)));
            let whole = add_probed(&mut facts, "", &read(&logs, "stdout"), &names);
            add(&mut facts, "output/stdout is whole", whole.to_string());
            add(&mut facts, "output/stderr", without_pid_of_init(&names.without(&read(&logs, "stderr"))));
        }
        add_end(&mut facts, &last);
        let is_failure = |event: &&Value| {
            matches!(event["Type"].as_str(), Some("Driver Failure" | "Setup Failure" | "Failed Validation"))
        };
        let error = events(&last).iter().rev().find(is_failure).map(message).unwrap_or_default();
        Ok(Outcome { started, facts, error })
    }

    /// Looks at the task by a command in it, again where its output isn't whole: docker's driver loses, now and then, that
    /// of a command which ends at once.
    fn exec(&self, id: &str, names: &Names, facts: &mut Facts) -> Result<()> {
        for last in [false, false, true] {
            let output = self.client.exec(id, b"", &[AT, "exec", "an argument"])?;
            let mut probed = Facts::new();
            let is_whole = add_probed(&mut probed, "exec: ", &output.stdout(), names);
            if !is_whole && !last {
                continue;
            }
            let code = output.code.map_or("none".to_owned(), |code| code.to_string());
            add(facts, "exec: end/code", code);
            add(facts, "exec: output/stderr", names.without(output.stderr().trim()));
            facts.append(&mut probed);
            break;
        }
        Ok(())
    }
}

/// Returns the files of a stream of the task `main`, one after the other.
fn read(logs: &Path, stream: &str) -> String {
    let file = |number| fs::read(logs.join(format!("main.{stream}.{number}"))).ok();
    let bytes: Vec<u8> = (0..).map_while(file).flatten().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns what tini says without its pid, `[FATAL tini (7)] ..`: how many came before it is no fact.
fn without_pid_of_init(text: &str) -> String {
    let Some((before, rest)) = text.split_once("tini (") else { return text.to_owned() };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}tini ({{pid}}{}", without_pid_of_init(rest))
}

fn message(event: &Value) -> String {
    event["DisplayMessage"].as_str().unwrap_or_default().to_owned()
}

/// Adds how the task ended, by the agent's word.
fn add_end(facts: &mut Facts, last: &Value) {
    let task = &last["TaskStates"]["main"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    add(facts, "end/status", text(&last["ClientStatus"]));
    add(facts, "end/failed", task["Failed"].to_string());
    add(facts, "end/restarts", task["Restarts"].to_string());
    let events = events(last);
    let mut kinds: Vec<_> = events.iter().map(|event| text(&event["Type"])).collect();
    // Whether a driver tells of a download depends on whether another job has needed the image before.
    kinds.retain(|kind| kind != "Driver");
    // The agent's hooks of a task run beside each other: one that fails may come before the event of the others.
    if kinds.iter().any(|kind| kind == "Setup Failure") {
        kinds.retain(|kind| kind != "Task Setup");
    }
    add(facts, "end/events", kinds.join(", "));
    if let Some(ended) = events.iter().rev().find(|event| event["Type"] == "Terminated") {
        for name in ["exit_code", "signal", "oom_killed"] {
            add(facts, &format!("end/{name}"), text(&ended["Details"][name]));
        }
        add(facts, "end/message", message(ended));
    }
    let time_of = |kind: &str| {
        let event = events.iter().rev().find(|event| event["Type"] == kind)?;
        Some(Duration::from_nanos(event["Time"].as_u64()?))
    };
    if let (Some(told), Some(ended)) = (time_of("Killing"), time_of("Terminated")) {
        let class = if ended.saturating_sub(told) < KILL_TIMEOUT { "before" } else { "at" };
        add(facts, "end/when", format!("{class} the kill timeout"));
    }
}

/// Returns the events of an allocation's task, for the report of a failure.
fn shown(allocation: &Value) -> String {
    let lines = events(allocation);
    let lines = lines.iter().map(|event| format!("  {}: {}\n", event["Type"], message(event)));
    format!("{}\n{}", allocation["ClientStatus"], lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_of_tini_is_no_fact() {
        assert_eq!(
            without_pid_of_init("x\n[FATAL tini (7)] exec\n[WARN tini (6)] y"),
            "x\n[FATAL tini ({pid})] exec\n[WARN tini ({pid})] y"
        );
        assert_eq!(without_pid_of_init("a (7)"), "a (7)");
    }
}
