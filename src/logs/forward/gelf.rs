//! GELF's messages: JSON, compressed and in chunks by UDP, or with a zero byte at their end by TCP.
//!
//! Source of the facts: Graylog's GELF 1.1 specification; moby `daemon/logger/gelf` (28.5).

use std::io::Write;
use std::time::{Duration, SystemTime};

use flate2::write::{GzEncoder, ZlibEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::lines::{Line, fill_random};
use super::{ContainerFields, Endpoint};
use crate::logs::Stream;

const ERR: u32 = 3;
const INFO: u32 = 6;
/// Maximum size of a datagram, so that it fits into an Ethernet frame.
const CHUNK_BYTES: usize = 1420;
const CHUNK_HEAD_BYTES: usize = 12;
const MAX_CHUNKS: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gelf {
    pub endpoint: Endpoint,
    pub compression: Compression,
    pub max_reconnect: u32,
    pub reconnect_delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compression {
    Nothing,
    Gzip(u32),
    Zlib(u32),
}

impl Gelf {
    /// Returns the bytes of a line for a stream, or its datagrams: none for an empty line, which docker doesn't send
    /// either. `None` if the line is too large for the protocol. `constant` is what [`constant`] returned.
    pub(super) fn frames(&self, line: &Line, constant: &str) -> Option<Vec<Vec<u8>>> {
        if line.text.is_empty() {
            return Some(Vec::new());
        }
        let mut message = message(line, constant).into_bytes();
        if matches!(self.endpoint, Endpoint::Udp(_)) {
            let mut id = [0; 8];
            // A kernel without random numbers gives 0; ids differ by chance alone.
            let _ = fill_random(&mut id);
            chunks(&compressed(message, self.compression), id)
        } else {
            message.push(0);
            Some(vec![message])
        }
    }
}

fn message(line: &Line, constant: &str) -> String {
    let since_epoch = line.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let own = json!({
        "short_message": String::from_utf8_lossy(&line.text),
        "timestamp": since_epoch.as_secs_f64(),
        "level": if line.stream == Stream::Stderr { ERR } else { INFO },
    });
    format!("{{{constant},{}}}", members(&own))
}

/// Returns the fields that are the same in each line's message, as JSON without the braces around it.
pub(super) fn constant(container: &ContainerFields, host: &str) -> String {
    let mut fields = Map::new();
    for (key, text) in &container.attributes {
        let key = if key.starts_with('_') { key.clone() } else { format!("_{key}") };
        fields.insert(key, text.as_str().into());
    }
    let ContainerFields {
        id,
        short_id: _,
        name,
        image_id,
        image_name,
        command,
        created_at,
        tag,
        attributes: _,
    } = container;
    let own = json!({
        "version": "1.1",
        "host": host,
        "_container_id": id,
        "_container_name": name,
        "_image_id": image_id,
        "_image_name": image_name,
        "_command": command,
        "_tag": tag,
        "_created": humantime::format_rfc3339_nanos(*created_at).to_string(),
    });
    if let Value::Object(own) = own {
        for (key, field) in own {
            // A job's attribute takes the place of docker's field of its name, as there.
            if !(key.starts_with('_') && fields.contains_key(&key)) {
                fields.insert(key, field);
            }
        }
    }
    members(&Value::Object(fields))
}

/// Returns the members of an object as JSON, without the braces around them.
fn members(object: &Value) -> String {
    let json = object.to_string();
    json.strip_prefix('{').and_then(|json| json.strip_suffix('}')).unwrap_or_default().to_owned()
}

fn compressed(message: Vec<u8>, compression: Compression) -> Vec<u8> {
    let level = flate2::Compression::new;
    let written = match compression {
        Compression::Nothing => return message,
        Compression::Gzip(at) => {
            let mut encoder = GzEncoder::new(Vec::new(), level(at));
            encoder.write_all(&message).and_then(|()| encoder.finish())
        }
        Compression::Zlib(at) => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level(at));
            encoder.write_all(&message).and_then(|()| encoder.finish())
        }
    };
    // A Vec takes all that is written; a message is understood without compression as well.
    written.unwrap_or(message)
}

