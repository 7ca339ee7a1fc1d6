//! Messages of fluentd's forward protocol: msgpack arrays of tag, time, record and options.
//!
//! Source of the facts: fluentd's Forward Protocol Specification v1; moby `daemon/logger/fluentd` (28.5).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rmp::encode::{write_array_len, write_ext_meta, write_map_len, write_str, write_str_len, write_uint};
use serde::{Deserialize, Serialize};

use super::lines::{Line, Part, fill_random};
use super::{ContainerFields, Endpoint};

/// Type of the protocol's times with nanoseconds.
const EVENT_TIME: i8 = 0;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fluentd {
    pub endpoint: Endpoint,
    pub retry_wait: Duration,
    pub max_retries: u32,
    pub sub_second_precision: bool,
    pub request_ack: bool,
    /// Whether a task starts without the receiver.
    pub connects_later: bool,
    pub write_timeout: Option<Duration>,
}

/// A receiver's answer to a message that asks for one.
#[derive(Deserialize)]
pub(super) struct Ack {
    pub ack: String,
}

impl Fluentd {
    /// Returns the message of a line, and the id that its receiver is to answer with, if it is to answer.
    pub(super) fn message(&self, line: &Line, container: &ContainerFields) -> (Vec<u8>, Option<String>) {
        let ack = self.request_ack.then(|| {
            let mut id = [0; 16];
            // A kernel without random numbers gives 0; an answer is then taken for any message's.
            let _ = fill_random(&mut id);
            BASE64_STANDARD.encode(id)
        });
        let mut message = Vec::with_capacity(line.text.len() + 256);
        // A Vec takes all that is written.
        let _ = self.write(&mut message, line, container, ack.as_deref());
        (message, ack)
    }

    fn write(
        &self,
        into: &mut Vec<u8>,
        line: &Line,
        container: &ContainerFields,
        ack: Option<&str>,
    ) -> Result<(), rmp::encode::ValueWriteError> {
        write_array_len(into, if ack.is_some() { 4 } else { 3 })?;
        write_str(into, &container.tag)?;
        let since_epoch = line.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.sub_second_precision {
            write_ext_meta(into, 8, EVENT_TIME)?;
            into.extend_from_slice(&u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
            into.extend_from_slice(&since_epoch.subsec_nanos().to_be_bytes());
        } else {
            write_uint(into, since_epoch.as_secs())?;
        }
        let record = record(line, container);
        write_map_len(into, u32::try_from(record.len()).unwrap_or(u32::MAX))?;
        for (key, text) in record {
            write_str(into, key)?;
            // Bytes that are no UTF-8 are sent as they are, as docker does.
            write_str_len(into, u32::try_from(text.len()).unwrap_or(u32::MAX))?;
            into.extend_from_slice(&text);
        }
        if let Some(id) = ack {
            write_map_len(into, 1)?;
            write_str(into, "chunk")?;
            write_str(into, id)?;
        }
        Ok(())
    }
}

/// Returns the fields of a line. A job's attribute takes the place of docker's field of its name, as there.
fn record<'a>(line: &'a Line, container: &'a ContainerFields) -> BTreeMap<&'a str, Cow<'a, [u8]>> {
    let text = |text: &'a str| Cow::Borrowed(text.as_bytes());
    let mut record = BTreeMap::from([
        ("container_id", text(&container.id)),
        ("container_name", Cow::Owned(format!("/{}", container.name).into_bytes())),
        ("source", text(line.stream.name())),
        ("log", Cow::Borrowed(&line.text[..])),
    ]);
    record.extend(container.attributes.iter().map(|(key, value)| (key.as_str(), text(value))));
    if let Some(Part { line_id, ordinal, is_last }) = &line.part {
        record.extend([
            ("partial_message", text("true")),
            ("partial_id", text(line_id)),
            ("partial_ordinal", Cow::Owned(ordinal.to_string().into_bytes())),
            ("partial_last", text(if *is_last { "true" } else { "false" })),
        ]);
    }
    record
}

#[cfg(test)]
mod tests {
    use super::super::tests::container;
    use super::*;
    use crate::logs::Stream;

    fn fluentd(sub_second_precision: bool, request_ack: bool) -> Fluentd {
        Fluentd {
            endpoint: Endpoint::Tcp("a:1".to_owned()),
            retry_wait: Duration::from_secs(1),
            max_retries: 1,
            sub_second_precision,
            request_ack,
            connects_later: false,
            write_timeout: None,
        }
    }

    fn line(part: Option<Part>) -> Line {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 7);
        Line { stream: Stream::Stdout, text: b"hi".to_vec(), at, part }
    }

    #[test]
    fn a_message_is_a_tag_a_time_and_a_record() {
        let (message, ack) = fluentd(false, false).message(&line(None), &container());
        let (tag, at, record): (String, u64, BTreeMap<String, String>) =
            rmp_serde::from_slice(&message).unwrap();
        assert_eq!((tag.as_str(), at, ack), ("web", 1_700_000_000, None));
        let expected = [
            ("container_id", "web-0123456789abcdef"),
            ("container_name", "/web-5f1b"),
            ("log", "hi"),
            ("source", "stdout"),
            ("team", "a"),
        ];
        assert_eq!(record, expected.map(|(key, text)| (key.to_owned(), text.to_owned())).into());
    }

    #[test]
    fn a_part_of_a_line_says_so() {
        let part = Part { line_id: "x".to_owned(), ordinal: 2, is_last: true };
        let (message, _) = fluentd(false, false).message(&line(Some(part)), &container());
        let (_, _, record): (String, u64, BTreeMap<String, String>) =
            rmp_serde::from_slice(&message).unwrap();
        let of = |key: &str| record[key].as_str();
        assert_eq!((of("partial_id"), of("partial_ordinal"), of("partial_last")), ("x", "2", "true"));
    }

    #[test]
    fn a_time_with_nanoseconds_is_an_extension() {
        let (message, _) = fluentd(true, false).message(&line(None), &container());
        let expected = [
            &[0x93_u8, 0xa3][..],
            b"web",
            &[0xd7, 0],
            &1_700_000_000_u32.to_be_bytes(),
            &7_u32.to_be_bytes(),
        ];
        assert!(message.starts_with(&expected.concat()), "{message:?}");
    }

    #[test]
    fn an_answer_is_asked_for_by_an_id() {
        let (message, ack) = fluentd(false, true).message(&line(None), &container());
        type Message = (String, u64, BTreeMap<String, String>, BTreeMap<String, String>);
        let (_, _, _, options): Message = rmp_serde::from_slice(&message).unwrap();
        assert_eq!(options["chunk"], ack.unwrap());
    }

    #[test]
    fn text_that_is_no_utf_8_is_sent_as_it_is() {
        let line = Line { text: b"a\xffb".to_vec(), ..line(None) };
        let (message, _) = fluentd(false, false).message(&line, &container());
        assert!(message.windows(4).any(|bytes| bytes == b"\xa3a\xffb"), "{message:?}");
    }
}
