//! The first process of a container that was created and is not started yet: found, held and placed before it can end.

use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::Start;
use crate::cgroup::{Cgroup, Limit};
use crate::shim::{self, Bundle, Family, LogPipeIds, Shim};
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::Init;
use crate::sys::procfs::{self, ProcessId};
use crate::task::error::{Error, Result};
use crate::task::mounts::off_thread;

/// Maximum time for which a started task waits for the unmounts, before it is supervised.
const UNSTAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The first process of a container, with what its supervisor needs.
pub(super) struct First {
    pub(super) id: ProcessId,
    /// Pidfd of the process, by which the kernel reports its exit.
    pub(super) init: Option<Init>,
    /// Number of OOM kills in the cgroup before the process was started.
    pub(super) oom_kills: u64,
}

/// Unmounts of staged sources that are under way.
pub(super) struct Unstaging(tokio::task::JoinHandle<()>);

/// A created container, with what is left to do for it on the host.
struct Created {
    container: String,
    bundle: Bundle,
    shim: Shim,
    family: Family,
    program: Option<String>,
    cgroup: Cgroup,
    /// Limits that the runtime is to have set.
    limits: Vec<Limit>,
    /// Specification to write into the bundle once the real one has been used.
    next_spec: Option<Box<Spec>>,
    binary: PathBuf,
    log_pipes: LogPipeIds,
    /// Pid of the first process, as the shim says.
    pid: i32,
}

impl Start<'_> {
    /// Prepares a created container, whose first process is `pid`, for its start: puts the process into its cpuset, and
    /// opens a pidfd of it. `next_spec` replaces the specification that was used.
    ///
    /// # Errors
    /// Refuses a shim that has given the process one of the task's `log_pipes`.
    pub(super) async fn settle(
        &self,
        pid: i32,
        shim: &Shim,
        limits: Vec<Limit>,
        next_spec: Option<Box<Spec>>,
        log_pipes: LogPipeIds,
    ) -> Result<First> {
        let created = Created {
            container: self.container.id.clone(),
            bundle: self.container.bundle.clone(),
            shim: shim.clone(),
            family: self.plan.runtime.family,
            program: self.plan.runtime.program.clone(),
            cgroup: self.plan.cgroup.clone(),
            limits,
            next_spec,
            binary: self.container.launcher.binary.clone(),
            log_pipes,
            pid,
        };
        // A move between cgroups of v1 waits for all processors.
        let directory = created.bundle.directory().to_owned();
        off_thread(&directory, "the created container", move || created.settle()).await
    }

    /// Begins to unmount the sources that the bundle of a created container has staged for the runtime, beside its start.
    /// A failure is logged only: the program may run by then, and the teardown unmounts what is left.
    pub(super) fn unstage(&self) -> Unstaging {
        let (bundle, container) = (self.container.bundle.clone(), self.container.id.clone());
        Unstaging(tokio::spawn(async move {
            let directory = bundle.directory().to_owned();
            let unstage = move || Ok(bundle.unstage()?);
            if let Err(error) = off_thread(&directory, "the mounts of the created container", unstage).await {
                tracing::warn!(container, error = %error.chain(), "can't unmount the sources of a task; its teardown tries again");
            }
        }))
    }
}

impl Unstaging {
    /// Waits for the end of the unmounts, up to [`UNSTAGE_TIMEOUT`]. They go on after it.
    pub(super) async fn wait(self) {
        let _ = tokio::time::timeout(UNSTAGE_TIMEOUT, self.0).await;
    }
}

impl Created {
    fn settle(self) -> Result<First> {
        if !self.shim.is_shared() && shim::sets_oom_scores(self.family, self.program.as_deref()) {
            self.shim.protect();
        }
        if self.family == Family::Gvisor {
            self.require_limits()?;
        }
        if let Some(spec) = &self.next_spec {
            self.bundle.write_spec(spec)?;
        }
        let id = self.first_process();
        // gVisor's sandbox writes to them itself, and the task has no descriptor of the host's.
        if self.family != Family::Gvisor && self.log_pipes.are_with(id.pid)? {
            return Err(shim::Error::GivesLogPipes(self.binary).into());
        }
        let init = Init::open(id);
        if let Some(cpuset) = &self.cgroup.cpuset {
            let doing = || format!("put the task into the cpuset {}", cpuset.display());
            self.cgroup.add_process(id.pid).map_err(|error| Error::system(doing(), error))?;
            if self.family == Family::Gvisor {
                // The processes that serve the sandbox its files work for the task as well.
                for pid in self.cgroup.processes().map_err(|error| Error::system(doing(), error))? {
                    let _ = self.cgroup.add_process(pid);
                }
            }
        }
        Ok(First { id, init, oom_kills: self.cgroup.oom_kills() })
    }

    /// Checks that gVisor's runtime has set the task's limits, which depends on its version and on the operator's file.
    fn require_limits(&self) -> Result<()> {
        let cgroup = self.cgroup.path.display();
        for limit in &self.limits {
            match self.cgroup.has(*limit) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(Error::failed(format!(
                        "gVisor has not set the task's {limit} on its cgroup {cgroup}; check the file of the plugin \
                         option runtime_options.config_path, and which runsc runs"
                    )));
                }
                Err(error) => {
                    return Err(Error::system(
                        format!("read the task's {limit}, from its cgroup {cgroup}"),
                        error,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns the task's first process. The pid that the shim says is believed only if that process descends from the
    /// shim, or is in the task's cgroup. Any other counts as unknown, and is left alone.
    fn first_process(&self) -> ProcessId {
        let is_in_cgroup = || self.cgroup.processes().is_ok_and(|pids| pids.contains(&self.pid));
        if self.pid > 1 && (procfs::descends(self.pid, self.shim.pid) || is_in_cgroup()) {
            return ProcessId::of(self.pid);
        }
        tracing::warn!(
            container = self.container,
            pid = self.pid,
            "the shim reports a process as the task's that is not its child; the kernel is not asked for the exit \
             status"
        );
        ProcessId::UNKNOWN
    }
}
