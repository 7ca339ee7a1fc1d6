//! Syslog's messages, in the forms that docker sends.
//!
//! Source of the facts: RFC 3164, RFC 5424, RFC 5425 section 4.3 (framing); moby `daemon/logger/syslog` (28.5).

use std::io::Write;

use chrono::{DateTime, Local, SecondsFormat};
use serde::{Deserialize, Serialize};

use super::lines::Line;
use super::{ContainerFields, Endpoint};
use crate::logs::Stream;

const ERR: u32 = 3;
const INFO: u32 = 6;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Syslog {
    pub endpoint: Endpoint,
    pub facility: u8,
    pub format: Format,
}

/// The form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// Like RFC 3164, without the host's name.
    Local,
    Rfc3164,
    Rfc5424,
    /// RFC 5424, with microseconds.
    Rfc5424Micro,
}

impl Syslog {
    /// Returns the message of a line, or `None` for an empty one, which docker doesn't send either.
    pub(super) fn message(
        &self,
        line: &Line,
        container: &ContainerFields,
        host: &str,
        now: DateTime<Local>,
    ) -> Option<Vec<u8>> {
        if line.text.is_empty() {
            return None;
        }
        let severity = if line.stream == Stream::Stderr { ERR } else { INFO };
        let (priority, tag, pid) =
            (u32::from(self.facility) * 8 + severity, container.tag.as_str(), std::process::id());
        let word = word(tag);
        let head = match self.format {
            Format::Local => format!("<{priority}>{} {tag}[{pid}]: ", now.format("%b %e %H:%M:%S")),
            Format::Rfc3164 => format!("<{priority}>{} {host} {tag}[{pid}]: ", now.format("%b %e %H:%M:%S")),
            Format::Rfc5424 => {
                let at = now.to_rfc3339_opts(SecondsFormat::Secs, true);
                format!("<{priority}>1 {at} {host} {word} {pid} {word} - ")
            }
            Format::Rfc5424Micro => {
                let at = now.to_rfc3339_opts(SecondsFormat::Micros, true);
                format!("<{priority}>1 {at} {host} {word} {pid} {word} - ")
            }
        };
        let mut message = head.into_bytes();
        if self.endpoint.is_of_host() {
            message.extend(line.text.iter().map(|byte| harmless(*byte)));
        } else {
            message.extend_from_slice(&line.text);
        }
        message.push(b'\n');
        let counts_bytes = matches!(self.endpoint, Endpoint::Tls { .. })
            && matches!(self.format, Format::Rfc5424 | Format::Rfc5424Micro);
        if counts_bytes {
            let mut framed = Vec::with_capacity(message.len() + 8);
            // A Vec takes all that is written.
            let _ = write!(framed, "{} ", message.len());
            framed.extend_from_slice(&message);
            message = framed;
        }
        Some(message)
    }
}

/// Replaces a control character. The host's syslog may take what follows a NUL for another message, with a facility that
/// the task isn't to have.
fn harmless(byte: u8) -> u8 {
    if byte.is_ascii_control() && byte != b'\t' { b'_' } else { byte }
}

/// Returns a tag as RFC 5424 has it, where spaces end a field and an empty one is a dash.
fn word(tag: &str) -> String {
    match tag {
        "" => "-".to_owned(),
        tag => tag.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use chrono::TimeZone;

    use super::super::tests::container;
    use super::super::{HostPath, TlsFiles};
    use super::*;

    fn sent(format: Format, endpoint: Endpoint, stream: Stream, text: &str) -> Option<String> {
        let syslog = Syslog { endpoint, facility: 3, format };
        let line = Line { stream, text: text.into(), at: SystemTime::UNIX_EPOCH, part: None };
        let now = Local.with_ymd_and_hms(2026, 11, 3, 4, 5, 6).unwrap();
        let message = syslog.message(&line, &container(), "node", now)?;
        let zone = now.to_rfc3339_opts(SecondsFormat::Secs, true)[19..].to_owned();
        let pid = format!(" {} ", std::process::id());
        let text = String::from_utf8(message).unwrap();
        Some(text.replace(&format!("[{}]", pid.trim()), "[7]").replace(&pid, " 7 ").replace(&zone, "Z"))
    }

    #[test]
    fn a_message_has_docker_s_form() {
        let of = |format, stream| sent(format, Endpoint::Udp("a:1".to_owned()), stream, "hi").unwrap();
        assert_eq!(of(Format::Local, Stream::Stdout), "<30>Nov  3 04:05:06 web[7]: hi\n");
        assert_eq!(of(Format::Rfc3164, Stream::Stderr), "<27>Nov  3 04:05:06 node web[7]: hi\n");
        assert_eq!(of(Format::Rfc5424, Stream::Stdout), "<30>1 2026-11-03T04:05:06Z node web 7 web - hi\n");
        assert_eq!(
            of(Format::Rfc5424Micro, Stream::Stdout),
            "<30>1 2026-11-03T04:05:06.000000Z node web 7 web - hi\n"
        );
        let local = Endpoint::Unix(HostPath::of_host("/dev/log"));
        assert_eq!(sent(Format::Local, local, Stream::Stdout, ""), None);
    }

    #[test]
    fn a_line_is_one_message_at_a_socket_of_the_host() {
        let text = "a\0<86>sshd[1]: Accepted\r\x1b\x7f\tb \u{e9}";
        let path = || HostPath::of_host("/dev/log");
        for endpoint in [Endpoint::LocalSyslog, Endpoint::Unix(path()), Endpoint::UnixDatagram(path())] {
            let message = sent(Format::Local, endpoint, Stream::Stdout, text).unwrap();
            assert!(message.ends_with(": a_<86>sshd[1]: Accepted___\tb \u{e9}\n"), "{message:?}");
        }
        let elsewhere = sent(Format::Local, Endpoint::Tcp("a:1".to_owned()), Stream::Stdout, text).unwrap();
        assert!(elsewhere.contains(text), "{elsewhere:?}");
    }

    #[test]
    fn a_tag_of_several_words_is_one_field() {
        assert_eq!((word("web 1\u{a0}x").as_str(), word("").as_str()), ("web_1_x", "-"));
    }

    #[test]
    fn a_message_by_tls_begins_with_its_length() {
        let tls = || Endpoint::Tls { address: "a:1".to_owned(), files: TlsFiles::default() };
        let text = sent(Format::Rfc3164, tls(), Stream::Stdout, "hi").unwrap();
        assert!(text.starts_with("<30>"), "docker counts in the form of RFC 5424 only: {text}");
        let text = sent(Format::Rfc5424, tls(), Stream::Stdout, "hi").unwrap();
        let (length, rest) = text.split_once(' ').unwrap();
        assert!(rest.starts_with("<30>1 "), "{text}");
        assert!(length.parse::<usize>().unwrap() >= rest.len() - 1, "{text}");
    }
}
