//! The cgroup of the shims, beside those of tasks: no unit of systemd's, so that they outlive the agent's whatever its
//! `KillMode` is, and their memory is not the agent's.
//!
//! Source of the facts: systemd.kill(5); hashicorp/nomad `client/lib/cgroupslib`, whose parent cgroup it shares.

use std::path::{Path, PathBuf};

use super::{Mode, ROOT, mode};
use crate::sys::cgroup_spawn::Cgroups;

/// No name of a single task's cgroup, which is no slice.
const NAME: &str = "shims.slice";
/// Hierarchies of v1 in which shims have a cgroup of their own: by `systemd` a unit's processes are found, the others
/// limit a unit as a whole.
const HIERARCHIES: [&str; 3] = ["systemd", "memory", "pids"];

/// Returns the cgroup of the shims in each hierarchy. It is made with the first shim, and stays.
pub(crate) fn of_shims() -> Cgroups {
    match mode() {
        Mode::V2 => Cgroups { v1: Vec::new(), v2: Some(Path::new(ROOT).join("nomad.slice").join(NAME)) },
        Mode::V1 => of_shims_below(Path::new(ROOT)),
    }
}

/// Returns those of a machine with v1, and of the hierarchy of v2 that is beside it on a hybrid one.
fn of_shims_below(root: &Path) -> Cgroups {
    let own = |hierarchy: &str, file: &str| -> Option<PathBuf> {
        let hierarchy = root.join(hierarchy);
        hierarchy.join(file).exists().then(|| hierarchy.join("nomad").join(NAME))
    };
    Cgroups {
        v1: HIERARCHIES.into_iter().filter_map(|hierarchy| own(hierarchy, "tasks")).collect(),
        v2: own("unified", "cgroup.controllers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_have_a_cgroup_in_each_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        for file in ["memory/tasks", "systemd/tasks", "cpuset/tasks", "unified/cgroup.controllers"] {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        std::fs::create_dir(root.path().join("pids")).unwrap();
        let at = |hierarchy: &str| root.path().join(hierarchy).join("nomad/shims.slice");
        let found = of_shims_below(root.path());
        assert_eq!(found, Cgroups { v1: vec![at("systemd"), at("memory")], v2: Some(at("unified")) });
        assert_eq!(of_shims_below(&root.path().join("gone")), Cgroups::default());
    }
}
