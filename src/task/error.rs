//! Errors of a call from Nomad, classified by what Nomad should do next.
//!
//! The modules below have error types of their own; where one of them reaches the code of a task, it becomes one of
//! these, with its context added once. [`crate::driver::reply`] converts each into a status that Nomad understands.

use std::fmt::Display;
use std::path::Path;

use crate::config::ConfigError;
use crate::devices::DevicesError;
use crate::etc_files::EtcFilesError;
use crate::image::ReferenceError;
use crate::image::user::UserError;
use crate::init_program::InitProgramError;
use crate::security::ConfinementError;
use crate::spec::SpecError;
use crate::sys::netns::NetnsError;
use crate::sys::os_error::{is_transient, reports_transient};
use crate::sys::state_lock::StateLockError;
use crate::{cni, containerd, shim};

/// An error of a call. Its text is for the operator: what failed, on what, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// Nomad names a task that this plugin doesn't have: it recovers, or forgets it. The text is Nomad's own.
    #[error("task not found for given id")]
    TaskNotFound,
    /// The job or the plugin's configuration has to change first.
    #[error("{0}")]
    Invalid(String),
    /// The same call may succeed later: Nomad may restart the task.
    #[error("{0}")]
    Transient(String),
    /// The call comes at the wrong time: a destroy of a running task, a call before the configuration.
    #[error("{0}")]
    Conflict(String),
    /// The request is for something that the driver does not support.
    #[error("{0}")]
    Unsupported(String),
    /// The call failed here and would fail again.
    #[error("{0}")]
    Failed(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the error for a failed system call, with the action in front of the text.
    pub(crate) fn system(doing: impl Display, error: &std::io::Error) -> Self {
        Self::failed(format!("{doing}: {error}"), is_transient(error))
    }

    /// Makes the error transient, because the file system of the state directory is full. Shims and runtimes write
    /// there as well, and report such a failure in texts of their own.
    pub(crate) fn while_full(self, state_dir: &Path) -> Self {
        match self {
            Self::Failed(text) | Self::Transient(text) => {
                let directory = state_dir.display();
                let why = format!(
                    "no space left on device: the file system of the state directory {directory} is full"
                );
                Self::Transient(format!("{text} ({why})"))
            }
            other => other,
        }
    }

    /// Returns the error for a request that can't be fulfilled: invalid, unless it may succeed later.
    pub(crate) fn refused(text: String, transient: bool) -> Self {
        if transient { Self::Transient(text) } else { Self::Invalid(text) }
    }

    /// Returns the error for a failure that may pass by itself, or would happen again.
    pub(crate) fn failed(text: String, transient: bool) -> Self {
        if transient { Self::Transient(text) } else { Self::Failed(text) }
    }

    /// Puts the action that failed in front of the text, as `verb object id`.
    pub(crate) fn context(self, doing: impl Display) -> Self {
        let add = |text: String| format!("{doing}: {text}");
        match self {
            Self::TaskNotFound => Self::TaskNotFound,
            Self::Invalid(text) => Self::Invalid(add(text)),
            Self::Transient(text) => Self::Transient(add(text)),
            Self::Conflict(text) => Self::Conflict(add(text)),
            Self::Unsupported(text) => Self::Unsupported(add(text)),
            Self::Failed(text) => Self::Failed(add(text)),
        }
    }
}

