//! Builds the input that a shim's `start` reads from stdin.
//!
//! Two forms are in use. Shims up to containerd 2.2 need nothing there that the launcher could say, and 1.6's fails on
//! unknown input. From 2.3 on they read a `BootstrapParams`, and 2.4's refuses to start without one.

use std::io::{self, PipeReader, Write};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::{self, Message};

/// The first version of containerd whose shim reads its parameters from stdin.
const FIRST_WITH_PARAMS: (u32, u32) = (2, 3);

/// The form of the input that a shim's `start` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartInput {
    /// No input: the arguments and the environment have everything.
    Empty,
    /// A `BootstrapParams`, in addition to the arguments.
    Params,
}

/// The parameters of the container that a shim is started for.
#[derive(Debug, Clone, Copy)]
pub struct StartParams<'a> {
    /// The container's id, as in `-id`.
    pub id: &'a str,
    /// The containerd namespace, as in `-namespace`.
    pub namespace: &'a str,
    /// The address that the shim takes for containerd's, as in `-address`.
    pub address: &'a str,
    /// The address for events, as in `TTRPC_ADDRESS`.
    pub events: Option<&'a str>,
}

impl StartInput {
    /// Returns the form that a shim reads, by the output of its binary for `-v`. That is a guess: a shim that is built
    /// without containerd's version may read the other form.
    #[must_use]
    pub fn by_version(printed: &str) -> Self {
        let version = printed.lines().find_map(|line| line.trim().strip_prefix("Version:"));
        match version.and_then(major_and_minor) {
            Some(version) if version >= FIRST_WITH_PARAMS => Self::Params,
            _ => Self::Empty,
        }
    }

    /// Returns the form to try if this one was refused.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Empty => Self::Params,
            Self::Params => Self::Empty,
        }
    }

    /// Returns the stdin for one start: a pipe that contains all of the input and has no writer. `None` if there is no
    /// input.
    ///
    /// # Errors
    /// Fails if the kernel has no pipe to give, or if a text is longer than a message can hold.
    pub fn pipe(self, params: StartParams<'_>) -> io::Result<Option<PipeReader>> {
        let input = self.encode(params)?;
        if input.is_empty() {
            return Ok(None);
        }
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(&input)?;
        Ok(Some(reader))
    }

    fn encode(self, params: StartParams<'_>) -> protobuf::Result<Vec<u8>> {
        let StartParams { id, namespace, address, events } = params;
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Params => BootstrapParams {
                instance_id: id.to_owned(),
                namespace: namespace.to_owned(),
                containerd_grpc_address: address.to_owned(),
                containerd_ttrpc_address: events.unwrap_or_default().to_owned(),
                ..BootstrapParams::default()
            }
            .write_to_bytes(),
        }
    }
}

/// Parses the major and minor version of texts such as `v2.4.2` or `1.6.20~ds1`.
fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().trim_start_matches('v').split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_by_version() {
        let printed = |version: &str| {
            format!(
                "containerd-shim-runc-v2:\n  Version:  {version}\n  Revision: abc\n  Go version: go1.25\n\n"
            )
        };
        for (version, form) in [
            ("1.6.20~ds1", StartInput::Empty),
            ("1.7.24", StartInput::Empty),
            ("v2.2.5", StartInput::Empty),
            ("2.3.7", StartInput::Params),
            ("v2.4.2", StartInput::Params),
            ("2.4.2+unknown", StartInput::Params),
            ("2.10", StartInput::Params),
            ("3.0.0-rc.1", StartInput::Params),
            ("release-20260527.0", StartInput::Empty),
            ("unknown", StartInput::Empty),
            ("", StartInput::Empty),
        ] {
            assert_eq!(StartInput::by_version(&printed(version)), form, "{version}");
        }
        assert_eq!(StartInput::by_version(""), StartInput::Empty);
        for form in [StartInput::Empty, StartInput::Params] {
            assert!(form.other() != form && form.other().other() == form);
        }
    }

    #[test]
    fn params_name_the_container() {
        let params = StartParams {
            id: "redis-1",
            namespace: "nomad",
            address: "/run/ours",
            events: Some("/run/events"),
        };
        assert!(StartInput::Empty.encode(params).unwrap().is_empty());
        let bytes = StartInput::Params.encode(params).unwrap();
        let read = BootstrapParams::parse_from_bytes(&bytes).unwrap();
        assert_eq!((read.instance_id.as_str(), read.namespace.as_str()), ("redis-1", "nomad"));
        assert_eq!(read.containerd_grpc_address, "/run/ours");
        assert_eq!(read.containerd_ttrpc_address, "/run/events");
    }
}
