//! Runs what may wait for a file system of the plugin's own on another thread. The threads that answer calls never wait:
//! one that does holds up calls about other tasks.

use tokio::sync::Semaphore;

/// Maximum number of threads that are taken at once. A disk that answers nobody may keep all of them, and is to leave
/// some for the looks at other file systems ([`crate::sys::host_files`]) and for kills.
const AT_ONCE: usize = 32;

static THREADS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs `work` on another thread. Work that has begun is carried through, whether or not anybody waits for the result. A
/// panic of `work` is one of the caller. `work` must not wait for work of another call.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let permit = THREADS.acquire().await;
    let work = move || {
        let _permit = permit;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is at its end, and whoever waits as well.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_is_that_of_another_thread() {
        let own = std::thread::current().id();
        assert_ne!(run(move || std::thread::current().id()).await, own);
    }

    #[tokio::test]
    async fn a_panic_is_the_callers() {
        let running = tokio::spawn(run(|| panic!("made")));
        assert!(running.await.unwrap_err().is_panic());
    }
}
