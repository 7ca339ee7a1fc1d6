//! Supervises one task from its start to its exit: the only writer of its phase.
//!
//! Two sources are trusted: the shim's answer to a Wait that was sent before the start, never an event; and the
//! kernel's exit status of the task's first process, by its pidfd. The shim says when and with what code a task exited;
//! the kernel says whether a signal did it, and stands in for a shim that has lost the exit. When the shim itself dies,
//! nobody is left to report its container's exit, and the container's output is cut off; then the container is killed,
//! and its exit is reported as unknown.

use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::container::ContainerHandles;
use super::events::TaskEvents;
use super::{DriverState, Exit, Phase};
use crate::cgroup::OomWatch;
use crate::logs::LogCollector;
use crate::shim::{
    self, Connection, Family, LogPaths, PendingWait, ProcessExit, RUNTIME_CALL_TIMEOUT, Shim, wait_drained,
};
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::Init;
use crate::sys::process_end::SIGNAL_BASE;

/// Maximum time to drain a task's output into its log before the exit is reported without the rest.
pub(super) const LOG_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Grace period in which the shim may report an exit that the kernel has reported.
const SHIM_EXIT_GRACE: Duration = Duration::from_secs(3);
/// Timeout of the retried Wait where the kernel has the exit status, too.
const RETRIED_WAIT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of the retried Waits where the kernel has no exit status, and the pause between them.
const LAST_RESORT_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Maximum time between an OOM kill and the failure of its task that it is taken as the cause of.
const OOM_ENDS_TASK: Duration = Duration::from_secs(10);
/// Shortest and longest backoff between retries of a Wait, while the shim runs and can't be asked.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Exit status that gVisor's shim reports where it has not learnt the task's.
const LOST_BY_GVISOR: u32 = 128;
/// Maximum time that gVisor's shim may take to reap a sandbox that has ended.
const SANDBOX_IS_REAPED: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const MOST_SIGNAL: i32 = 64;
/// Exit code of a task whose exit status is not known; no program can exit with it.
const UNKNOWN_CODE: i32 = -1;

/// A task to supervise, with what its supervisor needs.
pub(super) struct Supervision {
    pub(super) driver_state: DriverState,
    pub(super) container: ContainerHandles,
    pub(super) task_events: TaskEvents,
    /// Pidfd of the task's first process; `None` if it had exited before, or the kernel has no pidfds.
    pub(super) init: Option<Init>,
    /// Whether the first process is known to have exited before.
    pub(super) had_exited: bool,
    pub(super) connection: Connection,
    pub(super) waiting: PendingWait,
    /// Collector of the task's output, where the driver collects it.
    pub(super) log_collector: Option<LogCollector>,
    /// Number of OOM kills in the task's cgroup so far, which are not reported again.
    pub(super) oom_kills: u64,
}

/// Starts the supervisor of a task, and returns the task's phase.
pub(super) fn supervise(supervision: Supervision) -> watch::Receiver<Phase> {
    supervision.container.remember(&supervision.driver_state, &supervision.task_events.identity);
    let (writer, reader) = watch::channel(Phase::Running);
    tokio::spawn(async move {
        let exit = follow(supervision).await;
        writer.send_replace(Phase::Exited(exit));
    });
    reader
}

