//! The plugin block's `volumes { .. }`: what of the host a job may mount. What lies in its allocation's directory it
//! always may.

use std::path::{Component, Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, default, object, optional};
use crate::config::{ConfigError, forbidden, no_nulls, value};

/// Which paths of the host jobs may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volumes {
    pub enabled: bool,
    /// None given is all of the host.
    pub allowed_paths: Vec<PathBuf>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self { enabled: true, allowed_paths: Vec::new() }
    }
}

/// A path, and the directory that its links and its `..` must not lead out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub root: PathBuf,
    /// From there on.
    pub path: PathBuf,
    /// The root is the allocation's directory.
    pub is_allocations: bool,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    enabled: Option<bool>,
    allowed_paths: Option<Vec<Option<String>>>,
    selinuxlabel: Option<String>,
}

pub(super) fn schema() -> Spec {
    let options = object([
        ("enabled", default("enabled", "bool", "true")),
        ("allowed_paths", optional("allowed_paths", "list(string)")),
        ("selinuxlabel", optional("selinuxlabel", "string")),
    ]);
    block("volumes", options)
}

impl Raw {
    /// # Errors
    /// Names the option that can't have its value.
    pub(super) fn decode(self) -> Result<Volumes, ConfigError> {
        let Self { enabled, allowed_paths, selinuxlabel } = self;
        // Known from the docker driver's block: taken without an effect, it would leave the operator in a false belief.
        if let Some(label) = selinuxlabel.filter(|label| !label.is_empty()) {
            let why = "this driver sets no labels of SELinux; label the paths on the host (chcon -R -t container_file_t), \
                       and leave it out";
            return Err(value("volumes.selinuxlabel", label, why));
        }
        let option = "volumes.allowed_paths";
        let mut paths = Vec::new();
        for path in no_nulls(option, allowed_paths)? {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(value(option, path, "it must be an absolute path without \"..\""));
            }
            paths.push(PathBuf::from(path));
        }
        Ok(Volumes { enabled: enabled.unwrap_or(true), allowed_paths: paths })
    }
}

impl Volumes {
    /// Beneath what a path is to be looked for. Nothing is looked up: where the path's links lead is for the kernel to see.
    ///
    /// # Errors
    /// Names the operator's option that forbids it.
    pub(in crate::config) fn place(
        &self,
        option: &'static str,
        path: &Path,
        alloc_dir: &str,
        task_name: &str,
    ) -> Result<Placed, ConfigError> {
        let alloc = Path::new(alloc_dir);
        let in_allocation =
            |path: PathBuf| Placed { root: alloc.to_owned(), path: below(path), is_allocations: true };
        if path.is_relative() {
            return Ok(in_allocation(Path::new(task_name).join(path)));
        }
        if let Ok(rest) = path.strip_prefix(alloc) {
            return Ok(in_allocation(rest.to_owned()));
        }
        let shown = path.display().to_string();
        if !self.enabled {
            return Err(forbidden(option, &shown, "volumes.enabled", "enabled = true"));
        }
        if self.allowed_paths.is_empty() {
            let rest = path.strip_prefix("/").unwrap_or(path).to_owned();
            return Ok(Placed { root: "/".into(), path: below(rest), is_allocations: false });
        }
        let beneath =
            |root: &PathBuf| path.strip_prefix(root).ok().map(|rest| (root.clone(), rest.to_owned()));
        let narrowest =
            self.allowed_paths.iter().filter_map(beneath).max_by_key(|(root, _)| root.as_os_str().len());
        let (root, rest) = narrowest.ok_or_else(|| {
            let needed = format!("{shown:?} or a directory above it; it has {:?}", self.allowed_paths);
            forbidden(option, &shown, "volumes.allowed_paths", &needed)
        })?;
        Ok(Placed { root, path: below(rest), is_allocations: false })
    }
}

