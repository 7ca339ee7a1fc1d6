//! The state of the model: the agent, the plugin and what is on the host of two attempts of one task.

use super::host::{End, Parts, Process, Shim};
use super::phases::{Start, Teardown};
use crate::task::attempts::Group;
use crate::task::ending::{Remaining, rest_of};
use crate::task::slot::Occupant;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) agent: Agent,
    /// `None` while no plugin runs.
    pub(super) plugin: Option<[Slot; 2]>,
    pub(super) parts: [Parts; 2],
    /// Number of faults that may still come.
    pub(super) faults: u8,
    /// Whether the agent died alone between a start's answer and the writing of its handle: this plugin has a task that no
    /// agent will ask for.
    pub(super) has_lost_handle: bool,
    /// Whether the kernel keeps the exit status of a process for those who hold it.
    pub(super) kernel_tells: bool,
    pub(super) broken: Option<&'static str>,
}

/// The agent, as far as it minds this task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Agent {
    pub(super) doing: Doing,
    /// Number of the attempt.
    pub(super) attempt: usize,
    /// Whether the attempt's handle is written down.
    pub(super) is_saved: bool,
    /// Whether the agent has given up the attempt, which may be ended from then on.
    pub(super) is_over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Idle,
    Starting,
    Waiting,
    Stopping,
    Recovering,
    Destroying,
    Done,
    /// The agent is dead.
    Away,
}

/// An id in the plugin's registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    Nobody {
        supervisor: bool,
    },
    Starting {
        step: Start,
        is_cancelled: bool,
    },
    Active {
        /// Whether the supervisor holds the process.
        holds: bool,
        /// Whether the process is known to have exited before.
        had_exited: bool,
        is_reported: bool,
        keeps_ending: bool,
    },
    Removing {
        step: Teardown,
        by: By,
        supervisor: bool,
    },
}

/// The caller of a teardown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum By {
    Agent,
    /// The start of the next attempt.
    NextAttempt,
    Background,
}

impl Slot {
    pub(super) const NOBODY: Self = Self::Nobody { supervisor: false };

    pub(super) fn running(holds: bool, had_exited: bool) -> Self {
        Self::Active { holds, had_exited, is_reported: false, keeps_ending: false }
    }

    pub(super) fn exited(keeps_ending: bool) -> Self {
        Self::Active { holds: false, had_exited: true, is_reported: true, keeps_ending }
    }

    pub(super) fn occupant(&self) -> Occupant {
        match self {
            Self::Nobody { .. } => Occupant::Nobody,
            Self::Starting { .. } => Occupant::Starting,
            Self::Active { is_reported: false, .. } => Occupant::Running,
            Self::Active { is_reported: true, .. } => Occupant::Exited,
            Self::Removing { .. } => Occupant::Removing,
        }
    }
}

impl World {
    pub(super) fn new(kernel_tells: bool, faults: u8) -> Self {
        Self {
            agent: Agent { doing: Doing::Idle, attempt: 0, is_saved: false, is_over: false },
            plugin: Some([Slot::NOBODY, Slot::NOBODY]),
            parts: [Parts::NONE, Parts::NONE],
            faults,
            has_lost_handle: false,
            kernel_tells,
            broken: None,
        }
    }

    /// Records that an invariant is broken, unless one is already.
    pub(super) fn require(&mut self, holds: bool, invariant: &'static str) {
        if !holds && self.broken.is_none() {
            self.broken = Some(invariant);
        }
    }

    pub(super) fn slot(&self, attempt: usize) -> Option<&Slot> {
        self.plugin.as_ref().map(|slots| &slots[attempt])
    }

    pub(super) fn set(&mut self, attempt: usize, slot: Slot) {
        if let Some(slots) = &mut self.plugin {
            slots[attempt] = slot;
        }
    }

    /// Returns whether the agent relies on this attempt: its process is to run.
    pub(super) fn is_wanted(&self, attempt: usize) -> bool {
        let Agent { doing, attempt: current, is_saved, is_over } = self.agent;
        let relies = match doing {
            Doing::Waiting => true,
            Doing::Recovering | Doing::Away => is_saved,
            Doing::Idle | Doing::Starting | Doing::Stopping | Doing::Destroying | Doing::Done => false,
        };
        relies && !is_over && current == attempt
    }

    /// Returns the attempt's cgroup as the driver judges it; both attempts have the same one.
    pub(super) fn group(&self, attempt: usize) -> Group {
        let Some(own) = &self.parts[attempt].facts().attempt else { return Group::Unknown };
        let other = &self.parts[1 - attempt].facts().attempt;
        let others = other.iter().filter(|other| other.may_share_cgroup(own)).count();
        Group::among(own.cgroup.clone(), &Ok::<usize, ()>(others))
    }

    /// Returns what still runs of an attempt by its cgroup.
    pub(super) fn rest_of_group(&self, group: &Group) -> Remaining {
        let (Group::Own(path) | Group::Shared(path) | Group::Unread(path)) = group else {
            return Remaining::Nothing;
        };
        let listed = (0..2).filter(|attempt| self.parts[*attempt].process.is_alive()).map(|_| 7).collect();
        rest_of(group, path, Ok(listed))
    }

    /// Kills all processes in the attempt's cgroup if that is its own.
    pub(super) fn kill_group(&mut self, attempt: usize) -> bool {
        let is_own = self.group(attempt).own().is_some();
        if is_own {
            self.kill_all_in_cgroup(attempt);
        }
        is_own
    }

    pub(super) fn kill_all_in_cgroup(&mut self, by: usize) {
        for of in 0..2 {
            self.kill(by, of);
        }
    }

    /// Kills the process of one attempt on behalf of another, or the same.
    pub(super) fn kill(&mut self, by: usize, of: usize) {
        if !self.parts[of].process.is_alive() {
            return;
        }
        self.require(by == of, "a process of another attempt is killed");
        let has_shim = matches!(self.parts[of].shim, Shim::Serving | Shim::Hanging);
        self.require(!(self.is_wanted(of) && has_shim), "a task is killed that the agent wants to run");
        self.parts[of].process = Process::Ended(End::Killed);
    }
}
