//! The spare shims of this plugin: how many are kept, when, and which start gets one.
//!
//! They are launched one after the other from the agent's first fingerprint on, and after each start. A start without a
//! spare launches its own shim, as does one whose shim has to be given descriptors of the task's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::container::ContainerHandles;
use super::{Settings, Tasks, runtime};
use crate::config::{LogCollection, LogType, PluginConfig, ShimSharing};
use crate::shim::{
    self, Bundle, Connection, DescriptorStore, Family, FileId, Holds, Launcher, Place, Refusal, Shim, Spare,
    end_left_spares,
};
use crate::sys::error_chain::Chained;

/// First and longest pause after a launch that failed, or before what could not be removed is tried again.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// Maximum number of spares that a start tries to get.
const TRIES: usize = 2;
const ENDED_AT_ONCE: usize = 2;
/// Number of spares that can't be ended from which on none is launched.
const MANY_LEFT: usize = 8;

#[derive(Default)]
pub(super) struct Spares {
    pool: Mutex<Pool>,
    /// Notified at the end of a start, and when a spare is to be ended.
    changed: Notify,
    /// Cancelled at the plugin's end.
    closed: CancellationToken,
    /// The task that keeps them.
    keeper: TaskTracker,
}

#[derive(Default)]
struct Pool {
    ready: VecDeque<Arc<Spare>>,
    /// Those that a start is about to get.
    taken: Vec<Arc<Spare>>,
    /// Where a spare is being launched.
    launching: Option<Arc<Place>>,
    left: Vec<Leftover>,
    /// Whether no spare's directory can become a bundle.
    is_useless: bool,
    /// Time of the last start's end.
    last_start: Option<Instant>,
}

impl Pool {
    /// Gives up the ready ones that aren't wanted. Returns whether there were any.
    fn give_up(&mut self, is_wanted: impl Fn(&Spare) -> bool) -> bool {
        let (kept, given_up): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.ready).into_iter().partition(|spare| is_wanted(spare));
        self.ready = kept;
        let any = !given_up.is_empty();
        self.left.extend(given_up.into_iter().map(Leftover::Spare));
        any
    }
}

/// What is to be ended.
#[derive(Clone)]
enum Leftover {
    Spare(Arc<Spare>),
    Place(Arc<Place>),
}