async fn follow(supervision: Supervision) -> Exit {
    let Supervision {
        driver_state,
        container,
        task_events,
        init,
        had_exited,
        connection,
        waiting,
        log_collector,
        oom_kills,
    } = supervision;
    let began = SystemTime::now();
    let mut oom = OomWatch::begin(&driver_state.cgroup, oom_kills);
    let mut last_kill = None;
    let end = ProcessEnd {
        init: init.as_ref(),
        had_exited,
        was_killed: Some(&container.was_killed),
        shim: &driver_state.shim,
    };
    let mut report = pin!(await_exit(&driver_state, &container, end, &connection, waiting));
    let report = loop {
        tokio::select! {
            report = &mut report => break report,
            killed = oom.next() => {
                last_kill = Some(Instant::now());
                task_events.oom_killed(killed);
            }
        }
    };
    let new_kills = oom.count();
    if new_kills > 0 {
        task_events.oom_killed(new_kills);
    }
    let since_start = driver_state.cgroup.oom_kills().saturating_sub(driver_state.oom_kills.unwrap_or(0));
    let mut exit = match report {
        ExitReport::Answer(Ok(ended)) if driver_state.family() == Family::Gvisor => {
            by_sandbox(ended, init.as_ref()).await
        }
        ExitReport::Answer(Ok(ended)) => by_shim(ended, init.as_ref().and_then(Init::exit_status)),
        ExitReport::Answer(Err(error)) => without_shim(&container, init.as_ref(), &error).await,
        ExitReport::Unheard(at) => {
            tracing::warn!(container = container.id, "the task has exited, but its shim does not report it");
            by_kernel(end.exit_status(), at)
        }
    };
    let kills = Kills {
        at_the_end: new_kills > 0 || last_kill.is_some_and(|at| at.elapsed() < OOM_ENDS_TASK),
        since_start,
        // Nobody has seen when the kills were.
        unseen: had_exited || exit.at < began,
    };
    exit.oom_killed = exit.code != 0 && kills.have_ended_it();
    if driver_state.shares_pids
        && let Err(error) = container.kill_group().await
    {
        tracing::warn!(container = container.id, %error, "can't kill the task's remaining processes");
    }
    if !drain_logs(&driver_state.logs, log_collector).await {
        tracing::warn!(
            container = container.id,
            "not all of the task's output was read within {LOG_DRAIN_TIMEOUT:?}"
        );
    }
    let Exit { code, signal, oom_killed, at: _, error } = &exit;
    let task = &task_events.identity.task_id;
    tracing::debug!(task, code, signal, oom_killed, ?error, "the task has exited");
    exit
}

/// The OOM kills in a task's cgroup.
struct Kills {
    /// Whether the kernel killed some processes right before the task's exit.
    at_the_end: bool,
    /// Number of kills since the task's start.
    since_start: u64,
    /// Whether the task exited while no plugin was there.
    unseen: bool,
}

impl Kills {
    /// Returns whether the kills are taken as the cause of the task's failure. The kill of a child long before it is
    /// not.
    fn have_ended_it(&self) -> bool {
        self.at_the_end || (self.unseen && self.since_start > 0)
    }
}

async fn await_exit(
    driver_state: &DriverState,
    container: &ContainerHandles,
    end: ProcessEnd<'_>,
    connection: &Connection,
    waiting: PendingWait,
) -> ExitReport {
    let again = || -> PendingWait {
        let connection = connection.clone();
        Box::pin(async move { connection.wait("").await })
    };
    let is_gone = || -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let (container, shim) = (container.clone(), driver_state.shim.clone());
        Box::pin(async move { shim_is_gone(&container, &shim).await })
    };
    tokio::select! {
        answer = answer(waiting, again, is_gone) => ExitReport::Answer(answer),
        report = report_overdue(connection, "", end) => report,
    }
}

async fn shim_is_gone(container: &ContainerHandles, shim: &Shim) -> bool {
    match container.launcher.process_of(shim, &container.bundle, &container.id).await {
        Ok(process) => process.is_none(),
        Err(error) => {
            tracing::warn!(container = container.id, %error, "can't tell whether the shim is running");
            false
        }
    }
}

