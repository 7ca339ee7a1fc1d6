//! Takes down all parts of a container, be it a whole task, or what a failed start has left. Each step is done if there
//! is something to do, so a teardown that failed half-way can be repeated.
//!
//! The order: the processes first, then a network of the task's own and, beside it, what containerd keeps, and the bundle
//! last, since the sweeper comes back for the rest as long as the bundle is there.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::attempt::Attempt;
use super::container::{self, ContainerHandles};
use super::end_by_shim::{KILLED, may_run};
use super::error::{Error, Result};
use super::slot::{AtDestroy, Occupant};
use super::start::check_not_filled;
use super::timeline::{Call, Timeline};
use super::{RemovalGuard, Settings, Slot, Tasks};
use crate::shim::{self, Bundle, Connection, SharedPlace, Shim, wait_pending};
use crate::sys::error_chain::Chained;

/// Number of times that a shim is asked that is busy with another container, each of which takes ten seconds.
const ASKS_BUSY_SHIM: usize = 6;
/// Maximum time that a shim may take to exit when it was told to.
const SHIM_ENDS: Duration = Duration::from_secs(2);

/// The parts that a teardown leaves for somebody to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TeardownScope {
    Nothing,
    /// The record, and by it the snapshot.
    Record,
}

impl Tasks {
    /// Takes a task down and forgets it. A task that isn't in the registry may have left something; if it hasn't, that
    /// is success.
    ///
    /// # Errors
    /// When the task still runs and is not to be killed, or when a part of it can't be removed now; that part is
    /// removed later by itself.
    pub(crate) async fn destroy(
        self: &Arc<Self>,
        settings: Arc<Settings>,
        task_id: &str,
        force: bool,
    ) -> Result<()> {
        let destroyed = self.destroy_container(settings, &container::container_id(task_id), force).await;
        destroyed.map_err(|error| error.context(format_args!("destroy task {task_id}")))
    }

    /// Destroys a task by its container's id, as [`Self::destroy`] does by the task's.
    ///
    /// # Errors
    /// As [`Self::destroy`].
    pub(super) async fn destroy_container(
        self: &Arc<Self>,
        settings: Arc<Settings>,
        container_id: &str,
        force: bool,
    ) -> Result<()> {
        let (container, ending) = loop {
            let freed = self.freed.notified();
            match self.begin_destroy(&settings, container_id, force)? {
                Some(begun) => break begun,
                None => freed.await,
            }
        };
        // In a task of its own: the caller may go away, the teardown goes on.
        let keeps = !settings.config.gc.container;
        let tasks = Arc::clone(self);
        let torn_down = tokio::spawn(async move {
            let outcome = if keeps {
                tasks.tear_down_keeping_record(&settings, &container).await
            } else {
                tasks.tear_down(&settings, &container).await
            };
            drop(ending);
            outcome
        });
        let outcome =
            torn_down.await.map_err(|error| Error::failed(error).context("the teardown was interrupted"));
        outcome.flatten()
    }

    /// Takes a container down, and its shared shim, if it has one that no other container has.
    ///
    /// # Errors
    /// As [`ContainerHandles::tear_down`].
    pub(super) async fn tear_down(&self, settings: &Settings, container: &ContainerHandles) -> Result<()> {
        self.end_lost(settings, container).await;
        let outcome = container.tear_down().await;
        self.leave_shared_shim(settings, container).await;
        outcome
    }

    /// Takes down all but the container's record, as [`Self::tear_down`].
    ///
    /// # Errors
    /// As [`ContainerHandles::tear_down`].
    pub(super) async fn tear_down_keeping_record(
        &self,
        settings: &Settings,
        container: &ContainerHandles,
    ) -> Result<()> {
        self.end_lost(settings, container).await;
        let outcome = container.tear_down_keeping_record().await;
        self.leave_shared_shim(settings, container).await;
        outcome
    }

    /// Ends a container of which nothing says any more that a shared shim has it. A failure is logged only: the teardown
    /// kills what it finds by other means.
    async fn end_lost(&self, settings: &Settings, container: &ContainerHandles) {
        self.shared_shims.load(settings).await;
        let is_lost =
            container.is_taken_down() && container.bundle.off_thread(Bundle::read_shim).await.is_none();
        if is_lost && let Err(error) = self.shared_shims.end_lost(container).await {
            tracing::warn!(container = container.id, error = %error.chain(), "can't end a container whose bundle was lost by the shim that it shares");
        }
    }

    async fn leave_shared_shim(&self, settings: &Settings, container: &ContainerHandles) {
        let shim = container.bundle.off_thread(Bundle::read_shim).await;
        let named = shim.and_then(|shim| shim.shared);
        self.shared_shims.leave(settings, &container.id, named.as_deref()).await;
    }

