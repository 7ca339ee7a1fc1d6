//! Sends lines to a receiver over one connection, which is renewed when it breaks. Lines that a receiver doesn't get in
//! as many attempts as its protocol has are given up, so that they don't hold the task up.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::endpoint::{ByteStream, Connection};
use super::fluentd::Ack;
use super::lines::Line;
use super::render::{Packet, Renderer};
use super::reports::{Loss, Reports};
use super::{Forwarding, Protocol, ReceiverError, journald};
use crate::logs::WriterPool;
use crate::sys::error_chain::Chained;

/// Maximum number of bytes that are rendered, and perhaps compressed, on an async thread.
const INLINE_BYTES: usize = 4 << 10;
/// Minimum time between two connections, whatever breaks them.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Pause before a receiver is connected to again that has used up its attempts. It doubles each time that such a
/// connection fails as well.
const DOWN_PAUSE: Duration = Duration::from_secs(10);
const MAX_DOWN_PAUSE: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Maximum number of bytes that a stream may hold back: when it breaks, their lines are sent again.
const FLUSH_BYTES: usize = 16 << 10;
/// Maximum length and nesting of a receiver's answer.
const MAX_ACK_BYTES: usize = 1024;
const MAX_ACK_DEPTH: usize = 8;

pub(super) struct Sender {
    forwarding: Forwarding,
    renderer: Arc<Renderer>,
    pool: WriterPool,
    /// Number of the next line.
    ordinal: u64,
    /// Number of lines of the current call that are neither sent nor given up.
    unsent: Arc<AtomicU64>,
    connection: Option<Connection>,
    connected_at: Option<Instant>,
    /// Connects to a receiver that has used up its attempts. Its lines are given up meanwhile.
    reconnecting: Option<AbortOnDropHandle<Connection>>,
    first_pause: Duration,
    next_pause: Duration,
    reports: Arc<Reports>,
}

impl Sender {
    /// Returns a sender that renders large batches on the threads of `pool`.
    pub(super) fn new(forwarding: &Forwarding, pool: &WriterPool, reports: Arc<Reports>) -> Self {
        Self {
            forwarding: forwarding.clone(),
            renderer: Arc::new(Renderer::new(forwarding)),
            pool: pool.clone(),
            ordinal: 1,
            unsent: Arc::default(),
            connection: None,
            connected_at: None,
            reconnecting: None,
            first_pause: DOWN_PAUSE,
            next_pause: DOWN_PAUSE,
            reports,
        }
    }

    /// Connects to the receiver, unless there is a connection.
    ///
    /// # Errors
    /// Names the receiver.
    async fn connect(&mut self) -> Result<(), ReceiverError> {
        if self.connection.is_none() {
            if let Some(at) = self.connected_at {
                sleep_until(at + CONNECT_INTERVAL).await;
            }
            self.connected_at = Some(Instant::now());
            let connected = self.forwarding.connect().await;
            self.connection = Some(connected?);
        }
        Ok(())
    }

