//! Parses the answer that a shim's `start` prints on stdout: the address that it listens on, and the version of its
//! task API.
//!
//! Three forms are in use. containerd 1.x prints the bare address and means API 2; 2.0 to 2.2 print JSON; 2.3 prints a
//! protobuf `BootstrapResult`. The first byte tells the first two apart, and what is neither is the third.

use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::protobuf::Message;
use serde::{Deserialize, Serialize};

/// Version of a shim's task API, which decides the name of its service. The messages are the same, field for field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiVersion {
    V2,
    V3,
}

impl ApiVersion {
    /// Returns the name of the ttrpc service of this version.
    #[must_use]
    pub fn service(self) -> &'static str {
        match self {
            Self::V2 => "containerd.task.v2.Task",
            Self::V3 => "containerd.task.v3.Task",
        }
    }

    fn from_number(version: i64) -> Result<Self, BootstrapError> {
        match version {
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            other => Err(BootstrapError::Version(other)),
        }
    }
}

/// Address and API version of a running shim: all that is needed to reach it again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub version: ApiVersion,
    pub socket: PathBuf,
}

/// The reason why a shim's answer can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BootstrapError {
    #[error("it printed nothing on stdout, where the address is expected")]
    Empty,
    #[error("its answer is neither an address nor JSON nor a BootstrapResult: {0:?}")]
    Unreadable(String),
    #[error("it speaks task API version {0}; versions 2 and 3 are supported")]
    Version(i64),
    #[error("it speaks {0} on its socket; only ttrpc is supported")]
    Protocol(String),
    #[error("it listens on {0:?}; only a unix socket is supported")]
    Address(String),
}

#[derive(Deserialize)]
struct Json {
    version: i64,
    address: String,
    #[serde(default)]
    protocol: String,
}

impl Bootstrap {
    /// Parses the answer of `start`.
    ///
    /// # Errors
    /// Says what is wrong with the answer, or which part of it can't be served.
    pub fn parse(stdout: &[u8]) -> Result<Self, BootstrapError> {
        let text = stdout.trim_ascii();
        if text.is_empty() {
            return Err(BootstrapError::Empty);
        }
        if text.starts_with(b"unix://") {
            let address = std::str::from_utf8(text).map_err(|_| unreadable(text))?;
            return Ok(Self { version: ApiVersion::V2, socket: unix_socket(address)? });
        }
        let (version, address, protocol) = if text.starts_with(b"{") {
            let json: Json = serde_json::from_slice(text).map_err(|_| unreadable(text))?;
            (json.version, json.address, json.protocol)
        } else {
            // Not trimmed: a protobuf's bytes may be white space.
            let result = BootstrapResult::parse_from_bytes(stdout).map_err(|_| unreadable(text))?;
            (i64::from(result.version), result.address, result.protocol)
        };
        if !matches!(protocol.as_str(), "" | "ttrpc") {
            return Err(BootstrapError::Protocol(protocol));
        }
        Ok(Self { version: ApiVersion::from_number(version)?, socket: unix_socket(&address)? })
    }
}

fn unreadable(answer: &[u8]) -> BootstrapError {
    let shown = &answer[..answer.len().min(200)];
    BootstrapError::Unreadable(String::from_utf8_lossy(shown).into_owned())
}

fn unix_socket(address: &str) -> Result<PathBuf, BootstrapError> {
    match address.strip_prefix("unix://") {
        Some(path) if Path::new(path).is_absolute() => Ok(PathBuf::from(path)),
        _ => Err(BootstrapError::Address(address.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(version: ApiVersion) -> Bootstrap {
        Bootstrap { version, socket: PathBuf::from("/run/containerd/s/ab12") }
    }

    #[test]
    fn the_bare_address_of_1_6_and_1_7_means_version_2() {
        assert_eq!(Bootstrap::parse(b"unix:///run/containerd/s/ab12"), Ok(socket(ApiVersion::V2)));
        assert_eq!(Bootstrap::parse(b"unix:///run/containerd/s/ab12\n"), Ok(socket(ApiVersion::V2)));
    }

    #[test]
    fn the_json_of_2_0_to_2_2_names_its_version() {
        let v3 = br#"{"version":3,"address":"unix:///run/containerd/s/ab12","protocol":"ttrpc"}"#;
        assert_eq!(Bootstrap::parse(v3), Ok(socket(ApiVersion::V3)));
        let v2 = br#"{"version":2,"address":"unix:///run/containerd/s/ab12","protocol":"ttrpc"}"#;
        assert_eq!(Bootstrap::parse(v2), Ok(socket(ApiVersion::V2)));
    }

    #[test]
    fn the_protobuf_of_2_3_names_its_version() {
        let result = BootstrapResult {
            version: 3,
            address: "unix:///run/containerd/s/ab12".to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        };
        assert_eq!(Bootstrap::parse(&result.write_to_bytes().unwrap()), Ok(socket(ApiVersion::V3)));
    }

    #[test]
    fn an_answer_that_cannot_be_served_says_why() {
        let json = |version: i32, address: &str, protocol: &str| {
            let text = format!(r#"{{"version":{version},"address":"{address}","protocol":"{protocol}"}}"#);
            Bootstrap::parse(text.as_bytes()).unwrap_err()
        };
        assert_eq!(Bootstrap::parse(b" \n"), Err(BootstrapError::Empty));
        assert_eq!(json(4, "unix:///s", "ttrpc"), BootstrapError::Version(4));
        assert_eq!(json(3, "unix:///s", "grpc"), BootstrapError::Protocol("grpc".to_owned()));
        assert_eq!(json(3, "vsock://2:1024", "ttrpc"), BootstrapError::Address("vsock://2:1024".to_owned()));
        assert_eq!(json(3, "unix://s", "ttrpc"), BootstrapError::Address("unix://s".to_owned()));
        assert!(matches!(Bootstrap::parse(b"{oops"), Err(BootstrapError::Unreadable(_))));
        assert!(matches!(Bootstrap::parse(b"panic: no"), Err(BootstrapError::Unreadable(_))));
    }
}
