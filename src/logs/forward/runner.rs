//! Forwards the streams of a task: looks at what waits in a pipe, sends its lines, then moves the same bytes on to
//! Nomad's log.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::PollFlags;
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Forwarding;
use super::lines::{Line, Splitter};
use super::outlet::{self, NomadLog, Outlet};
use super::queue::{self, Queue};
use super::reports::{Loss, Reports};
use super::sender::Sender;
use crate::logs::collector::{Backoff, EventReporter};
use crate::logs::sink::{Peeked, Taken, peek};
use crate::logs::{LogEvent, Stream, WriterPool};
use crate::sys::async_fd::{KernelFd, Ready};

/// Maximum number of bytes that are looked at at once.
const PEEK_BYTES: usize = 64 << 10;
/// First and longest interval between looks at an unfinished line, which doubles while nothing is notified: some kernels
/// (Linux 5.5 to 5.13) notify only of output in a pipe that was empty.
const UNFINISHED_INTERVAL: Duration = Duration::from_secs(1);
const MAX_UNFINISHED_INTERVAL: Duration = Duration::from_secs(30);
/// Time for which Nomad's pipe is full, or nobody reads it, before that is told.
const LATE_READER: Duration = Duration::from_secs(10);
/// Time in which Nomad's collector, which is there before the task, opens its pipe.
const READER_GRACE: Duration = Duration::from_secs(5);
/// Interval between looks at whether Nomad's pipe is read or has room, where no event tells.
const READER_INTERVAL: Duration = Duration::from_millis(20);

/// Starts to forward output from the reading ends of a task's pipes. Without `forwarding`, of which all is lost, it
/// goes to Nomad's log alone.
///
/// # Errors
/// If the kernel can't notify about one of the pipes.
pub(in crate::logs) fn start(
    pipes: Vec<(Stream, OwnedFd)>,
    forwarding: Option<&Forwarding>,
    mut log: NomadLog,
    pool: &WriterPool,
    stopped: &Arc<AtomicBool>,
    abandoned: &CancellationToken,
    report: impl Fn(LogEvent) + Clone + Send + Sync + 'static,
) -> std::io::Result<JoinSet<()>> {
    let mut running = JoinSet::new();
    let reports = Reports::new(Arc::new(report.clone()));
    reports.tell_regularly();
    let feed = match forwarding {
        Some(forwarding) => feed(forwarding, pool, &reports, abandoned, &mut running, &report),
        None => Feed::Nobody,
    };
    for (stream, pipe) in pipes {
        let forwarder = Forwarder {
            stream,
            pipe: Arc::new(KernelFd::new(pipe)?),
            outlet: Outlet::of(&mut log, stream, Arc::clone(stopped))?,
            feed: feed.clone(),
            pool: pool.clone(),
            reader_is_due: Instant::now() + READER_GRACE,
            reporter: EventReporter::new(stream, report.clone()),
            reports: Arc::clone(&reports),
        };
        running.spawn(forwarder.run());
    }
    Ok(running)
}

/// Returns the way of lines to a receiver, and starts what sends them.
fn feed(
    forwarding: &Forwarding,
    pool: &WriterPool,
    reports: &Arc<Reports>,
    abandoned: &CancellationToken,
    running: &mut JoinSet<()>,
    report: &impl Fn(LogEvent),
) -> Feed {
    let mut sender = Sender::new(forwarding, pool, Arc::clone(reports));
    let abandoned = abandoned.clone();
    let queue = forwarding.buffer_bytes.and_then(|bytes| {
        let queue = queue::new(bytes);
        if queue.is_none() {
            report(LogEvent::Unbuffered { bytes });
        }
        queue
    });
    if let Some((queue, mut end)) = queue {
        running.spawn(async move {
            while let Some((lines, _room)) = end.next().await {
                sender.send_until(&abandoned, lines).await;
            }
        });
        return Feed::Queue(queue);
    }
    let (batches, mut awaited) = mpsc::channel::<Batch>(1);
    running.spawn(async move {
        while let Some(Batch { lines, done }) = awaited.recv().await {
            sender.send_until(&abandoned, lines).await;
            // A stream that is stopped meanwhile doesn't wait.
            let _ = done.send(());
        }
    });
    Feed::Direct(batches)
}

