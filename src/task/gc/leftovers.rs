//! The garbage collector: takes down what no call will ever come back for, such as a start that the plugin did not
//! survive, a destroy that failed because containerd was down, or what a reboot has left in containerd. Also keeps the
//! logs of running shims small, and the plugin itself, and the rules of the driver's bridge complete.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::remains::Remains;
use crate::cni::ValidAttachment;
use crate::shim::{Bundle, bundles};
use crate::sys::error_chain::Chained;
use crate::sys::{malloc, open_files};
use crate::task::container::ContainerHandles;
use crate::task::network::INTERFACE;
use crate::task::start::OWNER_LABEL;
use crate::task::{Settings, Tasks, runtime};

const PERIOD: Duration = Duration::from_secs(10);
/// Interval between collections of addresses. During a collection no network is made or taken down.
const COLLECTION: Duration = Duration::from_secs(600);

impl Tasks {
    /// Starts the sweeps and the other background work, once in the plugin's life: at the agent's first fingerprint,
    /// which launches that only try the plugin out never get to.
    pub(crate) fn sweep_for(self: &Arc<Self>, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
        if self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        open_files::warn_if_low();
        tokio::spawn(Arc::clone(self).end_stuck());
        tokio::spawn(Arc::clone(self).reap_orphans(settings.clone()));
        tokio::spawn(Arc::clone(self).collect_images(settings.clone()));
        tokio::spawn(Arc::clone(self).tell_of_missing_shims(settings.clone()));
        tokio::spawn(Arc::clone(self).keep_rules(settings.clone()));
        self.keep_spares(settings.clone());
        let tasks = Arc::clone(self);
        tokio::spawn(async move {
            let mut state = SweepState::default();
            while let Some(current) = tasks.own_settings(&mut settings).await {
                Box::pin(tasks.sweep(&current, &mut state)).await;
                tokio::select! {
                    changed = settings.changed() => if changed.is_err() { return },
                    () = tasks.left.notified() => {}
                    () = tokio::time::sleep(PERIOD) => {}
                }
            }
        });
    }

    /// Makes the rules of the built-in network that somebody has removed from under running tasks.
    async fn keep_rules(self: Arc<Self>, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
        let mut reported = None;
        while let Some(current) = self.own_settings(&mut settings).await {
            reported = mend_rules(&current, reported.take()).await;
            if let Ok(Err(_)) = tokio::time::timeout(PERIOD, settings.changed()).await {
                return;
            }
        }
    }

    /// Warns, once for each configuration, of options for shims that are not on this host.
    async fn tell_of_missing_shims(self: Arc<Self>, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
        while let Some(current) = self.own_settings(&mut settings).await {
            runtime::warn_of_missing_shims(&current.config).await;
            if settings.changed().await.is_err() {
                return;
            }
        }
    }

    async fn sweep(self: &Arc<Self>, settings: &Settings, state: &mut SweepState) {
        let bundles: Vec<_> = self.active().iter().map(|task| task.container.bundle.clone()).collect();
        let _ = tokio::task::spawn_blocking(move || bundles.iter().for_each(Bundle::trim_logs)).await;
        let grace = settings.config.gc.dangling_containers.creation_grace;
        if let Err(error) = settings.containerd.end_left_pulls(grace).await {
            tracing::debug!(error = %error.chain(), "can't remove the leases of abandoned pulls yet");
        }
        let mut reported = HashMap::new();
        for id in left_over(settings).await {
            let Some(_ending) = self.reserve_removal(&id) else { continue };
            match self.tear_down(settings, &ContainerHandles::by_id(settings, &id)).await {
                Ok(()) => tracing::info!(container = id, "removed the rest of a task"),
                Err(error) => {
                    let error = error.chain().to_string();
                    if state.reported.get(&id) == Some(&error) {
                        tracing::debug!(container = id, error, "still can't remove the rest of a task");
                    } else {
                        tracing::warn!(container = id, error, "can't remove the rest of a task yet");
                    }
                    reported.insert(id, error);
                }
            }
        }
        state.reported = reported;
        self.sweep_shared_shims(settings, self.is_settled(grace)).await;
        self.sweep_group_networks(settings).await;
        if state.collected.is_none_or(|at| at.elapsed() > COLLECTION) {
            state.collected = Some(Instant::now());
            collect_addresses(settings).await;
        }
        let _ = tokio::task::spawn_blocking(malloc::trim).await;
    }
}

/// The facts that a sweep keeps for the next one.
#[derive(Default)]
struct SweepState {
    /// Last error of each container that can't be taken down.
    reported: HashMap<String, String>,
    /// Time of the last collection of addresses.
    collected: Option<Instant>,
}

/// Makes the rules of the built-in network that somebody has removed from under running tasks. Returns the error, which
/// is reported if it isn't the `reported` one.
async fn mend_rules(settings: &Settings, reported: Option<String>) -> Option<String> {
    let error = settings.cni.mend_rules().await.err()?.chain().to_string();
    if reported.as_ref() == Some(&error) {
        tracing::debug!(error, "still can't look for the rules of the bridge's subnets");
    } else {
        tracing::warn!(error, "can't look for the rules of the bridge's subnets, or make them; trying again");
    }
    Some(error)
}

/// Has the built-in network give up addresses that it holds for no task: their bundles are gone, and with them the
/// records.
async fn collect_addresses(settings: &Settings) {
    let attached = |container_id| ValidAttachment { container_id, if_name: INTERFACE.to_owned() };
    let (state_dir, namespace) = (settings.config.state_dir.clone(), settings.namespace());
    let valid = move || Some(bundles(&state_dir, namespace).ok()?.into_iter().map(attached).collect());
    if let Err(error) = settings.cni.gc(valid).await {
        tracing::warn!(error = %error.chain(), "can't release addresses that no task uses");
    }
}

/// Returns the ids of bundles that are marked for removal, and of this plugin's leases whose bundle is gone.
async fn left_over(settings: &Settings) -> Vec<String> {
    let state_dir = &settings.config.state_dir;
    let leases = settings.containerd.leases(OWNER_LABEL, &state_dir.display().to_string()).await;
    let (state_dir, namespace) = (state_dir.clone(), settings.namespace());
    let look = move || {
        let bundle = |id: &str| Bundle::at(&state_dir, namespace, id);
        let leased = leases.unwrap_or_default().into_iter().map(|lease| lease.id);
        let leased = leased.filter(|id| Remains::look(&bundle(id)) == Remains::NoBundle);
        let bundles = bundles(&state_dir, namespace).unwrap_or_else(|error| {
            tracing::warn!(error = %error.chain(), "can't look for the rest of earlier tasks");
            Vec::new()
        });
        let doomed = bundles.into_iter().filter(|id| Remains::look(&bundle(id)).is_left_over());
        doomed.chain(leased).collect()
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}
