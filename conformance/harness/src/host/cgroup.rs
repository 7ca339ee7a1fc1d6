//! The control groups that a Nomad client makes around a task, on v1 (a hybrid machine counts as v1) and v2.
//!
//! Source of the facts: hashicorp/nomad `client/lib/cgroupslib`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leaks::{inspect, sweep};

const ROOT: &str = "/sys/fs/cgroup";
/// Slices of a v2 client: for tasks that share processors, and for those with cores of their own.
const SHARE: &str = "share.slice";
const RESERVE: &str = "reserve.slice";
const V1_HIERARCHIES: [&str; 3] = ["freezer", "memory", "cpu"];

/// Returns whether the machine has v2 only.
pub fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Returns the processors that a process may run on, as the kernel lists them.
///
/// # Errors
/// Fails if there is no such process.
pub fn processors_of(pid: i32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(line.context("no such line")?.trim().to_owned())
}

/// The control groups of a task. On drop, they are removed with all processes in them, as the client does after a
/// destroy.
pub struct TaskCgroup {
    name: String,
    /// The cpuset group that the client passes to the driver. On v2, it is the task's group itself.
    pub cpuset: PathBuf,
}

impl TaskCgroup {
    /// # Errors
    /// Names the group that can't be created.
    pub fn create(name: &str) -> Result<Self> {
        let cpuset = Self::make(name)?;
        Ok(Self { name: name.to_owned(), cpuset })
    }

    /// Creates the groups again that a driver removed at its destroy, as the client does before the next attempt.
    ///
    /// # Errors
    /// Names the group that can't be created.
    pub fn restore(&self) -> Result<()> {
        Self::make(&self.name).map(drop)
    }

    fn make(name: &str) -> Result<PathBuf> {
        if is_v2() { scope(SHARE, name) } else { create_v1(name) }
    }

