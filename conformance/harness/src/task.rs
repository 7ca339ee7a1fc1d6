//! An attempt at a task, with the operations of cases: start, wait, exec, destroy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nomad_proto::driver as pb;

use crate::host::alloc::random_uuid;
use crate::host::{Alloc, Plugin};
use crate::processes::first_of;

/// Timeout of operations for which no time is promised.
pub const LIMIT: Duration = Duration::from_secs(30);

pub struct Task {
    pub alloc: Alloc,
    /// The TaskConfig that StartTask sends. A case changes it before.
    pub config: pb::TaskConfig,
    /// The handle that StartTask returned.
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

    /// Starts the task, and checks the answer for what the agent relies on.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn start(&mut self, plugin: &Plugin) -> Result<()> {
        let answer = plugin.start_task(self.config.clone()).await.context("StartTask")?;
        let handle = answer.handle.context("StartTask without a handle")?;
        ensure!(handle.version > 0, "a handle of version {} is none to the agent", handle.version);
        ensure!(handle.config.as_ref() == Some(&self.config), "the handle doesn't echo the task's config");
        ensure!(!handle.driver_state.is_empty(), "the handle has no driver state");
        self.handle = Some(handle);
        Ok(())
    }

    /// Turns this into the next attempt of the same allocation: another id, the same directories, pipes and groups.
    ///
    /// # Errors
    /// Names the group that can't be created again.
    pub fn next_attempt(&mut self) -> Result<()> {
        self.alloc.attempt = random_uuid()?[..8].to_owned();
        self.alloc.cgroup.restore()?;
        self.config.id = self.alloc.task_id();
        self.handle = None;
        Ok(())
    }

    /// Returns what a restarted agent hands back: all of the handle but the driver config, which it doesn't keep.
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
    /// Carries the plugin's error.
    pub async fn recover(&self, plugin: &Plugin) -> Result<()> {
        plugin.recover_task(self.kept_handle()?).await.context("RecoverTask")
    }

    /// Waits for the exit of the task, whose status the driver has to know.
    ///
    /// # Errors
    /// Carries the plugin's error, or the error beside the result.
    pub async fn wait(&self, plugin: &Plugin) -> Result<pb::ExitResult> {
        let answer = self.wait_answer(plugin).await?;
        ensure!(answer.err.is_empty(), "WaitTask: {}", answer.err);
        answer.result.context("WaitTask without a result crashes the agent")
    }

    /// Waits for the exit of the task, at which none of its processes may be left. Returns its exit code and signal.
    ///
    /// # Errors
    /// Fails as [`Self::wait`] does, or lists the processes that are left.
    pub async fn wait_for_all(&self, plugin: &Plugin) -> Result<(i32, i32)> {
        let exit = self.wait(plugin).await?;
        let left = self.alloc.cgroup.pids();
        ensure!(left.is_empty(), "it is said to have ended, and {left:?} run");
        Ok((exit.exit_code, exit.signal))
    }

    /// # Errors
    /// Carries the plugin's error, or says that no answer came.
    pub async fn wait_answer(&self, plugin: &Plugin) -> Result<pb::WaitTaskResponse> {
        let answer = tokio::time::timeout(LIMIT, plugin.wait_task(self.id())).await;
        Ok(answer.context("WaitTask gave no answer")??)
    }

    /// # Errors
    /// Carries the plugin's error.
    pub async fn stop(&self, plugin: &Plugin, kill_timeout: Duration) -> Result<()> {
        let limit = kill_timeout + LIMIT;
        let answer = tokio::time::timeout(limit, plugin.stop_task(self.id(), kill_timeout, "")).await;
        answer.context("StopTask gave no answer")?.context("StopTask")
    }

    /// Destroys the task after its exit.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn destroy(&self, plugin: &Plugin) -> Result<()> {
        plugin.destroy_task(self.id(), false).await.context("DestroyTask")
    }

    /// Destroys the task by force, whether it runs or not.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn end(&self, plugin: &Plugin) -> Result<()> {
        plugin.destroy_task(self.id(), true).await.context("DestroyTask by force")
    }

    /// Runs a script in the task, and returns its exit code and output.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn exec(&self, plugin: &Plugin, script: &str) -> Result<(i32, String)> {
        let answer =
            plugin.exec_task(self.id(), &["/bin/sh", "-c", script], LIMIT).await.context("ExecTask")?;
        let code = answer.result.context("ExecTask without a result crashes the agent")?.exit_code;
        let text = [answer.stdout, answer.stderr].concat();
        Ok((code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Waits until the task has exactly `count` processes.
    ///
    /// # Errors
    /// Lists the processes that there are instead.
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

    /// Returns the pid on the host of the task's first process.
    ///
    /// # Errors
    /// Fails if the task has none.
    pub fn pid(&self) -> Result<i32> {
        first_of(&self.alloc.cgroup.pids()).context("no process in the task's control group")
    }

    /// Waits for the exit of the task, and returns all of its stdout.
    ///
    /// # Errors
    /// Fails unless the exit code is 0, with the exit status and the output.
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
