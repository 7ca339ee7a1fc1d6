//! The shim of a container: a spare, one that other tasks have, too, or one that is launched for it.

use std::os::fd::OwnedFd;

use oci_spec::runtime::Capability;
use tokio_util::sync::CancellationToken;

use super::plan::StartPlan;
use super::{ContainerHandles, Start};
use crate::config::{Sharing, ShimSharing};
use crate::shim::{self, Bundle, Connection, Family, Holds, ShareKey, Shim};
use crate::spec;
use crate::sys::blocking;
use crate::task::error::Result;
use crate::task::shared_shims::Join;

/// How much of a CPU a task has at least whose container is created soon: by then its limit is in force.
const SLOW_TO_CREATE: f64 = 0.05;

impl Start<'_> {
    /// Makes the bundle, and returns the shim that has come with it, if that is a spare. `needs` is what a spare must hold
    /// for the task; `None` if none will do.
    pub(super) async fn make_bundle(&self, needs: Option<Holds>) -> Result<Option<(Connection, Shim)>> {
        let ContainerHandles { id, bundle, launcher, .. } = self.container;
        let spare = match needs {
            None => None,
            Some(needs) => self.tasks.spares.take(launcher, bundle, id, needs).await,
        };
        let spare = spare.map(|(connection, shim, _)| (connection, shim));
        let (binary, attempt) = (spare.is_none().then(|| launcher.binary.clone()), self.attempt());
        let make = move |bundle: &Bundle| {
            if let Some(binary) = binary {
                bundle.create(&binary)?;
            }
            attempt.write(bundle)
        };
        bundle.off_thread(make).await?;
        Ok(spare)
    }

    /// Returns the shim of the container: the spare that has come with its bundle, that of other tasks, or one of its own.
    /// The shim holds the descriptors in `held`, but for a spare, which has what it needs.
    pub(super) async fn shim(
        &self,
        spare: Option<(Connection, Shim)>,
        share_key: Option<ShareKey>,
        held: Vec<OwnedFd>,
        given_up: &CancellationToken,
    ) -> Result<(Connection, Shim)> {
        if let Some(spare) = spare {
            return Ok(spare);
        }
        if let Some(key) = share_key {
            let Self { settings, container, tasks, timeline, .. } = self;
            let join = Join { settings, spares: &tasks.spares, container, key, held: &held, given_up };
            if let Some(joined) = timeline.step("shim/join", Box::pin(tasks.shared_shims.join(join))).await? {
                return Ok(joined);
            }
        }
        self.launch(held).await
    }

    /// Returns what decides which tasks have the same shim as this one. `None` for a shim of its own: one that others might
    /// suffer from, whose OOM score a program of the operator's would inherit, or whose descriptors the task could get at.
    pub(super) async fn share_key(&self) -> Option<ShareKey> {
        let StartPlan { options, runtime, devices, confinement, node, .. } = self.plan;
        let plugin = &self.settings.config;
        let group = match plugin.shim_sharing {
            ShimSharing::Task => return None,
            ShimSharing::Allocation => self.config.alloc_id.clone(),
            ShimSharing::Node => ShimSharing::Node.name().to_owned(),
        };
        let resources = self.config.resources.as_ref();
        let cpus =
            resources.and_then(|resources| spec::hard_limited_cpus(&options.limits.cpu, resources, node));
        let needs_own = runtime.family != Family::Runc
            || options.namespaces.pid_mode == Sharing::Host
            || !devices.hooks.is_empty()
            || group.is_empty()
            || confinement.capabilities.contains(&Capability::SysPtrace)
            || cpus.is_some_and(|cpus| cpus < SLOW_TO_CREATE);
        if needs_own {
            return None;
        }
        let program = runtime.program.clone();
        let score = spec::oom_score_adj(&options.limits, &plugin.limits);
        let (launcher, family) = (self.container.launcher.clone(), runtime.family);
        let key = move || {
            let sets_scores = shim::sets_oom_scores(family, program.as_deref());
            ShareKey::new(&launcher, group, (!sets_scores).then_some(score))
        };
        Some(blocking::run(key).await)
    }

    async fn launch(&self, inherited: Vec<OwnedFd>) -> Result<(Connection, Shim)> {
        let (ContainerHandles { id, bundle, launcher, .. }, timeline) = (self.container, self.timeline);
        let bootstrap = timeline.step("shim/exec", launcher.start(bundle, id, &inherited)).await?;
        let connection = timeline.step("shim/connect", Connection::open(&bootstrap, id)).await?;
        let shim_pid = timeline.step("shim/ask", connection.pid_of_fresh_shim()).await?;
        let shim = launcher.note_shim(bootstrap, bundle, id, shim_pid).await?;
        Ok((connection, shim))
    }
}
