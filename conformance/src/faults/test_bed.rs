//! A test environment with a bystander: another task, which nothing may happen to. Runs one trial after the other.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use harness::context::CaseContext;
use harness::environment::TestEnvironment;
use harness::fixture::fault_proxy::FaultProxy;
use harness::host::Plugin;
use harness::processes::alive;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Status;

use super::client::Injector;
use super::disk::Disk;
use super::outside::{FAULT_TIME, Outside, Surroundings, shims};
use super::point::{Fault, Point, Trial};
use super::scenario::{Scenario, WRONG, tell_to_end};
use crate::cases::support::cni_plugins::Plugins;
use crate::cases::support::{is_recoverable, orphans, until};

/// Time in which the plugin answers for the bystander.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Time for which the plugin may be held at the point, until the fault has begun.
const HELD: Duration = Duration::from_secs(2);
/// Time after the fault in which nothing may be left: the plugin's ten seconds, and some for its work.
const CENSUS_LIMIT: Duration = Duration::from_secs(13);
/// Time in which a task that nobody recovers is removed: the grace, and what a removal takes.
const ORPHAN_LIMIT: Duration = Duration::from_secs(30);
/// Size of the disk of the allocations.
const ALLOC_DISK_BYTES: u64 = 16 * 1024 * 1024;
/// Timeout of the scenario's own step.
const STEP_LIMIT: Duration = Duration::from_secs(80);
/// Number of runs in which a point may be reached: it depends on the order in which threads run.
const TRIES: usize = 3;
/// Timeout of a run.
const TRIAL_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);

pub struct TestBed {
    // Unmounted before the context removes its directory.
    disk: Disk,
    alloc_disk: Disk,
    context: CaseContext,
    /// The disk of containerd, which all test beds of an environment share.
    containerd_disk: Arc<Disk>,
    proxy: FaultProxy,
    cni: Plugins,
    bystander: Task,
    bystander_pid: i32,
    bystander_container: String,
    /// Shims that are not those of a trial's task.
    foreign_shims: Vec<i32>,
    /// Files that a fault has moved away.
    moved: RefCell<Vec<PathBuf>>,
}

/// How a trial ended.
pub enum Outcome {
    /// The plugin reached the point, and all that must hold did.
    Held,
    /// The plugin didn't reach the point.
    Missed,
}

impl TestBed {
    /// Starts a bystander in a test environment.
    ///
    /// # Errors
    /// Says what doesn't work without any fault.
    pub async fn set_up(
        environment: &Arc<TestEnvironment>,
        containerd_disk: Arc<Disk>,
        plugin: &Path,
        name: String,
    ) -> Result<Self> {
        let mut context = CaseContext::new(Arc::clone(environment), plugin, name);
        let disk = Disk::mount(&context.directory().join("disk"), &context.state_dir())
            .context("make a disk for the state directory")?;
        let alloc_disk = Disk::in_memory(&context.directory().join("alloc"), ALLOC_DISK_BYTES)?;
        let proxy = FaultProxy::before(environment.registry().address())?;
        let cni = Plugins::install(&context)?;
        let mut plugin = context.plugin().await?;
        let script = "trap 'exit 3' TERM; echo up; sleep 60000 & wait";
        let bystander = context.run(&plugin, &context.shell(script)).await.context("start the bystander")?;
        bystander.alloc.stdout.to_contain("up\n", LIMIT).await?;
        let bystander_pid = bystander.pid()?;
        let bystander_container = container_of(&plugin, &bystander).await?;
        plugin.shut_down().await?;
        context.count_from_now();
        let foreign_shims = shims(&context);
        Ok(Self {
            disk,
            alloc_disk,
            context,
            containerd_disk,
            proxy,
            cni,
            bystander,
            bystander_pid,
            bystander_container,
            foreign_shims,
            moved: RefCell::default(),
        })
    }

