//! Options of Nomad's docker driver that have no meaning here, so that its plugin block needs no edit when this driver
//! takes its place: each is taken with a warning.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/config.go`.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::Warnings;
use crate::config::hclspec::{block, object, optional};
use crate::config::number::Number;

#[derive(Deserialize)]
pub(super) struct Raw {
    endpoint: Option<String>,
    tls: Option<RawTls>,
    infra_image: Option<String>,
    infra_image_pull_timeout: Option<String>,
    nvidia_runtime: Option<String>,
    container_exists_attempts: Option<Number>,
    windows_allow_insecure_container_admin: Option<bool>,
}

#[derive(Deserialize)]
struct RawTls {
    cert: Option<String>,
    key: Option<String>,
    ca: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let tls = object(["cert", "key", "ca"].map(|name| (name, optional(name, "string"))));
    vec![
        ("endpoint", optional("endpoint", "string")),
        ("tls", block("tls", tls)),
        ("infra_image", optional("infra_image", "string")),
        ("infra_image_pull_timeout", optional("infra_image_pull_timeout", "string")),
        ("nvidia_runtime", optional("nvidia_runtime", "string")),
        ("container_exists_attempts", optional("container_exists_attempts", "number")),
        (
            "windows_allow_insecure_container_admin",
            optional("windows_allow_insecure_container_admin", "bool"),
        ),
    ]
}

impl Raw {
    /// Returns a warning for each option that is set.
    pub(super) fn decode(self) -> Warnings {
        let Self {
            endpoint,
            tls,
            infra_image,
            infra_image_pull_timeout,
            nvidia_runtime,
            container_exists_attempts,
            windows_allow_insecure_container_admin,
        } = self;
        let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_tls = tls.is_some_and(|RawTls { cert, key, ca }| [cert, key, ca].iter().any(given));
        let no_pause = "a network namespace needs no container that holds it";
        let mut warnings = Warnings::default();
        for (option, is_given, why) in [
            (
                "endpoint",
                given(&endpoint),
                "docker's daemon is not used; containerd_socket names containerd's socket",
            ),
            ("tls", has_tls, "docker's daemon is not used; a registry's certificates are in its hosts.toml"),
            ("infra_image", given(&infra_image), no_pause),
            ("infra_image_pull_timeout", given(&infra_image_pull_timeout), no_pause),
            (
                "nvidia_runtime",
                given(&nvidia_runtime),
                "a GPU is a CDI device; jobs name it by devices = [\"nvidia.com/gpu=0\"]",
            ),
            (
                "container_exists_attempts",
                container_exists_attempts.is_some(),
                "a container that is left of an earlier attempt is always removed first",
            ),
            (
                "windows_allow_insecure_container_admin",
                windows_allow_insecure_container_admin.is_some(),
                "this driver runs on Linux",
            ),
        ] {
            if is_given {
                warnings.add(option, why);
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::plugin::tests::plugin;

    #[test]
    fn docker_options_without_a_meaning_are_taken_with_a_warning() {
        let none = plugin(json!({"endpoint": "", "tls": {"cert": "", "key": null}, "infra_image": null}));
        assert!(none.warnings.is_empty());
        let all = plugin(json!({
            "endpoint": "unix:///var/run/docker.sock", "tls": {"ca": "/etc/ca.pem"},
            "infra_image": "registry.k8s.io/pause-amd64:3.3", "infra_image_pull_timeout": "5m",
            "nvidia_runtime": "nvidia", "container_exists_attempts": 5,
            "windows_allow_insecure_container_admin": false,
        }));
        assert_eq!(all.warnings.options().len(), 7);
        assert!(all.warnings.texts().any(|text| text.contains("nvidia_runtime") && text.contains("CDI")));
    }
}
