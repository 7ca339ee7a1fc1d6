//! A test environment with a bystander and a plugin, in which hostile jobs run one after the other.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::environment::TestEnvironment;
use harness::fixture::Form;
use harness::fixture::images::libraries;
use harness::host::alloc::set_memory;
use harness::host::cgroup::is_v2;
use harness::host::{Plugin, hcl};
use harness::leaks::inspect::children;
use harness::processes::{forget_peak, parent};
use harness::task::{LIMIT, Task};
use serde_json::{Value, json};

use super::acts::PROGRAM;
use super::breach::{BREACH, no_breach};
use super::canaries::Canaries;
use super::client::{answered, end, make};
use super::excuses::check_refusal;
use super::trial::{Ending, Move, Trial};

const IMAGE: &str = "hostile:latest";
const PERL: &str = "/usr/bin/perl";
/// The bystander's program: one process, which counts.
const BYSTANDER: &str =
    "$| = 1; $SIG{TERM} = sub { exit 3 }; while (1) { print ++$i, \"\\n\"; select undef, undef, undef, 0.1 }";
/// Time after a destroy in which nothing may be left: the plugin's ten seconds, and some for its work.
pub(super) const CENSUS_LIMIT: Duration = Duration::from_secs(15);
/// Timeout of a trial.
const TRIAL_LIMIT: Duration = Duration::from_secs(400);
/// Maximum time until the program has said that it runs.
const UP_LIMIT: Duration = Duration::from_secs(30);
/// Number of bytes of a hostile task's output that are kept.
const KEPT_BYTES: usize = 1 << 20;
/// Number of processes that the operator allows a task.
const PIDS_LIMIT: usize = 12_000;

pub struct TestBed {
    pub(super) context: CaseContext,
    pub(super) bystander: Task,
    pub(super) bystander_pid: i32,
    /// Last line of the bystander that was read.
    pub(super) bystander_said: usize,
    pub(super) canaries: Canaries,
    pub(super) plugin: Plugin,
    /// Whether the driver collects the output of tasks.
    is_collecting: bool,
    /// Numbers of descriptors that the plugin had after its start, and before the trial.
    pub(super) descriptors: (usize, usize),
    /// Longest time that the bystander's command took.
    pub slowest: Duration,
}

/// How a trial ended, if all that must hold did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ran,
    /// The job was refused, or its program couldn't be started.
    Refused,
}

/// Pushes the image of hostile tasks: busybox and perl.
///
/// # Errors
/// Names what is missing on the machine.
pub fn push_image(environment: &TestEnvironment) -> Result<()> {
    let image = environment.catalog().with(|tree| {
        for file in libraries(Path::new(PERL))?.iter().map(|path| path.as_path()).chain([Path::new(PERL)]) {
            tree.host_file(file, 0o755)?;
        }
        Ok(())
    })?;
    image.push(environment.registry(), "hostile", "latest", Form::Oci)
}

impl TestBed {
    /// Starts a plugin and a bystander in a test environment, which has the image.
    ///
    /// # Errors
    /// Says what doesn't work without a hostile task.
    pub async fn set_up(environment: &Arc<TestEnvironment>, binary: &Path, name: String) -> Result<Self> {
        let mut context = CaseContext::new(Arc::clone(environment), binary, name);
        let open = context.directory().join("open");
        fs::create_dir_all(open.join("x"))?;
        std::os::unix::fs::symlink("../bait", open.join("out"))?;
        let plugin = context.plugin_as(&context.launch(), &options(&context, false)).await?;
        let job = config! { image = context.image(IMAGE), command = PERL, args = ["-e", BYSTANDER] };
        let mut bystander = context.prepare_named(&plugin, "bystander", &job).await?;
        bystander.alloc.read_logs()?;
        fs::write(bystander.alloc.task_path("local/greeting"), "hello from the host\n")?;
        bystander.start(&plugin).await.context("start the bystander")?;
        bystander.alloc.stdout.to_contain("1\n", LIMIT).await?;
        let bystander_pid = bystander.pid()?;
        context.count_from_now();
        let programs = context.programs();
        let mut more: Vec<_> = programs.all().into_iter().map(Path::to_owned).collect();
        more.extend([
            binary.to_owned(),
            bystander.alloc.task_path(""),
            bystander.alloc.directory.join("alloc/data"),
        ]);
        let processes = vec![
            ("containerd".to_owned(), environment.containerd().pid()?),
            ("the bystander".to_owned(), bystander_pid),
            ("the bystander's shim".to_owned(), parent(bystander_pid)?),
        ];
        let bait = context.directory().join("bait");
        let canaries = Canaries::place(&bait, &bystander.alloc.directory, &more, processes)?;
        Ok(Self {
            context,
            bystander,
            bystander_pid,
            bystander_said: 0,
            canaries,
            descriptors: (descriptors(&plugin), 0),
            plugin,
            is_collecting: false,
            slowest: Duration::ZERO,
        })
    }

