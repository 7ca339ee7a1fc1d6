//! The claim to a state directory: an exclusive lock. It is taken with the agent's first fingerprint, recovery or
//! start, not by launches that only ask for a schema, and kept until the process ends. A plugin without the claim
//! touches nothing in the directory: the tasks there are another plugin's.
//!
//! A plugin whose agent is gone for good, as only a killed agent leaves one, makes way for a plugin that waits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

use super::agent::Agent;
use super::error::{Error, Result};
use super::{Settings, Tasks};
use crate::sys::error_chain::Chained;
use crate::sys::state_lock::{LockUntilExit, StateLock, StateLockError, Successor, has_successor};

/// Interval between two tries to lock another plugin's directory, and between two looks for another plugin that waits.
const ROUND: Duration = Duration::from_millis(500);
/// Number of rounds between two checks that the directory which this plugin has locked is still in place.
const ROUNDS_TO_LOOK: u64 = 4;
/// Time without an agent after which the plugin makes way for another one. An agent that finds it again calls at once.
const AWAY: Duration = Duration::from_secs(10);

/// The claims of this process, by state directory; more than one only where the option was changed.
pub(super) struct Claims {
    made: Mutex<HashMap<PathBuf, Claim>>,
    agent: Arc<Agent>,
    /// Notified to shut the plugin down in good order.
    stop: Arc<Notify>,
}

/// The claim to one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    standing: watch::Receiver<Standing>,
}

/// The state of a claim.
#[derive(Debug, Clone)]
enum Standing {
    /// The lock has not been tried yet.
    Unknown,
    Held,
    Refused(Error),
}

impl Claims {
    pub(super) fn new(agent: Arc<Agent>, stop: Arc<Notify>) -> Self {
        Self { made: Mutex::default(), agent, stop }
    }

    /// Returns the claim to a state directory, which is made at the first call.
    fn to(&self, state_dir: &Path) -> Claim {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claim) = made.get(state_dir) {
            return claim.clone();
        }
        let (tell, standing) = watch::channel(Standing::Unknown);
        let (agent, stop) = (Arc::clone(&self.agent), Arc::clone(&self.stop));
        tokio::spawn(maintain(state_dir.to_owned(), tell, agent, stop));
        let claim = Claim { standing };
        made.insert(state_dir.to_owned(), claim.clone());
        claim
    }
}

impl Claim {
    /// Waits for the claim, but no longer than `limit`.
    ///
    /// # Errors
    /// Says who has the directory, or why it can't be locked.
    pub(crate) async fn held_within(&self, limit: Duration) -> Result<()> {
        match tokio::time::timeout(limit, self.held()).await {
            Ok(()) => Ok(()),
            Err(_) => match &*self.standing.borrow() {
                Standing::Held => Ok(()),
                Standing::Refused(error) => Err(error.clone()),
                Standing::Unknown => Err(Error::transient(format!(
                    "lock the state directory: the file system gave no answer in {limit:?}"
                ))),
            },
        }
    }

