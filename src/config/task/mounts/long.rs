//! The options `mount` and `mounts`: a mount as a block. The keys are those of the Go driver, and of Nomad's docker
//! driver beside them.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::fstab::{Fstab, is_propagation};
use super::{HostSource, JobMount, MountSource, target};
use crate::config::hclspec::{block, object, optional};
use crate::config::size::RawSize;
use crate::config::{ConfigError, reject_nulls, value};

/// Default options of a job's tmpfs: those of the Go driver, except what data in memory doesn't need.
const TMPFS_DEFAULTS: [&str; 2] = ["nosuid", "nodev"];

#[derive(Deserialize)]
pub(super) struct RawMount {
    r#type: Option<String>,
    target: Option<String>,
    source: Option<String>,
    options: Option<Vec<Option<String>>>,
    readonly: Option<bool>,
    bind_options: Option<RawBind>,
    tmpfs_options: Option<RawTmpfs>,
}

#[derive(Deserialize)]
struct RawBind {
    propagation: Option<String>,
}

#[derive(Deserialize)]
struct RawTmpfs {
    size: Option<RawSize>,
    mode: Option<u32>,
}

pub(super) fn schema() -> Spec {
    object([
        ("type", optional("type", "string")),
        ("target", optional("target", "string")),
        ("source", optional("source", "string")),
        ("options", optional("options", "list(string)")),
        ("readonly", optional("readonly", "bool")),
        ("bind_options", block("bind_options", object([("propagation", optional("propagation", "string"))]))),
        (
            "tmpfs_options",
            block(
                "tmpfs_options",
                object([("size", optional("size", "string")), ("mode", optional("mode", "number"))]),
            ),
        ),
    ])
}