    /// Returns the name of the groups, `<alloc>.<task>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a file of the task's group as the client created it, by its name on either version.
    ///
    /// # Errors
    /// Names the file.
    pub fn read(&self, v1_controller: &str, v1_file: &str, v2_file: &str) -> Result<String> {
        let path = if is_v2() {
            self.cpuset.join(v2_file)
        } else {
            Path::new(ROOT).join(v1_controller).join("nomad").join(&self.name).join(v1_file)
        };
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Creates the cpuset of a task with cores of its own. Its processors are set by whoever owns them. On v2 it is
    /// the task's group, and replaces the one in the slice for shared processors.
    ///
    /// # Errors
    /// Names the group.
    pub fn reserve(&self) -> Result<PathBuf> {
        if is_v2() {
            fs::remove_dir(&self.cpuset).context("remove the group among those that share")?;
            return scope(RESERVE, &self.name);
        }
        let group = Path::new(ROOT).join("cpuset/nomad/reserve").join(&self.name);
        make(&group)?;
        Ok(group)
    }

    /// Returns the file with the processors of all tasks without cores of their own.
    pub fn shared_processors(&self) -> PathBuf {
        let share = if is_v2() { self.cpuset.parent().unwrap_or(&self.cpuset) } else { &self.cpuset };
        share.join("cpuset.cpus")
    }

    /// Kills all processes in the group, as the client does at the end of a task.
    ///
    /// # Errors
    /// Names the file that can't be written.
    pub fn kill(&self) -> Result<()> {
        let write =
            |file: &Path, text| fs::write(file, text).with_context(|| format!("write {}", file.display()));
        if is_v2() {
            return write(&self.cpuset.join("cgroup.kill"), "1");
        }
        let state = Path::new(ROOT).join("freezer/nomad").join(&self.name).join("freezer.state");
        write(&state, "FROZEN")?;
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        write(&state, "THAWED")
    }

    /// Creates a control group within the task's, as a task can that may write there, and moves processes into it.
    ///
    /// # Errors
    /// Names the file.
    pub fn nest(&self, name: &str, pids: &[i32]) -> Result<Nested> {
        let parents = if is_v2() { vec![self.cpuset.clone()] } else { self.in_hierarchies() };
        Nested::make(parents.into_iter().map(|parent| parent.join(name)).collect(), pids, false)
    }

    fn in_hierarchies(&self) -> Vec<PathBuf> {
        let at = |hierarchy: &str| Path::new(ROOT).join(hierarchy).join("nomad").join(&self.name);
        ["freezer", "memory", "pids", "cpu"].map(at).into_iter().filter(|group| group.is_dir()).collect()
    }

    /// Returns the pids on the host of all processes in the group.
    pub fn pids(&self) -> Vec<i32> {
        inspect::pids_in(&self.name)
    }
}

/// A control group that somebody other than the client has created, in one hierarchy or several.
pub struct Nested {
    groups: Vec<PathBuf>,
    /// Whether the group is outside of a task's group, so that nobody else removes it.
    elsewhere: bool,
}

impl Nested {
    /// Creates a group that is outside of a task's group, as docker's or a kubelet's are.
    ///
    /// # Errors
    /// Names the file.
    pub fn elsewhere(name: &str, pids: &[i32]) -> Result<Self> {
        let at = |hierarchy: &str| Path::new(ROOT).join(hierarchy).join(name);
        let groups = if is_v2() {
            vec![at("")]
        } else {
            // Neither a link nor a directory that is left of a hierarchy of somebody else's mount namespace.
            let root = fs::metadata(ROOT)?.dev();
            let is_mounted = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|entry| entry.dev() != root);
            let entries = fs::read_dir(ROOT)?.flatten().filter(is_mounted);
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| name != "cpuset").map(|name| at(&name)).collect()
        };
        Self::make(groups, pids, true)
    }

    fn make(groups: Vec<PathBuf>, pids: &[i32], elsewhere: bool) -> Result<Self> {
        for group in &groups {
            make(group)?;
            for pid in pids {
                let file = group.join("cgroup.procs");
                fs::write(&file, pid.to_string()).with_context(|| format!("{pid} to {}", file.display()))?;
            }
        }
        Ok(Self { groups, elsewhere })
    }

    /// Freezes the group, as its creator can.
    ///
    /// # Errors
    /// Names the file.
    pub fn freeze(&self) -> Result<()> {
        self.tell(if is_v2() { ("cgroup.freeze", "1") } else { ("freezer.state", "FROZEN") })
    }

    /// # Errors
    /// Names the file.
    pub fn thaw(&self) -> Result<()> {
        self.tell(if is_v2() { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") })
    }

    fn tell(&self, (file, word): (&str, &str)) -> Result<()> {
        let file = self.groups.iter().map(|group| group.join(file)).find(|file| file.exists());
        let file = file.context("it can't be frozen")?;
        fs::write(&file, word).with_context(|| format!("write {}", file.display()))
    }

    /// # Errors
    /// Names the group that is still in use.
    pub fn remove(self) -> Result<()> {
        let mut left = self.groups.iter().filter(|group| group.is_dir());
        left.try_for_each(|group| {
            fs::remove_dir(group).with_context(|| format!("remove {}", group.display()))
        })
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        if !self.elsewhere {
            return;
        }
        // The thaw is for a case that has failed: a frozen process can't be killed.
        let _ = self.thaw();
        for group in self.groups.iter().filter(|group| group.is_dir()) {
            let _ = fs::remove_dir(group);
        }
    }
}

impl Drop for TaskCgroup {
    fn drop(&mut self) {
        sweep::cgroups(&self.name);
    }
}

fn make(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("make the control group {}", group.display()))
}

fn create_v1(name: &str) -> Result<PathBuf> {
    for hierarchy in V1_HIERARCHIES {
        make(&Path::new(ROOT).join(hierarchy).join("nomad").join(name))?;
    }
    let cpuset = Path::new(ROOT).join("cpuset");
    // A cpuset without CPUs and memory nodes accepts no process.
    for group in ["nomad", "nomad/share"] {
        let group = cpuset.join(group);
        make(&group)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(group.join(file))?.trim().is_empty() {
                fs::write(group.join(file), fs::read_to_string(cpuset.join(file))?)?;
            }
        }
    }
    Ok(cpuset.join("nomad/share"))
}

/// Creates a task's group in one of the two slices, both of which the client creates when it starts.
fn scope(slice: &str, name: &str) -> Result<PathBuf> {
    let nomad = Path::new(ROOT).join("nomad.slice");
    let hand_down = |group: &Path| {
        let file = group.join("cgroup.subtree_control");
        fs::write(&file, "+cpuset +cpu +io +memory +pids")
            .with_context(|| format!("hand the controllers down in {}", file.display()))
    };
    hand_down(Path::new(ROOT))?;
    make(&nomad)?;
    hand_down(&nomad)?;
    for slice in [SHARE, RESERVE] {
        make(&nomad.join(slice))?;
        hand_down(&nomad.join(slice))?;
    }
    let group = nomad.join(slice).join(format!("{name}.scope"));
    make(&group)?;
    Ok(group)
}
