//! Mounts that a job asks for, beside those of every container and of Nomad: `mounts`, `mount`, `volumes`, `tmpfs` and
//! `shm_size`; and `image_volumes`, about those that its image asks for.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/config.go`, for the names; opencontainers/runc
//! `libcontainer/specconv/spec_linux.go`, for the options that a runtime reads.

mod fstab;
mod long;
mod short;
mod target;

use std::collections::HashSet;
use std::path::PathBuf;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block_list, optional};
use crate::config::plugin::{Access, ResolvedPath, TaskDirectory, Volumes};
use crate::config::size::RawSize;
use crate::config::{ConfigError, DriverName, Warnings, reject_nulls, value};

/// Maximum number of a job's own mounts. The source of each is held open by a descriptor while the image is pulled, and
/// the plugin's descriptors are shared by all tasks of the node.
const COUNT_LIMIT: usize = 256;

/// The options about a task's mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mounts {
    /// The mounts, with distinct targets.
    pub list: Vec<JobMount>,
    /// Size of `/dev/shm` in bytes; `None` is the default.
    pub shm_size_bytes: Option<u64>,
    pub image_volumes: ImageVolumes,
}

/// What becomes of the volumes that the image declares. The words are podman's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ImageVolumes {
    /// A fresh volume each, which ends with the task.
    #[default]
    Anonymous,
    Ignore,
}

/// A mount that a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobMount {
    /// Name of the option that asks for the mount.
    pub option: &'static str,
    /// Absolute path in the container, in its shortest form.
    pub target: String,
    pub source: MountSource,
    /// Mount options in the form that runtimes read.
    pub options: Vec<String>,
}

/// The source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountSource {
    Host(HostSource),
    /// A directory of the allocation, made for the mount.
    Volume,
    /// A volume as docker's without a name: made for one container, and gone with it. `is_filled` is whether it has at first
    /// what the image has there.
    Anonymous {
        is_filled: bool,
    },
    Memory,
}

/// A file or directory of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostSource {
    /// Path as in the job. A relative one is in the task's directory.
    pub path: PathBuf,
    /// `true` to create a missing directory: in the allocation directory, and under docker's name on the host.
    pub is_made: bool,
    /// Whether the job asks for an SELinux label.
    pub is_labelled: bool,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    mount: Option<Vec<long::RawMount>>,
    mounts: Option<Vec<long::RawMount>>,
    volumes: Option<Vec<Option<String>>>,
    volume_driver: Option<String>,
    tmpfs: Option<Vec<Option<String>>>,
    shm_size: Option<RawSize>,
    image_volumes: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("mount", block_list("mount", long::schema())),
        ("mounts", block_list("mounts", long::schema())),
        ("volumes", optional("volumes", "list(string)")),
        ("volume_driver", optional("volume_driver", "string")),
        ("tmpfs", optional("tmpfs", "list(string)")),
        // A number in the job arrives as a string.
        ("shm_size", optional("shm_size", "string")),
        ("image_volumes", optional("image_volumes", "string")),
    ]
}

impl Raw {
    pub(super) fn decode(self, driver: DriverName, warnings: &mut Warnings) -> Result<Mounts, ConfigError> {
        let Self { mount, mounts, volumes, volume_driver, tmpfs, shm_size, image_volumes } = self;
        let has_driver = is_local_driver("volume_driver", volume_driver)?;
        let mut list = Vec::new();
        for (option, raw) in [("mounts", mounts), ("mount", mount)] {
            for raw in raw.unwrap_or_default() {
                list.push(raw.decode(option, driver, warnings)?);
            }
        }
        for text in reject_nulls("volumes", volumes)? {
            list.push(short::volume(&text, has_driver)?);
        }
        for text in reject_nulls("tmpfs", tmpfs)? {
            list.push(short::tmpfs(&text)?);
        }
        if list.len() > COUNT_LIMIT {
            let why = format!("a task can have at most {COUNT_LIMIT}, counting mount, volumes and tmpfs");
            return Err(value("mounts", list.len().to_string(), why));
        }
        let mut targets = HashSet::new();
        for mount in &list {
            target::check(mount.option, &mount.target)?;
            if !targets.insert(&mount.target) {
                return Err(mount.refusal("another mount has this target; choose another one"));
            }
        }
        let shm_size_bytes = shm_size.map(|size| size.bytes_unless_zero("shm_size")).transpose()?.flatten();
        if shm_size_bytes.is_some()
            && let Some(shm) = list.iter().find(|mount| mount.target == "/dev/shm")
        {
            return Err(shm.refusal("the option shm_size is set as well; leave out one of them"));
        }
        let image_volumes = match image_volumes.as_deref().unwrap_or_default() {
            "" | "anonymous" => ImageVolumes::Anonymous,
            "ignore" => ImageVolumes::Ignore,
            other => {
                let why = "it must be \"anonymous\" (a fresh volume for each VOLUME of the image, the default) or \"ignore\"";
                return Err(value("image_volumes", other, why));
            }
        };
        Ok(Mounts { list, shm_size_bytes, image_volumes })
    }
}

