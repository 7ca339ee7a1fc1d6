//! Collects a task's output: writes it from its pipes to its log files until all writers are gone, and reports when it
//! can't. An idle stream costs nothing, since it is awaited by its pipe's descriptor; one thread at a time moves a
//! stream's output.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

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
    SkippedFile(SkippedFile),
}

/// The collector of one task's output. Dropping it stops the collection; unwritten output stays in the pipes.
pub(crate) struct LogCollector {
    streams: JoinSet<()>,
    /// Set on drop, for a write that is running on a thread meanwhile.
    stopped: Arc<AtomicBool>,
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
            let reporter =
                EventReporter { stream, report: report.clone(), last_reports: HashMap::new(), waits: false };
            streams.spawn(run(
                pipe,
                Sink::new(target.clone(), stream, Arc::clone(&stopped)),
                pool.clone(),
                reporter,
            ));
        }
        Ok(Self { streams, stopped })
    }

    /// Waits until all output is in the files and no process can write any more.
    pub(crate) async fn finished(&mut self) {
        while self.streams.join_next().await.is_some() {}
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
    let mut backoff = MIN_BACKOFF;
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
                backoff = MIN_BACKOFF;
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
                tokio::time::sleep(backoff).await;
                backoff = (2 * backoff).min(MAX_BACKOFF);
            }
        }
    }
}

/// Reports the events of one stream, without repeating one within [`REPORT_INTERVAL`].
struct EventReporter<F> {
    stream: Stream,
    report: F,
    /// Time of the last report of each reason.
    last_reports: HashMap<String, Instant>,
    waits: bool,
}

impl<F: Fn(LogEvent)> EventReporter<F> {
    fn waits(&mut self, why: String) {
        if self.is_due(&why) {
            self.waits = true;
            (self.report)(LogEvent::Blocked { stream: self.stream, why });
        }
    }

    fn resumed(&mut self) {
        if std::mem::take(&mut self.waits) {
            (self.report)(LogEvent::Resumed { stream: self.stream });
        }
    }

    fn skipped(&mut self, what: SkippedFile) {
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
