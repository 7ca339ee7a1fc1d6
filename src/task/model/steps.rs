//! All steps that may be taken in the model, and those of the host, of supervisors and of the background work.

use std::time::{Duration, SystemTime};

use super::disk::GRACE;
use super::explorer::Kind::{self, Chance, Fault, Progress};
use super::explorer::{Model, Step};
use super::host::{Container, End, Parts, Process, Shim};
use super::teardown::After;
use super::world::{By, Doing, Slot, World};
use crate::shim::ProcessExit;
use crate::task::Exit;
use crate::task::gc::has_settled;
use crate::task::supervisor::{by_kernel, by_shim, of_lost_shim};

/// The steps from one state, as they are found.
pub(super) struct Steps<'a> {
    pub(super) from: &'a World,
    found: Vec<(Step, World)>,
}

impl Model for World {
    fn steps(&self) -> Vec<(Step, Self)> {
        let mut steps = Steps { from: self, found: Vec::new() };
        steps.of_agent();
        steps.of_deaths();
        for of in 0..2 {
            steps.of_host(of);
            let Some(slot) = self.slot(of) else { continue };
            match slot {
                Slot::Starting { step, .. } => steps.of_start(of, *step),
                Slot::Active { is_reported: false, holds, had_exited, .. } => {
                    steps.of_supervisor(of, *holds, *had_exited);
                }
                Slot::Active { keeps_ending: true, .. } => {
                    steps.add("it is ended again", of, Progress, |world| {
                        let is_over = world.end_without_shim(of, true);
                        world.set(of, Slot::exited(!is_over));
                    });
                }
                Slot::Active { .. } | Slot::Nobody { .. } => {}
                Slot::Removing { .. } => steps.of_teardown(of),
            }
            steps.of_late_supervisor(of);
            steps.of_background(of);
        }
        steps.found
    }

    fn broken(&self) -> Option<&'static str> {
        self.broken
    }
}

impl Steps<'_> {
    pub(super) fn add(
        &mut self,
        name: &'static str,
        attempt: usize,
        kind: Kind,
        change: impl FnOnce(&mut World),
    ) {
        let mut world = self.from.clone();
        if kind == Fault {
            let Some(left) = world.faults.checked_sub(1) else { return };
            world.faults = left;
        }
        change(&mut world);
        self.found.push((Step { name, attempt, kind }, world));
    }

    /// Adds the steps of an attempt's shim, runtime and process by themselves.
    fn of_host(&mut self, of: usize) {
        let Parts { shim, container, process, .. } = self.from.parts[of];
        if shim == Shim::Coming {
            self.add("the shim serves", of, Progress, |world| world.parts[of].shim = Shim::Serving);
        }
        match container {
            Container::Creating => {
                self.add("the runtime has created", of, Progress, |world| world.is_created(of));
            }
            Container::Starting => {
                self.add("the runtime has started", of, Progress, |world| world.is_started(of));
            }
            Container::None | Container::Known => {}
        }
        if process == Process::Running {
            let by_itself = [End::Success, End::Failure];
            // A process notices the death of its shim when it writes.
            let ends = if shim == Shim::None { &[End::Pipe][..] } else { &by_itself };
            for end in ends {
                self.add("the process ends", of, Chance, |world| {
                    world.parts[of].process = Process::Ended(*end);
                });
            }
        }
        if matches!(shim, Shim::Serving | Shim::Hanging) {
            self.add("the shim dies", of, Fault, |world| world.parts[of].end_shim());
        }
        if shim == Shim::Serving {
            self.add("the shim hangs", of, Fault, |world| world.parts[of].shim = Shim::Hanging);
        }
    }

    fn of_supervisor(&mut self, of: usize, holds: bool, had_exited: bool) {
        let Parts { shim, container, process, .. } = self.from.parts[of];
        let end = if let Process::Ended(end) = process { Some(end) } else { None };
        let word = end.filter(|_| holds && self.from.kernel_tells).map(End::status);
        let at = SystemTime::UNIX_EPOCH;
        match (shim, end) {
            (Shim::None, _) => {
                for kills in [true, false] {
                    let kind = if kills { Progress } else { Fault };
                    self.add("the supervisor misses the shim", of, kind, |world| {
                        if holds && kills {
                            world.kill(of, of);
                        }
                        let left = (!world.end_without_shim(of, kills)).then(|| "processes".to_owned());
                        let keeps_ending = left.is_some();
                        world.report(
                            of,
                            end,
                            &of_lost_shim(word, left, &"the connection broke", at),
                            keeps_ending,
                        );
                    });
                }
            }
            (Shim::Serving, Some(end)) if container == Container::Known => {
                self.add("the shim reports the exit", of, Progress, |world| {
                    let ended = ProcessExit { status: end.code(), at };
                    world.report(of, Some(end), &by_shim(ended, word), false);
                });
            }
            (Shim::Hanging, Some(_)) if holds || had_exited => {
                self.add("the kernel reports the exit", of, Progress, |world| {
                    world.report(of, end, &by_kernel(word, at), false);
                });
            }
            _ => {}
        }
    }

    /// Adds the steps of the supervisor of a task that is taken down, or was, before its exit was seen.
    fn of_late_supervisor(&mut self, of: usize) {
        let Some(slot) = self.from.slot(of) else { return };
        if matches!(slot, Slot::Active { .. }) || !World::supervisor_outlives(slot) {
            return;
        }
        let Parts { shim, process, .. } = self.from.parts[of];
        if shim == Shim::None {
            self.add("a late supervisor misses the shim", of, Progress, |world| {
                world.end_without_shim(of, true);
                world.end_supervisor(of);
            });
        } else if !process.is_alive() {
            self.add("a late supervisor sees the exit", of, Progress, |world| world.end_supervisor(of));
        }
    }

    /// Adds the finds of the sweeper, and of the pass that takes down orphans.
    fn of_background(&mut self, of: usize) {
        let (facts, agent) = (self.from.parts[of].facts(), &self.from.agent);
        let is_free = self.from.slot(of).is_some_and(|slot| slot.occupant().is_free());
        if !is_free {
            return;
        }
        if facts.is_left_over && (facts.exists || self.from.parts[of].lease) {
            self.add("the sweeper finds it", of, Progress, |world| world.remove(of, By::Background));
        }
        let settled = match agent.doing {
            Doing::Away => None,
            Doing::Recovering => Some(Duration::ZERO),
            _ => Some(GRACE),
        };
        if facts.is_orphan && has_settled(settled, GRACE) {
            self.add("it is found as an orphan", of, Progress, |world| world.remove(of, By::Background));
        }
    }

    fn of_teardown(&mut self, of: usize) {
        let Some(Slot::Removing { step, by, supervisor }) = self.from.slot(of).cloned() else { return };
        for fails in [false, true] {
            if fails && !World::may_fail(step) {
                continue;
            }
            let kind = if fails { Fault } else { Progress };
            self.add(step.name(), of, kind, |world| match world.tear_down(of, step, fails) {
                After::Next(step) => world.set(of, Slot::Removing { step, by, supervisor }),
                After::Over => world.has_torn_down(of, by, supervisor, true),
                After::Failed => world.has_torn_down(of, by, supervisor, false),
            });
        }
    }
}

