//! A task's directory on disk: `<state_dir>/<namespace>/<container id>`, which is also the shim's working directory and
//! must bear the container's id.
//!
//! A bundle carries a mark, `doomed`, from its making until its task has started, and again from its destroy on. So a
//! plugin that dies in the middle of either leaves a bundle that says of itself that it is to be taken down. While the task
//! runs the mark is there under another name, so that it takes no room to set it: a full disk keeps no task from its end.
//!
//! A file is written whole or not at all. None is synced to the disk: after a loss of power no process of the task is
//! left, and a teardown gets by without what it can't read.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what lies in the state directory, which only root can reach"
)]

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;

use super::{Error, Shim};
use crate::{gvisor, mount_table};

/// Enough for a container to start from before its real spec is known: a shim's `start` reads the annotations only.
const EMPTY_SPEC: &str = r#"{"ociVersion":"1.0.2"}"#;
const SHIM_BINARY: &str = "shim-binary";
/// Where its shim is.
const SHIM: &str = "shim.json";
const CONFIG: &str = "config.json";
/// The options of gVisor's shim.
const SHIM_OPTIONS: &str = "runsc.toml";
const DOOMED: &str = "doomed";
/// The mark of a bundle that is not doomed.
const KEPT: &str = "kept";
/// The shim's log holds a few lines for each event that it can't deliver; past this it is emptied.
const LOG_LIMIT_BYTES: u64 = 1024 * 1024;
/// The shim's log, and the one that it has its runtime write.
const LOGS: [&str; 2] = ["log", "log.json"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    directory: PathBuf,
}