    /// Begins to connect to a receiver that has used up its attempts.
    fn reconnect(&mut self) {
        let (forwarding, reports, pause) =
            (self.forwarding.clone(), Arc::clone(&self.reports), self.next_pause);
        let connect = async move {
            loop {
                sleep(pause).await;
                match forwarding.connect().await {
                    Ok(connection) => return connection,
                    Err(error) => reports.unreachable(false, || error.chain().to_string()),
                }
            }
        };
        self.reconnecting = Some(AbortOnDropHandle::new(tokio::spawn(connect)));
        self.next_pause = (2 * pause).min(MAX_DOWN_PAUSE);
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> ReceiverError {
        ReceiverError { doing, receiver: self.receiver(), source }
    }

    fn receiver(&self) -> String {
        self.forwarding.protocol.endpoint().to_string()
    }

    /// Sends lines, in order, until the receiver is abandoned. Returns once each is sent, or counted as lost.
    pub(super) async fn send_until(&mut self, abandoned: &CancellationToken, lines: Vec<Line>) {
        self.unsent.store(lines.len() as u64, Ordering::Relaxed);
        let is_done = abandoned.run_until_cancelled(Box::pin(self.send(lines))).await.is_some();
        if !is_done {
            self.reports.lost(Loss::Abandoned, self.unsent.load(Ordering::Relaxed));
        }
    }

    async fn send(&mut self, mut lines: Vec<Line>) {
        while !lines.is_empty() {
            if self.reconnecting.as_ref().is_some_and(|reconnecting| !reconnecting.is_finished()) {
                self.give_up(&lines);
                return;
            }
            let (count, bytes) = self.renderer.batch(&lines);
            let rest = lines.split_off(count);
            let packets = self.render(std::mem::replace(&mut lines, rest), bytes).await;
            let unsent = Undelivered {
                packets: &packets,
                later: lines.len() as u64,
                unsent: Arc::clone(&self.unsent),
            };
            self.deliver(unsent).await;
        }
    }

    /// Counts lines that are not sent, without the work of rendering them.
    fn give_up(&mut self, lines: &[Line]) {
        self.ordinal += lines.len() as u64;
        self.unsent.store(0, Ordering::Relaxed);
        self.reports.lost(Loss::Unreachable, self.renderer.messages(lines));
    }

    /// Renders a batch, off the async threads if it takes its time.
    async fn render(&mut self, lines: Vec<Line>, bytes: usize) -> Vec<Packet> {
        let (first, count) = (self.ordinal, lines.len() as u64);
        self.ordinal += count;
        let (packets, too_large) = if bytes <= INLINE_BYTES {
            self.renderer.render(&lines, first)
        } else {
            let renderer = Arc::clone(&self.renderer);
            match self.pool.render(move || renderer.render(&lines, first)).await {
                Some(rendered) => rendered,
                None => {
                    tracing::error!("the rendering of a task's output for its log receiver panicked");
                    (Vec::new(), count)
                }
            }
        };
        self.reports.lost(Loss::TooLarge, too_large);
        packets
    }

    async fn deliver(&mut self, mut unsent: Undelivered<'_>) {
        let retries = self.forwarding.protocol.retries();
        let rest = &mut unsent.packets;
        let (mut wait, mut left) = (retries.wait, retries.count);
        if let Some(reconnecting) = self.reconnecting.take() {
            self.connection = reconnecting.await.ok();
            left = 0;
        }
        loop {
            let is_old = self.connection.is_some();
            let Err(error) = self.attempt(rest, retries.write_timeout).await else {
                self.next_pause = self.first_pause;
                self.reports.reached(|| self.receiver());
                return;
            };
            self.connection = None;
            // A connection that has broken since is renewed at once. One that takes nothing has had its attempt.
            if is_old && error.source.kind() != ErrorKind::TimedOut {
                continue;
            }
            self.reports.unreachable(left > 0, || error.chain().to_string());
            if left == 0 {
                self.reports.lost(Loss::Unreachable, messages(std::mem::take(rest)));
                self.reconnect();
                return;
            }
            // The largest number means forever.
            left = if left == u32::MAX { left } else { left - 1 };
            sleep(wait).await;
            wait = if retries.grows { (wait * 3 / 2).min(MAX_WAIT) } else { wait };
        }
    }

    async fn attempt(&mut self, rest: &mut &[Packet], limit: Duration) -> Result<(), ReceiverError> {
        self.connect().await?;
        let (mut too_large, mut refused) = (0, 0);
        let sent = match &mut self.connection {
            None => Ok(()),
            Some(Connection::Stream(stream)) => send_stream(&mut **stream, rest, limit).await,
            Some(Connection::Udp(socket)) => {
                send_udp(socket, rest, limit, &mut too_large, &mut refused).await
            }
            Some(Connection::UnixDatagram(socket)) => {
                let by_file = self.forwarding.protocol == Protocol::Journald;
                send_unix(socket, rest, limit, by_file, &mut too_large).await
            }
        };
        self.reports.lost(Loss::TooLarge, too_large);
        self.reports.lost(Loss::Unreachable, refused);
        sent.map_err(|source| self.failed("send the output to", source))
    }
}

/// The packets of a batch that are not delivered yet. Dropped, also where the delivery is, it notes their number.
struct Undelivered<'a> {
    packets: &'a [Packet],
    /// Number of lines of the same call that come after the batch.
    later: u64,
    unsent: Arc<AtomicU64>,
}

