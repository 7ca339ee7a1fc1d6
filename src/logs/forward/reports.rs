//! What is told of a log receiver: that it is lost or back, and how many lines it doesn't get, for whatever reason.
//! Each is told at most once in an interval, and of lines all are told at the end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::logs::LogEvent;

/// Minimum time between two reports of one kind.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

pub(super) type Report = Arc<dyn Fn(LogEvent) + Send + Sync>;

/// The reason that a receiver doesn't get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    Unreachable,
    TooLarge,
    BufferFull,
    /// The task's end doesn't wait for the receiver any longer.
    Abandoned,
    /// The receiver's address is gone.
    Unknown,
}

/// The reasons in words, in the order of [`Loss`].
const REASONS: [&str; 5] = [
    "while it was not reached",
    "too large for its protocol",
    "beyond its buffer (max-buffer-size)",
    "not taken before the task's end",
    "as its address is gone",
];

pub(super) struct Reports {
    report: Report,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Number of lines that are not told of yet, by [`Loss`].
    lost: [u64; REASONS.len()],
    losses_told_at: Option<Instant>,
    unreachable_told_at: Option<Instant>,
    /// Whether the last report was that the receiver can't be reached.
    is_told_lost: bool,
}

impl Reports {
    pub(super) fn new(report: Report) -> Arc<Self> {
        Arc::new(Self { report, state: Mutex::default() })
    }

    /// Tells of lost lines in each interval, for as long as the reports are there.
    pub(super) fn tell_regularly(self: &Arc<Self>) {
        let reports = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REPORT_INTERVAL).await;
                match reports.upgrade() {
                    Some(reports) => reports.tell_losses(false),
                    None => return,
                }
            }
        });
    }

    /// Counts lines that the receiver doesn't get.
    pub(super) fn lost(&self, loss: Loss, lines: u64) {
        if lines > 0 {
            self.state().lost[loss as usize] += lines;
            self.tell_losses(false);
        }
    }

    /// Tells that the receiver can't be reached, and whether the output waits for it.
    pub(super) fn unreachable(&self, waits: bool, why: impl FnOnce() -> String) {
        let mut state = self.state();
        if state.unreachable_told_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return;
        }
        state.unreachable_told_at = Some(Instant::now());
        state.is_told_lost = true;
        drop(state);
        (self.report)(LogEvent::ReceiverUnreachable { why: why(), waits });
    }

    /// Tells that the receiver is reached, if the last that was told is that it is not.
    pub(super) fn reached(&self, receiver: impl FnOnce() -> String) {
        let was_told_lost = std::mem::take(&mut self.state().is_told_lost);
        if was_told_lost {
            (self.report)(LogEvent::ReceiverReached { receiver: receiver() });
            self.tell_losses(true);
        }
    }

    fn tell_losses(&self, at_once: bool) {
        let mut state = self.state();
        let is_due = at_once || state.losses_told_at.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        let lines: u64 = state.lost.iter().sum();
        if lines == 0 || !is_due {
            return;
        }
        state.losses_told_at = Some(Instant::now());
        let lost = std::mem::take(&mut state.lost);
        drop(state);
        let reasons = lost.iter().zip(REASONS).filter(|(count, _)| **count > 0);
        let reasons: Vec<_> = reasons.map(|(count, reason)| format!("{count} {reason}")).collect();
        (self.report)(LogEvent::Unsent { lines, why: reasons.join(", ") });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.tell_losses(true);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::logs::forward) type Told = Arc<Mutex<Vec<LogEvent>>>;

    /// Returns reports, and the place where each is kept.
    pub(in crate::logs::forward) fn kept() -> (Arc<Reports>, Told) {
        let told = Told::default();
        let keeper = Arc::clone(&told);
        (Reports::new(Arc::new(move |event| keeper.lock().unwrap().push(event))), told)
    }

    #[test]
    fn a_receiver_that_comes_and_goes_is_told_of_once_in_an_interval() {
        let (reports, told) = kept();
        for _ in 0..3 {
            reports.unreachable(true, || "gone".to_owned());
            reports.reached(|| "a".to_owned());
        }
        let expected = [
            LogEvent::ReceiverUnreachable { why: "gone".to_owned(), waits: true },
            LogEvent::ReceiverReached { receiver: "a".to_owned() },
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[test]
    fn each_lost_line_is_told_of_at_the_latest_at_the_end() {
        let (reports, told) = kept();
        for (loss, lines) in
            [(Loss::BufferFull, 1), (Loss::TooLarge, 2), (Loss::Abandoned, 0), (Loss::TooLarge, 4)]
        {
            reports.lost(loss, lines);
        }
        assert_eq!(told.lock().unwrap().len(), 1);
        drop(reports);
        let unsent = |lines, why: &str| LogEvent::Unsent { lines, why: why.to_owned() };
        assert_eq!(
            *told.lock().unwrap(),
            [unsent(1, "1 beyond its buffer (max-buffer-size)"), unsent(6, "6 too large for its protocol")]
        );
    }
}
