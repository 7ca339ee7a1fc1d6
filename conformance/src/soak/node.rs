//! A node with tasks, and what happens on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use harness::context::CaseContext;
use harness::environment::TestEnvironment;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::leaks::inspect::listed;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use super::figures::Figures;
use super::job::{ENDED, Kind, UP, USR1};
use crate::cases::support::until;
use crate::random::Random;

/// Repository of the images that are pulled, each once.
const PULLED: &str = "soak";
const IMAGE_DELAY: &str = "10s";
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
const SHORT_KILL_TIMEOUT: Duration = Duration::from_millis(300);
/// Number of tasks that something is done to at the same time.
const AT_ONCE: usize = 4;
/// Bytes of a long output.
const LONG: usize = 300_000;
/// Time after which a node without tasks is at rest.
const REST: Duration = Duration::from_secs(10);
const CENSUS_LIMIT: Duration = Duration::from_secs(20);

/// An event with its name, and how often it is chosen among all.
const EVENTS: [(Event, &str, usize); 15] = [
    (Event::Start, "start", 20),
    (Event::StartsAtOnce, "four starts at once", 4),
    (Event::Stop, "stop", 18),
    (Event::Destroy, "forced destroy", 6),
    (Event::Reap, "destroy of a task that has ended", 14),
    (Event::Exec, "command", 24),
    (Event::LongExec, "command with a long output", 4),
    (Event::ExecsAtOnce, "four commands at once", 4),
    (Event::Signal, "signal", 6),
    (Event::Look, "inspection and statistics", 6),
    (Event::Pull, "pull and start", 3),
    (Event::CollectGarbage, "collection of garbage", 1),
    (Event::PluginDies, "death of the plugin", 1),
    (Event::ContainerdDies, "death of containerd", 1),
    (Event::RegistryDies, "death of the registry", 1),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start,
    StartsAtOnce,
    Stop,
    /// A task is destroyed by force.
    Destroy,
    /// A task that has ended by itself is destroyed.
    Reap,
    Exec,
    LongExec,
    ExecsAtOnce,
    Signal,
    /// Statistics and an inspection.
    Look,
    /// The start of a task whose image is new.
    Pull,
    CollectGarbage,
    /// The plugin is killed, and the next one recovers all tasks.
    PluginDies,
    /// containerd is killed, and comes back after some commands in tasks.
    ContainerdDies,
    /// The registry is killed, and comes back after a start.
    RegistryDies,
}

struct Running {
    task: Task,
    kind: Kind,
    signals: usize,
}

impl Running {
    fn has_ended_by_itself(&self) -> bool {
        self.kind.may_end() && self.task.alloc.cgroup.pids().is_empty()
    }
}

pub struct Node {
    context: CaseContext,
    plugin: Plugin,
    random: Random,
    wanted: usize,
    tasks: Vec<Running>,
    pulls: usize,
    counts: BTreeMap<Event, usize>,
    /// Durations of calls, by their names.
    took: BTreeMap<&'static str, Vec<Duration>>,
}

