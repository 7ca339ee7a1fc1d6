//! The end of all processes of an attempt: by its cgroup where no other attempt has that, by its shim, and by the
//! shim's own clean-up where the shim is gone. No other module kills by a cgroup.
//!
//! The outcome is judged by what still runs. A clean-up that fails where nothing is left to clean up has succeeded; one
//! that succeeds where something is left has not.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::attempts::Group;
use super::container::ContainerHandles;
use super::error::{Error, Result};
use super::exec::noted_process;
use super::restore::restored_init;
use super::runtime::gvisor_state;
use crate::cgroup;
use crate::shim::Bundle;
use crate::sys::blocking;
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::ProcessId;

/// Interval between tries to end what could not be ended.
const TRIED_AGAIN: Duration = Duration::from_secs(10);
/// Maximum time that a killed process may take to be gone.
const KILLED: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl ContainerHandles {
    async fn group_off_thread(&self) -> Group {
        let container = self.clone();
        tokio::task::spawn_blocking(move || container.group()).await.unwrap_or(Group::Unknown)
    }

    /// Kills all processes in the attempt's cgroup, and returns whether the cgroup is this attempt's alone. Leaves it
    /// alone where another attempt has it, too.
    ///
    /// # Errors
    /// When some processes don't end, or the bundle can't be read.
    pub(super) async fn kill_group(&self) -> io::Result<bool> {
        let group = self.group_off_thread().await;
        if let Group::Unreadable(why) = group {
            return Err(io::Error::other(format!("its cgroup can't be determined: {why}")));
        }
        let Some(path) = group.own() else { return Ok(false) };
        cgroup::kill_all(path, self.owner_of(path)).await
    }

    /// Returns a check of whether a cgroup still is this attempt's alone: its bundle may have gone, and another attempt
    /// come.
    fn owner_of(&self, path: &Path) -> impl Fn() -> bool + Clone + Send + 'static {
        let (container, own) = (self.clone(), Group::Own(path.to_owned()));
        move || container.group() == own
    }

    /// Ends the processes that a shim has left in the attempt's cgroup although it has removed the container.
    ///
    /// # Errors
    /// When some processes don't end, or it can't be told which are there.
    pub(super) async fn end_rest_of_group(&self) -> Result<()> {
        let group = self.group_off_thread().await;
        match self.rest_of_group(&group).await {
            Remaining::Runs(left) if group.own().is_some() => {
                tracing::warn!(
                    container = self.id,
                    left,
                    "its shim has not killed all of its processes; killing the rest"
                );
                self.remove_group(group).await
            }
            Remaining::Runs(left) | Remaining::Unknown(left) => Err(Error::failed(left)),
            Remaining::Nothing | Remaining::Another(_) => Ok(()),
        }
    }

    /// Ends all processes of an attempt whose shim does not answer, and removes its container. Does nothing where there
    /// is no container.
    ///
    /// # Errors
    /// Says what is left, and why.
    pub(super) async fn end_without_shim(&self) -> Result<()> {
        let _guard = self.ending.lock().await;
        // There may be a shim that nobody got to write down, or one that no longer answers.
        self.launcher.kill_stale_shims(&self.bundle, &self.id).await;
        self.launcher.remove_socket(&self.id).await;
        let group = self.group_off_thread().await;
        if !self.bundle.off_thread(Bundle::may_have_container).await {
            return self.forget_what_no_bundle_has().await;
        }
        if let Some(path) = group.own()
            && let Err(error) = cgroup::kill_all(path, self.owner_of(path)).await
        {
            tracing::warn!(container = self.id, %error, "not all of its processes have exited yet");
        }
        let deleted = self.launcher.delete(&self.bundle, &self.id).await;
        // A first process that the task has moved elsewhere is in no cgroup of its attempt's.
        self.kill_noted_init().await;
        match outcome(deleted.is_ok(), self.rest(&group).await) {
            Outcome::Over => {}
            Outcome::OverButForItsState => {
                if let Err(error) = deleted {
                    tracing::warn!(container = self.id, error = %error.chain(), "the shim's clean-up failed; no process of the container is running");
                }
                self.forget_runtime_state().await?;
            }
            Outcome::Left(left) => {
                return Err(Error::failed(match deleted {
                    Ok(()) => left,
                    Err(error) => format!("{}; {left}", error.chain()),
                }));
            }
        }
        self.remove_group(group).await
    }

    /// Removes the runtime's state of a container that the bundle says nothing of: somebody may have removed that file,
    /// while the runtime still knows the container. Waits for the end of the shim, which has just been killed together
    /// with what it had started.
    ///
    /// # Errors
    /// When the shim still runs, or whether it does can't be told.
    async fn forget_what_no_bundle_has(&self) -> Result<()> {
        let until = Instant::now() + KILLED;
        loop {
            let what = match self.launcher.has_stale_shim(&self.bundle, &self.id).await {
                Ok(false) => return self.forget_runtime_state().await,
                Ok(true) => "its shim is still running".to_owned(),
                Err(error) => format!("can't tell whether its shim is running: {}", error.chain()),
            };
            if Instant::now() > until {
                return Err(Error::failed(what));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Retries [`Self::end_without_shim`] until it succeeds, or somebody takes the bundle down.
    pub(super) async fn keep_ending(self) {
        loop {
            tokio::time::sleep(TRIED_AGAIN).await;
            let is_gone = !self.bundle.off_thread(Bundle::exists).await;
            if is_gone || self.is_taken_down() || self.end_without_shim().await.is_ok() {
                return;
            }
        }
    }

    /// Returns what still runs of a container.
    async fn rest(&self, group: &Group) -> Remaining {
        match self.launcher.has_stale_shim(&self.bundle, &self.id).await {
            Ok(false) => {}
            Ok(true) => return Remaining::Runs("its shim is still running".to_owned()),
            Err(error) => {
                return Remaining::Unknown(format!(
                    "can't tell whether its shim is running: {}",
                    error.chain()
                ));
            }
        }
        if let Some(init) = self.noted_init().await {
            return Remaining::Runs(format!("its first process, {}, is still running", init.pid));
        }
        self.rest_of_group(group).await
    }

    async fn rest_of_group(&self, group: &Group) -> Remaining {
        match group {
            Group::Own(path) | Group::Shared(path) | Group::Unread(path) => {
                rest_of(group, path, listed(path).await)
            }
            // The shim writes its note as soon as the container has a process.
            Group::Unknown => {
                let note = self.init_note();
                if blocking::run(move || note.exists()).await {
                    Remaining::Another("its cgroup is not known".to_owned())
                } else {
                    Remaining::Nothing
                }
            }
            Group::Unreadable(why) => Remaining::Unknown(format!("its cgroup can't be determined: {why}")),
        }
    }

    /// Returns the path of the file in which shims note the pid of a container's first process.
    fn init_note(&self) -> PathBuf {
        self.bundle.directory().join("init.pid")
    }

    /// Returns the container's first process while it is alive, by a restored bundle or by the shim's note.
    async fn noted_init(&self) -> Option<ProcessId> {
        let (bundle, note) = (self.bundle.clone(), self.init_note());
        let look = move || {
            let lives = |process: &ProcessId| process.is_alive();
            restored_init(&bundle).filter(lives).or_else(|| noted_process(&note).filter(lives))
        };
        tokio::task::spawn_blocking(look).await.ok().flatten()
    }

    async fn kill_noted_init(&self) {
        let Some(init) = self.noted_init().await else { return };
        let killed = tokio::task::spawn_blocking(move || {
            let Ok(Some(process)) = ProcessHandle::open(init) else { return };
            process.kill();
            process.ends_before(Instant::now() + KILLED);
        });
        if let Err(error) = killed.await {
            tracing::warn!(container = self.id, %error, "the kill of its first process was interrupted");
        }
    }

    /// Removes the runtime's state of a container that is gone: the runtime would refuse another container with this
    /// id.
    async fn forget_runtime_state(&self) -> Result<()> {
        let state = self.runtime_state();
        let shown = state.display().to_string();
        let files = gvisor_state(self.state_dir(), &self.launcher.namespace, &self.id);
        let remove = move || {
            files.into_iter().try_for_each(|file| match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })?;
            std::fs::remove_dir_all(state)
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        match removed.map_err(io::Error::other).flatten() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::failed(error).context(format_args!("remove the runtime's state {shown}")))
            }
            _ => Ok(()),
        }
    }

    /// Removes the attempt's cgroup: a runtime that was killed in the middle of a create has no record of what it had
    /// made.
    async fn remove_group(&self, group: Group) -> Result<()> {
        let Some(path) = group.own() else { return Ok(()) };
        cgroup::remove(path, self.owner_of(path)).await.map_err(|error| {
            let doing = format!("remove the cgroup {} of container {}", path.display(), self.id);
            Error::failed(error).context(doing)
        })
    }
}

