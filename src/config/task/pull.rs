//! The options about the pull of a task's image: policy, timeout, platform and credentials.

use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, object, optional};
use crate::config::{ConfigError, Warnings, duration, value};
use crate::secret::Secret;

/// The condition for a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Missing,
    Always,
    Never,
}

/// The options about the pull of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pull {
    /// `None` is the policy of the driver's name.
    pub policy: Option<PullPolicy>,
    /// `None` is the operator's timeout.
    pub timeout: Option<Duration>,
    pub platform: Platform,
    pub auth: Option<Auth>,
    /// Whether the pull goes on without credentials that can't be obtained, or that the registry refuses.
    pub auth_soft_fail: bool,
}

/// The platform of an image, of those that its name stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Platform {
    /// Architecture, by its name in images; `None` is the host's.
    pub arch: Option<String>,
    /// Variant of the architecture; `None` is the best that fits.
    pub variant: Option<String>,
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
    arch: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawAuth {
    username: Option<String>,
    password: Option<Secret>,
    server_address: Option<String>,
    email: Option<String>,
    tls_verify: Option<bool>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let auth = ["username", "password", "server_address", "email"];
    let auth = auth.map(|name| (name, optional(name, "string"))).into_iter();
    let auth = auth.chain([("tls_verify", optional("tls_verify", "bool"))]);
    vec![
        ("force_pull", optional("force_pull", "bool")),
        ("image_pull_policy", optional("image_pull_policy", "string")),
        ("image_pull_timeout", optional("image_pull_timeout", "string")),
        ("auth", block("auth", object(auth))),
        ("auth_soft_fail", optional("auth_soft_fail", "bool")),
        ("arch", optional("arch", "string")),
        ("os", optional("os", "string")),
        ("variant", optional("variant", "string")),
    ]
}

impl Raw {
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<Pull, ConfigError> {
        let Self {
            force_pull,
            image_pull_policy,
            image_pull_timeout,
            auth,
            auth_soft_fail,
            arch,
            os,
            variant,
        } = self;
        let timeout = image_pull_timeout.filter(|timeout| !timeout.is_empty());
        Ok(Pull {
            policy: policy(force_pull, image_pull_policy)?,
            timeout: timeout.map(|timeout| duration("image_pull_timeout", timeout)).transpose()?,
            platform: platform(arch, os, variant)?,
            auth: auth.map(|auth| auth.decode(warnings)).transpose()?.flatten(),
            auth_soft_fail: auth_soft_fail.unwrap_or(false),
        })
    }
}

/// Decodes the pull policy. `force_pull` is the docker driver's name for `always`.
fn policy(force_pull: Option<bool>, policy: Option<String>) -> Result<Option<PullPolicy>, ConfigError> {
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
        (Some(true), None) => Ok(Some(PullPolicy::Always)),
        (_, policy) => Ok(policy),
    }
}

/// Decodes the platform. Whether this host runs programs of another architecture is the kernel's to say (binfmt_misc).
fn platform(
    arch: Option<String>,
    os: Option<String>,
    variant: Option<String>,
) -> Result<Platform, ConfigError> {
    let name = |option: &'static str, name: Option<String>| {
        let is_word =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        match name.filter(|name| !name.is_empty()) {
            Some(name) if !is_word(&name) => Err(value(
                option,
                name,
                "it must be a name of images' platforms, such as \"arm64\" or \"v7\"",
            )),
            name => Ok(name.map(|name| name.to_ascii_lowercase())),
        }
    };
    if let Some(os) = name("os", os)?.filter(|os| os != "linux") {
        return Err(value("os", os, "only images for \"linux\" run here"));
    }
    Ok(Platform { arch: name("arch", arch)?, variant: name("variant", variant)? })
}

impl RawAuth {
    /// Decodes the credentials. A block with only empty values is `None`: the job's variables may be unset on purpose.
    fn decode(self, warnings: &mut Warnings) -> Result<Option<Auth>, ConfigError> {
        let Self { username, password, server_address, email, tls_verify } = self;
        if email.is_some_and(|email| !email.is_empty()) {
            warnings.add("auth.email", "no registry asks for it any more");
        }
        if tls_verify == Some(false) {
            let why = "a job can't turn off the check of a registry's certificate; the operator can, by skip_verify in the \
                       registry's hosts.toml (registry_config_dir)";
            return Err(value("auth.tls_verify", "false", why));
        }
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
        assert_eq!(pull.timeout, Some(Duration::from_secs(90)));
        assert_eq!(decode(&json!({"image": "a", "image_pull_timeout": ""})).unwrap().pull, Pull::default());
        refusal("image_pull_timeout", json!("0s"));
        let pull = decode(&json!({"image": "a", "image_pull_timeout": "500000000000y"})).unwrap().pull;
        assert_eq!(pull.timeout, Some(Duration::from_secs(3660 * 24 * 60 * 60)), "no clock goes further");
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
            (json!({}), None),
            (json!({"force_pull": false}), None),
            (json!({"force_pull": true}), Some(PullPolicy::Always)),
            (json!({"force_pull": null, "image_pull_policy": "always"}), Some(PullPolicy::Always)),
            (json!({"image_pull_policy": "missing"}), Some(PullPolicy::Missing)),
            (json!({"image_pull_policy": "if_not_present"}), Some(PullPolicy::Missing)),
            (json!({"image_pull_policy": "never"}), Some(PullPolicy::Never)),
        ] {
            assert_eq!(policy(options.clone()).unwrap(), wanted, "{options}");
        }
        refusal("image_pull_policy", json!("sometimes"));
        assert!(policy(json!({"force_pull": true, "image_pull_policy": "never"})).is_err());
    }

    #[test]
    fn platforms_are_names_of_linux_images() {
        let platform = |options: serde_json::Value| {
            let mut options = options;
            options["image"] = json!("a");
            decode(&options).unwrap().pull.platform
        };
        assert_eq!(platform(json!({"os": "linux", "arch": "", "variant": null})), Platform::default());
        let arm = platform(json!({"os": "Linux", "arch": "ARM", "variant": "v7"}));
        assert_eq!(arm, Platform { arch: Some("arm".to_owned()), variant: Some("v7".to_owned()) });
        assert!(refusal("os", json!("windows")).contains("linux"));
        for (option, wrong) in [("arch", "a/b"), ("variant", "v 7"), ("os", "li\0nux")] {
            refusal(option, json!(wrong));
        }
    }

    #[test]
    fn an_email_has_no_effect_and_tls_is_always_verified() {
        let auth = |auth| decode(&json!({"image": "a", "auth": auth}));
        let options = auth(json!({"username": "me", "password": "x", "email": "me@example.com"})).unwrap();
        assert_eq!(options.warnings.options(), ["auth.email"]);
        assert!(auth(json!({"email": "", "tls_verify": true})).unwrap().warnings.is_empty());
        let error = auth(json!({"tls_verify": false})).unwrap_err().to_string();
        assert!(error.contains("auth.tls_verify") && error.contains("skip_verify"), "{error}");
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