/// Returns the shim's answer to a Wait. A broken connection does not mean that the shim has died: while its process is
/// there, the Wait is retried.
async fn answer(
    waiting: PendingWait,
    again: impl Fn() -> PendingWait,
    is_gone: impl Fn() -> Pin<Box<dyn Future<Output = bool> + Send>>,
) -> Result<ProcessExit, shim::Error> {
    let mut answer = waiting.await;
    let mut pause = FIRST_PAUSE;
    while let Err(error) = &answer {
        // Either the shim has no such task, or it is gone.
        if error.is_not_found() || is_gone().await {
            break;
        }
        tracing::debug!(error = %error.chain(), ?pause, "the shim is running, but can't be asked for the task's exit; asking again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        answer = again().await;
    }
    answer
}

/// The source of what is known of an exit.
enum ExitReport {
    /// The shim's answer; or an error where there will never be an answer.
    Answer(Result<ProcessExit, shim::Error>),
    /// The time of the exit by the kernel; the shim reports nothing.
    Unheard(SystemTime),
}

/// The end of a process, as far as the kernel tells it.
#[derive(Clone, Copy)]
struct ProcessEnd<'a> {
    init: Option<&'a Init>,
    /// Whether the process is known to have exited before anybody could hold it.
    had_exited: bool,
    /// Whether the driver has killed it while it was running.
    was_killed: Option<&'a AtomicBool>,
    /// Shim whose word is waited for.
    shim: &'a Shim,
}

impl ProcessEnd<'_> {
    /// Waits for the end, for ever where the kernel doesn't tell it.
    async fn come(self) {
        match self.init {
            Some(init) => init.ended().await,
            None if self.had_exited => {}
            None => std::future::pending().await,
        }
    }

    /// Returns the exit status without the shim: the kernel's, or else SIGKILL's where the driver has killed the process.
    /// Kernels before Linux 6.15 forget a status as soon as the shim has reaped the process.
    fn exit_status(self) -> Option<ExitStatus> {
        let was_killed = || self.was_killed.is_some_and(|was_killed| was_killed.load(Ordering::Acquire));
        let by_kernel = self.init.and_then(Init::exit_status);
        by_kernel.or_else(|| was_killed().then(|| ExitStatus::from_raw(Signal::SIGKILL as i32)))
    }
}

/// Completes when the kernel has reported the exit of the task, or of an exec, and the shim has not done so for too
/// long. The Wait is retried by then, since its answer may have been lost on the way.
async fn report_overdue(connection: &Connection, exec_id: &str, end: ProcessEnd<'_>) -> ExitReport {
    end.come().await;
    let at = SystemTime::now();
    tokio::time::sleep(SHIM_EXIT_GRACE).await;
    let is_known = end.exit_status().is_some();
    let limit = if is_known { RETRIED_WAIT_TIMEOUT } else { LAST_RESORT_WAIT_TIMEOUT };
    let asking = async {
        loop {
            match connection.wait(exec_id).await {
                // Nobody but the shim knows the exit status: a broken connection is no reason to give it up.
                Err(error) if !is_known && !error.is_not_found() => tokio::time::sleep(RETRY_PAUSE).await,
                answer => break answer,
            }
        }
    };
    let mut asking = pin!(asking);
    let mut answer = tokio::time::timeout(limit, &mut asking).await;
    if answer.is_err() && !is_known && end.shim.may_be_creating() {
        // It answers once another task's container is there, whose create an earlier plugin may have asked for.
        answer = tokio::time::timeout(RUNTIME_CALL_TIMEOUT, asking).await;
    }
    match answer {
        Ok(Ok(ended)) => ExitReport::Answer(Ok(ended)),
        Ok(Err(_)) | Err(_) => ExitReport::Unheard(at),
    }
}

/// Extends a Wait for an exec by the kernel's exit status of its first process, for a shim that has lost the exec's
/// exit.
pub(super) fn backed(
    waiting: PendingWait,
    connection: Connection,
    exec_id: String,
    process: Init,
    shim: Shim,
) -> PendingWait {
    Box::pin(async move {
        let end = ProcessEnd { init: Some(&process), had_exited: false, was_killed: None, shim: &shim };
        let report = tokio::select! {
            answer = waiting => return answer,
            report = report_overdue(&connection, &exec_id, end) => report,
        };
        let at = match report {
            ExitReport::Answer(answer) => return answer,
            ExitReport::Unheard(at) => at,
        };
        tracing::warn!(exec = exec_id, "a command has exited, but the shim does not report it");
        let status = process.exit_status().map(code_of).and_then(|code| u32::try_from(code).ok());
        status.map(|status| ProcessExit { status, at }).ok_or_else(|| connection.lost_end(&exec_id))
    })
}

