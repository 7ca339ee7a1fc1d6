//! The steps of a start in the model, as `Start::steps` and `run` take them.

use super::disk::{Disk, Spec};
use super::explorer::Kind::{Fault, Progress};
use super::host::{Container, Shim};
use super::phases::{Launch, Start, Teardown};
use super::steps::Steps;
use super::teardown::After;
use super::world::{By, Doing, Slot, World};
use crate::task::slot::AtDestroy;

impl Steps<'_> {
    pub(super) fn of_start(&mut self, of: usize, step: Start) {
        match step {
            Start::Leftovers(teardown) | Start::Undo(teardown) => {
                for fails in [false, true] {
                    if fails && !World::may_fail(teardown) {
                        continue;
                    }
                    let kind = if fails { Fault } else { Progress };
                    self.add(step.name(), of, kind, |world| {
                        world.take_down_for_start(of, step, teardown, fails);
                    });
                }
            }
            Start::Make { shim, parts } => self.of_make(of, shim, parts),
            _ => {
                if self.from.can_step(of, step) {
                    self.add(step.name(), of, Progress, |world| world.start(of, step));
                }
            }
        }
        let may_fail = matches!(
            step,
            Start::Bundle
                | Start::Name
                | Start::Make { shim: Launch::Done, .. }
                | Start::Spec
                | Start::Create
                | Start::Run { .. }
                | Start::Unmark { .. }
        );
        if may_fail {
            self.add("a step of the start fails", of, Fault, |world| world.fail(of));
        }
    }

    /// Adds the steps that make the shim and containerd's parts, side by side.
    fn of_make(&mut self, of: usize, shim: Launch, parts: u8) {
        let is_there = self.from.parts[of].shim;
        match shim {
            Launch::Exec => self.add("the shim is launched", of, Progress, |world| {
                world.parts[of].shim = Shim::Coming;
                world.go(of, Start::Make { shim: Launch::Write, parts });
            }),
            Launch::Write if is_there == Shim::Serving => {
                self.add("the shim is written down", of, Progress, |world| {
                    world.parts[of].on_disk(|disk| disk.shim = true);
                    world.go(of, Start::Make { shim: Launch::Done, parts });
                });
            }
            Launch::Write if is_there != Shim::Coming && parts == 2 => {
                self.add("the shim does not come", of, Progress, |world| world.fail(of));
            }
            Launch::Write => {}
            Launch::Done if parts == 2 => {
                let is_cancelled = self.from.is_cancelled(of);
                self.add("all parts are made", of, Progress, |world| {
                    if is_cancelled { world.fail(of) } else { world.go(of, Start::Spec) }
                });
            }
            Launch::Done => {}
        }
        if parts < 2 {
            self.add("a part is made in containerd", of, Progress, |world| {
                match parts {
                    0 => world.parts[of].lease = true,
                    _ => world.parts[of].record = true,
                }
                world.go(of, Start::Make { shim, parts: parts + 1 });
            });
        }
    }
}

impl World {
    fn is_cancelled(&self, of: usize) -> bool {
        matches!(self.slot(of), Some(Slot::Starting { is_cancelled: true, .. }))
    }

    /// Goes on with a start's next step.
    pub(super) fn go(&mut self, of: usize, step: Start) {
        let is_cancelled = self.is_cancelled(of);
        self.set(of, Slot::Starting { step, is_cancelled });
    }

    /// Fails a start: what was made is undone.
    pub(super) fn fail(&mut self, of: usize) {
        if self.parts[of].facts().exists {
            self.go(of, Start::Undo(Teardown::Begin));
        } else {
            self.start_failed(of);
        }
    }

    fn start_failed(&mut self, of: usize) {
        let has_caller = !self.is_cancelled(of) && self.agent.attempt == of;
        self.set(of, Slot::NOBODY);
        if has_caller && self.agent.doing == Doing::Starting {
            self.start_again();
        }
    }

    fn take_down_for_start(&mut self, of: usize, step: Start, teardown: Teardown, fails: bool) {
        match (self.tear_down(of, teardown, fails), step) {
            (After::Next(next), Start::Leftovers(_)) => self.go(of, Start::Leftovers(next)),
            (After::Next(next), _) => self.go(of, Start::Undo(next)),
            (After::Over, Start::Leftovers(_)) => self.go(of, Start::Earlier),
            (After::Failed, Start::Leftovers(_)) => self.fail(of),
            (After::Over | After::Failed, _) => self.start_failed(of),
        }
    }

