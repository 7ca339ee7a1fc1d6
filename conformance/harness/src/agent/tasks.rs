//! Requests to an agent about the jobs and tasks of cases.

use anyhow::{Context as _, Result, ensure};

use super::allocation::{Allocation, Task};
use super::client::Client;
use super::command::{Output, run};
use super::{SOON, poll};
use crate::processes;

/// Job file of a batch job with one task, `main`, which runs a shell script.
pub const SHELL: &str = include_str!("../../../../hack/jobs/shell.nomad.hcl");

impl Client {
    /// Submits a job under another name. `hcl` begins with a job of any name.
    ///
    /// # Errors
    /// Fails if Nomad refuses the job.
    pub fn submit_as(&self, name: &str, hcl: &str, variables: &[(&str, &str)]) -> Result<()> {
        let label = hcl.lines().find(|line| line.starts_with("job ")).context("no job in the text")?;
        self.submit(&hcl.replacen(label, &format!("job \"{name}\" {{"), 1), variables)
    }

    /// Stops jobs, the last one first, and purges each once all of its allocations have ended. Goes on after one that
    /// can't be ended.
    ///
    /// # Errors
    /// Names the first job that can't be ended, and its allocation that doesn't end.
    pub fn end_jobs(&self, jobs: &[String]) -> Result<()> {
        let mut ended = Ok(());
        // A job may need an earlier one until its end, such as one with a volume the plugin of it.
        for job in jobs.iter().rev() {
            let result = self.end_job(job).with_context(|| format!("end job {job:?}"));
            ended = ended.and(result);
        }
        ended
    }

    fn end_job(&self, job: &str) -> Result<()> {
        self.tell(&["job", "stop", "-detach", job])?;
        for id in self.allocations_of(job)? {
            self.allocation_until(&id, "stopped allocation", SOON, Allocation::is_terminal)?;
        }
        // A purge also removes the ended allocations, and with them the record that they have ended.
        self.tell(&["job", "stop", "-purge", "-detach", job]).map(drop)
    }

    /// Waits until a task runs.
    ///
    /// # Errors
    /// Carries the allocation's events.
    pub fn running(&self, id: &str, task: &str) -> Result<()> {
        let ready =
            |allocation: &Allocation| matches!(allocation.task(task).state.as_str(), "running" | "dead");
        let allocation = self.allocation_until(id, "running task", SOON, ready)?;
        ensure!(allocation.task(task).state == "running", "task {task} has ended\n{}", allocation.summary());
        Ok(())
    }

    /// Waits until a task is dead and its allocation has ended.
    ///
    /// # Errors
    /// Carries the allocation's events.
    pub fn dead(&self, id: &str, task: &str) -> Result<Task> {
        let ended =
            |allocation: &Allocation| allocation.task(task).state == "dead" && allocation.is_terminal();
        self.allocation_until(id, "ended task", SOON, ended).map(|allocation| allocation.task(task))
    }

    /// Waits until a task has ended successfully, whatever the other tasks of its group do.
    ///
    /// # Errors
    /// Carries the task's events and output.
    pub fn done(&self, id: &str, task: &str) -> Result<()> {
        let ended = |allocation: &Allocation| allocation.task(task).state == "dead";
        let allocation = self.allocation_until(id, "ended task", SOON, ended);
        let well = allocation.as_ref().is_ok_and(|allocation| !allocation.task(task).failed);
        let log = if well { Vec::new() } else { self.log(id, task, true).unwrap_or_default() };
        let log = || format!("log of task {task}:\n{}", String::from_utf8_lossy(&log));
        let allocation = allocation.with_context(log)?;
        ensure!(well, "task {task} has failed\n{}{}", allocation.summary(), log());
        Ok(())
    }

    /// Returns all output of a task, read through the agent.
    ///
    /// # Errors
    /// Fails if the agent refuses.
    pub fn log(&self, id: &str, task: &str, stderr: bool) -> Result<Vec<u8>> {
        let mut arguments = vec!["alloc", "logs"];
        if stderr {
            arguments.push("-stderr");
        }
        arguments.extend([id, task]);
        Ok(self.tell(&arguments)?.stdout)
    }

    /// Waits until a task's stdout contains a text.
    ///
    /// # Errors
    /// Carries the output instead.
    pub fn logged(&self, id: &str, task: &str, text: &str) -> Result<()> {
        let mut seen = String::new();
        let found = self.eventually(&format!("{text:?} in the log of {task}"), || {
            seen = String::from_utf8_lossy(&self.log(id, task, false)?).into_owned();
            Ok(seen.contains(text))
        });
        found.with_context(|| format!("the log is {seen:?}"))
    }

    /// Runs `nomad alloc exec` without a terminal in the task `main`.
    ///
    /// # Errors
    /// Fails if the command can't be run or takes too long. Its exit code is in the output.
    pub fn exec(&self, id: &str, stdin: &[u8], words: &[&str]) -> Result<Output> {
        let mut command = self.nomad(&["alloc", "exec", "-i", "-t=false", "-task", "main", id]);
        run(command.args(words), stdin, self.step_timeout())
    }

    /// Returns the pid on the host of the first process of the task `main`.
    ///
    /// # Errors
    /// Fails if the task has no process.
    pub fn pid(&self, id: &str) -> Result<i32> {
        processes::first_of_task(id, "main")
    }
}

/// Polls until `is` returns true, within the timeout of a single step.
///
/// # Errors
/// Fails as [`poll`] does.
pub fn eventually(what: &str, is: impl FnMut() -> Result<bool>) -> Result<()> {
    poll(what, SOON, is)
}