/// Lines whose stream waits until each is sent, or counted as lost.
struct Batch {
    lines: Vec<Line>,
    done: oneshot::Sender<()>,
}

/// The way of lines to the receiver.
#[derive(Clone)]
enum Feed {
    Direct(mpsc::Sender<Batch>),
    Queue(Queue),
    Nobody,
}

struct Forwarder<F> {
    stream: Stream,
    pipe: Arc<KernelFd>,
    outlet: Outlet,
    feed: Feed,
    pool: WriterPool,
    /// Time from which on output is discarded while nobody reads Nomad's pipe.
    reader_is_due: Instant,
    reporter: EventReporter<F>,
    reports: Arc<Reports>,
}

/// The thing that waits in a pipe.
enum Seen {
    Nothing,
    /// An unfinished line alone.
    Unfinished,
    Eof,
    /// Lines, and the number of bytes that they are made from.
    Lines(Vec<Line>, u64),
}

impl<F: Fn(LogEvent) + Clone + Send + Sync + 'static> Forwarder<F> {
    async fn run(mut self) {
        let (mut splitter, mut backoff) = (Splitter::new(self.stream), Backoff::default());
        let mut interval = UNFINISHED_INTERVAL;
        let pipe = Arc::clone(&self.pipe);
        // As in the collector: the first look doesn't wait for an event.
        let mut ready: Option<Ready<'_>> = None;
        loop {
            let source = Arc::clone(&pipe);
            let work = move || {
                let seen = look(&source, &mut splitter);
                (splitter, seen)
            };
            let Some((back, seen)) = self.pool.run(work, |_| ()).await else {
                tracing::error!("the forwarder of a task's output panicked");
                return;
            };
            splitter = back;
            match seen {
                Ok(Seen::Lines(lines, bytes)) => {
                    if !self.feed(lines).await || !self.pass_on(bytes).await {
                        return;
                    }
                    (backoff, interval) = (Backoff::default(), UNFINISHED_INTERVAL);
                }
                Ok(Seen::Eof) => break,
                Ok(Seen::Nothing) => {
                    clear(ready.take());
                    ready = Some(pipe.ready().await);
                }
                Ok(Seen::Unfinished) => {
                    clear(ready.take());
                    ready = tokio::time::timeout(interval, pipe.ready()).await.ok();
                    interval = if ready.is_some() { UNFINISHED_INTERVAL } else { longer(interval) };
                }
                Err(error) => {
                    self.reporter.waits(format!("can't look at the output: {error}"));
                    backoff.wait().await;
                }
            }
        }
        let Self { outlet, feed, .. } = self;
        // What sends the lines ends with the last of its feeds.
        drop(feed);
        outlet.drained().await;
    }

    /// Sends lines to the receiver, or adds them to its buffer. Returns false if what sends them has panicked.
    async fn feed(&mut self, lines: Vec<Line>) -> bool {
        match &self.feed {
            Feed::Direct(batches) => {
                let (done, sent) = oneshot::channel();
                return batches.send(Batch { lines, done }).await.is_ok() && sent.await.is_ok();
            }
            Feed::Queue(queue) => self.reports.lost(Loss::BufferFull, queue.push(lines) as u64),
            Feed::Nobody => self.reports.lost(Loss::Unknown, lines.len() as u64),
        }
        true
    }

    /// Moves bytes from the pipe to Nomad's log, or what is left of them there. Returns false if that can't go on.
    async fn pass_on(&mut self, bytes: u64) -> bool {
        let (mut left, mut backoff, mut waits_since, mut is_discarded) =
            (bytes, Backoff::default(), None, false);
        let mut nomads = self.outlet.pipe();
        while left > 0 {
            let room = outlet::room(nomads.as_deref()).await;
            let source = Arc::clone(&self.pipe);
            let mut outlet = std::mem::replace(&mut self.outlet, Outlet::Nothing);
            let work = move || {
                let discarded = if is_discarded { Some(&mut Outlet::Nothing) } else { None };
                let outcome = discarded.unwrap_or(&mut outlet).take(source.as_fd(), left);
                (outlet, outcome)
            };
            let reporter = &mut self.reporter;
            let late = |took| reporter.waits(format!("a write to the disk has not finished in {took:?}"));
            let Some((back, outcome)) = self.pool.run(work, late).await else {
                tracing::error!("the forwarder of a task's output panicked");
                return false;
            };
            self.outlet = back;
            for skipped in self.outlet.skipped() {
                self.reporter.skipped(skipped);
            }
            match outcome {
                Ok(Taken::Full) => {
                    let is_wrong = room.is_some() && waits_since.is_some();
                    clear(room);
                    self.waits_for_reader(&mut waits_since);
                    if is_wrong {
                        self.outlet.renew();
                        nomads = self.outlet.pipe();
                        tokio::time::sleep(READER_INTERVAL).await;
                    }
                }
                Ok(Taken::Unread) if Instant::now() < self.reader_is_due => {
                    self.waits_for_reader(&mut waits_since);
                    tokio::time::sleep(READER_INTERVAL).await;
                }
                // A collector that comes back has what is output from then on.
                Ok(Taken::Unread) => {
                    is_discarded = true;
                    self.reporter.discards("Nomad's log collector does not read its pipe");
                }
                // Somebody else has read it, such as the task itself: what is there now is looked at anew.
                Ok(Taken::Nothing) => return true,
                Ok(Taken::Bytes(moved)) => {
                    left -= moved.min(left);
                    if !is_discarded {
                        self.reporter.resumed();
                    }
                    (backoff, waits_since) = (Backoff::default(), None);
                }
                Err(error) => {
                    self.reporter.waits(error.to_string());
                    backoff.wait().await;
                }
            }
        }
        true
    }

    /// Notes that output waits for Nomad's collector, and tells of it if that has lasted.
    fn waits_for_reader(&mut self, since: &mut Option<Instant>) {
        if since.get_or_insert_with(Instant::now).elapsed() >= LATE_READER {
            self.reporter.waits(format!("Nomad's log collector reads nothing for {LATE_READER:?}"));
        }
    }
}