impl RawMount {
    /// Decodes a mount of the block `option`.
    ///
    /// # Errors
    /// Says what is invalid in the mount.
    pub(super) fn decode(self, option: &'static str) -> Result<JobMount, ConfigError> {
        let Self { r#type, target, source, options, readonly, bind_options, tmpfs_options } = self;
        let target = target::decode(option, target)?;
        let refuse =
            |what: &str, why: &str| Err(value(option, what, format!("in the mount at {target}: {why}")));
        let kind = r#type.filter(|kind| !kind.is_empty()).unwrap_or_else(|| "volume".to_owned());
        let source = source.filter(|source| !source.is_empty());
        let mut list = reject_nulls(option, options)?;
        if bind_options.is_some() && kind == "tmpfs" {
            return refuse("bind_options", "only a mount of type bind or volume has them");
        }
        if tmpfs_options.is_some() && kind != "tmpfs" {
            return refuse("tmpfs_options", "only a mount of type tmpfs has them");
        }
        let says_how = !list.is_empty() || readonly.is_some();
        if let Some(readonly) = readonly {
            list.push(if readonly { "ro" } else { "rw" }.to_owned());
        }
        if let Some(propagation) = bind_options.and_then(|options| options.propagation) {
            if !is_propagation(&propagation) {
                return refuse(
                    &propagation,
                    "a propagation must be private, rprivate, slave, rslave, shared or rshared",
                );
            }
            list.push(propagation);
        }
        if let Some(RawTmpfs { size, mode }) = tmpfs_options {
            if let Some(size) = size {
                list.push(format!("size={}", size.bytes(option)?));
            }
            list.extend(mode.map(|mode| format!("mode={mode:o}")));
        }
        let is_listed = list.iter().any(|given| matches!(given.as_str(), "bind" | "rbind"));
        let options = Fstab::new(option, &target, list)?;
        let (source, options) = match (kind.as_str(), source) {
            ("tmpfs", None) => (MountSource::Memory, options.of_tmpfs(&TMPFS_DEFAULTS)?),
            ("tmpfs", Some(source)) if source == "tmpfs" => {
                (MountSource::Memory, options.of_tmpfs(&TMPFS_DEFAULTS)?)
            }
            ("tmpfs", Some(source)) => return refuse(&source, "a tmpfs has no source"),
            ("volume", None) if !is_listed => (MountSource::Volume, options.of_bind()?),
            ("bind" | "volume", None) => return refuse("", "a bind needs a source, a path on the host"),
            ("volume", Some(name)) if !name.starts_with('/') && !is_listed => {
                let why = "a named volume would outlive the allocation: use Nomad's volume and volume_mount; for a path on the \
                 host set type = \"bind\"; without a source the volume is the allocation's";
                return refuse(&name, why);
            }
            ("bind" | "volume", Some(path)) => {
                // Docker's `mount` may leave out the access mode, which then is read and write.
                if says_how || option == "mounts" {
                    require_access(&options, readonly.is_some(), is_listed)?;
                }
                let source = HostSource { path: path.into(), is_made: false, is_labelled: false };
                (MountSource::Host(source), options.of_bind()?)
            }
            (other, _) => return refuse(other, "the type must be volume, bind or tmpfs"),
        };
        Ok(JobMount { option, target, source, options })
    }
}

/// Requires that a bind in the Go driver's form says both that it is one, and whether it is writable.
fn require_access(options: &Fstab, has_readonly: bool, is_listed: bool) -> Result<(), ConfigError> {
    let says_access = options.has("ro") || options.has("rw");
    if says_access && (is_listed || has_readonly) {
        return Ok(());
    }
    let why = "a bind needs options = [\"rbind\", \"ro\"], or \"rw\" in place of \"ro\"";
    Err(options.refusal("options", why))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::task::mounts::tests::mounts;
    use crate::config::task::tests::refusal;

    fn one(option: &str, mount: &Value) -> JobMount {
        let mut options = json!({});
        options[option] = json!([mount]);
        mounts(options).remove(0)
    }

    fn refused(mount: &Value) -> String {
        refusal("mounts", json!([mount]))
    }

    fn host(path: &str) -> MountSource {
        MountSource::Host(HostSource { path: path.into(), is_made: false, is_labelled: false })
    }

    #[test]
    fn mount_blocks_decode_binds() {
        let bind =
            |options: Value| json!({"type": "bind", "target": "/t", "source": "/s", "options": options});
        let made = one("mounts", &bind(json!(["rbind", "ro"])));
        assert_eq!((made.source, made.options.join(",")), (host("/s"), "rbind,ro,rprivate".to_owned()));
        for options in [json!(null), json!([]), json!(["ro"]), json!(["rbind"]), json!(["rw", "nosuid"])] {
            let error = refused(&bind(options));
            assert!(error.contains("/t") && error.contains("\"rbind\", \"ro\""), "{error}");
        }
        assert!(
            refused(&json!({"type": "bind", "target": "/t", "options": ["rbind", "ro"]})).contains("source")
        );
        assert!(refused(&bind(json!(["rbind", "ro", null]))).contains("null"));
        assert!(
            refused(&json!({"type": "bind", "source": "/s", "options": ["rbind", "ro"]})).contains("target")
        );
    }

    #[test]
    fn mount_blocks_decode_volumes() {
        assert_eq!(one("mounts", &json!({"target": "/t"})).source, MountSource::Volume);
        let made = one("mounts", &json!({"target": "/t", "source": "/s", "options": ["rbind", "rw"]}));
        assert_eq!(made.source, host("/s"));
        let made = one("mounts", &json!({"target": "/t", "source": "local/s", "options": ["rbind", "rw"]}));
        assert_eq!(made.source, host("local/s"));
        let error = refused(&json!({"type": "volume", "target": "/t", "source": "cache"}));
        assert!(error.contains("cache") && error.contains("volume_mount"), "{error}");
        refused(&json!({"type": "volume", "target": "/t", "source": "/s"}));
    }

    #[test]
    fn docker_keys_of_mount_blocks_are_supported() {
        let bind = |more: Value| {
            let mut mount = json!({"type": "bind", "target": "/t", "source": "/s"});
            mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            one("mount", &mount).options.join(",")
        };
        assert_eq!(bind(json!({})), "rbind,rprivate");
        assert_eq!(bind(json!({"readonly": true})), "rbind,ro,rprivate");
        assert_eq!(bind(json!({"bind_options": {"propagation": "rslave"}})), "rbind,rslave");
        let tmpfs = json!({"type": "tmpfs", "target": "/t", "tmpfs_options": {"size": 4096, "mode": 511}});
        assert_eq!(one("mount", &tmpfs).options.join(","), "nodev,nosuid,size=4096,mode=777");
        refused(&json!({"type": "tmpfs", "target": "/t", "bind_options": {"propagation": "rslave"}}));
        refused(&json!({"target": "/t", "tmpfs_options": {"mode": 511}}));
        refused(&json!({"target": "/t", "bind_options": {"propagation": "up"}}));
        refused(&json!({"target": "/t", "readonly": true, "options": ["rw"]}));
    }

    #[test]
    fn a_tmpfs_has_no_source() {
        let tmpfs = |source: Value| json!({"type": "tmpfs", "target": "/t", "source": source, "options": ["mode=700"]});
        for source in [json!(null), json!(""), json!("tmpfs")] {
            let made = one("mounts", &tmpfs(source));
            assert_eq!(
                (made.source, made.options.join(",")),
                (MountSource::Memory, "nodev,nosuid,mode=700".to_owned())
            );
        }
        assert!(refused(&tmpfs(json!("/srv"))).contains("/srv"));
        assert!(refused(&json!({"type": "overlay", "target": "/t"})).contains("overlay"));
    }
}
