//! The threads that write log files. They are apart from those that do the plugin's other blocking work, so that a disk that
//! does not answer can take none of those; and they are few, unless such a disk holds some: then others take their place.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

/// How many write at once, as long as each gets on.
const AT_ONCE: usize = 4;
/// How long one waits for its turn. If nobody gives way in that time, it goes all the same.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long one may take before it counts as held up, and another takes its place.
const HELD_UP: Duration = Duration::from_secs(1);
/// How long one may take before it is said.
const TOO_LONG: Duration = Duration::from_secs(10);
/// Two for each of more tasks than a node runs.
const MOST_THREADS: usize = 4096;
/// A move needs little, and no thread lives on without work.
const STACK_BYTES: usize = 256 << 10;
const KEPT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct Movers {
    places: Arc<Semaphore>,
    threads: Arc<Threads>,
}

struct Threads {
    handle: Handle,
    /// Nothing runs on it but its blocking threads.
    runtime: Option<Runtime>,
}

impl Movers {
    /// Starts no thread yet.
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

    /// Does a move on a thread; `late` is called if it takes long, whether or not it ends at last. None where it broke.
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
        // One that is held up must not hold whoever drops this.
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
