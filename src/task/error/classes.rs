//! The class of each error of the modules below, by what Nomad should do next. The table in docs/troubleshooting.md says
//! the same.

use super::Error;
use crate::config::ConfigError;
use crate::devices::DevicesError;
use crate::etc_files::EtcFilesError;
use crate::image::ReferenceError;
use crate::image::user::UserError;
use crate::image::volumes::VolumesError;
use crate::init_program::InitProgramError;
use crate::security::ConfinementError;
use crate::spec::SpecError;
use crate::sys::netns::NetnsError;
use crate::sys::os_error::{is_transient, reports_transient};
use crate::sys::state_lock::StateLockError;
use crate::{cni, containerd, shim};

impl From<containerd::Error> for Error {
    fn from(error: containerd::Error) -> Self {
        // Not found: another client has just removed the image under the snapshot, or the lease.
        let transient = error.is_transient() || error.is_not_found();
        Self::failure(error, transient)
    }
}

impl From<ReferenceError> for Error {
    fn from(error: ReferenceError) -> Self {
        Self::invalid(error)
    }
}

impl From<shim::Error> for Error {
    fn from(error: shim::Error) -> Self {
        match error {
            shim::Error::ShimMissing { .. }
            | shim::Error::RuntimeMissing { .. }
            | shim::Error::UndiscardableOutput(_)
            | shim::Error::GivesLogPipes(_)
            | shim::Error::EventsPath { .. }
            | shim::Error::LogPath { .. } => Self::invalid(error),
            error => {
                let transient = error.is_transient();
                Self::failure(error, transient)
            }
        }
    }
}

impl From<cni::Error> for Error {
    fn from(error: cni::Error) -> Self {
        match error {
            error if error.is_transient() => Self::transient(error),
            error if error.is_invalid() => Self::invalid(error),
            error => Self::failed(error),
        }
    }
}

impl From<StateLockError> for Error {
    fn from(error: StateLockError) -> Self {
        let transient = error.is_transient();
        Self::failure(error, transient)
    }
}

impl From<NetnsError> for Error {
    fn from(error: NetnsError) -> Self {
        let transient = match &error {
            NetnsError::Io { source, .. } => is_transient(source),
            NetnsError::Other(_) | NetnsError::Lost => false,
        };
        Self::failure(error, transient)
    }
}

impl From<UserError> for Error {
    fn from(error: UserError) -> Self {
        let transient = match &error {
            UserError::Unknown { .. }
            | UserError::TooHigh { .. }
            | UserError::NoId { .. }
            | UserError::NoFile { .. }
            | UserError::InProc { .. }
            | UserError::NoDirectory { .. } => return Self::invalid(error),
            UserError::Hangs => true,
            UserError::Io { source, .. } => is_transient(source),
            UserError::Unmountable(_) | UserError::Lost => false,
        };
        Self::failure(error, transient)
    }
}

impl From<VolumesError> for Error {
    fn from(error: VolumesError) -> Self {
        let transient = match &error {
            VolumesError::TooMany(_)
            | VolumesError::Unusable { .. }
            | VolumesError::OfJob { .. }
            | VolumesError::TooLarge { .. } => return Self::invalid(error),
            VolumesError::Copy { source, .. } | VolumesError::Io { source, .. } => is_transient(source),
            VolumesError::Full { .. } | VolumesError::Lost => true,
            VolumesError::Unmountable(_) | VolumesError::Cancelled => false,
        };
        Self::failure(error, transient)
    }
}

impl From<EtcFilesError> for Error {
    fn from(error: EtcFilesError) -> Self {
        let transient = is_transient(&error.source);
        Self::failure(error, transient)
    }
}

impl From<InitProgramError> for Error {
    fn from(error: InitProgramError) -> Self {
        Self::invalid(error)
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::invalid(error)
    }
}

impl From<ConfinementError> for Error {
    fn from(error: ConfinementError) -> Self {
        match &error {
            ConfinementError::Value { .. } => Self::invalid(error),
            ConfinementError::Profile { source, .. } => {
                let transient = source.is_transient();
                Self::refused(error, transient)
            }
            ConfinementError::Host { source, .. } => {
                let transient = is_transient(source);
                Self::failure(error, transient)
            }
            ConfinementError::AppArmor { transient, .. } => {
                let transient = *transient;
                Self::failure(error, transient)
            }
            ConfinementError::BuiltIn(_) | ConfinementError::Incomplete(_) => Self::failed(error),
        }
    }
}

