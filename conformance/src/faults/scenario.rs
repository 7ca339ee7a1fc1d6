//! The scenarios: what a plugin does while a fault is injected, and what must hold afterwards.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use clap::builder::PossibleValue;
use harness::context::CaseContext;
use harness::environment::TestEnvironment;
use harness::fixture::Form;
use harness::fixture::registry::free_port;
use harness::host::Plugin;
use harness::leaks::inspect::listed;
use harness::processes::alive;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::cni_plugins::Plugins;
use crate::cases::support::web_server::{PORT, offer, port};
use crate::cases::support::{driver_logs, orphans, spares, until};

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Scenario {
    /// The start of a task whose image is there.
    Start,
    /// The start of a task whose image has to be pulled.
    Pull,
    /// The start of a task with a network of its own, with a published port.
    Network,
    /// The start of a task whose logs the driver writes.
    Logs,
    /// A script check's command.
    Exec,
    /// A signal that the task answers.
    Signal,
    /// A stop that the task heeds.
    Stop,
    /// A stop that the task ignores, until it is killed.
    Kill,
    /// A task that ends by itself.
    End,
    /// The destruction of a task that has ended.
    Destroy,
    /// The destruction of a task that runs, with a network of its own.
    ForcedDestroy,
    /// The recovery of a task that runs.
    Recover,
    /// The recovery of ten tasks, all at the same time.
    RecoverTen,
    /// The removal of a task that nobody recovers.
    Orphan,
    /// The removal of an image that no task uses any more.
    ImageGc,
    /// The start of a task that gets a spare shim, and the launch of the next one.
    SpareTaken,
    /// The end of the spare shims that an earlier plugin has left, and the launch of new ones.
    SparesLeft,
    /// The start of a task that launches the node's shared shim.
    SharedLaunch,
    /// The start of a task that joins the shared shim of another one.
    SharedJoin,
    /// The destruction of a task that runs, whose shim another one has, too.
    SharedDestroy,
    /// The recovery of ten tasks that have one shim, all at the same time.
    SharedRecover,
    /// The start of a second attempt, whose first one still runs and is not recovered.
    SecondAttempt,
}

impl fmt::Display for Scenario {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        to.write_str(value.as_ref().map_or("?", PossibleValue::get_name))
    }
}

/// Exit codes of the scenarios' task: at SIGTERM, and when it is told to end.
const STOPPED: i32 = 3;
const ENDED: i32 = 11;
const KILLED: (i32, i32) = (137, 9);
/// The line that each attempt writes, and that of a signal.
const UP: &str = "up\n";
const USR1: &str = "usr1\n";
/// The image that is removed before each pull.
const PULLED: &str = "pulled:v1";
/// Label of the port that is published.
const PORT_LABEL: &str = "http";
const EXEC: (i32, &str) = (7, "out\n");
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
const SHORT_KILL_TIMEOUT: Duration = Duration::from_millis(300);
/// Words of the task's script.
const SCRIPT: &str = "echo usr1";
/// Maximum time until a task that nobody recovers is removed: three seconds after a plugin that may be held for half a
/// minute.
const ORPHANED: Duration = Duration::from_secs(45);
/// Pause between two looks at containerd's images.
const GLANCE: Duration = Duration::from_millis(100);
/// Maximum time from a start's answer until the kernel shows the task's program: the runtime has let it go by then.
const STARTED: Duration = Duration::from_millis(1500);

impl Scenario {
    /// Returns the job of the scenario's task. `registry` is the address of what stands before the registry.
    pub fn job(self, context: &CaseContext, registry: &str) -> Value {
        let at_term = if self == Self::Kill { "" } else { "exit 3" };
        let mut job = context.shell(&format!(
            "trap '{at_term}' TERM; trap 'echo usr1' USR1; echo up; \
             while [ ! -e /local/end ]; do sleep 0.05; done; exit 11"
        ));
        match self {
            Self::Pull => job["image"] = json!(format!("{registry}/{PULLED}")),
            Self::ImageGc => job["image"] = json!(context.image(PULLED)),
            _ if self.has_network() => {
                job["network_mode"] = json!("bridge");
                job["ports"] = json!([PORT_LABEL]);
            }
            _ => {}
        }
        job
    }

