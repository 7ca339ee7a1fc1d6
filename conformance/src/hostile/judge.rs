//! The judge: what must hold while a hostile task runs, and after it. Knows what an agent knows, and the host.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::host::stderr;
use harness::leaks::inspect::mounts_under;
use harness::processes::{alive, peak_kb};
use harness::task::Task;

use super::test_bed::{CENSUS_LIMIT, TestBed, descriptors};
use crate::cases::support::until;

/// Maximum time in which the plugin answers for the bystander, and runs a command in it. No timed test: two processors
/// are shared with all that the hostile task does.
const BYSTANDER_LIMIT: Duration = Duration::from_secs(20);
/// Maximum of the plugin's memory, in a build that may be without optimizations.
const MEMORY_LIMIT_KB: u64 = 256 * 1024;
/// Numbers of descriptors that a plugin may have more than after its start, and more than before the trial: connections,
/// and what its threads keep.
const DESCRIPTORS_MORE: (usize, usize) = (24, 8);
const POLL: Duration = Duration::from_millis(200);

impl TestBed {
    /// Asks for the bystander and runs commands in it, over and over. Returns only if something is wrong.
    pub(super) async fn watch_bystander(&self) -> Result<()> {
        loop {
            self.bystander_answers().await?;
            tokio::time::sleep(POLL).await;
        }
    }

    async fn bystander_answers(&self) -> Result<Duration> {
        let began = Instant::now();
        let call = self.plugin.inspect_task(self.bystander.id());
        let answer = tokio::time::timeout(BYSTANDER_LIMIT, call).await;
        let answer = answer.with_context(|| format!("no answer for another task in {BYSTANDER_LIMIT:?}"))?;
        let state = answer.context("InspectTask of another task")?.task.map(|task| task.state);
        ensure!(state == Some(nomad_proto::driver::TaskState::Running as i32), "another task is {state:?}");
        let command = ["/bin/cat", "/local/greeting"];
        let call = self.plugin.exec_task(self.bystander.id(), &command, BYSTANDER_LIMIT);
        let answer = tokio::time::timeout(BYSTANDER_LIMIT, call).await;
        let answer = answer.with_context(|| format!("no command in another task in {BYSTANDER_LIMIT:?}"))?;
        let answer = answer.context("ExecTask of another task")?;
        ensure!(answer.stdout == b"hello from the host\n", "a command in another task said {answer:?}");
        Ok(began.elapsed())
    }

    /// Checks all that must hold after a trial, and removes the allocation as the agent does.
    pub(super) async fn judge(&mut self, mut task: Task) -> Result<()> {
        ensure!(alive(self.bystander_pid), "the bystander's process is gone");
        self.slowest = self.slowest.max(self.bystander_answers().await?);
        self.bystander_has_said_all().await?;
        self.canaries.are_well()?;
        self.plugin_is_well().await?;
        task.alloc.stdout.stop();
        task.alloc.stderr.stop();
        let directory = task.alloc.directory.clone();
        let mounts = mounts_under(&self.context.directory().join("alloc"));
        let foreign: Vec<_> = mounts.iter().filter(|mount| mount.starts_with(&directory)).collect();
        ensure!(foreign.is_empty(), "mounts are left in the allocation: {foreign:?}");
        let removed =
            Command::new("rm").arg("-rf").arg(&directory).status().context("remove the allocation")?;
        ensure!(removed.success() && !directory.exists(), "the allocation can't be removed");
        self.canaries.are_well()
    }

    /// Checks that the bystander goes on, and no line of it is missing.
    async fn bystander_has_said_all(&mut self) -> Result<()> {
        let (stdout, before) = (&self.bystander.alloc.stdout, self.bystander_said);
        let last = || stdout.text().lines().last().and_then(|line| line.parse().ok()).unwrap_or(0);
        until(BYSTANDER_LIMIT, "the bystander's next line", || last() > before).await?;
        let text = stdout.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for (line, number) in whole.lines().zip(1_usize..) {
            ensure!(line == number.to_string(), "the bystander's line {number} is {line:?}");
        }
        self.bystander_said = whole.lines().count();
        Ok(())
    }

    async fn plugin_is_well(&mut self) -> Result<()> {
        ensure!(self.plugin.process().runs()?, "the plugin has ended");
        self.lines_are_in_form()?;
        self.memory_is_bounded()?;
        let (at_start, before) = self.descriptors;
        let limit = (at_start + DESCRIPTORS_MORE.0).min(before + DESCRIPTORS_MORE.1);
        let few = || descriptors(&self.plugin) <= limit;
        until(CENSUS_LIMIT, &format!("no more than {limit} descriptors of the plugin"), few).await
    }

    /// Checks the most that the plugin has had since the trial's start or its own.
    pub(super) fn memory_is_bounded(&self) -> Result<()> {
        let peak = peak_kb(i32::try_from(self.plugin.pid())?)?;
        ensure!(peak < MEMORY_LIMIT_KB, "the plugin had {peak} KB of memory");
        Ok(())
    }

    /// Checks each line of the plugin that runs: the context forgets the logs of earlier trials.
    pub(super) fn lines_are_in_form(&self) -> Result<()> {
        for line in self.plugin.log().all() {
            stderr::check(&line)?;
            ensure!(!line.contains("panicked"), "a panic: {line}");
        }
        Ok(())
    }
}
