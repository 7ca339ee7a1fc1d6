//! What a path has to offer: containers, and steps on them. A path is one way to ask for a task on one setup.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::BoxFuture;

use super::call::{Call, Step};
use crate::timeline::Told;

/// How long each part of a step took.
pub type Times = Vec<(Call, Duration)>;

pub trait Path: Send + Sync {
    /// By which series name it.
    fn name(&self) -> &'static str;

    /// Why a call can't be made this way, for one that can't.
    fn lacks(&self, call: Call) -> Option<String>;

    /// What a container is made of, but nothing of it is made: for the steps of a life, which come in their order.
    fn prepare(&self) -> BoxFuture<'_, Result<Box<dyn Container>>>;

    /// A running container, from nothing, and what it took to its process' first write.
    fn start(&self, terminal: bool) -> BoxFuture<'_, Result<(Box<dyn Container>, Duration)>>;

    /// The lasting processes that take part, by who they are: `daemon`, `plugin`.
    fn servers(&self) -> Vec<(&'static str, i32)>;

    /// What those have said so far of where a call's time went.
    fn told(&self) -> Vec<Told> {
        Vec::new()
    }
}

pub trait Container: Send {
    /// Makes a step, and says what each part of it took.
    fn step(&mut self, step: Step) -> BoxFuture<'_, Result<Times>>;

    /// Has its statistics read each second, for so long: by a stream of them, where the path has one.
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

    /// The shim of it, where it has one by now.
    fn shim(&self) -> Option<i32>;

    /// Ends and removes all of it, whatever state it is in. Twice is once.
    fn remove(&mut self) -> BoxFuture<'_, Result<()>>;
}
