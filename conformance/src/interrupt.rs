//! Ctrl-C and SIGTERM: what is under way is given up in good order, what comes after it never begins, and the process ends
//! with nothing of its own left. Knows nothing of what it is that is under way.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How long work that was told to give up may take.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(30);

static INTERRUPTED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));
static UNDER_WAY: Mutex<usize> = Mutex::new(0);

/// Work that is not to be cut off half-way: the end of the process waits until it is dropped.
pub struct UnderWay;

impl UnderWay {
    /// Begins, or, once there was an interrupt, never returns.
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

/// Returns at an interrupt.
pub async fn interrupted() {
    let _ = INTERRUPTED.subscribe().wait_for(|interrupted| *interrupted).await;
}

/// # Errors
/// After an interrupt.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!*INTERRUPTED.borrow(), "interrupted");
    Ok(())
}

/// After an interrupt, leaves the end of the program to whoever takes everything down.
pub fn stay_if_interrupted() {
    while *INTERRUPTED.borrow() {
        std::thread::park();
    }
}

/// Tells all work to give up, and waits until it has.
pub fn give_up() {
    {
        // Whoever begins after this sees the interrupt.
        let _count = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        INTERRUPTED.send_replace(true);
    }
    let deadline = Instant::now() + GIVE_UP_LIMIT;
    while Instant::now() < deadline && *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
}
