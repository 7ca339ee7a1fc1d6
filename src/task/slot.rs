//! What a call may do with a container's id, by who has that id. Pure: the registry has the lock, the calls wait.

use super::{Phase, Slot};

/// The holder of a container's id in the registry of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Occupant {
    Nobody,
    /// A start or a recovery.
    Starting,
    Running,
    Exited,
    /// A teardown.
    Removing,
}

/// The answer to a start or a recovery that asks for an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtStart {
    Begin,
    Wait,
    Refuse,
}

/// The answer to a destroy that asks for an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtDestroy {
    TakeDown,
    /// Cancels the start that is under way, and waits for its end.
    CancelAndWait,
    Wait,
    Refuse,
}

/// The answer to a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtStop {
    /// Nothing is there to be stopped: the agent repeats a stop that fails for minutes.
    HasStopped,
    /// Cancels the start that is under way, and waits for its end.
    CancelAndWait,
    Ask,
}

impl Occupant {
    pub(super) fn of(slot: Option<&Slot>) -> Self {
        match slot {
            None => Self::Nobody,
            Some(Slot::Starting(_)) => Self::Starting,
            Some(Slot::Active(task)) if matches!(*task.phase.borrow(), Phase::Exited(_)) => Self::Exited,
            Some(Slot::Active(_)) => Self::Running,
            Some(Slot::Removing) => Self::Removing,
        }
    }

    pub(super) fn at_start(self) -> AtStart {
        match self {
            Self::Nobody => AtStart::Begin,
            Self::Removing => AtStart::Wait,
            Self::Starting | Self::Running | Self::Exited => AtStart::Refuse,
        }
    }

    pub(super) fn at_destroy(self, force: bool) -> AtDestroy {
        match self {
            Self::Running if !force => AtDestroy::Refuse,
            Self::Nobody | Self::Running | Self::Exited => AtDestroy::TakeDown,
            Self::Starting if force => AtDestroy::CancelAndWait,
            Self::Starting | Self::Removing => AtDestroy::Wait,
        }
    }

    pub(super) fn at_stop(self) -> AtStop {
        match self {
            Self::Nobody | Self::Removing => AtStop::HasStopped,
            Self::Starting => AtStop::CancelAndWait,
            Self::Running | Self::Exited => AtStop::Ask,
        }
    }

    /// Returns whether the background work may take the container down: no call has its id.
    pub(super) fn is_free(self) -> bool {
        self == Self::Nobody
    }

    /// Returns whether the registry alone says what becomes of the id in a start of another attempt. Of any other id,
    /// the bundle says it.
    pub(super) fn is_known(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Exited)
    }

    /// Returns whether the start with the number `order` ends this earlier attempt of its task, whose own start has the
    /// number `its_order` while it is under way. Of two starts at the same time only the later one ends the other.
    pub(super) fn is_ended_by(self, its_order: Option<u64>, order: u64) -> bool {
        match self {
            Self::Starting => its_order.is_some_and(|its_order| its_order < order),
            Self::Running | Self::Exited => true,
            Self::Nobody | Self::Removing => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Occupant; 5] =
        [Occupant::Nobody, Occupant::Starting, Occupant::Running, Occupant::Exited, Occupant::Removing];

    #[test]
    fn a_running_task_is_destroyed_by_force_only() {
        assert_eq!(Occupant::Running.at_destroy(false), AtDestroy::Refuse);
        assert_eq!(Occupant::Running.at_destroy(true), AtDestroy::TakeDown);
        assert_eq!(Occupant::Exited.at_destroy(false), AtDestroy::TakeDown);
        assert_eq!(Occupant::Starting.at_destroy(true), AtDestroy::CancelAndWait);
        assert_eq!(Occupant::Starting.at_destroy(false), AtDestroy::Wait);
    }

    #[test]
    fn an_id_is_begun_or_taken_down_by_one_call_at_a_time() {
        for occupant in ALL {
            assert_eq!(occupant.at_start() == AtStart::Begin, occupant.is_free(), "{occupant:?}");
        }
        assert_eq!(Occupant::Removing.at_start(), AtStart::Wait);
        assert_eq!(Occupant::Removing.at_destroy(true), AtDestroy::Wait);
    }

    #[test]
    fn an_attempt_that_is_being_taken_down_is_found_by_its_bundle() {
        for occupant in ALL {
            assert!(!occupant.is_ended_by(Some(1), 2) || occupant.is_known(), "{occupant:?}");
        }
        assert!(!Occupant::Removing.is_known());
        assert!(!Occupant::Starting.is_ended_by(Some(3), 2) && Occupant::Starting.is_ended_by(Some(1), 2));
    }
}
