//! What a task runs.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::{ConfigError, no_nulls};

/// The options about a task's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// With `args` behind it, replaces the image's command; the image's entrypoint stays.
    pub command: Option<String>,
    pub args: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    command: Option<String>,
    args: Option<Vec<Option<String>>>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("command", optional("command", "string")), ("args", optional("args", "list(string)"))]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Process, ConfigError> {
        let Self { command, args } = self;
        Ok(Process { command: command.filter(|command| !command.is_empty()), args: no_nulls("args", args)? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::task::tests::refusal;

    #[test]
    fn a_hole_in_the_arguments_is_refused() {
        refusal("args", json!(["a", null]));
    }
}