/// The reason that a volume with a name is refused, and the way out.
const NAMED_VOLUME: &str = "a named volume would outlive the allocation: use Nomad's volume and volume_mount; for a path \
                            on the host set type = \"bind\"; without a source the volume is the allocation's";

/// Decodes the name of a volume driver, and returns whether there is one. Docker's own, `local`, needs no plugin.
///
/// # Errors
/// Names the option of another driver, whose plugins need docker's daemon.
fn is_local_driver(option: &'static str, driver: Option<String>) -> Result<bool, ConfigError> {
    match driver.unwrap_or_default() {
        driver if driver.is_empty() => Ok(false),
        driver if driver == "local" => Ok(true),
        driver => {
            let why = "docker's volume plugins are not run; use Nomad's volume and volume_mount, with a host volume or a CSI \
                       plugin of the storage";
            Err(value(option, driver, why))
        }
    }
}

impl Mounts {
    /// Resolves the host path of each mount that has one. `taken` lists the targets of the job's `volume_mount` blocks
    /// and of devices, where nothing else may be mounted.
    ///
    /// # Errors
    /// Names the mount that the operator does not allow, or whose target is taken.
    pub(crate) fn resolved<'a>(
        &self,
        volumes: &Volumes,
        task: TaskDirectory<'_>,
        taken: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<(&JobMount, ResolvedPath)>, ConfigError> {
        let taken: HashSet<String> = taken.map(target::shortest).collect();
        let mut resolved = Vec::new();
        for mount in &self.list {
            if taken.contains(&mount.target) {
                return Err(mount.refusal("a volume_mount of the job, or a device, is mounted there"));
            }
            match &mount.source {
                MountSource::Host(source) => {
                    let access = if mount.is_read_only() { Access::Read } else { Access::Write };
                    resolved.push((mount, volumes.place(mount.option, &source.path, access, task)?));
                }
                MountSource::Volume => {
                    resolved.push((mount, ResolvedPath::own_volume(task, &mount.target)));
                }
                MountSource::Anonymous { .. } | MountSource::Memory => {}
            }
        }
        Ok(resolved)
    }
}

