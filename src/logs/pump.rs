//! Collects a task's output: writes it from its pipes to its log files until all writers are gone, and reports when it
//! can't. An idle stream costs nothing, since it is awaited by its pipe's descriptor; one thread at a time moves a
//! stream's output.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::sink::{Moved, PassedOver, Sink};
use super::{Movers, Stream, Target};
use crate::sys::async_fd::{Readable, Ready};

/// First delay of the backoff after a failed write; it doubles up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Minimum time between two reports of the same problem.
const SILENCE: Duration = Duration::from_secs(60);

/// An event of a task's log collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Output waits in a stream's pipe, because it can't be written.
    Waits {
        stream: Stream,
        why: String,
    },
    GoesOn {
        stream: Stream,
    },
    PassedOver(PassedOver),
}

/// The collector of one task's output. Dropping it stops the collection; unwritten output stays in the pipes.
pub(crate) struct Pump {
    streams: JoinSet<()>,
    /// Set on drop, for a write that is running on a thread meanwhile.
    stopped: Arc<AtomicBool>,
}

impl Pump {
    /// Starts to collect output from the reading ends of a task's pipes. A pipe must have had a writer ever since,
    /// until the task's own opened it: a pipe without one counts as ended.
    ///
    /// # Errors
    /// If the kernel can't notify about one of the pipes.
    pub(crate) fn start(
        pipes: Vec<(Stream, OwnedFd)>,
        target: &Target,
        movers: &Movers,
        tell: impl Fn(News) + Clone + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (mut streams, stopped) = (JoinSet::new(), Arc::<AtomicBool>::default());
        for (stream, pipe) in pipes {
            let pipe = Arc::new(Readable::new(pipe)?);
            let herald = Herald { stream, tell: tell.clone(), told: HashMap::new(), waits: false };
            streams.spawn(run(
                pipe,
                Sink::new(target.clone(), stream, Arc::clone(&stopped)),
                movers.clone(),
                herald,
            ));
        }
        Ok(Self { streams, stopped })
    }

    /// Waits until all output is in the files and no process can write any more.
    pub(crate) async fn ended(&mut self) {
        while self.streams.join_next().await.is_some() {}
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

async fn run(
    pipe: Arc<Readable>,
    mut sink: Sink,
    movers: Movers,
    mut herald: Herald<impl Fn(News) + Clone + Send + Sync + 'static>,
) {
    let mut retry = FIRST_RETRY;
    // The first read doesn't wait for an event: none is delivered for output in a pipe that has already lost its
    // writers.
    let mut ready: Option<Ready<'_>> = None;
    loop {
        let source = Arc::clone(&pipe);
        let work = move || {
            let outcome = sink.take(source.as_fd());
            (sink, outcome)
        };
        let late = |took| herald.waits(format!("the disk has not taken a write for {took:?}"));
        let Some((back, outcome)) = movers.run(work, late).await else {
            tracing::error!("moving a task's output broke");
            return;
        };
        sink = back;
        for passed_over in sink.passed_over.drain(..) {
            herald.passed_over(passed_over);
        }
        match outcome {
            Ok(moved) => {
                herald.goes_on();
                retry = FIRST_RETRY;
                match moved {
                    Moved::ToTheEnd => return,
                    Moved::Some => {}
                    Moved::All => {
                        if let Some(ready) = ready.take() {
                            ready.clear();
                        }
                        ready = Some(pipe.ready().await);
                    }
                }
            }
            Err(trouble) => {
                herald.waits(trouble.to_string());
                tokio::time::sleep(retry).await;
                retry = (2 * retry).min(LAST_RETRY);
            }
        }
    }
}

/// Reports the events of one stream, without repeating one within [`SILENCE`].
struct Herald<F> {
    stream: Stream,
    tell: F,
    /// Time of the last report of each reason.
    told: HashMap<String, Instant>,
    waits: bool,
}

impl<F: Fn(News)> Herald<F> {
    fn waits(&mut self, why: String) {
        if self.is_news(&why) {
            self.waits = true;
            (self.tell)(News::Waits { stream: self.stream, why });
        }
    }

    fn goes_on(&mut self) {
        if std::mem::take(&mut self.waits) {
            (self.tell)(News::GoesOn { stream: self.stream });
        }
    }

    fn passed_over(&mut self, what: PassedOver) {
        if self.is_news(&what.path.display().to_string()) {
            (self.tell)(News::PassedOver(what));
        }
    }

    fn is_news(&mut self, what: &str) -> bool {
        self.told.retain(|_, at| at.elapsed() < SILENCE);
        let is_news = !self.told.contains_key(what);
        if is_news {
            self.told.insert(what.to_owned(), Instant::now());
        }
        is_news
    }
}
