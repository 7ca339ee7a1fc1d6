//! Many starts: the limit on concurrent ones (`max_concurrent_starts`), the order of the others, and those that leave
//! the queue. A script in front of the shim blocks the starts, so that the queue can be looked at.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::case::Case;
use crate::cases::support::resource_usage::{self, ResourceBaseline, ResourceUsage, come_back, pid};
use crate::cases::support::scripted::Scripted;
use crate::cases::support::timelines::logged_timelines;
use crate::cases::support::web_server::beside;
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["starts":
    no_more_are_under_way_at_once_than_the_operator_says,
    starts_are_admitted_in_order,
    a_waiting_start_is_stopped_or_cancelled_and_leaves_nothing,
    a_waiting_start_whose_image_is_collected_looks_for_it_again,
    a_long_wait_is_reported_and_the_network_of_a_waiting_start_is_waited_for,
    a_start_with_a_permit_does_not_wait_for_one_without,
    fifty_are_started_recovered_and_stopped_at_once_and_the_plugin_is_as_before,
];

/// Longer than a wait that goes unreported, and than the wait for another task that is not about to start.
const LONG: Duration = Duration::from_secs(7);
/// Number of tasks that are started at once, unless the variable [`HOW_MANY`] says otherwise, to see a machine under
/// more load.
const FIFTY: usize = 50;
const HOW_MANY: &str = "STORM_TASKS";
/// Time limit of a case with that many tasks, for a busy machine.
const CASE_LIMIT: Duration = Duration::from_secs(400);
/// Maximum number of the plugin's threads: its workers, those for blocking work, and some more for parts that have
/// threads of their own.
const MOST_THREADS: usize = 150;
/// Growth allowed to the plugin: memory that its allocator and its async runtime may keep, and what it holds of spare shims
/// that it launches later.
const MORE: ResourceUsage =
    ResourceUsage { resident_kb: 32 * 1024, descriptors: 12, ..resource_usage::OF_THE_PLUGIN };

pub fn long_cases() -> Vec<Case> {
    cases().into_iter().map(|case| Case { limit: CASE_LIMIT, ..case }).collect()
}

/// A plugin whose shims block in `start` until they are let go.
struct BlockedStarts {
    scripted: Scripted,
    begun: PathBuf,
    plugin: Plugin,
}

impl BlockedStarts {
    async fn with(case: &CaseContext, at_once: usize) -> Result<Self> {
        let scripted = Scripted::new(case)?;
        let begun = scripted.directory.join("begun");
        fs::write(&begun, "")?;
        let script = format!(
            "case \"$*\" in *start)\n  echo ${{PWD##*/}} >> {begun}\n  \
             while [ -e {held} ]; do sleep 0.05; done;;\nesac",
            begun = begun.display(),
            held = scripted.directory.join("broken").display(),
        );
        scripted.shim(&script)?;
        let mut options = case.with_own_shims().options();
        options["max_concurrent_starts"] = json!(at_once);
        let plugin = scripted.plugin_with(case, options).await?;
        Ok(Self { scripted, begun, plugin })
    }

    /// Returns the containers whose shims were launched, in that order.
    fn begun(&self) -> Vec<String> {
        fs::read_to_string(&self.begun).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Returns the containers that had to wait, in the order in which they came.
    fn in_line(&self) -> Vec<String> {
        let lines = self.plugin.log().all().into_iter();
        let lines = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let waiting = lines.filter(|line| line["@message"] == "waiting for a start slot");
        waiting.filter_map(|line| Some(line["container"].as_str()?.to_owned())).collect()
    }

    async fn become_under_way(&self, count: usize) -> Result<()> {
        until(LIMIT, "the shims are launched", || self.begun().len() >= count).await
    }

    async fn become_in_line(&self, count: usize) -> Result<()> {
        until(LIMIT, "the starts wait", || self.in_line().len() >= count).await
    }

    /// Lets all starts go on, including later ones.
    fn let_go(&self) -> Result<()> {
        self.scripted.repair()
    }

    /// Blocks all starts from here on.
    fn hold_up(&self) -> Result<()> {
        self.scripted.break_again()
    }

    async fn task(&self, case: &CaseContext) -> Result<Task> {
        case.prepare(&self.plugin, &case.shell("sleep 600")).await
    }
}

async fn all_ended(tasks: &[Task], plugin: &Plugin) -> Result<()> {
    try_join_all(tasks.iter().map(|task| task.end(plugin))).await.map(drop)
}

/// Waits for this many starts' lines in the log, which may come after the answers.
async fn timelines_are_logged(plugin: &Plugin, count: usize) -> Result<()> {
    until(LIMIT, "the timelines", || {
        logged_timelines(plugin, "start").is_ok_and(|logged| logged.len() == count)
    })
    .await
}

async fn no_more_are_under_way_at_once_than_the_operator_says(case: &CaseContext) -> Result<()> {
    let mut held = BlockedStarts::with(case, 3).await?;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        tasks.push(held.task(case).await?);
    }
    let looked = async {
        held.become_under_way(3).await?;
        held.become_in_line(5).await?;
        let under_way = held.begun();
        ensure!(under_way.len() == 3, "{under_way:?}");
        ensure!(held.in_line().iter().all(|one| !under_way.contains(one)), "{under_way:?}");
        held.let_go()
    };
    let started = try_join_all(tasks.iter_mut().map(|task| task.start(&held.plugin)));
    let (started, looked) = tokio::join!(started, looked);
    looked?;
    started?;
    all_ended(&tasks, &held.plugin).await?;
    held.plugin.shut_down().await
}

