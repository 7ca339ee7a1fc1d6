//! A test environment for a plugin, private to one directory: a containerd, a registry, images, and the check that
//! nothing of it is left. Knows nothing of Nomad's protocol.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::fixture::{Catalog, Choice, Containerd, Networks, Programs, Registry};
use crate::leaks::{report, shim_sockets, sweep};

/// Parent directory and prefix of a test environment's directory. The path is short, since Unix sockets lie below it,
/// and has its owner's pid in it.
const PARENT: &str = "/tmp";
const PREFIX: &str = "cfm-";

/// The test environments of this process, for a suite that is interrupted.
static STANDING: Mutex<Vec<Weak<TestEnvironment>>> = Mutex::new(Vec::new());

/// A test environment: a containerd, and a registry with its images. On drop it is taken down with everything that
/// plugins left in its directory: processes, mounts, files.
pub struct TestEnvironment {
    // Fields are dropped in this order: servers first, the directory last.
    containerd: Containerd,
    registry: Registry,
    catalog: Arc<Catalog>,
    cgroup_roots: report::CgroupRoots,
    networks: Networks,
    directory: TempDir,
}

impl TestEnvironment {
    /// Starts the servers with PATH's programs, and pushes the images, which takes a few seconds.
    ///
    /// # Errors
    /// Fails with what is missing on the machine, or what didn't come up.
    pub fn start() -> Result<Arc<Self>> {
        Self::start_of(Programs::find(&Choice::default())?)
    }

    /// Does the same as [`Self::start`], with other programs.
    ///
    /// # Errors
    /// Fails as [`Self::start`] does.
    pub fn start_of(programs: Programs) -> Result<Arc<Self>> {
        shim_sockets::watch();
        let directory = own_directory()?;
        let catalog = Catalog::get().context("build the images")?;
        let registry = Registry::start_in(&directory.path().join("reg"))?;
        let containerd = Containerd::start_in(&directory.path().join("ctd"), programs)?;
        catalog.push(&registry).context("push the images")?;
        let cgroup_roots = report::CgroupRoots::note();
        let networks = Networks::claim()?;
        let environment = Arc::new(Self { containerd, registry, catalog, cgroup_roots, networks, directory });
        let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
        standing.push(Arc::downgrade(&environment));
        Ok(environment)
    }

    /// Returns the directory of all files of the test environment.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Returns the bridges and addresses of this test environment alone.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Returns an image's name as a job has it, such as `library/redis:alpine` with the registry's address in front.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address())
    }

    /// Returns a directory of this test environment for a plugin's state, which doesn't exist yet.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.directory().join(name).join("state")
    }

    /// Puts the servers back into service after whatever was done to them.
    ///
    /// # Errors
    /// Fails with the server that doesn't come up.
    pub fn repair(&self) -> Result<()> {
        let _ = (self.registry.resume(), self.containerd.resume());
        self.registry.start()?;
        self.containerd.start()
    }

    /// Ends the processes in the directory and undoes the mounts. A second call does nothing.
    pub(crate) fn take_down(&self) {
        sweep::thaw_under(self.directory());
        sweep::processes_under(self.directory());
        sweep::unmount_under(self.directory());
        let _ = self.containerd.stop();
        self.registry.stop();
        sweep::unmount_under(self.directory());
        self.cgroup_roots.restore();
        self.networks.give_back();
    }
}

impl Drop for TestEnvironment {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// Makes a directory that is removed with all processes and mounts in it: on drop, or by a later process if this one is
/// killed.
///
/// # Errors
/// Fails if the disk does.
pub fn own_directory() -> Result<TempDir> {
    sweep::abandoned(Path::new(PARENT), PREFIX);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).rand_bytes(4).tempdir_in(PARENT);
    made.with_context(|| format!("make a directory in {PARENT}"))
}

/// Takes down every test environment of this process, if it is interrupted and ends without unwinding.
pub fn take_down_all() {
    let standing = std::mem::take(&mut *STANDING.lock().unwrap_or_else(PoisonError::into_inner));
    for environment in standing.iter().filter_map(Weak::upgrade) {
        environment.take_down();
        let _ = std::fs::remove_dir_all(environment.directory());
    }
}