/// Returns the exit that the shim reports, with the signal by the kernel's exit status.
pub(super) fn by_shim(ended: ProcessExit, word: Option<ExitStatus>) -> Exit {
    let code = i32::try_from(ended.status).unwrap_or(i32::MAX);
    let signal = match word {
        Some(status) if code_of(status) == code => status.signal().unwrap_or(0),
        _ => likely_signal(code),
    };
    Exit { code, signal, oom_killed: false, at: ended.at, error: None }
}

/// Returns the exit of a task in gVisor's sandbox. The sandbox ends with its task and with the task's code. Its shim
/// asks it for that code, and comes too late for a task that exits at once: then the sandbox's own exit status counts.
async fn by_sandbox(ended: ProcessExit, init: Option<&Init>) -> Exit {
    let is_lost = ended.status == LOST_BY_GVISOR;
    let mut word = init.and_then(Init::exit_status);
    if is_lost && let Some(init) = init {
        // The kernel has the status once the shim has reaped the sandbox.
        let until = Instant::now() + SANDBOX_IS_REAPED;
        while word.is_none() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
            word = init.exit_status();
        }
    }
    of_sandbox(ended, word)
}

fn of_sandbox(ended: ProcessExit, word: Option<ExitStatus>) -> Exit {
    let reported = i32::try_from(ended.status).unwrap_or(i32::MAX);
    let (code, error) = match word {
        Some(status) if ended.status == LOST_BY_GVISOR => (code_of(status), None),
        None if ended.status == LOST_BY_GVISOR => (
            reported,
            Some(
                "the task has exited, and its exit code is not known: gVisor's shim asked for it too late, and this \
                 kernel does not keep it (Linux 6.15 and newer do)"
                    .to_owned(),
            ),
        ),
        _ => (reported, None),
    };
    Exit { code, signal: likely_signal(code), oom_killed: false, at: ended.at, error }
}

/// Returns the exit by the kernel's exit status alone.
pub(super) fn by_kernel(word: Option<ExitStatus>, at: SystemTime) -> Exit {
    match word {
        Some(status) => Exit {
            code: code_of(status),
            signal: status.signal().unwrap_or(0),
            oom_killed: false,
            at,
            error: None,
        },
        None => {
            let error = "the task has exited, and its exit code is not known: neither its shim nor the kernel reports it";
            Exit { code: UNKNOWN_CODE, signal: 0, oom_killed: false, at, error: Some(error.to_owned()) }
        }
    }
}

/// Converts the kernel's exit status to a shell's exit code.
fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| SIGNAL_BASE + signal)).unwrap_or(UNKNOWN_CODE)
}

/// Returns the signal that an exit code most likely means, else 0. The shim's code does not tell whether a program was
/// killed by signal n or chose to exit with 128 + n; it nearly always is the first.
fn likely_signal(code: i32) -> i32 {
    let signal = code - SIGNAL_BASE;
    if (1..=MOST_SIGNAL).contains(&signal) { signal } else { 0 }
}

/// Ends the processes of a task whose shim is lost, and returns the task's exit.
async fn without_shim(container: &ContainerHandles, init: Option<&Init>, error: &shim::Error) -> Exit {
    // The death of the shim closed the other ends of the task's pipes, which may end the task as well.
    let ended_before = init.is_some_and(Init::has_ended);
    let at = SystemTime::now();
    tracing::warn!(container = container.id, error = %error.chain(), ended_before, "the shim has died, or no longer has the task; killing its container");
    if let Some(init) = init {
        init.kill();
    }
    let left = container.end_without_shim().await.err();
    if let Some(left) = &left {
        tracing::error!(container = container.id, left = %left.chain(), "can't kill the container of a dead shim; trying again");
        tokio::spawn(container.clone().keep_ending());
    }
    let own_end = init.filter(|_| ended_before).and_then(Init::exit_status);
    of_lost_shim(own_end, left.map(|left| left.chain().to_string()), &error.chain(), at)
}

