//! Recovers a running task after the plugin, or the agent, was restarted.
//!
//! Nothing is started here, and no pipe of Nomad's is opened: the agent's log collector comes back only later. For a
//! task that exited meanwhile, the shim still has the exit status.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::sys::sysinfo::sysinfo;
use nomad_proto::driver as pb;

use super::container::{self, ContainerHandles};
use super::error::{Error, Result};
use super::events::TaskEvents;
use super::exec::StaleExecs;
use super::runtime::renew_wrapper;
use super::shared_shims::SharedShims;
use super::supervisor::Supervision;
use super::{DriverState, Identity, Settings, Task, Tasks, dockerd};
use crate::shim::{self, Bundle, Connection, Family};
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::Init;
use crate::sys::procfs::{ProcessId, Stat};

/// Maximum time that a shim may take to answer: the agent recovers its tasks one after the other, and those behind this
/// one wait.
const SHIM_ANSWERS: Duration = Duration::from_secs(3);
/// Number of tries to open a pidfd of a task's first process, and the pause between them.
const HOLD_TRIES: u32 = 5;
const HOLD_PAUSE: Duration = Duration::from_millis(200);

impl Tasks {
    /// Recovers a task. A task that is in the registry already is a success.
    ///
    /// # Errors
    /// When the task's shim is gone, or the driver state is not of this driver; the agent then destroys what is left,
    /// and starts the task anew by its policy.
    pub(crate) async fn recover(
        self: &Arc<Self>,
        settings: Arc<Settings>,
        config: &pb::TaskConfig,
        driver_state: &[u8],
    ) -> Result<()> {
        if self.get(&config.id).is_some() {
            return Ok(());
        }
        let doing = format!("recover task {}", config.id);
        let identity = Identity::of(config);
        self.group_networks.has_alloc_dir(&config.alloc_dir);
        let reservation = self.reserve(&identity).await.map_err(|error| error.context(&doing))?;
        let task_events = TaskEvents { identity, events: self.events.clone() };
        let task = match find(self, &settings, task_events, driver_state).await {
            Ok(task) => task,
            Err(error) => {
                drop(reservation);
                // Its bundle may be marked for removal, also one that was restored only now.
                self.left.notify_one();
                return Err(error.context(&doing));
            }
        };
        tracing::info!(
            task = config.id,
            container = task.driver_state.container_id,
            pid = task.driver_state.init.pid,
            "recovered"
        );
        reservation.fill(Arc::new(task));
        Ok(())
    }
}

fn is_of_boot(started_at: SystemTime, booted_at: Option<SystemTime>) -> bool {
    booted_at.is_none_or(|booted_at| started_at >= booted_at)
}

/// Returns when the host was booted, by its clock of today; `None` where the kernel doesn't tell.
fn booted_at() -> Option<SystemTime> {
    SystemTime::now().checked_sub(sysinfo().ok()?.uptime())
}

async fn find(
    tasks: &Arc<Tasks>,
    settings: &Settings,
    task_events: TaskEvents,
    driver_state: &[u8],
) -> Result<Task> {
    let driver_state = DriverState::decode(driver_state)?;
    let container =
        ContainerHandles::of(settings, &driver_state.container_id, driver_state.shim_binary.clone());
    // A pid and its start time say nothing after a restart of the host, which may have emptied the state directory.
    let is_of_this_boot = is_of_boot(driver_state.started_at, booted_at());
    if is_of_this_boot {
        container.remember(&driver_state, &task_events.identity);
    }
    tasks.shared_shims.claim(settings, &driver_state.shim, &container.id).await;
    let restored = container.restore_off_thread().await;
    let directory = container.bundle.directory();
    let is_marked = container.bundle.off_thread(Bundle::is_marked_for_removal).await;
    if let Some(why) = refusal(is_marked, restored, is_of_this_boot, directory) {
        return Err(Error::failed(why));
    }
    // Looked up before the shim is asked anything: the shim may be stuck in the start of an exec.
    let execs = container.bundle.off_thread(StaleExecs::find).await;
    if driver_state.family() == Family::Gvisor {
        if let Err(error) = renew_wrapper(settings).await {
            tracing::warn!(container = driver_state.container_id, error = %error.chain(), "can't renew the link by which its shim finds runsc");
        }
    } else if let Err(error) = settings.events.address_for(&driver_state.shim_binary).await {
        // A shim whose events are not taken retries each event, and says so in its log.
        tracing::warn!(container = driver_state.container_id, error = %error.chain(), "can't accept its shim's events");
    }
    let init = hold(driver_state.init).await;
    let connection = reach(&tasks.shared_shims, &container, &driver_state, &init).await?;
    let had_exited = is_known_to_be_gone(&driver_state, &init);
    let init = init.unwrap_or_default();
    let waiting = shim::wait_pending(&connection, "").await;
    let runtime_root = container::runtime_root(settings);
    let (shim, state, of) = (connection.clone(), driver_state.clone(), container.clone());
    tokio::spawn(async move { execs.end(&shim, &state, &of, runtime_root.as_ref()).await });
    let network = container.clone();
    // The check may take as long as the CNI plugins do, and changes nothing for the task.
    tokio::spawn(async move { network.check_network().await });
    let oom_kills = driver_state.cgroup.oom_kills();
    let bundle = container.bundle.clone();
    let (log_collector, trouble) = match tasks.collect_output(&bundle, &driver_state, &task_events).await {
        Ok(log_collector) => (log_collector, None),
        Err(error) => (None, Some(error)),
    };
    let supervision = Supervision {
        driver_state,
        container,
        task_events: task_events.clone(),
        init,
        had_exited,
        connection,
        waiting,
        log_collector,
        oom_kills,
    };
    let mut task = Task::supervised(supervision, settings);
    if let Some(trouble) = trouble {
        let (driver_state, phase) = (task.driver_state.clone(), task.phase.clone());
        let later =
            Arc::clone(tasks).collect_later(bundle, driver_state, task_events.clone(), phase, trouble);
        tokio::spawn(later);
    }
    task.recovered = Mutex::new(Some(task_events));
    Ok(task)
}