    /// Marks the id as ending: from here on nobody else finds the task. Returns `None` while somebody else starts it,
    /// or takes it down.
    fn begin_destroy(
        self: &Arc<Self>,
        settings: &Settings,
        container_id: &str,
        force: bool,
    ) -> Result<Option<(ContainerHandles, RemovalGuard)>> {
        let mut slots = self.lock();
        let slot = slots.get(container_id);
        match Occupant::of(slot).at_destroy(force) {
            AtDestroy::TakeDown => {}
            AtDestroy::CancelAndWait => {
                if let Some(Slot::Starting(starting)) = slot {
                    starting.cancelled.cancel();
                }
                return Ok(None);
            }
            AtDestroy::Wait => return Ok(None),
            AtDestroy::Refuse => {
                return Err(Error::conflict("it is running: stop it first, or destroy it by force"));
            }
        }
        let container = if let Some(Slot::Active(task)) = slot {
            task.end_stats();
            task.container.clone()
        } else {
            ContainerHandles::by_id(settings, container_id)
        };
        slots.insert(container_id.to_owned(), Slot::Removing);
        Ok(Some((container, RemovalGuard { tasks: Arc::clone(self), container_id: container_id.to_owned() })))
    }
}

/// Changes a bundle on another thread: a disk may take its time, and the kernel waits for all processors for an
/// unmount.
async fn on_disk<E>(bundle: &Bundle, change: fn(&Bundle) -> std::result::Result<(), E>) -> Result<()>
where
    E: Send + 'static,
    Error: From<E>,
{
    Ok(bundle.off_thread(change).await?)
}

fn record_end_of_processes(bundle: &Bundle) -> Result<()> {
    bundle.record_end_of_processes()?;
    Attempt::forget(bundle)
}

/// Combines the outcomes of what was taken down side by side. The error of both is one text with those of each.
fn both(network: Result<()>, kept: Result<()>) -> Result<()> {
    let (Err(network), Err(kept)) = (&network, &kept) else { return network.and(kept) };
    let passes = [network, kept].iter().any(|error| matches!(error, Error::Transient(_)));
    Err(Error::failure(format!("{}; {}", network.chain(), kept.chain()), passes))
}

impl ContainerHandles {
    /// # Errors
    /// Names the first part that could not be removed. The bundle is kept, marked, until all is.
    pub(super) async fn tear_down(&self) -> Result<()> {
        self.take_down(TeardownScope::Nothing).await
    }

    /// Takes down all but the record and, kept by it, the snapshot, which are for somebody to look at.
    ///
    /// # Errors
    /// As [`Self::tear_down`].
    pub(super) async fn tear_down_keeping_record(&self) -> Result<()> {
        self.take_down(TeardownScope::Record).await
    }

    async fn take_down(&self, keeps: TeardownScope) -> Result<()> {
        let (timeline, calls) = (Timeline::begin(), self.containerd.calls());
        let outcome = Box::pin(self.take_down_parts(keeps, &timeline)).await;
        timeline.tell(Call::Teardown, &self.id, outcome.is_ok(), self.containerd.calls() - calls);
        outcome
    }

    async fn take_down_parts(&self, keeps: TeardownScope, timeline: &Timeline) -> Result<()> {
        let Self { id, bundle, .. } = self;
        self.restore_at_last().await;
        // Somebody may have removed the bundle from under a container that runs.
        if bundle.off_thread(Bundle::exists).await {
            // A disk that takes no mark keeps no process from being killed; until the bundle has the mark, its
            // container is found and taken down as an orphan is.
            let marked = on_disk(bundle, Bundle::mark_for_removal).await;
            if let Err(error) = &marked {
                tracing::warn!(container = id, error = %error.chain(), "can't mark the container for removal; continuing");
            }
            timeline.step("processes", self.end_processes(timeline)).await?;
            on_disk(bundle, record_end_of_processes).await?;
            if marked.is_err() {
                // The removal of files has just made room.
                on_disk(bundle, Bundle::mark_for_removal).await?;
            }
            // Neither knows the other's parts. Each goes on to its end, even if the other one fails: a network is not
            // kept by a containerd that is down, nor what containerd has by a plugin that fails.
            let network = timeline.step("network", self.end_network());
            let (network, kept) = tokio::join!(network, self.remove_mounted(keeps, timeline));
            both(network, kept)?;
        } else {
            timeline.step("processes", self.end_without_shim()).await?;
            self.remove_kept(keeps, timeline).await?;
        }
        timeline.step("bundle", on_disk(bundle, Bundle::remove)).await
    }

    /// Removes the mounts of a container, and then what containerd keeps of it.
    async fn remove_mounted(&self, keeps: TeardownScope, timeline: &Timeline) -> Result<()> {
        // Its copy would go on in what is another container's by then.
        check_not_filled(&self.id)?;
        // A snapshot that is still mounted can't be removed.
        timeline.step("mounts", on_disk(&self.bundle, Bundle::unstage)).await?;
        self.remove_kept(keeps, timeline).await
    }