impl World {
    fn is_created(&mut self, of: usize) {
        let has_process = self.parts[of].process.is_alive();
        self.require(!has_process, "a container is created twice");
        self.parts[of].container = Container::Known;
        self.parts[of].process = Process::Created;
    }

    fn is_started(&mut self, of: usize) {
        self.parts[of].container = Container::Known;
        if self.parts[of].process != Process::Created {
            return;
        }
        self.parts[of].process = Process::Running;
        let other = &self.parts[1 - of];
        let may_run =
            other.process.is_alive() || matches!(other.container, Container::Creating | Container::Starting);
        self.require(!may_run, "two attempts of one task run at once");
    }

    /// Has the shim kill the first process, or all that the runtime finds in the cgroup.
    pub(super) fn kill_by_shim(&mut self, of: usize, all: bool) {
        if self.parts[of].shim != Shim::Serving {
            return;
        }
        self.kill(of, of);
        if all {
            self.kill_all_in_cgroup(of);
        }
    }

    /// Reports an exit as the supervisor does; `end` is that of the process, if it had ended before.
    fn report(&mut self, of: usize, end: Option<End>, exit: &Exit, keeps_ending: bool) {
        let true_code = end.and_then(|end| i32::try_from(end.code()).ok());
        self.require(exit.code != 0 || end == Some(End::Success), "an exit code 0 is made up");
        self.require(exit.error.is_some() || Some(exit.code) == true_code, "a false exit code is reported");
        let is_over = keeps_ending || !self.parts[of].process.is_alive();
        self.require(is_over, "an exit is reported while the process runs");
        self.set(of, Slot::exited(keeps_ending));
    }

    fn end_supervisor(&mut self, of: usize) {
        match self.slot(of).cloned() {
            Some(Slot::Removing { step, by, .. }) => {
                self.set(of, Slot::Removing { step, by, supervisor: false });
            }
            _ => self.set(of, Slot::NOBODY),
        }
    }

    fn has_torn_down(&mut self, of: usize, by: By, supervisor: bool, is_over: bool) {
        self.set(of, Slot::Nobody { supervisor });
        match by {
            By::Agent if self.agent.doing == Doing::Destroying && self.agent.attempt == of => {
                self.next_attempt();
            }
            By::NextAttempt => self.earlier_has_ended(of, is_over),
            By::Agent | By::Background => {}
        }
    }
}