/// Opens a pidfd of a task's first process. Retries errors, since a want of descriptors may pass: all tasks of a node
/// are recovered at once.
async fn hold(process: ProcessId) -> std::io::Result<Option<Init>> {
    let mut held = Init::look(process);
    for _ in 0..HOLD_TRIES {
        if held.is_ok() {
            break;
        }
        tokio::time::sleep(HOLD_PAUSE).await;
        held = Init::look(process);
    }
    held
}

/// Connects to a task's shim and asks for its state. A shim that can't be asked costs no task whose first process runs,
/// as long as the shim's own process is there: whatever the shim is busy with, or this plugin is short of, is no exit
/// of the task, and the kernel reports an exit all the same. Nor does a shared shim, which may be busy with another task,
/// cost one whose first process is gone: it has the exit status.
async fn reach(
    shared_shims: &SharedShims,
    container: &ContainerHandles,
    driver_state: &DriverState,
    init: &std::io::Result<Option<Init>>,
) -> Result<Connection> {
    let is_shared = driver_state.shim.is_shared();
    let late = || {
        let late = format!("its shim does not answer within {SHIM_ANSWERS:?}");
        (ShimAnswer::Nothing, is_shared, Error::failed(late))
    };
    let opened = Connection::open(&driver_state.shim.bootstrap, &driver_state.container_id).await;
    let (answer, tells_later, error) = match opened {
        // Those that are recovered next, one after the other, don't wait for it as well.
        Ok(_) if shared_shims.is_silent(&driver_state.shim) => late(),
        Ok(connection) => match tokio::time::timeout(SHIM_ANSWERS, connection.state()).await {
            Ok(answer) => {
                shared_shims.note_answer(&driver_state.shim, &answer);
                match answer {
                    Ok(_) => return Ok(connection),
                    // One that has refused has answered, and says no more later.
                    Err(error) => (ShimAnswer::by(&error), is_shared && !error.is_refusal(), error.into()),
                }
            }
            Err(_) => {
                shared_shims.is_not_answering(&driver_state.shim);
                late()
            }
        },
        Err(error) => (ShimAnswer::Nothing, is_shared, error.into()),
    };
    let process_is_gone = is_known_to_be_gone(driver_state, init);
    let shim_is_gone = answer == ShimAnswer::Nothing && (!process_is_gone || tells_later) && {
        let shim = container.launcher.process_of(&driver_state.shim, &container.bundle, &container.id).await;
        matches!(shim, Ok(None))
    };
    match recovery(answer, process_is_gone, shim_is_gone, tells_later) {
        Recovery::Possible => {}
        Recovery::Impossible(None) => return Err(error),
        Recovery::Impossible(Some(why)) => return Err(error.context(why)),
    }
    tracing::warn!(
        container = driver_state.container_id,
        error = %error.chain(),
        process_is_gone,
        "the shim does not answer, but is running as far as can be told"
    );
    Ok(Connection::deferred(&driver_state.shim.bootstrap, &driver_state.container_id))
}

/// The answer of a task's shim to the question for its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShimAnswer {
    /// The shim has no such task.
    HasNoTask,
    /// The shim is gone, hangs, or can't be asked.
    Nothing,
}

impl ShimAnswer {
    fn by(error: &shim::Error) -> Self {
        if error.is_not_found() { Self::HasNoTask } else { Self::Nothing }
    }
}