    /// Ends the bystander and the plugin.
    ///
    /// # Errors
    /// Fails if something has happened to them.
    pub async fn take_down(mut self) -> Result<()> {
        self.bystander.stop(&self.plugin, LIMIT).await?;
        let exit = self.bystander.wait(&self.plugin).await?;
        ensure!(exit.exit_code == 3, "the bystander ended with {exit:?}");
        self.bystander.destroy(&self.plugin).await?;
        self.plugin.shut_down().await
    }

    /// Returns the last log lines of the plugins, and removes by force all that there is.
    pub fn give_up(&self) -> String {
        let words = format!("{}\n{}", self.context.last_words(), self.plugin.log().tail(30));
        let _ = self.context.environment().repair();
        self.context.sweep();
        words
    }

    /// Runs a trial.
    ///
    /// # Errors
    /// Says what must hold and didn't.
    pub async fn run(&mut self, trial: &Trial) -> Result<Outcome> {
        let played = tokio::time::timeout(TRIAL_LIMIT, self.play(trial)).await;
        played.with_context(|| format!("not done after {TRIAL_LIMIT:?}"))?
    }

    async fn play(&mut self, trial: &Trial) -> Result<Outcome> {
        self.context.forget_earlier_runs();
        if trial.job.is_collected != self.is_collecting {
            self.is_collecting = trial.job.is_collected;
            self.replace_plugin().await?;
        }
        self.measure_from_now()?;
        let mut task = self.task_of(trial).await?;
        read_logs(&mut task)?;
        let start = answered("StartTask", self.plugin.start_task(task.config.clone()));
        let started = beside(self.watch_bystander(), start).await?;
        let outcome = match started {
            Ok(answer) => {
                task.handle = answer.handle;
                self.against(&task, trial).await?;
                Outcome::Ran
            }
            Err(status) => {
                check_refusal(&status, trial)?;
                Outcome::Refused
            }
        };
        beside(self.watch_bystander(), self.nothing_is_left()).await?;
        if trial.again {
            self.next_attempt(&mut task).await.context("the next attempt")?;
        }
        self.judge(task).await?;
        Ok(outcome)
    }

    /// Makes the trial's task with its allocation.
    async fn task_of(&self, trial: &Trial) -> Result<Task> {
        let context = &self.context;
        let mut task = context.prepare_unread(&self.plugin, &context.shell("true")).await?;
        task.alloc.stdout.keep_only(KEPT_BYTES);
        task.alloc.stderr.keep_only(KEPT_BYTES);
        task.alloc.stdout.look_for(BREACH);
        let bait = context.directory().join("bait").display().to_string();
        let acts: Vec<_> = trial.acts.iter().map(|act| act.name).collect();
        let mut args = vec![
            "-e".to_owned(),
            PROGRAM.to_owned(),
            "--".to_owned(),
            bait,
            trial.seed.to_string(),
            acts.join(","),
        ];
        args.extend(trial.job.args.iter().cloned());
        let cgroup = if is_v2() {
            task.alloc.cgroup.cpuset.display().to_string()
        } else {
            format!("/sys/fs/cgroup/freezer/nomad/{}", task.alloc.cgroup.name())
        };
        let open = context.directory().join("open").display().to_string();
        let alloc = task.alloc.directory.display().to_string();
        let mut options = json!({"image": context.image(IMAGE), "command": PERL, "args": args});
        for (name, value) in &trial.job.options {
            options[name] = value.clone();
        }
        if !trial.job.volumes.is_empty() {
            options["volumes"] = json!(trial.job.volumes);
        }
        let placed = in_texts(options, &|text| {
            text.replace("{alloc}", &alloc).replace("{open}", &open).replace("{cgroup}", &cgroup)
        });
        let schema = self.plugin.task_schema().await?;
        task.config.msgpack_driver_config =
            hcl::encode(&schema, &placed).context("encode the job's config")?;
        task.config.env.extend(trial.job.env.iter().cloned());
        task.config.user = trial.job.user.clone().unwrap_or_default();
        set_memory(&mut task.config, trial.memory_mb, 0);
        Ok(task)
    }

    /// Makes the trial's calls on a task that runs, and ends it.
    async fn against(&mut self, task: &Task, trial: &Trial) -> Result<()> {
        self.canaries.are_hidden_from(&task.alloc.id, &task.alloc.task)?;
        if !trial.job.is_unsure {
            let up = task.alloc.stdout.to_contain("up\n", UP_LIMIT).await;
            up.with_context(|| format!("stderr: {}", task.alloc.stderr.text()))?;
        }
        for call in &trial.moves {
            if *call == Move::Restart {
                self.restart(task).await?;
            }
            let made = make(*call, &self.plugin, task, trial);
            beside(self.watch_bystander(), made).await.with_context(|| format!("{call:?}"))?;
        }
        if trial.ending == Ending::InterruptedStop {
            let stop = self.plugin.stop_task(task.id(), Duration::from_secs(5), "");
            let _ = tokio::time::timeout(Duration::from_millis(100), stop).await;
            self.restart(task).await?;
        }
        self.canaries.are_hidden_from(&task.alloc.id, &task.alloc.task)?;
        let ended = end(&self.plugin, task, trial, trial.ending);
        beside(self.watch_bystander(), ended).await.with_context(|| format!("{:?}", trial.ending))?;
        let left = task.alloc.cgroup.pids();
        ensure!(left.is_empty(), "the task is said to have ended, and {} processes run", left.len());
        if trial.ending != Ending::Forced {
            let destroy = answered("DestroyTask", self.plugin.destroy_task(task.id(), false));
            beside(self.watch_bystander(), destroy).await?.context("DestroyTask")?;
        }
        if !self.is_collecting {
            // Nobody has the pipe any more, so that its reader comes to an end.
            task.alloc.stdout.to_end(LIMIT).await.context("the task's output")?;
        }
        no_breach(task)?;
        self.context.logs_are_in_form()
    }