impl Drop for Undelivered<'_> {
    fn drop(&mut self) {
        self.unsent.store(messages(self.packets) + self.later, Ordering::Relaxed);
    }
}

/// Returns the number of packets that something is to be sent of. Lines without text have nothing in some protocols, and
/// those that are too large have nothing and are counted already.
fn messages(packets: &[Packet]) -> u64 {
    packets.iter().filter(|packet| !packet.frames.is_empty()).count() as u64
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("it takes nothing for {limit:?}"))
}

/// Writes packets to a stream. Leaves in `rest`, at any time, those that are not written whole, or not answered.
async fn send_stream(stream: &mut dyn ByteStream, rest: &mut &[Packet], limit: Duration) -> io::Result<()> {
    // Nobody reads what is written after the receiver has closed the connection.
    if let Some(Ok(0)) = stream.read(&mut [0; 64]).now_or_never() {
        return Err(ErrorKind::ConnectionAborted.into());
    }
    let packets = *rest;
    let wants_acks = packets.iter().any(|packet| packet.ack.is_some());
    let bytes: Vec<u8> = packets.iter().flat_map(|packet| packet.frames.iter().flatten()).copied().collect();
    let ends = packets.iter().scan(0, |end, packet| {
        *end += packet.frames.iter().map(Vec::len).sum::<usize>();
        Some(*end)
    });
    let ends: Vec<_> = ends.collect();
    let mut written = 0;
    loop {
        if !wants_acks {
            *rest = &packets[ends.partition_point(|end| *end <= written)..];
        }
        if written == bytes.len() {
            break;
        }
        let next = &bytes[written..bytes.len().min(written + FLUSH_BYTES)];
        let length = timeout(limit, stream.write(next)).await.map_err(|_| late(limit))??;
        if length == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        // TLS holds back what it has taken, and loses that with the connection.
        timeout(limit, stream.flush()).await.map_err(|_| late(limit))??;
        written += length;
    }
    if wants_acks { read_acks(stream, rest, limit).await } else { Ok(()) }
}

/// Reads the answers to packets, which `limit` is for as a whole.
async fn read_acks(stream: &mut dyn ByteStream, rest: &mut &[Packet], limit: Duration) -> io::Result<()> {
    let unanswered = || io::Error::new(ErrorKind::TimedOut, format!("it has not answered in {limit:?}"));
    timeout(limit, read_all_acks(stream, rest)).await.map_err(|_| unanswered())?
}

async fn read_all_acks(stream: &mut dyn ByteStream, rest: &mut &[Packet]) -> io::Result<()> {
    let sent = *rest;
    let mut missing: HashSet<&str> = sent.iter().filter_map(|packet| packet.ack.as_deref()).collect();
    let mut answer: Vec<u8> = Vec::new();
    loop {
        let is_missing = |packet: &Packet| packet.ack.as_deref().is_some_and(|id| missing.contains(id));
        let answered = rest.iter().position(is_missing).unwrap_or(rest.len());
        *rest = &rest[answered..];
        if rest.is_empty() {
            return Ok(());
        }
        let mut unread = &answer[..];
        let mut decoder = rmp_serde::Deserializer::new(&mut unread);
        decoder.set_max_depth(MAX_ACK_DEPTH);
        let decoded = Ack::deserialize(&mut decoder);
        drop(decoder);
        match decoded {
            Ok(Ack { ack }) => {
                let left = unread.len();
                answer.drain(..answer.len() - left);
                if !missing.remove(ack.as_str()) {
                    return Err(io::Error::other("it answers to a message that it was not sent"));
                }
            }
            Err(_) if answer.len() < MAX_ACK_BYTES => {
                let mut more = [0; 512];
                match stream.read(&mut more).await? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    length => answer.extend_from_slice(&more[..length]),
                }
            }
            Err(error) => return Err(io::Error::other(format!("it answers in another protocol: {error}"))),
        }
    }
}

