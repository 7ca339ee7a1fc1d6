//! The names under which the driver answers, and what each has of its own, so that both may be on one node.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

/// Name of the driver in jobs, in the agent's plugin block and in plugin_dir.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum DriverName {
    #[default]
    ContainerdDriver,
    /// In the place of Nomad's own docker driver, with its defaults.
    Docker,
}

impl DriverName {
    /// Returns the name that a program has to answer by: Nomad takes a file's name in plugin_dir for the plugin's.
    pub(crate) fn of_program(program: &OsStr) -> Self {
        let file = Path::new(program).file_name();
        if file.is_some_and(|file| file == Self::Docker.as_str()) {
            Self::Docker
        } else {
            Self::ContainerdDriver
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        self.either("containerd-driver", "docker")
    }

    pub(crate) fn is_docker(self) -> bool {
        self == Self::Docker
    }

    /// Returns the namespace in containerd of everything that the driver makes. `ctr -n <namespace>` shows it.
    pub(crate) fn containerd_namespace(self) -> &'static str {
        self.either("nomad", "nomad-docker")
    }

    /// Returns the default of `state_dir`.
    pub(super) fn state_dir(self) -> &'static str {
        self.either("/run/containerd-driver", "/run/containerd-driver-docker")
    }

    /// Returns the default of `bridge_network_name`.
    pub(super) fn bridge(self) -> &'static str {
        self.either("nomad-tasks", "nomad-docker")
    }

    /// Returns the default of `bridge_network_subnet`: beside that of Nomad's own bridge, 172.26.64.0/20.
    pub(super) fn subnet(self) -> &'static str {
        self.either("172.26.80.0/20", "172.26.96.0/20")
    }

    /// Returns one of two values: that of Nomad's docker driver under its name, else `ours`.
    pub(super) fn either<T>(self, ours: T, dockers: T) -> T {
        match self {
            Self::ContainerdDriver => ours,
            Self::Docker => dockers,
        }
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_file() {
        let name = |program: &str| DriverName::of_program(OsStr::new(program));
        assert_eq!(name("/opt/nomad/plugins/docker"), DriverName::Docker);
        assert_eq!(name("docker"), DriverName::Docker);
        for other in ["/opt/docker/containerd-driver", "/opt/docker-2", "Docker", "", "/"] {
            assert_eq!(name(other), DriverName::ContainerdDriver, "{other}");
        }
    }
}
