//! The families of shims. A shim's family decides which options it takes, and where its tasks run.
//!
//! Source of the facts: containerd `core/runtime/v2`, `api/types/runtimeoptions/v1`, `api/types/runc/options`; gVisor
//! `pkg/shim/v1`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shim_protos::any::RUNC_OPTIONS_URL;

use super::runtime::binary_of;

/// Prefix of the names of the runc family's shims.
const RUNC: &[u8] = b"containerd-shim-runc-";
/// Prefix of the names of gVisor's shims.
const GVISOR: &[u8] = b"containerd-shim-runsc-";

/// The family of a shim: how it takes its options, and where its tasks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    /// Takes `containerd.runc.v1.Options`, and runs runc or a program with runc's command line.
    Runc,
    /// Takes a file of its own, and runs each task on a kernel that is a process of the host, in the task's cgroup.
    Gvisor,
    /// Any other shim: nothing is known of it but the protocol.
    Other,
}

impl Family {
    /// Returns the family of a runtime, a dotted name or the path of a shim, by the name of its binary. `type_url` is
    /// the type of its options as the operator gives it, and counts before the name.
    pub(crate) fn of_runtime(runtime: &str, type_url: Option<&str>) -> Self {
        match type_url {
            Some(RUNC_OPTIONS_URL) => Self::Runc,
            Some(GVISOR_OPTIONS_TYPE) => Self::Gvisor,
            _ => Self::of_binary(&binary_of(runtime)),
        }
    }

    /// Returns the family of a shim by the name of its binary.
    pub(crate) fn of_binary(binary: &Path) -> Self {
        let name = binary.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if name.starts_with(RUNC) {
            Self::Runc
        } else if name.starts_with(GVISOR) {
            Self::Gvisor
        } else {
            Self::Other
        }
    }

    /// Returns the only type of options that the family's shims take. `None` if it depends on the shim.
    pub(crate) fn options_type(self) -> Option<&'static str> {
        match self {
            Self::Runc => Some(RUNC_OPTIONS_URL),
            Self::Gvisor => Some(GVISOR_OPTIONS_TYPE),
            Self::Other => None,
        }
    }

    /// Returns whether the kernel counts a task's usage in the task's cgroup. Other shims may run a task elsewhere,
    /// such as in a virtual machine.
    pub(crate) fn counts_in_cgroup(self) -> bool {
        self != Self::Other
    }

    /// Returns whether each process of a task is a process of the host.
    pub(crate) fn shares_kernel(self) -> bool {
        self == Self::Runc
    }
}

/// The type of the options in a file of gVisor's shim.
pub(crate) const GVISOR_OPTIONS_TYPE: &str = "io.containerd.runsc.v1.options";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_type_decides_the_family_before_the_binary() {
        for (runtime, type_url, family) in [
            ("io.containerd.runc.v2", None, Family::Runc),
            ("io.containerd.runc.v2-rs", None, Family::Runc),
            ("/opt/containerd-shim-runc-v2-rs", None, Family::Runc),
            ("/opt/containerd-shim-runc-v2/wrapper", None, Family::Other),
            ("/opt/wrapper", Some(RUNC_OPTIONS_URL), Family::Runc),
            ("io.containerd.runsc.v1", None, Family::Gvisor),
            ("/opt/gvisor", Some(GVISOR_OPTIONS_TYPE), Family::Gvisor),
            ("io.containerd.kata.v2", None, Family::Other),
            ("io.containerd.kata.v2", Some("io.containerd.kata.v2.options"), Family::Other),
        ] {
            assert_eq!(Family::of_runtime(runtime, type_url), family, "{runtime} {type_url:?}");
        }
    }
}