impl JobMount {
    fn refusal(&self, why: &str) -> ConfigError {
        value(self.option, self.target.clone(), why)
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// Returns the mount's propagation mode, if it sets one.
    pub(crate) fn propagation(&self) -> Option<&str> {
        let named = |option: &&String| fstab::PROPAGATION.contains(&option.as_str());
        self.options.iter().find(named).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::task::tests::{decode, decode_as, refusal};

    pub(super) fn mounts(driver: DriverName, options: Value) -> Vec<JobMount> {
        let mut options = options;
        options["image"] = json!("redis");
        decode_as(driver, &options).unwrap().mounts.list
    }

    #[test]
    fn a_target_is_mounted_once() {
        let twice = json!([{"type": "tmpfs", "target": "/a"}, {"type": "tmpfs", "target": "/a/"}]);
        assert!(refusal("mounts", twice).contains("\"/a\""));
        let over_two = json!({"image": "x", "tmpfs": ["/a"], "volumes": ["/srv:/a"]});
        assert!(decode(&over_two).unwrap_err().to_string().contains("tmpfs"));
        let shm = json!({"image": "x", "tmpfs": ["/dev/shm"], "shm_size": "1m"});
        assert!(decode(&shm).unwrap_err().to_string().contains("shm_size"));
    }

    #[test]
    fn targets_of_nomads_mounts_are_refused() {
        let task = TaskDirectory { alloc_dir: "/a", task: "web" };
        let place = |more: Value, taken: &[&str]| {
            let mut config = json!({"image": "x"});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let mounts = decode(&config).unwrap().mounts;
            let resolved = mounts.resolved(&Volumes::default(), task, taken.iter().copied());
            resolved.map(|resolved| resolved.len())
        };
        assert_eq!(place(json!({"tmpfs": ["/data"]}), &["/other"]).unwrap(), 0);
        // A second mount at the same target is refused, be it one of the job's or of Nomad's.
        for (more, option) in [
            (json!({"tmpfs": ["/data"]}), "tmpfs"),
            (json!({"tmpfs": ["/scratch", "/data"]}), "tmpfs"),
            (json!({"volumes": ["local/a:/a", "local/b:/data"]}), "volumes"),
            (json!({"volumes": ["local/a:/a"], "tmpfs": ["/b", "/c", "/data"]}), "tmpfs"),
        ] {
            let error = place(more, &["/other", "/data/"]).unwrap_err().to_string();
            assert!(
                error.contains(option) && error.contains("/data") && error.contains("volume_mount"),
                "{error}"
            );
        }
    }

    #[test]
    fn logs_can_be_mounted_read_only() {
        let task = TaskDirectory { alloc_dir: "/a", task: "web" };
        let place = |volume: &str| {
            let mounts = decode(&json!({"image": "x", "volumes": [volume]})).unwrap().mounts;
            let resolved = mounts.resolved(&Volumes::default(), task, std::iter::empty());
            resolved
                .map(|resolved| resolved[0].1.shown().display().to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(place("../alloc/logs:/logs:ro"), Ok("/a/alloc/logs".to_owned()));
        assert!(place("../alloc/logs:/logs").unwrap_err().contains("Nomad writes the logs"));
        assert_eq!(place("../alloc/data:/data"), Ok("/a/alloc/data".to_owned()));
        assert_eq!(place("/data"), Ok("/a/web/volumes/data".to_owned()));
    }

    #[test]
    fn the_number_of_mounts_is_limited() {
        let decode = |count: usize| {
            let (tmpfs, volumes): (Vec<_>, Vec<_>) =
                (0..count).map(|n| (format!("/t{n}"), format!("local/v{n}:/v{n}"))).unzip();
            decode(&json!({"image": "x", "tmpfs": tmpfs, "volumes": volumes}))
        };
        decode(COUNT_LIMIT / 2).unwrap();
        let error = decode(COUNT_LIMIT / 2 + 1).unwrap_err().to_string();
        assert!(error.contains("258") && error.contains("256"), "{error}");
    }

    #[test]
    fn the_size_of_shared_memory_is_a_number_or_a_text() {
        let size =
            |value: Value| decode(&json!({"image": "x", "shm_size": value})).unwrap().mounts.shm_size_bytes;
        assert_eq!(size(json!(null)), None);
        assert_eq!(size(json!(1024)), Some(1024));
        assert_eq!(size(json!("128m")), Some(128 << 20));
        assert_eq!(size(json!(0)), None, "docker's word for the default");
        refusal("shm_size", json!("big"));
        refusal("shm_size", json!("-1"));
    }

    #[test]
    fn docker_volume_plugins_are_refused() {
        let with_driver = |driver: &str, volume: &str| {
            decode(&json!({"image": "x", "volume_driver": driver, "volumes": [volume]}))
                .map(|options| options.mounts.list.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(with_driver("", "name:/data"), Ok(1), "a path in the task's directory");
        assert_eq!(with_driver("local", "/srv/data:/data"), Ok(1));
        let error = with_driver("local", "name:/data").unwrap_err();
        assert!(error.contains("volumes") && error.contains("volume_mount"), "{error}");
        let error = with_driver("pxd", "/srv/data:/data").unwrap_err();
        assert!(error.contains("volume_driver") && error.contains("pxd") && error.contains("CSI"), "{error}");
    }
}
