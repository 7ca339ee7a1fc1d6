//! Moves the hugetlb controller to cgroup v1 while figures are taken. On a machine with both versions of cgroups, crun
//! needs all controllers on v1. Where hugetlb is on v2, or on a v1 that is mounted nowhere, it is mounted as v1 in a mount
//! namespace of our own, and given back afterwards.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::fixture;

const POINT: &str = "/sys/fs/cgroup/hugetlb";
/// Number of unmounts that are tried: the kernel releases a hierarchy only after the groups in it are gone, and only
/// at an unmount.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(200);

/// The mount of hugetlb as v1, if one is needed. On drop, v2 gets the controller back.
pub struct Hugetlb {
    mounted: bool,
}

impl Hugetlb {
    /// Mounts hugetlb as v1 if crun needs it. Must be called while the process has one thread: existing ones would not
    /// see the mount. If the mount fails, crun reports the controller itself.
    pub fn move_to_v1() -> Self {
        let needed = (is_on_v2() || is_left_on_v1())
            && fixture::process::output(Command::new("crun").arg("--version")).is_ok();
        let mounted = needed
            && mount_privately()
                .inspect_err(|error| eprintln!("hugetlb stays where crun can't use it: {error:#}"))
                .is_ok();
        Self { mounted }
    }
}

fn mount_privately() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("keep mounts to ourselves")?;
    fs::create_dir_all(POINT).with_context(|| format!("make {POINT}"))?;
    mount_v1()
}

fn mount_v1() -> Result<()> {
    mount(Some("cgroup"), POINT, Some("cgroup"), MsFlags::empty(), Some("hugetlb"))
        .with_context(|| format!("mount {POINT}"))
}

fn is_on_v2() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "hugetlb")
}

/// Returns whether hugetlb is on a v1 that isn't mounted: what is left of a run of which a cgroup was not removed. crun
/// would take the directory of the mount for a hierarchy.
fn is_left_on_v1() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_mounted = mounts.lines().any(|line| line.split_whitespace().nth(1) == Some(POINT));
    let enabled = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let hierarchy = enabled.lines().find_map(|line| line.strip_prefix("hugetlb\t")?.split('\t').next());
    !is_mounted && hierarchy.is_some_and(|id| id != "0")
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        for _ in 0..TRIES {
            let _ = umount2(POINT, MntFlags::empty());
            std::thread::sleep(PAUSE);
            if is_on_v2() || mount_v1().is_err() {
                break;
            }
        }
        if !is_on_v2() {
            eprintln!("hugetlb is still on cgroup v1; it goes back once nothing is left of what was in it");
        }
        let _ = fs::remove_dir(POINT);
    }
}
