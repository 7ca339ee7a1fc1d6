//! A task's statistics as the client reads them: a stream that is open for as long as the task runs, with each message
//! checked for what the client and its command line tool rely on.
//!
//! Source of the facts: hashicorp/nomad `plugins/drivers/utils.go`, `command/alloc_status.go`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nomad_proto::driver as pb;
use tonic::Streaming;

use super::plugin::Plugin;

/// The columns of `nomad alloc status -stats`. A name beyond them shifts the figures of all that follow it.
const SHOWN: [pb::cpu_usage::Fields; 5] = [
    pb::cpu_usage::Fields::SystemMode,
    pb::cpu_usage::Fields::UserMode,
    pb::cpu_usage::Fields::ThrottledPeriods,
    pb::cpu_usage::Fields::ThrottledTime,
    pb::cpu_usage::Fields::Percent,
];

/// The content of one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Time of the sample, since the epoch.
    pub at: Duration,
    pub cpu: pb::CpuUsage,
    pub memory: pb::MemoryUsage,
}

impl Sample {
    /// Returns whether the sample has a CPU load, which the first of a stream can't have.
    pub fn has_load(&self) -> bool {
        self.cpu.measured_fields().any(|field| field == pb::cpu_usage::Fields::Percent)
    }
}

pub struct Stats {
    task_id: String,
    stream: Streaming<pb::TaskStatsResponse>,
}

impl Stats {
    /// # Errors
    /// Carries the plugin's error.
    pub async fn open(plugin: &Plugin, task_id: &str, every: Duration) -> Result<Self> {
        let stream = plugin.stats(task_id, every).await.context("TaskStats")?;
        Ok(Self { task_id: task_id.to_owned(), stream })
    }

    /// Returns the next sample, or `None` at the end of the stream.
    ///
    /// # Errors
    /// Says what is wrong with the message, or that none came.
    pub(crate) async fn next_or_end(&mut self, limit: Duration) -> Result<Option<Sample>> {
        let next = tokio::time::timeout(limit, self.stream.message()).await;
        let next = next.with_context(|| format!("no statistics in {limit:?}"))?;
        let Some(message) = next.context("the statistics' stream broke")? else { return Ok(None) };
        let stats = message.stats.context("no stats, which crashes the agent")?;
        ensure!(stats.id == self.task_id, "statistics of {:?}", stats.id);
        let at = stats.timestamp.context("no timestamp")?;
        let usage = stats.agg_resource_usage.context("no usage, which crashes the agent")?;
        let (cpu, memory) = (usage.cpu.context("no cpu")?, usage.memory.context("no memory")?);
        ensure!(memory.rss > 0 || memory.usage > 0, "no memory in use: {memory:?}");
        if let Some(field) = cpu.measured_fields().find(|field| !SHOWN.contains(field)) {
            bail!("{} is said to be measured, which garbles the agent's table", field.as_str_name());
        }
        let at = Duration::new(u64::try_from(at.seconds)?, u32::try_from(at.nanos)?);
        Ok(Some(Sample { at, cpu, memory }))
    }

    /// # Errors
    /// Fails as [`Self::next_or_end`] does, and if the stream has ended.
    pub async fn next(&mut self, limit: Duration) -> Result<Sample> {
        self.next_or_end(limit).await?.context("the statistics' stream ended")
    }

    /// Reads to the end of the stream.
    ///
    /// # Errors
    /// Fails if the end doesn't come in time, or if a message is wrong.
    pub async fn end(mut self, limit: Duration) -> Result<()> {
        let read = async {
            while self.next_or_end(limit).await?.is_some() {}
            Ok(())
        };
        let ended = tokio::time::timeout(limit, read).await;
        ended.with_context(|| format!("the statistics' stream did not end in {limit:?}"))?
    }
}
