//! The options `mount` and `mounts`: a mount as a block. The keys are those of the Go driver, and of Nomad's docker
//! driver beside them.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::Value;

use super::fstab::{Fstab, is_propagation};
use super::{HostSource, JobMount, MountSource, NAMED_VOLUME, is_local_driver, short, target};
use crate::config::hclspec::{block, object, optional};
use crate::config::number::Number;
use crate::config::size::RawSize;
use crate::config::{ConfigError, DriverName, Warnings, reject_nulls, string_map, value};

/// Default options of a job's tmpfs: those of the Go driver, except what data in memory doesn't need.
const TMPFS_DEFAULTS: [&str; 2] = ["nosuid", "nodev"];
const MAX_MODE: i64 = 0o7777;

#[derive(Deserialize)]
pub(super) struct RawMount {
    r#type: Option<String>,
    target: Option<String>,
    source: Option<String>,
    options: Option<Vec<Option<String>>>,
    readonly: Option<bool>,
    bind_options: Option<RawBind>,
    tmpfs_options: Option<RawTmpfs>,
    volume_options: Option<RawVolume>,
}

#[derive(Deserialize)]
struct RawBind {
    propagation: Option<String>,
}

#[derive(Deserialize)]
struct RawTmpfs {
    size: Option<RawSize>,
    mode: Option<Number>,
}

#[derive(Deserialize)]
struct RawVolume {
    no_copy: Option<bool>,
    labels: Option<Value>,
    driver_config: Option<RawDriver>,
}

#[derive(Deserialize)]
struct RawDriver {
    name: Option<String>,
    options: Option<Value>,
}

pub(super) fn schema() -> Spec {
    let driver = object([("name", optional("name", "string")), ("options", string_map::schema("options"))]);
    let volume = object([
        ("no_copy", optional("no_copy", "bool")),
        ("labels", string_map::schema("labels")),
        ("driver_config", block("driver_config", driver)),
    ]);
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
        ("volume_options", block("volume_options", volume)),
    ])
}

