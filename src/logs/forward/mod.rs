//! Sends a task's output to a log receiver, line by line, by the receiver's own protocol. The same bytes go on to
//! Nomad's logs, in the files or the pipes of these.
//!
//! A line stays in its pipe until it is sent, so that the pipe is the buffer, and a plugin that is killed loses none: a
//! line may be sent twice then. With a buffer of its own (docker's non-blocking mode) a line is out of the pipe as soon
//! as it is in the buffer, and a line that doesn't fit is not sent.
//!
//! Source of the facts: moby `daemon/logger` (28.5), and where a protocol is defined, in its file.

mod endpoint;
mod fluentd;
mod gelf;
mod journald;
mod lines;
mod outlet;
mod queue;
mod reach;
mod render;
mod reports;
mod resolver;
mod runner;
mod sender;
mod syslog;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use endpoint::Connection;
pub(crate) use endpoint::{Endpoint, HostPath, TlsFiles};
pub(crate) use fluentd::Fluentd;
pub(crate) use gelf::{Compression, Gelf};
pub(crate) use outlet::NomadLog;
use reach::Forbidden;
pub(crate) use reach::Reach;
pub(super) use runner::start;
pub(crate) use syslog::{Format as SyslogFormat, Syslog};

/// A log receiver, and what it is told of the container. Serialized, so that the sending resumes after a restart; it
/// has values of the task's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forwarding {
    pub protocol: Protocol,
    pub reach: Reach,
    pub container: ContainerFields,
    /// Size of the buffer of lines that are not sent yet. `None` keeps them in the pipe.
    pub buffer_bytes: Option<u64>,
}

/// What a receiver is told of the container, in docker's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerFields {
    pub id: String,
    pub short_id: String,
    pub name: String,
    pub image_id: String,
    pub image_name: String,
    /// Program and arguments, in one line, for GELF alone.
    pub command: String,
    pub created_at: SystemTime,
    pub tag: String,
    /// Labels and environment variables that the job chose.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    Journald,
    Syslog(Syslog),
    Fluentd(Fluentd),
    Gelf(Gelf),
}

/// What is done about a receiver that can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Retries {
    /// Number of attempts after the first one.
    count: u32,
    wait: Duration,
    /// Whether each wait is half as long again as the one before.
    grows: bool,
    write_timeout: Duration,
}

/// Time in which a receiver must take some bytes of what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

impl Forwarding {
    async fn connect(&self) -> Result<Connection, ReceiverError> {
        self.protocol.connect(&self.reach).await
    }
}

impl Protocol {
    fn endpoint(&self) -> Endpoint {
        match self {
            Self::Journald => Endpoint::UnixDatagram(HostPath::of_host(journald::SOCKET)),
            Self::Syslog(syslog) => syslog.endpoint.clone(),
            Self::Fluentd(fluentd) => fluentd.endpoint.clone(),
            Self::Gelf(gelf) => gelf.endpoint.clone(),
        }
    }

    fn retries(&self) -> Retries {
        let usual =
            Retries { count: 3, wait: Duration::from_secs(1), grows: false, write_timeout: WRITE_TIMEOUT };
        match self {
            Self::Journald | Self::Syslog(_) => usual,
            Self::Fluentd(Fluentd { max_retries, retry_wait, write_timeout, .. }) => Retries {
                count: *max_retries,
                wait: *retry_wait,
                grows: true,
                write_timeout: write_timeout.unwrap_or(WRITE_TIMEOUT),
            },
            Self::Gelf(Gelf { max_reconnect, reconnect_delay, .. }) => {
                Retries { count: *max_reconnect, wait: *reconnect_delay, ..usual }
            }
        }
    }

    /// Checks that the receiver can be reached, or, where a task may start without it, that it is not a forbidden one.
    /// A receiver by UDP is only looked up.
    ///
    /// # Errors
    /// Names the receiver.
    pub(crate) async fn check(&self, reach: &Reach) -> Result<(), ReceiverError> {
        if !self.must_answer_at_start() && !matches!(reach, Reach::Beyond(_)) {
            return Ok(());
        }
        match self.connect(reach).await {
            Err(error) if self.must_answer_at_start() || error.is_forbidden() => Err(error),
            _ => Ok(()),
        }
    }

    async fn connect(&self, reach: &Reach) -> Result<Connection, ReceiverError> {
        let endpoint = self.endpoint();
        let failed = |source| ReceiverError { doing: "reach", receiver: endpoint.to_string(), source };
        endpoint.connect(reach).await.map_err(failed)
    }

    /// Returns whether a task starts only where its receiver can be reached.
    fn must_answer_at_start(&self) -> bool {
        !matches!(self, Self::Fluentd(Fluentd { connects_later: true, .. }))
    }
}

/// The reason that a receiver has not got a line.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing} the log receiver {receiver}")]
pub(crate) struct ReceiverError {
    doing: &'static str,
    receiver: String,
    source: std::io::Error,
}

impl ReceiverError {
    /// Returns whether the operator doesn't let the receiver be reached, which lasts.
    pub(crate) fn is_forbidden(&self) -> bool {
        Forbidden::is_in(&self.source)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns what is kept of a receiver that may be on this host.
    pub(in crate::logs) fn forwarding(protocol: Protocol) -> Forwarding {
        Forwarding { protocol, reach: Reach::Anywhere, container: container(), buffer_bytes: None }
    }

    pub(super) fn container() -> ContainerFields {
        ContainerFields {
            id: "web-0123456789abcdef".to_owned(),
            short_id: "0123456789ab".to_owned(),
            name: "web-5f1b".to_owned(),
            image_id: "sha256:abcdef".to_owned(),
            image_name: "docker.io/library/web:1".to_owned(),
            command: "/bin/web --port 80".to_owned(),
            created_at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5_000_000),
            tag: "web".to_owned(),
            attributes: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
        }
    }
}
