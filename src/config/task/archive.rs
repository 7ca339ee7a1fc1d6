//! The archive that a task's image is loaded from: `load`, or `image` where that is a path.

use std::path::{Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::plugin::{Access, ResolvedPath, TaskDirectory, Volumes};
use crate::config::{ConfigError, value};

/// Path of an archive to load the image from, instead of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Archive {
    /// Path relative to the task's `local` directory; `image` names the image in the archive.
    Load(PathBuf),
    /// Path of an archive with a single image.
    Image(PathBuf),
}

#[derive(Deserialize)]
pub(super) struct Raw {
    load: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("load", optional("load", "string"))]
}

/// Returns true if `image` is a path; no image name begins like one.
fn is_path(image: &str) -> bool {
    ["/", "./", "../"].iter().any(|beginning| image.starts_with(beginning))
}

impl Raw {
    pub(super) fn decode(self, image: &str) -> Result<Option<Archive>, ConfigError> {
        let Some(load) = self.load.filter(|path| !path.is_empty()) else {
            return Ok(is_path(image).then(|| Archive::Image(image.into())));
        };
        if is_path(image) {
            let why = "it is a path, and the option load is set as well; set image to the name of the image in the archive";
            return Err(value("image", image, why));
        }
        if load.starts_with('/') {
            let why = "it must be relative to the task's directory local (\"redis.tar\", as an artifact brings it); for an \
             archive elsewhere set the option image to its path";
            return Err(value("load", load, why));
        }
        Ok(Some(Archive::Load(load.into())))
    }
}

impl Archive {
    pub(crate) fn option(&self) -> &'static str {
        match self {
            Self::Load(_) => "load",
            Self::Image(_) => "image",
        }
    }

    /// Resolves the archive's path, under the same rules as the source of a mount; a path from `load` is relative to
    /// the task's `local`.
    ///
    /// # Errors
    /// Names the operator's option that forbids the path, or says what of the allocation directory is refused.
    pub(crate) fn resolved(
        &self,
        volumes: &Volumes,
        task: TaskDirectory<'_>,
    ) -> Result<ResolvedPath, ConfigError> {
        let path = match self {
            Self::Image(path) => path.clone(),
            Self::Load(path) => Path::new("local").join(path),
        };
        volumes.place(self.option(), &path, Access::Read, task)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    fn archive(image: &str, load: &str) -> Option<Archive> {
        decode(&json!({"image": image, "load": load})).unwrap().archive
    }

    #[test]
    fn an_image_that_starts_like_a_path_is_an_archive() {
        for name in ["redis", "local/redis.tar", "redis.tar", "localhost/a"] {
            assert_eq!(archive(name, ""), None, "{name}");
        }
        for path in ["/srv/redis.tar", "./local/redis.tar", "../alloc/data/redis.tar"] {
            assert_eq!(archive(path, ""), Some(Archive::Image(path.into())));
        }
    }

    const TASK: TaskDirectory<'_> = TaskDirectory { alloc_dir: "/nomad/a1", task: "web" };

    #[test]
    fn load_paths_are_relative_to_the_local_directory() {
        let resolved = |load: &str| archive("redis", load).unwrap().resolved(&Volumes::default(), TASK);
        let load = resolved("redis.tar").unwrap();
        assert_eq!((load.plain.as_path(), load.path.as_path()), ("web/local".as_ref(), "redis.tar".as_ref()));
        assert_eq!(resolved("../../alloc/data/x").unwrap().shown(), Path::new("/nomad/a1/alloc/data/x"));
        let error = resolved("../../../x").unwrap_err().to_string();
        assert!(error.contains("load") && error.contains("leads out"), "{error}");
        assert!(refusal("load", json!("/local/redis.tar")).contains("image"));
        let both = decode(&json!({"image": "./a.tar", "load": "a.tar"})).unwrap_err().to_string();
        assert!(both.contains("image") && both.contains("load"), "{both}");
    }

    #[test]
    fn archives_outside_the_allocation_need_permission() {
        let image = archive("/srv/redis.tar", "").unwrap();
        let closed = Volumes { enabled: false, ..Volumes::default() };
        let error = image.resolved(&closed, TASK).unwrap_err().to_string();
        assert!(error.contains("image") && error.contains("volumes.enabled"), "{error}");
        let own = archive("./local/redis.tar", "").unwrap();
        assert_eq!(own.resolved(&closed, TASK).unwrap().plain, PathBuf::from("web/local"));
    }
}