/// Sends packets by UDP, and counts those that are too large, and those that the kernel doesn't send. That nobody listens
/// is known of the datagram before, at best, which changes nothing.
async fn send_udp(
    socket: &UdpSocket,
    rest: &mut &[Packet],
    limit: Duration,
    too_large: &mut u64,
    refused: &mut u64,
) -> io::Result<()> {
    while let Some(packet) = rest.first() {
        let (mut is_too_large, mut is_refused) = (false, false);
        for frame in &packet.frames {
            let sent = match send_datagram(socket, frame, limit).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    send_datagram(socket, frame, limit).await
                }
                sent => sent,
            };
            match sent {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => is_refused = true,
                Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => is_too_large = true,
                Err(error) => return Err(error),
            }
        }
        *too_large += u64::from(is_too_large);
        *refused += u64::from(is_refused && !is_too_large);
        *rest = &rest[1..];
    }
    Ok(())
}

async fn send_datagram(socket: &UdpSocket, frame: &[u8], limit: Duration) -> io::Result<usize> {
    timeout(limit, socket.send(frame)).await.map_err(|_| late(limit))?
}

/// Sends packets to a unix socket, and counts those that are too large for it, unless they can be sent in a file.
async fn send_unix(
    socket: &UnixDatagram,
    rest: &mut &[Packet],
    limit: Duration,
    by_file: bool,
    too_large: &mut u64,
) -> io::Result<()> {
    while let Some(packet) = rest.first() {
        let mut is_lost = false;
        for frame in &packet.frames {
            match timeout(limit, socket.send(frame)).await.map_err(|_| late(limit))? {
                Ok(_) => {}
                Err(error) if is_too_large(&error) && by_file => {
                    let file = journald::sealed(frame)?;
                    let send = socket.async_io(Interest::WRITABLE, || journald::send_by_file(socket, &file));
                    timeout(limit, send).await.map_err(|_| late(limit))??;
                }
                Err(error) if is_too_large(&error) => is_lost = true,
                Err(error) => return Err(error),
            }
        }
        *too_large += u64::from(is_lost);
        *rest = &rest[1..];
    }
    Ok(())
}

