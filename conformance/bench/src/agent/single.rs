//! The life of a single task on a side: its start, execs and stop, each with its time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use harness::timeline::LoggedTimeline;

use super::calls::{EXEC, EXECS, EXIT, FIRST_WRITE, REMOVAL, TIMELINE, Times, Turn};
use super::exec;
use super::many::{MAIN, SCRIPT, STEP, settle};
use super::side::{Side, Work};

/// The times of a single task, and what its driver has logged of it.
pub(crate) struct Single {
    pub(crate) turn: Turn,
    pub(crate) logged: Vec<LoggedTimeline>,
}

/// Returns the calls of a single task.
pub(crate) fn calls(has_timelines: bool) -> Vec<&'static str> {
    let timeline = has_timelines.then_some(TIMELINE);
    [FIRST_WRITE].into_iter().chain([EXEC; EXECS]).chain([EXIT, REMOVAL]).chain(timeline).collect()
}

/// Runs a single task from its start to its end. Nothing is left of its job, and the machine is at rest, however it turns
/// out. With `checks_sleep`, a driver that doesn't sleep as long as is said has failed.
pub(crate) fn single(side: &Side<'_>, name: &str, checks_sleep: bool) -> Single {
    let offset = side.log_length();
    let mut times = Times::new();
    let lived = live(side, name, checks_sleep, &mut times);
    let cleared = settle(side, name);
    let logged = side.timelines_from(offset);
    let error = lived.and(cleared).err();
    let (logged, unread) = match logged {
        Ok(logged) => (logged, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    if side.has_timelines() {
        times.extend(start_of(&logged));
    }
    Single { turn: Turn { times, error: error.or(unread) }, logged }
}

/// Returns the time of the start by its timeline.
fn start_of(logged: &[LoggedTimeline]) -> Option<(&'static str, Duration)> {
    let start = logged.iter().find(|logged| logged.call == "start" && logged.outcome == "done")?;
    Some((TIMELINE, Duration::from_secs_f64(start.total_ms / 1000.0)))
}

fn live(side: &Side<'_>, name: &str, checks_sleep: bool, times: &mut Times) -> Result<()> {
    let client = side.client();
    side.submit(name, &Work { script: SCRIPT, count: 1, group: 1, writes_much: false })?;
    let ids = client.placed(name, 1)?;
    let id = ids.first().context("no allocation")?;
    client.running(id, MAIN)?;
    let begun = side.first_write(id, MAIN, STEP)?;
    if checks_sleep {
        side.check_sleep(id, begun)?;
    }
    let set_up = client.allocation(id)?.task(MAIN).event("Task Setup")?.at();
    let took = begun.duration_since(set_up).context("its first write is before its start")?;
    times.push((FIRST_WRITE, took));
    for _ in 0..EXECS {
        times.push((EXEC, exec::run(client.own_http(), id, &["true"])?.took));
    }
    side.stop(name)?;
    let task = client.dead(id, MAIN)?;
    let killing = task.event("Killing")?.at();
    for (call, kind) in [(EXIT, "Terminated"), (REMOVAL, "Killed")] {
        times.push((call, task.event(kind)?.at().duration_since(killing)?));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn logged(call: &str, outcome: &str) -> LoggedTimeline {
        LoggedTimeline {
            call: call.to_owned(),
            container: "c".to_owned(),
            outcome: outcome.to_owned(),
            at: SystemTime::UNIX_EPOCH,
            total_ms: 28.0,
            containerd_calls: 5,
            steps: Default::default(),
        }
    }

    #[test]
    fn a_start_that_is_not_in_the_log_has_no_time() {
        let all = [logged("teardown", "done"), logged("start", "failed"), logged("start", "done")];
        assert_eq!(start_of(&all), Some((TIMELINE, Duration::from_millis(28))));
        assert_eq!(start_of(&all[..2]), None);
        assert!(calls(true).contains(&TIMELINE) && !calls(false).contains(&TIMELINE));
    }
}
