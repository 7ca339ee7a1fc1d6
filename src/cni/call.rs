//! A call: one command to one plugin of a network, with what it is told and what its answer says.
//!
//! Source of the facts: the CNI specification 1.1, sections 2 and 5.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::attachment::RuntimeConf;
use super::error::{Error, PluginFailure, RunError};
use super::exec::{self, Run};
use super::kernel_hints::{self, BRIDGE_NETFILTER};
use super::network::{Network, Plugin};
use super::programs::Programs;
use super::version::{Version, convert};

pub(super) struct Call<'a> {
    pub network: &'a Network,
    pub plugin: &'a Plugin,
    pub command: &'static str,
    pub conf: Option<&'a RuntimeConf>,
    /// Programs of the network.
    pub programs: &'a Programs,
    pub deadline: Duration,
}

/// What a plugin that succeeded has printed.
pub(super) struct Answer {
    program: PathBuf,
    pub out: Vec<u8>,
}

impl Call<'_> {
    /// Runs the plugin, and returns what it prints.
    ///
    /// # Errors
    /// Quotes the plugin's words, or says that there is no such plugin.
    pub(super) async fn execute(&self, request: Map<String, Value>) -> Result<Answer, Error> {
        let program = self.programs.get(&self.plugin.kind)?.path.as_path();
        let run = Run {
            program,
            arguments: &[],
            environment: self.environment(),
            config: Value::Object(request).to_string().into_bytes(),
            deadline: self.deadline,
        };
        match run.output().await {
            Ok(out) => Ok(Answer { program: program.to_owned(), out }),
            Err(error) => Err(self.failed(program, error)),
        }
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let directories: Vec<&OsStr> =
            self.programs.directories.iter().map(|directory| directory.as_os_str()).collect();
        let mut environment =
            vec![("CNI_COMMAND", self.command.into()), ("CNI_PATH", directories.join(OsStr::new(":")))];
        if let Some(RuntimeConf { container_id, netns, if_name, args, capability_args: _ }) = self.conf {
            environment.extend([
                ("CNI_CONTAINERID", container_id.into()),
                ("CNI_NETNS", netns.into()),
                ("CNI_IFNAME", if_name.into()),
                ("CNI_ARGS", args.into()),
            ]);
        }
        environment
    }

    /// Reads the result that an ADD has printed, and converts it to the network's version.
    ///
    /// # Errors
    /// When what was printed is no result.
    pub(super) fn result(&self, answer: &Answer) -> Result<Value, Error> {
        let fail = |why: &str| self.bad_output(why, answer);
        let result: Value = serde_json::from_slice(&answer.out)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| fail("it succeeded, but printed no result"))?;
        match result.get("cniVersion").and_then(Value::as_str) {
            None | Some("") => {}
            Some(text) if text.parse().is_ok_and(Version::is_known) => {}
            Some(text) => {
                return Err(fail(&format!("its result has version {text:?}, which is not supported")));
            }
        }
        Ok(convert(result, self.network.version()))
    }

    /// Returns the error for a plugin that succeeded and did not print what it should have.
    pub(super) fn bad_output(&self, why: &str, answer: &Answer) -> Error {
        let Answer { program, out } = answer;
        self.failed(program, RunError::new(format!("{why}{}", exec::quoted(out, b""))))
    }

    fn failed(&self, program: &Path, error: RunError) -> Error {
        let netfilter = Path::new(BRIDGE_NETFILTER);
        let hint =
            if error.timed_out { None } else { kernel_hints::hint(&self.network.programs(), netfilter) };
        Error::Plugin(Box::new(PluginFailure {
            program: program.to_owned(),
            command: self.command,
            network: self.network.name.clone(),
            error,
            hint: hint.map(|hint| format!("; {hint}")).unwrap_or_default(),
        }))
    }
}
