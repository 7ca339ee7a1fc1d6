//! Faults outside of the plugin: of shims, runtimes, containerd and what it keeps, disks, registries, CNI plugins, the
//! agent, another plugin. Each begins while the plugin is held at a point, and passes some time after the plugin was let go.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use clap::builder::PossibleValue;
use harness::context::CaseContext;
use harness::fixture::containerd::NAMESPACE;
use harness::fixture::fault_proxy::{Fault as Broken, FaultProxy};
use harness::leaks::inspect::{Found, active_snapshots, find_processes, listed, socket_of_shim};
use harness::processes::alive;
use nomad_proto::driver::fingerprint_response::HealthState;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::disk::Disk;
use super::scenario::Scenario;
use super::system_calls::{OF_CONTAINERD, OF_NETWORK};
use crate::cases::support::cni_plugins::Plugins;
use crate::cases::support::spares;

/// Time for which a fault lasts.
pub const FAULT_TIME: Duration = Duration::from_secs(2);
/// Time after which nobody waits for an answer of containerd any more.
const LATE: Duration = Duration::from_secs(14);
/// Number of bytes of each answer that a broken registry sends.
const SENT_BYTES: u64 = 100;
/// The CNI plugin that makes the interface.
const BRIDGE: &str = "bridge";
/// Pause between two looks for a runtime, which lives for some milliseconds.
const GLANCE: Duration = Duration::from_millis(2);

/// A fault outside of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Outside {
    /// All shims of the scenario's task are killed.
    ShimKilled,
    /// All shims of the scenario's task stand still.
    ShimFrozen,
    /// All spare shims are killed.
    SparesKilled,
    /// All spare shims stand still.
    SparesFrozen,
    /// The sockets of the shims of the scenario's task can't be found.
    ShimUnreachable,
    /// The shim's binary is replaced by one that fails.
    ShimBroken,
    /// The next runtime that works for the scenario's task is killed.
    RuntimeKilled,
    /// containerd is killed, and started again.
    ContainerdKilled,
    /// containerd stands still.
    ContainerdFrozen,
    /// The snapshot of the scenario's task is removed, and doesn't come back.
    SnapshotGone,
    /// The content of all images is removed, and doesn't come back unless somebody pulls it.
    ContentGone,
    /// The disk of the state directory has no room.
    DiskFull,
    /// The disk of the state directory answers no writer.
    DiskFrozen,
    /// The next child of the plugin is killed: a shim's binary, a plugin for networks.
    ChildKilled,
    /// The registry is killed, and started again.
    RegistryKilled,
    /// The registry stands still.
    RegistryFrozen,
    /// The registry's answers end after some bytes.
    RegistryCuts,
    /// The registry's answers stall after some bytes.
    RegistryStalls,
    /// The registry answers that it is overloaded.
    RegistryRefuses,
    /// The registry's answers have no end.
    RegistryEndless,
    /// The CNI plugin that makes the interface does nothing, and doesn't end.
    CniHangs,
    /// The CNI plugin that makes the interface says that it has made none.
    CniLies,
    /// The disk of the allocations has no room.
    AllocDiskFull,
    /// The disk of containerd has no room.
    ContainerdDiskFull,
    /// containerd stands still for longer than anybody waits for its answer.
    ContainerdLate,
    /// Another plugin is started on the state directory, by another agent.
    Twin,
    /// The agent dies, and comes again.
    AgentGone,
    /// The agent dies, and comes again with no memory of the task and of the plugin.
    AgentForgets,
}

impl fmt::Display for Outside {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        to.write_str(value.as_ref().map_or("?", PossibleValue::get_name))
    }
}

impl Outside {
    /// Returns whether the fault can be of any effect at a call on an object in a scenario.
    pub fn is_possible_at(self, scenario: Scenario, call: &str, object: &str) -> bool {
        let meets_registry = scenario == Scenario::Pull && object == OF_NETWORK;
        match self {
            Self::ChildKilled => ["clone", "clone3", "vfork", "wait4", "waitid", "pipe2"].contains(&call),
            Self::RegistryKilled | Self::RegistryFrozen => meets_registry,
            _ if self.broken_registry().is_some() => meets_registry,
            Self::CniHangs | Self::CniLies => scenario == Scenario::Network,
            Self::AllocDiskFull => object.starts_with("{case}/alloc"),
            Self::ContainerdDiskFull | Self::ContainerdLate => object == OF_CONTAINERD,
            Self::ShimBroken => scenario.starts(),
            Self::SparesKilled | Self::SparesFrozen => scenario.keeps_spares(),
            Self::AgentForgets => !scenario.is_without_agent() && object.starts_with("socket"),
            _ => true,
        }
    }