/// The verdict on the recovery of a task whose shim has not told its state.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recovery {
    Possible,
    /// Not possible, for this reason beside the shim's own.
    Impossible(Option<&'static str>),
}

/// Decides whether a task is recovered whose shim has not told its state. `process_is_gone` and `shim_is_gone` are true
/// only where that is known. A shim that `tells_later` is asked later for the exit status of a process that is gone.
pub(super) fn recovery(
    answer: ShimAnswer,
    process_is_gone: bool,
    shim_is_gone: bool,
    tells_later: bool,
) -> Recovery {
    match answer {
        ShimAnswer::HasNoTask => Recovery::Impossible(None),
        ShimAnswer::Nothing if process_is_gone && !tells_later => {
            Recovery::Impossible(Some("its first process is gone"))
        }
        ShimAnswer::Nothing if shim_is_gone => Recovery::Impossible(Some("its shim is gone")),
        ShimAnswer::Nothing => Recovery::Possible,
    }
}

/// Returns why a container is not recovered, by its bundle: it is due for removal.
pub(super) fn refusal(
    is_marked: bool,
    is_restored: bool,
    is_of_this_boot: bool,
    directory: &Path,
) -> Option<String> {
    is_marked.then(|| match (is_restored, is_of_this_boot) {
        (true, _) => format!("its bundle directory {} was removed", directory.display()),
        (false, true) => "it was being removed".to_owned(),
        (false, false) => "the host was restarted after its start".to_owned(),
    })
}

/// Returns whether a task's first process is known to have exited. `init` is the try to hold it.
fn is_known_to_be_gone(driver_state: &DriverState, init: &std::io::Result<Option<Init>>) -> bool {
    matches!(init, Ok(None)) && has_gone(driver_state.init, &Stat::look(driver_state.init.pid))
}

/// Returns whether a process is gone by what was seen at its pid; works also where the kernel has no pidfds. A process
/// whose pid is not known never counts as gone, one whose start time is not known only if nothing has its pid.
fn has_gone(process: ProcessId, seen: &std::io::Result<Option<Stat>>) -> bool {
    process.pid > 1
        && match seen {
            Ok(Some(stat)) => process.started_ticks != 0 && !stat.is_of(process),
            Ok(None) => true,
            Err(_) => false,
        }
}

impl DriverState {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::failed(error).context("encode the driver state"))
    }

    fn decode(driver_state: &[u8]) -> Result<Self> {
        serde_json::from_slice(driver_state).map_err(|error| match dockerd::container_of(driver_state) {
            Some(container_id) => dockerd::foreign_handle(&container_id),
            None => Error::invalid(error).context("the handle has no driver state of this driver"),
        })
    }
}

#[cfg(test)]
mod tests {
    use shim_protos::{ApiVersion, Bootstrap, CallError};

    use super::*;
    use crate::cgroup::Cgroup;
    use crate::logs::{Limits, Target};
    use crate::shim::{Family, LogPaths, Shim};
    use crate::task::DriverNetwork;
    use crate::task::state::Forwarded;