impl RawMount {
    /// Decodes a mount of the block `option`. Options for mounts of another type than this one's have no effect, as
    /// under docker.
    ///
    /// # Errors
    /// Says what is invalid in the mount.
    pub(super) fn decode(
        self,
        option: &'static str,
        driver: DriverName,
        warnings: &mut Warnings,
    ) -> Result<JobMount, ConfigError> {
        let Self { r#type, target, source, options, readonly, bind_options, tmpfs_options, volume_options } =
            self;
        let target = target::decode(option, target)?;
        let refuse =
            |what: &str, why: &str| Err(value(option, what, format!("in the mount at {target}: {why}")));
        let kind = r#type.filter(|kind| !kind.is_empty()).unwrap_or_else(|| "volume".to_owned());
        let source = source.filter(|source| !source.is_empty());
        let mut list = reject_nulls(option, options)?;
        let mut of_others = |name: &str, is_given: bool, kinds: &[&str]| {
            if is_given && !kinds.contains(&kind.as_str()) {
                let kinds = kinds.join(" or ");
                warnings.add(option, format!("the mount at {target} has {name}, which only a {kinds} has"));
            }
        };
        // A volume of docker's without a name has none.
        let has_bind: &[&str] =
            if driver.is_docker() && source.is_none() { &["bind"] } else { &["bind", "volume"] };
        of_others("bind_options", bind_options.is_some(), has_bind);
        of_others("tmpfs_options", tmpfs_options.is_some(), &["tmpfs"]);
        of_others("volume_options", volume_options.is_some(), &["volume"]);
        let volume_options = volume_options.filter(|_| kind == "volume");
        let is_filled = volume_options.as_ref().and_then(|volume| volume.no_copy) != Some(true);
        if let Some(volume) = volume_options {
            volume.check(option, &target, warnings)?;
        }
        let bind_options = bind_options.filter(|_| has_bind.contains(&kind.as_str()));
        let tmpfs_options = tmpfs_options.filter(|_| kind == "tmpfs");
        let says_how = !list.is_empty();
        if let Some(readonly) = readonly {
            list.push(if readonly { "ro" } else { "rw" }.to_owned());
        }
        let propagation = bind_options.and_then(|options| options.propagation);
        if let Some(propagation) = propagation.filter(|propagation| !propagation.is_empty()) {
            if !is_propagation(&propagation) {
                return refuse(
                    &propagation,
                    "a propagation must be private, rprivate, slave, rslave, shared or rshared",
                );
            }
            list.push(propagation);
        }
        if let Some(RawTmpfs { size, mode }) = tmpfs_options {
            let size = size.map(|size| size.bytes_unless_zero(option)).transpose()?.flatten();
            list.extend(size.map(|size| format!("size={size}")));
            let mode = mode.map(|mode| mode.within(option, 0, MAX_MODE)).transpose()?;
            list.extend(mode.filter(|mode| *mode != 0).map(|mode| format!("mode={mode:o}")));
        }
        if kind == "volume" && source.is_none() && driver.is_docker() {
            drop_propagations(option, &target, &mut list, warnings);
        }
        let is_listed = list.iter().any(|given| matches!(given.as_str(), "bind" | "rbind"));
        let options = Fstab::new(option, &target, list)?;
        let (source, options) = match (kind.as_str(), source) {
            ("tmpfs", Some(source)) if source != "tmpfs" => return refuse(&source, "a tmpfs has no source"),
            ("tmpfs", _) => (MountSource::Memory, options.of_tmpfs(tmpfs_defaults(driver))?),
            ("volume", None) if !is_listed && driver.is_docker() => {
                (MountSource::Anonymous { is_filled }, options.of_bind()?)
            }
            ("volume", None) if !is_listed => (MountSource::Volume, options.of_bind()?),
            ("bind" | "volume", None) => return refuse("", "a bind needs a source, a path on the host"),
            ("volume", Some(name)) if !name.starts_with('/') && !is_listed => {
                return refuse(&name, NAMED_VOLUME);
            }
            ("bind" | "volume", Some(path)) => {
                // Docker's form may leave out the access mode, which then is read and write.
                if says_how {
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

/// Drops the propagations from the options of a volume without a name: it is a part of the container, and no mount of
/// the host's is to propagate to it or from it.
fn drop_propagations(option: &'static str, target: &str, list: &mut Vec<String>, warnings: &mut Warnings) {
    for dropped in list.extract_if(.., |word| is_propagation(word)) {
        warnings.add(
            option,
            format!("the mount at {target} has {dropped}, which a volume without a name has not"),
        );
    }
}

impl RawVolume {
    /// Checks the options of a volume, which goes with the container or with the allocation.
    fn check(self, option: &'static str, target: &str, warnings: &mut Warnings) -> Result<(), ConfigError> {
        let Self { no_copy: _, labels, driver_config } = self;
        if !string_map::decode(option, labels)?.is_empty() {
            let why = format!("the volume at {target} has labels, and here a volume has none");
            warnings.add(option, why);
        }
        let Some(RawDriver { name, options }) = driver_config else { return Ok(()) };
        is_local_driver(option, name)?;
        match string_map::decode(option, options)?.into_iter().next() {
            None => Ok(()),
            Some((name, text)) => {
                let why = "a volume has no options of a volume driver; use Nomad's volume and volume_mount, or mount on the \
                           host and set type = \"bind\"";
                Err(value(option, format!("{name} = {:?}", text.unwrap_or_default()), why))
            }
        }
    }
}

/// Returns the options that a tmpfs has unless it says otherwise.
fn tmpfs_defaults(driver: DriverName) -> &'static [&'static str] {
    if driver.is_docker() { &short::TMPFS_DEFAULTS } else { &TMPFS_DEFAULTS }
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
    use crate::config::task::tests::{decode, decode_as, refusal};

    fn one(option: &str, mount: &Value) -> JobMount {
        one_as(DriverName::ContainerdDriver, option, mount)
    }

    fn one_as(driver: DriverName, option: &str, mount: &Value) -> JobMount {
        let mut options = json!({});
        options[option] = json!([mount]);
        mounts(driver, options).remove(0)
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
        for options in [json!(null), json!([])] {
            assert_eq!(one("mounts", &bind(options)).options.join(","), "rbind,rprivate", "docker's form");
        }
        for options in [json!(["ro"]), json!(["rbind"]), json!(["rw", "nosuid"])] {
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
    }

    #[test]
    fn under_dockers_name_a_volume_without_a_source_is_filled_unless_it_says_no_copy() {
        let docker = DriverName::Docker;
        let of = |more: Value| {
            let mut mount = json!({"type": "volume", "target": "/t"});
            mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            one_as(docker, "mount", &mount)
        };
        for (more, is_filled) in [
            (json!({}), true),
            (json!({"volume_options": {"no_copy": false}}), true),
            (json!({"volume_options": {"no_copy": true}}), false),
        ] {
            assert_eq!(of(more).source, MountSource::Anonymous { is_filled });
        }
        assert_eq!(of(json!({"readonly": true})).options.join(","), "rbind,ro,rprivate");
        let bound = json!({"target": "/t", "bind_options": {"propagation": "rslave"}});
        let taken = decode_as(docker, &json!({"image": "x", "mount": [bound]})).unwrap();
        assert_eq!(taken.mounts.list[0].options.join(","), "rbind,rprivate");
        assert_eq!(taken.warnings.options(), ["mount"]);
        let shared = json!({"target": "/t", "options": ["rshared", "noexec"]});
        let taken = decode_as(docker, &json!({"image": "x", "mount": [shared]})).unwrap();
        assert_eq!(taken.mounts.list[0].options.join(","), "rbind,noexec,rprivate");
        assert!(taken.warnings.to_string().contains("rshared"), "{}", taken.warnings);
        let path = one_as(docker, "mount", &json!({"target": "/t", "source": "/s"}));
        assert_eq!(path.source, host("/s"));
    }

    #[test]
    fn volume_options_have_no_effect_or_are_refused() {
        let decoded = |options: Value| {
            let mount = json!({"target": "/t", "volume_options": options});
            decode(&json!({"image": "x", "mount": [mount]}))
        };
        let quiet = json!({"no_copy": true, "labels": [], "driver_config": {"name": "local", "options": {}}});
        assert!(decoded(quiet).unwrap().warnings.is_empty());
        assert_eq!(decoded(json!({"labels": [{"a": "b"}]})).unwrap().warnings.options(), ["mount"]);
        for (driver, words) in [
            (json!({"name": "pxd"}), ["pxd", "CSI"]),
            (json!({"name": "local", "options": [{"device": ":/nfs"}]}), ["device", "type = \"bind\""]),
        ] {
            let error = decoded(json!({"driver_config": driver})).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn options_of_mounts_of_another_type_have_no_effect() {
        for (mount, words) in [
            (
                json!({"type": "tmpfs", "target": "/t", "bind_options": {"propagation": "rslave"}}),
                "bind_options",
            ),
            (json!({"target": "/t", "tmpfs_options": {"mode": 511}}), "tmpfs_options"),
            (json!({"type": "tmpfs", "target": "/t", "volume_options": {"no_copy": true}}), "volume_options"),
        ] {
            let options = decode(&json!({"image": "x", "mount": [mount]})).unwrap();
            let texts: Vec<_> = options.warnings.texts().collect();
            assert!(texts.len() == 1 && texts[0].contains("/t") && texts[0].contains(words), "{texts:?}");
            assert!(!options.mounts.list[0].options.iter().any(|option| option == "rslave"));
        }
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
        assert_eq!(bind(json!({"bind_options": {"propagation": ""}})), "rbind,rprivate");
        let unset = json!({"type": "tmpfs", "target": "/t", "tmpfs_options": {"size": 0, "mode": 0}});
        assert_eq!(one("mount", &unset).options.join(","), "nodev,nosuid");
        refused(&json!({"type": "tmpfs", "target": "/t", "tmpfs_options": {"mode": 4096}}));
        refused(&json!({"target": "/t", "bind_options": {"propagation": "up"}}));
        refused(&json!({"target": "/t", "readonly": true, "options": ["rw"]}));
    }

    #[test]
    fn under_dockers_name_a_tmpfs_has_dockers_defaults() {
        let of = |more: Value| {
            let mut mount = json!({"type": "tmpfs", "target": "/t"});
            mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            one_as(DriverName::Docker, "mount", &mount).options.join(",")
        };
        assert_eq!(of(json!({})), "noexec,nodev,nosuid");
        assert_eq!(of(json!({"readonly": true})), "noexec,nodev,nosuid,ro");
        assert_eq!(of(json!({"options": ["exec"]})), "nodev,nosuid,exec");
    }

    #[test]
    fn the_list_of_mounts_has_dockers_form_as_well() {
        for driver in [DriverName::ContainerdDriver, DriverName::Docker] {
            let of = |mount: &Value| one_as(driver, "mounts", mount);
            let bind = of(&json!({"type": "bind", "source": "local", "target": "/v1"}));
            assert_eq!((bind.source, bind.options.join(",")), (host("local"), "rbind,rprivate".to_owned()));
            let much = json!({
                "type": "bind", "source": "/s", "target": "/t", "readonly": true,
                "bind_options": {"propagation": "rslave"}, "tmpfs_options": null, "volume_options": null,
            });
            assert_eq!(of(&much).options.join(","), "rbind,ro,rslave");
        }
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
