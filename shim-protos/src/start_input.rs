//! What a shim's `start` reads from stdin.
//!
//! Two forms are in the field. Shims up to containerd 2.2 read nothing there that the launcher has to say, and 1.6's fails
//! on what it doesn't know. From 2.3 on they read a `BootstrapParams`, and 2.4's refuses to start without one.

use std::io::{self, PipeReader, Write};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::{self, Message};

/// The first containerd whose shim reads its parameters from stdin.
const FIRST_WITH_PARAMS: (u32, u32) = (2, 3);

/// A form of what a shim's `start` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartInput {
    /// No bytes: the arguments and the environment say it all.
    Empty,
    /// A `BootstrapParams`, beside the arguments.
    Params,
}

/// For which container a shim is started.
#[derive(Debug, Clone, Copy)]
pub struct StartParams<'a> {
    /// The container's id, as in `-id`.
    pub id: &'a str,
    /// As in `-namespace`.
    pub namespace: &'a str,
    /// What the shim takes for containerd's address, as in `-address`.
    pub address: &'a str,
    /// Where events go, as in `TTRPC_ADDRESS`.
    pub events: Option<&'a str>,
}

impl StartInput {
    /// Returns the form that a shim takes by what its binary prints for `-v`, as far as that can be told: a shim that is
    /// built without containerd's version may take the other one.
    #[must_use]
    pub fn by_version(printed: &str) -> Self {
        let version = printed.lines().find_map(|line| line.trim().strip_prefix("Version:"));
        match version.and_then(major_and_minor) {
            Some(version) if version >= FIRST_WITH_PARAMS => Self::Params,
            _ => Self::Empty,
        }
    }

    /// Returns the form to try where this one was refused.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Empty => Self::Params,
            Self::Params => Self::Empty,
        }
    }

    /// Returns what the stdin of one start is: a pipe that has all of the input and no writer. None where there is nothing to
    /// read.
    ///
    /// # Errors
    /// When the kernel has no pipe to give, or a text is longer than a message can hold.
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

/// Of `v2.4.2` or `1.6.20~ds1`.
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