impl Bundle {
    /// The bundle of a container, which may or may not exist.
    pub(crate) fn at(state_dir: &Path, namespace: &str, id: &str) -> Self {
        Self { directory: state_dir.join(namespace).join(id) }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// # Errors
    /// When it is not there, or can't be opened.
    pub(super) fn open(&self) -> std::io::Result<fs::File> {
        fs::File::open(&self.directory)
    }

    /// Whether it is there. One that can't be looked at is: nobody is to take it for gone.
    pub(crate) fn exists(&self) -> bool {
        !is_missing(&self.directory)
    }

    /// Makes the directory, marked as doomed, with all that a shim's `start` needs, and the binary of that shim written
    /// down: whoever takes the container down may know nothing but its id.
    ///
    /// # Errors
    /// Names the file that could not be made.
    pub(crate) fn create(&self, shim_binary: &Path) -> Result<(), Error> {
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        let private = |recursive| {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        private(true).create(parent).map_err(Error::file("create", parent))?;
        private(false).create(&self.directory).map_err(Error::file("create", &self.directory))?;
        self.touch(DOOMED)?;
        self.write(SHIM_BINARY, shim_binary.as_os_str().as_bytes())?;
        for directory in [self.rootfs(), self.io_directory()] {
            private(false).create(&directory).map_err(Error::file("create", &directory))?;
        }
        self.write(CONFIG, EMPTY_SPEC.as_bytes())?;
        // The shim opens it for its log; it must exist, and a regular file needs no reader.
        self.touch("log")
    }

    /// Whether a task's bundle has lost something that its end needs, such as the name of the `runsc` that the task has. One
    /// that is being taken down, or was never whole, has not: it is marked.
    pub(crate) fn is_stripped(&self, runsc: Option<&str>) -> bool {
        let lacks = |name: &str| is_missing(&self.directory.join(name));
        let mut needed = [SHIM, CONFIG, SHIM_BINARY].into_iter().chain(runsc.map(|_| gvisor::PROGRAM));
        lacks(DOOMED) && (self.is_doomed() || needed.any(lacks))
    }

    /// Makes the directory of a bundle that somebody has removed.
    ///
    /// # Errors
    /// Names it.
    pub(crate) fn make_directory(&self) -> Result<(), Error> {
        make_private(&self.directory)
    }

    /// Makes what is missing of a task's bundle, so that the task can be taken down by it. One that isn't whole is marked.
    ///
    /// # Errors
    /// Names the file that could not be made.
    pub(crate) fn restore(
        &self,
        shim_binary: &Path,
        shim: &Shim,
        cgroup: &Path,
        runsc: Option<&str>,
    ) -> Result<(), Error> {
        let lacks = |name: &str| is_missing(&self.directory.join(name));
        let is_whole = !self.is_doomed();
        if lacks(SHIM_BINARY) {
            self.write(SHIM_BINARY, shim_binary.as_os_str().as_bytes())?;
        }
        if let Some(runsc) = runsc.filter(|_| lacks(gvisor::PROGRAM)) {
            self.write(gvisor::PROGRAM, runsc.as_bytes())?;
        }
        if lacks(SHIM) {
            self.write_shim(shim)?;
        }
        if lacks(CONFIG) {
            // With processes that end with the first one: a shim has nobody to look for then.
            let linux = serde_json::json!({"cgroupsPath": cgroup, "namespaces": [{"type": "pid"}]});
            let spec = serde_json::json!({"ociVersion": "1.0.2", "linux": linux});
            self.write(CONFIG, spec.to_string().as_bytes())?;
        }
        if is_whole {
            return Ok(());
        }
        make_private(&self.rootfs())?;
        self.touch(DOOMED)?;
        self.touch("log")
    }

    /// The binary that its shim was to be started from.
    pub(crate) fn shim_binary(&self) -> Option<PathBuf> {
        let path = fs::read(self.directory.join(SHIM_BINARY)).ok().filter(|path| !path.is_empty())?;
        Some(OsString::from_vec(path).into())
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Where the namespace of a network of the task's own is kept.
    pub(crate) fn network_namespace(&self) -> PathBuf {
        self.directory.join("netns")
    }

    /// By what that network's plugins are told to take it down.
    pub(crate) fn network_record(&self) -> PathBuf {
        self.directory.join("network.json")
    }

    /// The pipe of one of the task's streams, where the driver collects them.
    pub(crate) fn log_pipe(&self, stream: &str) -> PathBuf {
        self.directory.join(stream)
    }

    /// Where the pipes of execs live.
    pub(crate) fn io_directory(&self) -> PathBuf {
        self.directory.join("io")
    }

    /// # Errors
    /// Names the file.
    pub(crate) fn write_spec(&self, spec: &Spec) -> Result<(), Error> {
        let path = self.directory.join(CONFIG);
        let json =
            serde_json::to_vec(spec).map_err(std::io::Error::from).map_err(Error::file("write", &path))?;
        self.write(CONFIG, &json)
    }

    /// Writes the file from which gVisor's shim reads its options, and which `runsc` is to be run; returns the path of the
    /// first.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn write_gvisor_options(&self, text: &str, program: &str) -> Result<PathBuf, Error> {
        self.write(gvisor::PROGRAM, program.as_bytes())?;
        self.write(SHIM_OPTIONS, text.as_bytes())?;
        Ok(self.directory.join(SHIM_OPTIONS))
    }

    /// # Errors
    /// Names the file.
    pub(crate) fn read_spec(&self) -> Result<Spec, Error> {
        let path = self.directory.join(CONFIG);
        let json = fs::read(&path).map_err(Error::file("read", &path))?;
        serde_json::from_slice(&json).map_err(std::io::Error::from).map_err(Error::file("read", &path))
    }

    /// When the container was made: its real spec is written right before. None where there is no bundle of ours.
    pub(crate) fn made_at(&self) -> Option<std::time::SystemTime> {
        fs::metadata(self.directory.join(CONFIG)).and_then(|spec| spec.modified()).ok()
    }

    /// Whether a container may have been made: its real spec is written right before.
    pub(crate) fn may_have_container(&self) -> bool {
        let empty = EMPTY_SPEC.len() as u64;
        fs::metadata(self.directory.join(CONFIG)).is_ok_and(|spec| spec.len() != empty)
    }

    /// Lets the shim's own `delete` work on a bundle whose Create was cut off. It reads the options and the runtime's
    /// name from files that Create writes in this order, before it runs the runtime; without the second, no runtime
    /// was ever run, and the first may be half of one.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn settle_for_delete(&self) -> Result<(), Error> {
        if self.directory.join("runtime").exists() {
            return Ok(());
        }
        self.remove_file("options.json")?;
        self.touch("runtime")
    }

    /// There is no shim and no container any more; what is left to remove are files.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn forget_processes(&self) -> Result<(), Error> {
        self.remove_file(SHIM)?;
        self.remove_file(CONFIG)
    }

