//! Handles Ctrl-C and SIGTERM: work in progress is cancelled gracefully, no further work begins, and the process ends
//! with nothing of its own left. Knows nothing of what the work is.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Timeout for cancelled work to end.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(30);

static INTERRUPTED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));
static UNDER_WAY: Mutex<usize> = Mutex::new(0);

/// A guard of work that must not be cut off half-way: after an interrupt, the process ends only once it is dropped.
pub struct UnderWay;

impl UnderWay {
    /// Begins work. After an interrupt, never returns.
    pub fn begin() -> Self {
        let mut count = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        if *INTERRUPTED.borrow() {
            drop(count);
            loop {
                std::thread::park();
            }
        }
        *count += 1;
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// Waits for an interrupt.
pub async fn interrupted() {
    let _ = INTERRUPTED.subscribe().wait_for(|interrupted| *interrupted).await;
}

/// # Errors
/// Fails after an interrupt.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!*INTERRUPTED.borrow(), "interrupted");
    Ok(())
}

/// After an interrupt, blocks for good: the thread that takes everything down ends the program.
pub fn stay_if_interrupted() {
    while *INTERRUPTED.borrow() {
        std::thread::park();
    }
}

/// Cancels all work, and waits until it has ended.
pub fn give_up() {
    {
        // Work that begins after this sees the interrupt.
        let _count = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        INTERRUPTED.send_replace(true);
    }
    let deadline = Instant::now() + GIVE_UP_LIMIT;
    while Instant::now() < deadline && *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
}