    /// Removes what containerd keeps of a container.
    async fn remove_kept(&self, keeps: TeardownScope, timeline: &Timeline) -> Result<()> {
        let Self { id, containerd, .. } = self;
        match keeps {
            TeardownScope::Nothing => {
                timeline.step("record", containerd.delete_record(id)).await?;
                timeline.step("snapshot", containerd.remove_snapshots_of(id)).await?;
            }
            // What is in a volume ends with the task.
            TeardownScope::Record => timeline.step("volumes", containerd.remove_volumes_of(id)).await?,
        }
        Ok(timeline.step("lease", containerd.delete_lease(id)).await?)
    }

    async fn end_processes(&self, timeline: &Timeline) -> Result<()> {
        let shim = self.bundle.off_thread(Bundle::read_shim).await;
        let removed = match &shim {
            Some(shim) => match self.end_by_shim(shim, timeline).await {
                Ok(removed) => removed,
                Err(error) => {
                    tracing::warn!(container = self.id, error = %error.chain(), "the shim can't kill its container");
                    if !shim.is_creating() {
                        self.retire_shared(shim).await;
                    }
                    false
                }
            },
            None => false,
        };
        if removed {
            self.end_rest_of_group().await?;
        } else {
            if let Some(shim) = shim.as_ref().filter(|shim| shim.is_shared()) {
                self.launcher.kill_runtimes_for(shim, &self.id).await;
            }
            self.end_without_shim().await?;
        }
        if let Some(shim) = shim.filter(|shim| !shim.is_shared()) {
            shim.remove_socket().await;
            // Some shims leave their own socket behind, and a handle may have another path for it.
            self.launcher.remove_socket(&self.id).await;
        }
        Ok(())
    }

    /// Has no more tasks get a shared shim, such as one that could not remove a container, which it may still count as its
    /// own.
    pub(super) async fn retire_shared(&self, shim: &Shim) {
        let place = shim.shared.as_deref().and_then(|id| SharedPlace::of(self.state_dir(), id));
        if let Some(place) = place {
            place.retire().await;
        }
    }

    /// Ends a container the orderly way: the shim kills what runs, removes the container, and, if it is the container's
    /// own, ends itself. Returns false where the shim knew no container, which does not mean that there is none.
    async fn end_by_shim(&self, shim: &Shim, timeline: &Timeline) -> std::result::Result<bool, shim::Error> {
        let connection = Connection::open(&shim.bootstrap, &self.id).await?;
        let mut state = connection.state().await;
        for _ in 1..ASKS_BUSY_SHIM {
            if !state.as_ref().is_err_and(shim::Error::is_late) || !shim.is_creating() {
                break;
            }
            state = connection.state().await;
        }
        let removed = match state {
            Ok(state) if !may_run(state) => {
                timeline.step("processes/delete", connection.delete()).await?;
                true
            }
            Ok(_) => {
                let ended = wait_pending(&connection, "").await;
                // Before the shim kills: it would lock up over many processes of which it is the reaper.
                let is_alone = self.kill_group().await.unwrap_or_else(|error| {
                    tracing::warn!(container = self.id, %error, "not all of its processes have exited yet");
                    true
                });
                // For processes outside the cgroup; most often they have exited by now. Where some of those that the
                // runtime finds may be another attempt's, only the first process is killed.
                let _ = connection.kill(Signal::SIGKILL as i32, is_alone).await;
                let _ = tokio::time::timeout(KILLED, ended).await;
                timeline.step("processes/delete", connection.delete()).await?;
                true
            }
            Err(error) if error.is_not_found() => {
                // The shim may be in the middle of a create.
                if !shim.is_shared() {
                    self.launcher.kill_descendants_of(shim, &self.bundle, &self.id).await;
                }
                false
            }
            Err(error) => return Err(error),
        };
        if shim.is_shared() {
            return Ok(removed);
        }
        let _ending = timeline.under("processes/shim");
        connection.shutdown().await?;
        if !self.launcher.exits_within(shim, &self.bundle, &self.id, SHIM_ENDS).await {
            tracing::warn!(container = self.id, pid = shim.pid, "the shim did not exit; it will be killed");
            self.launcher.kill_stale_shims(&self.bundle, &self.id).await;
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_what_was_taken_down_side_by_side_has_the_texts_of_both() {
        let failed = |why: &'static str| Err(Error::failed(why));
        let outcome = |network: Result<()>, kept: Result<()>| {
            both(network, kept).map_err(|error| error.chain().to_string())
        };
        assert_eq!(outcome(Ok(()), Ok(())), Ok(()));
        assert_eq!(outcome(failed("portmap"), Ok(())), Err("portmap".to_owned()));
        assert_eq!(outcome(Ok(()), failed("containerd")), Err("containerd".to_owned()));
        assert_eq!(outcome(failed("portmap"), failed("containerd")), Err("portmap; containerd".to_owned()));
        let passes = both(failed("portmap"), Err(Error::transient("containerd")));
        assert!(matches!(passes, Err(Error::Transient(_))), "{passes:?}");
    }
}
