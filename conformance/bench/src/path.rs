//! The interface of a path: containers, and steps on them. A path is one way to run a task on one setup.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::BoxFuture;
use harness::timeline::LoggedTimeline;

use super::call::{Call, Step};

/// The duration of each call that a step yields.
pub(crate) type Times = Vec<(Call, Duration)>;

pub(crate) trait Path: Send + Sync {
    /// Returns the path's name in series.
    fn name(&self) -> &'static str;

    /// Returns why this path can't make a call, or `None` if it can.
    fn unsupported(&self, call: Call) -> Option<String>;

    /// Prepares what a container needs without creating it, for steps of the life cycle, which follow in order.
    fn prepare(&self) -> BoxFuture<'_, Result<Box<dyn Container>>>;

    /// Starts a container from scratch. Also returns the time until the first write of its process.
    fn start(&self, terminal: bool) -> BoxFuture<'_, Result<(Box<dyn Container>, Duration)>>;

    /// Returns the names (`daemon`, `plugin`) and pids of the servers that take part.
    fn servers(&self) -> Vec<(&'static str, i32)>;

    /// Returns the timelines that the servers have logged so far.
    fn logged_timelines(&self) -> Vec<LoggedTimeline> {
        Vec::new()
    }
}

pub(crate) trait Container: Send {
    /// Makes a step, and returns the times of its calls.
    fn step(&mut self, step: Step) -> BoxFuture<'_, Result<Times>>;

    /// Reads the container's statistics each second for `time`: from a stream, if the path has one.
    fn read_each_second(&mut self, time: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let until = Instant::now() + time;
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            while Instant::now() < until {
                seconds.tick().await;
                self.step(Step::Stats).await?;
            }
            Ok(())
        })
    }

    /// Returns the pid of the container's shim, if there is one by now.
    fn shim(&self) -> Option<i32>;

    /// Stops and removes the container, in whatever state it is. A second call does nothing.
    fn remove(&mut self) -> BoxFuture<'_, Result<()>>;
}