    /// Ends the bystander.
    ///
    /// # Errors
    /// Fails if something has happened to it.
    pub async fn take_down(&self) -> Result<()> {
        let mut plugin = self.next_plugin(&self.context.options()).await?;
        self.bystander.stop(&plugin, LIMIT).await?;
        let exit = self.bystander.wait(&plugin).await?;
        ensure!(exit.exit_code == 3, "the bystander ended with {exit:?}");
        self.bystander.destroy(&plugin).await?;
        plugin.shut_down().await
    }

    /// Returns the last log lines of the trial's plugins, and removes by force all that there is.
    pub fn give_up(&self) -> String {
        let words = self.context.last_words();
        self.surroundings(0).repair();
        let _ = self.context.environment().repair();
        self.context.sweep();
        words
    }

    /// Runs a scenario without a fault, and lists the points that it reaches.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub async fn points(&self, scenario: Scenario) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        self.play(scenario, None, &mut points).await?;
        Ok(points)
    }

    /// Runs a scenario with a fault, again if the plugin doesn't reach the point.
    ///
    /// # Errors
    /// Says what must hold and didn't.
    pub async fn try_until_reached(&self, scenario: Scenario, trial: &Trial) -> Result<Outcome> {
        for _ in 1..TRIES {
            if matches!(self.try_once(scenario, trial).await?, Outcome::Held) {
                return Ok(Outcome::Held);
            }
        }
        self.try_once(scenario, trial).await
    }

    async fn try_once(&self, scenario: Scenario, trial: &Trial) -> Result<Outcome> {
        let played =
            tokio::time::timeout(TRIAL_LIMIT, self.play(scenario, Some(trial), &mut Vec::new())).await;
        played.with_context(|| format!("not done after {TRIAL_LIMIT:?}"))?
    }

    async fn play(
        &self,
        scenario: Scenario,
        trial: Option<&Trial>,
        points: &mut Vec<Point>,
    ) -> Result<Outcome> {
        self.context.forget_earlier_runs();
        let registry = self.proxy.address();
        tokio::task::block_in_place(|| scenario.prepare_environment(self.context.environment(), registry))?;
        let (mut plugin, mut injector) = self.traced_plugin(scenario).await?;
        let job = scenario.job(&self.context, registry);
        let mut task = self.context.prepare(&plugin, &job).await?;
        scenario.reserve(&mut task)?;
        let mut names = self.names(&task);
        if !scenario.is_first_start() {
            task.start(&plugin).await.context("start the task before the fault")?;
            scenario.is_up(&task).await?;
            names.push((container_of(&plugin, &task).await?, "{container}".to_owned()));
        }
        let mut others = Vec::new();
        for _ in 0..scenario.others() {
            let other = self.context.run(&plugin, &job).await.context("start another task")?;
            let container = container_of(&plugin, &other).await?;
            for (name, word) in [
                (&other.alloc.id, "{other}"),
                (&other.alloc.attempt, "{attempt of other}"),
                (&container, "{container of other}"),
            ] {
                names.push((name.clone(), word.to_owned()));
            }
            others.push(other);
        }
        if scenario.needs_next_plugin() {
            drop(injector);
            scenario.leave(&self.context).await?;
            plugin.kill().await?;
            (plugin, injector) = self.traced_plugin(scenario).await?;
        }
        scenario.prepare(&self.context, &plugin, &mut task).await?;
        names.push((plugin.socket().display().to_string(), "{agent}".to_owned()));
        if scenario == Scenario::SecondAttempt {
            names.push((task.alloc.attempt.clone(), "{second attempt}".to_owned()));
        }
        // The longest first: no name may be a part of another one.
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let waiting = scenario.is_waited_for().then(|| spawn_wait(&plugin, &task));
        injector.arm(&plugin, names, trial).await?;
        let fault = trial.map(|trial| trial.fault);
        let acted = self.act(scenario, fault, &plugin, &mut task, &others, &mut injector).await;
        if trial.is_none() {
            points.extend(injector.points()?);
        }
        let was_reached = injector.end().await?;
        let (acted, had_effect) = acted?;
        let was_reached = was_reached && had_effect;
        let fault = fault.filter(|_| was_reached);
        self.judge(scenario, fault, Played { plugin, task, others, acted, waiting }).await?;
        Ok(if was_reached { Outcome::Held } else { Outcome::Missed })
    }

    /// Returns what differs between runs, and the word for each in a point.
    fn names(&self, task: &Task) -> Vec<(String, String)> {
        let directory = self.context.environment().directory().display().to_string();
        let text = |path: &Path| path.display().to_string();
        [
            (text(&self.context.state_dir()), "{state}"),
            (text(&self.context.directory()), "{case}"),
            (self.proxy.address().to_owned(), "{registry}"),
            (directory, "{environment}"),
            (self.bystander.alloc.id.clone(), "{bystander}"),
            (self.bystander.alloc.attempt.clone(), "{attempt of bystander}"),
            (self.bystander_container.clone(), "{container of bystander}"),
            (task.alloc.id.clone(), "{alloc}"),
            (task.alloc.attempt.clone(), "{attempt}"),
        ]
        .map(|(name, word)| (name, word.to_owned()))
        .into()
    }

    async fn configure(&self, options: &Value, plugin: &mut Plugin) -> Result<()> {
        plugin.configure(options).await?;
        plugin.listen().await?;
        self.bystander.recover(plugin).await.context("recover the bystander")
    }

    /// Starts a plugin that is traced from before its configuration on, so that each of its sockets is known by its peer.
    async fn traced_plugin(&self, scenario: Scenario) -> Result<(Plugin, Injector)> {
        let mut plugin = self.context.bare_plugin(&self.context.launch()).await?;
        let injector = Injector::attach(&plugin).await?;
        self.configure(&scenario.options(&self.context, &self.cni), &mut plugin).await?;
        Ok((plugin, injector))
    }

    async fn next_plugin(&self, options: &Value) -> Result<Plugin> {
        let mut plugin = self.context.bare_plugin(&self.context.launch()).await?;
        self.configure(options, &mut plugin).await?;
        Ok(plugin)
    }

    /// Has the plugin do the scenario's step with a fault in it, and looks at the bystander meanwhile. The inner result
    /// is the step's. Returns also whether a fault outside of the plugin found what it is for.
    async fn act(
        &self,
        scenario: Scenario,
        fault: Option<Fault>,
        plugin: &Plugin,
        task: &mut Task,
        others: &[Task],
        injector: &mut Injector,
    ) -> Result<(Result<()>, bool)> {
        let dies = fault.is_some_and(Fault::kills_plugin);
        let outside = fault.and_then(Fault::outside);
        let lasts = outside.map_or(Duration::ZERO, Outside::lasts);
        let limit = STEP_LIMIT + lasts + fault.map_or(Duration::ZERO, Fault::frozen_for);
        let options = scenario.options(&self.context, &self.cni);
        let done = tokio::time::timeout(limit, scenario.act(&self.context, plugin, task, others, &options));
        let has_begun = Cell::new(false);
        let holding = async {
            injector.reached().await;
            has_begun.set(true);
            self.cause(outside, injector, &options).await
        };
        let watching = self.watch_bystander(plugin, fault);
        tokio::pin!(holding);
        let (mut held, mut had_effect) = (false, true);
        tokio::pin!(done);
        tokio::pin!(watching);
        loop {
            tokio::select! {
                done = &mut done => {
                    let done = done.with_context(|| format!("{scenario} is not done after {limit:?}"))?;
                    if let Err(error) = &done {
                        let is_excused = outside.is_some_and(Outside::ends_task) && scenario.may_lose_with_shim();
                        ensure!(is_excused || !format!("{error:#}").contains(WRONG), "{error:#}");
                    }
                    // What was begun has to be undone.
                    if !held && has_begun.get() {
                        had_effect = holding.await?;
                    }
                    return Ok((done, had_effect));
                }
                outcome = &mut holding, if !held => {
                    had_effect = outcome?;
                    held = true;
                    if outside.is_some_and(Outside::is_agents) {
                        return Ok((Err(anyhow!("the agent is gone")), true));
                    }
                }
                watched = &mut watching, if !dies => watched?,
            }
        }
    }

    /// Causes a fault outside of the plugin, which is held at the point. Returns whether there was anything to cause it
    /// on.
    async fn cause(
        &self,
        outside: Option<Outside>,
        injector: &mut Injector,
        options: &Value,
    ) -> Result<bool> {
        let Some(outside) = outside else { return Ok(true) };
        let surroundings = self.surroundings(injector.plugin());
        let begun = tokio::task::block_in_place(|| surroundings.begin(outside));
        injector.release().await?;
        surroundings.pass(begun.with_context(|| format!("begin {outside}"))?, options).await
    }

    fn surroundings(&self, plugin: i32) -> Surroundings<'_> {
        Surroundings {
            context: &self.context,
            disk: &self.disk,
            alloc_disk: &self.alloc_disk,
            containerd_disk: &self.containerd_disk,
            proxy: &self.proxy,
            cni: &self.cni,
            plugin,
            moved: &self.moved,
            foreign_shims: &self.foreign_shims,
            foreign_container: &self.bystander_container,
        }
    }

    /// Asks for the bystander over and over. Returns only if an answer is wrong, or late.
    async fn watch_bystander(&self, plugin: &Plugin, fault: Option<Fault>) -> Result<()> {
        let held = fault.and_then(Fault::outside).map_or(Duration::ZERO, |_| HELD);
        let limit = ANSWER_LIMIT + fault.map_or(Duration::ZERO, Fault::frozen_for) + held;
        loop {
            let began = Instant::now();
            let answer = tokio::time::timeout(limit, plugin.inspect_task(self.bystander.id())).await;
            let answer = answer.with_context(|| format!("no answer for another task in {limit:?}"))?;
            let answer = answer.context("InspectTask of another task")?;
            let state = answer.task.map(|task| task.state);
            ensure!(state == Some(pb::TaskState::Running as i32), "another task is {state:?}");
            tokio::time::sleep(POLL.saturating_sub(began.elapsed())).await;
        }
    }

    /// Checks all that must hold after a step.
    async fn judge(&self, scenario: Scenario, fault: Option<Fault>, played: Played) -> Result<()> {
        let Played { mut plugin, mut task, others, acted, mut waiting } = played;
        self.context.environment().repair()?;
        let outside = fault.and_then(Fault::outside);
        let died = fault.is_some_and(Fault::kills_plugin);
        let is_agents = outside.is_some_and(Outside::is_agents);
        let is_lost = outside.is_some_and(Outside::ends_task);
        // A start that was answered has to outlast the plugin.
        let is_restarted = scenario.starts() && acted.is_ok() && !is_agents && !is_lost;
        let is_new_agent = died || is_agents || is_restarted;
        let forgets = outside == Some(Outside::AgentForgets);
        if is_agents && let Some(waiting) = waiting.take() {
            // Its calls end with it.
            waiting.abort();
        }
        if forgets {
            plugin.hang_up();
            // Another agent finds neither the plugin nor the task. What it has started takes the task for an orphan.
            let mut options = scenario.options(&self.context, &self.cni);
            options["gc"] = orphans::options(&self.context, &json!({"creation_grace": "3s"}))["gc"].take();
            let next = self.next_plugin(&options).await.context("another plugin after the agent's death")?;
            let mut gone = std::mem::replace(&mut plugin, next);
            let ended = gone.process().end_within(LIMIT).await;
            ended.context("a plugin without an agent")?;
        } else if outside == Some(Outside::AgentGone) {
            // For a while there is no connection.
            plugin.hang_up();
            tokio::time::sleep(FAULT_TIME).await;
            plugin.redial().await?;
            plugin.listen().await?;
            self.bystander.recover(&plugin).await.context("recover the bystander")?;
        } else if died || is_restarted {
            // A fault right after the last call is only reached with it.
            plugin.kill().await?;
            plugin = self.next_plugin(&scenario.options(&self.context, &self.cni)).await?;
        } else if let Err(error) = &acted {
            check_error(scenario, fault, error)?;
        }
        for other in others.into_iter().filter(|_| !forgets) {
            let ended = self.end_other(&plugin, &other, is_new_agent, is_lost).await;
            ended.with_context(|| format!("another of the tasks, after {}", said(&acted)))?;
        }
        let is_known = !scenario.is_without_agent()
            && !forgets
            && task.handle.is_some()
            && self.is_known(scenario, &plugin, &task, is_new_agent, &acted, fault).await?;
        // A plugin takes no task for an orphan that it has started itself.
        let is_the_next_ones = scenario == Scenario::SecondAttempt || outside == Some(Outside::AgentGone);
        let is_gone = is_the_next_ones && task.handle.is_none();
        if is_known {
            let concluded = scenario.conclude(&plugin, &task, acted.is_ok(), is_lost).await;
            concluded.with_context(|| format!("after {}", said(&acted)))?;
            if let Some(waiting) = waiting.filter(|_| !is_new_agent) {
                let answer = tokio::time::timeout(ANSWER_LIMIT, waiting).await;
                let answer = answer.context("the pending WaitTask gave no answer")??;
                let judged = scenario.judge_end(answer.map_err(anyhow::Error::from), is_lost);
                judged.with_context(|| format!("the pending WaitTask, after {}", said(&acted)))?;
            }
        }
        let limit = if forgets { ORPHAN_LIMIT } else { CENSUS_LIMIT };
        let left = if is_gone {
            // The next attempt's start removes what is left of this one. It is never that of two.
            until(limit, "a single attempt", || shims(&self.context).len() <= self.foreign_shims.len() + 1)
                .await
        } else {
            self.context.nothing_left_within(limit)
        };
        left.with_context(|| format!("after {}", said(&acted)))?;
        scenario.comes_to_its_end(&self.context).await?;
        // The CNI plugin `bridge` fails once where an ADD was cut off on a bridge that nothing else uses.
        let may_fail_once = outside == Some(Outside::ContentGone) || scenario.has_network();
        self.next_attempt_works(&plugin, &mut task, may_fail_once).await?;
        let attempts = if scenario == Scenario::SecondAttempt { 3 } else { 2 };
        scenario.check_output(&task, attempts, is_lost || !is_known).await?;
        self.context.nothing_left_within(CENSUS_LIMIT).with_context(|| format!("after {}", said(&acted)))?;
        self.bystander_is_well()?;
        plugin.shut_down().await?;
        self.context.logs_are_in_form()
    }

    /// Ends a task that the plugin was to work on as well. Checks that it ran, unless the fault may have ended it.
    async fn end_other(&self, plugin: &Plugin, task: &Task, is_new_agent: bool, is_lost: bool) -> Result<()> {
        if is_new_agent {
            task.recover(plugin).await?;
        }
        if !is_lost {
            let exit = task.exec(plugin, "exit 7").await?;
            ensure!(exit.0 == 7, "an exec in it ended with {exit:?}");
        }
        match task.end(plugin).await {
            // An agent destroys what can't be recovered.
            Err(_) if is_lost => Ok(()),
            ended => ended,
        }
    }

    /// Runs the next attempt from start to end. `may_fail_once` says that its start may fail in a way that is worth
    /// another try, such as while containerd is still collecting what was lost with the content.
    async fn next_attempt_works(&self, plugin: &Plugin, task: &mut Task, may_fail_once: bool) -> Result<()> {
        task.next_attempt()?;
        tell_to_end(task)?;
        read_logs_anew(task)?;
        let started = match task.start(plugin).await {
            Err(error) if may_fail_once && is_worth_another_try(&error)? => {
                read_logs_anew(task)?;
                task.start(plugin).await
            }
            started => started,
        };
        started.context("start the next attempt")?;
        let exit = task.wait(plugin).await.context("the next attempt")?;
        ensure!(exit.exit_code == 11, "the next attempt ended with {exit:?}");
        task.destroy(plugin).await.context("destroy the next attempt")
    }

    /// Returns whether the plugin has the task, which a plugin that was started after the fault has to recover first.
    async fn is_known(
        &self,
        scenario: Scenario,
        plugin: &Plugin,
        task: &Task,
        is_new_agent: bool,
        acted: &Result<()>,
        fault: Option<Fault>,
    ) -> Result<bool> {
        if !is_new_agent {
            if scenario.recovers() && acted.is_err() {
                // A fault of the plugin's own is no reason to lose a task that runs.
                ensure!(
                    fault.and_then(Fault::outside).is_some_and(Outside::ends_task),
                    "a running task was not recovered: {}",
                    said(acted)
                );
                // The agent destroys what it can't recover, and starts it anew.
                let _ = task.end(plugin).await;
                return Ok(false);
            }
            return Ok(true);
        }
        match task.recover(plugin).await {
            Ok(()) => Ok(true),
            // The next plugin has gone on with the removal.
            Err(_) if scenario.removes_task() => Ok(false),
            Err(error) => Err(error.context("recover the task after the plugin's death")),
        }
    }

    fn bystander_is_well(&self) -> Result<()> {
        ensure!(alive(self.bystander_pid), "the bystander's process is gone");
        let pids = self.bystander.alloc.cgroup.pids();
        ensure!(pids.contains(&self.bystander_pid), "the bystander is another process now: {pids:?}");
        Ok(())
    }
}