async fn starts_are_admitted_in_order(case: &CaseContext) -> Result<()> {
    let mut held = BlockedStarts::with(case, 1).await?;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(held.task(case).await?);
    }
    let plugin = &held.plugin;
    let mut starts = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        let (mut driver, task) = (plugin.driver(), Some(task.config.clone()));
        starts.push(tokio::spawn(async move { driver.start_task(pb::StartTaskRequest { task }).await }));
        match number {
            0 => held.become_under_way(1).await?,
            waiting => held.become_in_line(waiting).await?,
        }
    }
    ensure_eq!(held.begun().len(), 1);
    held.let_go()?;
    for start in starts {
        start.await?.context("StartTask")?;
    }
    timelines_are_logged(plugin, tasks.len()).await?;
    // The script notes no shims any more; each start's own line does.
    let ended: Vec<_> =
        logged_timelines(plugin, "start")?.into_iter().map(|timeline| timeline.container).collect();
    let came: Vec<_> = held.begun().into_iter().chain(held.in_line()).collect();
    ensure_eq!(ended, came);
    all_ended(&tasks, plugin).await?;
    held.plugin.shut_down().await
}

async fn a_waiting_start_is_stopped_or_cancelled_and_leaves_nothing(case: &CaseContext) -> Result<()> {
    let mut held = BlockedStarts::with(case, 1).await?;
    let plugin = &held.plugin;
    let mut first = held.task(case).await?;
    let (stopped, called_off, mut last) =
        (held.task(case).await?, held.task(case).await?, held.task(case).await?);
    let others = async {
        held.become_under_way(1).await?;
        let stop = async {
            held.become_in_line(1).await?;
            stopped.stop(plugin, Duration::from_secs(60)).await
        };
        let (refusal, stop) = tokio::join!(plugin.start_task(stopped.config.clone()), stop);
        stop?;
        refused(refusal, &[stopped.id(), "cancelled"])?;
        tokio::select! {
            started = plugin.start_task(called_off.config.clone()) => anyhow::bail!("it started: {started:?}"),
            waits = held.become_in_line(2) => waits?,
        }
        let bundles = || fs::read_dir(case.state_dir().join("nomad")).map_or(0, Iterator::count);
        ensure_eq!(bundles(), 1);
        let goes = async {
            held.become_in_line(3).await?;
            held.let_go()
        };
        let (started, goes) = tokio::join!(last.start(plugin), goes);
        goes?;
        started
    };
    let (started, others) = tokio::join!(first.start(plugin), others);
    others?;
    started?;
    // No start permit was lost.
    let another = case.run(plugin, &case.shell("sleep 600")).await?;
    all_ended(&[first, last, another], plugin).await?;
    held.plugin.shut_down().await
}

/// The image's name stands for another image by then, and nothing keeps the image that was found first.
async fn a_waiting_start_whose_image_is_collected_looks_for_it_again(case: &CaseContext) -> Result<()> {
    let mut held = BlockedStarts::with(case, 1).await?;
    let push = |content: &[u8]| {
        let image = case.environment().catalog().with(|tree| tree.file("moved", 0o644, content))?;
        image.push(case.environment().registry(), "moving", "v1", Form::Oci)
    };
    push(b"before")?;
    let job = |force: bool| {
        let mut job = case.shell("sleep 600");
        job["image"] = json!(case.image("moving:v1"));
        job["force_pull"] = json!(force);
        job
    };
    let plugin = &held.plugin;
    let mut tasks = vec![
        held.task(case).await?,
        case.prepare(plugin, &job(false)).await?,
        case.prepare(plugin, &job(true)).await?,
    ];
    let [first, waits, moves] = &mut tasks[..] else { unreachable!() };
    let moved = async {
        held.become_in_line(1).await?;
        push(b"after")?;
        let moved = async {
            held.become_in_line(2).await?;
            case.environment().containerd().collect_garbage()?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            held.let_go()
        };
        tokio::try_join!(moves.start(plugin), moved)
    };
    let waits = async {
        held.become_under_way(1).await?;
        tokio::try_join!(waits.start(plugin), moved)
    };
    tokio::try_join!(first.start(plugin), waits)?;
    all_ended(&tasks, plugin).await?;
    held.plugin.shut_down().await
}