    /// Returns whether a step is not still waiting for something.
    fn can_step(&self, of: usize, step: Start) -> bool {
        let parts = &self.parts[of];
        let is_answered = parts.container == Container::Known || parts.shim != Shim::Serving;
        match step {
            Start::EndEarlier => match self.slot(1 - of) {
                Some(Slot::Starting { is_cancelled: true, .. }) => self.is_cancelled(of),
                Some(slot) => self.is_cancelled(of) || slot.occupant().at_destroy(true) != AtDestroy::Wait,
                None => false,
            },
            Start::EarlierEnds => self.is_cancelled(of),
            Start::Created | Start::Started { .. } => is_answered,
            _ => true,
        }
    }

    fn start(&mut self, of: usize, step: Start) {
        let has_earlier = self.has_earlier(of);
        let waits = matches!(step, Start::Earlier | Start::EndEarlier | Start::EarlierEnds | Start::Bundle);
        if self.is_cancelled(of) && (waits || matches!(step, Start::Fill { .. })) {
            return self.fail(of);
        }
        let parts = &mut self.parts[of];
        let is_serving = parts.shim == Shim::Serving;
        let next = match step {
            Start::Recover => return self.recover(of),
            Start::Reach => return self.reach(of),
            Start::Earlier if has_earlier => Start::EndEarlier,
            Start::EndEarlier => return self.end_earlier(of),
            Start::Earlier => Start::Bundle,
            Start::Bundle => {
                let is_free = parts.shim == Shim::None && !parts.process.is_alive();
                parts.disk = Some(Disk::NEW);
                self.require(is_free, "an attempt is made while a process of its id is there");
                Start::Name
            }
            Start::Name => {
                parts.on_disk(|disk| disk.task = true);
                Start::Make { shim: Launch::Exec, parts: 0 }
            }
            Start::Spec => {
                parts.on_disk(|disk| disk.spec = Spec::Container);
                Start::Create
            }
            Start::Create | Start::Created | Start::Run { .. } | Start::Started { .. } if !is_serving => {
                return self.fail(of);
            }
            Start::Create => {
                parts.container = Container::Creating;
                Start::Created
            }
            Start::Created => Start::Run { holds: parts.process.is_alive() },
            Start::Run { holds } => {
                parts.container = Container::Starting;
                Start::Started { holds }
            }
            Start::Started { holds } => Start::Unmark { holds },
            Start::Unmark { holds } => {
                parts.on_disk(|disk| disk.is_marked = false);
                Start::Fill { holds }
            }
            Start::Fill { holds } => {
                self.set(of, Slot::running(holds, false));
                self.agent.doing = Doing::Waiting;
                return;
            }
            Start::EarlierEnds | Start::Leftovers(_) | Start::Make { .. } | Start::Undo(_) => return,
        };
        self.go(of, next);
    }

    /// Returns whether an earlier attempt has to be ended, by the registry or else by its bundle.
    fn has_earlier(&self, of: usize) -> bool {
        let other = 1 - of;
        let Some(slot) = self.slot(other) else { return false };
        let occupant = slot.occupant();
        let order = |attempt: usize| u64::try_from(attempt).unwrap();
        let own = Disk { task: true, ..Disk::NEW };
        let own = super::disk::Facts::about(Some(own)).attempt.as_ref();
        let found = self.parts[other].facts().attempt.as_ref();
        let is_of_same_task = own.zip(found).is_some_and(|(own, found)| found.is_of_same_task(own));
        occupant.is_ended_by(Some(order(other)), order(of)) || (!occupant.is_known() && is_of_same_task)
    }

    fn end_earlier(&mut self, of: usize) {
        let other = 1 - of;
        match self.slot(other).map(|slot| slot.occupant().at_destroy(true)) {
            Some(AtDestroy::TakeDown) => {
                self.remove(other, By::NextAttempt);
                self.go(of, Start::EarlierEnds);
            }
            Some(AtDestroy::CancelAndWait) => {
                if let Some(Slot::Starting { step, .. }) = self.slot(other) {
                    let step = *step;
                    self.set(other, Slot::Starting { step, is_cancelled: true });
                }
            }
            _ => {}
        }
    }

    /// Continues the start that waits for the teardown of an earlier attempt. A teardown that has failed lets the start
    /// through if no process of the attempt can run.
    pub(super) fn earlier_has_ended(&mut self, earlier: usize, is_over: bool) {
        let of = 1 - earlier;
        if !matches!(self.slot(of), Some(Slot::Starting { step: Start::EarlierEnds, .. })) {
            return;
        }
        if is_over || self.parts[earlier].facts().has_no_processes {
            self.go(of, Start::Bundle);
        } else {
            self.fail(of);
        }
    }
}