    /// Kills the plugin, and has the next one recover the tasks.
    async fn restart(&mut self, task: &Task) -> Result<()> {
        self.memory_is_bounded()?;
        self.replace_plugin().await?;
        let handle = task.kept_handle()?;
        let recovered = answered("RecoverTask", self.plugin.recover_task(handle)).await?;
        recovered.context("RecoverTask")
    }

    /// Kills the plugin, and has the next one recover the bystander.
    async fn replace_plugin(&mut self) -> Result<()> {
        self.lines_are_in_form()?;
        self.plugin.kill().await?;
        let context = &self.context;
        self.plugin = context.plugin_as(&context.launch(), &options(context, self.is_collecting)).await?;
        self.bystander.recover(&self.plugin).await.context("recover the bystander")?;
        self.descriptors.0 = descriptors(&self.plugin);
        self.measure_from_now()
    }

    /// Takes what the plugin has now for what it had before.
    fn measure_from_now(&mut self) -> Result<()> {
        self.descriptors.1 = descriptors(&self.plugin);
        forget_peak(i32::try_from(self.plugin.pid())?)
    }

    /// Waits until nothing is left of the trial's task.
    async fn nothing_is_left(&self) -> Result<()> {
        let deadline = Instant::now() + CENSUS_LIMIT;
        loop {
            match self.context.nothing_left_within(Duration::ZERO) {
                Err(left) if Instant::now() > deadline => return Err(left),
                Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Starts the next attempt on what the task has left in its allocation. It runs, or is refused.
    async fn next_attempt(&mut self, task: &mut Task) -> Result<()> {
        task.alloc.stdout.stop();
        task.alloc.stderr.stop();
        task.next_attempt()?;
        read_logs(task)?;
        let start = answered("StartTask", self.plugin.start_task(task.config.clone()));
        let started = beside(self.watch_bystander(), start).await?;
        if started.is_ok() {
            self.canaries.are_hidden_from(&task.alloc.id, &task.alloc.task)?;
            let destroy = answered("DestroyTask", self.plugin.destroy_task(task.id(), true));
            beside(self.watch_bystander(), destroy).await?.context("DestroyTask by force")?;
        }
        beside(self.watch_bystander(), self.nothing_is_left()).await?;
        task.alloc.stdout.stop();
        no_breach(task)
    }
}

/// Returns the options of the plugin: of the host's files, jobs may mount one directory and their own cgroups alone.
fn options(context: &CaseContext, is_collecting: bool) -> Value {
    let mut options = context.options();
    let cgroups = if is_v2() { "/sys/fs/cgroup/nomad.slice" } else { "/sys/fs/cgroup/freezer/nomad" };
    let open = context.directory().join("open").display().to_string();
    options["volumes"] = json!({"enabled": true, "allowed_paths": [open, cgroups]});
    options["allow_privileged"] = json!(false);
    options["allowed_modes"] =
        json!({"pid": [], "ipc": ["host"], "uts": ["host"], "cgroupns": ["host"], "userns": []});
    options["pids_limit"] = json!(PIDS_LIMIT);
    if is_collecting {
        options["log_collection"] = json!("driver");
    }
    options
}

/// Starts the readers of a task's log pipes, where there are any.
fn read_logs(task: &mut Task) -> Result<()> {
    let pipes = ["stdout", "stderr"].map(|stream| task.alloc.log_path(stream));
    if pipes.iter().all(|pipe| pipe.exists()) { task.alloc.read_logs() } else { Ok(()) }
}

/// Changes each text in a value.
fn in_texts(value: Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(&text)),
        Value::Array(items) => items.into_iter().map(|item| in_texts(item, change)).collect(),
        Value::Object(pairs) => {
            pairs.into_iter().map(|(name, value)| (name, in_texts(value, change))).collect()
        }
        other => other,
    }
}

/// Waits for a call's result, unless what goes on beside it fails first.
async fn beside<T>(
    watching: impl Future<Output = Result<()>>,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::pin!(watching);
    tokio::select! {
        watched = &mut watching => {
            watched?;
            anyhow::bail!("the watch of the bystander ended")
        }
        made = call => made,
    }
}

/// Returns the number of descriptors that a plugin has open.
pub(super) fn descriptors(plugin: &Plugin) -> usize {
    children(Path::new(&format!("/proc/{}/fd", plugin.pid()))).len()
}