    /// Whether nothing of a container can run: there was none yet, or [`Self::forget_processes`] has come after its end.
    pub(crate) fn has_forgotten_processes(&self) -> bool {
        self.read_shim().is_none() && !self.may_have_container()
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn remove_file(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::File { doing: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Writes down where the shim is, as soon as it is known.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn write_shim(&self, shim: &Shim) -> Result<(), Error> {
        let json = serde_json::to_vec(shim).map_err(std::io::Error::from);
        self.write(SHIM, &json.map_err(Error::file("write", &self.directory.join(SHIM)))?)
    }

    /// Where the shim was, if one was started that far.
    pub(crate) fn read_shim(&self) -> Option<Shim> {
        let json = fs::read(self.directory.join(SHIM)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Reads what a file says. None where the file isn't there, or is not whole.
    ///
    /// # Errors
    /// Names a file that can't be read.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.directory.join(name);
        match fs::read(&path) {
            Ok(json) => Ok(serde_json::from_slice(&json).ok()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(Error::File { doing: "read", path, source }),
        }
    }

    /// Writes a file whole, or leaves it as it was.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.directory.join(name);
        let write = || {
            let create =
                |path: &Path| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            // Its own way to write has the kernel's error within one that hides it.
            let file = tempfile::Builder::new().prefix(".new-").make_in(&self.directory, create)?;
            file.as_file().write_all(content)?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        write().map_err(Error::file("write", &path))
    }

    /// Makes an empty file, unless it is there.
    fn touch(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        let open = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        open.map(drop).map_err(Error::file("create", &path))
    }

    /// Marks the bundle as one to take down, whoever finds it.
    ///
    /// # Errors
    /// Names the file. It needs room only where the bundle was made by an earlier build of the plugin.
    pub(crate) fn doom(&self) -> Result<(), Error> {
        let path = self.directory.join(DOOMED);
        match fs::rename(self.directory.join(KEPT), &path) {
            // One that is not whole needs no mark.
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_doomed() => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => self.touch(DOOMED),
            marked => marked.map_err(Error::file("create", &path)),
        }
    }

    /// The task runs: from here on only its destroy ends it.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn keep(&self) -> Result<(), Error> {
        let path = self.directory.join(DOOMED);
        fs::rename(&path, self.directory.join(KEPT)).map_err(Error::file("remove", &path))
    }

    /// Marked, or not whole: its making, or its removal, was cut off where the mark isn't there yet or any more.
    pub(crate) fn is_doomed(&self) -> bool {
        self.directory.join(DOOMED).exists()
            || is_missing(&self.directory.join("log"))
            || is_missing(&self.rootfs())
    }

    /// Empties the logs of the shim and of its runtime once they are large: each exec that fails has lines in both. The shim
    /// writes on at its own offset, and what is before it is a hole; the runtime opens its log each time.
    pub(crate) fn trim_logs(&self) {
        use std::os::unix::fs::MetadataExt;
        for path in LOGS.map(|name| self.directory.join(name)) {
            let on_disk_bytes = fs::metadata(&path).map_or(0, |log| log.blocks() * 512);
            if on_disk_bytes > LOG_LIMIT_BYTES
                && let Err(error) = fs::OpenOptions::new().write(true).truncate(true).open(&path)
            {
                tracing::warn!(path = %path.display(), %error, "can't empty a log");
            }
        }
    }

    /// Unmounts what is held in place, and what is left on the rootfs, and removes the directory. Gone already is success.
    ///
    /// # Errors
    /// Names what could not be removed; what is still mounted is never walked into.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.unpin()?;
        let rootfs = self.rootfs();
        mount_table::unmount(&rootfs).map_err(Error::errno("unmount", &rootfs))?;
        match fs::remove_dir(&rootfs) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => remove_mount_points(&rootfs)?,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::File { doing: "remove", path: rootfs, source: error });
            }
            _ => {}
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::File { doing: "remove", path: self.directory.clone(), source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Makes a directory for root alone, and those above it.
fn make_private(directory: &Path) -> Result<(), Error> {
    let created = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
    created.map_err(Error::file("create", directory))
}

/// Removes a rootfs on which nothing is mounted, with the mount points that a runtime has made in it: one that goes on when
/// its caller has died makes them in the bundle, as its shim has unmounted the container's snapshot by then.
///
/// # Errors
/// Names what is no mount point, such as a file with content, and refuses where anything is mounted.
fn remove_mount_points(rootfs: &Path) -> Result<(), Error> {
    let real = rootfs.canonicalize().map_err(Error::file("look at", rootfs))?;
    if let Some(mount) =
        mount_table::below(&real).map_err(Error::file("look for mounts below", rootfs))?.first()
    {
        let source = std::io::Error::other("something is mounted there");
        return Err(Error::File { doing: "remove", path: mount.point.clone(), source });
    }
    remove_empty(&real)
}

/// Removes a directory and all below that has no content: directories, empty files, links, devices.
fn remove_empty(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let path = entry.map_err(Error::file("list", directory))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
        if metadata.is_dir() {
            remove_empty(&path)?;
        } else if !metadata.is_file() || metadata.len() == 0 {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    fs::remove_dir(directory).map_err(Error::file("remove", directory))
}

/// Whether nothing is there. Where that can't be told, something may be.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// The ids of the bundles that exist.
///
/// # Errors
/// Names the directory that can't be read; a missing one holds no bundles.
pub(crate) fn bundles(state_dir: &Path, namespace: &str) -> Result<Vec<String>, Error> {
    let directory = state_dir.join(namespace);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::File { doing: "list", path: directory, source }),
    };
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries
        .filter_map(Result::ok)
        .filter(is_directory)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_doomed_until_kept_and_again_at_its_end() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        assert!(bundle.is_doomed());
        assert_eq!(bundle.shim_binary().as_deref(), Some(Path::new("/bin/shim")));
        bundle.keep().unwrap();
        assert!(!bundle.is_doomed());
        bundle.doom().unwrap();
        assert!(bundle.is_doomed());
        assert_eq!(bundles(state.path(), "nomad").unwrap(), ["redis-1"]);
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert!(!bundle.exists());
        assert!(bundles(state.path(), "nomad").unwrap().is_empty());
    }

    #[test]
    fn a_bundle_that_is_half_made_or_half_removed_is_doomed() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        fs::create_dir_all(&bundle.directory).unwrap();
        assert!(bundle.is_doomed());
        bundle.remove().unwrap();
        bundle.create(Path::new("/bin/shim")).unwrap();
        bundle.keep().unwrap();
        assert!(!bundle.is_doomed());
        fs::remove_dir(bundle.rootfs()).unwrap();
        assert!(bundle.is_doomed());
    }

    #[test]
    fn a_bundle_that_can_not_be_looked_at_is_neither_gone_nor_doomed() {
        let state = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop", state.path().join("loop")).unwrap();
        let bundle = Bundle::at(&state.path().join("loop"), "nomad", "redis-1");
        assert!(bundle.exists() && !bundle.is_doomed());
        assert!(!Bundle::at(state.path(), "nomad", "redis-1").exists());
    }

    #[test]
    fn a_bundle_of_an_earlier_build_is_doomed_as_well() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        bundle.keep().unwrap();
        fs::remove_file(bundle.directory.join(KEPT)).unwrap();
        assert!(!bundle.is_doomed());
        for _ in 0..2 {
            bundle.doom().unwrap();
            assert!(bundle.is_doomed());
        }
    }

