//! Errors of networks, by what can be done about them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::version::Version;
use crate::sys::error_chain::Chained;
use crate::sys::os_error::is_transient;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} {value:?} can't be used: {why}")]
    Name { what: &'static str, value: String, why: String },
    /// An address that something else of the host has, at the moment.
    #[error("{what} {value:?} can't be used: {why}")]
    Taken { what: &'static str, value: String, why: String },
    #[error("network {name:?} not found in {directory}; {available}")]
    Unknown { name: String, directory: PathBuf, available: String },
    #[error("can't use the network of {origin}: {why}")]
    Config { origin: String, why: String },
    #[error(
        "network {network} of {origin} has no plugin with the capability {capability}; a plugin declares it by \
         \"capabilities\": {{\"{capability}\": true}}"
    )]
    Capability { capability: &'static str, network: String, origin: String },
    #[error(
        "CNI plugin {plugin:?} of network {network} not found in {directories}; install it (the common plugins are \
         in the package containernetworking-plugins), or add its directory to the plugin option cni_path"
    )]
    Missing { plugin: String, network: String, directories: String },
    /// Failure that the plugin itself reports, or a run of it that broke off.
    #[error(transparent)]
    Plugin(Box<PluginFailure>),
    #[error("the plugins of network {network} support no common CNI version of {wanted}: {supported}")]
    Version { network: String, wanted: String, supported: String },
    #[error("{}", .0.iter().map(|error| error.chain().to_string()).collect::<Vec<_>>().join("; "))]
    Multiple(Vec<Error>),
    #[error("can't {doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the plugins of the built-in network did not {doing} within {limit:?}; trying again later")]
    Timeout { doing: &'static str, limit: Duration },
}

/// The failure of a plugin, or of `iptables`, to do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{program} failed to {command} for network {network}: {error}{hint}", program = program.display())]
pub(crate) struct PluginFailure {
    pub program: PathBuf,
    pub command: &'static str,
    pub network: String,
    pub error: RunError,
    /// Advice on what else to look at, as the end of the sentence.
    pub hint: String,
}

/// The reason why a plugin's run counts as failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct RunError {
    /// Code of the plugin's own error, where it gave one.
    pub code: Option<u64>,
    /// Exit code of the program, where it gave no error of its own.
    pub exit_code: Option<i32>,
    pub reason: String,
    /// Whether the plugin did not end in time.
    pub timed_out: bool,
}

impl RunError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { code: None, exit_code: None, reason: reason.into(), timed_out: false }
    }

    /// Returns the refusal for an error of the operating system. A transient one has the code of a plugin that says
    /// "try again later".
    pub(super) fn from_io(doing: &str, error: &io::Error) -> Self {
        let code = is_transient(error).then_some(TRY_AGAIN);
        Self { code, ..Self::new(format!("{doing}: {error}")) }
    }
}

/// Code of "try again later".
pub(super) const TRY_AGAIN: u64 = 11;
/// Codes of transient errors: "try again later", and the two by which a plugin says that it is not ready.
const TRY_AGAIN_CODES: [u64; 3] = [TRY_AGAIN, 50, 51];
/// Code of a plugin that does not speak the network's version.
const INCOMPATIBLE_VERSION: u64 = 1;
const UNKNOWN_CONTAINER: u64 = 3;
/// Words of the `bridge` plugin for a bridge whose last port went before it had its address, as after an ADD that was cut
/// off: it has no hardware address then, which the plugin wants to set again. The next ADD finds the address there.
const PORTLESS_BRIDGE: &str = "could not set bridge's mac";
/// Words of `iptables` for a rule that isn't there: over nf_tables, and without it.
const NO_SUCH_CHAIN: [&str; 2] = ["does not exist", "No chain/target/match by that name"];

