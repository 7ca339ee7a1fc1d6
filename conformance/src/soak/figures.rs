//! What a node without tasks has: of memory, descriptors, threads, mounts, files and disk.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::leaks::inspect::mounts_under;
use harness::processes::resident_kb;

/// A figure's name and unit, and how much more of it there may be later.
const NAMES: [(&str, u64); 9] = [
    ("plugin: resident kB", 8 * 1024),
    ("plugin: descriptors", 8),
    ("plugin: threads", 8),
    // Its maps and caches grow with what they have seen, to a limit.
    ("containerd: resident kB", 96 * 1024),
    ("containerd: descriptors", 16),
    ("containerd: files", 200),
    ("containerd: disk kB", 32 * 1024),
    ("state directory: files", 8),
    ("mounts", 0),
];

/// The figures of a node at a time without tasks.
#[derive(Debug)]
pub struct Figures([u64; NAMES.len()]);

impl Figures {
    /// Looks at a plugin, its state directory, and a containerd with its root directory.
    ///
    /// # Errors
    /// Names what can't be looked at.
    pub fn of(plugin: i32, state_dir: &Path, containerd: i32, root: &Path) -> Result<Self> {
        let count = |path: String| -> Result<u64> {
            Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count() as u64)
        };
        let (state_files, _) = files_below(state_dir);
        let (files, kb) = files_below(root);
        Ok(Self([
            resident_kb(plugin)?,
            count(format!("/proc/{plugin}/fd"))?,
            count(format!("/proc/{plugin}/task"))?,
            resident_kb(containerd)?,
            count(format!("/proc/{containerd}/fd"))?,
            files,
            kb,
            state_files,
            // Others on the machine mount and unmount what they need meanwhile.
            (mounts_under(state_dir).len() + mounts_under(root).len()) as u64,
        ]))
    }

    /// # Errors
    /// Names each figure that has grown beyond what it may.
    pub fn assert_no_growth(&self, before: &Self) -> Result<()> {
        let grown: Vec<String> = NAMES
            .iter()
            .zip(self.0.iter().zip(before.0))
            .filter(|((_, more), (now, before))| **now > before + more)
            .map(|((name, _), (now, before))| format!("{name}: {now}, was {before}"))
            .collect();
        ensure!(grown.is_empty(), "there is more than before: {}", grown.join("; "));
        Ok(())
    }

    /// Returns a table of both.
    pub fn beside(&self, before: &Self) -> String {
        let row = |((name, _), (now, before)): (&(&str, u64), (&u64, u64))| {
            format!("| {name} | {before} | {now} |\n")
        };
        let rows: String = NAMES.iter().zip(self.0.iter().zip(before.0)).map(row).collect();
        format!("| without tasks | after the warm-up | at the end |\n|---|---|---|\n{rows}")
    }
}

/// Returns the number of files and directories below a directory, and the kB that they take. Mounted file systems aren't
/// entered: nothing is mounted there without tasks.
fn files_below(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let (mut files, mut kb, mut left) = (0, 0, vec![directory.to_owned()]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            files += 1;
            kb += metadata.blocks() / 2;
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    (files, kb)
}
