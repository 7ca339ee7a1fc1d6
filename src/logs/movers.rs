//! The thread pool that writes log files. It is separate from the pool of the plugin's other blocking work, so that a
//! disk that does not answer blocks none of that. Few threads write at once; those that such a disk blocks are replaced
//! by others.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

/// Maximum number of concurrent writes, not counting those that are held up.
const AT_ONCE: usize = 4;
/// Maximum wait for a permit. A write that gets none in that time starts without one.
const PATIENCE: Duration = Duration::from_millis(100);
/// Time after which a write counts as held up and gives its permit back.
const HELD_UP: Duration = Duration::from_secs(1);
/// Time after which a write is reported as late.
const TOO_LONG: Duration = Duration::from_secs(10);
/// Maximum number of threads: two for each of more tasks than a node runs.
const MOST_THREADS: usize = 4096;
/// Stack size of a thread, whose work needs little.
const STACK_BYTES: usize = 256 << 10;
const KEPT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct Movers {
    places: Arc<Semaphore>,
    threads: Arc<Threads>,
}

struct Threads {
    handle: Handle,
    /// A runtime whose blocking threads are the pool; nothing else runs on it.
    runtime: Option<Runtime>,
}

impl Movers {
    /// Creates the pool without starting a thread.
    ///
    /// # Errors
    /// If the kernel gives no descriptors.
    ///
    /// # Errors
    /// When the kernel gives no descriptors.
    pub(crate) fn new() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .thread_name("logs")
            .max_blocking_threads(MOST_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_keep_alive(KEPT)
            .build()?;
        let threads = Threads { handle: runtime.handle().clone(), runtime: Some(runtime) };
        Ok(Self { places: Arc::new(Semaphore::new(AT_ONCE)), threads: Arc::new(threads) })
    }

    /// Runs `work` on a thread of the pool. Calls `late` if it takes longer than [`TOO_LONG`], whether or not it ends
    /// at last. `None` if `work` panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        late: impl FnOnce(Duration),
    ) -> Option<T> {
        let place = tokio::time::timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await;
        let mut moving = self.threads.handle.spawn_blocking(work);
        if let Ok(done) = tokio::time::timeout(HELD_UP, &mut moving).await {
            return done.ok();
        }
        drop(place);
        if let Ok(done) = tokio::time::timeout(TOO_LONG - HELD_UP, &mut moving).await {
            return done.ok();
        }
        late(TOO_LONG);
        moving.await.ok()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A thread that is held up must not block the caller.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn those_that_are_held_up_stop_nobody() {
        let movers = Movers::new().unwrap();
        let mut held = Vec::new();
        let mut stuck = Vec::new();
        for _ in 0..3 * AT_ONCE {
            let (let_go, wait) = mpsc::channel::<()>();
            held.push(let_go);
            let movers = movers.clone();
            stuck.push(tokio::spawn(async move { movers.run(move || wait.recv().is_err(), |_| ()).await }));
        }
        tokio::task::yield_now().await;
        assert_eq!(movers.run(|| 7, |_| ()).await, Some(7));
        drop(held);
        for one in stuck {
            assert_eq!(one.await.unwrap(), Some(true));
        }
        assert_eq!(movers.places.available_permits(), AT_ONCE);
    }
}