/// Splits a message into datagrams. `None` if it needs more than the protocol has.
fn chunks(message: &[u8], id: [u8; 8]) -> Option<Vec<Vec<u8>>> {
    if message.len() <= CHUNK_BYTES {
        return Some(vec![message.to_owned()]);
    }
    let parts = message.chunks(CHUNK_BYTES - CHUNK_HEAD_BYTES);
    let count = parts.len();
    if count > MAX_CHUNKS {
        return None;
    }
    let chunk = |(number, part): (usize, &[u8])| {
        let numbers = [number, count].map(|number| u8::try_from(number).unwrap_or(u8::MAX));
        [&[0x1e_u8, 0x0f][..], &id, &numbers, part].concat()
    };
    Some(parts.enumerate().map(chunk).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::tests::container;
    use super::*;

    fn gelf(endpoint: Endpoint, compression: Compression) -> Gelf {
        Gelf { endpoint, compression, max_reconnect: 3, reconnect_delay: Duration::from_secs(1) }
    }

    fn of_task() -> String {
        constant(&container(), "node")
    }

    fn line(text: &[u8]) -> Line {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        Line { stream: Stream::Stderr, text: text.to_owned(), at, part: None }
    }

    #[test]
    fn a_message_has_docker_s_fields() {
        let gelf = gelf(Endpoint::Tcp("a:1".to_owned()), Compression::Nothing);
        let frames = gelf.frames(&line(b"hi \xff"), &of_task()).unwrap();
        let (last, json) = frames[0].split_last().unwrap();
        assert_eq!((frames.len(), *last), (1, 0));
        let message: Value = serde_json::from_slice(json).unwrap();
        let expected = json!({
            "version": "1.1", "host": "node", "short_message": "hi \u{fffd}", "timestamp": 1_700_000_000.25,
            "level": 3, "_container_id": "web-0123456789abcdef", "_container_name": "web-5f1b",
            "_image_id": "sha256:abcdef", "_image_name": "docker.io/library/web:1",
            "_command": "/bin/web --port 80", "_tag": "web", "_created": "2023-11-14T22:13:20.005000000Z",
            "_team": "a",
        });
        assert_eq!(message, expected);
        assert_eq!(gelf.frames(&line(b""), &of_task()), Some(Vec::new()));
    }

    #[test]
    fn datagrams_are_compressed() {
        let udp = || Endpoint::Udp("a:1".to_owned());
        let of = |compression| gelf(udp(), compression).frames(&line(b"hi"), &of_task()).unwrap().concat();
        let (plain, gzip, zlib) =
            (of(Compression::Nothing), of(Compression::Gzip(1)), of(Compression::Zlib(9)));
        let (mut from_gzip, mut from_zlib) = (Vec::new(), Vec::new());
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut from_gzip).unwrap();
        flate2::read::ZlibDecoder::new(&zlib[..]).read_to_end(&mut from_zlib).unwrap();
        assert!(plain.starts_with(b"{") && from_gzip == plain && from_zlib == plain);
    }

    #[test]
    fn a_large_message_is_sent_in_numbered_chunks() {
        let message: Vec<u8> = (0..4000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let sent = chunks(&message, [7; 8]).unwrap();
        assert_eq!(sent.len(), 3);
        for (number, chunk) in sent.iter().enumerate() {
            assert!(chunk.len() <= CHUNK_BYTES);
            assert_eq!(chunk[..2], [0x1e, 0x0f]);
            assert_eq!(
                (&chunk[2..10], chunk[10], chunk[11]),
                (&[7; 8][..], u8::try_from(number).unwrap(), 3)
            );
        }
        let whole: Vec<u8> = sent.iter().flat_map(|chunk| &chunk[12..]).copied().collect();
        assert_eq!(whole, message);
        assert_eq!(chunks(&vec![0; 200_000], [7; 8]), None, "more chunks than the protocol has");
    }
}
