//! The guest's root: an archive that the kernel unpacks into memory, with the programs of this machine that the suite
//! runs, and the libraries that they load. Knows nothing of the machine that will run it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::fixture::Programs;
use harness::fixture::images::libraries;
use harness::fixture::programs::{in_path, name_of};

/// Programs that the suite runs, beside itself and the plugin; `ldd`, a script for bash, among them.
const PROGRAMS: [&str; 7] =
    ["bash", "busybox", "docker-registry", "ldd", "redis-cli", "redis-server", "tini-static"];
/// Programs of [`PROGRAMS`] that load no libraries.
const LOAD_NOTHING: [&str; 3] = ["busybox", "ldd", "tini-static"];
/// Files of this machine that programs read; an agent wants the user `nobody`.
const FILES: [&str; 2] = ["/etc/group", "/etc/passwd"];
/// Empty directories, to be mounted on or written to.
const DIRECTORIES: [&str; 10] =
    ["dev", "etc", "mnt", "proc", "root", "run/containerd/s", "sys", "tmp", "usr", "var/lib"];

/// The files of a root: source paths by their paths in the root.
pub struct Root {
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Root {
    /// Returns a root with all that the suite needs of this machine.
    ///
    /// # Errors
    /// Fails with the program that is missing.
    pub fn with_programs(programs: &Programs) -> Result<Self> {
        let mut root = Self { files: BTreeMap::new() };
        for name in PROGRAMS {
            root.program(&in_path(Path::new(name))?, name)?;
        }
        for program in programs.all() {
            root.program(program, &name_of(program))?;
        }
        for file in FILES.map(Path::new) {
            root.file(file, file);
        }
        Ok(root)
    }

    /// Adds a program as `/bin/<name>`, with the libraries that it loads.
    ///
    /// # Errors
    /// Fails if its libraries can't be told.
    pub fn program(&mut self, path: &Path, name: &str) -> Result<()> {
        self.file(path, &Path::new("/bin").join(name));
        if !LOAD_NOTHING.contains(&name) {
            for library in libraries(path)? {
                self.file(&library, &library);
            }
        }
        Ok(())
    }

    /// Adds a file of this machine at a path of the root.
    pub fn file(&mut self, path: &Path, at: &Path) {
        self.files.insert(at.to_owned(), path.to_owned());
    }

    /// Writes the archive. `scratch` is an empty directory to work in.
    ///
    /// # Errors
    /// Fails with the packer's error.
    pub fn pack(&self, scratch: &Path, archive: &Path) -> Result<()> {
        let below = |path: &Path| scratch.join(path.strip_prefix("/").unwrap_or(path));
        for directory in DIRECTORIES {
            fs::create_dir_all(below(Path::new(directory)))?;
        }
        for (at, path) in &self.files {
            let at = below(at);
            if let Some(parent) = at.parent() {
                fs::create_dir_all(parent)?;
            }
            symlink(path, &at).with_context(|| format!("stage {}", path.display()))?;
        }
        let mut listing = String::new();
        list(scratch, Path::new("."), &mut listing)?;
        let mut packer = Command::new("busybox")
            .args(["cpio", "-o", "-L", "-H", "newc"])
            .current_dir(scratch)
            .stdin(Stdio::piped())
            .stdout(File::create(archive)?)
            .stderr(Stdio::piped())
            .spawn()
            .context("start busybox cpio")?;
        packer.stdin.take().context("busybox cpio has no stdin")?.write_all(listing.as_bytes())?;
        let done = packer.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "busybox cpio ended with {}: {stderr}", done.status);
        Ok(())
    }
}

/// Appends every path below `directory` to a list, parents first.
fn list(root: &Path, directory: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        into.push_str(&path.to_string_lossy());
        into.push('\n');
        if entry.file_type()?.is_dir() {
            list(root, &path, into)?;
        }
    }
    Ok(())
}