    #[test]
    fn a_process_is_gone_only_where_that_is_known() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap());
        let seen = |of: ProcessId| Stat::look(of.pid);
        assert!(!has_gone(own, &seen(own)));
        assert!(has_gone(own, &Ok(None)));
        assert!(has_gone(ProcessId { started_ticks: own.started_ticks + 1, ..own }, &seen(own)));
        assert!(!has_gone(ProcessId { started_ticks: 0, ..own }, &seen(own)));
        assert!(!has_gone(ProcessId::UNKNOWN, &seen(ProcessId::UNKNOWN)));
        assert!(!has_gone(own, &Err(std::io::Error::from_raw_os_error(nix::libc::EMFILE))));
    }

    #[test]
    fn only_a_process_that_could_not_be_held_may_be_gone() {
        let mut driver_state = complete();
        driver_state.init = ProcessId { pid: i32::MAX, started_ticks: 9 };
        assert!(is_known_to_be_gone(&driver_state, &Ok(None)));
        let unknown = Err(std::io::Error::from_raw_os_error(nix::libc::EMFILE));
        assert!(!is_known_to_be_gone(&driver_state, &unknown));
        driver_state.init = ProcessId::of(i32::try_from(std::process::id()).unwrap());
        assert!(!is_known_to_be_gone(&driver_state, &Ok(None)), "a kernel without pidfds");
    }

    #[test]
    fn only_a_shim_that_says_so_has_no_task() {
        let by = |source| ShimAnswer::by(&shim::Error::Call { doing: "look".to_owned(), source });
        assert_eq!(by(CallError::NotFound("no such task".to_owned())), ShimAnswer::HasNoTask);
        for nothing in [CallError::Disconnected("broken".to_owned()), CallError::Refused("busy".to_owned())] {
            assert_eq!(by(nothing), ShimAnswer::Nothing);
        }
    }

    #[test]
    fn a_shim_that_can_t_be_asked_costs_no_running_task() {
        for is_shared in [false, true] {
            let verdict = |process_is_gone, shim_is_gone| {
                recovery(ShimAnswer::Nothing, process_is_gone, shim_is_gone, is_shared)
            };
            assert_eq!(verdict(false, false), Recovery::Possible);
            assert_ne!(verdict(false, true), Recovery::Possible);
            assert_ne!(verdict(true, true), Recovery::Possible);
            // A shared one has the exit status, and answers once it is done with another task.
            assert_eq!(verdict(true, false) == Recovery::Possible, is_shared);
            let has_none = recovery(ShimAnswer::HasNoTask, true, false, is_shared);
            assert_eq!(has_none, Recovery::Impossible(None));
        }
    }

    #[test]
    fn a_container_due_for_removal_is_not_recovered() {
        let at = Path::new("/state/nomad/web-1");
        assert!(refusal(true, false, true, at).unwrap().contains("being removed"));
        assert!(refusal(true, true, true, at).unwrap().contains("/state/nomad/web-1 was removed"));
        assert!(refusal(true, false, false, at).unwrap().contains("restarted"));
        assert_eq!((refusal(false, false, true, at), refusal(false, true, true, at)), (None, None));
    }

    #[test]
    fn a_start_before_the_hosts_own_is_of_another_boot() {
        let booted_at = booted_at().unwrap();
        assert!(booted_at < SystemTime::now());
        assert!(is_of_boot(SystemTime::now(), Some(booted_at)) && is_of_boot(SystemTime::UNIX_EPOCH, None));
        assert!(!is_of_boot(booted_at - Duration::from_secs(1), Some(booted_at)));
    }

    /// The complete driver state of a task, as a plugin of 2026-11-29 wrote it. It is in the handles of running tasks.
    const RECORDED: &str = include_str!("driver_state.json");

    /// Returns the driver state that is recorded.
    fn complete() -> DriverState {
        DriverState {
            container_id: "redis-1".to_owned(),
            shim_binary: "/usr/bin/containerd-shim-runc-v2".into(),
            family: Some(Family::Runc),
            shim: Shim {
                bootstrap: Bootstrap { version: ApiVersion::V2, socket: "/run/s".into() },
                pid: 7,
                started_ticks: 6,
                shared: None,
            },
            init: ProcessId { pid: 8, started_ticks: 9 },
            started_at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5),
            logs: LogPaths { stdout: "/o".into(), stderr: "/e".into() },
            collected: Some(Target {
                alloc_dir: "/a".into(),
                task: "redis".to_owned(),
                limits: Limits { max_files: 3, max_file_bytes: 1 << 20 },
            }),
            cgroup: Cgroup { path: "/nomad/a.b".into(), cpuset: None },
            shares_pids: true,
            image_digest: "sha256:ab".to_owned(),
            stop_signal: Some("SIGINT".to_owned()),
            network: Some(DriverNetwork {
                address: [10, 0, 0, 5].into(),
                ports: [("http".to_owned(), 80)].into(),
                auto_advertise: true,
            }),
            oom_kills: Some(2),
            runsc: Some("/opt/runsc".to_owned()),
            forwarded: Some(Forwarded::Pipes(LogPaths { stdout: "/n".into(), stderr: "/m".into() })),
            chosen_crun: true,
        }
    }

    #[test]
    fn a_recorded_driver_state_is_read_and_written_as_it_is() {
        assert_eq!(DriverState::decode(RECORDED.as_bytes()).unwrap(), complete());
        assert_eq!(String::from_utf8(complete().encode().unwrap()).unwrap(), RECORDED.trim_end());
    }

    #[test]
    fn a_driver_state_without_later_fields_is_read() {
        let mut early: serde_json::Value = serde_json::from_str(RECORDED).unwrap();
        for later in ["family", "collected", "network", "oom_kills", "runsc", "forwarded", "chosen_crun"] {
            early.as_object_mut().unwrap().remove(later).unwrap();
        }
        early["shim"].as_object_mut().unwrap().remove("started_ticks").unwrap();
        let driver_state = DriverState::decode(early.to_string().as_bytes()).unwrap();
        assert_eq!((driver_state.family, driver_state.shim.started_ticks), (None, 0));
        let error = DriverState::decode(b"\x81garbage").unwrap_err();
        assert!(error.to_string().contains("no driver state of this driver"));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn driver_states() {
        crate::fuzz::bytes("driver-state", |handle| {
            let Ok(state) = DriverState::decode(handle) else { return };
            assert_eq!(DriverState::decode(&state.encode().unwrap()).unwrap(), state);
        });
    }
}
