//! The steps of a teardown in the model, as `take_down_parts`, `remove_kept`, `end_processes`, `end_by_shim` and
//! `end_without_shim` take them. The network, which is taken down beside what containerd keeps, is not in the model.

use super::disk::Spec;
use super::host::{Container, Process, Shim};
use super::phases::Teardown;
use super::world::{Slot, World};
use crate::shim::State;
use crate::task::end_by_shim::may_run;
use crate::task::ending::{Outcome, Remaining, outcome};

/// The continuation after a step of a teardown.
pub(super) enum After {
    Next(Teardown),
    Over,
    /// The teardown breaks off with an error.
    Failed,
}

impl World {
    /// Takes a step of a teardown. `fails` is whether what the step asks for fails, where it can.
    pub(super) fn tear_down(&mut self, of: usize, step: Teardown, fails: bool) -> After {
        let parts = &mut self.parts[of];
        After::Next(match step {
            Teardown::Begin if !parts.facts().exists => Teardown::KillShim { marked: true, bundle: false },
            Teardown::Begin => {
                parts.on_disk(|disk| disk.is_marked |= !fails);
                Teardown::Processes { marked: !fails }
            }
            Teardown::Processes { marked } => self.by_shim(of, marked),
            Teardown::Kill { marked } => {
                let is_alone = self.kill_group(of);
                self.kill_by_shim(of, is_alone);
                Teardown::Delete { marked }
            }
            // The shim has died, or hangs, since it was asked.
            Teardown::Delete { marked } | Teardown::Shutdown { marked, .. }
                if parts.shim != Shim::Serving =>
            {
                Teardown::KillShim { marked, bundle: true }
            }
            Teardown::Delete { marked } => {
                parts.container = Container::None;
                parts.forget_process();
                Teardown::Shutdown { marked, removed: true }
            }
            Teardown::Shutdown { marked, removed } => {
                parts.end_shim();
                if removed {
                    Teardown::RestOfGroup { marked }
                } else {
                    Teardown::KillShim { marked, bundle: true }
                }
            }
            Teardown::RestOfGroup { marked } => {
                let group = self.group(of);
                match self.rest_of_group(&group) {
                    Remaining::Runs(_) if group.own().is_some() => self.kill_all_in_cgroup(of),
                    Remaining::Runs(_) | Remaining::Unknown(_) => return After::Failed,
                    Remaining::Nothing | Remaining::Another(_) => {}
                }
                Teardown::Forget { marked, files: 0 }
            }
            Teardown::KillShim { marked, bundle } => {
                parts.end_shim();
                Teardown::WithoutShim { marked, bundle }
            }
            Teardown::WithoutShim { marked, bundle } => {
                if !self.end_without_shim(of, !fails) {
                    return After::Failed;
                }
                if bundle { Teardown::Forget { marked, files: 0 } } else { Teardown::Record }
            }
            _ => return self.take_away(of, step, fails),
        })
    }

    /// Takes a step of a teardown after the end of the processes.
    fn take_away(&mut self, of: usize, step: Teardown, fails: bool) -> After {
        let parts = &mut self.parts[of];
        if fails {
            return After::Failed;
        }
        After::Next(match step {
            Teardown::Forget { marked, files } => {
                parts.on_disk(|disk| match files {
                    0 => disk.shim = false,
                    1 => disk.spec = Spec::Removed,
                    _ => disk.task = false,
                });
                match files {
                    0 | 1 => Teardown::Forget { marked, files: files + 1 },
                    _ if marked => Teardown::Record,
                    _ => Teardown::MarkAgain,
                }
            }
            Teardown::MarkAgain => {
                parts.on_disk(|disk| disk.is_marked = true);
                Teardown::Record
            }
            Teardown::Record => {
                parts.record = false;
                Teardown::Lease
            }
            Teardown::Lease => {
                parts.lease = false;
                Teardown::Rootfs
            }
            Teardown::Rootfs => {
                parts.on_disk(|disk| disk.is_whole = false);
                Teardown::Directory
            }
            Teardown::Directory => {
                parts.disk = None;
                parts.forget_process();
                return After::Over;
            }
            _ => return After::Failed,
        })
    }

    /// Returns whether a step may fail while the rest of the machine works.
    pub(super) fn may_fail(step: Teardown) -> bool {
        matches!(
            step,
            Teardown::Begin
                | Teardown::WithoutShim { .. }
                | Teardown::Forget { .. }
                | Teardown::MarkAgain
                | Teardown::Record
                | Teardown::Lease
        )
    }

    /// Asks the shim for the container's state, if there is a shim that answers.
    fn by_shim(&mut self, of: usize, marked: bool) -> Teardown {
        let parts = &mut self.parts[of];
        if !parts.facts().has_shim || parts.shim != Shim::Serving {
            return Teardown::KillShim { marked, bundle: true };
        }
        let state = match (parts.container, parts.process) {
            (Container::None | Container::Creating, _) => None,
            (_, Process::Created) => Some(State::Created),
            (_, Process::Running) => Some(State::Running),
            (_, Process::Ended(_) | Process::None) => Some(State::Stopped),
        };
        match state {
            Some(state) if may_run(state) => Teardown::Kill { marked },
            Some(_) => Teardown::Delete { marked },
            None => {
                // What the shim has started is killed, so that no create goes on.
                parts.container = Container::None;
                Teardown::Shutdown { marked, removed: false }
            }
        }
    }

    /// Ends an attempt whose shim is gone, and returns whether it is over. Where `kills` is false, nothing can be killed,
    /// and the clean-up by the shim's binary reports success all the same, as some do.
    pub(super) fn end_without_shim(&mut self, of: usize, kills: bool) -> bool {
        self.parts[of].end_shim();
        let group = self.group(of);
        if !self.parts[of].facts().may_have_container {
            return true;
        }
        if kills {
            self.kill_group(of);
            self.kill(of, of);
        }
        let own = self.parts[of].process;
        let rest = if own.is_alive() {
            Remaining::Runs("its first process".to_owned())
        } else {
            self.rest_of_group(&group)
        };
        match outcome(true, rest) {
            Outcome::Over | Outcome::OverButForItsState => {
                self.parts[of].forget_process();
                true
            }
            Outcome::Left(_) => false,
        }
    }

    /// Returns whether a task's supervisor outlives this slot when the task is taken down: it has not seen the exit, and
    /// ends what it finds without a shim.
    pub(super) fn supervisor_outlives(slot: &Slot) -> bool {
        match slot {
            Slot::Active { is_reported, .. } => !is_reported,
            Slot::Nobody { supervisor } | Slot::Removing { supervisor, .. } => *supervisor,
            Slot::Starting { .. } => false,
        }
    }
}
