//! Forwards the streams of a task: looks at what waits in a pipe, sends its lines, then moves the same bytes on to
//! Nomad's log.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::Mutex;
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
/// Interval between looks at an unfinished line: some kernels (Linux 5.5 to 5.13) notify only of output in a pipe that
/// was empty.
const UNFINISHED_INTERVAL: Duration = Duration::from_secs(1);

/// Starts to forward output from the reading ends of a task's pipes. Without `forwarding`, of which all is lost, it goes
/// to Nomad's log alone.
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
        Some(forwarding) => feed(forwarding, &reports, abandoned, &mut running, &report),
        None => Feed::Nobody,
    };
    for (stream, pipe) in pipes {
        let forwarder = Forwarder {
            stream,
            pipe: Arc::new(KernelFd::new(pipe)?),
            outlet: Outlet::of(&mut log, stream, Arc::clone(stopped))?,
            feed: feed.clone(),
            pool: pool.clone(),
            abandoned: abandoned.clone(),
            reporter: EventReporter::new(stream, report.clone()),
            reports: Arc::clone(&reports),
        };
        running.spawn(forwarder.run());
    }
    Ok(running)
}

/// Returns the way of lines to a receiver, and starts what empties its buffer, if it has one.
fn feed(
    forwarding: &Forwarding,
    reports: &Arc<Reports>,
    abandoned: &CancellationToken,
    running: &mut JoinSet<()>,
    report: &impl Fn(LogEvent),
) -> Feed {
    let sender = Arc::new(Mutex::new(Sender::new(forwarding, Arc::clone(reports))));
    let Some(bytes) = forwarding.buffer_bytes else { return Feed::Direct(sender) };
    let Some((queue, mut end)) = queue::new(bytes) else {
        report(LogEvent::Unbuffered { bytes });
        return Feed::Direct(sender);
    };
    let (abandoned, reports) = (abandoned.clone(), Arc::clone(reports));
    running.spawn(async move {
        let drained = abandoned.run_until_cancelled(end.drain(sender)).await;
        if drained.is_none() {
            reports.lost(Loss::Abandoned, end.left());
        }
    });
    Feed::Queue(queue)
}

/// The way of lines to the receiver.
#[derive(Clone)]
enum Feed {
    Direct(Arc<Mutex<Sender>>),
    Queue(Queue),
    Nobody,
}

impl Feed {
    /// Sends lines, or adds them to the buffer, and returns how many didn't fit.
    async fn send(&self, lines: Vec<Line>) -> usize {
        match self {
            Self::Direct(sender) => {
                sender.lock().await.send(&lines).await;
                0
            }
            Self::Queue(queue) => queue.push(lines),
            Self::Nobody => 0,
        }
    }
}

struct Forwarder<F> {
    stream: Stream,
    pipe: Arc<KernelFd>,
    outlet: Outlet,
    feed: Feed,
    pool: WriterPool,
    abandoned: CancellationToken,
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
                    self.feed(lines).await;
                    if !self.pass_on(bytes).await {
                        return;
                    }
                    backoff = Backoff::default();
                }
                Ok(Seen::Eof) => break,
                Ok(Seen::Nothing) => {
                    clear(ready.take());
                    ready = Some(pipe.ready().await);
                }
                Ok(Seen::Unfinished) => {
                    clear(ready.take());
                    ready = tokio::time::timeout(UNFINISHED_INTERVAL, pipe.ready()).await.ok();
                }
                Err(error) => {
                    self.reporter.waits(format!("can't look at the output: {error}"));
                    backoff.wait().await;
                }
            }
        }
        // The buffer's other end ends with the last of its feeds.
        let Self { outlet, .. } = self;
        outlet.drained().await;
    }

    /// Sends lines to the receiver, unless it is given up.
    async fn feed(&mut self, lines: Vec<Line>) {
        let count = lines.len();
        let sent = Box::pin(self.feed.send(lines));
        match self.abandoned.run_until_cancelled(sent).await {
            Some(dropped) => self.reports.lost(Loss::BufferFull, dropped as u64),
            None => self.reports.lost(Loss::Abandoned, count as u64),
        }
    }

    /// Moves bytes from the pipe to Nomad's log, or what is left of them there. Returns false if that can't go on.
    async fn pass_on(&mut self, bytes: u64) -> bool {
        let (mut left, mut backoff) = (bytes, Backoff::default());
        let nomads = self.outlet.pipe();
        while left > 0 {
            let room = outlet::room(nomads.as_deref()).await;
            let source = Arc::clone(&self.pipe);
            let mut outlet = std::mem::replace(&mut self.outlet, Outlet::Nothing);
            let work = move || {
                let outcome = outlet.take(source.as_fd(), left);
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
                Ok(Taken::Full) => clear(room),
                // Somebody else has read it, such as the task itself: what is there now is looked at anew.
                Ok(Taken::Nothing) => return true,
                Ok(Taken::Bytes(moved)) => {
                    left -= moved.min(left);
                    self.reporter.resumed();
                    backoff = Backoff::default();
                }
                Err(error) => {
                    self.reporter.waits(error.to_string());
                    backoff.wait().await;
                }
            }
        }
        true
    }
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
    let fd = pipe.as_fd();
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn forwarder(pipe: OwnedFd) -> Forwarder<impl Fn(LogEvent) + Clone + Send + Sync + 'static> {
        Forwarder {
            stream: Stream::Stdout,
            pipe: Arc::new(KernelFd::new(pipe).unwrap()),
            outlet: Outlet::Nothing,
            feed: Feed::Nobody,
            pool: WriterPool::new().unwrap(),
            abandoned: CancellationToken::new(),
            reporter: EventReporter::new(Stream::Stdout, |_: LogEvent| ()),
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
}
