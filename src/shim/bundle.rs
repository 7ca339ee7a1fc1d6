//! The bundle: a task's directory on disk, `<state_dir>/<namespace>/<container id>`, which is also the shim's working
//! directory and must bear the container's id.
//!
//! A bundle has a mark for removal, the file `doomed`, from its creation until its task has started, and again from the
//! task's destroy on. So a plugin that dies in the middle of either leaves a bundle that is known to be due for
//! teardown. While the task runs, the mark exists under another name, so that setting it takes no room: a full disk
//! does not prevent the teardown of a task.
//!
//! A file is written whole or not at all. No file is synced to the disk: after a loss of power no process of the task
//! is left, and a teardown gets by without files that it can't read.

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
use crate::gvisor;
use crate::sys::{blocking, mount_table};

/// Specification that a shim is started with before the container's is known: a shim's `start` reads the annotations
/// only.
const EMPTY_SPEC: &str = r#"{"ociVersion":"1.0.2"}"#;
const SHIM_BINARY: &str = "shim-binary";
/// Name of the file that says where the bundle's shim is.
const SHIM: &str = "shim.json";
const CONFIG: &str = "config.json";
/// Name of the file with the options of gVisor's shim.
const SHIM_OPTIONS: &str = "runsc.toml";
const REMOVAL_MARK: &str = "doomed";
/// Name of the mark while it doesn't hold: the bundle of a running task is not due for removal.
const CLEARED_MARK: &str = "kept";
/// Size on disk above which a log of [`LOGS`] is emptied. The shim's has a few lines for each event that it can't
/// deliver.
const MAX_LOG_BYTES: u64 = 1024 * 1024;
/// Names of the shim's log, and of the log that it has its runtime write.
const LOGS: [&str; 2] = ["log", "log.json"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    directory: PathBuf,
}

impl Bundle {
    /// Returns the bundle of a container, which may or may not exist.
    pub(crate) fn at(state_dir: &Path, namespace: &str, id: &str) -> Self {
        Self { directory: state_dir.join(namespace).join(id) }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Works on the bundle on a thread that may wait for its disk.
    pub(crate) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let bundle = self.clone();
        blocking::run(move || work(&bundle)).await
    }

    /// Opens the directory.
    ///
    /// # Errors
    /// When the directory is not there, or can't be opened.
    pub(super) fn open(&self) -> std::io::Result<fs::File> {
        fs::File::open(&self.directory)
    }

    /// Returns whether the bundle exists. Returns true if it can't be looked at, so that nobody takes it for gone.
    pub(crate) fn exists(&self) -> bool {
        !is_missing(&self.directory)
    }