impl From<containerd::Error> for Error {
    fn from(error: containerd::Error) -> Self {
        let text = error.to_string();
        match error {
            // Not found: another client has just removed the image under the snapshot, or the lease.
            error if error.is_transient() || error.is_not_found() => Self::Transient(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<ReferenceError> for Error {
    fn from(error: ReferenceError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<shim::Error> for Error {
    fn from(error: shim::Error) -> Self {
        let text = error.to_string();
        match error {
            shim::Error::ShimMissing { .. }
            | shim::Error::RuntimeMissing { .. }
            | shim::Error::UndiscardableOutput(_)
            | shim::Error::EventsPath { .. }
            | shim::Error::LogPath { .. } => Self::Invalid(text),
            error => Self::failed(text, error.is_transient()),
        }
    }
}

impl From<cni::Error> for Error {
    fn from(error: cni::Error) -> Self {
        let text = error.to_string();
        match error {
            error if error.is_transient() => Self::Transient(text),
            error if error.is_invalid() => Self::Invalid(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<StateLockError> for Error {
    fn from(error: StateLockError) -> Self {
        Self::failed(error.to_string(), error.is_transient())
    }
}

impl From<NetnsError> for Error {
    fn from(error: NetnsError) -> Self {
        let transient = match &error {
            NetnsError::Io { source, .. } => is_transient(source),
            NetnsError::Other(_) | NetnsError::Lost => false,
        };
        Self::failed(error.to_string(), transient)
    }
}

impl From<UserError> for Error {
    fn from(error: UserError) -> Self {
        let text = error.to_string();
        match error {
            UserError::Unknown { .. }
            | UserError::NoFile { .. }
            | UserError::InProc { .. }
            | UserError::NoDirectory { .. } => Self::Invalid(text),
            UserError::Hangs => Self::Transient(text),
            UserError::Io { source, .. } => Self::failed(text, is_transient(&source)),
            UserError::Unmountable(_) | UserError::Lost => Self::Failed(text),
        }
    }
}

impl From<EtcFilesError> for Error {
    fn from(error: EtcFilesError) -> Self {
        Self::failed(error.to_string(), is_transient(&error.source))
    }
}

impl From<InitProgramError> for Error {
    fn from(error: InitProgramError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ConfinementError> for Error {
    fn from(error: ConfinementError) -> Self {
        let text = error.to_string();
        match error {
            ConfinementError::Value { .. } => Self::Invalid(text),
            ConfinementError::Profile { source, .. } => Self::refused(text, source.is_transient()),
            ConfinementError::Host { source, .. } => Self::failed(text, is_transient(&source)),
            ConfinementError::BuiltIn(_) | ConfinementError::Incomplete(_) => Self::Failed(text),
        }
    }
}

impl From<DevicesError> for Error {
    fn from(error: DevicesError) -> Self {
        let text = error.to_string();
        match error {
            DevicesError::Io { source, .. } => Self::refused(text, is_transient(&source)),
            // Its text quotes the errors of files that could not be read.
            DevicesError::Cdi { why, .. } => Self::refused(text, reports_transient(&why)),
            _ => Self::Invalid(text),
        }
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::Invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use nix::errno::Errno;
    use shim_protos::CallError;

    use super::*;
    use crate::containerd::Error as Containerd;
    use crate::shim::Error as Shim;
    use crate::sys::host_path::HostPathError;
    use crate::sys::os_error::TRANSIENT;

    const DOCUMENT: &str = include_str!("../../docs/troubleshooting.md");
    const KERNEL: &str = "the kernel: ";

    /// Returns the document's failures, and whether Nomad retries.
    fn table() -> Vec<(String, bool)> {
        let lines = DOCUMENT.lines().skip_while(|line| !line.starts_with("| failure | Nomad |"));
        let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
        rows.map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let again = match cells[1] {
                "tries again" => true,
                "gives up" => false,
                other => panic!("{other:?} is neither"),
            };
            (cells[0].to_owned(), again)
        })
        .collect()
    }

    /// Returns an error of the operating system in each form in which it can surface.
    fn of_kernel(errno: Errno) -> Vec<Error> {
        let (path, source) = (|| "/x".into(), || io::Error::from(errno));
        vec![
            Shim::File { doing: "write", path: path(), source: source() }.into(),
            StateLockError::Io { doing: "open", path: path(), source: source() }.into(),
            NetnsError::Io { doing: "create", path: path(), source: source() }.into(),
            UserError::Io { doing: "mount", path: path(), source: source() }.into(),
            ConfinementError::Host { path: path(), source: source() }.into(),
            ConfinementError::Profile {
                option: "seccomp_profile",
                path: path(),
                source: HostPathError::Io { doing: "read", path: path(), source: source() },
            }
            .into(),
            DevicesError::Io { path: path(), source: source() }.into(),
            DevicesError::Cdi {
                name: "v/c=0".to_owned(),
                why: format!(
                    "no file describes it (cdi_spec_dirs: /x); /x/a.json can't be read: {}",
                    source()
                ),
            }
            .into(),
            cni::Error::Io { doing: "write", path: path(), source: source() }.into(),
            Error::system("collect", &source()),
            of_host(HostPathError::Io { doing: "look for", path: path(), source: source() }),
        ]
    }

    /// Returns the error of a host path, such as the source of a mount.
    #[expect(clippy::needless_pass_by_value, reason = "as errors are passed")]
    fn of_host(error: HostPathError) -> Error {
        Error::refused(error.to_string(), error.is_transient())
    }

    fn call(source: CallError) -> Error {
        Shim::Call { doing: "create container x".to_owned(), source }.into()
    }

    fn refused(words: &str) -> Error {
        call(CallError::Refused(words.to_owned()))
    }

    fn binary(transient: bool) -> Error {
        let (id, reason) = ("x".to_owned(), String::new());
        Shim::Binary { binary: "/bin/shim".into(), action: "start", id, reason, transient }.into()
    }

    fn containerd_refuses(reason: &str) -> Error {
        Containerd::Refused { doing: "prepare x".to_owned(), reason: reason.to_owned() }.into()
    }

    /// Returns the errors that a row of the document describes.
    fn failures(row: &str) -> Vec<Error> {
        if row == "the kernel: any other error" {
            return [Errno::EACCES, Errno::EROFS, Errno::ENOENT].into_iter().flat_map(of_kernel).collect();
        }
        if row.starts_with(KERNEL) {
            return TRANSIENT.into_iter().flat_map(of_kernel).collect();
        }
        let (doing, socket) = ("version".to_owned(), || "/c.sock".into());
        match row {
            "the job, or the plugin's configuration, asks for what can't be" => vec![
                ConfigError::Missing { of: "x", option: "image", hint: "" }.into(),
                Shim::UndiscardableOutput("/bin/shim".into()).into(),
            ],
            "another plugin has the state directory" => {
                vec![StateLockError::Held { directory: "/x".into(), holder: None }.into()]
            }
            "the same errors in the words of a shim, of a runtime or of containerd" => {
                let words = "mkdir /x: no space left on device: unknown";
                vec![refused(words), containerd_refuses(words)]
            }
            "whatever fails while the state directory's file system is full" => {
                vec![binary(false).while_full(Path::new("/x"))]
            }
            "a file system of the host gives no answer in 30 seconds" => {
                vec![Error::system("look at /x", &io::ErrorKind::TimedOut.into())]
            }
            "a shim does not start in time, or its binary ends by a signal" => vec![binary(true)],
            "a shim is gone, or does not answer" => vec![
                call(CallError::Disconnected(String::new())),
                call(CallError::TimedOut(Duration::from_secs(60))),
                Shim::Unidentified { binary: "/bin/shim".into(), id: "x".to_owned(), reported_pid: 7 }.into(),
            ],
            "a shim of an earlier run is still there" => {
                vec![Shim::StaleShim { id: "x".to_owned(), task_pid: 7 }.into()]
            }
            "the runtime is killed" => {
                vec![refused("create failed: runc did not terminate successfully: exit status 137: unknown")]
            }
            "a shim or a runtime refuses for another reason" => vec![
                refused("exec: \"x\": executable file not found in $PATH"),
                binary(false),
                call(CallError::NotFound(String::new())),
            ],
            "containerd can't be reached, or does not answer" => vec![
                Containerd::Unreachable { doing: doing.clone(), socket: socket(), reason: String::new() }
                    .into(),
                Containerd::TimedOut { doing, socket: socket(), after: Duration::from_secs(10) }.into(),
            ],
            "containerd has lost what the start needs" => {
                vec![Containerd::NotFound { doing, reason: String::new() }.into()]
            }
            "containerd refuses for another reason" => vec![containerd_refuses("not supported")],
            "a CNI plugin is late, or answers with code 11, 50 or 51" => {
                [Some(11), Some(50), Some(51), None].map(|code| plugin(code, code.is_none())).into()
            }
            "a CNI plugin fails for another reason" => vec![plugin(Some(7), false), plugin(None, false)],
            "the start is cancelled" => vec![Error::Failed(String::new())],
            other => panic!("nothing is known of {other:?}"),
        }
    }

    fn plugin(code: Option<u64>, timed_out: bool) -> Error {
        let error = cni::RunError { code, reason: String::new(), timed_out };
        let (network, hint) = ("x".to_owned(), String::new());
        let failure =
            cni::PluginFailure { program: "/bin/bridge".into(), command: "ADD", network, error, hint };
        cni::Error::Plugin(Box::new(failure)).into()
    }

    #[test]
    fn errors_are_classified_as_documented() {
        let table = table();
        assert_eq!(table.len(), 19);
        for (row, again) in table {
            for error in failures(&row) {
                assert_eq!(matches!(error, Error::Transient(_)), again, "{row}: {error:?}");
            }
        }
    }

    #[test]
    fn transient_kernel_errors_are_documented() {
        let table = table();
        let rows = table.iter().filter(|(_, again)| *again).filter_map(|(row, _)| row.strip_prefix(KERNEL));
        let named: Vec<_> =
            rows.flat_map(|row| row.split(' ')).map(|word| word.trim_matches('`').to_owned()).collect();
        assert_eq!(named, TRANSIENT.map(|errno| format!("{errno:?}")));
    }
}
