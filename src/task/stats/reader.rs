//! The thread that reads the statistics of all tasks. A read is short; a thread for each task would be woken for each
//! read, which costs more than the read.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, mpsc};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

static JOBS: LazyLock<Result<mpsc::Sender<Job>, String>> = LazyLock::new(|| {
    let (jobs, queue) = mpsc::channel::<Job>();
    let work = move || {
        for job in queue {
            // A panic ends this job alone, and its caller sees a closed channel; the jobs of others are still to come.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    };
    let thread = thread::Builder::new().name("stats".to_owned()).spawn(work);
    thread.map(|_| jobs).map_err(|error| format!("can't start a thread for reads: {error}"))
});

/// Runs `what` on the reader's thread, after the jobs before it.
pub(super) async fn read<T: Send + 'static>(
    what: impl FnOnce() -> Result<T, std::io::Error> + Send + 'static,
) -> Result<T, String> {
    let (answer, answered) = oneshot::channel();
    let job = move || drop(answer.send(what()));
    JOBS.as_ref().map_err(Clone::clone)?.send(Box::new(job)).map_err(text)?;
    answered.await.map_err(|_| "the read was interrupted".to_owned())?.map_err(text)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancelled_read_does_not_affect_others() {
        let broken = read(|| -> std::io::Result<()> { panic!("on purpose") });
        let (broken, next) = (broken.await, read(|| Ok(thread::current().name().map(str::to_owned))).await);
        assert_eq!(broken.unwrap_err(), "the read was interrupted");
        assert_eq!(next.unwrap().as_deref(), Some("stats"));
    }
}