    /// Gives the scenario's task what Nomad has reserved for it.
    ///
    /// # Errors
    /// Fails if the machine has no free port.
    pub fn reserve(self, task: &mut Task) -> Result<()> {
        if self.has_network() {
            offer(task, vec![port(PORT_LABEL, free_port()?, PORT, "127.0.0.1")]);
        }
        Ok(())
    }

    /// Returns the options of the scenario's plugins: orphans are removed after three seconds, which is enough for the
    /// agent's recoveries on a busy machine.
    pub fn options(self, context: &CaseContext, cni: &Plugins) -> Value {
        let orphans = match self {
            // A removal that was begun is finished as what it is.
            Self::Destroy | Self::ForcedDestroy | Self::SharedDestroy => json!({"enabled": false}),
            // A plugin that stands still doesn't take the task that is about to be recovered for an orphan.
            Self::Recover | Self::RecoverTen | Self::SharedRecover => json!({"creation_grace": "5s"}),
            _ => json!({"creation_grace": "3s"}),
        };
        let mut options = orphans::options(context, &orphans);
        if self.has_network() {
            cni.add_to(&mut options);
            options["cni_timeout"] = json!("3s");
        }
        // Elsewhere nothing is launched beside the scenario's step.
        options["spare_shims"] = json!(if self.keeps_spares() { spares::KEPT } else { 0 });
        if self.shares_shim() {
            options["shim_sharing"] = json!("node");
        }
        if self == Self::ImageGc {
            options["gc"]["image_delay"] = json!("1s");
        }
        if self == Self::Logs {
            options["log_collection"] = json!("driver");
        }
        options
    }