    /// Makes the directory, marked for removal, with all that a shim's `start` needs. The path of the shim's binary is
    /// written down in it: whoever takes the container down may know nothing but the container's id.
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
        self.touch(REMOVAL_MARK)?;
        self.write(SHIM_BINARY, shim_binary.as_os_str().as_bytes())?;
        for directory in [self.rootfs(), self.io_directory()] {
            private(false).create(&directory).map_err(Error::file("create", &directory))?;
        }
        self.write(CONFIG, EMPTY_SPEC.as_bytes())?;
        // The shim opens this file for its log: it must exist, and a regular file needs no reader.
        self.touch("log")
    }

    /// Moves the directory, with all that is in it, to where another bundle is to be, which must not be there.
    ///
    /// # Errors
    /// Names the directory that could not be moved or made.
    pub(super) fn move_to(&self, other: &Self) -> Result<(), Error> {
        make_private(other.directory.parent().unwrap_or(Path::new("/")))?;
        fs::rename(&self.directory, &other.directory).map_err(Error::file("move", &self.directory))
    }

    /// Returns whether a task's bundle has lost a file that the task's teardown needs, such as the name of the `runsc`
    /// that the task has. A bundle that is being taken down, or was never whole, has not: it is marked for removal.
    pub(crate) fn lacks_teardown_files(&self, runsc: Option<&str>) -> bool {
        let lacks = |name: &str| is_missing(&self.directory.join(name));
        let mut needed = [SHIM, CONFIG, SHIM_BINARY].into_iter().chain(runsc.map(|_| gvisor::PROGRAM));
        lacks(REMOVAL_MARK) && (self.is_marked_for_removal() || needed.any(lacks))
    }

    /// Makes the directory of a bundle that somebody has removed.
    ///
    /// # Errors
    /// Names the directory.
    pub(crate) fn make_directory(&self) -> Result<(), Error> {
        make_private(&self.directory)
    }

    /// Restores what is missing of a task's bundle, so that the task can be taken down by it. A bundle that has lost
    /// its rootfs or its log is marked for removal.
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
        let is_whole = !self.is_marked_for_removal();
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
            // The specification has a pid namespace, so that all processes end with the first one: the shim then has no
            // other processes to look for.
            let linux = serde_json::json!({"cgroupsPath": cgroup, "namespaces": [{"type": "pid"}]});
            let spec = serde_json::json!({"ociVersion": "1.0.2", "linux": linux});
            self.write(CONFIG, spec.to_string().as_bytes())?;
        }
        if is_whole {
            return Ok(());
        }
        make_private(&self.rootfs())?;
        self.touch(REMOVAL_MARK)?;
        self.touch("log")
    }

    /// Returns the binary that the bundle's shim was to be started from. `None` if it can't be read.
    pub(crate) fn shim_binary(&self) -> Option<PathBuf> {
        let path = fs::read(self.directory.join(SHIM_BINARY)).ok().filter(|path| !path.is_empty())?;
        Some(OsString::from_vec(path).into())
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Path of the network namespace of a task that has a network of its own.
    pub(crate) fn network_namespace(&self) -> PathBuf {
        self.directory.join("netns")
    }

    /// Path of the record by which the plugins of the task's own network are told to take it down.
    pub(crate) fn network_record(&self) -> PathBuf {
        self.directory.join("network.json")
    }

    /// Path of the pipe of one of the task's streams (`stream`), if the driver collects the logs.
    pub(crate) fn log_pipe(&self, stream: &str) -> PathBuf {
        self.directory.join(stream)
    }

    /// Path of the pipe of the task's stdin, if that is to stay open.
    pub(crate) fn stdin_pipe(&self) -> PathBuf {
        self.directory.join("stdin")
    }

    /// Path of the directory of the execs' pipes.
    pub(crate) fn io_directory(&self) -> PathBuf {
        self.directory.join("io")
    }

    /// Writes the container's specification, in the place of the one that the shim was started with.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn write_spec(&self, spec: &Spec) -> Result<(), Error> {
        let path = self.directory.join(CONFIG);
        let json =
            serde_json::to_vec(spec).map_err(std::io::Error::from).map_err(Error::file("write", &path))?;
        self.write(CONFIG, &json)
    }

    /// Writes the file from which gVisor's shim reads its options, and the file that names the `runsc` to run; returns
    /// the path of the first.
    ///
    /// # Errors
    /// Names the file that can't be written.
    pub(super) fn write_gvisor_options(&self, text: &str, program: &str) -> Result<PathBuf, Error> {
        self.write(gvisor::PROGRAM, program.as_bytes())?;
        self.write(SHIM_OPTIONS, text.as_bytes())?;
        Ok(self.directory.join(SHIM_OPTIONS))
    }

    /// Reads the container's specification.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn read_spec(&self) -> Result<Spec, Error> {
        let path = self.directory.join(CONFIG);
        let json = fs::read(&path).map_err(Error::file("read", &path))?;
        serde_json::from_slice(&json).map_err(std::io::Error::from).map_err(Error::file("read", &path))
    }

    /// Returns the time at which the container was created: its specification is written right before. A bundle whose
    /// specification is gone, as after a teardown that was cut off, has the time of the last change to its directory.
    /// `None` if neither can be read.
    pub(crate) fn created_at(&self) -> Option<std::time::SystemTime> {
        let modified = |path: &Path| fs::metadata(path).and_then(|seen| seen.modified());
        match modified(&self.directory.join(CONFIG)) {
            Err(error) if error.kind() == ErrorKind::NotFound => modified(&self.directory).ok(),
            created => created.ok(),
        }
    }

    /// Returns whether a container may have been created: its specification is written right before.
    pub(crate) fn may_have_container(&self) -> bool {
        let empty = EMPTY_SPEC.len() as u64;
        fs::metadata(self.directory.join(CONFIG)).is_ok_and(|spec| spec.len() != empty)
    }

    /// Lets the shim's own `delete` work on a bundle whose Create was cut off. `delete` reads the options and the
    /// runtime's name from files that Create writes in this order, before it runs the runtime. Without the second file,
    /// no runtime was ever run, and the first file may be incomplete.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn prepare_for_delete(&self) -> Result<(), Error> {
        if self.directory.join("runtime").exists() {
            return Ok(());
        }
        self.remove_file("options.json")?;
        self.touch("runtime")
    }

    /// Removes the shim's file and the specification, whose absence says that no shim and no container is left: what
    /// remains to be removed are files.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn record_end_of_processes(&self) -> Result<(), Error> {
        self.remove_file(SHIM)?;
        self.remove_file(CONFIG)
    }

    /// Returns whether no process of a container can run: the container was not created yet, or
    /// [`Self::record_end_of_processes`] was called after its end.
    pub(crate) fn has_no_processes(&self) -> bool {
        self.read_shim().is_none() && !self.may_have_container()
    }

    /// Removes a file, if it exists.
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

    /// Writes the file that says where the shim is. To be called as soon as that is known.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn write_shim(&self, shim: &Shim) -> Result<(), Error> {
        let json = serde_json::to_vec(shim).map_err(std::io::Error::from);
        self.write(SHIM, &json.map_err(Error::file("write", &self.directory.join(SHIM)))?)
    }

    /// Returns the shim that was written down. `None` if no shim was started that far, or the file can't be read.
    pub(crate) fn read_shim(&self) -> Option<Shim> {
        let json = fs::read(self.directory.join(SHIM)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Returns the shim that was written down. `None` if no shim was started that far, or the file is not whole.
    ///
    /// # Errors
    /// Names a file that can't be read.
    pub(super) fn look_for_shim(&self) -> Result<Option<Shim>, Error> {
        self.read_json(SHIM)
    }

    /// Reads a file of JSON. `None` if the file doesn't exist, or is not whole.
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

    /// Writes a file whole, or leaves it as it was: a new file takes its place.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.directory.join(name);
        let write = || {
            let create =
                |path: &Path| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            // The `Write` of `tempfile` has the kernel's error within one that hides it.
            let file = tempfile::Builder::new().prefix(".new-").make_in(&self.directory, create)?;
            file.as_file().write_all(content)?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        write().map_err(Error::file("write", &path))
    }

    /// Makes an empty file, unless it exists.
    fn touch(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        let open = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        open.map(drop).map_err(Error::file("create", &path))
    }

    /// Marks the bundle for removal, by whoever finds it.
    ///
    /// # Errors
    /// Names the file. The mark needs room only if the bundle was made by an earlier build of the plugin.
    pub(crate) fn mark_for_removal(&self) -> Result<(), Error> {
        let path = self.directory.join(REMOVAL_MARK);
        match fs::rename(self.directory.join(CLEARED_MARK), &path) {
            // A bundle that is not whole needs no mark.
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_marked_for_removal() => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => self.touch(REMOVAL_MARK),
            marked => marked.map_err(Error::file("create", &path)),
        }
    }

    /// Takes the mark for removal off a bundle whose task runs: from here on only the task's destroy sets it again.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn clear_removal_mark(&self) -> Result<(), Error> {
        let path = self.directory.join(REMOVAL_MARK);
        fs::rename(&path, self.directory.join(CLEARED_MARK)).map_err(Error::file("remove", &path))
    }

    /// Returns whether the bundle is due for removal: it is marked, or is not whole, since its making or its removal
    /// was cut off while the mark wasn't there yet or any more.
    pub(crate) fn is_marked_for_removal(&self) -> bool {
        self.directory.join(REMOVAL_MARK).exists()
            || is_missing(&self.directory.join("log"))
            || is_missing(&self.rootfs())
    }

    /// Empties the logs of the shim and of its runtime if they are large: each exec that fails has lines in both. The
    /// shim writes on at its own offset, and what is before that is a hole; the runtime opens its log each time.
    pub(crate) fn trim_logs(&self) {
        use std::os::unix::fs::MetadataExt;
        for path in LOGS.map(|name| self.directory.join(name)) {
            let on_disk_bytes = fs::metadata(&path).map_or(0, |log| log.blocks() * 512);
            if on_disk_bytes > MAX_LOG_BYTES
                && let Err(error) = fs::OpenOptions::new().write(true).truncate(true).open(&path)
            {
                tracing::warn!(path = %path.display(), %error, "can't empty a log");
            }
        }
    }

    /// Unmounts what is staged and what is left on the rootfs, and removes the directory. Succeeds if it is gone
    /// already.
    ///
    /// # Errors
    /// Names what could not be removed; what is still mounted is never walked into.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.unstage()?;
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

/// Makes a directory and those above it, for root alone.
fn make_private(directory: &Path) -> Result<(), Error> {
    let created = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
    created.map_err(Error::file("create", directory))
}

/// Removes a rootfs on which nothing is mounted, with the mount points that a runtime has made in it: a runtime that
/// goes on when its caller has died makes them in the bundle, as its shim has unmounted the container's snapshot by
/// then.
///
/// # Errors
/// Names what is no mount point, such as a file with content, or what is still mounted.
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

/// Returns whether nothing exists at a path. Returns false if the path can't be looked at.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Returns the ids of the bundles that exist.
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
    fn a_bundle_is_marked_for_removal_except_while_its_task_runs() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        assert!(bundle.is_marked_for_removal());
        assert_eq!(bundle.shim_binary().as_deref(), Some(Path::new("/bin/shim")));
        bundle.clear_removal_mark().unwrap();
        assert!(!bundle.is_marked_for_removal());
        bundle.mark_for_removal().unwrap();
        assert!(bundle.is_marked_for_removal());
        assert_eq!(bundles(state.path(), "nomad").unwrap(), ["redis-1"]);
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert!(!bundle.exists());
        assert!(bundles(state.path(), "nomad").unwrap().is_empty());
    }

    #[test]
    fn an_incomplete_bundle_counts_as_marked_for_removal() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        fs::create_dir_all(&bundle.directory).unwrap();
        assert!(bundle.is_marked_for_removal());
        bundle.remove().unwrap();
        bundle.create(Path::new("/bin/shim")).unwrap();
        bundle.clear_removal_mark().unwrap();
        assert!(!bundle.is_marked_for_removal());
        fs::remove_dir(bundle.rootfs()).unwrap();
        assert!(bundle.is_marked_for_removal());
    }

    #[test]
    fn an_unreadable_bundle_is_neither_gone_nor_marked_for_removal() {
        let state = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop", state.path().join("loop")).unwrap();
        let bundle = Bundle::at(&state.path().join("loop"), "nomad", "redis-1");
        assert!(bundle.exists() && !bundle.is_marked_for_removal());
        assert!(!Bundle::at(state.path(), "nomad", "redis-1").exists());
    }

    #[test]
    fn bundles_of_earlier_builds_can_be_marked_for_removal() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        bundle.clear_removal_mark().unwrap();
        fs::remove_file(bundle.directory.join(CLEARED_MARK)).unwrap();
        assert!(!bundle.is_marked_for_removal());
        for _ in 0..2 {
            bundle.mark_for_removal().unwrap();
            assert!(bundle.is_marked_for_removal());
        }
    }

    #[test]
    fn a_failed_write_leaves_the_file_unchanged() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        assert!(!bundle.may_have_container());
        bundle.write_spec(&Spec::default()).unwrap();
        assert!(bundle.may_have_container());
        assert_eq!(bundle.read_spec().unwrap(), Spec::default());
        assert!(!bundle.has_no_processes());
        assert!(bundle.created_at().is_some());
        bundle.record_end_of_processes().unwrap();
        assert!(bundle.has_no_processes() && bundle.created_at().is_some());
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
    fn creating_an_existing_bundle_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "redis-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let error = bundle.create(Path::new("/bin/shim")).unwrap_err().to_string();
        assert!(error.contains("nomad/redis-1"), "{error}");
    }

    #[test]
    fn removal_keeps_rootfs_files_with_content() {
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
    fn mount_points_in_an_unmounted_rootfs_are_removed() {
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

#[cfg(test)]
mod fuzz {
    use super::*;

    /// The file that says where the shim is, and the specification.
    #[test]
    fn files() {
        crate::fuzz::bytes("bundle-files", |json| {
            if let Ok(shim) = serde_json::from_slice::<Shim>(json) {
                let stored = serde_json::to_vec(&shim).unwrap();
                assert_eq!(serde_json::from_slice::<Shim>(&stored).unwrap(), shim);
            }
            if let Ok(spec) = serde_json::from_slice::<Spec>(json) {
                let stored = serde_json::to_vec(&spec).unwrap();
                assert_eq!(serde_json::from_slice::<Spec>(&stored).unwrap(), spec);
            }
        });
    }
}
