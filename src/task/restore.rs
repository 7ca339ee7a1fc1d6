//! Restores what a task's bundle has lost, such as by an operator who clears up by hand and removes its directory or
//! files of it. The task's handle has the address of its shim, its attempt and its first process; with those in the
//! bundle again, the task's end takes the same ways as any other.

use std::sync::PoisonError;

use super::attempt::Attempt;
use super::container::{ContainerHandles, RestoreFacts};
use super::error::{Error, Result};
use super::{DriverState, Identity};
use crate::shim::Bundle;
use crate::sys::blocking;
use crate::sys::error_chain::Chained;
use crate::sys::procfs::ProcessId;

/// Name of the file in a restored bundle that identifies the container's first process.
const INIT: &str = "init.json";

impl ContainerHandles {
    /// Returns whether somebody takes down the task that runs here.
    pub(super) fn is_taken_down(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Keeps the facts from the handle of the task that runs here, for [`Self::restore`].
    pub(super) fn remember(&self, driver_state: &DriverState, identity: &Identity) {
        let Identity { task_id: _, alloc_id, name } = identity.clone();
        let attempt = Attempt { alloc_id, task: name, cgroup: driver_state.cgroup.path.clone() };
        let runsc = driver_state.runsc.clone();
        let known = RestoreFacts { shim: driver_state.shim.clone(), init: driver_state.init, attempt, runsc };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    /// Restores the files that the bundle has lost, where their content is known, and returns whether it had lost any.
    /// A bundle that has lost its `rootfs` or log, too, is marked for removal. Blocking: not for an async thread.
    pub(super) fn restore(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|known| self.restore_from(known))
    }

    /// Runs [`Self::restore`] on a thread of its own.
    pub(super) async fn restore_off_thread(&self) -> bool {
        let container = self.clone();
        blocking::run(move || container.restore()).await
    }

    /// Restores the bundle for its teardown. Nothing restores it after this: what is missing from then on was taken
    /// down.
    pub(super) async fn restore_at_last(&self) {
        let container = self.clone();
        blocking::run(move || {
            let known = container.known.lock().unwrap_or_else(PoisonError::into_inner).take();
            known.is_some_and(|known| container.restore_from(&known))
        })
        .await;
    }

    fn restore_from(&self, known: &RestoreFacts) -> bool {
        let Self { id, bundle, launcher, .. } = self;
        let RestoreFacts { shim, init, attempt, runsc } = known;
        let runsc = runsc.as_deref();
        if !bundle.lacks_teardown_files(runsc) {
            return false;
        }
        tracing::warn!(
            container = id,
            bundle = %bundle.directory().display(),
            "the task's bundle directory, or files in it, were removed; restoring them from the task's handle"
        );
        let restore = || {
            bundle.make_directory()?;
            attempt.write(bundle)?;
            write_init(bundle, *init)?;
            // The file that tells a restored bundle from a stripped one comes last, so that a failure before it is
            // retried.
            Ok::<_, Error>(bundle.restore(&launcher.binary, shim, &attempt.cgroup, runsc)?)
        };
        let restored = restore();
        if let Err(error) = restored {
            tracing::warn!(container = id, error = %error.chain(), "can't restore the task's bundle; killing what can be found without it");
        }
        true
    }
}

/// Writes the container's first process into a bundle that is being restored. If that is not known, the shim's own note
/// has to do.
fn write_init(bundle: &Bundle, init: ProcessId) -> Result<()> {
    if init.started_ticks == 0 {
        return Ok(());
    }
    let json = serde_json::to_vec(&init)
        .map_err(|error| Error::failed(error).context("record the container's first process"))?;
    Ok(bundle.write(INIT, &json)?)
}

/// Reads the container's first process from a restored bundle.
pub(super) fn restored_init(bundle: &Bundle) -> Option<ProcessId> {
    bundle.read_json(INIT).ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shim_protos::{ApiVersion, Bootstrap};

    use super::*;
    use crate::shim::Shim;

    #[test]
    fn a_stripped_bundle_is_restored_and_one_that_is_taken_down_is_not() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "web-1");
        let bootstrap = Bootstrap { version: ApiVersion::V2, socket: "/run/s".into() };
        let shim = Shim { bootstrap, pid: 7, started_ticks: 6, shared: None };
        let (binary, cgroup) = (Path::new("/bin/shim"), Path::new("/nomad/a.web"));
        assert!(bundle.lacks_teardown_files(None));
        bundle.make_directory().unwrap();
        assert!(bundle.lacks_teardown_files(None), "it is not whole before the last file");
        bundle.restore(binary, &shim, cgroup, None).unwrap();
        assert!(
            bundle.is_marked_for_removal()
                && bundle.may_have_container()
                && !bundle.lacks_teardown_files(None)
        );
        assert_eq!((bundle.read_shim(), bundle.shim_binary()), (Some(shim.clone()), Some(binary.to_owned())));
        assert_eq!(Attempt::read(&bundle).unwrap().unwrap().cgroup, cgroup);
        let init = ProcessId { pid: 8, started_ticks: 9 };
        write_init(&bundle, init).unwrap();
        assert_eq!(restored_init(&bundle), Some(init));
        bundle.record_end_of_processes().unwrap();
        assert!(!bundle.lacks_teardown_files(None), "it is being taken down");
        bundle.remove().unwrap();
        // A bundle that lost only a file of the driver's own is not marked.
        bundle.create(binary).unwrap();
        bundle.write_shim(&shim).unwrap();
        bundle.write("config.json", br#"{"ociVersion":"1.0.2","hostname":"web"}"#).unwrap();
        bundle.clear_removal_mark().unwrap();
        assert!(!bundle.lacks_teardown_files(None));
        bundle.remove_file("shim.json").unwrap();
        assert!(bundle.lacks_teardown_files(None));
        bundle.restore(binary, &shim, cgroup, None).unwrap();
        assert_eq!(bundle.read_shim().as_ref(), Some(&shim));
        assert_eq!(bundle.read_spec().unwrap().hostname().as_deref(), Some("web"));
        assert!(!bundle.is_marked_for_removal() && !bundle.lacks_teardown_files(None));
        // Only the handle knows which `runsc` the task is to run.
        let runsc = Some("/opt/runsc");
        assert!(bundle.lacks_teardown_files(runsc));
        bundle.restore(binary, &shim, cgroup, runsc).unwrap();
        assert!(!bundle.is_marked_for_removal() && !bundle.lacks_teardown_files(runsc));
        assert_eq!(std::fs::read_to_string(bundle.directory().join("runsc")).unwrap(), "/opt/runsc");
    }
}