/// Returns the interval after one in which nothing was notified.
fn longer(interval: Duration) -> Duration {
    (2 * interval).min(MAX_UNFINISHED_INTERVAL)
}

/// Marks a notification as handled, if there was one.
fn clear(notification: Option<Ready<'_>>) {
    if let Some(notification) = notification {
        notification.clear();
    }
}

/// Looks at what waits in the pipe, and leaves it there.
fn look(pipe: &KernelFd, splitter: &mut Splitter) -> Result<Seen, Errno> {
    // Asked first: what a last writer has written is in the pipe by then.
    let (is_last, waiting) = (has_no_writer(pipe)?, rustix::io::ioctl_fionread(pipe.as_fd())?);
    let head = match peek(pipe.as_fd(), PEEK_BYTES)? {
        Peeked::Empty => return Ok(Seen::Nothing),
        Peeked::Eof => return Ok(Seen::Eof),
        Peeked::Head(head) => head,
    };
    let at = SystemTime::now();
    let is_all = head.len() as u64 >= waiting;
    let (lines, taken) = match splitter.split(&head, is_last && is_all, at) {
        // The kernel shows no more of a pipe that is full of tiny writes.
        (_, 0) if !is_all => splitter.split(&head, true, at),
        split => split,
    };
    Ok(if taken == 0 { Seen::Unfinished } else { Seen::Lines(lines, taken as u64) })
}

