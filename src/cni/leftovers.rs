//! Plugins that still run for an attachment though nobody waits for them: their starter was killed. They are told by their
//! environment, which their children have as well. The specification wants no two of them at work on one container.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::process_handle::ProcessHandle;
use crate::process_stat::{ProcessId, all_pids};

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
        let is_one = is_marked(*pid, mark);
        if is_one {
            process.kill();
        }
        is_one
    };
    let marked = all_pids().into_iter().filter(|pid| is_marked(*pid, mark));
    marked.filter(kill).collect()
}

/// One that has ended has no environment any more.
fn is_marked(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()))
}
