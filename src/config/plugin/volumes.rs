//! The plugin block's `volumes { .. }`: the host paths that a job may mount. Paths in its allocation directory follow
//! the rules of `allocation.rs` instead, whatever the operator sets.

use std::path::{Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::resolved_path::{Access, ResolvedPath, TaskDirectory};
use super::{allocation, directories};
use crate::config::hclspec::{block, default, object, optional};
use crate::config::{ConfigError, DriverName, forbidden, value};

/// The host paths that jobs may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volumes {
    pub enabled: bool,
    /// Directories that jobs may mount from. Empty allows all of the host.
    pub allowed_paths: Vec<PathBuf>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self { enabled: true, allowed_paths: Vec::new() }
    }
}

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    enabled: Option<bool>,
    allowed_paths: Option<Vec<Option<String>>>,
    selinuxlabel: Option<String>,
}

pub(super) fn schema(name: DriverName) -> Spec {
    let options = object([
        ("enabled", default("enabled", "bool", name.either("true", "false"))),
        ("allowed_paths", optional("allowed_paths", "list(string)")),
        ("selinuxlabel", optional("selinuxlabel", "string")),
    ]);
    block("volumes", options)
}

impl Raw {
    /// # Errors
    /// Names the option with an invalid value.
    pub(super) fn decode(self, name: DriverName) -> Result<Volumes, ConfigError> {
        let Self { enabled, allowed_paths, selinuxlabel } = self;
        // The docker driver has this option. Accepting it without an effect would mislead the operator.
        if let Some(label) = selinuxlabel.filter(|label| !label.is_empty()) {
            let why = "this driver sets no SELinux labels; label the paths on the host (chcon -R -t container_file_t), and \
             leave the option out";
            return Err(value("volumes.selinuxlabel", label, why));
        }
        let allowed_paths = directories::absolute("volumes.allowed_paths", allowed_paths)?;
        Ok(Volumes { enabled: enabled.unwrap_or(name.either(true, false)), allowed_paths })
    }
}

impl Volumes {
    /// Resolves a path to its root and area. Nothing is looked up: the kernel enforces where symbolic links lead.
    ///
    /// # Errors
    /// Names the operator's option that forbids the path, or says what of the allocation directory is refused.
    pub(in crate::config) fn place(
        &self,
        option: &'static str,
        path: &Path,
        access: Access,
        task: TaskDirectory<'_>,
    ) -> Result<ResolvedPath, ConfigError> {
        if let Some(resolved) = allocation::place(option, path, access, task)? {
            return Ok(resolved);
        }
        let shown = path.display().to_string();
        if !self.enabled {
            return Err(forbidden(option, &shown, "volumes.enabled", "enabled = true"));
        }
        if self.allowed_paths.is_empty() {
            let rest = path.strip_prefix("/").unwrap_or(path).to_owned();
            return Ok(ResolvedPath::of_host("/".into(), rest));
        }
        let (root, rest) = directories::split(path, &self.allowed_paths).ok_or_else(|| {
            let needed = format!("{shown:?} or a directory above it; it has {:?}", self.allowed_paths);
            forbidden(option, &shown, "volumes.allowed_paths", &needed)
        })?;
        Ok(ResolvedPath::of_host(root, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskDirectory<'_> = TaskDirectory { alloc_dir: "/nomad/a1", task: "web" };

    fn resolved(volumes: &Volumes, path: &str) -> Result<(String, String, bool), ConfigError> {
        let ResolvedPath { root, plain, path, is_allocations } =
            volumes.place("mounts", Path::new(path), Access::Write, TASK)?;
        let area = if plain.as_os_str().is_empty() { root } else { root.join(plain) };
        Ok((area.display().to_string(), path.display().to_string(), is_allocations))
    }

    fn is(root: &str, path: &str, is_allocations: bool) -> (String, String, bool) {
        (root.to_owned(), path.to_owned(), is_allocations)
    }

    #[test]
    fn allocation_paths_are_always_allowed() {
        let nothing = Volumes { enabled: false, allowed_paths: Vec::new() };
        let only = Volumes { enabled: true, allowed_paths: vec!["/srv".into()] };
        for volumes in [nothing, only, Volumes::default()] {
            assert_eq!(resolved(&volumes, "local/x").unwrap(), is("/nomad/a1/web/local", "x", true));
            assert_eq!(resolved(&volumes, "/nomad/a1/alloc/d").unwrap(), is("/nomad/a1/alloc/d", ".", true));
            resolved(&volumes, "/nomad/a1").unwrap_err();
        }
    }

    #[test]
    fn host_paths_need_the_operators_permission() {
        let all = Volumes::default();
        assert_eq!(resolved(&all, "/srv/x").unwrap(), is("/", "srv/x", false));
        assert_eq!(resolved(&all, "/").unwrap(), is("/", ".", false));
        let nothing = Volumes { enabled: false, ..Volumes::default() };
        let error = resolved(&nothing, "/nomad/a12").unwrap_err().to_string();
        assert!(error.contains("/nomad/a12") && error.contains("volumes.enabled"), "{error}");
        let roots = Volumes { enabled: true, allowed_paths: vec!["/srv".into(), "/srv/data/".into()] };
        assert_eq!(resolved(&roots, "/srv").unwrap(), is("/srv", ".", false));
        assert_eq!(resolved(&roots, "/srv/./data/x").unwrap(), is("/srv/data/", "x", false));
        // This path leads out of the directory, which the kernel refuses when it is opened.
        assert_eq!(resolved(&roots, "/srv/../etc").unwrap(), is("/srv", "../etc", false));
        for path in ["/", "/srv2", "/etc/passwd", "/nomad"] {
            let error = resolved(&roots, path).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("volumes.allowed_paths"), "{error}");
        }
    }

    #[test]
    fn each_volume_has_a_directory_of_its_own() {
        let path = |target: &str| ResolvedPath::own_volume(TASK, target).shown().display().to_string();
        assert_eq!(path("/data"), "/nomad/a1/web/volumes/data");
        assert_eq!(path("/var/lib"), "/nomad/a1/web/volumes/var%2Flib");
        assert_ne!(path("/var%2Flib"), path("/var/lib"));
    }

    #[test]
    fn an_allowed_path_is_absolute() {
        for path in ["srv", "", "/srv/../etc"] {
            let allowed_paths = Some(vec![Some(path.to_owned())]);
            let raw = Raw { enabled: None, allowed_paths, selinuxlabel: None };
            assert!(
                raw.decode(DriverName::ContainerdDriver)
                    .unwrap_err()
                    .to_string()
                    .contains("volumes.allowed_paths")
            );
        }
    }

    #[test]
    fn selinuxlabel_is_refused() {
        let raw =
            |label: &str| Raw { enabled: None, allowed_paths: None, selinuxlabel: Some(label.to_owned()) };
        assert!(
            raw("Z")
                .decode(DriverName::ContainerdDriver)
                .unwrap_err()
                .to_string()
                .contains("volumes.selinuxlabel")
        );
        assert_eq!(raw("").decode(DriverName::ContainerdDriver).unwrap(), Volumes::default());
    }
}
