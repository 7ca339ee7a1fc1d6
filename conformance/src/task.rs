//! One attempt at a task, as a case speaks of it: started, waited for, asked things, destroyed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nomad_proto::driver as pb;

use crate::host::alloc::random_uuid;
use crate::host::{Alloc, Plugin};
use crate::processes::first_of;

/// What a test waits for at most where no time is promised.
pub const LIMIT: Duration = Duration::from_secs(30);

pub struct Task {
    pub alloc: Alloc,
    /// What StartTask sends; a case changes it before.
    pub config: pb::TaskConfig,
    /// What StartTask returned.
    pub handle: Option<pb::TaskHandle>,
}

impl Task {
    pub fn new(alloc: Alloc, msgpack_driver_config: Vec<u8>) -> Self {
        let config = alloc.config(msgpack_driver_config);
        Self { alloc, config, handle: None }
    }

    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Starts it, and holds the answer against what the agent relies on.
    ///
    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn start(&mut self, plugin: &Plugin) -> Result<()> {
        let answer = plugin.start_task(self.config.clone()).await.context("StartTask")?;
        let handle = answer.handle.context("StartTask without a handle")?;
        ensure!(handle.version > 0, "a handle of version {} is none to the agent", handle.version);
        ensure!(handle.config.as_ref() == Some(&self.config), "the handle doesn't echo the task's config");
        ensure!(!handle.driver_state.is_empty(), "the handle has no driver state");
        self.handle = Some(handle);
        Ok(())
    }

    /// Becomes the next attempt of the same allocation: another id, the same directories, pipes and groups.
    ///
    /// # Errors
    /// Names the group that can't be made again.
    pub fn next_attempt(&mut self) -> Result<()> {
        self.alloc.attempt = random_uuid()?[..8].to_owned();
        self.alloc.cgroup.restore()?;
        self.config.id = self.alloc.task_id();
        self.handle = None;
        Ok(())
    }

    /// What a restarted agent hands back: all of the handle but the driver config, which it doesn't keep.
    ///
    /// # Errors
    /// Fails before the start.
    pub fn kept_handle(&self) -> Result<pb::TaskHandle> {
        let mut handle = self.handle.clone().context("the task was not started")?;
        if let Some(config) = &mut handle.config {
            config.msgpack_driver_config.clear();
        }
        Ok(handle)
    }

    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn recover(&self, plugin: &Plugin) -> Result<()> {
        plugin.recover_task(self.kept_handle()?).await.context("RecoverTask")
    }

    /// Waits for its end, which has to be one that the driver could see.
    ///
    /// # Errors
    /// Carries the plugin's refusal, or the error beside the result.
    pub async fn wait(&self, plugin: &Plugin) -> Result<pb::ExitResult> {
        let answer = self.wait_answer(plugin).await?;
        ensure!(answer.err.is_empty(), "WaitTask: {}", answer.err);
        answer.result.context("WaitTask without a result crashes the agent")
    }

    /// Waits for its end, at which none of its processes is left. Returns its code and its signal.
    ///
    /// # Errors
    /// As [`Self::wait`], or lists the processes that are left.
    pub async fn wait_for_all(&self, plugin: &Plugin) -> Result<(i32, i32)> {
        let exit = self.wait(plugin).await?;
        let left = self.alloc.cgroup.pids();
        ensure!(left.is_empty(), "it is said to have ended, and {left:?} run");
        Ok((exit.exit_code, exit.signal))
    }

    /// # Errors
    /// Carries the plugin's refusal, or says that no answer came.
    pub async fn wait_answer(&self, plugin: &Plugin) -> Result<pb::WaitTaskResponse> {
        let answer = tokio::time::timeout(LIMIT, plugin.wait_task(self.id())).await;
        Ok(answer.context("WaitTask gave no answer")??)
    }

    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn stop(&self, plugin: &Plugin, kill_timeout: Duration) -> Result<()> {
        let limit = kill_timeout + LIMIT;
        let answer = tokio::time::timeout(limit, plugin.stop_task(self.id(), kill_timeout, "")).await;
        answer.context("StopTask gave no answer")?.context("StopTask")
    }

    /// Destroys it after its end.
    ///
    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn destroy(&self, plugin: &Plugin) -> Result<()> {
        plugin.destroy_task(self.id(), false).await.context("DestroyTask")
    }

    /// Ends it whatever it does, and destroys it.
    ///
    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn end(&self, plugin: &Plugin) -> Result<()> {
        plugin.destroy_task(self.id(), true).await.context("DestroyTask by force")
    }

    /// Runs a script in it.
    ///
    /// # Errors
    /// Carries the plugin's refusal.
    pub async fn exec(&self, plugin: &Plugin, script: &str) -> Result<(i32, String)> {
        let answer =
            plugin.exec_task(self.id(), &["/bin/sh", "-c", script], LIMIT).await.context("ExecTask")?;
        let code = answer.result.context("ExecTask without a result crashes the agent")?.exit_code;
        let text = [answer.stdout, answer.stderr].concat();
        Ok((code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Waits until so many processes are in it.
    ///
    /// # Errors
    /// Says which there are instead.
    pub async fn processes_become(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let pids = self.alloc.cgroup.pids();
            if pids.len() == count {
                return Ok(());
            }
            let line =
                |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            ensure!(
                Instant::now() < deadline,
                "not {count} processes, but {:?}",
                pids.iter().map(|pid| line(pid).replace('\0', " ")).collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The host's pid of its first process.
    ///
    /// # Errors
    /// Says so where it has none.
    pub fn pid(&self) -> Result<i32> {
        first_of(&self.alloc.cgroup.pids()).context("no process in the task's control group")
    }

    /// Waits for its end and returns its stdout, whole.
    ///
    /// # Errors
    /// Says what it ended with and what it said, where that is not 0.
    pub async fn stdout(&self, plugin: &Plugin) -> Result<String> {
        let exit = self.wait(plugin).await?;
        let stdout = self.alloc.stdout.to_end(LIMIT).await?;
        if exit.exit_code != 0 {
            let stderr = self.alloc.stderr.to_end(LIMIT).await?;
            bail!("the task ended with {exit:?}: {}", String::from_utf8_lossy(&[stdout, stderr].concat()));
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }
}