impl Node {
    /// Starts a plugin on a node without tasks.
    ///
    /// # Errors
    /// Says what doesn't work.
    pub async fn set_up(
        environment: &Arc<TestEnvironment>,
        plugin: &Path,
        wanted: usize,
        random: Random,
    ) -> Result<Self> {
        let context = CaseContext::new(Arc::clone(environment), plugin, "soak".to_owned());
        let plugin = context.plugin_as(&context.launch(), &options(&context)).await?;
        let (tasks, counts, took) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { context, plugin, random, wanted, tasks, pulls: 0, counts, took })
    }

    /// Makes an event, and checks its outcome.
    ///
    /// # Errors
    /// Names the event, and what is wrong.
    pub async fn next_event(&mut self) -> Result<()> {
        let event = self.choose();
        *self.counts.entry(event).or_default() += 1;
        self.make(event).await.with_context(|| format!("{event:?}, {}", self.state()))
    }

    /// Chooses an event that is possible now: the node is filled first, and kept at the wanted number of tasks.
    fn choose(&mut self) -> Event {
        if self.tasks.len() < self.wanted / 2 {
            return Event::StartsAtOnce;
        }
        let all = EVENTS.iter().map(|(_, _, often)| often).sum();
        let mut place = self.random.below(all);
        for (event, _, often) in EVENTS {
            if place < often {
                let starts = matches!(event, Event::Start | Event::StartsAtOnce | Event::Pull);
                return if starts && self.tasks.len() >= self.wanted { Event::Stop } else { event };
            }
            place -= often;
        }
        Event::Exec
    }

    async fn make(&mut self, event: Event) -> Result<()> {
        let environment = self.context.environment();
        match event {
            Event::Start => self.start(1).await,
            Event::StartsAtOnce => self.start(AT_ONCE).await,
            Event::Stop => self.stop().await,
            Event::Destroy => self.destroy().await,
            Event::Reap => self.reap().await,
            Event::Exec => self.exec(1).await,
            Event::LongExec => self.long_exec().await,
            Event::ExecsAtOnce => self.exec(AT_ONCE).await,
            Event::Signal => self.signal().await,
            Event::Look => self.look().await,
            Event::Pull => self.pull().await,
            Event::CollectGarbage => environment.containerd().collect_garbage(),
            Event::PluginDies => self.next_plugin().await,
            Event::ContainerdDies => {
                environment.containerd().kill()?;
                self.exec(AT_ONCE).await.context("without containerd")?;
                self.context.environment().containerd().start()
            }
            Event::RegistryDies => {
                environment.registry().stop();
                self.start(1).await.context("without a registry")?;
                self.context.environment().registry().start()
            }
        }
    }

    fn count(&mut self, call: &'static str, began: Instant) {
        self.took.entry(call).or_default().push(began.elapsed());
    }

    /// Starts tasks of the image that is there, all at the same time.
    async fn start(&mut self, count: usize) -> Result<()> {
        let (context, random) = (&self.context, &mut self.random);
        let jobs: Vec<_> = (0..count)
            .map(|_| {
                let kind = Kind::any(random);
                (kind, kind.job(context, 5 + random.below(40)))
            })
            .collect();
        self.run(jobs).await
    }

    async fn run(&mut self, jobs: Vec<(Kind, Value)>) -> Result<()> {
        let began = Instant::now();
        let (context, plugin) = (&self.context, &self.plugin);
        let starts = jobs.iter().map(|(_, job)| context.run(plugin, job));
        let started = join_all(starts).await;
        for ((kind, _), task) in jobs.into_iter().zip(started) {
            let task = task.with_context(|| format!("start a task that is {kind:?}"))?;
            task.alloc.stdout.to_contain(UP, LIMIT).await?;
            self.tasks.push(Running { task, kind, signals: 0 });
        }
        self.count("starts of one or four tasks", began);
        Ok(())
    }

    /// Takes out a task of any kind.
    fn take(&mut self) -> Result<Running> {
        ensure!(!self.tasks.is_empty(), "there is no task");
        let place = self.random.below(self.tasks.len());
        Ok(self.tasks.swap_remove(place))
    }

    fn any(&mut self) -> Result<usize> {
        ensure!(!self.tasks.is_empty(), "there is no task");
        Ok(self.random.below(self.tasks.len()))
    }

    async fn stop(&mut self) -> Result<()> {
        let running = self.take()?;
        let timeout = if running.kind == Kind::Deaf { SHORT_KILL_TIMEOUT } else { KILL_TIMEOUT };
        let began = Instant::now();
        running.task.stop(&self.plugin, timeout).await?;
        self.count("stops", began);
        self.conclude(&running, running.kind.stopped()).await
    }

    /// Checks how a task has ended, and destroys it.
    async fn conclude(&self, running: &Running, stopped: (i32, i32)) -> Result<()> {
        let ended = running.task.wait_for_all(&self.plugin).await?;
        let is_right = ended == stopped || (running.kind.may_end() && ended == ENDED);
        ensure!(is_right, "a task that is {:?} ended with {ended:?}", running.kind);
        running.task.destroy(&self.plugin).await?;
        self.has_said(running).await
    }

    /// Checks that the task's output is whole: its first line, and one for each signal.
    async fn has_said(&self, running: &Running) -> Result<()> {
        let text = || running.task.alloc.stdout.text();
        let is_whole = || {
            let text = text();
            let signals = text.matches(USR1).count();
            text.starts_with(UP)
                && signals == running.signals
                && text.len() == UP.len() + signals * USR1.len()
        };
        until(LIMIT, "its output", is_whole).await.with_context(|| format!("it wrote {:?}", text()))
    }

    async fn destroy(&mut self) -> Result<()> {
        let running = self.take()?;
        running.task.end(&self.plugin).await?;
        self.has_said(&running).await
    }

    /// Destroys a task that has ended by itself, if there is one.
    async fn reap(&mut self) -> Result<()> {
        let Some(place) = self.tasks.iter().position(Running::has_ended_by_itself) else { return Ok(()) };
        let running = self.tasks.swap_remove(place);
        self.conclude(&running, ENDED).await
    }

    /// Runs commands, each in a task of its own. A task that ends by itself may end right before it.
    async fn exec(&mut self, count: usize) -> Result<()> {
        let mut places = Vec::new();
        for _ in 0..count {
            places.push(self.any()?);
        }
        let began = Instant::now();
        let plugin = &self.plugin;
        let execs = places.iter().map(|place| self.tasks[*place].task.exec(plugin, "echo out; exit 7"));
        for (place, done) in places.iter().zip(join_all(execs).await) {
            let is_right = done.as_ref().is_ok_and(|(code, output)| *code == 7 && output == "out\n");
            let running = &self.tasks[*place];
            ensure!(
                is_right || running.has_ended_by_itself(),
                "a command in a task that is {:?}: {done:?}",
                running.kind
            );
        }
        self.count("commands, one or four", began);
        Ok(())
    }

    async fn long_exec(&mut self) -> Result<()> {
        let place = self.any()?;
        let running = &self.tasks[place];
        let done = running.task.exec(&self.plugin, &format!("head -c {LONG} /dev/zero | tr '\\0' x")).await;
        let is_right = done.as_ref().is_ok_and(|(code, output)| *code == 0 && output.len() == LONG);
        ensure!(
            is_right || running.has_ended_by_itself(),
            "a command with a long output: {:?}",
            done.map(|(code, output)| (code, output.len()))
        );
        Ok(())
    }

    async fn signal(&mut self) -> Result<()> {
        let place = self.any()?;
        let running = &mut self.tasks[place];
        if running.kind.may_end() {
            return Ok(());
        }
        running.signals += 1;
        self.plugin.signal_task(running.task.id(), "SIGUSR1").await?;
        let has_answered = || running.task.alloc.stdout.text().matches(USR1).count() == running.signals;
        until(LIMIT, "the answer to a signal", has_answered).await
    }

    async fn look(&mut self) -> Result<()> {
        let place = self.any()?;
        let running = &self.tasks[place];
        let id = running.task.id();
        let shown = self.plugin.inspect_task(id).await?.task.context("InspectTask without a task")?;
        let is_running = shown.state == pb::TaskState::Running as i32;
        ensure!(is_running || running.kind.may_end(), "a task that is {:?} is {}", running.kind, shown.state);
        if is_running && !running.kind.may_end() {
            let mut stats = self.plugin.stats(id, Duration::from_secs(1)).await?;
            let first = tokio::time::timeout(LIMIT, stats.message()).await.context("no statistics")??;
            ensure!(first.and_then(|first| first.stats).is_some(), "statistics without any");
        }
        Ok(())
    }

    async fn pull(&mut self) -> Result<()> {
        let environment = self.context.environment();
        self.pulls += 1;
        let tag = format!("v{}", self.pulls);
        let image = environment.catalog().large(1)?;
        image.push(environment.registry(), PULLED, &tag, Form::OciIndex)?;
        let kind = Kind::any(&mut self.random);
        let mut job = kind.job(&self.context, 5);
        job["image"] = json!(self.context.image(&format!("{PULLED}:{tag}")));
        self.run(vec![(kind, job)]).await
    }

    async fn next_plugin(&mut self) -> Result<()> {
        self.context.logs_are_in_form()?;
        self.plugin.kill().await?;
        self.context.forget_earlier_runs();
        let began = Instant::now();
        self.plugin = self.context.plugin_as(&self.context.launch(), &options(&self.context)).await?;
        for running in &self.tasks {
            running.task.recover(&self.plugin).await?;
        }
        self.count("starts of the plugin, with all recoveries", began);
        Ok(())
    }

    /// Ends all tasks, and looks at what is left of them and at what the node has.
    ///
    /// # Errors
    /// Lists what is left.
    pub async fn rest(&mut self) -> Result<Figures> {
        while !self.tasks.is_empty() {
            self.destroy().await?;
        }
        self.context.nothing_left_within(CENSUS_LIMIT)?;
        self.context.logs_are_in_form()?;
        let containerd = self.context.environment().containerd();
        let is_there = || {
            tokio::task::block_in_place(|| listed(containerd, &["images", "list", "--quiet"]))
                .is_ok_and(|images| images.iter().any(|image| image.contains(&format!("/{PULLED}:"))))
        };
        until(LIMIT + REST, "the removal of unused images", || !is_there()).await?;
        containerd.collect_garbage()?;
        tokio::time::sleep(REST).await;
        let plugin = i32::try_from(self.plugin.pid())?;
        Figures::of(plugin, &self.context.state_dir(), containerd.pid()?, &containerd.root())
    }

    pub fn forget_counts(&mut self) {
        self.counts.clear();
        self.took.clear();
    }

    /// Says how far the node is.
    pub fn state(&self) -> String {
        format!("{} tasks, {} events", self.tasks.len(), self.counts.values().sum::<usize>())
    }

    /// Returns a table of the events.
    pub fn counts(&self) -> String {
        let row = |(event, name, _): &(Event, &str, usize)| {
            format!("| {name} | {} |\n", self.counts.get(event).copied().unwrap_or_default())
        };
        let rows: String = EVENTS.iter().map(row).collect();
        format!("| event | times |\n|---|---|\n{rows}")
    }

    /// Returns a table of how long calls took in the first and in the last tenth of the time.
    pub fn latencies(&self) -> String {
        let mut text =
            "| calls | number | the last tenth's median, as a part of the first's |\n|---|---|---|\n"
                .to_owned();
        for (call, took) in &self.took {
            let tenth = (took.len() / 10).max(1);
            let (first, last) = (median(&took[..tenth]), median(&took[took.len() - tenth..]));
            let _ = writeln!(
                text,
                "| {call} | {} | {:.2} |",
                took.len(),
                last.as_secs_f64() / first.as_secs_f64()
            );
        }
        text
    }

    /// Returns the last log lines, and removes by force all that there is.
    pub fn give_up(&self) -> String {
        let words = self.context.last_words();
        let _ = self.context.environment().repair();
        self.context.sweep();
        words
    }
}

fn options(context: &CaseContext) -> Value {
    let mut options = context.options();
    options["gc"] = json!({"image_delay": IMAGE_DELAY});
    options
}

fn median(of: &[Duration]) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