impl From<DevicesError> for Error {
    fn from(error: DevicesError) -> Self {
        let transient = match &error {
            DevicesError::Io { source, .. } => is_transient(source),
            // Its text quotes the errors of files that could not be read.
            DevicesError::Cdi { why, .. } => reports_transient(why),
            _ => false,
        };
        Self::refused(error, transient)
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::invalid(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    use nix::errno::Errno;
    use shim_protos::CallError;

    use super::*;
    use crate::containerd::Error as Containerd;
    use crate::shim::Error as Shim;
    use crate::sys::host_path::HostPathError;
    use crate::sys::os_error::TRANSIENT;

    const DOCUMENT: &str = include_str!("../../../docs/troubleshooting.md");
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
            Error::system("collect", source()),
            Error::unusable_path(HostPathError::Io { doing: "look for", path: path(), source: source() }),
        ]
    }

    fn call(source: CallError) -> Error {
        Shim::Call { doing: "create container x".to_owned(), source }.into()
    }

    fn refused(words: &str) -> Error {
        call(CallError::Refused(words.to_owned()))
    }

    fn binary(transient: bool) -> Error {
        shims_binary(transient).into()
    }

    fn shims_binary(transient: bool) -> Shim {
        let (id, reason) = ("x".to_owned(), String::new());
        Shim::Binary { binary: "/bin/shim".into(), action: "start", id, reason, transient }
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
                Shim::GivesLogPipes("/bin/shim".into()).into(),
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
            "an image's volumes find no room on the disk, or the thread that fills them ends early" => {
                let source = Errno::ENOSPC.into();
                vec![VolumesError::Full { at: "/data".to_owned(), source }.into(), VolumesError::Lost.into()]
            }
            "a file system of the host gives no answer in 30 seconds" => {
                vec![Error::system("look at /x", io::ErrorKind::TimedOut.into())]
            }
            "a shim does not start in time, or its binary ends by a signal" => {
                vec![binary(true), Shim::OfAnother(shims_binary(true).into()).into()]
            }
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
                Shim::OfAnother(shims_binary(false).into()).into(),
                call(CallError::NotFound(String::new())),
            ],
            "containerd can't be reached, or does not answer" => vec![
                Containerd::Unreachable { doing: doing.clone(), socket: socket(), reason: String::new() }
                    .into(),
                Containerd::TimedOut { doing, socket: socket(), after: Duration::from_secs(10) }.into(),
            ],
            "containerd has lost what the start needs" => {
                let refused = refused("error mounting \"/x\" to rootfs at \"/y\": no such file or directory");
                vec![
                    Containerd::NotFound { doing, reason: String::new() }.into(),
                    refused.without_snapshot("x"),
                ]
            }
            "containerd refuses for another reason" => vec![containerd_refuses("not supported")],
            "a CNI plugin is late, or answers with code 11, 50 or 51" => {
                [Some(11), Some(50), Some(51), None].map(|code| plugin(code, code.is_none())).into()
            }
            portless if portless.contains("could not set bridge's mac") => {
                vec![plugin_says(Some(999), false, "could not set bridge's mac: invalid argument")]
            }
            "`iptables` can't make the rules of the bridge" => vec![plugin(Some(11), false)],
            "a CNI plugin fails for another reason" => vec![plugin(Some(7), false), plugin(None, false)],
            "AppArmor's parser is late, ends by a signal or for a lack of memory, or is gone" => {
                vec![parser(true)]
            }
            "AppArmor's parser fails for another reason" => vec![parser(false)],
            "the start is cancelled" => vec![Error::failed("")],
            other => panic!("nothing is known of {other:?}"),
        }
    }

    fn parser(transient: bool) -> Error {
        ConfinementError::AppArmor { program: "/x".into(), why: String::new(), transient }.into()
    }

    fn plugin(code: Option<u64>, timed_out: bool) -> Error {
        plugin_says(code, timed_out, "")
    }

    fn plugin_says(code: Option<u64>, timed_out: bool, reason: &str) -> Error {
        let error = cni::RunError { code, exit_code: None, reason: reason.to_owned(), timed_out };
        let (network, hint) = ("x".to_owned(), String::new());
        let failure =
            cni::PluginFailure { program: "/bin/bridge".into(), command: "ADD", network, error, hint };
        cni::Error::Plugin(Box::new(failure)).into()
    }

    #[test]
    fn errors_are_classified_as_documented() {
        let table = table();
        assert_eq!(table.len(), 24);
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
