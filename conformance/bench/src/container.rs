//! A container that is run by a task service: its steps, made by the service's calls and timed. The same code serves a
//! shim's own service and containerd's, so that they differ in the path alone.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use harness::processes;
use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::call::{Call, Step};
use super::environment::{Environment, LIMIT};
use super::path::{Container, Times};
use super::pipes::{Output, Paths, Pipes};
use super::service::{Making, Service};
use super::{end, spec};

/// Timeout for reading the stderr of a failed exec.
const SECOND: Duration = Duration::from_secs(1);

pub(crate) struct ServiceContainer<S> {
    environment: Arc<Environment>,
    service: S,
    making: Making,
    /// Pipes of the container's own process.
    pipes: Option<Pipes>,
    pid: Option<i32>,
    removed: bool,
}

impl<S: Service> ServiceContainer<S> {
    /// Prepares a container: its snapshot, its bundle, and what the service needs.
    ///
    /// # Errors
    /// Names what can't be prepared.
    pub(crate) async fn prepare(
        environment: &Arc<Environment>,
        service: S,
        terminal: bool,
        talks: bool,
    ) -> Result<Self> {
        let id = Environment::new_id();
        let bundle = environment.directory().join("b").join(&id);
        fs::create_dir_all(bundle.join("rootfs")).with_context(|| format!("make {}", bundle.display()))?;
        let pipes = talks.then(|| Pipes::make(&bundle, "init", 0, terminal)).transpose()?;
        let making = Making {
            rootfs: environment.snapshot(&id).await?,
            spec: spec::container(&Environment::cgroup(&id), terminal),
            paths: pipes.as_ref().map_or_else(Paths::default, |pipes| pipes.paths.clone()),
            id,
            bundle,
            terminal,
        };
        let mut container =
            Self { environment: Arc::clone(environment), service, making, pipes, pid: None, removed: false };
        let prepared = container.service.prepare(&container.making).await;
        container.or_remove(prepared).await
    }

    /// Starts a container from scratch. Also returns the time until the first write of its process.
    ///
    /// # Errors
    /// Carries the service's error. Nothing is left behind then.
    pub(crate) async fn start(
        environment: &Arc<Environment>,
        service: S,
        terminal: bool,
    ) -> Result<(Self, Duration)> {
        let begun = Instant::now();
        let mut container = Self::prepare(environment, service, terminal, true).await?;
        let up = container.bring_up().await;
        let mut took = Duration::ZERO;
        let up = up.map(|up| took = up - begun);
        Ok((container.or_remove(up).await?, took))
    }

    async fn or_remove(mut self, outcome: Result<()>) -> Result<Self> {
        if let Err(error) = outcome {
            return match self.take_away().await {
                Ok(()) => Err(error),
                Err(stays) => Err(error.context(format!("and it can't be removed: {stays:#}"))),
            };
        }
        Ok(self)
    }

    async fn bring_up(&mut self) -> Result<Instant> {
        self.service.bootstrap(&self.making).await.context("bootstrap")?;
        self.pid = Some(self.service.create(&self.making).await.context("create")?);
        self.service.start(&self.making.id, "").await.context("start")?;
        let mut output = self.pipes.as_mut().and_then(Pipes::output).context("a silent container")?;
        let first = timeout(LIMIT, output.first()).await.context("no word of the process")??;
        tokio::spawn(output.drain());
        Ok(first)
    }

    async fn make(&mut self, step: Step) -> Result<Times> {
        let (service, id) = (&self.service, &*self.making.id);
        let begun = Instant::now();
        match step {
            Step::Bootstrap => self.service.bootstrap(&self.making).await?,
            Step::Create => self.pid = Some(service.create(&self.making).await?),
            Step::Start => service.start(id, "").await?,
            Step::End => return self.end().await,
            Step::Delete => service.delete(id, "").await?,
            Step::Shutdown => service.shutdown(id).await?,
            Step::State => service.state(id).await?,
            Step::Connect => service.connect(id).await?,
            Step::Pids => service.pids(id).await?,
            Step::Stats => service.stats(id).await?,
            Step::Kill => service.kill(id, number(Signal::SIGWINCH)).await?,
            Step::Resize => service.resize(id, 100, 40).await?,
            Step::Update => service.update(id, &spec::update()).await?,
            Step::Exec(payload) => return self.exec(payload).await,
            Step::ExecUnary | Step::Task => bail!("{step:?} is no step of a task service"),
        }
        let took = begun.elapsed();
        Ok(step.gives().into_iter().map(|call| (call, took)).collect())
    }

