//! The steps of the agent in the model, as Nomad's task runner takes them (`client/allocrunner/taskrunner/`): a handle is
//! written down after its start, a task that can't be recovered is destroyed, a start is repeated with the same id if
//! the plugin has died, and a destroy that fails is not repeated.

use super::explorer::Kind::{Chance, Fault, Progress};
use super::phases::{Start, Teardown};
use super::steps::Steps;
use super::world::{Agent, By, Doing, Slot, World};
use crate::task::slot::{AtDestroy, AtStart, AtStop, Occupant};

impl Steps<'_> {
    pub(super) fn of_agent(&mut self) {
        let Agent { doing, attempt, is_saved, is_over } = self.from.agent;
        match (&self.from.plugin, doing) {
            (_, Doing::Away) => self.add("the agent comes back", attempt, Progress, World::agent_returns),
            (None, _) => self.add("the agent launches the plugin", attempt, Progress, |world| {
                world.plugin = Some([Slot::NOBODY, Slot::NOBODY]);
            }),
            (Some(slots), Doing::Waiting) => {
                if !is_saved {
                    self.add("the handle is written down", attempt, Progress, |world| {
                        world.agent.is_saved = true;
                    });
                }
                if slots[attempt].occupant() == Occupant::Exited {
                    self.add("the agent hears of the exit", attempt, Progress, World::begin_destroy);
                }
                let kind = if is_over { Progress } else { Chance };
                self.add("the task is stopped", attempt, kind, |world| {
                    (world.agent.doing, world.agent.is_over) = (Doing::Stopping, true);
                });
            }
            (Some(slots), Doing::Done) => {
                // The one way to such a task's end: see the record.
                if self.from.has_lost_handle && slots.iter().any(|slot| slot.occupant().is_known()) {
                    self.add("the plugin is launched anew", attempt, Progress, World::plugin_dies);
                }
            }
            (Some(slots), _) => self.of_call(doing, attempt, slots[attempt].occupant()),
        }
    }

    fn of_call(&mut self, doing: Doing, attempt: usize, occupant: Occupant) {
        match doing {
            Doing::Idle => {
                self.add("the job is stopped", attempt, Chance, |world| world.agent.doing = Doing::Done);
                match occupant.at_start() {
                    AtStart::Begin => {
                        self.add("StartTask", attempt, Progress, |world| world.begin_start(attempt));
                    }
                    AtStart::Wait => {}
                    AtStart::Refuse => {
                        self.add("StartTask is refused", attempt, Progress, World::start_again);
                    }
                }
            }
            Doing::Stopping => match occupant.at_stop() {
                AtStop::HasStopped => self.add("StopTask: it has", attempt, Progress, World::begin_destroy),
                AtStop::CancelAndWait => self.cancel("StopTask cancels the start", attempt),
                AtStop::Ask if occupant == Occupant::Exited => {
                    self.add("StopTask: it has exited", attempt, Progress, World::begin_destroy);
                }
                AtStop::Ask => self.add("StopTask kills", attempt, Progress, |world| {
                    let is_alone = world.kill_group(attempt);
                    world.kill_by_shim(attempt, is_alone);
                }),
            },
            Doing::Recovering if matches!(occupant, Occupant::Running | Occupant::Exited) => {
                self.add("RecoverTask: it is here", attempt, Progress, World::has_recovered);
            }
            Doing::Recovering => match occupant.at_start() {
                AtStart::Begin => {
                    self.add("RecoverTask", attempt, Progress, |world| {
                        world.reserve(attempt, Start::Recover);
                    });
                }
                AtStart::Wait | AtStart::Refuse => {}
            },
            Doing::Destroying => match occupant.at_destroy(true) {
                AtDestroy::TakeDown => self.add("DestroyTask", attempt, Progress, |world| {
                    world.remove(attempt, By::Agent);
                }),
                AtDestroy::CancelAndWait => self.cancel("DestroyTask cancels the start", attempt),
                AtDestroy::Wait | AtDestroy::Refuse => {}
            },
            Doing::Starting | Doing::Waiting | Doing::Done | Doing::Away => {}
        }
    }

    fn cancel(&mut self, name: &'static str, attempt: usize) {
        if let Some(Slot::Starting { step, is_cancelled: false }) = self.from.slot(attempt) {
            self.add(name, attempt, Progress, |world| {
                world.set(attempt, Slot::Starting { step: *step, is_cancelled: true });
            });
        }
    }

    /// Adds the deaths of the plugin and of the agent, each alone or both at once.
    pub(super) fn of_deaths(&mut self) {
        let Agent { doing, attempt, is_saved, .. } = self.from.agent;
        if self.from.plugin.is_some() {
            self.add("the plugin dies", attempt, Fault, World::plugin_dies);
            if doing == Doing::Stopping {
                self.add("the plugin dies, and the agent recovers first", attempt, Fault, |world| {
                    world.plugin_dies();
                    world.agent.doing = Doing::Recovering;
                });
            }
        }
        if !matches!(doing, Doing::Away | Doing::Done) {
            self.add("the agent dies", attempt, Fault, |world| {
                let is_answered = matches!(doing, Doing::Waiting | Doing::Stopping | Doing::Destroying);
                world.has_lost_handle |= is_answered && !is_saved;
                world.agent_dies();
            });
            self.add("the agent and the plugin die", attempt, Fault, |world| {
                world.agent_dies();
                world.plugin_dies();
            });
        }
    }
}

