//! Renders lines as the messages of a receiver's protocol. What is the same for each line is rendered once. Pure, but
//! takes a processor's time: for an async thread only if it is little.

use chrono::Local;

use super::lines::{Line, new_id};
use super::{ContainerFields, Forwarding, Protocol, gelf, journald};

/// Number of rendered bytes, before compression, after which a batch has no further line.
const BATCH_BYTES: usize = 256 << 10;
/// What a message has beside its line's text and what is known of the container.
const OVERHEAD_BYTES: usize = 256;

/// A line in the form of its protocol.
pub(super) struct Packet {
    /// One for a stream, datagrams otherwise.
    pub frames: Vec<Vec<u8>>,
    /// Id that the receiver is to answer with.
    pub ack: Option<String>,
}

/// The renderer of a task's lines.
pub(super) struct Renderer {
    protocol: Protocol,
    container: ContainerFields,
    /// The host's name.
    host: String,
    constant: Constant,
    /// Estimate of what each message has beside its line's text.
    constant_bytes: usize,
}

/// The part of the messages that is the same for each line.
enum Constant {
    Journald(Vec<u8>),
    Gelf(String),
    Nothing,
}

impl Renderer {
    pub(super) fn new(forwarding: &Forwarding) -> Self {
        let Forwarding { protocol, container, .. } = forwarding.clone();
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host = host.filter(|name| !name.is_empty()).unwrap_or_else(|| "-".to_owned());
        let constant = match &protocol {
            // The id of this renderer, by which the journal puts its lines in order.
            Protocol::Journald => Constant::Journald(journald::constant(&container, &new_id())),
            Protocol::Gelf(_) => Constant::Gelf(gelf::constant(&container, &host)),
            Protocol::Syslog(_) | Protocol::Fluentd(_) => Constant::Nothing,
        };
        let attributes = container.attributes.iter().map(|(key, value)| key.len() + value.len());
        let constant_bytes = OVERHEAD_BYTES
            + match &constant {
                Constant::Journald(entry) => entry.len(),
                Constant::Gelf(json) => json.len(),
                Constant::Nothing => 2 * container.tag.len() + attributes.sum::<usize>(),
            };
        Self { protocol, container, host, constant, constant_bytes }
    }

    /// Returns the number of lines of the next batch, at least one if there are any, and about the number of bytes that
    /// are to be rendered for it.
    pub(super) fn batch(&self, lines: &[Line]) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for line in lines {
            count += 1;
            bytes += line.text.len() + self.constant_bytes;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        (count, bytes)
    }

    /// Returns the number of lines that have a message: docker sends no empty one by syslog and GELF.
    pub(super) fn messages(&self, lines: &[Line]) -> u64 {
        let sends_empty = matches!(self.protocol, Protocol::Journald | Protocol::Fluentd(_));
        lines.iter().filter(|line| sends_empty || !line.text.is_empty()).count() as u64
    }

    /// Returns the messages of lines, of which the first has the number `first`, and the number of lines that are too
    /// large for the protocol.
    pub(super) fn render(&self, lines: &[Line], first: u64) -> (Vec<Packet>, u64) {
        let (now, mut too_large) = (Local::now(), 0);
        let packet = |(line, ordinal): (&Line, u64)| {
            let (frames, ack) = match (&self.protocol, &self.constant) {
                (Protocol::Journald, Constant::Journald(constant)) => {
                    (vec![journald::entry(line, constant, ordinal)], None)
                }
                (Protocol::Gelf(gelf), Constant::Gelf(constant)) => {
                    let frames = gelf.frames(line, constant);
                    too_large += u64::from(frames.is_none());
                    (frames.unwrap_or_default(), None)
                }
                (Protocol::Syslog(syslog), _) => {
                    let message = syslog.message(line, &self.container, &self.host, now);
                    (message.into_iter().collect(), None)
                }
                (Protocol::Fluentd(fluentd), _) => {
                    let (message, ack) = fluentd.message(line, &self.container);
                    (vec![message], ack)
                }
                // `new` makes the constant part of each protocol that has one.
                (Protocol::Journald | Protocol::Gelf(_), _) => (Vec::new(), None),
            };
            Packet { frames, ack }
        };
        let packets = lines.iter().zip(first..).map(packet).collect();
        (packets, too_large)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::tests::forwarding;
    use super::super::{Compression, Endpoint, Gelf};
    use super::*;
    use crate::logs::Stream;

    fn line(length: usize) -> Line {
        Line { stream: Stream::Stdout, text: vec![b'x'; length], at: SystemTime::UNIX_EPOCH, part: None }
    }

    fn renderer(attribute_bytes: usize) -> Renderer {
        let mut forwarding = forwarding(Protocol::Gelf(Gelf {
            endpoint: Endpoint::Udp("a:1".to_owned()),
            compression: Compression::Gzip(9),
            max_reconnect: 3,
            reconnect_delay: Duration::from_secs(1),
        }));
        forwarding.container.attributes.insert("large".to_owned(), "x".repeat(attribute_bytes));
        Renderer::new(&forwarding)
    }

    #[test]
    fn a_batch_is_bounded_by_what_is_compressed() {
        let lines = vec![line(1); 1024];
        let (count, bytes) = renderer(15 << 10).batch(&lines);
        assert!((1..20).contains(&count), "{count} messages of 15 KiB and more");
        assert!((BATCH_BYTES..BATCH_BYTES + (17 << 10)).contains(&bytes), "{bytes}");
        assert!(renderer(1).batch(&lines).0 > 100);
        assert_eq!(renderer(1).batch(&[line(BATCH_BYTES), line(1)]).0, 1);
        assert_eq!(renderer(1).batch(&[]), (0, 0));
    }

    #[test]
    fn an_empty_line_has_a_message_where_docker_sends_one() {
        let lines = [line(0), line(1)];
        for (protocol, count) in [(renderer(1).protocol, 1), (Protocol::Journald, 2)] {
            let renderer = Renderer::new(&forwarding(protocol));
            let (packets, _) = renderer.render(&lines, 1);
            assert_eq!(packets.iter().filter(|packet| !packet.frames.is_empty()).count(), count);
            assert_eq!(renderer.messages(&lines), count as u64);
        }
    }

    #[test]
    fn a_line_too_large_for_the_protocol_is_counted() {
        let mut renderer = renderer(1);
        if let Protocol::Gelf(gelf) = &mut renderer.protocol {
            gelf.compression = Compression::Nothing;
        }
        let (packets, too_large) = renderer.render(&[line(1), line(200_000)], 1);
        assert_eq!((packets.len(), packets[0].frames.len(), packets[1].frames.len()), (2, 1, 0));
        assert_eq!(too_large, 1);
    }
}