    /// Brings the test environment into the state that the scenario begins with.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub fn prepare_environment(self, environment: &TestEnvironment, registry: &str) -> Result<()> {
        if !matches!(self, Self::Pull | Self::ImageGc) {
            return Ok(());
        }
        let (repository, tag) = PULLED.split_once(':').context("an image without a tag")?;
        environment.catalog().large(1)?.push(environment.registry(), repository, tag, Form::OciIndex)?;
        let containerd = environment.containerd();
        // There is none before the first time.
        let _ =
            containerd.ctr(&["images", "rm", &environment.image(PULLED), &format!("{registry}/{PULLED}")]);
        containerd.collect_garbage()
    }

    /// Returns whether the scenario's task has a network of its own, with a published port.
    pub fn has_network(self) -> bool {
        matches!(self, Self::Network | Self::ForcedDestroy)
    }

    /// Returns whether the scenario's plugins keep spare shims.
    pub fn keeps_spares(self) -> bool {
        matches!(self, Self::SpareTaken | Self::SparesLeft)
    }

    /// Returns whether the scenario's tasks have one shim.
    pub fn shares_shim(self) -> bool {
        matches!(self, Self::SharedLaunch | Self::SharedJoin | Self::SharedDestroy | Self::SharedRecover)
    }

    /// Returns whether the scenario is the recovery of tasks.
    pub fn recovers(self) -> bool {
        matches!(self, Self::Recover | Self::RecoverTen | Self::SharedRecover)
    }

    /// Returns whether the scenario destroys a task that runs.
    fn destroys_by_force(self) -> bool {
        matches!(self, Self::ForcedDestroy | Self::SharedDestroy)
    }

    /// Returns whether the scenario is a task's first start.
    pub fn is_first_start(self) -> bool {
        matches!(
            self,
            Self::Start
                | Self::Pull
                | Self::Network
                | Self::Logs
                | Self::SpareTaken
                | Self::SharedLaunch
                | Self::SharedJoin
        )
    }

    /// Returns whether the scenario's step is a start.
    pub fn starts(self) -> bool {
        self.is_first_start() || self == Self::SecondAttempt
    }

    /// Waits until a task that was started has written its first line.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn is_up(self, task: &Task) -> Result<()> {
        until(LIMIT, "the task's first line", || self.output(task).is_ok_and(|text| text.contains(UP))).await
    }

    /// Returns what the task has written so far, in all of its attempts.
    fn output(self, task: &Task) -> Result<String> {
        if self != Self::Logs {
            return Ok(task.alloc.stdout.text());
        }
        Ok(String::from_utf8_lossy(&driver_logs::output(task, "stdout")?).into_owned())
    }

    /// Checks that no byte of the task's output is lost or doubled: each attempt has written its line, and a signal its
    /// own. An attempt that the fault has ended, or whose start failed, may have written none.
    ///
    /// # Errors
    /// Shows the output.
    pub async fn check_output(self, task: &Task, attempts: usize, some_may_lack: bool) -> Result<()> {
        let is_right = |text: &str| {
            let count = |wanted| text.split_inclusive('\n').filter(|line| *line == wanted).count();
            let (ups, signals) = (count(UP), count(USR1));
            let least = if some_may_lack { 1 } else { attempts };
            (least..=attempts).contains(&ups)
                && signals <= usize::from(self == Self::Signal)
                && text.len() == ups * UP.len() + signals * USR1.len()
        };
        let complete =
            until(LIMIT, "its output", || self.output(task).is_ok_and(|text| is_right(&text))).await;
        complete.with_context(|| format!("of {attempts} attempts: {:?}", self.output(task)))
    }

    /// Returns whether a plugin that doesn't know the task takes the scenario's steps.
    pub fn needs_next_plugin(self) -> bool {
        self.recovers() || matches!(self, Self::Orphan | Self::SecondAttempt | Self::SparesLeft)
    }

    /// Returns the number of other tasks that the plugin works on in the scenario's step.
    pub fn others(self) -> usize {
        match self {
            Self::RecoverTen | Self::SharedRecover => 9,
            Self::SharedJoin | Self::SharedDestroy => 1,
            _ => 0,
        }
    }

    /// Prepares what is left by a plugin that is about to be killed.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub async fn leave(self, context: &CaseContext) -> Result<()> {
        if self == Self::SparesLeft {
            spares::all_there(context).await?;
            // The next plugin would end them before a fault can be injected.
            spares::take_away(context)?;
        }
        Ok(())
    }

    /// Prepares what the scenario begins with, once its task runs.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub async fn prepare(self, context: &CaseContext, plugin: &Plugin, task: &mut Task) -> Result<()> {
        match self {
            Self::SpareTaken => drop(spares::all_there(context).await?),
            Self::SparesLeft => {
                task.recover(plugin).await?;
                spares::all_there(context).await?;
                spares::bring_back(context)?;
            }
            Self::Destroy => {
                tell_to_end(task)?;
                let exit = task.wait(plugin).await?;
                ensure!(exit.exit_code == ENDED, "it ended with {exit:?}");
            }
            Self::SecondAttempt => task.next_attempt()?,
            Self::ImageGc => {
                tell_to_end(task)?;
                task.wait(plugin).await?;
                task.destroy(plugin).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Does what a fault is injected into.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn act(
        self,
        context: &CaseContext,
        plugin: &Plugin,
        task: &mut Task,
        others: &[Task],
        options: &Value,
    ) -> Result<()> {
        match self {
            Self::Start | Self::Pull | Self::Network | Self::Logs | Self::SharedLaunch | Self::SharedJoin => {
                task.start(plugin).await?;
                runs_its_program(task).await
            }
            Self::SpareTaken => {
                task.start(plugin).await?;
                runs_its_program(task).await?;
                spares_are_renewed(context, plugin, &[]).await
            }
            Self::SparesLeft => {
                let earlier = spares::all(context);
                // As at a plugin's beginning, all that are there are ended.
                plugin.configure(options).await?;
                spares_are_renewed(context, plugin, &earlier).await
            }
            Self::SecondAttempt => {
                // The fault may have ended it.
                let earlier = task.pid().ok();
                task.start(plugin).await?;
                ensure!(
                    !earlier.is_some_and(alive),
                    "{WRONG} the first attempt, process {earlier:?}, runs beside the second"
                );
                runs_its_program(task).await
            }
            Self::Exec => {
                let (code, output) = task.exec(plugin, "echo out; exit 7").await?;
                ensure!(
                    (code, &*output) == EXEC,
                    "{WRONG} the command's code is {code}, its output {output:?}"
                );
                Ok(())
            }
            Self::Signal => {
                plugin.signal_task(task.id(), "SIGUSR1").await.context("SignalTask")?;
                task.alloc.stdout.to_contain("usr1\n", LIMIT).await.context("WRONG: a signal is lost")
            }
            Self::Stop => task.stop(plugin, KILL_TIMEOUT).await,
            Self::Kill => task.stop(plugin, SHORT_KILL_TIMEOUT).await,
            Self::End => {
                tell_to_end(task)?;
                let exit = task.wait(plugin).await?;
                ensure!((exit.exit_code, exit.signal) == (ENDED, 0), "{WRONG} the task ended with {exit:?}");
                Ok(())
            }
            Self::Destroy => task.destroy(plugin).await,
            Self::ForcedDestroy | Self::SharedDestroy => task.end(plugin).await,
            Self::Recover => task.recover(plugin).await,
            Self::RecoverTen | Self::SharedRecover => {
                let all = [&*task].into_iter().chain(others).map(|task| task.recover(plugin));
                futures::future::join_all(all).await.into_iter().collect()
            }
            Self::Orphan => until(ORPHANED, "the orphan's end", || task.alloc.cgroup.pids().is_empty()).await,
            Self::ImageGc => image_is_gone(context).await,
        }
    }

    /// Checks what has to be done without the agent, now that the fault has passed.
    ///
    /// # Errors
    /// Says what isn't done.
    pub async fn comes_to_its_end(self, context: &CaseContext) -> Result<()> {
        if self == Self::ImageGc { image_is_gone(context).await } else { Ok(()) }
    }

    /// Returns whether the agent has nothing to do with the task any more when the fault is over.
    pub fn is_without_agent(self) -> bool {
        matches!(self, Self::Orphan | Self::ImageGc)
    }

    /// Returns whether the scenario removes the task, so that a plugin may not know it afterwards.
    pub fn removes_task(self) -> bool {
        self == Self::Destroy || self.destroys_by_force()
    }

    /// Returns whether a killed shim may be the reason of a wrong answer: what the task was about to do is lost with it.
    pub fn may_lose_with_shim(self) -> bool {
        matches!(self, Self::Signal | Self::Exec | Self::End)
    }

    /// Brings the task to its end, after whatever happened to it, and checks how it ended. A step that was answered with
    /// success (`is_done`) isn't taken again. `is_lost` says that the fault may have ended the task.
    ///
    /// # Errors
    /// Says what is wrong.
    pub async fn conclude(self, plugin: &Plugin, task: &Task, is_done: bool, is_lost: bool) -> Result<()> {
        if self.removes_task() && is_done {
            return Ok(());
        }
        if self.destroys_by_force() {
            return again(|| task.end(plugin)).await.context("destroy the task by force once more");
        }
        match self {
            Self::Stop | Self::Kill => {
                let limit = if self == Self::Kill { SHORT_KILL_TIMEOUT } else { KILL_TIMEOUT };
                if is_done && !is_lost {
                    let left = task.alloc.cgroup.pids();
                    ensure!(left.is_empty(), "the stop was answered, and {left:?} run");
                } else {
                    again(|| task.stop(plugin, limit)).await.context("stop the task once more")?;
                }
            }
            _ => tell_to_end(task)?,
        }
        self.judge_end(task.wait_answer(plugin).await, is_lost)?;
        let left = task.alloc.cgroup.pids();
        ensure!(left.is_empty(), "it is said to have ended, and {left:?} run");
        again(|| task.destroy(plugin)).await.context("destroy the task")
    }

    /// Returns whether somebody waits for the task's end meanwhile, as an agent always does.
    pub fn is_waited_for(self) -> bool {
        !self.starts() && !self.needs_next_plugin() && !self.is_without_agent()
    }

    /// Checks what WaitTask answered.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn judge_end(self, answer: Result<pb::WaitTaskResponse>, is_lost: bool) -> Result<()> {
        let wanted: &[(i32, i32)] = match self {
            Self::Stop => &[(STOPPED, 0)],
            Self::Kill => &[KILLED],
            Self::ForcedDestroy | Self::SharedDestroy => &[KILLED, (STOPPED, 0)],
            _ => &[(ENDED, 0)],
        };
        let answer = match answer {
            Err(error) if self.removes_task() && is_not_found(&error) => return Ok(()),
            answer => answer?,
        };
        let exit = answer.result.context("WaitTask without a result crashes the agent")?;
        let ended = (exit.exit_code, exit.signal);
        let is_right = wanted.contains(&ended) && answer.err.is_empty();
        // A task that is lost with its shim was killed, or ended in a way that nobody knows.
        let is_excused = is_lost && (ended == KILLED || !answer.err.is_empty());
        ensure!(is_right || is_excused, "the task ended with {exit:?} {:?}, not {wanted:?}", answer.err);
        Ok(())
    }
}