/// The processes that are left of a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remaining {
    Nothing,
    /// Processes that run, listed here.
    Runs(String),
    /// No answer, since something could not be read, as described here.
    Unknown(String),
    /// Processes that may be another attempt's, for this reason. If they are this attempt's, they end together with the
    /// other one's: were each attempt to wait for the other, neither would ever be over.
    Another(String),
}

/// The outcome of ending a container without its shim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Over,
    /// Nothing of it runs. The runtime's state of it may be left: the clean-up finds that only by files of the shim's,
    /// which a restored bundle lacks.
    OverButForItsState,
    /// It is not over, for this reason.
    Left(String),
}

/// Judges the end of a container without its shim by what still runs. A clean-up by the shim's binary that has
/// succeeded counts only where processes may be another attempt's: some shims report success though they could not
/// clean up.
pub(super) fn outcome(is_deleted: bool, rest: Remaining) -> Outcome {
    match (is_deleted, rest) {
        (_, Remaining::Nothing) => Outcome::OverButForItsState,
        (true, Remaining::Another(_)) => Outcome::Over,
        (false, Remaining::Another(left)) | (_, Remaining::Runs(left) | Remaining::Unknown(left)) => {
            Outcome::Left(left)
        }
    }
}

/// Judges what is left of a container by the processes that are listed in a cgroup.
pub(super) fn rest_of(group: &Group, path: &Path, listed: io::Result<Vec<i32>>) -> Remaining {
    let path = path.display();
    match (listed, group) {
        (Ok(pids), _) if pids.is_empty() => Remaining::Nothing,
        (Err(error), _) => {
            Remaining::Unknown(format!("can't list the processes in its cgroup {path}: {error}"))
        }
        (Ok(pids), Group::Own(_)) => Remaining::Runs(format!("processes {pids:?} are in its cgroup {path}")),
        (Ok(pids), Group::Unread(_)) => Remaining::Unknown(format!(
            "processes {pids:?} are in its cgroup {path}, which another attempt of the task may share"
        )),
        (Ok(_), Group::Shared(_) | Group::Unknown | Group::Unreadable(_)) => {
            Remaining::Another(format!("another attempt of the task shares its cgroup {path}"))
        }
    }
}