impl Leftover {
    async fn end(&self) -> bool {
        match self {
            Self::Spare(spare) => spare.end().await,
            Self::Place(place) => place.clear().await,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Spare(one), Self::Spare(other)) => Arc::ptr_eq(one, other),
            (Self::Place(one), Self::Place(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a spare over to a container, and returns its shim. `None` if none is there that suits, and lives.
    pub(super) async fn take(
        &self,
        launcher: &Launcher,
        bundle: &Bundle,
        id: &str,
        needs: Holds,
    ) -> Option<(Connection, Shim, Option<Arc<DescriptorStore>>)> {
        for _ in 0..TRIES {
            let spare = {
                let mut pool = self.lock();
                let at = pool.ready.iter().position(|spare| spare.is_by(launcher, needs))?;
                let spare = pool.ready.remove(at).filter(|_| !self.closed.is_cancelled())?;
                pool.taken.push(Arc::clone(&spare));
                spare
            };
            let handed = spare.hand_over(bundle, id).await;
            let mut pool = self.lock();
            pool.taken.retain(|taken| !Arc::ptr_eq(taken, &spare));
            match handed {
                Ok((connection, shim)) => return Some((connection, shim, spare.store())),
                // They are ended once the start is over.
                Err(Refusal::Useless) => pool.left.push(Leftover::Spare(spare)),
                Err(Refusal::Replaced) => {
                    pool.give_up(|other| !other.runs_file_of(&spare));
                    pool.left.push(Leftover::Spare(spare));
                }
                Err(Refusal::Hangs) => {
                    pool.left.push(Leftover::Spare(spare));
                    return None;
                }
                Err(Refusal::CannotMove(error)) => {
                    pool.is_useless |= error.crosses_file_systems();
                    pool.ready.push_front(spare);
                    tracing::warn!(error = %error.chain(), "can't use a spare shim; the task's is launched");
                    return None;
                }
            }
        }
        None
    }

    /// Notes the end of a start, after which a spare may be missing.
    pub(super) fn has_started(&self) {
        self.lock().last_start = Some(Instant::now());
        self.changed.notify_one();
    }

    /// Returns once one of the ready ones dies.
    async fn one_dies(&self) {
        let processes: Vec<_> = self.lock().ready.iter().filter_map(|spare| spare.process()).collect();
        let mut ends: FuturesUnordered<_> = processes.iter().map(|process| process.ended()).collect();
        if ends.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Finds what an earlier plugin has left, and ends as much of it as can be. Returns whether it could be looked for.
    async fn find_left(&self, current: &Settings) -> bool {
        let launcher = ContainerHandles::by_id(current, "").launcher;
        match end_left_spares(&launcher, &current.config.state_dir).await {
            Ok(left) => {
                self.lock().left.extend(left.into_iter().map(|place| Leftover::Place(Arc::new(place))));
                true
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "can't look for spare shims of an earlier plugin yet");
                false
            }
        }
    }

    /// Ends what is to be ended. Returns whether something is left.
    async fn end_left(&self) -> bool {
        // What is being ended stays in the pool, for an end of the plugin meanwhile.
        let found = self.lock().left.clone();
        let ends = found.into_iter().map(|left| async move { left.end().await.then_some(left) });
        let ended: Vec<_> = futures::stream::iter(ends).buffer_unordered(ENDED_AT_ONCE).collect().await;
        let left = &mut self.lock().left;
        left.retain(|it| !ended.iter().flatten().any(|ended| it.is(ended)));
        !left.is_empty()
    }

    fn lacks_one(&self, count: usize) -> bool {
        let pool = self.lock();
        pool.ready.len() < count && pool.left.len() < MANY_LEFT
    }

    async fn launch(&self, launcher: &Launcher, settings: &Settings) -> Result<(), shim::Error> {
        let place = Arc::new(Place::new(launcher, &settings.config.state_dir));
        self.lock().launching = Some(Arc::clone(&place));
        let launched = place.launch(holds(&settings.config)).await;
        let mut pool = self.lock();
        pool.launching = None;
        match launched {
            Ok(spare) => {
                pool.ready.push_back(Arc::new(spare));
                Ok(())
            }
            Err(error) => {
                pool.left.push(Leftover::Place(place));
                Err(error)
            }
        }
    }

    /// Keeps as many spares as the operator wants, for as long as tasks are started. Returns at a change of the settings.
    async fn keep(
        &self,
        current: &Settings,
        settings: &mut watch::Receiver<Option<Arc<Settings>>>,
    ) -> Result<(), watch::error::RecvError> {
        let (count, idle) = (kept(&current.config), current.config.spares.idle);
        let holds = holds(&current.config);
        let began = Instant::now();
        let (mut launching, mut ending) = (Retry::default(), Retry::default());
        let (mut is_reported, mut has_looked) = (false, false);
        self.lock().is_useless = false;
        loop {
            let idle_from = self.lock().last_start.unwrap_or(began).max(began) + idle;
            let is_wanted = count > 0 && Instant::now() < idle_from && !self.lock().is_useless;
            let launcher = if is_wanted { launcher(current).await } else { None };
            let file = match launcher.as_ref().map(|launcher| launcher.binary.clone()) {
                Some(path) => shim::look_at_processes(move || FileId::of(&path)).await.ok().flatten(),
                None => None,
            };
            {
                let mut pool = self.lock();
                let is_kept = |spare: &Spare, by: &Launcher| spare.is_by(by, holds) && spare.runs(file);
                pool.give_up(|spare| launcher.as_ref().is_some_and(|by| is_kept(spare, by)));
                if pool.give_up(|spare| !spare.process().is_some_and(|process| process.has_ended())) {
                    // What kills them may kill the next as well.
                    launching.note(true);
                }
            }
            if ending.is_due() {
                has_looked = has_looked || self.find_left(current).await;
                let is_left = self.end_left().await || !has_looked;
                ending.note(is_left);
            }
            if launching.is_due() {
                // Without a launcher, the shim may be installed later.
                let mut has_failed = is_wanted && launcher.is_none();
                while let Some(launcher) = &launcher
                    && self.lacks_one(count)
                    && !has_failed
                {
                    match self.launch(launcher, current).await {
                        Ok(()) => is_reported = false,
                        Err(error) => {
                            has_failed = true;
                            if !std::mem::replace(&mut is_reported, true) {
                                let error = error.chain();
                                tracing::warn!(%error, "can't launch a spare shim; each start launches its own");
                            }
                        }
                    }
                }
                launching.note(has_failed);
                if has_failed && ending.is_due() {
                    let is_left = self.end_left().await;
                    ending.note(is_left);
                }
            }
            let idles = is_wanted.then_some(idle_from);
            let wake = idles.into_iter().chain(launching.at).chain(ending.at).min();
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.one_dies() => {}
                () = sleep => {}
                changed = settings.changed() => return changed,
            }
        }
    }
}

/// When what has failed is tried again. The pauses grow with failures that follow each other soon.
#[derive(Default)]
struct Retry {
    pause: Duration,
    failed: Option<Instant>,
    at: Option<Instant>,
}

impl Retry {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| Instant::now() >= at)
    }

