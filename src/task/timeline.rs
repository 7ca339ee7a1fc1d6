//! The times of the steps of a start, or of a teardown, in one debug line at its end, whatever the outcome.
//!
//! The form is for programs to read: words `<step> <begin>+<length>`, in the order in which they began, in milliseconds
//! from the call on. Steps that overlap were done side by side; `shim/connect` is a part of `shim`. A step that was cut
//! off has ended where it was dropped. Knows nothing of what the steps do.

use std::fmt::{self, Display};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Instrument;

/// The call that the steps belong to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    Start,
    Teardown,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Teardown => "teardown",
        }
    }
}

/// The steps of one call.
pub(super) struct Timeline {
    called: Instant,
    steps: Mutex<Vec<Step>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    name: &'static str,
    begin: Duration,
    length: Duration,
}

/// The guard of a step that is under way; the step ends when it is dropped.
pub(super) struct StepGuard<'a> {
    timeline: &'a Timeline,
    name: &'static str,
    begin: Duration,
}

impl Timeline {
    /// Begins the timeline of a call now.
    pub(super) fn begin() -> Self {
        Self { called: Instant::now(), steps: Mutex::default() }
    }

    /// Runs a step in a span of its own, and records its time.
    pub(super) async fn step<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _under = self.under(name);
        work.instrument(tracing::debug_span!("step", name)).await
    }

    /// Begins a step that ends when the returned guard is dropped.
    pub(super) fn under(&self, name: &'static str) -> StepGuard<'_> {
        StepGuard { timeline: self, name, begin: self.called.elapsed() }
    }

    /// Logs the timeline, once the call is over.
    pub(super) fn tell(&self, call: Call, container: &str, is_done: bool, containerd_calls: u32) {
        tracing::debug!(
            container,
            call = call.name(),
            outcome = if is_done { "done" } else { "failed" },
            total_ms = format!("{:.1}", in_ms(self.called.elapsed())),
            containerd_calls,
            timeline = %self,
            "timeline"
        );
    }

    fn ended(&self, step: Step) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }
}

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        let Self { timeline, name, begin } = *self;
        let length = timeline.called.elapsed().saturating_sub(begin);
        timeline.ended(Step { name, begin, length });
    }
}

impl Display for Timeline {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Of two steps that began at the same time, the longer one comes first: the other is a part of it.
        steps.sort_by_key(|step| (step.begin, std::cmp::Reverse(step.length)));
        for (number, Step { name, begin, length }) in steps.into_iter().enumerate() {
            let between = if number == 0 { "" } else { " " };
            write!(out, "{between}{name} {:.1}+{:.1}", in_ms(begin), in_ms(length))?;
        }
        Ok(())
    }
}

fn in_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeline_steps_are_ordered_by_their_begin() {
        let timeline = Timeline::begin();
        let step = |name, begin, length| Step {
            name,
            begin: Duration::from_micros(begin),
            length: Duration::from_micros(length),
        };
        for ended in [
            step("image", 300, 1250),
            step("shim/exec", 2000, 9000),
            step("lease", 2000, 1000),
            step("shim", 2000, 20_040),
        ] {
            timeline.ended(ended);
        }
        assert_eq!(timeline.to_string(), "image 0.3+1.2 shim 2.0+20.0 shim/exec 2.0+9.0 lease 2.0+1.0");
    }

    #[tokio::test]
    async fn an_interrupted_step_is_in_the_timeline() {
        let timeline = Timeline::begin();
        assert_eq!(timeline.to_string(), "");
        assert_eq!(timeline.step("done", async { 7 }).await, 7);
        {
            let mut cut = std::pin::pin!(timeline.step("cut", std::future::pending::<()>()));
            assert!(futures::poll!(cut.as_mut()).is_pending());
        }
        let text = timeline.to_string();
        assert!(text.starts_with("done ") && text.contains(" cut "), "{text}");
    }
}
