//! Takes down what no call will ever come back for: a start that the plugin did not survive, a destroy that failed
//! because containerd was down, what a reboot has left in containerd. And keeps the logs of running shims small.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::place::Place;
use super::start::OWNER_LABEL;
use super::{NAMESPACE, Settings, Tasks};
use crate::shim::{Bundle, bundles};

const PERIOD: Duration = Duration::from_secs(10);

impl Tasks {
    /// Sweeps now and then, from when the agent has first asked how the driver is: launches that only try the plugin out
    /// never get there.
    pub(crate) fn sweep_for(self: &Arc<Self>, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
        if self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        tokio::spawn(Arc::clone(self).reap_orphans(settings.clone()));
        tokio::spawn(Arc::clone(self).collect_images(settings.clone()));
        let tasks = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let current = settings.borrow_and_update().clone();
                if let Some(current) = current.filter(|settings| settings.config.enabled) {
                    tasks.sweep(&current).await;
                }
                if let Ok(Err(_)) = tokio::time::timeout(PERIOD, settings.changed()).await {
                    return;
                }
            }
        });
    }

    async fn sweep(self: &Arc<Self>, settings: &Settings) {
        for task in self.here() {
            task.place.bundle.trim_log();
        }
        let grace = settings.config.gc.dangling_containers.creation_grace;
        if let Err(error) = settings.containerd.end_left_pulls(grace).await {
            tracing::debug!(%error, "can't remove what pulls have left yet");
        }
        for id in left_over(settings).await {
            let Some(_ending) = self.reserve_end(&id) else { continue };
            match Place::by_id(settings, &id).tear_down().await {
                Ok(()) => tracing::info!(container = id, "took down what was left of a task"),
                Err(error) => {
                    tracing::debug!(container = id, %error, "can't take down what is left of a task yet");
                }
            }
        }
    }
}

/// Bundles that say of themselves that they are to go, and leases of ours whose bundle is gone.
async fn left_over(settings: &Settings) -> Vec<String> {
    let state_dir = &settings.config.state_dir;
    let bundle = |id: &str| Bundle::at(state_dir, NAMESPACE, id);
    let leases = settings.containerd.leases(OWNER_LABEL, &state_dir.display().to_string()).await;
    let leased =
        leases.unwrap_or_default().into_iter().map(|lease| lease.id).filter(|id| !bundle(id).exists());
    let bundles = bundles(state_dir, NAMESPACE).unwrap_or_else(|error| {
        tracing::warn!(%error, "can't look for what is left of earlier tasks");
        Vec::new()
    });
    let doomed = bundles.into_iter().filter(|id| bundle(id).is_doomed());
    doomed.chain(leased).collect()
}
