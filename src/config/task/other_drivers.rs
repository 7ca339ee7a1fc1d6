//! Options of Nomad's docker and podman drivers that have no meaning here, so that their jobs run unedited: each is
//! taken with a warning, or refused with the way out where a job could rely on it.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/{config,driver}.go`, hashicorp/nomad-driver-podman `config.go`.

use std::collections::BTreeMap;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::Value;

use crate::config::hclspec::{block, block_attrs, object, optional};
use crate::config::{ConfigError, Warnings, reject_nulls, value};

/// Podman's name of the socket that a task without the option has.
const DEFAULT_SOCKET: &str = "default";

#[derive(Deserialize)]
pub(super) struct Raw {
    container_exists_attempts: Option<Value>,
    healthchecks: Option<RawHealthchecks>,
    isolation: Option<String>,
    storage_opt: Option<BTreeMap<String, Option<String>>>,
    socket: Option<String>,
    selinux_opts: Option<Vec<Option<String>>>,
}

#[derive(Deserialize)]
struct RawHealthchecks {
    disable: Option<bool>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let healthchecks = object([("disable", optional("disable", "bool"))]);
    vec![
        ("container_exists_attempts", optional("container_exists_attempts", "number")),
        ("healthchecks", block("healthchecks", healthchecks)),
        ("isolation", optional("isolation", "string")),
        ("storage_opt", block_attrs("storage_opt", "string")),
        ("socket", optional("socket", "string")),
        ("selinux_opts", optional("selinux_opts", "list(string)")),
    ]
}

impl Raw {
    /// Adds a warning for each option that is set and has no effect.
    ///
    /// # Errors
    /// Names an option that a job could rely on, and the way out.
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<(), ConfigError> {
        let Self { container_exists_attempts, healthchecks, isolation, storage_opt, socket, selinux_opts } =
            self;
        if container_exists_attempts.is_some() {
            let why = "a container that is left of an earlier attempt is always removed first";
            warnings.add("container_exists_attempts", why);
        }
        // Nothing to be told where they are disabled: they are.
        if healthchecks.is_some_and(|healthchecks| healthchecks.disable == Some(false)) {
            let why = "an image's health check is not run; write it as a check of the job's service";
            warnings.add("healthchecks", why);
        }
        check_isolation(isolation.unwrap_or_default())?;
        if let Some((name, size)) = storage_opt.unwrap_or_default().into_iter().next() {
            let why = "a container's own file system has no limit here; leave it out, and mount what grows from the \
                       allocation (/local, /alloc) or a volume";
            return Err(value("storage_opt", format!("{name} = {:?}", size.unwrap_or_default()), why));
        }
        let others = socket.filter(|name| !name.is_empty() && name != DEFAULT_SOCKET);
        if others.is_some() {
            let why = "podman's sockets are not used; the operator's containerd_socket is";
            warnings.add("socket", why);
        }
        if let Some(label) = reject_nulls("selinux_opts", selinux_opts)?.into_iter().next() {
            let why = "this driver gives tasks no SELinux labels; leave it out";
            return Err(value("selinux_opts", label, why));
        }
        Ok(())
    }
}

/// Checks the kind of a container's isolation on Windows, of which Linux has one.
fn check_isolation(isolation: String) -> Result<(), ConfigError> {
    if isolation.is_empty() || isolation == "default" {
        return Ok(());
    }
    let why = "it is an option of docker on Windows, and this driver runs on Linux; leave it out, and choose a sandbox by \
               the option runtime";
    Err(value("isolation", isolation, why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn options_without_a_meaning_are_taken_with_a_warning() {
        let warned = |options: serde_json::Value| {
            let mut options = options;
            options["image"] = json!("redis");
            decode(&options).unwrap().warnings.options()
        };
        assert!(warned(json!({"healthchecks": {"disable": true}, "isolation": "default"})).is_empty());
        assert!(warned(json!({"healthchecks": {}, "storage_opt": {}, "selinux_opts": []})).is_empty());
        assert!(warned(json!({"socket": "default", "isolation": ""})).is_empty());
        let all = json!({
            "container_exists_attempts": 10, "healthchecks": {"disable": false}, "socket": "app1",
        });
        assert_eq!(warned(all), ["container_exists_attempts", "healthchecks", "socket"]);
    }

    #[test]
    fn options_that_a_job_could_rely_on_are_refused() {
        assert!(refusal("isolation", json!("hyperv")).contains("Windows"));
        let error = refusal("storage_opt", json!({"size": "40G"}));
        assert!(error.contains("40G") && error.contains("volume"), "{error}");
        assert!(refusal("selinux_opts", json!(["level:s0"])).contains("SELinux"));
    }
}
