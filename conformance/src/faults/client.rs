//! The harness's side of the injector.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::host::Plugin;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::injector::{Report, Request};
use super::point::{Point, Trial};

/// Timeout of the injector's answers.
const LIMIT: Duration = Duration::from_secs(20);

/// An injector that traces a plugin. Its end, on drop, lets go of the plugin.
pub struct Injector {
    /// The traced process.
    plugin: i32,
    process: Child,
    reading: JoinHandle<()>,
    requests: ChildStdin,
    seen: Arc<Mutex<Seen>>,
    stage: watch::Receiver<Stage>,
}

/// The points that the plugin has reached, in their order, and the calls at which threads that answer for all tasks may
/// have waited for a disk.
#[derive(Default)]
struct Seen {
    points: Vec<Point>,
    waits: Vec<String>,
}

/// How far the injector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Started,
    Attached,
    Armed,
    Reached,
}

impl Injector {
    /// Has all threads of a plugin traced.
    ///
    /// # Errors
    /// Fails if they can't be.
    pub async fn attach(plugin: &Plugin) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program)
            .args(["inject", "--pid", &plugin.pid().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the injector")?;
        let requests = process.stdin.take().context("no stdin")?;
        let mut lines = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let seen = Arc::<Mutex<Seen>>::default();
        let (tell, stage) = watch::channel(Stage::Started);
        let list = Arc::clone(&seen);
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Report::Attached) => drop(tell.send(Stage::Attached)),
                    Ok(Report::Armed) => drop(tell.send(Stage::Armed)),
                    Ok(Report::Reached) => drop(tell.send(Stage::Reached)),
                    Ok(Report::Point(point)) => lock(&list).points.push(point),
                    Ok(Report::MayWait(call)) => lock(&list).waits.push(call),
                    Err(_) => break,
                }
            }
        });
        let plugin = i32::try_from(plugin.pid())?;
        let mut injector = Self { plugin, process, reading, requests, seen, stage };
        injector.wait_for(Stage::Attached).await.context("trace the plugin")?;
        Ok(injector)
    }

    pub fn plugin(&self) -> i32 {
        self.plugin
    }

    /// Begins to count points, and has a fault injected, or each point told.
    ///
    /// # Errors
    /// Fails if the injector has ended.
    pub async fn arm(
        &mut self,
        plugin: &Plugin,
        names: Vec<(String, String)>,
        trial: Option<&Trial>,
    ) -> Result<()> {
        let target = trial.map(|trial| (trial.point.clone(), trial.fault.action()));
        self.send(&Request::Arm { names, target }).await?;
        // The injector looks for requests when a thread stops, which an idle plugin's don't. The fault may hit already, and
        // hold the plugin.
        let woken = async {
            tokio::select! {
                _ = plugin.info() => {}
                () = self.reached() => {}
            }
        };
        let _ = tokio::time::timeout(LIMIT, woken).await;
        self.wait_for(Stage::Armed).await
    }

    /// Lets go of a plugin that is held at the point.
    ///
    /// # Errors
    /// Fails if the injector has ended.
    pub async fn release(&mut self) -> Result<()> {
        self.send(&Request::Release).await
    }

    async fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.write_all(&line).await.context("ask the injector")
    }

    async fn wait_for(&mut self, stage: Stage) -> Result<()> {
        let reached = tokio::time::timeout(LIMIT, self.stage.wait_for(|now| *now >= stage)).await;
        reached
            .with_context(|| format!("the injector is not {stage:?} in {LIMIT:?}"))?
            .context("the injector ended")?;
        Ok(())
    }

    /// Waits until the plugin reaches the point. Doesn't return if it never does.
    pub async fn reached(&self) {
        let mut stage = self.stage.clone();
        if stage.wait_for(|now| *now >= Stage::Reached).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets go of the plugin for good, and returns whether it has reached the point.
    ///
    /// # Errors
    /// Fails if the injector can't be ended; or lists the calls by which threads that answer for all tasks may have
    /// waited for a disk.
    pub async fn end(mut self) -> Result<bool> {
        self.process.kill().await.context("end the injector")?;
        let _ = self.reading.await;
        let waits = std::mem::take(&mut lock(&self.seen).waits);
        ensure!(waits.is_empty(), "made on threads that answer calls, and may wait:\n{}", waits.join("\n"));
        Ok(*self.stage.borrow() >= Stage::Reached)
    }

    /// Returns the points that the plugin has reached, in their order.
    ///
    /// # Errors
    /// Fails if there was none, which says that nothing was traced.
    pub fn points(&self) -> Result<Vec<Point>> {
        let points = lock(&self.seen).points.clone();
        ensure!(!points.is_empty(), "the plugin reached no point");
        Ok(points)
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
