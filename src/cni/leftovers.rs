//! Plugins that still run for an attachment though nobody waits for them: their starter was killed. They are told by their
//! environment, which their children have as well. The specification wants no two of them at work on one container.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::process_handle::ProcessHandle;
use crate::process_stat::{ProcessId, all_pids, shares_our_pids};

/// A killed process is gone at once, unless the kernel holds it.
const GONE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Ends those of the container, and waits until there are none.
pub(super) async fn end(container_id: &str) -> Result<(), Error> {
    let mark = format!("CNI_CONTAINERID={container_id}");
    let until = Instant::now() + GONE;
    loop {
        let mark = mark.clone();
        let left = super::record::on_files(move || Ok(kill_marked(&mark))).await?;
        if left.is_empty() {
            return Ok(());
        }
        tracing::warn!(container = container_id, ?left, "ending CNI plugins that nobody waits for");
        if Instant::now() > until {
            let process = format!("/proc/{}", left[0]);
            let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(Error::io("end a CNI plugin that was left behind,", Path::new(&process))(source));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn kill_marked(mark: &str) -> Vec<i32> {
    let kill = |pid: &i32| {
        // Held first: whose environment is looked at then is who is killed.
        let Ok(Some(process)) = ProcessHandle::open(ProcessId::of(*pid)) else { return false };
        let is_one = is_marked(*pid, mark) && !is_of_task(*pid);
        if is_one {
            process.kill();
        }
        is_one
    };
    let marked = all_pids().into_iter().filter(|pid| shares_our_pids(*pid) && is_marked(*pid, mark));
    marked.filter(kill).collect()
}

/// Whether a process is a task's, which can have any environment. One whose cgroups can't be read may be.
fn is_of_task(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).map_or(true, |cgroups| names_task(&cgroups))
}

/// Whether one of the cgroups in the kernel's list is a task's, as Nomad makes them.
fn names_task(cgroups: &str) -> bool {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| {
        let is_below = |parent: &str| path.split_once(parent).is_some_and(|(_, below)| !below.is_empty());
        path.starts_with("/nomad/")
            || is_below("nomad.slice/share.slice/")
            || is_below("nomad.slice/reserve.slice/")
    })
}

/// One that has ended has no environment any more.
fn is_marked(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_told_by_where_nomad_makes_its_cgroups() {
        for of_task in [
            "0::/nomad.slice/share.slice/a1.web.scope/init\n",
            "0::/../../nomad.slice/reserve.slice/a1.web.scope\n",
            "7:memory:/\n5:cpuset:/nomad/share\n0::/\n",
            "4:freezer:/nomad/a1.web/docker\n",
        ] {
            assert!(names_task(of_task), "{of_task}");
        }
        for other in
            ["", "0::/system.slice/nomad.service\n", "0::/nomad.slice/nomad.service\n", "4:freezer:/\n"]
        {
            assert!(!names_task(other), "{other}");
        }
    }
}