fn has_no_writer(pipe: &KernelFd) -> Result<bool, Errno> {
    Ok(outlet::events(pipe.as_fd(), PollFlags::empty())?.contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::Mutex;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::super::reports::tests::kept;
    use super::*;

    fn forwarder(pipe: OwnedFd) -> Forwarder<impl Fn(LogEvent) + Clone + Send + Sync + 'static> {
        forwarder_telling(pipe, |_: LogEvent| ())
    }

    fn forwarder_telling<F: Fn(LogEvent) + Clone>(pipe: OwnedFd, report: F) -> Forwarder<F> {
        Forwarder {
            stream: Stream::Stdout,
            pipe: Arc::new(KernelFd::new(pipe).unwrap()),
            outlet: Outlet::Nothing,
            feed: Feed::Nobody,
            pool: WriterPool::new().unwrap(),
            reader_is_due: Instant::now(),
            reporter: EventReporter::new(Stream::Stdout, report),
            reports: Reports::new(Arc::new(|_: LogEvent| ())),
        }
    }

    #[tokio::test]
    async fn bytes_that_the_task_has_read_itself_are_not_waited_for() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        rustix::io::write(&writer, b"one\n").unwrap();
        let mut forwarder = forwarder(reader);
        assert!(forwarder.pass_on(1000).await, "996 of them are not there");
    }

    #[tokio::test]
    async fn output_is_discarded_while_nobody_reads_and_that_is_told() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (nomads, into) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let told = Arc::<Mutex<Vec<LogEvent>>>::default();
        let keeper = Arc::clone(&told);
        let mut forwarder = forwarder_telling(reader, move |event| keeper.lock().unwrap().push(event));
        forwarder.outlet = Outlet::Pipe(Arc::new(KernelFd::writable(into).unwrap()));
        let by_writer = format!("/proc/self/fd/{}", forwarder.outlet.pipe().unwrap().as_fd().as_raw_fd());
        drop(nomads);
        for _ in 0..2 {
            rustix::io::write(&writer, b"one\n").unwrap();
            assert!(forwarder.pass_on(4).await);
        }
        assert_eq!(rustix::io::ioctl_fionread(forwarder.pipe.as_fd()), Ok(0));
        let is_discarded = matches!(told.lock().unwrap()[..], [LogEvent::Discarded { .. }]);
        assert!(is_discarded, "{:?}", told.lock().unwrap());
        let mut nomads = std::fs::OpenOptions::new();
        let nomads = nomads.read(true).custom_flags(nix::libc::O_NONBLOCK).open(by_writer).unwrap();
        rustix::io::write(&writer, b"two\n").unwrap();
        assert!(forwarder.pass_on(4).await);
        assert_eq!(rustix::io::ioctl_fionread(&nomads), Ok(4));
        assert_eq!(told.lock().unwrap().last(), Some(&LogEvent::Resumed { stream: Stream::Stdout }));
    }

    #[tokio::test]
    async fn lines_without_a_known_receiver_are_counted() {
        let (reader, _writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (reports, told) = kept();
        let mut forwarder = Forwarder { reports, ..forwarder(reader) };
        let text = b"one".to_vec();
        let line = Line { stream: Stream::Stdout, text, at: SystemTime::UNIX_EPOCH, part: None };
        assert!(forwarder.feed(vec![line]).await);
        assert!(matches!(told.lock().unwrap()[..], [LogEvent::Unsent { lines: 1, .. }]));
    }

    #[test]
    fn an_unfinished_line_is_looked_at_less_and_less_often() {
        assert_eq!(longer(UNFINISHED_INTERVAL), Duration::from_secs(2));
        assert_eq!(longer(Duration::from_secs(20)), MAX_UNFINISHED_INTERVAL);
    }
}
