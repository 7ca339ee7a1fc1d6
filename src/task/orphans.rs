//! Takes down containers that run and that Nomad does not know of: the plugin, or the agent, died between a task's start
//! and the moment when the agent had written down its handle, or the agent has lost its state.
//!
//! Such a container looks like that of any task which the agent has yet to recover. So one is left alone until it, and
//! this plugin's life in the agent, are older than the agent could need; and one that was recovered is never touched.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use super::place::Place;
use super::{NAMESPACE, Settings, Tasks};
use crate::shim::{Bundle, bundles};

impl Tasks {
    /// Looks for orphans now and then, from the agent's first fingerprint on, which comes before its recoveries.
    pub(super) async fn reap_orphans(self: Arc<Self>, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
        let begun = Instant::now();
        loop {
            let current = settings.borrow_and_update().clone();
            let wanted = |settings: &Arc<Settings>| {
                settings.config.enabled && settings.config.gc.dangling_containers.enabled
            };
            let changed = match current.filter(wanted) {
                None => settings.changed().await,
                Some(current) => {
                    let policy = &current.config.gc.dangling_containers;
                    let grace = policy.creation_grace.saturating_sub(begun.elapsed());
                    let pause = if grace.is_zero() {
                        self.reap(&current).await;
                        policy.period
                    } else {
                        grace
                    };
                    tokio::time::timeout(pause, settings.changed()).await.unwrap_or(Ok(()))
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn reap(self: &Arc<Self>, settings: &Settings) {
        for id in grown_up(settings) {
            // Taken, it is a task's that was started or recovered, or somebody takes it down already.
            let Some(_ending) = self.reserve_end(&id) else { continue };
            let place = Place::by_id(settings, &id);
            let labels = place.containerd.labels(&id).await.unwrap_or_else(|error| {
                tracing::debug!(container = id, %error, "can't ask whose container it was");
                std::collections::HashMap::new()
            });
            let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
            let (alloc, task) = (label("nomad/alloc-id"), label("nomad/task"));
            if settings.config.gc.dangling_containers.dry_run {
                tracing::warn!(
                    container = id,
                    alloc,
                    task,
                    "Nomad does not know this container; it is left (dry_run)"
                );
                continue;
            }
            tracing::warn!(container = id, alloc, task, "Nomad does not know this container; taking it down");
            if let Err(error) = place.tear_down().await {
                tracing::warn!(container = id, %error, "what is left of it will be taken down later");
            }
        }
    }
}

/// Containers whose start is complete, and older than the grace. What is marked to go is the sweeper's.
fn grown_up(settings: &Settings) -> Vec<String> {
    let state_dir = &settings.config.state_dir;
    let grace = settings.config.gc.dangling_containers.creation_grace;
    let now = SystemTime::now();
    let is_old = |made: SystemTime| now.duration_since(made).unwrap_or_default() >= grace;
    let found = bundles(state_dir, NAMESPACE).unwrap_or_else(|error| {
        tracing::warn!(%error, "can't look for containers that Nomad does not know");
        Vec::new()
    });
    let grown_up = |id: &String| {
        let bundle = Bundle::at(state_dir, NAMESPACE, id);
        !bundle.is_doomed() && bundle.made_at().is_some_and(is_old)
    };
    found.into_iter().filter(grown_up).collect()
}