async fn a_long_wait_is_reported_and_the_network_of_a_waiting_start_is_waited_for(
    case: &CaseContext,
) -> Result<()> {
    let mut held = BlockedStarts::with(case, 1).await?;
    let plugin = &held.plugin;
    let mut events = plugin.events().await?;
    let (mut first, mut web) = (held.task(case).await?, held.task(case).await?);
    let mut config = case.shell("sleep 600");
    config["network_mode"] = json!("task:web");
    let mut beside = beside(case, plugin, &web, &config).await?;
    let id = web.id().to_owned();
    let looked = async {
        held.become_in_line(1).await?;
        loop {
            let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
            let event = event.context("the stream ended")?;
            if event.message.contains("max_concurrent_starts") {
                ensure_eq!(event.task_id, id);
                break;
            }
        }
        tokio::time::sleep(LONG).await;
        held.let_go()
    };
    let others = async {
        held.become_under_way(1).await?;
        tokio::try_join!(web.start(plugin), beside.start(plugin))
    };
    let (started, others, looked) = tokio::join!(first.start(plugin), others, looked);
    looked?;
    others?;
    started?;
    all_ended(&[beside, web, first], plugin).await?;
    held.plugin.shut_down().await
}

/// The task whose network is to be shared ends while the task that shares it is queued, and is started again behind
/// that one.
async fn a_start_with_a_permit_does_not_wait_for_one_without(case: &CaseContext) -> Result<()> {
    let mut held = BlockedStarts::with(case, 1).await?;
    held.let_go()?;
    let plugin = &held.plugin;
    let mut proxy = case.run(plugin, &case.shell("sleep 600")).await?;
    let mut config = case.shell("sleep 600");
    config["network_mode"] = json!("task:web");
    let app = beside(case, plugin, &proxy, &config).await?;
    let mut first = held.task(case).await?;
    held.hold_up()?;
    let moved = async {
        held.become_under_way(1).await?;
        let (sharing, again) = tokio::join!(plugin.start_task(app.config.clone()), async {
            held.become_in_line(1).await?;
            proxy.end(plugin).await?;
            proxy.next_attempt()?;
            let goes = async {
                held.become_in_line(2).await?;
                held.let_go()
            };
            tokio::try_join!(proxy.start(plugin), goes)
        });
        again?;
        let status = refused(sharing, &["task:web", "is not running"])?;
        ensure!(is_recoverable(&status)?, "Nomad would give up: {status:?}");
        Ok(())
    };
    let both = async { tokio::join!(first.start(plugin), moved) };
    let (started, moved) =
        tokio::time::timeout(LIMIT, both).await.context("no start on the node gets on any more")?;
    started?;
    moved?;
    all_ended(&[proxy, first], plugin).await?;
    held.plugin.shut_down().await
}

/// Does the work, and fails if the plugin exceeds [`MOST_THREADS`] meanwhile.
async fn most_threads<T>(plugin: &Plugin, work: impl Future<Output = Result<T>>) -> Result<T> {
    let path = format!("/proc/{}/task", plugin.pid());
    let looks = async {
        loop {
            let threads = fs::read_dir(&path).map_or(0, Iterator::count);
            if threads > MOST_THREADS {
                return threads;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = work => done,
        threads = looks => anyhow::bail!("the plugin has {threads} threads"),
    }
}

async fn fifty_are_started_recovered_and_stopped_at_once_and_the_plugin_is_as_before(
    case: &CaseContext,
) -> Result<()> {
    let mut plugin = case.plugin().await?;
    case.still_works(&plugin).await?;
    let count = std::env::var(HOW_MANY).ok().and_then(|count| count.parse().ok()).unwrap_or(FIFTY);
    let mut tasks = Vec::new();
    for _ in 0..count {
        tasks.push(case.prepare(&plugin, &case.shell("trap 'exit 0' TERM; sleep 600 & wait")).await?);
    }
    let started = try_join_all(tasks.iter_mut().map(|task| task.start(&plugin)));
    most_threads(&plugin, started).await?;
    timelines_are_logged(&plugin, count + 1).await?;
    let mut plugin = case.next_plugin(&mut plugin).await?;
    let before = ResourceBaseline::of(&[("the plugin".to_owned(), pid(&plugin)?)], MORE)?;
    let recovered = async {
        // One after the other, as the agent does.
        for task in &tasks {
            task.recover(&plugin).await?;
        }
        try_join_all(tasks.iter().map(|task| plugin.inspect_task(task.id())))
            .await
            .map_err(anyhow::Error::from)
    };
    for shown in most_threads(&plugin, recovered).await? {
        ensure_eq!(shown.task.context("no task")?.state(), pb::TaskState::Running);
    }
    let stopped = try_join_all(tasks.iter().map(|task| async {
        task.stop(&plugin, LIMIT).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        task.destroy(&plugin).await
    }));
    most_threads(&plugin, stopped).await?;
    case.nothing_left()?;
    come_back(LIMIT, || before.assert_no_growth()).await?;
    plugin.shut_down().await
}