impl Placed {
    /// The directory of a volume that has no other: of the task's, named for where it is mounted.
    pub(in crate::config) fn own_volume(alloc_dir: &str, task_name: &str, target: &str) -> Self {
        // No two targets become one name.
        let name = target.trim_start_matches('/').replace('%', "%25").replace('/', "%2F");
        let path = Path::new(task_name).join("volumes").join(name);
        Self { root: alloc_dir.into(), path, is_allocations: true }
    }
}

/// A directory itself is named by a dot.
fn below(path: PathBuf) -> PathBuf {
    if path.components().all(|part| part == Component::CurDir) { ".".into() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(volumes: &Volumes, path: &str) -> Result<(String, String, bool), ConfigError> {
        let Placed { root, path, is_allocations } =
            volumes.place("mounts", Path::new(path), "/nomad/a1", "web")?;
        Ok((root.display().to_string(), path.display().to_string(), is_allocations))
    }

    fn is(root: &str, path: &str, is_allocations: bool) -> (String, String, bool) {
        (root.to_owned(), path.to_owned(), is_allocations)
    }

    #[test]
    fn the_allocations_own_paths_are_always_allowed() {
        let nothing = Volumes { enabled: false, allowed_paths: Vec::new() };
        let only = Volumes { enabled: true, allowed_paths: vec!["/srv".into()] };
        for volumes in [nothing, only, Volumes::default()] {
            assert_eq!(placed(&volumes, "local/x").unwrap(), is("/nomad/a1", "web/local/x", true));
            assert_eq!(placed(&volumes, "../alloc").unwrap(), is("/nomad/a1", "web/../alloc", true));
            assert_eq!(placed(&volumes, "/nomad/a1/alloc").unwrap(), is("/nomad/a1", "alloc", true));
            assert_eq!(placed(&volumes, "/nomad/a1").unwrap(), is("/nomad/a1", ".", true));
        }
    }

    #[test]
    fn the_hosts_paths_are_the_operators_to_allow() {
        let all = Volumes::default();
        assert_eq!(placed(&all, "/srv/x").unwrap(), is("/", "srv/x", false));
        assert_eq!(placed(&all, "/").unwrap(), is("/", ".", false));
        let nothing = Volumes { enabled: false, ..Volumes::default() };
        let error = placed(&nothing, "/nomad/a12").unwrap_err().to_string();
        assert!(error.contains("/nomad/a12") && error.contains("volumes.enabled"), "{error}");
        let roots = Volumes { enabled: true, allowed_paths: vec!["/srv".into(), "/srv/data/".into()] };
        assert_eq!(placed(&roots, "/srv").unwrap(), is("/srv", ".", false));
        assert_eq!(placed(&roots, "/srv/./data/x").unwrap(), is("/srv/data/", "x", false));
        // Which leads out, as the kernel will say.
        assert_eq!(placed(&roots, "/srv/../etc").unwrap(), is("/srv", "../etc", false));
        for path in ["/", "/srv2", "/etc/passwd", "/nomad"] {
            let error = placed(&roots, path).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("volumes.allowed_paths"), "{error}");
        }
    }

    #[test]
    fn each_volume_has_a_directory_of_its_own() {
        let path = |target: &str| Placed::own_volume("/a", "web", target).path.display().to_string();
        assert_eq!(path("/data"), "web/volumes/data");
        assert_eq!(path("/var/lib"), "web/volumes/var%2Flib");
        assert_ne!(path("/var%2Flib"), path("/var/lib"));
    }

    #[test]
    fn an_allowed_path_is_absolute() {
        for path in ["srv", "", "/srv/../etc"] {
            let allowed_paths = Some(vec![Some(path.to_owned())]);
            let raw = Raw { enabled: None, allowed_paths, selinuxlabel: None };
            assert!(raw.decode().unwrap_err().to_string().contains("volumes.allowed_paths"));
        }
    }

    #[test]
    fn a_label_that_would_not_be_set_is_refused() {
        let raw =
            |label: &str| Raw { enabled: None, allowed_paths: None, selinuxlabel: Some(label.to_owned()) };
        assert!(raw("Z").decode().unwrap_err().to_string().contains("volumes.selinuxlabel"));
        assert_eq!(raw("").decode().unwrap(), Volumes::default());
    }
}
