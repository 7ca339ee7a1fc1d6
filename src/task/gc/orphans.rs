//! Takes down orphans: containers that run and that Nomad does not know of, and then the networks of groups that it does
//! not know. The plugin, or the agent, died between a
//! task's start and the moment when the agent had written down its handle, or the agent has lost its state.
//!
//! An orphan looks like any task which the agent has yet to recover. So a container is left alone until it is older
//! than the agent could need, and the agent has been there for as long without a recovery: an agent that is away, or
//! slow, has not come to all of its tasks. The same holds for a plugin that stood still: it gives the agent the whole
//! time again. A container that was recovered is never touched.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::remains::{Remains, has_settled};
use crate::shim::{Bundle, bundles};
use crate::sys::error_chain::Chained;
use crate::task::container::ContainerHandles;
use crate::task::{Settings, Tasks};

/// Longest sleep while the agent may recover its tasks, so that a plugin that stood still meanwhile notices.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Delay of a wake-up from which on the plugin has stood still. A busy node delays it by less.
const STOOD_STILL: Duration = Duration::from_secs(2);

impl Tasks {
    /// Takes down orphans periodically, while an agent listens that has recovered its tasks.
    pub(in crate::task) async fn reap_orphans(
        self: Arc<Self>,
        mut settings: watch::Receiver<Option<Arc<Settings>>>,
    ) {
        while let Some(current) = self.own_settings(&mut settings).await {
            let policy = &current.config.gc.dangling_containers;
            let changes = self.agent.changes();
            let pause = if !policy.enabled {
                None
            } else if self.is_settled(policy.creation_grace) {
                Box::pin(self.reap(&current)).await;
                Some(policy.period)
            } else {
                let left = |settled| policy.creation_grace.saturating_sub(settled);
                self.agent.settled().map(|settled| left(settled).min(LONGEST_SLEEP))
            };
            let passes = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            let began = Instant::now();
            tokio::select! {
                () = passes => {}
                () = changes => {}
                changed = settings.changed() => if changed.is_err() { return },
            }
            if pause.is_some_and(|pause| has_stood_still(pause, began.elapsed())) {
                // The agent's recoveries may have been waiting for all that time, and come first.
                tracing::debug!(
                    "the plugin stood still; it looks for orphans once the agent has had its time again"
                );
                self.agent.recovers();
            }
        }
    }

    /// Returns whether the agent has been there for the time `grace` without a recovery.
    pub(super) fn is_settled(&self, grace: Duration) -> bool {
        has_settled(self.agent.settled(), grace)
    }

    async fn reap(self: &Arc<Self>, settings: &Settings) {
        let (state_dir, namespace) = (settings.config.state_dir.clone(), settings.namespace());
        let grace = settings.config.gc.dangling_containers.creation_grace;
        let found = tokio::task::spawn_blocking(move || past_grace(&state_dir, namespace, grace)).await;
        for id in found.unwrap_or_default() {
            // The agent may have gone, or another one come, since the last container.
            if !self.is_settled(grace) {
                return;
            }
            // An id that is taken is a task's that was started or recovered, or somebody takes it down already.
            let Some(_ending) = self.reserve_removal(&id) else { continue };
            let container = ContainerHandles::by_id(settings, &id);
            let labels = container.containerd.labels(&id).await.unwrap_or_else(|error| {
                tracing::debug!(container = id, error = %error.chain(), "can't read the labels of the container");
                std::collections::HashMap::new()
            });
            let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
            let (alloc, task) = (label("nomad/alloc-id"), label("nomad/task"));
            if settings.config.gc.dangling_containers.dry_run {
                tracing::warn!(
                    container = id,
                    alloc,
                    task,
                    "Nomad does not know this container; leaving it (dry_run)"
                );
                continue;
            }
            tracing::warn!(container = id, alloc, task, "Nomad does not know this container; removing it");
            if let Err(error) = self.tear_down(settings, &container).await {
                tracing::warn!(container = id, error = %error.chain(), "the rest of it is removed later");
            }
        }
        // After the containers: their processes are in these networks.
        if self.is_settled(grace) {
            self.reap_group_networks(settings).await;
        }
    }
}

/// Returns whether a pause that took `took` was so much longer than `pause` that the plugin was stopped, or had no
/// processor or memory.
fn has_stood_still(pause: Duration, took: Duration) -> bool {
    took >= pause + STOOD_STILL
}

/// Returns the containers whose start is complete and that are older than `grace`. Those marked for removal are the
/// sweeper's.
fn past_grace(state_dir: &Path, namespace: &str, grace: Duration) -> Vec<String> {
    let now = SystemTime::now();
    let found = bundles(state_dir, namespace).unwrap_or_else(|error| {
        tracing::warn!(error = %error.chain(), "can't look for containers that Nomad does not know");
        Vec::new()
    });
    let is_orphan = |id: &String| Remains::look(&Bundle::at(state_dir, namespace, id)).is_orphan(now, grace);
    found.into_iter().filter(is_orphan).collect()
}
