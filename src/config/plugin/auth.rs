//! The plugin block's `auth { .. }`: the sources of registry credentials for jobs that have none of their own.

use std::path::PathBuf;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, object, optional};
use crate::config::{ConfigError, reject_nulls, value};
use crate::secret::Secret;

/// The sources of credentials, in the order in which they are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Auth {
    pub inline: Option<Inline>,
    /// Path of a file in the format of docker's `config.json`.
    pub config: Option<PathBuf>,
    /// Suffix of the credential helper `docker-credential-<helper>`.
    pub helper: Option<String>,
    /// Names of the agent's environment variables that helpers get, besides PATH and HOME.
    pub helper_env: Vec<String>,
}

/// Credentials for one registry, given in the plugin block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inline {
    pub username: String,
    pub password: Secret,
    pub server_address: String,
}

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    username: Option<String>,
    password: Option<Secret>,
    server_address: Option<String>,
    config: Option<String>,
    helper: Option<String>,
    helper_env: Option<Vec<Option<String>>>,
}

pub(super) fn schema() -> Spec {
    let names = ["username", "password", "server_address", "config", "helper"];
    let names = names.map(|name| (name, optional(name, "string")));
    block("auth", object(names.into_iter().chain([("helper_env", optional("helper_env", "list(string)"))])))
}

impl Raw {
    pub(super) fn decode(self) -> Result<Auth, ConfigError> {
        let Self { username, password, server_address, config, helper, helper_env } = self;
        let config = config.filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(path) = config.as_ref().filter(|path| !path.is_absolute()) {
            return Err(value("auth.config", path.display().to_string(), "it must be an absolute path"));
        }
        let helper = helper.filter(|name| !name.is_empty());
        if let Some(name) = helper.as_ref().filter(|name| name.contains('/')) {
            let why = "it must be the helper's name without the prefix docker-credential-";
            return Err(value("auth.helper", name, why));
        }
        let helper_env = reject_nulls("auth.helper_env", helper_env)?;
        let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        if let Some(name) = helper_env.iter().find(|name| !is_name(name)) {
            let why = "it must list the names of environment variables, without their values";
            return Err(value("auth.helper_env", name.split('=').next().unwrap_or_default(), why));
        }
        Ok(Auth { inline: inline(username, password, server_address)?, config, helper, helper_env })
    }
}

/// Decodes the inline credentials, which must name their registry: a job chooses the registry of its image, so any job
/// could obtain credentials that are for any registry.
fn inline(
    username: Option<String>,
    password: Option<Secret>,
    server_address: Option<String>,
) -> Result<Option<Inline>, ConfigError> {
    let (username, password) = (username.unwrap_or_default(), password.unwrap_or_default());
    let server_address = server_address.unwrap_or_default();
    let parts = [username.is_empty(), password == Secret::default(), server_address.is_empty()];
    match parts {
        [true, true, true] => Ok(None),
        [false, false, false] if username.contains(':') => {
            Err(value("auth.username", username, "it must not contain a colon"))
        }
        [false, false, false] => Ok(Some(Inline { username, password, server_address })),
        _ => {
            let why = "username, password and server_address (their registry) must be set together";
            Err(value("auth", username, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::plugin::tests::{decode, plugin};
    use crate::sys::error_chain::Chained;

    #[test]
    fn credentials_need_a_registry_and_are_redacted() {
        let whole = json!({"username": "me", "password": "hunter2", "server_address": "ghcr.io"});
        let config = plugin(json!({"auth": whole}));
        assert!(config.auth.inline.is_some() && !format!("{config:?}").contains("hunter2"), "{config:?}");
        assert_eq!(plugin(json!({"auth": {}})).auth, super::Auth::default());
        for auth in [
            json!({"username": "me", "password": "hunter2"}),
            json!({"password": "hunter2", "server_address": "ghcr.io"}),
            json!({"username": "me", "server_address": "ghcr.io"}),
            json!({"config": "config.json"}),
            json!({"helper": "../../bin/sh"}),
            json!({"helper": "ecr-login", "helper_env": [null]}),
            json!({"helper": "ecr-login", "helper_env": ["AWS_SECRET_ACCESS_KEY=hunter2"]}),
        ] {
            let options = json!({"containerd_runtime": "io.containerd.runc.v2", "auth": auth});
            let error = decode(&options).unwrap_err().chain().to_string();
            assert!(error.contains("auth") && !error.contains("hunter2"), "{error}");
        }
    }
}
