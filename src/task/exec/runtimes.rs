//! Ends runtimes that a shim still waits for though the plugin that asked for them is gone: some shims kill them by
//! themselves, others wait for as long as such a runtime hangs.
//!
//! Only a process that is provably such a runtime is ended: a direct child of the shim, begun before this plugin's
//! look, that was called with the private root of our runtimes for what an exec or a start needs. A process in a
//! container is never one, wherever the task has put it.
//!
//! Source of the facts: runc and crun, `--root`; containerd `cmd/containerd-shim-runc-v2`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::{ProcessId, Stat, children, command_line, shares_our_pids};

/// Time limit of the look: the kernel shows no command line of a process that is stuck with its memory's lock.
const LOOK: Duration = Duration::from_secs(10);

/// Subcommands of runtimes of runc's kind.
const SUB_COMMANDS: [&str; 18] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "init",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
];
/// Subcommands that a client waits for until something runs.
const AWAITED: [&str; 3] = ["create", "exec", "start"];

/// Ends the runtimes that `shim` has started before `before`, with their state below `root`; of a shared shim `only_for` one
/// container.
pub(super) async fn end(shim: i32, root: &Path, before: u64, only_for: Option<&str>) {
    let (root, only_for) = (root.to_owned(), only_for.map(str::to_owned));
    let ending = tokio::task::spawn_blocking(move || end_now(shim, &root, before, only_for.as_deref()));
    if tokio::time::timeout(LOOK, ending).await.is_err() {
        tracing::warn!(shim, "the search for stale runtime processes takes too long; they are left alone");
    }
}

fn end_now(shim: i32, root: &Path, before: u64, only_for: Option<&str>) {
    // A shim that is not known has no children.
    if shim <= 1 {
        return;
    }
    for child in children(shim).into_iter().filter(|child| child.started_ticks < before) {
        // The process is held first, so that what is looked at then is what is killed.
        let Ok(Some(process)) = ProcessHandle::open(child) else { continue };
        let line = command_line(child.pid);
        if is_child(child, shim)
            && shares_our_pids(child.pid)
            && is_awaited_runtime(&line, root)
            && only_for.is_none_or(|id| line.split(|byte| *byte == 0).any(|word| word == id.as_bytes()))
        {
            tracing::info!(pid = child.pid, "killing a stale runtime process");
            process.kill();
        }
    }
}

fn is_child(process: ProcessId, of: i32) -> bool {
    Stat::read(process.pid).is_some_and(|stat| stat.is_of(process) && stat.parent == of)
}

/// Returns whether a command line is that of a runtime with its state below `root`, called for something that a client
/// waits for.
fn is_awaited_runtime(command_line: &[u8], root: &Path) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let at = words.iter().position(|word| *word == b"--root" || word.starts_with(b"--root="));
    let Some(at) = at else { return false };
    let given = match words[at].strip_prefix(b"--root=") {
        Some(value) => value,
        None => words.get(at + 1).copied().unwrap_or_default(),
    };
    let is_ours = PathBuf::from(OsStr::from_bytes(given)).starts_with(root);
    let is_sub_command = |word: &&&[u8]| SUB_COMMANDS.iter().any(|name| name.as_bytes() == **word);
    let sub_command = words[at..].iter().find(is_sub_command);
    is_ours
        && sub_command.is_some_and(|sub_command| AWAITED.iter().any(|name| name.as_bytes() == *sub_command))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_one(words: &str) -> bool {
        is_awaited_runtime(words.replace(' ', "\0").as_bytes(), Path::new("/run/ours/runc"))
    }

    #[test]
    fn a_runtime_process_is_recognized_by_its_root_and_sub_command() {
        let runc = "runc --root /run/ours/runc/nomad --log /b/log.json --log-format json";
        assert!(is_one(&format!("{runc} exec --process /tmp/x --detach --pid-file /b/exec-1.pid web-1")));
        assert!(is_one(&format!("{runc} start web-1")));
        assert!(is_one("/usr/bin/crun --root=/run/ours/runc/nomad create --bundle /b web-1"));
        assert!(is_one("/bin/sh /opt/wrapped --root /run/ours/runc exec web-1"));
        for stranger in [
            "runc --root /run/containerd/runc/k8s.io exec web-1",
            "runc --root /run/ours/runc-of-another exec web-1",
            "runc exec web-1",
            "runc --root",
            "runc init",
            "",
        ] {
            assert!(!is_one(stranger), "{stranger}");
        }
        // These runtimes end by themselves, and kill what is to be killed.
        assert!(!is_one(&format!("{runc} kill web-1 9")));
        assert!(!is_one(&format!("{runc} delete --force exec")));
        assert!(!is_one("runsc --root=/run/ours/runc/nomad wait web-1"));
    }

    #[test]
    fn runtimes_of_an_unknown_shim_are_not_killed() {
        end_now(0, Path::new("/"), u64::MAX, None);
        end_now(1, Path::new("/"), u64::MAX, None);
    }
}