    /// Waits for the claim.
    async fn held(&self) {
        let mut standing = self.standing.clone();
        if standing.wait_for(|standing| matches!(standing, Standing::Held)).await.is_err() {
            // The task that pursues the claim is gone, with the async runtime.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the state of the claim changes.
    pub(crate) async fn changes(mut self) {
        self.standing.mark_unchanged();
        if self.standing.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Tasks {
    /// Returns the claim to the state directory of a configuration, which is made at the first call.
    pub(crate) fn claim(&self, settings: &Settings) -> Claim {
        self.claims.to(&settings.config.state_dir)
    }

    /// Waits until the driver is enabled and its state directory is this plugin's, and returns that configuration.
    /// Returns `None` at the plugin's end.
    pub(super) async fn own_settings(
        &self,
        settings: &mut watch::Receiver<Option<Arc<Settings>>>,
    ) -> Option<Arc<Settings>> {
        loop {
            let current = settings.borrow_and_update().clone();
            let Some(current) = current.filter(|settings| settings.config.enabled) else {
                settings.changed().await.ok()?;
                continue;
            };
            let claim = self.claim(&current);
            tokio::select! {
                () = claim.held() => return Some(current),
                changed = settings.changed() => changed.ok()?,
            }
        }
    }
}

/// Locks the directory as soon as possible. Later shuts the plugin down to release it, where no agent is there and
/// another plugin waits, or where somebody has removed the directory and another plugin has the one that is there now.
async fn maintain(state_dir: PathBuf, tell: watch::Sender<Standing>, agent: Arc<Agent>, stop: Arc<Notify>) {
    let mut held = acquire(&state_dir, &tell, &agent).await.keep_until_exit();
    // Until now the agent could not have its tasks recovered.
    agent.recovers();
    tell.send_replace(Standing::Held);
    for round in 1_u64.. {
        tokio::time::sleep(ROUND).await;
        if round % ROUNDS_TO_LOOK == 0 {
            match keep_up(&state_dir, held).await {
                Ok(result) => held = result,
                Err(error) => {
                    tracing::error!(
                        state_dir = %state_dir.display(),
                        error = %error.chain(),
                        "the state directory was removed, and another plugin has locked the new one: leaving it to \
                         that plugin"
                    );
                    tell.send_replace(Standing::Refused(error));
                    break;
                }
            }
        }
        if agent.away().is_none_or(|away| away < AWAY) {
            continue;
        }
        let directory = state_dir.clone();
        if spawn_blocking(move || has_successor(&directory)).await.unwrap_or(false) {
            tracing::info!(
                state_dir = %state_dir.display(),
                "no agent has called for {AWAY:?}, and another plugin waits for the state directory: releasing it"
            );
            break;
        }
    }
    stop.notify_one();
}

/// Checks that the directory at this path is still this plugin's, and locks it anew if it was removed.
///
/// # Errors
/// When another plugin has locked it.
async fn keep_up(state_dir: &Path, mut held: LockUntilExit) -> Result<LockUntilExit> {
    let look = move || {
        let result = held.keep_up();
        (held, result)
    };
    let looked = spawn_blocking(look).await;
    let (held, result) = looked.map_err(|error| Error::failed(error).context("check the state directory"))?;
    match result {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            state_dir = %state_dir.display(),
            "the state directory, or its lock file, was removed: it is locked again"
        ),
        Err(error @ StateLockError::Held { .. }) => return Err(error.into()),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the state directory was removed, and can't be locked again yet");
        }
    }
    Ok(held)
}

async fn acquire(state_dir: &Path, tell: &watch::Sender<Standing>, agent: &Agent) -> StateLock {
    let started = SystemTime::now();
    let mut successor = None;
    let mut reported = String::new();
    loop {
        // No agent needs this plugin either: a plugin that has an agent must not wait for this one.
        if agent.away().is_some_and(|away| away >= AWAY) {
            successor = None;
            tokio::time::sleep(ROUND).await;
            continue;
        }
        let directory = state_dir.to_owned();
        let tried = spawn_blocking(move || try_once(&directory, started, successor)).await;
        let error;
        (error, successor) = match tried {
            Ok(Ok(lock)) => {
                if !reported.is_empty() {
                    tracing::info!(state_dir = %state_dir.display(), "the state directory was released, and is locked by this plugin now");
                }
                return lock;
            }
            Ok(Err((error, successor))) => (Error::from(error), successor),
            Err(error) => (Error::failed(error).context("lock the state directory"), None),
        };
        let text = error.chain().to_string();
        if text != reported {
            tracing::warn!("{text}");
            reported = text;
            tell.send_replace(Standing::Refused(error));
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Tries once to lock the directory. While another plugin has it, this one announces itself where that plugin can see
/// it.
fn try_once(
    state_dir: &Path,
    started: SystemTime,
    waiting: Option<Successor>,
) -> std::result::Result<StateLock, (StateLockError, Option<Successor>)> {
    StateLock::acquire(state_dir, started).map_err(|error| {
        let waits = matches!(error, StateLockError::Held { .. });
        let waiting = waiting.filter(|waiting| waits && waiting.is_known());
        let waiting = if waits { waiting.or_else(|| Successor::announce(state_dir)) } else { None };
        (error, waiting)
    })
}
