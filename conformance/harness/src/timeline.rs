//! Parses the timelines that a plugin logs of its starts and teardowns: a line for each, with the time of each step.
//! The line's format is in docs/benchmark.md. Knows neither who made the calls nor what is made of the figures.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::host::stderr::Lines;

/// One timeline: a line of the plugin's log.
#[derive(Debug)]
pub struct LoggedTimeline {
    /// The call: `start` or `teardown`.
    pub call: String,
    pub container: String,
    pub outcome: String,
    /// Time at which the call ended.
    pub at: SystemTime,
    pub total_ms: f64,
    pub containerd_calls: u64,
    /// The steps by name: begin (since the beginning of the call) and length, in milliseconds.
    pub steps: BTreeMap<String, (f64, f64)>,
}

/// Returns all timelines in a log, in the order in which the calls ended. Empty for other drivers, which log none.
pub fn logged(log: &Lines) -> impl Iterator<Item = Result<LoggedTimeline>> + use<> {
    let lines = log.all().into_iter().filter_map(|line| serde_json::from_str(&line).ok());
    lines.filter(|line: &Value| line["@message"] == "timeline").map(|line| parse(&line))
}

/// Returns all timelines in the log of an agent, which has the plugin's lines of the level DEBUG in its own form.
pub fn in_agents_log(log: &str) -> impl Iterator<Item = Result<LoggedTimeline>> {
    log.lines().filter_map(|line| line.split_once(": timeline: ")).map(|(head, pairs)| {
        let fields: BTreeMap<_, _> = fields(pairs).collect();
        let text = |key: &str| fields.get(key).copied().with_context(|| format!("no {key} in {pairs}"));
        let at = head.split_whitespace().next().unwrap_or_default();
        parse(&json!({
            "call": text("call")?,
            "container": text("container")?,
            "outcome": text("outcome")?,
            "@timestamp": at,
            "total_ms": text("total_ms")?,
            "containerd_calls": text("containerd_calls")?.parse::<u64>()?,
            "timeline": text("timeline")?,
        }))
    })
}

/// Returns the fields of a line, `key=value key="some words"`. None of a timeline's has a quote in it.
fn fields(mut rest: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        rest = after;
        Some((key.trim(), value))
    })
}

fn parse(line: &Value) -> Result<LoggedTimeline> {
    let text = |key: &str| line[key].as_str().with_context(|| format!("no {key} in {line}"));
    let mut steps = BTreeMap::new();
    let mut words = text("timeline")?.split(' ').filter(|word| !word.is_empty());
    while let Some(name) = words.next() {
        let times = words.next().and_then(|times| times.split_once('+'));
        let (begin, length) = times.with_context(|| format!("{name} has no times: {line}"))?;
        ensure!(
            steps.insert(name.to_owned(), (begin.parse()?, length.parse()?)).is_none(),
            "{name} twice: {line}"
        );
    }
    Ok(LoggedTimeline {
        call: text("call")?.to_owned(),
        container: text("container")?.to_owned(),
        outcome: text("outcome")?.to_owned(),
        at: humantime::parse_rfc3339(text("@timestamp")?)?,
        total_ms: text("total_ms")?.parse()?,
        containerd_calls: line["containerd_calls"].as_u64().with_context(|| format!("no calls: {line}"))?,
        steps,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(timeline: &str) -> Value {
        json!({
            "@level": "debug", "@message": "timeline", "@timestamp": "1970-01-01T00:00:01.000250Z",
            "call": "start", "container": "web-5b0c9d3e8f1a", "outcome": "done",
            "total_ms": "28.4", "containerd_calls": 5, "timeline": timeline,
        })
    }

    #[test]
    fn a_line_is_read_whole() {
        let logged = parse(&line("image 0.6+0.8 shim 1.6+19.8 shim/exec 1.6+9.0")).unwrap();
        assert_eq!(
            (&*logged.call, &*logged.outcome, &*logged.container),
            ("start", "done", "web-5b0c9d3e8f1a")
        );
        assert_eq!((logged.total_ms, logged.containerd_calls), (28.4, 5));
        assert_eq!(logged.at, SystemTime::UNIX_EPOCH + Duration::from_micros(1_000_250));
        assert_eq!(logged.steps["shim"], (1.6, 19.8));
        assert_eq!(logged.steps.len(), 3);
        assert!(parse(&line("")).unwrap().steps.is_empty(), "a call that did nothing has no steps");
    }

    #[test]
    fn a_line_is_found_in_the_log_of_an_agent() {
        let log = "2026-11-30T13:05:01.250Z [INFO]  agent: started\n\
            \x20   2026-11-30T13:05:01.250Z [DEBUG] client.driver_mgr.containerd-driver: timeline: driver=containerd-driver \
            call=start container=web-5b0c9d3e8f1a containerd_calls=5 outcome=done timeline=\"image 0.6+0.8 shim 1.6+19.8\" \
            total_ms=28.4 timestamp=2026-11-30T13:05:01.250Z\n";
        let all: Vec<_> = in_agents_log(log).collect::<Result<_>>().unwrap();
        let [logged] = &*all else { panic!("{all:?}") };
        assert_eq!((&*logged.call, logged.total_ms, logged.containerd_calls), ("start", 28.4, 5));
        assert_eq!(logged.steps["shim"], (1.6, 19.8));
        assert_eq!(in_agents_log("x: timeline: call=start").filter(Result::is_err).count(), 1);
    }

    #[test]
    fn a_line_of_another_form_is_refused_with_the_reason() {
        for (timeline, why) in [
            ("image", "image has no times"),
            ("image 0.6", "image has no times"),
            ("image 0.6+x", "invalid float"),
            ("image 0.6+0.8 image 1.6+0.8", "image twice"),
        ] {
            let error = format!("{:#}", parse(&line(timeline)).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
        let mut incomplete = line("");
        incomplete["outcome"] = Value::Null;
        assert!(parse(&incomplete).unwrap_err().to_string().contains("no outcome"));
    }
}