fn is_too_large(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EMSGSIZE | nix::libc::ENOBUFS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use std::time::SystemTime;

    use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf};
    use tokio::net::TcpListener;

    use super::super::reports::tests::{Told, kept};
    use super::super::tests::forwarding;
    use super::super::{Endpoint, Fluentd, HostPath, Reach, Syslog, SyslogFormat};
    use super::*;
    use crate::logs::{LogEvent, Stream};

    fn line(text: &str) -> Line {
        Line { stream: Stream::Stdout, text: text.into(), at: SystemTime::UNIX_EPOCH, part: None }
    }

    fn sender(protocol: Protocol) -> (Sender, Told) {
        let (reports, told) = kept();
        (Sender::new(&forwarding(protocol), &WriterPool::new().unwrap(), reports), told)
    }

    fn syslog(endpoint: Endpoint) -> Protocol {
        Protocol::Syslog(Syslog { endpoint, facility: 3, format: SyslogFormat::Local })
    }

    /// A message of fluentd's that asks for an answer.
    type Message = (String, u64, serde_json::Value, BTreeMap<String, String>);

    /// Returns a receiver of fluentd's protocol that is asked for answers.
    fn asking(address: String) -> Protocol {
        Protocol::Fluentd(Fluentd {
            endpoint: Endpoint::Tcp(address),
            retry_wait: Duration::from_millis(1),
            max_retries: 5,
            sub_second_precision: false,
            request_ack: true,
            connects_later: false,
            write_timeout: None,
        })
    }

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    async fn read_line(from: &mut BufReader<tokio::net::TcpStream>) -> String {
        let mut text = String::new();
        from.read_line(&mut text).await.unwrap();
        text.trim_end().rsplit_once(": ").unwrap().1.to_owned()
    }

    #[tokio::test]
    async fn a_connection_that_the_receiver_has_closed_is_renewed() {
        let (listener, address) = listener().await;
        let (mut sender, events) = sender(syslog(Endpoint::Tcp(address)));
        sender.send(vec![line("one"), line("two")]).await;
        let mut first = BufReader::new(listener.accept().await.unwrap().0);
        assert_eq!(
            (read_line(&mut first).await, read_line(&mut first).await),
            ("one".to_owned(), "two".to_owned())
        );
        drop(first);
        // A write may succeed until the close is noticed.
        let mut accept = Box::pin(listener.accept());
        let accepted = loop {
            sender.send(vec![line("three")]).await;
            sleep(Duration::from_millis(1)).await;
            if let Some(accepted) = (&mut accept).now_or_never() {
                break accepted;
            }
        };
        assert_eq!(read_line(&mut BufReader::new(accepted.unwrap().0)).await, "three");
        assert!(events.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn lines_are_given_up_until_the_receiver_is_back_and_counted() {
        let (listener, address) = listener().await;
        let (mut sender, events) = sender(syslog(Endpoint::Tcp(address.clone())));
        (sender.first_pause, sender.next_pause) = (Duration::from_millis(1), Duration::from_millis(1));
        drop(listener);
        tokio::time::pause();
        sender.send(vec![line("one"), line("two")]).await;
        tokio::time::resume();
        let told = events.lock().unwrap().clone();
        assert!(matches!(
            &told[..],
            [LogEvent::ReceiverUnreachable { .. }, LogEvent::Unsent { lines: 2, .. }]
        ));
        sender.send(vec![line("three")]).await;
        // The sender connects by itself.
        let listener = TcpListener::bind(address).await.unwrap();
        let mut reader = BufReader::new(listener.accept().await.unwrap().0);
        let is_back = |sender: &Sender| {
            let reached = LogEvent::ReceiverReached { receiver: sender.receiver() };
            events.lock().unwrap().contains(&reached)
        };
        while !is_back(&sender) {
            sender.send(vec![line("four")]).await;
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(read_line(&mut reader).await, "four");
        let last = events.lock().unwrap().pop().unwrap();
        assert!(matches!(last, LogEvent::Unsent { .. }), "{last:?}");
    }

    #[tokio::test]
    async fn a_message_is_sent_again_until_it_is_answered() {
        let (listener, address) = listener().await;
        let (mut sender, _) = sender(asking(address));
        let receiver = async {
            let mut asked = Vec::new();
            for answers in ["", "of another", "right"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let id = read_id(&mut stream).await;
                match answers {
                    "" => {}
                    "right" => answer(&mut stream, &id).await,
                    other => answer(&mut stream, other).await,
                }
                asked.push(id);
            }
            asked
        };
        let (asked, ()) = tokio::join!(receiver, sender.send(vec![line("one")]));
        assert_eq!(asked, [asked[0].as_str(); 3], "the same message");
    }

    /// Returns the id of the first message of a connection.
    async fn read_id(stream: &mut tokio::net::TcpStream) -> String {
        let mut bytes = Vec::new();
        loop {
            stream.read_buf(&mut bytes).await.unwrap();
            if let Ok(message) = rmp_serde::from_read::<_, Message>(&bytes[..]) {
                return message.3["chunk"].clone();
            }
        }
    }

    async fn answer(stream: &mut tokio::net::TcpStream, id: &str) {
        let answer = BTreeMap::from([("ack", id)]);
        stream.write_all(&rmp_serde::to_vec_named(&answer).unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn of_lines_that_are_given_up_those_that_were_answered_are_not_counted() {
        let (listener, address) = listener().await;
        let (mut sender, events) = sender(asking(address));
        let abandoned = CancellationToken::new();
        let receiver = async {
            let (mut first, _) = listener.accept().await.unwrap();
            let id = read_id(&mut first).await;
            answer(&mut first, &id).await;
            answer(&mut first, "of another").await;
            let (mut second, _) = listener.accept().await.unwrap();
            assert_ne!(read_id(&mut second).await, id, "the first message is answered");
            abandoned.cancel();
        };
        tokio::join!(receiver, sender.send_until(&abandoned, vec![line("one"), line("two")]));
        drop(sender);
        let told = events.lock().unwrap();
        assert!(matches!(told.last(), Some(LogEvent::Unsent { lines: 1, .. })), "{told:?}");
    }

    #[tokio::test]
    async fn lines_are_not_rendered_for_a_receiver_that_is_down() {
        let (mut sender, events) = sender(syslog(Endpoint::Tcp("127.0.0.1:1".to_owned())));
        sender.reconnecting = Some(AbortOnDropHandle::new(tokio::spawn(std::future::pending())));
        let large = "x".repeat(2 * INLINE_BYTES);
        let sent = sender.send(vec![line(&large), line(""), line("two")]).now_or_never();
        assert!(sent.is_some(), "a thread renders them");
        drop(sender);
        let told = events.lock().unwrap();
        assert!(matches!(&told[..], [LogEvent::Unsent { lines: 2, .. }]), "{told:?}");
    }

    /// A stream that holds back what it takes until it is flushed, which works a number of times.
    struct HoldingBack {
        held: usize,
        sent: usize,
        flushes: u32,
        /// Whether it breaks then, rather than being slow.
        breaks: bool,
    }

    impl AsyncRead for HoldingBack {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for HoldingBack {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.held += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.flushes == 0 {
                return if self.breaks {
                    Poll::Ready(Err(ErrorKind::BrokenPipe.into()))
                } else {
                    Poll::Pending
                };
            }
            self.flushes -= 1;
            self.sent += std::mem::take(&mut self.held);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_a_stream_holds_back_is_not_sent() {
        let packet = |bytes| Packet { frames: vec![vec![b'x'; bytes]], ack: None };
        let packets = [packet(10 << 10), packet(10 << 10), packet(10 << 10)];
        for (flushes, breaks, left) in [(0, true, 3), (1, true, 2), (1, false, 2), (2, true, 0)] {
            let mut stream = HoldingBack { held: 0, sent: 0, flushes, breaks };
            let mut rest = &packets[..];
            let sent = send_stream(&mut stream, &mut rest, Duration::from_secs(10)).now_or_never();
            assert_eq!(rest.len(), left, "{sent:?} after {} bytes", stream.sent);
            assert_eq!(matches!(sent, Some(Ok(()))), left == 0);
        }
    }

    #[tokio::test]
    async fn connections_that_break_at_once_are_apart() {
        let (_listener, address) = listener().await;
        let (mut sender, _) = sender(syslog(Endpoint::Tcp(address)));
        sender.connect().await.unwrap();
        let first = sender.connected_at.unwrap();
        sender.connection = None;
        sender.connect().await.unwrap();
        assert!(sender.connected_at.unwrap() - first >= CONNECT_INTERVAL);
    }

    #[tokio::test]
    async fn a_line_too_large_for_its_socket_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let (mut sender, events) = sender(syslog(Endpoint::UnixDatagram(HostPath::of_host(&path))));
        let mut forwarding = sender.forwarding.clone();
        forwarding.container.tag = "x".repeat(1 << 20);
        sender.renderer = Arc::new(Renderer::new(&forwarding));
        sender.send(vec![line("one")]).await;
        let told = events.lock().unwrap();
        assert!(matches!(&told[..], [LogEvent::Unsent { lines: 1, .. }]), "{told:?}");
    }

    #[tokio::test]
    async fn a_unix_socket_of_either_kind_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (mut sender, events) = sender(syslog(Endpoint::Unix(HostPath::of_host(&path))));
        sender.send(vec![line("one")]).await;
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).await.unwrap();
        assert!(bytes[..length].ends_with(b": one\n"));
        assert!(events.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_entry_too_large_for_a_datagram_is_sent_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (mut sender, events) = sender(Protocol::Journald);
        let endpoint = Endpoint::UnixDatagram(HostPath::of_host(&path));
        sender.connection = Some(endpoint.connect(&Reach::Anywhere).await.unwrap());
        let mut forwarding = sender.forwarding.clone();
        forwarding.container.attributes.insert("large".to_owned(), "x".repeat(1 << 20));
        sender.renderer = Arc::new(Renderer::new(&forwarding));
        sender.send(vec![line("one")]).await;
        assert!(events.lock().unwrap().is_empty());
        let mut bytes = [0; 256];
        assert_eq!(socket.recv(&mut bytes).await.unwrap(), 0, "the entry is in the file alone");
    }
}
