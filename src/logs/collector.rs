//! Collects a task's output: writes it from its pipes to its log files until all writers are gone, and reports when it
//! can't. Output that goes to a log receiver as well is moved by `forward`. An idle stream costs nothing, since it is
//! awaited by its pipe's descriptor; one thread at a time moves a stream's output.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::forward::{self, Forwarding, NomadLog};
use super::sink::{Moved, Sink, SkippedFile};
use super::{Stream, Target, WriterPool};
use crate::sys::async_fd::{KernelFd, Ready};

/// First delay of the backoff after a failed write; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Minimum time between two reports of the same problem.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// An event of a task's log collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogEvent {
    /// Output waits in a stream's pipe, because it can't be written.
    Blocked {
        stream: Stream,
        why: String,
    },
    Resumed {
        stream: Stream,
    },
    /// A stream's output is not in Nomad's log.
    Discarded {
        stream: Stream,
        why: String,
    },
    SkippedFile(SkippedFile),
    /// A log receiver can't be reached.
    ReceiverUnreachable {
        why: String,
        /// Whether the output waits for it, rather than going on without.
        waits: bool,
    },
    /// A log receiver is reached again.
    ReceiverReached {
        receiver: String,
    },
    /// Lines that a log receiver does not get, beyond those of earlier events.
    Unsent {
        lines: u64,
        /// How many for which reasons.
        why: String,
    },
    /// A task's lines have no buffer, since those of other tasks leave no room.
    Unbuffered {
        /// Size of the buffer that it was to have.
        bytes: u64,
    },
}

/// The collector of one task's output. Dropping it stops the collection; unwritten output stays in the pipes.
pub(crate) struct LogCollector {
    streams: JoinSet<()>,
    /// Set on drop, for a write that is running on a thread meanwhile.
    stopped: Arc<AtomicBool>,
    /// Cancelled once no log receiver is waited for any more.
    abandoned: CancellationToken,
}

impl LogCollector {
    /// Starts to collect output from the reading ends of a task's pipes. A pipe must have had a writer ever since,
    /// until the task's own opened it: a pipe without one counts as ended.
    ///
    /// # Errors
    /// If the kernel can't notify about one of the pipes.
    pub(crate) fn start(
        pipes: Vec<(Stream, OwnedFd)>,
        target: &Target,
        pool: &WriterPool,
        report: impl Fn(LogEvent) + Clone + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (mut streams, stopped) = (JoinSet::new(), Arc::<AtomicBool>::default());
        for (stream, pipe) in pipes {
            let pipe = Arc::new(KernelFd::new(pipe)?);
            let reporter = EventReporter::new(stream, report.clone());
            streams.spawn(run(
                pipe,
                Sink::new(target.clone(), stream, Arc::clone(&stopped)),
                pool.clone(),
                reporter,
            ));
        }
        Ok(Self { streams, stopped, abandoned: CancellationToken::new() })
    }

    /// Starts to send output from the reading ends of a task's pipes to a log receiver, if it is known, and to pass it
    /// on to Nomad's log. As to the pipes' writers, see [`Self::start`].
    ///
    /// # Errors
    /// If the kernel can't notify about one of the pipes.
    pub(crate) fn forward(
        pipes: Vec<(Stream, OwnedFd)>,
        forwarding: Option<&Forwarding>,
        log: NomadLog,
        pool: &WriterPool,
        report: impl Fn(LogEvent) + Clone + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (stopped, abandoned) = (Arc::default(), CancellationToken::new());
        let streams = forward::start(pipes, forwarding, log, pool, &stopped, &abandoned, report)?;
        Ok(Self { streams, stopped, abandoned })
    }

    /// Waits until all output is in the files and no process can write any more.
    pub(crate) async fn finished(&mut self) {
        while self.streams.join_next().await.is_some() {}
    }

    /// Waits like [`Self::finished`], but no longer than `limit`, and returns whether all output is in the files. A log
    /// receiver is given up after half of it, so that Nomad's log has the rest.
    pub(crate) async fn finished_within(&mut self, limit: Duration) -> bool {
        let half = limit / 2;
        if tokio::time::timeout(half, self.finished()).await.is_ok() {
            return true;
        }
        self.abandoned.cancel();
        tokio::time::timeout(limit - half, self.finished()).await.is_ok()
    }
}