    fn note(&mut self, has_failed: bool) {
        if !has_failed {
            self.at = None;
            return;
        }
        let ([first, longest], now) = (PAUSES, Instant::now());
        let is_soon = self.failed.is_some_and(|failed| now < failed + longest * 2);
        self.pause = if is_soon { (self.pause * 2).min(longest) } else { first };
        self.failed = Some(now);
        self.at = Some(now + self.pause);
    }
}

/// Returns how many spares are kept by a configuration: none of shims that are not of the runc family, of which it is not
/// known what they do before they have a task; and gVisor's needs a task's options to be launched.
pub(crate) fn kept(config: &PluginConfig) -> usize {
    if family(config) == Family::Runc { config.spares.count } else { 0 }
}

fn family(config: &PluginConfig) -> Family {
    runtime::family_of(config, &config.containerd_runtime)
}

/// Returns the launcher of spares. `None` without a shim, with which the node is unhealthy, which says why.
async fn launcher(settings: &Settings) -> Option<Launcher> {
    let binary = settings.shim().await.ok()?;
    let mut launcher = ContainerHandles::of(settings, "", binary).launcher;
    launcher.family = family(&settings.config);
    Some(launcher)
}

/// Returns what spares hold: what tasks need of a shim that have no other options than the operator's.
fn holds(config: &PluginConfig) -> Holds {
    let reads_output = matches!(config.log_collection, LogCollection::Driver(_))
        || matches!(config.log_type, LogType::Receiver(_));
    match config.shim_sharing {
        ShimSharing::Allocation | ShimSharing::Node => Holds::Store,
        ShimSharing::Task if reads_output => Holds::Pipes,
        ShimSharing::Task => Holds::Nothing,
    }
}

impl Tasks {
    /// Begins to keep spare shims, until the plugin's end.
    pub(super) fn keep_spares(self: &Arc<Self>, settings: watch::Receiver<Option<Arc<Settings>>>) {
        let tasks = Arc::clone(self);
        let kept = async move {
            let closed = tasks.spares.closed.clone();
            let _ = closed.run_until_cancelled(Box::pin(tasks.keep_spares_of(settings))).await;
        };
        self.spares.keeper.spawn(kept);
    }

    async fn keep_spares_of(&self, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
        let spares = &self.spares;
        while let Some(current) = self.own_settings(&mut settings).await {
            let changed = spares.keep(&current, &mut settings).await;
            spares.lock().give_up(|_| false);
            spares.end_left().await;
            if changed.is_err() {
                return;
            }
        }
    }

    /// Ends the spare shims at the plugin's end, also one that is being launched.
    pub(crate) async fn end_spares(&self) {
        let spares = &self.spares;
        spares.closed.cancel();
        spares.keeper.close();
        spares.keeper.wait().await;
        {
            let mut pool = spares.lock();
            pool.give_up(|_| false);
            let cut_off = pool.launching.take().map(Leftover::Place);
            let taken: Vec<_> = pool.taken.drain(..).map(Leftover::Spare).collect();
            pool.left.extend(cut_off.into_iter().chain(taken));
        }
        spares.end_left().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_failures_that_follow_each_other_soon() {
        let mut retry = Retry::default();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(retry.is_due());
            // What is launched may die at once, again and again.
            retry.note(false);
            retry.note(true);
            assert!(!retry.is_due());
            pauses.push(retry.pause.as_secs());
            tokio::time::advance(retry.pause).await;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10]);
        tokio::time::advance(Duration::from_secs(60)).await;
        retry.note(true);
        assert_eq!(retry.pause, PAUSES[0]);
    }
}
