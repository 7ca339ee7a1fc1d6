//! What the hostile program has told of.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Result, ensure};
use harness::host::logmon::Search;
use harness::leaks::inspect::children;
use harness::task::Task;
use nix::libc;

/// The word by which the program tells of what only a hole would allow.
pub(super) const BREACH: &str = "BREACH";

/// Checks that the program has told of nothing that only a hole would allow, neither in its pipe nor in the log files.
pub(super) fn no_breach(task: &Task) -> Result<()> {
    let told = task.alloc.stdout.found();
    ensure!(told.is_none(), "the task says: {told:?}");
    for path in children(&task.alloc.logs()) {
        // The task may have put anything there.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let Ok(mut file) = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path) else {
            continue;
        };
        if !file.metadata()?.is_file() {
            continue;
        }
        let (mut search, mut piece) = (Search::of(BREACH), vec![0; 1 << 16]);
        loop {
            match file.read(&mut piece)? {
                0 => break,
                read => search.add(&piece[..read]),
            }
        }
        ensure!(search.found().is_none(), "the task says in {}: {:?}", path.display(), search.found());
    }
    Ok(())
}
