//! The first process of a container that was created and has not started: found, held and placed before it can end.

use oci_spec::runtime::Spec;

use super::Start;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::init::Init;
use crate::process_stat::{self, ProcessId};
use crate::shim::{self, Bundle, Family, Shim};
use crate::task::mounts::off_thread;

/// The process that the runtime has made, and what is asked of it later.
pub(super) struct First {
    pub(super) id: ProcessId,
    /// By which the kernel tells of its end.
    pub(super) init: Option<Init>,
    /// What the kernel had killed in its cgroup before it started.
    pub(super) oom_kills: u64,
}

/// What is left to do on the host once a container is created.
struct Created {
    container: String,
    bundle: Bundle,
    shim: Shim,
    family: Family,
    program: Option<String>,
    cgroup: Cgroup,
    /// In bytes; None where there is none.
    memory_limit: Option<i64>,
    /// To be written once the real one has been used.
    next_spec: Option<Box<Spec>>,
    /// The first process, as the shim says.
    pid: i32,
}

impl Start<'_> {
    /// Settles a container that the shim has created with the first process `pid`: nothing that the runtime was given is
    /// held in the bundle any more, the process is in its cpuset, and is held by a descriptor. `next_spec` takes the place
    /// of the spec that was used.
    pub(super) async fn settle(
        &self,
        pid: i32,
        shim: &Shim,
        memory_limit: Option<i64>,
        next_spec: Option<Box<Spec>>,
    ) -> Result<First> {
        let options = &self.wanted.options;
        let created = Created {
            container: self.place.id.clone(),
            bundle: self.place.bundle.clone(),
            shim: shim.clone(),
            family: self.wanted.runtime.family,
            program: options.runtime.program(&self.settings.config).map(str::to_owned),
            cgroup: self.wanted.cgroup.clone(),
            memory_limit,
            next_spec,
            pid,
        };
        // The kernel may take its time for an unmount, and a move between cgroups of v1 waits for all processors.
        let directory = created.bundle.directory().to_owned();
        off_thread(&directory, "the created container", move || created.settle()).await
    }
}

impl Created {
    fn settle(self) -> Result<First> {
        if shim::sets_oom_scores(self.family, self.program.as_deref()) {
            self.shim.protect();
        }
        if self.family == Family::Gvisor {
            self.require_limits()?;
        }
        if let Some(spec) = &self.next_spec {
            self.bundle.write_spec(spec)?;
        }
        self.bundle.unpin()?;
        let id = self.first_process();
        let init = Init::open(id);
        if let Some(cpuset) = &self.cgroup.cpuset {
            let doing = || format!("put the task into the cpuset {}", cpuset.display());
            self.cgroup.place(id.pid).map_err(|error| Error::system(doing(), &error))?;
            if self.family == Family::Gvisor {
                // What serves the sandbox its files works for the task as well.
                for pid in self.cgroup.processes().map_err(|error| Error::system(doing(), &error))? {
                    let _ = self.cgroup.place(pid);
                }
            }
        }
        Ok(First { id, init, oom_kills: self.cgroup.oom_kills() })
    }

    /// Whether gVisor's runtime has set limits depends on its version and on the operator's file.
    fn require_limits(&self) -> Result<()> {
        let Some(wanted) = self.memory_limit else { return Ok(()) };
        let cgroup = self.cgroup.path.display();
        match self.cgroup.memory_limit() {
            Ok(Some(set)) if set <= wanted => Ok(()),
            Ok(_) => Err(Error::Failed(format!(
                "gVisor has not set the task's memory limit, {wanted} bytes, on its cgroup {cgroup}; look at the file of the \
                 plugin's option runtime_options.config_path"
            ))),
            Err(error) => Err(Error::system(format!("read the memory limit of {cgroup}"), &error)),
        }
    }

    /// The task's first process, which has the pid that the shim says only if it is the shim's doing: what descends from
    /// it, or is in the task's cgroup. Any other is not known, and left alone.
    fn first_process(&self) -> ProcessId {
        let is_in_cgroup = || self.cgroup.processes().is_ok_and(|pids| pids.contains(&self.pid));
        if self.pid > 1 && (process_stat::descends(self.pid, self.shim.pid) || is_in_cgroup()) {
            return ProcessId::of(self.pid);
        }
        tracing::warn!(
            container = self.container,
            pid = self.pid,
            "the shim names a process as the task's which is none of its own; the kernel is not asked for the task's end"
        );
        ProcessId::UNKNOWN
    }
}