/// Waits until as many spare shims are there as the plugin keeps, and none of the earlier ones. A plugin that was killed
/// launches none.
async fn spares_are_renewed(context: &CaseContext, plugin: &Plugin, earlier: &[i32]) -> Result<()> {
    let pid = i32::try_from(plugin.pid())?;
    let is_renewed = || {
        let now = spares::all(context);
        now.len() == spares::KEPT && now.iter().all(|pid| !earlier.contains(pid))
    };
    let renewed = until(LIMIT, "new spare shims", || !alive(pid) || is_renewed()).await;
    ensure!(alive(pid), "the plugin is gone");
    renewed.with_context(|| format!("{WRONG} {:?} are there, after {earlier:?}", spares::all(context)))
}

/// Waits for the removal of the image that no task uses any more. Where containerd can't be asked, it is unknown.
async fn image_is_gone(context: &CaseContext) -> Result<()> {
    let image = context.image(PULLED);
    let containerd = context.environment().containerd();
    let is_gone = || {
        std::thread::sleep(GLANCE);
        listed(containerd, &["images", "list", "--quiet"]).is_ok_and(|all| !all.contains(&image))
    };
    until(LIMIT, "the image's removal", || tokio::task::block_in_place(is_gone)).await
}

/// Checks that a task whose start was answered has its own program by now, and not the runtime's, which waits for the
/// start. A task that has lost its processes has neither.
async fn runs_its_program(task: &Task) -> Result<()> {
    let is_runtime = || {
        let first =
            task.pid().ok().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok());
        first.is_some_and(|words| !words.is_empty() && !words.contains(SCRIPT))
    };
    let answered = until(STARTED, "the task's own program", || !is_runtime()).await;
    answered.with_context(|| format!("{WRONG} StartTask was answered before the start"))
}

/// Mark of an answer that is wrong, which no fault excuses.
pub const WRONG: &str = "WRONG:";

/// Makes a call again as the agent does, if it fails. A task that isn't known any more is one that has been removed.
async fn again<F: Future<Output = Result<()>>>(call: impl Fn() -> F) -> Result<()> {
    let mut outcome = call().await;
    for _ in 0..2 {
        match &outcome {
            Err(error) if is_not_found(error) => return Ok(()),
            Err(_) => outcome = call().await,
            Ok(()) => break,
        }
    }
    outcome
}

/// Returns whether the plugin doesn't know the task.
fn is_not_found(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("task not found for given id")
}

pub fn tell_to_end(task: &Task) -> Result<()> {
    std::fs::write(task.alloc.task_path("local/end"), "").context("tell the task to end")
}