    /// Returns how the registry's answers are broken, if the fault breaks them.
    fn broken_registry(self) -> Option<Broken> {
        match self {
            Self::RegistryCuts => Some(Broken::CutAfter(SENT_BYTES)),
            Self::RegistryStalls => Some(Broken::StallAfter(SENT_BYTES)),
            Self::RegistryRefuses => Some(Broken::Status(503)),
            Self::RegistryEndless => Some(Broken::Endless),
            _ => None,
        }
    }

    /// Returns the time for which the fault lasts.
    pub fn lasts(self) -> Duration {
        if self == Self::ContainerdLate { LATE } else { FAULT_TIME }
    }

    /// Returns whether the fault is the agent's, whose calls end with it.
    pub fn is_agents(self) -> bool {
        matches!(self, Self::AgentGone | Self::AgentForgets)
    }

    /// Returns whether the task may end by the fault.
    pub fn ends_task(self) -> bool {
        self == Self::ShimKilled
    }
}

/// What a fault can be done to, and what it has to leave alone.
pub struct Surroundings<'a> {
    pub context: &'a CaseContext,
    /// The disk of the state directory.
    pub disk: &'a Disk,
    /// The disk of the allocations.
    pub alloc_disk: &'a Disk,
    /// The disk of containerd.
    pub containerd_disk: &'a Disk,
    /// What stands between the plugin and the registry.
    pub proxy: &'a FaultProxy,
    pub cni: &'a Plugins,
    /// The plugin's process.
    pub plugin: i32,
    /// Files that are moved away at the moment.
    pub moved: &'a RefCell<Vec<PathBuf>>,
    /// Shims that are not those of a trial's task.
    pub foreign_shims: &'a [i32],
    /// Container that nothing may happen to.
    pub foreign_container: &'a str,
}

/// A fault that goes on, and what ends it.
pub struct UnderWay {
    outside: Outside,
    had_effect: bool,
}

