//! What is on the host of an attempt in the model: bundle, shim, process, and containerd's parts.

use std::process::ExitStatus;

use super::disk::{Disk, Facts};

/// The parts of an attempt on the host and in containerd.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Parts {
    pub(super) disk: Option<Disk>,
    pub(super) shim: Shim,
    pub(super) container: Container,
    pub(super) process: Process,
    pub(super) lease: bool,
    /// The snapshot, and the record, which comes beside the create: they go together.
    pub(super) record: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shim {
    None,
    /// Launched, and not serving yet.
    Coming,
    Serving,
    Hanging,
}

/// The container as its shim knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Container {
    None,
    /// The runtime makes it.
    Creating,
    Known,
    /// The runtime starts its process.
    Starting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Process {
    None,
    Created,
    Running,
    Ended(End),
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    Success,
    Failure,
    Pipe,
    Killed,
}

impl End {
    fn raw(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::Failure => 1 << 8,
            Self::Pipe => 13,
            Self::Killed => 9,
        }
    }

    pub(super) fn status(self) -> ExitStatus {
        std::os::unix::process::ExitStatusExt::from_raw(self.raw())
    }

    pub(super) fn code(self) -> u32 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Pipe => 141,
            Self::Killed => 137,
        }
    }
}

impl Process {
    pub(super) fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Running)
    }
}

impl Parts {
    pub(super) const NONE: Self = Self {
        disk: None,
        shim: Shim::None,
        container: Container::None,
        process: Process::None,
        lease: false,
        record: false,
    };

    pub(super) fn facts(&self) -> &'static Facts {
        Facts::about(self.disk)
    }

    pub(super) fn is_nothing_left(&self) -> bool {
        let Self { disk, shim, container: _, process, lease, record } = self;
        disk.is_none() && *shim == Shim::None && !process.is_alive() && !lease && !record
    }

    pub(super) fn on_disk(&mut self, change: impl FnOnce(&mut Disk)) {
        if let Some(disk) = &mut self.disk {
            change(disk);
        }
    }

    /// Ends the shim, and the runtime that it runs: the runtime gets a signal at its parent's death.
    pub(super) fn end_shim(&mut self) {
        self.shim = Shim::None;
        self.container = Container::None;
    }

    /// Forgets how a removed container's process ended, so that states which differ in nothing else are one.
    pub(super) fn forget_process(&mut self) {
        if !self.process.is_alive() {
            self.process = Process::None;
        }
    }
}
