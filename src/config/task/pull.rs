//! The options about the pull of a task's image: policy, timeout and credentials.

use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, default, object, optional};
use crate::config::{ConfigError, duration, value};
use crate::secret::Secret;

const DEFAULT_TIMEOUT: &str = "5m";
const DEFAULT_TIMEOUT_S: u64 = 5 * 60;

/// The condition for a pull.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    #[default]
    Missing,
    Always,
    Never,
}

/// The options about the pull of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pull {
    pub policy: PullPolicy,
    pub timeout: Duration,
    pub auth: Option<Auth>,
    /// Whether the pull goes on without credentials that can't be obtained, or that the registry refuses.
    pub auth_soft_fail: bool,
}

impl Default for Pull {
    fn default() -> Self {
        let timeout = Duration::from_secs(DEFAULT_TIMEOUT_S);
        Self { policy: PullPolicy::default(), timeout, auth: None, auth_soft_fail: false }
    }
}

/// Credentials for the image's registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Auth {
    pub username: String,
    pub password: Secret,
    /// The registry that the credentials are for; `None` is the image's.
    pub server_address: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    force_pull: Option<bool>,
    image_pull_policy: Option<String>,
    image_pull_timeout: Option<String>,
    auth: Option<RawAuth>,
    auth_soft_fail: Option<bool>,
}

#[derive(Deserialize)]
struct RawAuth {
    username: Option<String>,
    password: Option<Secret>,
    server_address: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let auth = ["username", "password", "server_address"].map(|name| (name, optional(name, "string")));
    vec![
        ("force_pull", optional("force_pull", "bool")),
        ("image_pull_policy", optional("image_pull_policy", "string")),
        ("image_pull_timeout", default("image_pull_timeout", "string", &format!("\"{DEFAULT_TIMEOUT}\""))),
        ("auth", block("auth", object(auth))),
        ("auth_soft_fail", optional("auth_soft_fail", "bool")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Pull, ConfigError> {
        let Self { force_pull, image_pull_policy, image_pull_timeout, auth, auth_soft_fail } = self;
        let timeout = image_pull_timeout.unwrap_or_else(|| DEFAULT_TIMEOUT.to_owned());
        Ok(Pull {
            policy: policy(force_pull, image_pull_policy)?,
            timeout: duration("image_pull_timeout", timeout)?,
            auth: auth.map(RawAuth::decode).transpose()?.flatten(),
            auth_soft_fail: auth_soft_fail.unwrap_or(false),
        })
    }
}

/// Decodes the pull policy. `force_pull` is the docker driver's name for `always`.
fn policy(force_pull: Option<bool>, policy: Option<String>) -> Result<PullPolicy, ConfigError> {
    let named = policy.filter(|policy| !policy.is_empty());
    let policy = match named.as_deref() {
        None => None,
        Some("missing" | "if_not_present") => Some(PullPolicy::Missing),
        Some("always") => Some(PullPolicy::Always),
        Some("never") => Some(PullPolicy::Never),
        Some(other) => {
            let why =
                "it must be \"missing\" (or \"if_not_present\", which is the same), \"always\" or \"never\"";
            return Err(value("image_pull_policy", other, why));
        }
    };
    match (force_pull, policy) {
        (Some(_), Some(_)) => Err(ConfigError::Conflict { option: "force_pull", other: "image_pull_policy" }),
        (Some(true), None) => Ok(PullPolicy::Always),
        (_, policy) => Ok(policy.unwrap_or_default()),
    }
}

impl RawAuth {
    /// Decodes the credentials. A block with only empty values is `None`: the job's variables may be unset on purpose.
    fn decode(self) -> Result<Option<Auth>, ConfigError> {
        let Self { username, password, server_address } = self;
        let (username, password) = (username.unwrap_or_default(), password.unwrap_or_default());
        let server_address = server_address.filter(|address| !address.is_empty());
        if username.is_empty() && password == Secret::default() && server_address.is_none() {
            return Ok(None);
        }
        if username.is_empty() || password == Secret::default() {
            return Err(value("auth", username, "it needs both a username and a password"));
        }
        if username.contains(':') {
            return Err(value("auth.username", username, "it must not contain a colon"));
        }
        Ok(Some(Auth { username, password, server_address }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn a_zero_timeout_is_refused() {
        assert_eq!(decode(&json!({"image": "a"})).unwrap().pull, Pull::default());
        let pull = decode(&json!({"image": "a", "image_pull_timeout": "90s"})).unwrap().pull;
        assert_eq!(pull.timeout, Duration::from_secs(90));
        refusal("image_pull_timeout", json!("0s"));
        let pull = decode(&json!({"image": "a", "image_pull_timeout": "500000000000y"})).unwrap().pull;
        assert_eq!(pull.timeout, Duration::from_secs(3660 * 24 * 60 * 60), "no clock goes further");
        refusal("image_pull_timeout", json!("soon"));
    }

    #[test]
    fn pull_policies_are_validated() {
        let policy = |options: serde_json::Value| {
            let mut options = options;
            options["image"] = json!("a");
            decode(&options).map(|options| options.pull.policy)
        };
        for (options, wanted) in [
            (json!({}), PullPolicy::Missing),
            (json!({"force_pull": false}), PullPolicy::Missing),
            (json!({"force_pull": true}), PullPolicy::Always),
            (json!({"force_pull": null, "image_pull_policy": "always"}), PullPolicy::Always),
            (json!({"image_pull_policy": "missing"}), PullPolicy::Missing),
            (json!({"image_pull_policy": "if_not_present"}), PullPolicy::Missing),
            (json!({"image_pull_policy": "never"}), PullPolicy::Never),
        ] {
            assert_eq!(policy(options.clone()).unwrap(), wanted, "{options}");
        }
        refusal("image_pull_policy", json!("sometimes"));
        assert!(policy(json!({"force_pull": true, "image_pull_policy": "never"})).is_err());
    }

    #[test]
    fn incomplete_credentials_are_refused_and_redacted() {
        let auth = |auth| decode(&json!({"image": "a", "auth": auth}));
        assert_eq!(auth(json!({})).unwrap().pull.auth, None);
        assert_eq!(auth(json!({"username": "", "password": null})).unwrap().pull.auth, None);
        let whole = auth(json!({"username": "me", "password": "hunter2"})).unwrap();
        assert!(whole.pull.auth.is_some());
        assert!(!format!("{whole:?}").contains("hunter2"), "{whole:?}");
        for half in [
            json!({"username": "me"}),
            json!({"password": "hunter2"}),
            json!({"server_address": "ghcr.io"}),
            json!({"username": "m:e", "password": "hunter2"}),
        ] {
            let error = refusal("auth", half);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
