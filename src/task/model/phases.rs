//! The steps of a start and of a teardown in the model, by the one that is next.

/// The step of a start that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Start {
    /// A recovery looks at the bundle.
    Recover,
    /// A recovery asks the shim.
    Reach,
    Leftovers(Teardown),
    /// Looks for an earlier attempt.
    Earlier,
    /// Takes the earlier attempt down, once nobody else has it.
    EndEarlier,
    /// Waits for that teardown.
    EarlierEnds,
    Bundle,
    Name,
    Make {
        shim: Launch,
        parts: u8,
    },
    Spec,
    Create,
    Created,
    Run {
        holds: bool,
    },
    Started {
        holds: bool,
    },
    Unmark {
        holds: bool,
    },
    Fill {
        holds: bool,
    },
    Undo(Teardown),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Launch {
    Exec,
    Write,
    Done,
}

impl Start {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Recover => "recovery: looks at the bundle",
            Self::Reach => "recovery: asks the shim",
            Self::Leftovers(step) | Self::Undo(step) => step.name(),
            Self::Earlier => "start: looks for an earlier attempt",
            Self::EndEarlier => "start: takes the earlier attempt down",
            Self::EarlierEnds => "start: waits for the earlier attempt's end",
            Self::Bundle => "start: makes the bundle",
            Self::Name => "start: names the attempt in it",
            Self::Make { .. } => "start: makes the parts",
            Self::Spec => "start: writes the specification",
            Self::Create => "start: has the shim create",
            Self::Created => "start: the container is created",
            Self::Run { .. } => "start: has the shim start",
            Self::Started { .. } => "start: the process is started",
            Self::Unmark { .. } => "start: takes the mark off",
            Self::Fill { .. } => "start: answers",
        }
    }
}

/// The step of a teardown that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Teardown {
    Begin,
    Processes {
        marked: bool,
    },
    Kill {
        marked: bool,
    },
    Delete {
        marked: bool,
    },
    Shutdown {
        marked: bool,
        removed: bool,
    },
    RestOfGroup {
        marked: bool,
    },
    KillShim {
        marked: bool,
        bundle: bool,
    },
    WithoutShim {
        marked: bool,
        bundle: bool,
    },
    /// Removes the shim's file, the specification and the attempt's file, in this order.
    Forget {
        marked: bool,
        files: u8,
    },
    MarkAgain,
    Record,
    Lease,
    Rootfs,
    Directory,
}

impl Teardown {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Begin => "teardown: marks the bundle",
            Self::Processes { .. } => "teardown: asks the shim",
            Self::Kill { .. } => "teardown: kills",
            Self::Delete { .. } => "teardown: the shim deletes",
            Self::Shutdown { .. } => "teardown: the shim ends",
            Self::RestOfGroup { .. } => "teardown: looks at the cgroup",
            Self::KillShim { .. } => "teardown: kills the shim",
            Self::WithoutShim { .. } => "teardown: ends what has no shim",
            Self::Forget { files: 0, .. } => "teardown: removes the shim's file",
            Self::Forget { files: 1, .. } => "teardown: removes the specification",
            Self::Forget { .. } => "teardown: removes the attempt's file",
            Self::MarkAgain => "teardown: marks the bundle again",
            Self::Record => "teardown: removes record and snapshot",
            Self::Lease => "teardown: removes the lease",
            Self::Rootfs => "teardown: removes the rootfs",
            Self::Directory => "teardown: removes the bundle",
        }
    }
}