    #[test]
    fn a_file_that_can_not_be_written_is_left_as_it_was() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        assert!(!bundle.may_have_container());
        bundle.write_spec(&Spec::default()).unwrap();
        assert!(bundle.may_have_container());
        assert_eq!(bundle.read_spec().unwrap(), Spec::default());
        assert!(!bundle.has_forgotten_processes());
        bundle.forget_processes().unwrap();
        assert!(bundle.has_forgotten_processes());
        let directory = bundle.directory.join("directory");
        fs::create_dir(&directory).unwrap();
        let error = bundle.write("directory", b"text").unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        let gone = Bundle::at(state.path(), "nomad", "gone").write("file", b"text").unwrap_err();
        let is_the_kernels =
            |error: &Error| matches!(error, Error::File { source, .. } if source.raw_os_error().is_some());
        assert!(is_the_kernels(&gone), "{gone}");
        let names = fs::read_dir(bundle.directory()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.into_iter().any(|name| name.as_bytes().starts_with(b".new-")));
    }

    #[test]
    fn a_second_bundle_of_the_same_id_is_refused_by_name() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let error = bundle.create(Path::new("/bin/shim")).unwrap_err().to_string();
        assert!(error.contains("nomad/redis-1"), "{error}");
    }

    #[test]
    fn files_with_content_in_a_rootfs_are_kept() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let precious = bundle.rootfs().join("etc/precious");
        fs::create_dir(bundle.rootfs().join("etc")).unwrap();
        fs::write(&precious, b"data").unwrap();
        assert!(bundle.remove().is_err());
        assert!(precious.exists());
    }

    #[test]
    fn what_a_runtime_makes_in_an_unmounted_rootfs_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let (outside, rootfs) = (state.path().join("outside"), bundle.rootfs());
        fs::create_dir_all(outside.join("kept")).unwrap();
        fs::create_dir_all(rootfs.join("dev/pts")).unwrap();
        fs::create_dir(rootfs.join("etc")).unwrap();
        fs::write(rootfs.join("etc/hosts"), b"").unwrap();
        std::os::unix::fs::symlink(&outside, rootfs.join("dev/fd")).unwrap();
        bundle.remove().unwrap();
        assert!(!bundle.directory().exists() && outside.join("kept").exists());
    }
}
