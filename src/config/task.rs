//! The options of a job's `task { driver = "containerd-driver" config { .. } }` block.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::ConfigError;
use super::hclspec::{object, optional, required};

const OF: &str = "task configuration";

/// A task's options as the job gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskOptions {
    pub image: String,
    /// With `args` behind it, replaces the image's command; the image's entrypoint stays.
    pub command: Option<String>,
    pub args: Vec<String>,
    pub pid_mode: PidMode,
}

/// Which processes a task sees, and can be seen by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PidMode {
    /// Its own only.
    #[default]
    Private,
    /// All of the host's.
    Host,
}

#[derive(Deserialize)]
struct Raw {
    image: Option<String>,
    command: Option<String>,
    args: Option<Vec<Option<String>>>,
    pid_mode: Option<String>,
}

impl TaskOptions {
    pub(crate) fn schema() -> Spec {
        object([
            ("image", required("image", "string")),
            ("command", optional("command", "string")),
            ("args", optional("args", "list(string)")),
            ("pid_mode", optional("pid_mode", "string")),
        ])
    }

    /// Decodes what Nomad sends.
    ///
    /// # Errors
    /// Names the option that is missing or can't have its value.
    pub(crate) fn decode(msgpack: &[u8]) -> Result<Self, ConfigError> {
        let raw =
            rmp_serde::from_slice(msgpack).map_err(|source| ConfigError::Malformed { of: OF, source })?;
        let Raw { image, command, args, pid_mode } = raw;
        let image = image.filter(|image| !image.is_empty()).ok_or(ConfigError::Missing {
            of: OF,
            option: "image",
            hint: "name an image, such as \"docker.io/library/redis:alpine\"",
        })?;
        let args = args.unwrap_or_default().into_iter().map(|arg| {
            let why = || "an argument is null; is a variable in it unset?".to_owned();
            arg.ok_or_else(|| ConfigError::Value { option: "args", value: "null".to_owned(), why: why() })
        });
        Ok(Self {
            image,
            command: command.filter(|command| !command.is_empty()),
            args: args.collect::<Result<_, _>>()?,
            pid_mode: PidMode::named(pid_mode.unwrap_or_default())?,
        })
    }
}

impl PidMode {
    fn named(value: String) -> Result<Self, ConfigError> {
        match value.as_str() {
            "" | "private" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            _ => {
                let why = "it must be \"private\" or \"host\"".to_owned();
                Err(ConfigError::Value { option: "pid_mode", value, why })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn decode(options: &Value) -> Result<TaskOptions, ConfigError> {
        TaskOptions::decode(&rmp_serde::to_vec_named(options).unwrap())
    }

    #[test]
    fn nil_is_absent() {
        let nil = json!({"args": null, "command": null, "image": "redis", "pid_mode": null});
        let options = decode(&nil).unwrap();
        let pid_mode = PidMode::Private;
        assert_eq!(options, TaskOptions { image: "redis".to_owned(), command: None, args: vec![], pid_mode });
    }

    #[test]
    fn bad_input_is_refused_by_name() {
        let no_image = decode(&json!({"args": null, "command": "x", "image": null})).unwrap_err().to_string();
        assert!(no_image.contains("image"), "{no_image}");
        let hole =
            decode(&json!({"args": ["a", null], "command": null, "image": "x"})).unwrap_err().to_string();
        assert!(hole.contains("args"), "{hole}");
        let mode = decode(&json!({"image": "x", "pid_mode": "shared"})).unwrap_err().to_string();
        assert!(mode.contains("pid_mode") && mode.contains("\"host\""), "{mode}");
        for bytes in [&b""[..], b"\xc1", b"\x81\xa5image", &rmp_serde::to_vec(&[1, 2]).unwrap()] {
            let error = TaskOptions::decode(bytes).unwrap_err().to_string();
            assert!(error.starts_with("the task configuration can't be decoded"), "{error}");
        }
    }
}