    /// Kills the process and measures the time from its exit to the answer of the pending wait. The kill itself isn't
    /// included.
    async fn end(&self) -> Result<Times> {
        let ended = end::watch(self.pid.context("the container has no process")?)?;
        let (service, id) = (self.service.clone(), self.making.id.clone());
        let answered = tokio::spawn(async move {
            let answer = service.wait(&id, "").await;
            (answer, Instant::now())
        });
        // The wait has to be pending when the process exits.
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.service.kill(&self.making.id, number(Signal::SIGKILL)).await.context("kill")?;
        let both = async { anyhow::Ok((ended.await?, answered.await?)) };
        let (ended, (answer, answered)) = timeout(LIMIT, both).await.context("no end was reported")??;
        let status = answer?;
        ensure!(status == 128 + number(Signal::SIGKILL), "a killed process ends with {status}");
        Ok(vec![(Call::Wait, answered.saturating_duration_since(ended))])
    }

    async fn exec(&self, payload: usize) -> Result<Times> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (service, id) = (&self.service, &*self.making.id);
        let exec_id = format!("x{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut pipes = Pipes::make(&self.making.bundle, &exec_id, payload, false)?;
        let process = spec::exec(payload);
        let output = pipes.output().context("an exec without output")?;
        let begun = Instant::now();
        service.exec(id, &exec_id, &pipes.paths, &process).await.context("exec")?;
        let set_up = begun.elapsed();
        let made = timeout(LIMIT, self.run(&exec_id, &mut pipes, output, payload, begun)).await;
        let made = made.map_err(anyhow::Error::from).flatten();
        let whole = begun.elapsed();
        let (started, first, exited) = match made {
            Ok(times) => times,
            Err(error) => {
                // Leftovers of a failed exec would get in the way of the next one.
                let _ = service.delete(id, &exec_id).await;
                let words = timeout(SECOND, pipes.complaint()).await.unwrap_or_default();
                return Err(if words.is_empty() { error } else { error.context(words) });
            }
        };
        Ok(vec![
            (Call::ExecSetUp, set_up),
            (Call::ExecStart, started),
            (Call::ExecFirstByte, first),
            (Call::ExecExit, exited),
            (Call::Exec, whole),
        ])
    }

    async fn run(
        &self,
        exec_id: &str,
        pipes: &mut Pipes,
        output: Output,
        payload: usize,
        begun: Instant,
    ) -> Result<(Duration, Duration, Duration)> {
        let (service, id) = (&self.service, &*self.making.id);
        let waiting = async {
            let status = service.wait(id, exec_id).await.context("wait")?;
            ensure!(status == 0, "the exec ends with {status}");
            Ok(begun.elapsed())
        };
        let starting = async {
            let begun = Instant::now();
            service.start(id, exec_id).await.context("start")?;
            let took = begun.elapsed();
            if pipes.written().await? {
                service.close_stdin(id, exec_id).await.context("close stdin")?;
            }
            anyhow::Ok(took)
        };
        let reading = async {
            let mut output = output;
            let first = output.first().await? - begun;
            // The rest is read in the background: the last writer may be the shim, which closes its end only at the
            // deletion.
            anyhow::Ok((first, tokio::spawn(output.all(spec::exec_output(payload)))))
        };
        let (exited, started, (first, rest)) = tokio::try_join!(waiting, starting, reading)?;
        service.delete(id, exec_id).await.context("delete")?;
        rest.await??;
        Ok((started, first, exited))
    }

    async fn take_away(&mut self) -> Result<()> {
        if self.removed {
            return Ok(());
        }
        let cleared = self.service.clear(&self.making).await;
        let snapshot = self.environment.remove_snapshot(&self.making.id).await;
        self.pipes = None;
        let _ = fs::remove_dir_all(&self.making.bundle);
        self.removed = true;
        match (cleared, snapshot) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(error), Ok(())) | (Ok(()), Err(error)) => Err(error),
            (Err(first), Err(second)) => Err(anyhow!("{first:#}; {second:#}")),
        }
    }
}

impl<S: Service> Container for ServiceContainer<S> {
    fn step(&mut self, step: Step) -> BoxFuture<'_, Result<Times>> {
        self.make(step).boxed()
    }

    fn shim(&self) -> Option<i32> {
        processes::shim_of(self.pid?)
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<()>> {
        self.take_away().boxed()
    }
}

fn number(signal: Signal) -> u32 {
    (signal as i32).unsigned_abs()
}