impl World {
    fn begin_destroy(&mut self) {
        (self.agent.doing, self.agent.is_over) = (Doing::Destroying, true);
    }

    fn begin_start(&mut self, attempt: usize) {
        let step = if self.parts[attempt].facts().exists {
            Start::Leftovers(Teardown::Begin)
        } else {
            Start::Earlier
        };
        self.reserve(attempt, step);
        self.agent.doing = Doing::Starting;
    }

    /// Puts an id into the hands of a start or a recovery.
    fn reserve(&mut self, attempt: usize, step: Start) {
        let is_free = matches!(self.slot(attempt), Some(Slot::Nobody { .. }));
        self.require(is_free, "a start has an id that another call or task has");
        let has_supervisor = matches!(self.slot(attempt), Some(Slot::Nobody { supervisor: true }));
        self.require(!has_supervisor, "a start has an id whose supervisor goes on");
        self.set(attempt, Slot::Starting { step, is_cancelled: false });
    }

    /// Puts an id into the hands of a teardown.
    pub(super) fn remove(&mut self, attempt: usize, by: By) {
        let Some(slot) = self.slot(attempt) else { return };
        let supervisor = Self::supervisor_outlives(slot);
        let is_free = matches!(slot, Slot::Nobody { .. } | Slot::Active { .. });
        self.require(is_free, "a teardown has an id that another call has");
        self.set(attempt, Slot::Removing { step: Teardown::Begin, by, supervisor });
    }

    /// Turns the agent to the next attempt. The second one is the last.
    pub(super) fn next_attempt(&mut self) {
        self.agent = match self.agent.attempt {
            0 => Agent { doing: Doing::Idle, attempt: 1, is_saved: false, is_over: false },
            _ => Agent { doing: Doing::Done, attempt: 1, is_saved: false, is_over: true },
        };
    }

    /// Has the agent start anew after a failed start; the second attempt keeps its id, for want of a third.
    pub(super) fn start_again(&mut self) {
        self.next_attempt();
        (self.agent.doing, self.agent.is_over) = (Doing::Idle, false);
    }

    pub(super) fn has_recovered(&mut self) {
        (self.agent.doing, self.agent.is_saved) = (Doing::Waiting, true);
    }

    fn agent_returns(&mut self) {
        if self.agent.is_saved {
            self.agent.doing = Doing::Recovering;
        } else {
            self.next_attempt();
        }
    }

    fn plugin_dies(&mut self) {
        (self.plugin, self.has_lost_handle) = (None, false);
        match self.agent.doing {
            Doing::Starting => self.agent.doing = Doing::Idle,
            Doing::Waiting => (self.agent.doing, self.agent.is_saved) = (Doing::Recovering, true),
            Doing::Destroying => self.next_attempt(),
            Doing::Idle | Doing::Stopping | Doing::Recovering | Doing::Done | Doing::Away => {}
        }
    }

    /// Ends the agent's calls with it. A start is cancelled then; a recovery breaks off; a teardown goes on.
    fn agent_dies(&mut self) {
        self.agent.doing = Doing::Away;
        for attempt in 0..2 {
            match self.slot(attempt) {
                Some(Slot::Starting { step: Start::Recover | Start::Reach, .. }) => {
                    self.set(attempt, Slot::NOBODY);
                }
                Some(Slot::Starting { step, is_cancelled: false }) => {
                    let step = *step;
                    self.set(attempt, Slot::Starting { step, is_cancelled: true });
                }
                _ => {}
            }
        }
    }
}
