//! The options about what makes a task's container: the shim's runtime, the program that the shim runs, and the
//! snapshotter.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::{ConfigError, PluginConfig, program, runtime, value};

/// Docker's name for the runtime that gives a task NVIDIA's GPUs.
const NVIDIA: &str = "nvidia";
/// Runtime of a task that names a program, on a node whose own shim runs none.
const RUNS_PROGRAMS: &str = "io.containerd.runc.v2";
/// Part of the names, and of the type of options, of shims of the runc family.
const RUNC: &str = "runc";

/// Overrides of the operator's runtime and snapshotter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// Overrides the plugin's `containerd_runtime`.
    pub runtime: Option<String>,
    /// Overrides the plugin's `oci_runtime`.
    pub oci_runtime: Option<String>,
    /// Whether `oci_runtime` comes from the option `runtime`, in which docker has the name of a program.
    pub by_docker_name: bool,
    /// Overrides the plugin's `snapshotter`.
    pub snapshotter: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    runtime: Option<String>,
    oci_runtime: Option<String>,
    snapshotter: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    ["runtime", "oci_runtime", "snapshotter"].map(|name| (name, optional(name, "string"))).into()
}

impl Raw {
    pub(super) fn decode(self) -> Result<Runtime, ConfigError> {
        let Self { runtime: name, oci_runtime, snapshotter } = self;
        let given = |option: Option<String>| option.filter(|name| !name.is_empty());
        let (name, mut oci_runtime) = (given(name), given(oci_runtime).map(program).transpose()?);
        let by_docker_name = name.as_ref().is_some_and(|name| !name.contains(['.', '/']));
        let runtime = match name {
            Some(name) if name == NVIDIA => {
                let why = "a GPU is a CDI device here: leave it out, and set devices = [\"nvidia.com/gpu=all\"] (the CDI files \
                           are made by nvidia-ctk cdi generate)";
                return Err(value("runtime", name, why));
            }
            Some(name) if by_docker_name => match oci_runtime.replace(name.clone()) {
                Some(other) if other != name => {
                    let why =
                        format!("oci_runtime is {other:?}, and both name the program; leave out one of them");
                    return Err(value("runtime", name, why));
                }
                _ => None,
            },
            Some(name) => Some(runtime("runtime", name)?),
            None => None,
        };
        Ok(Runtime { runtime, oci_runtime, by_docker_name, snapshotter: given(snapshotter) })
    }
}

impl Runtime {
    pub(super) fn permitted_by(&self, plugin: &PluginConfig) -> Result<(), ConfigError> {
        let Self { runtime, oci_runtime, by_docker_name, snapshotter: _ } = self;
        if let Some(name) = runtime.as_ref().filter(|name| **name != plugin.containerd_runtime) {
            plugin.allow_runtimes.permit("runtime", name)?;
        }
        if let Some(name) = oci_runtime.as_ref().filter(|name| Some(*name) != plugin.oci_runtime.as_ref()) {
            let option = if *by_docker_name { "runtime" } else { "oci_runtime" };
            plugin.allow_runtimes.permit(option, name)?;
        }
        Ok(())
    }

    /// Returns the runtime whose shim the task gets.
    pub(crate) fn shim<'a>(&'a self, plugin: &'a PluginConfig) -> &'a str {
        let operators = plugin.containerd_runtime.as_str();
        let type_url = || plugin.runtime_options.get(operators)?.type_url.as_deref();
        let runs_programs = || operators.contains(RUNC) || type_url().is_some_and(|url| url.contains(RUNC));
        match &self.runtime {
            Some(runtime) => runtime,
            None if self.by_docker_name && !runs_programs() => RUNS_PROGRAMS,
            None => operators,
        }
    }

    /// Returns the snapshotter of the task's root file system.
    pub(crate) fn snapshotter<'a>(&'a self, plugin: &'a PluginConfig) -> &'a str {
        self.snapshotter.as_deref().unwrap_or(&plugin.snapshotter)
    }

