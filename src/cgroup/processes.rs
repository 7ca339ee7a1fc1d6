//! Who is in a task's cgroup.

use std::path::Path;

use super::{Cgroup, directories, members};

impl Cgroup {
    /// The pids on the host of all processes of the task, also of those in cgroups that it made itself.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        directories(&self.path).iter().for_each(|directory| collect(directory, &mut pids));
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

fn collect(directory: &Path, pids: &mut Vec<i32>) {
    pids.extend(members(directory));
    let below = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    for child in below.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&child.path(), pids);
    }
}