impl Drop for LogCollector {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

async fn run(
    pipe: Arc<KernelFd>,
    mut sink: Sink,
    pool: WriterPool,
    mut reporter: EventReporter<impl Fn(LogEvent) + Clone + Send + Sync + 'static>,
) {
    let mut backoff = Backoff::default();
    // The first read doesn't wait for an event: none is delivered for output in a pipe that has already lost its
    // writers.
    let mut ready: Option<Ready<'_>> = None;
    loop {
        let source = Arc::clone(&pipe);
        let work = move || {
            let outcome = sink.take(source.as_fd());
            (sink, outcome)
        };
        let late = |took| reporter.waits(format!("a write to the disk has not finished in {took:?}"));
        let Some((back, outcome)) = pool.run(work, late).await else {
            tracing::error!("the collector of a task's output panicked");
            return;
        };
        sink = back;
        for skipped in sink.skipped.drain(..) {
            reporter.skipped(skipped);
        }
        match outcome {
            Ok(moved) => {
                reporter.resumed();
                backoff = Backoff::default();
                match moved {
                    Moved::Eof => return,
                    Moved::More => {}
                    Moved::Drained => {
                        if let Some(ready) = ready.take() {
                            ready.clear();
                        }
                        ready = Some(pipe.ready().await);
                    }
                }
            }
            Err(error) => {
                reporter.waits(error.to_string());
                backoff.wait().await;
            }
        }
    }
}

/// The wait between attempts to write output.
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(MIN_BACKOFF)
    }
}

impl Backoff {
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (2 * self.0).min(MAX_BACKOFF);
    }
}

/// Reports the events of one stream, without repeating one within [`REPORT_INTERVAL`].
pub(super) struct EventReporter<F> {
    stream: Stream,
    report: F,
    /// Time of the last report of each reason.
    last_reports: HashMap<String, Instant>,
    waits: bool,
}

impl<F: Fn(LogEvent)> EventReporter<F> {
    pub(super) fn new(stream: Stream, report: F) -> Self {
        Self { stream, report, last_reports: HashMap::new(), waits: false }
    }

    pub(super) fn waits(&mut self, why: String) {
        if self.is_due(&why) {
            self.waits = true;
            (self.report)(LogEvent::Blocked { stream: self.stream, why });
        }
    }

    pub(super) fn discards(&mut self, why: &str) {
        if self.is_due(why) {
            self.waits = true;
            (self.report)(LogEvent::Discarded { stream: self.stream, why: why.to_owned() });
        }
    }

    pub(super) fn resumed(&mut self) {
        if std::mem::take(&mut self.waits) {
            (self.report)(LogEvent::Resumed { stream: self.stream });
        }
    }

    pub(super) fn skipped(&mut self, what: SkippedFile) {
        if self.is_due(&what.path.display().to_string()) {
            (self.report)(LogEvent::SkippedFile(what));
        }
    }

    fn is_due(&mut self, what: &str) -> bool {
        self.last_reports.retain(|_, at| at.elapsed() < REPORT_INTERVAL);
        let is_due = !self.last_reports.contains_key(what);
        if is_due {
            self.last_reports.insert(what.to_owned(), Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::super::{Endpoint, Fluentd, Protocol};
    use super::*;

    #[tokio::test]
    async fn a_dead_receiver_that_is_given_up_costs_its_lines_and_no_more() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let forwarding = forward::tests::forwarding(Protocol::Fluentd(Fluentd {
            endpoint: Endpoint::Tcp(address.to_string()),
            retry_wait: Duration::from_secs(3600),
            max_retries: u32::MAX,
            sub_second_precision: false,
            request_ack: false,
            connects_later: true,
            write_timeout: None,
        }));
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        rustix::io::write(&writer, b"one\ntwo\n").unwrap();
        drop(writer);
        let told = Arc::<Mutex<Vec<LogEvent>>>::default();
        let keeper = Arc::clone(&told);
        let report = move |event| keeper.lock().unwrap().push(event);
        let pool = WriterPool::new().unwrap();
        let pipes = vec![(Stream::Stdout, reader)];
        let mut collector =
            LogCollector::forward(pipes, Some(&forwarding), NomadLog::Nothing, &pool, report).unwrap();
        while told.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        collector.abandoned.cancel();
        collector.finished().await;
        let told = told.lock().unwrap();
        assert!(matches!(told[0], LogEvent::ReceiverUnreachable { waits: true, .. }), "{told:?}");
        assert!(matches!(told[1], LogEvent::Unsent { lines: 2, .. }), "{told:?}");
    }
}
