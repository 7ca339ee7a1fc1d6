//! What of the host a task must not change: files with content, owner, mode and times, parameters of the kernel, and
//! processes. Some directories a task must not see either.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::leaks::inspect::children;
use harness::processes::{alive, first_of_task};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Files of the machine.
const FILES: [&str; 9] = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/usr/bin/perl",
    "/bin/busybox",
    "/dev/null",
    "/dev/zero",
];
/// Directories whose entries stay the same. `/etc` and `/root` have files that other programs make at any time.
const DIRECTORIES: [&str; 2] = ["/", "/usr/bin"];
/// Parameters of the kernel.
const PARAMETERS: [&str; 5] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/panic",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/shmmax",
];
/// Size up to which a file's content is kept. The times tell changes of a larger one.
const KEPT_BYTES: u64 = 64 * 1024;

pub struct Canaries {
    roots: Vec<PathBuf>,
    hidden: Vec<Place>,
    before: BTreeMap<String, String>,
    processes: Vec<(String, i32)>,
    sleeper: Child,
}

impl Canaries {
    /// Makes a directory of the host that a task knows the path of, and a process of the host, and remembers both with
    /// other files and processes. No task may see that directory, or `hidden`.
    ///
    /// # Errors
    /// Names what can't be made.
    pub fn place(
        bait: &Path,
        hidden: &Path,
        more: &[PathBuf],
        mut processes: Vec<(String, i32)>,
    ) -> Result<Self> {
        fs::create_dir_all(bait.join("sub"))?;
        for (name, content) in [("secret", "the host's secret\n"), ("sub/deeper", "deeper\n"), ("x", "x\n")] {
            fs::write(bait.join(name), content)?;
        }
        fs::set_permissions(bait.join("secret"), Permissions::from_mode(0o600))?;
        mkfifo(&bait.join("pipe"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        symlink("secret", bait.join("link"))?;
        // It ends with the test bench, whose end of the pipe it reads.
        let sleeper = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start a process of the host")?;
        processes.push(("a process of the host".to_owned(), i32::try_from(sleeper.id())?));
        let roots = std::iter::once(bait.to_owned()).chain(more.iter().cloned()).collect();
        let hidden = vec![Place::of(bait)?, Place::of(hidden)?];
        let mut canaries = Self { roots, hidden, before: BTreeMap::new(), processes, sleeper };
        canaries.before = canaries.look();
        Ok(canaries)
    }

    fn look(&self) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        self.roots.iter().for_each(|root| note(root, &mut seen));
        FILES.iter().for_each(|file| note(Path::new(file), &mut seen));
        for directory in DIRECTORIES {
            let mut names: Vec<_> = children(Path::new(directory));
            names.sort();
            seen.insert(format!("entries of {directory}"), format!("{names:?}"));
        }
        for parameter in PARAMETERS {
            seen.insert(parameter.to_owned(), fs::read_to_string(parameter).unwrap_or_default());
        }
        seen
    }

    /// Checks that a task has no mount of what it must not see. A task without a first process has none.
    ///
    /// # Errors
    /// Shows the mount.
    pub fn are_hidden_from(&self, allocation: &str, task: &str) -> Result<()> {
        let Ok(pid) = first_of_task(allocation, task) else { return Ok(()) };
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in table.lines() {
            let shows = self.hidden.iter().find(|place| place.is_shown_by(line));
            ensure!(shows.is_none(), "the task has {shows:?} of the host mounted: {line}");
        }
        Ok(())
    }

    /// Checks that nothing has changed and no process is gone.
    ///
    /// # Errors
    /// Shows what has changed.
    pub fn are_well(&self) -> Result<()> {
        let now = self.look();
        for name in self.before.keys().chain(now.keys()) {
            let (then, now) = (self.before.get(name), now.get(name));
            ensure!(then == now, "the host's {name} was {then:?} and is {now:?}");
        }
        for (name, pid) in &self.processes {
            ensure!(alive(*pid), "{name}, process {pid}, is gone");
        }
        Ok(())
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
    }
}

/// A directory by its file system and its path there, as in `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct Place {
    device: String,
    path: PathBuf,
}