    /// Returns the program that the shim runs; `None` leaves it to the shim. The operator's `oci_runtime` applies only
    /// to the operator's shim, since another shim could take it for something else.
    pub(crate) fn program<'a>(&'a self, plugin: &'a PluginConfig) -> Option<&'a str> {
        let operators =
            plugin.oci_runtime.as_deref().filter(|_| self.shim(plugin) == plugin.containerd_runtime);
        self.oci_runtime.as_deref().or(operators)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::plugin::tests::plugin;
    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn a_runtime_is_a_dotted_name_or_a_path_and_a_program_a_name_or_a_path() {
        refusal("runtime", json!("bin/shim"));
        refusal("runtime", json!("io."));
        refusal("oci_runtime", json!("bin/crun"));
    }

    #[test]
    fn a_runtime_without_a_dot_is_a_program_as_under_docker() {
        let of = |options: serde_json::Value| {
            let mut options = options;
            options["image"] = json!("redis");
            decode(&options).map(|options| options.runtime).map_err(|error| error.to_string())
        };
        let runc = of(json!({"runtime": "runc"})).unwrap();
        let operators = plugin(json!({"oci_runtime": "crun"}));
        assert_eq!(
            (runc.shim(&operators), runc.program(&operators)),
            ("io.containerd.runc.v2", Some("runc"))
        );
        runc.permitted_by(&operators).unwrap();
        let error = runc.permitted_by(&plugin(json!({"allow_runtimes": []}))).unwrap_err().to_string();
        assert!(error.contains("option runtime can't be \"runc\""), "{error}");
        let of_sandboxes = plugin(json!({"containerd_runtime": "io.containerd.runsc.v1"}));
        assert_eq!(runc.shim(&of_sandboxes), "io.containerd.runc.v2");
        let wrapped = plugin(json!({
            "containerd_runtime": "/opt/wrapper",
            "runtime_options": [{"runtime": "/opt/wrapper", "type_url": "containerd.runc.v1.Options"}],
        }));
        assert_eq!(runc.shim(&wrapped), "/opt/wrapper");
        assert_eq!(
            of(json!({"runtime": "crun", "oci_runtime": "crun"})).unwrap().oci_runtime.unwrap(),
            "crun"
        );
        let both = of(json!({"runtime": "runc", "oci_runtime": "crun"})).unwrap_err();
        assert!(both.contains("runtime") && both.contains("crun"), "{both}");
        assert!(of(json!({"runtime": "nvidia"})).unwrap_err().contains("nvidia.com/gpu"));
    }

    #[test]
    fn default_runtimes_are_allowed() {
        let permitted = |plugin_options: serde_json::Value, option: &str, name: &str| {
            let options = decode(&json!({"image": "redis", option: name})).unwrap();
            options.permitted_by(&plugin(plugin_options)).map_err(|error| error.to_string())
        };
        for (option, name) in
            [("runtime", "io.containerd.runc.v2"), ("oci_runtime", "runc"), ("oci_runtime", "crun")]
        {
            permitted(json!({}), option, name).unwrap();
        }
        let error = permitted(json!({}), "oci_runtime", "/tmp/evil").unwrap_err();
        assert!(error.contains("oci_runtime") && error.contains("allow_runtimes"), "{error}");
        permitted(json!({}), "runtime", "/tmp/evil").unwrap_err();
        permitted(json!({"allow_runtimes": []}), "oci_runtime", "crun").unwrap_err();
        permitted(json!({"allow_runtimes": ["/opt/crun"]}), "oci_runtime", "/opt/crun").unwrap();
        permitted(json!({"allow_runtimes": [], "oci_runtime": "crun"}), "oci_runtime", "crun").unwrap();
        permitted(json!({"allow_runtimes": [], "containerd_runtime": "/opt/shim"}), "runtime", "/opt/shim")
            .unwrap();
    }

    #[test]
    fn oci_runtime_applies_to_the_operators_shim_only() {
        let operators = plugin(json!({"oci_runtime": "crun"}));
        let of = |options: serde_json::Value| {
            let runtime = decode(&options).unwrap().runtime;
            (runtime.shim(&operators).to_owned(), runtime.program(&operators).map(str::to_owned))
        };
        let own = "io.containerd.runc.v2".to_owned();
        assert_eq!(of(json!({"image": "a"})), (own.clone(), Some("crun".to_owned())));
        assert_eq!(of(json!({"image": "a", "oci_runtime": "runc"})), (own, Some("runc".to_owned())));
        assert_eq!(of(json!({"image": "a", "runtime": "io.kata.v2"})), ("io.kata.v2".to_owned(), None));
    }
}