async fn listed(path: &Path) -> io::Result<Vec<i32>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || cgroup::listed(&path)).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_counts_and_not_the_clean_ups_own_word() {
        let left = || "processes [7]".to_owned();
        for is_deleted in [false, true] {
            assert_eq!(outcome(is_deleted, Remaining::Nothing), Outcome::OverButForItsState);
            assert_eq!(outcome(is_deleted, Remaining::Runs(left())), Outcome::Left(left()));
            assert_eq!(outcome(is_deleted, Remaining::Unknown(left())), Outcome::Left(left()));
        }
        assert_eq!(outcome(true, Remaining::Another(left())), Outcome::Over);
        assert_eq!(outcome(false, Remaining::Another(left())), Outcome::Left(left()));
    }

    #[test]
    fn a_cgroup_is_empty_only_if_it_can_be_listed() {
        let path = PathBuf::from("/nomad/a1.web");
        let rest = |group: &Group, listed: io::Result<Vec<i32>>| rest_of(group, &path, listed);
        let unread = || Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        for group in [Group::Own(path.clone()), Group::Shared(path.clone()), Group::Unread(path.clone())] {
            assert_eq!(rest(&group, Ok(Vec::new())), Remaining::Nothing);
            assert!(matches!(rest(&group, unread()), Remaining::Unknown(_)), "{group:?}");
        }
        assert!(matches!(rest(&Group::Own(path.clone()), Ok(vec![7])), Remaining::Runs(_)));
        assert!(matches!(rest(&Group::Shared(path.clone()), Ok(vec![7])), Remaining::Another(_)));
        assert!(matches!(rest(&Group::Unread(path.clone()), Ok(vec![7])), Remaining::Unknown(_)));
    }
}
