//! The thread pool that writes log files. It is separate from the pool of the plugin's other blocking work, so that a
//! disk that does not answer blocks none of that. Few threads write at once; those that such a disk blocks are replaced
//! by others. What takes the processor rather than a disk runs on it as well, apart from the writes.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

/// Maximum number of concurrent writes, not counting those that are held up.
const MAX_CONCURRENT_WRITES: usize = 4;
/// Maximum number of concurrent renderings.
const MAX_CONCURRENT_RENDERINGS: usize = 2;
/// Maximum wait for a permit. A write that gets none in that time starts without one.
const PERMIT_TIMEOUT: Duration = Duration::from_millis(100);
/// Time after which a write counts as held up and gives its permit back.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which a write is reported as late.
const LATE_AFTER: Duration = Duration::from_secs(10);
/// Maximum number of threads: two for each of more tasks than a node runs.
const MAX_THREADS: usize = 4096;
/// Stack size of a thread, whose work needs little.
const STACK_BYTES: usize = 256 << 10;
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct WriterPool {
    permits: Arc<Semaphore>,
    renderings: Arc<Semaphore>,
    threads: Arc<Threads>,
}

struct Threads {
    handle: Handle,
    /// A runtime whose blocking threads are the pool; nothing else runs on it.
    runtime: Option<Runtime>,
}

impl WriterPool {
    /// Creates the pool without starting a thread.
    ///
    /// # Errors
    /// When the kernel gives no descriptors.
    pub(crate) fn new() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .thread_name("logs")
            .max_blocking_threads(MAX_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_keep_alive(THREAD_KEEP_ALIVE)
            .build()?;
        let threads = Threads { handle: runtime.handle().clone(), runtime: Some(runtime) };
        Ok(Self {
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_WRITES)),
            renderings: Arc::new(Semaphore::new(MAX_CONCURRENT_RENDERINGS)),
            threads: Arc::new(threads),
        })
    }

    /// Runs `work` on a thread of the pool. Calls `late` if it takes longer than [`LATE_AFTER`], whether or not it ends
    /// at last. `None` if `work` panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        late: impl FnOnce(Duration),
    ) -> Option<T> {
        let permit = tokio::time::timeout(PERMIT_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await;
        let mut writing = self.threads.handle.spawn_blocking(work);
        if let Ok(done) = tokio::time::timeout(STALL_TIMEOUT, &mut writing).await {
            return done.ok();
        }
        drop(permit);
        if let Ok(done) = tokio::time::timeout(LATE_AFTER - STALL_TIMEOUT, &mut writing).await {
            return done.ok();
        }
        late(LATE_AFTER);
        writing.await.ok()
    }

    /// Runs `work`, which takes the processor and waits for nothing, on a thread of the pool, once fewer than
    /// [`MAX_CONCURRENT_RENDERINGS`] others run. It takes nothing from the writes. `None` if `work` panicked.
    pub(super) async fn render<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.renderings).acquire_owned().await.ok()?;
        let work = move || {
            // A caller that is gone doesn't end the work.
            let _permit = permit;
            work()
        };
        self.threads.handle.spawn_blocking(work).await.ok()
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

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn stalled_writes_do_not_block_others() {
        let pool = WriterPool::new().unwrap();
        let mut held = Vec::new();
        let mut stuck = Vec::new();
        for _ in 0..3 * MAX_CONCURRENT_WRITES {
            let (let_go, wait) = mpsc::channel::<()>();
            held.push(let_go);
            let pool = pool.clone();
            stuck.push(tokio::spawn(async move { pool.run(move || wait.recv().is_err(), |_| ()).await }));
        }
        tokio::task::yield_now().await;
        assert_eq!(pool.run(|| 7, |_| ()).await, Some(7));
        drop(held);
        for one in stuck {
            assert_eq!(one.await.unwrap(), Some(true));
        }
        assert_eq!(pool.permits.available_permits(), MAX_CONCURRENT_WRITES);
    }

    #[tokio::test]
    async fn renderings_take_nothing_from_the_writes_and_have_a_limit() {
        let pool = WriterPool::new().unwrap();
        let mut held = Vec::new();
        for _ in 0..MAX_CONCURRENT_RENDERINGS {
            let (let_go, wait) = mpsc::channel::<()>();
            held.push(let_go);
            // A caller that goes away leaves the rendering.
            assert!(pool.render(move || wait.recv().is_err()).now_or_never().is_none());
        }
        assert_eq!(pool.permits.available_permits(), MAX_CONCURRENT_WRITES);
        assert_eq!(pool.renderings.available_permits(), 0);
        let next = tokio::spawn({
            let pool = pool.clone();
            async move { pool.render(|| 7).await }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop(held);
        assert_eq!(next.await.unwrap(), Some(7));
    }
}
