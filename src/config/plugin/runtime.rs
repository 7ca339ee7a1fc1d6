//! The plugin block's options about runtimes: `allow_runtimes`, the runtimes that a job may choose, which run as root
//! on the host; and `runtime_options`, options that are passed to their shims.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block_list, default, object, optional, required};
use crate::config::{ConfigError, DriverName, forbidden, reject_nulls, runtime, value};

/// Default of `allow_runtimes`: names that are looked for in the operator's own directories only.
const DEFAULT: &str = r#"["io.containerd.runc.v2", "runc", "crun"]"#;

/// The default under docker's name: that of its driver.
const DOCKERS: &str = r#"["runc", "nvidia"]"#;

/// The runtimes, by name or path, that jobs may choose beside those that the plugin is configured with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllowRuntimes(Vec<String>);

pub(super) fn schema(name: DriverName) -> Spec {
    default("allow_runtimes", "list(string)", name.either(DEFAULT, DOCKERS))
}

pub(super) fn decode(
    name: DriverName,
    raw: Option<Vec<Option<String>>>,
) -> Result<AllowRuntimes, ConfigError> {
    let well_known = || serde_json::from_str(name.either(DEFAULT, DOCKERS)).unwrap_or_default();
    reject_nulls("allow_runtimes", Some(raw.unwrap_or_else(well_known))).map(AllowRuntimes)
}

impl AllowRuntimes {
    /// Checks that the runtime `name` is in the list.
    ///
    /// # Errors
    /// Names the operator's option that does not list it.
    pub(in crate::config) fn permit(&self, option: &'static str, name: &str) -> Result<(), ConfigError> {
        if self.lists(name) {
            return Ok(());
        }
        Err(forbidden(option, name, "allow_runtimes", &format!("{name:?}")))
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    fn lists(&self, name: &str) -> bool {
        self.0.iter().any(|one| one == name)
    }
}

/// Options that a runtime's shim is passed for each container. The names are those of containerd's own configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RuntimeOptions {
    /// Type URL of the options: of a message of the shim's own, or of the content of the file.
    pub type_url: Option<String>,
    /// Path of a file that the shim reads.
    pub config_path: Option<PathBuf>,
}

#[derive(Deserialize)]
pub(super) struct RawOptions {
    runtime: Option<String>,
    type_url: Option<String>,
    config_path: Option<String>,
}

pub(super) fn options_schema() -> Spec {
    let names = ["type_url", "config_path"].map(|name| (name, optional(name, "string")));
    block_list(
        "runtime_options",
        object(names.into_iter().chain([("runtime", required("runtime", "string"))])),
    )
}

/// Decodes the options by runtime, which is written as in `containerd_runtime` or a job's `runtime`.
///
/// # Errors
/// Names the option of a block that is invalid, or that no task could use.
pub(super) fn decode_options(
    blocks: Option<Vec<RawOptions>>,
    containerd_runtime: &str,
    allowed: &AllowRuntimes,
) -> Result<BTreeMap<String, RuntimeOptions>, ConfigError> {
    const RUNTIME: &str = "runtime_options.runtime";
    let mut all = BTreeMap::new();
    for RawOptions { runtime: name, type_url, config_path } in blocks.unwrap_or_default() {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let name = runtime(RUNTIME, name.unwrap_or_default())?;
        if name != containerd_runtime && !allowed.lists(&name) {
            let why = "no task can use this runtime: it is neither containerd_runtime nor in allow_runtimes (names are \
             compared as written); add it to allow_runtimes, or leave the block out";
            return Err(value(RUNTIME, name, why));
        }
        let config_path = given(config_path).map(PathBuf::from);
        if let Some(path) = config_path.as_ref().filter(|path| !path.is_absolute()) {
            let why = "it must be an absolute path";
            return Err(value("runtime_options.config_path", path.display().to_string(), why));
        }
        let options = RuntimeOptions { type_url: given(type_url), config_path };
        if options == RuntimeOptions::default() {
            return Err(value(RUNTIME, name, "its block is empty: set type_url or config_path in it"));
        }
        if all.insert(name.clone(), options).is_some() {
            return Err(value(RUNTIME, name, "it has two blocks: merge them into one"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn runtime_options_are_keyed_by_runtime() {
        let allowed = json!(["io.containerd.runsc.v1", "/opt/wrapper", "io.x.v1"]);
        let of = |blocks: serde_json::Value| {
            plugin(json!({"allow_runtimes": allowed, "runtime_options": blocks})).runtime_options
        };
        assert!(of(json!([])).is_empty());
        let given = of(json!([
            {"runtime": "io.containerd.runsc.v1", "config_path": "/etc/runsc.toml"},
            {"runtime": "/opt/wrapper", "type_url": "containerd.runc.v1.Options", "config_path": ""},
        ]));
        assert_eq!(given["io.containerd.runsc.v1"].config_path, Some("/etc/runsc.toml".into()));
        let wrapper =
            RuntimeOptions { type_url: Some("containerd.runc.v1.Options".to_owned()), config_path: None };
        assert_eq!(given["/opt/wrapper"], wrapper);
        for (blocks, word) in [
            (json!([{"runtime": "runc", "type_url": "x"}]), "runtime_options.runtime"),
            (json!([{"runtime": "io.x.v1"}]), "is empty"),
            (json!([{"runtime": "io.x.v1", "config_path": "x.toml"}]), "absolute"),
            (
                json!([{"runtime": "io.x.v1", "type_url": "x"}, {"runtime": "io.x.v1", "type_url": "y"}]),
                "two",
            ),
        ] {
            let options = json!({
                "allow_runtimes": allowed, "containerd_runtime": "io.containerd.runc.v2", "runtime_options": blocks,
            });
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.contains(word), "{word} is not in {error}");
        }
    }

    #[test]
    fn runtime_options_of_a_forbidden_runtime_are_refused() {
        let decoded = |runtime: &str, allowed: serde_json::Value| {
            let block = json!([{"runtime": runtime, "config_path": "/etc/x.toml"}]);
            let options = json!({
                "containerd_runtime": "io.containerd.runsc.v1", "allow_runtimes": allowed, "runtime_options": block,
            });
            decode(&options).map(drop).map_err(|error| error.to_string())
        };
        decoded("io.containerd.runsc.v1", json!([])).unwrap();
        decoded("io.containerd.kata.v2", json!(["io.containerd.kata.v2"])).unwrap();
        for (runtime, allowed) in [
            ("io.containerd.kata.v2", json!(null)),
            ("io.containerd.kata.v2", json!(["/usr/bin/containerd-shim-kata-v2"])),
            ("/usr/bin/containerd-shim-runsc-v1", json!([])),
        ] {
            let error = decoded(runtime, allowed).unwrap_err();
            for word in ["runtime_options.runtime", runtime, "allow_runtimes", "leave the block out"] {
                assert!(error.contains(word), "{word} is not in {error}");
            }
        }
    }
}