impl Error {
    pub(super) fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source: source.into() }
    }

    /// Returns whether the same call may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Plugin(failure) => {
                failure.error.timed_out
                    || failure.error.reason.contains(PORTLESS_BRIDGE)
                    || failure.error.code.is_some_and(|code| TRY_AGAIN_CODES.contains(&code))
            }
            Self::Multiple(errors) => errors.iter().any(Self::is_transient),
            Self::Io { source, .. } => is_transient(source),
            Self::Taken { .. } => true,
            _ => false,
        }
    }

    /// Returns whether a plugin says that it does not know the container: there is nothing to undo then.
    pub(super) fn is_unknown_container(&self) -> bool {
        self.code() == Some(UNKNOWN_CONTAINER)
    }

    /// Returns whether a plugin says that it does not speak the network's version.
    pub(super) fn is_incompatible_version(&self) -> bool {
        self.code() == Some(INCOMPATIBLE_VERSION)
    }

    /// Returns whether a plugin failed to remove rules of the packet filter because they are not there: it never made
    /// them, or somebody else has removed them. Plugins of version 1.1.1, with which Debian 12 comes, don't know the
    /// words of its `iptables`.
    pub(super) fn is_absent_rule(&self) -> bool {
        let says = |reason: &str| {
            reason.contains("iptables") && NO_SUCH_CHAIN.into_iter().any(|words| reason.contains(words))
        };
        matches!(self, Self::Plugin(failure) if says(&failure.error.reason))
    }

    fn code(&self) -> Option<u64> {
        match self {
            Self::Plugin(failure) => failure.error.code,
            _ => None,
        }
    }

    /// Returns whether the job, or the network's file, has to change first.
    pub(crate) fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Name { .. } | Self::Unknown { .. } | Self::Config { .. } | Self::Capability { .. }
        )
    }

    /// Combines errors into one; no error is success.
    pub(super) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Multiple(errors)),
        }
    }
}

pub(super) fn join_versions(versions: &[Version]) -> String {
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: RunError) -> Error {
        let failure = PluginFailure {
            program: "/bin/x".into(),
            command: "ADD",
            network: "net".to_owned(),
            error,
            hint: String::new(),
        };
        Error::Plugin(Box::new(failure))
    }

    #[test]
    fn a_plugin_that_can_t_be_run_for_now_may_be_later() {
        let of = |errno| failed(RunError::from_io("it can't be run", &io::Error::from_raw_os_error(errno)));
        assert!(of(nix::libc::ENOMEM).is_transient() && !of(nix::libc::EACCES).is_transient());
        let late = failed(RunError { timed_out: true, ..RunError::new("late") });
        assert!(late.is_transient() && !failed(RunError::new("bad")).is_transient());
        let portless = "failed to set bridge addr: could not set bridge's mac: invalid argument (code 999)";
        assert!(failed(RunError::new(portless)).is_transient());
    }

    #[test]
    fn of_several_errors_one_that_may_pass_counts() {
        let (later, bad) =
            (|| RunError { code: Some(11), ..RunError::new("later") }, || RunError::new("bad"));
        Error::all(Vec::new()).unwrap();
        assert!(matches!(Error::all(vec![failed(bad())]), Err(Error::Plugin(_))));
        let both = Error::all(vec![failed(bad()), failed(later())]).unwrap_err();
        assert!(
            both.is_transient()
                && both.to_string().ends_with("bad; /bin/x failed to ADD for network net: later"),
            "{both}"
        );
        assert!(!Error::all(vec![failed(bad()), failed(bad())]).unwrap_err().is_transient());
    }

    #[test]
    fn an_absent_rule_is_told_by_the_words_of_iptables() {
        for (reason, is_absent) in [
            ("running [/usr/sbin/iptables -t nat -D X]: No chain/target/match by that name", true),
            ("iptables v1.8.9: Chain 'X' does not exist", true),
            ("iptables: Permission denied", false),
            ("/run/netns/x does not exist", false),
        ] {
            assert_eq!(failed(RunError::new(reason)).is_absent_rule(), is_absent, "{reason}");
        }
    }
}
