//! Moves a task's output into its files, as long as there is any, and tells when it can't. A stream waits by a descriptor of
//! its pipe, so that an idle one costs nothing; what waits is moved by one thread at a time.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::sink::{Moved, PassedOver, Sink};
use super::{Movers, Stream, Target};
use crate::readable::{Readable, Ready};

/// How long after something has failed it is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// The same is not told again for so long.
const SILENCE: Duration = Duration::from_secs(60);

/// What somebody should know of a task's logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Output waits in the pipe of a stream.
    Waits {
        stream: Stream,
        why: String,
    },
    GoesOn {
        stream: Stream,
    },
    PassedOver(PassedOver),
}

/// Dropped, it stops; what it has not moved stays in the pipes.
pub(crate) struct Pump {
    streams: JoinSet<()>,
    /// For what is on a thread meanwhile.
    stopped: Arc<AtomicBool>,
}

impl Pump {
    /// Begins to move what comes out of the reading ends of a task's pipes. They must not have been without a writer before
    /// the task's own came: that would be their end.
    ///
    /// # Errors
    /// When the kernel can't wait for one of them.
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

    /// Returns once all that the task's processes wrote is in the files, and none of them can write any more.
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
    // The first look is not waited for: what is in a pipe that has lost its writers already is told by no event.
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

/// Tells of one stream what was not told just before.
struct Herald<F> {
    stream: Stream,
    tell: F,
    /// When each reason was told last.
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