/// Returns the exit of a task whose shim is lost. `own_end` is the kernel's exit status of a first process that had
/// ended before it was killed, `left` says what can't be killed. An end by SIGPIPE is not the task's own: the death of
/// the shim closed the other ends of its pipes.
pub(super) fn of_lost_shim(
    own_end: Option<ExitStatus>,
    left: Option<String>,
    error: &impl std::fmt::Display,
    at: SystemTime,
) -> Exit {
    let own_end = own_end.filter(|status| status.signal() != Some(Signal::SIGPIPE as i32));
    match (own_end, left) {
        (Some(status), None) => by_kernel(Some(status), at),
        (_, left) => Exit {
            code: SIGNAL_BASE + Signal::SIGKILL as i32,
            signal: Signal::SIGKILL as i32,
            oom_killed: false,
            at,
            error: Some(match left {
                None => format!("the task's shim died, and the task was killed without it: {error}"),
                Some(left) => format!(
                    "the task's shim died, and the rest of the task can't be killed yet; the driver keeps trying, \
                     and starts no other attempt until then: {left}"
                ),
            }),
        },
    }
}

/// Drains the task's output into its log, and returns whether that was complete. The driver's collector takes nothing
/// more after this. A log receiver is waited for half of the time, so that Nomad's log gets the rest in any case.
async fn drain_logs(logs: &LogPaths, log_collector: Option<LogCollector>) -> bool {
    if let Some(mut log_collector) = log_collector {
        return log_collector.finished_within(LOG_DRAIN_TIMEOUT).await;
    }
    wait_drained(logs, LOG_DRAIN_TIMEOUT).await
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use nix::fcntl::OFlag;

    use super::*;
    use crate::sys::procfs::ProcessId;

    #[test]
    fn a_code_that_gvisors_shim_has_lost_is_the_sandboxes() {
        use std::os::unix::process::ExitStatusExt;
        let of = |status: u32, word: Option<i32>| {
            let ended = ProcessExit { status, at: SystemTime::UNIX_EPOCH };
            let exit = of_sandbox(ended, word.map(ExitStatus::from_raw));
            (exit.code, exit.signal, exit.error.is_some())
        };
        assert_eq!(of(7, Some(7 << 8)), (7, 0, false));
        assert_eq!(of(128, Some(0)), (0, 0, false));
        assert_eq!(of(128, Some(9)), (137, 9, false), "the sandbox itself was killed");
        assert_eq!(of(143, Some(143 << 8)), (143, 15, false), "the sandbox tells of a signal as shells do");
        assert_eq!(of(128, None), (128, 0, true));
    }

    #[test]
    fn a_status_above_128_is_likely_a_signal() {
        assert_eq!(likely_signal(0), 0);
        assert_eq!(likely_signal(127), 0);
        assert_eq!(likely_signal(128), 0);
        assert_eq!(likely_signal(137), 9);
        assert_eq!(likely_signal(128 + 64), 64);
        assert_eq!(likely_signal(255), 0);
    }

    #[tokio::test]
    async fn an_execs_lost_exit_is_read_from_the_kernel() {
        let mut child = shell("exit 7");
        let process = held(&child);
        let (shim, never): (_, PendingWait) = (nowhere(), Box::pin(std::future::pending()));
        let connection = Connection::deferred(&shim.bootstrap, "x");
        let waiting = backed(never, connection, "exec-1".to_owned(), process, shim);
        let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
        assert_eq!(ended.status, 7);
        child.wait().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_that_a_hanging_shim_keeps_to_itself_is_reported() {
        let shim = nowhere();
        let connection = Connection::deferred(&shim.bootstrap, "x");
        let overdue = |had_exited| {
            let end = ProcessEnd { init: None, had_exited, was_killed: None, shim: &shim };
            report_overdue(&connection, "", end)
        };
        let limit = SHIM_EXIT_GRACE + LAST_RESORT_WAIT_TIMEOUT + Duration::from_secs(10);
        let began = tokio::time::Instant::now();
        let report = tokio::time::timeout(limit, overdue(true)).await.unwrap();
        assert!(matches!(report, ExitReport::Unheard(_)));
        assert!(began.elapsed() > LAST_RESORT_WAIT_TIMEOUT, "a broken connection ends the search too early");
        let never = tokio::time::timeout(Duration::from_millis(100), overdue(false)).await;
        assert!(never.is_err(), "nobody knows whether it runs");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shared_shim_has_time_for_an_exit_while_it_may_create_another_container() {
        let shim = Shim { shared: Some("shared-with-a-long-create".to_owned()), ..nowhere() };
        let connection = Connection::deferred(&shim.bootstrap, "x");
        let end = ProcessEnd { init: None, had_exited: true, was_killed: None, shim: &shim };
        let mut report = pin!(report_overdue(&connection, "", end));
        let limit = SHIM_EXIT_GRACE + LAST_RESORT_WAIT_TIMEOUT + Duration::from_secs(10);
        assert!(tokio::time::timeout(limit, &mut report).await.is_err(), "given up while it can't answer");
        assert!(
            tokio::time::timeout(RUNTIME_CALL_TIMEOUT, &mut report).await.is_ok(),
            "no create takes that long"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_task_whose_shim_is_busy_is_reported_soon_as_killed() {
        let (shim, was_killed) = (nowhere(), AtomicBool::new(true));
        let end = ProcessEnd { init: None, had_exited: true, was_killed: Some(&was_killed), shim: &shim };
        let began = tokio::time::Instant::now();
        let report = report_overdue(&Connection::deferred(&shim.bootstrap, "x"), "", end).await;
        let ExitReport::Unheard(at) = report else { panic!("nobody answers") };
        assert!(began.elapsed() <= SHIM_EXIT_GRACE + RETRIED_WAIT_TIMEOUT, "{:?}", began.elapsed());
        let exit = by_kernel(end.exit_status(), at);
        assert_eq!((exit.code, exit.signal, exit.error), (137, 9, None));
        was_killed.store(false, Ordering::Relaxed);
        assert_eq!(end.exit_status(), None);
    }

    /// Returns a shim that is not there.
    fn nowhere() -> Shim {
        let (version, socket) = (shim_protos::ApiVersion::V2, "/nowhere.sock".into());
        let bootstrap = shim_protos::Bootstrap { version, socket };
        Shim { bootstrap, pid: i32::MAX, started_ticks: 9, shared: None }
    }

    fn broken() -> shim::Error {
        let source = shim_protos::CallError::Disconnected("broken".to_owned());
        shim::Error::Call { doing: "wait for x".to_owned(), source }
    }

    #[tokio::test]
    async fn a_wait_is_retried_while_the_shim_runs() {
        let calls = std::cell::Cell::new(0);
        let ended = ProcessExit { status: 7, at: SystemTime::UNIX_EPOCH };
        let again = || -> PendingWait {
            calls.set(calls.get() + 1);
            let answer = if calls.get() == 3 { Ok(ended) } else { Err(broken()) };
            Box::pin(async { answer })
        };
        let first: PendingWait = Box::pin(async { Err(broken()) });
        assert_eq!(answer(first, again, || Box::pin(async { false })).await.unwrap(), ended);
        assert_eq!(calls.get(), 3);
    }

    #[tokio::test]
    async fn a_wait_is_not_retried_without_shim_or_task() {
        let never = || -> PendingWait { panic!("asked again") };
        let first: PendingWait = Box::pin(async { Err(broken()) });
        assert!(answer(first, never, || Box::pin(async { true })).await.is_err());
        let unknown = shim_protos::CallError::NotFound("no such task".to_owned());
        let unknown = shim::Error::Call { doing: "wait for x".to_owned(), source: unknown };
        let first: PendingWait = Box::pin(async { Err(unknown) });
        assert!(answer(first, never, || Box::pin(async { false })).await.is_err());
    }

    #[test]
    fn an_old_oom_kill_of_a_child_is_not_the_tasks_cause_of_exit() {
        let ended =
            |at_the_end, since_start, unseen| Kills { at_the_end, since_start, unseen }.have_ended_it();
        assert!(ended(true, 1, false));
        assert!(!ended(false, 1, false));
        assert!(ended(false, 1, true), "it ended while nobody looked");
        assert!(!ended(false, 0, true));
    }

    #[test]
    fn the_kernels_status_distinguishes_signals_from_codes() {
        let at = SystemTime::UNIX_EPOCH;
        let exit = |status, word: Option<i32>| {
            let exit = by_shim(ProcessExit { status, at }, word.map(ExitStatus::from_raw));
            (exit.code, exit.signal)
        };
        assert_eq!(exit(137, Some(9)), (137, 9));
        assert_eq!(exit(137, Some(137 << 8)), (137, 0));
        assert_eq!(exit(139, Some(11 | 0x80)), (139, 11));
        assert_eq!(exit(137, None), (137, 9));
        // Status of a process other than the one that the shim reports on.
        assert_eq!(exit(137, Some(0)), (137, 9));
        assert_eq!(exit(3, Some(9)), (3, 0));
    }

    #[test]
    fn a_lost_shims_task_has_a_code_only_if_it_ended_by_itself() {
        let exit = |own_end: Option<i32>, left: Option<&str>| {
            let own_end = own_end.map(ExitStatus::from_raw);
            let exit =
                of_lost_shim(own_end, left.map(str::to_owned), &broken().chain(), SystemTime::UNIX_EPOCH);
            (exit.code, exit.error.is_some())
        };
        assert_eq!(exit(Some(0), None), (0, false));
        assert_eq!(exit(Some(7 << 8), None), (7, false));
        assert_eq!(exit(Some(Signal::SIGPIPE as i32), None), (137, true));
        assert_eq!(exit(Some(0), Some("process 7")), (137, true), "not all of it has ended");
        assert_eq!(exit(None, None), (137, true));
    }

    #[test]
    fn an_unknown_exit_is_an_error() {
        let at = SystemTime::UNIX_EPOCH;
        let known = by_kernel(Some(ExitStatus::from_raw(7 << 8)), at);
        assert_eq!((known.code, known.signal, known.error), (7, 0, None));
        let killed = by_kernel(Some(ExitStatus::from_raw(9)), at);
        assert_eq!((killed.code, killed.signal, killed.error), (137, 9, None));
        let unknown = by_kernel(None, at);
        assert!(unknown.code < 0 && unknown.error.is_some());
    }

    /// Starts a shell that is closed off from the test's own files.
    #[expect(clippy::disallowed_methods, reason = "a child to look at, whose stdio is closed")]
    fn shell(script: &str) -> std::process::Child {
        use std::process::{Command, Stdio};
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn held(child: &std::process::Child) -> Init {
        Init::open(ProcessId::of(i32::try_from(child.id()).unwrap())).unwrap()
    }

    #[tokio::test]
    async fn the_sandboxes_own_code_is_awaited_only_where_its_shim_has_lost_it() {
        let mut child = shell("sleep 1; exit 7");
        let init = held(&child);
        let ended = |status| ProcessExit { status, at: SystemTime::UNIX_EPOCH };
        let exit = by_sandbox(ended(3), Some(&init)).await;
        assert_eq!((exit.code, init.exit_status()), (3, None), "the sandbox has not ended");
        let exit = by_sandbox(ended(LOST_BY_GVISOR), Some(&init)).await;
        assert_eq!((exit.code, exit.error), (7, None));
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn an_end_is_reported_once_the_output_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let stdout = directory.path().join("stdout");
        nix::unistd::mkfifo(&stdout, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let logs = LogPaths { stdout: stdout.clone(), stderr: stdout.clone() };
        let mut pipe = File::options().read(true).write(true).open(&stdout).unwrap();
        pipe.write_all(b"last words").unwrap();
        let mut reader =
            File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&stdout).unwrap();
        drop(pipe);
        let drained = drain_logs(&logs, None);
        let read = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            reader.read_to_end(&mut Vec::new()).unwrap()
        };
        let (is_drained, length) = tokio::join!(drained, read);
        assert_eq!((is_drained, length), (true, b"last words".len()));
    }
}
