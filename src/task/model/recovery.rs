//! The steps of a recovery in the model, as `find` and `reach` take them.

use std::path::Path;

use super::disk::{Disk, Spec};
use super::host::{Container, Process, Shim};
use super::phases::Start;
use super::world::{Doing, Slot, World};
use crate::task::recover::{Recovery, ShimAnswer, recovery, refusal};

impl World {
    /// Restores the bundle, and gives up a container that is due for removal.
    pub(super) fn recover(&mut self, of: usize) {
        let disk = &mut self.parts[of].disk;
        let before = *disk;
        match disk {
            None => *disk = Some(Disk::RESTORED),
            Some(disk) if !(disk.is_marked || disk.is_whole && disk.shim && disk.spec != Spec::Removed) => {
                let spec = if disk.spec == Spec::Removed { Spec::Container } else { disk.spec };
                *disk = Disk { is_marked: !disk.is_whole, is_whole: true, shim: true, spec, task: true };
            }
            Some(_) => {}
        }
        let is_restored = before != *disk;
        match refusal(self.parts[of].facts().is_marked, is_restored, true, Path::new("/state/nomad/web-1")) {
            Some(_) => self.recovery_fails(of),
            None => self.go(of, Start::Reach),
        }
    }

    pub(super) fn reach(&mut self, of: usize) {
        let parts = &self.parts[of];
        let is_known = matches!(parts.container, Container::Known | Container::Starting);
        let answer = match parts.shim {
            Shim::Serving if is_known => Recovery::Possible,
            Shim::Serving => recovery(ShimAnswer::HasNoTask, false, false, false),
            Shim::None | Shim::Coming | Shim::Hanging => {
                recovery(ShimAnswer::Nothing, !parts.process.is_alive(), parts.shim == Shim::None, false)
            }
        };
        if answer != Recovery::Possible {
            return self.recovery_fails(of);
        }
        let (holds, is_marked) = (parts.process.is_alive(), parts.facts().is_marked);
        self.require(!is_marked, "a container is recovered that is due for removal");
        self.set(of, Slot::running(holds, !holds));
        self.has_recovered();
    }

    fn recovery_fails(&mut self, of: usize) {
        let parts = &self.parts[of];
        let runs = parts.process == Process::Running && parts.shim != Shim::None;
        let is_lost = self.is_wanted(of) && runs;
        self.require(!is_lost, "a task that runs is not recovered");
        self.set(of, Slot::NOBODY);
        (self.agent.doing, self.agent.is_over) = (Doing::Destroying, true);
    }
}