impl Surroundings<'_> {
    /// Begins a fault.
    ///
    /// # Errors
    /// Says what could not be done.
    pub fn begin(&self, outside: Outside) -> Result<UnderWay> {
        let environment = self.context.environment();
        let containerd = environment.containerd();
        let (mut moved, mut had_effect) = (Vec::new(), true);
        let _ = fs::remove_file(self.ran());
        match outside {
            Outside::ShimKilled => had_effect = self.signal_shims(Signal::KILL),
            Outside::ShimFrozen => had_effect = self.signal_shims(Signal::STOP),
            Outside::SparesKilled => had_effect = signal(&spares::all(self.context), Signal::KILL),
            Outside::SparesFrozen => had_effect = signal(&spares::all(self.context), Signal::STOP),
            Outside::ShimUnreachable => {
                moved = self
                    .shims()
                    .into_iter()
                    .filter_map(socket_of_shim)
                    .filter(|path| path.exists())
                    .collect();
                had_effect = !moved.is_empty();
            }
            Outside::ShimBroken => moved = vec![self.shim_binary()],
            Outside::ContainerdKilled => containerd.kill()?,
            Outside::ContainerdFrozen => containerd.pause()?,
            Outside::RegistryKilled => environment.registry().stop(),
            Outside::RegistryFrozen => environment.registry().pause()?,
            Outside::RegistryCuts
            | Outside::RegistryStalls
            | Outside::RegistryRefuses
            | Outside::RegistryEndless => {
                if let Some(fault) = outside.broken_registry() {
                    self.proxy.clear_requests();
                    self.proxy.inject("", fault);
                }
            }
            Outside::CniHangs => self.replace_cni("sleep 600; exit 1")?,
            Outside::CniLies => {
                self.replace_cni(r#""$real" > /dev/null; echo '{"cniVersion": "1.0.0"}'; exit 0"#)?;
            }
            Outside::AllocDiskFull => self.alloc_disk.fill()?,
            Outside::ContainerdDiskFull => self.containerd_disk.fill()?,
            Outside::ContainerdLate => containerd.pause()?,
            Outside::SnapshotGone => {
                let keys = active_snapshots(containerd, NAMESPACE)?;
                let keys: Vec<_> = keys.iter().filter(|key| *key != self.foreign_container).collect();
                had_effect = !keys.is_empty();
                // One that goes by itself at the same moment is gone as well.
                keys.into_iter().for_each(|key| drop(containerd.ctr(&["snapshots", "remove", key])));
            }
            Outside::ContentGone => {
                let digests = listed(containerd, &["content", "list", "--quiet"])?;
                had_effect = !digests.is_empty();
                let arguments: Vec<_> =
                    ["content", "remove"].into_iter().chain(digests.iter().map(String::as_str)).collect();
                let _ = containerd.ctr(&arguments);
            }
            Outside::DiskFull => self.disk.fill()?,
            Outside::DiskFrozen => had_effect = self.disk.freeze()?,
            Outside::RuntimeKilled
            | Outside::ChildKilled
            | Outside::Twin
            | Outside::AgentGone
            | Outside::AgentForgets => {}
        }
        for path in moved {
            fs::rename(&path, away(&path)).with_context(|| format!("move {} away", path.display()))?;
            self.moved.borrow_mut().push(path);
        }
        if outside == Outside::ShimBroken {
            let mut options = fs::OpenOptions::new();
            let mut script = options.write(true).create_new(true).mode(0o755).open(self.shim_binary())?;
            write!(script, "#!/bin/sh\n: > '{}'\nexit 1\n", self.ran().display())?;
        }
        Ok(UnderWay { outside, had_effect })
    }

    /// Lets a fault last, and ends it. Returns whether there was anything to cause it on. `options` are those of a twin.
    ///
    /// # Errors
    /// Says what could not be undone, or what a twin did wrong.
    pub async fn pass(&self, mut under_way: UnderWay, options: &Value) -> Result<bool> {
        match under_way.outside {
            Outside::ShimKilled
            | Outside::SparesKilled
            | Outside::SnapshotGone
            | Outside::ContentGone
            | Outside::AgentGone
            | Outside::AgentForgets => {}
            Outside::RuntimeKilled => {
                under_way.had_effect = self.kill_first(|pid| self.is_runtime(pid)).await;
            }
            Outside::ChildKilled => {
                let is_child =
                    |pid| harness::processes::parent(pid).is_ok_and(|parent| parent == self.plugin);
                under_way.had_effect = self.kill_first(is_child).await;
            }
            Outside::Twin => self.twin(options).await.context("another plugin on the state directory")?,
            outside => tokio::time::sleep(outside.lasts()).await,
        }
        let was_met = self.was_met(under_way.outside);
        tokio::task::block_in_place(|| self.end(&under_way))?;
        Ok(under_way.had_effect && was_met)
    }

    /// Returns whether anybody has run what was replaced, or asked what was broken.
    fn was_met(&self, outside: Outside) -> bool {
        match outside {
            Outside::ShimBroken | Outside::CniHangs | Outside::CniLies => self.ran().exists(),
            _ => outside.broken_registry().is_none() || !self.proxy.requests().is_empty(),
        }
    }

    /// Returns the file that a program makes that has taken another one's place.
    fn ran(&self) -> PathBuf {
        self.context.directory().join("ran")
    }

    fn replace_cni(&self, script: &str) -> Result<()> {
        self.cni.replace(BRIDGE, "ADD", &format!(": > '{}'; {script}", self.ran().display()))
    }

    fn end(&self, under_way: &UnderWay) -> Result<()> {
        let environment = self.context.environment();
        let containerd = environment.containerd();
        match under_way.outside {
            Outside::ShimFrozen | Outside::SparesFrozen => self.let_shims_go_on(),
            Outside::ContainerdKilled => containerd.start()?,
            Outside::ContainerdFrozen | Outside::ContainerdLate => containerd.resume()?,
            Outside::RegistryKilled => environment.registry().start()?,
            Outside::RegistryFrozen => environment.registry().resume()?,
            outside if outside.broken_registry().is_some() => self.proxy.heal(),
            Outside::CniHangs | Outside::CniLies => self.cni.restore(BRIDGE)?,
            Outside::AllocDiskFull => self.alloc_disk.make_room()?,
            Outside::ContainerdDiskFull => self.containerd_disk.make_room()?,
            Outside::DiskFull => self.disk.make_room()?,
            Outside::DiskFrozen => self.disk.thaw()?,
            // A shim that has ended meanwhile couldn't remove its socket.
            Outside::ShimUnreachable => {
                let is_served = |path: &PathBuf| {
                    self.shims().into_iter().any(|pid| socket_of_shim(pid).as_ref() == Some(path))
                };
                for path in self.moved.borrow().iter().filter(|path| !is_served(path)) {
                    fs::remove_file(away(path)).context("remove a socket")?;
                }
            }
            _ => {}
        }
        self.move_back()
    }

    /// Moves all files back that are still away.
    fn move_back(&self) -> Result<()> {
        let moved = self.moved.take();
        let back = moved.iter().filter(|path| away(path).exists()).map(|path| {
            fs::rename(away(path), path).with_context(|| format!("move {} back", path.display()))
        });
        back.fold(Ok(()), Result::and)
    }

    /// Puts right what a fault has left that was given up in its middle.
    pub fn repair(&self) {
        self.let_shims_go_on();
        let _ = self.disk.thaw();
        for disk in [self.disk, self.alloc_disk, self.containerd_disk] {
            let _ = disk.make_room();
        }
        self.proxy.heal();
        let _ = self.cni.restore(BRIDGE);
        let _ = self.move_back();
    }

    fn shim_binary(&self) -> PathBuf {
        let containerd = self.context.environment().containerd();
        let name = Path::new(self.context.programs().shim()).file_name().unwrap_or_default().to_owned();
        containerd.programs_directory().join(name)
    }

    fn shims(&self) -> Vec<i32> {
        shims(self.context).into_iter().filter(|pid| !self.foreign_shims.contains(pid)).collect()
    }

    /// Sends a signal to the shims of the trial's task, and returns whether there is any.
    fn signal_shims(&self, sent: Signal) -> bool {
        signal(&self.shims(), sent)
    }

    /// Lets all shims go on that stand still. One that was a spare may be the task's by now.
    fn let_shims_go_on(&self) {
        self.signal_shims(Signal::CONT);
        signal(&spares::all(self.context), Signal::CONT);
    }

    /// Kills the first process that appears and is such a one. Returns whether there was one.
    async fn kill_first(&self, is_such: impl Fn(i32) -> bool) -> bool {
        let until = Instant::now() + FAULT_TIME;
        while Instant::now() < until {
            // The number may be another process's a moment later.
            let held = |pid: i32| {
                let held = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
                (is_such(pid) && alive(pid)).then_some(held)
            };
            let found = harness::processes::all().filter(|pid| is_such(*pid)).find_map(held);
            if let Some(found) = found {
                return pidfd_send_signal(found, Signal::KILL).is_ok();
            }
            tokio::time::sleep(GLANCE).await;
        }
        false
    }

    /// Returns whether a process is a runtime that works for the trial's task.
    fn is_runtime(&self, pid: i32) -> bool {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        let state_dir = self.context.state_dir().display().to_string();
        let name = self.context.programs().runtime_name();
        Path::new(program).file_name().is_some_and(|program| *program == *name)
            && line.contains(&state_dir)
            && !line.contains(self.foreign_container)
    }

    /// Starts another plugin on the state directory, which has to wait as long as the first one has an agent.
    async fn twin(&self, options: &Value) -> Result<()> {
        let mut twin = self.context.bare_plugin(&self.context.launch()).await?;
        let looked = async {
            twin.configure(options).await?;
            let mut fingerprints = twin.fingerprints().await?;
            let until = tokio::time::Instant::now() + FAULT_TIME;
            while let Ok(answer) = tokio::time::timeout_at(until, fingerprints.message()).await {
                let health = answer?.context("its fingerprints have ended")?.health();
                ensure!(health != HealthState::Healthy, "it is healthy");
            }
            Ok(())
        };
        let looked = looked.await;
        twin.kill().await?;
        looked
    }
}

/// Sends a signal to processes, and returns whether any is there.
fn signal(pids: &[i32], signal: Signal) -> bool {
    let sent =
        pids.iter().filter(|pid| Pid::from_raw(**pid).is_some_and(|pid| kill_process(pid, signal).is_ok()));
    sent.count() > 0
}

fn away(path: &Path) -> PathBuf {
    path.with_added_extension("away")
}

/// Returns the shims of a test bed.
pub fn shims(context: &CaseContext) -> Vec<i32> {
    let found = find_processes(&context.state_dir());
    let is_shim = |process: &Found| !process.is_spare && process.command.contains("containerd-shim");
    found.into_iter().filter(is_shim).map(|shim| shim.pid).collect()
}