/// Has new readers of a task's output, as the agent has for each start: an attempt that failed may have closed the pipes.
fn read_logs_anew(task: &mut Task) -> Result<()> {
    if !task.alloc.log_path("stdout").exists() {
        return Ok(());
    }
    task.alloc.stdout.stop();
    task.alloc.stderr.stop();
    task.alloc.read_logs()
}

fn is_worth_another_try(error: &anyhow::Error) -> Result<bool> {
    error.downcast_ref::<Status>().map_or(Ok(false), is_recoverable)
}

fn said(acted: &Result<()>) -> String {
    match acted {
        Ok(()) => "a step that succeeded".to_owned(),
        Err(error) => format!("a step that failed: {error:#}"),
    }
}

/// Checks what an agent or an operator relies on in an error.
fn check_error(scenario: Scenario, fault: Option<Fault>, error: &anyhow::Error) -> Result<()> {
    let Some(fault) = fault else { bail!("without a fault: {error:#}") };
    let Some(status) = error.downcast_ref::<Status>() else {
        let text = format!("{error:#}");
        ensure!(!text.contains("gave no answer") && !text.contains("crashes the agent"), "{text}");
        return Ok(());
    };
    let deadly = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled);
    ensure!(!deadly, "{:?} means the plugin's death to the agent: {}", status.code(), status.message());
    let words = status.message().split_whitespace().count();
    ensure!(words > 3, "the error doesn't say what failed: {:?}", status.message());
    if scenario.starts() && fault.passes_by_itself() {
        ensure!(is_recoverable(status)?, "it could succeed later, and is final: {}", status.message());
    }
    Ok(())
}

/// What there is after a step.
struct Played {
    plugin: Plugin,
    task: Task,
    others: Vec<Task>,
    acted: Result<()>,
    waiting: Option<Waiting>,
}

/// A WaitTask that is pending.
type Waiting = JoinHandle<Result<pb::WaitTaskResponse, Status>>;

fn spawn_wait(plugin: &Plugin, task: &Task) -> Waiting {
    let (mut driver, task_id) = (plugin.driver(), task.id().to_owned());
    tokio::spawn(async move {
        driver.wait_task(pb::WaitTaskRequest { task_id }).await.map(tonic::Response::into_inner)
    })
}

async fn container_of(plugin: &Plugin, task: &Task) -> Result<String> {
    let answer = plugin.inspect_task(task.id()).await.context("InspectTask")?;
    let attributes =
        answer.driver.context("InspectTask without the driver's part crashes the agent")?.attributes;
    attributes.get("container_id").cloned().context("a task without a container")
}