impl Place {
    fn of(directory: &Path) -> Result<Self> {
        Self::by(&fs::read_to_string("/proc/self/mountinfo")?, directory)
    }

    fn by(table: &str, directory: &Path) -> Result<Self> {
        let mounts = table.lines().filter_map(|line| {
            let (device, root, point) = parts(line)?;
            Some((device, root, point, directory.strip_prefix(point).ok()?))
        });
        // Of mounts at the same point, the last one is on top.
        let (device, root, _, inner) = mounts
            .max_by_key(|(_, _, point, _)| point.components().count())
            .with_context(|| format!("{} is on no mount", directory.display()))?;
        Ok(Self { device: device.to_owned(), path: root.join(inner) })
    }

    /// Returns whether a mount is of the directory, of something in it, or of one that it is in.
    fn is_shown_by(&self, line: &str) -> bool {
        parts(line).is_some_and(|(device, root, _)| {
            device == self.device && (root.starts_with(&self.path) || self.path.starts_with(root))
        })
    }
}

/// Returns device, root and mount point of a line of a mount table.
fn parts(line: &str) -> Option<(&str, &Path, &Path)> {
    let mut fields = line.split(' ').skip(2);
    Some((fields.next()?, Path::new(fields.next()?), Path::new(fields.next()?)))
}

/// Notes a file, and all below a directory, without following links.
fn note(path: &Path, seen: &mut BTreeMap<String, String>) {
    let name = path.display().to_string();
    let Ok(found) = path.symlink_metadata() else {
        seen.insert(name, "missing".to_owned());
        return;
    };
    let kind = found.file_type();
    let mut text = format!(
        "inode {} mode {:o} owner {}:{} device {}",
        found.ino(),
        found.mode(),
        found.uid(),
        found.gid(),
        found.rdev()
    );
    if kind.is_file() {
        text.push_str(&format!(" {} bytes, changed {}.{}", found.len(), found.ctime(), found.ctime_nsec()));
        if found.len() <= KEPT_BYTES {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
        }
    } else if kind.is_symlink() {
        text.push_str(&format!(" to {:?}", fs::read_link(path).ok()));
    } else if kind.is_dir() {
        text.push_str(&format!(" changed {}.{}", found.ctime(), found.ctime_nsec()));
        children(path).iter().for_each(|child| note(child, seen));
    } else if kind.is_fifo() || kind.is_socket() {
        text.push_str(" special");
    }
    seen.insert(name, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_shows_what_it_is_of_and_what_is_in_that() {
        let table = "20 1 8:1 / / rw - ext4 /dev/a rw\n21 20 8:2 /tmp /tmp rw - ext4 /dev/b rw";
        let place = Place::by(table, Path::new("/tmp/w/bait")).unwrap();
        let shown = |device: &str, root: &str| place.is_shown_by(&format!("9 8 {device} {root} /t0 rw - x"));
        for root in ["/tmp/w/bait", "/tmp/w/bait/secret", "/tmp/w", "/"] {
            assert!(shown("8:2", root), "{root}");
        }
        for root in ["/tmp/w/open", "/tmp/w/bait2", "/w/bait"] {
            assert!(!shown("8:2", root), "{root}");
        }
        assert!(!shown("8:1", "/"));
    }

    #[test]
    fn changes_of_content_mode_and_entries_are_seen() {
        let changes: [fn(&Path); 5] = [
            |bait| fs::write(bait.join("sub/deeper"), "DEEPER\n").unwrap(),
            |bait| fs::set_permissions(bait.join("x"), Permissions::from_mode(0o777)).unwrap(),
            |bait| fs::write(bait.join("new"), "").unwrap(),
            |bait| fs::remove_file(bait.join("pipe")).unwrap(),
            |bait| fs::set_permissions(bait.join("sub"), Permissions::from_mode(0o000)).unwrap(),
        ];
        for change in changes {
            let directory = tempfile::tempdir().unwrap();
            let canaries = Canaries::place(directory.path(), directory.path(), &[], Vec::new()).unwrap();
            canaries.are_well().unwrap();
            change(directory.path());
            canaries.are_well().unwrap_err();
        }
    }
}
