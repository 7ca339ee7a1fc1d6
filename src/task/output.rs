//! A task's output: it goes into the pipes that Nomad reads, into pipes of the driver's own and from there into the
//! task's log files, or nowhere.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nomad_proto::driver as pb;
use tokio::sync::watch;

use super::error::{Error, Result};
use super::events::TaskEvents;
use super::mounts::off_thread;
use super::supervisor::LOG_DRAIN_TIMEOUT;
use super::{DriverState, Phase, Settings, Tasks};
use crate::config::{LogCollection, LogLimits, TaskOptions};
use crate::logs::{Limits, LogCollector, LogEvent, Stream, Target, WriterPool};
use crate::shim::{self, Bundle, DEV_NULL, HeldPipes, LogPaths};
use crate::sys::blocking;
use crate::sys::error_chain::Chained;

/// Pause between retries of collecting a recovered task's output.
const TRIED_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Output {
    pub(super) logs: LogPaths,
    /// Log files that the driver writes the output to; `None` where it doesn't collect the output.
    pub(super) collected: Option<Target>,
}

impl Output {
    /// Returns the output's paths for the plugin's `log_collection`. Nomad names its pipes also where it was told not
    /// to read them, and makes none then.
    pub(super) fn of(
        settings: &Settings,
        options: &TaskOptions,
        config: &pb::TaskConfig,
        bundle: &Bundle,
    ) -> Self {
        let nomads = LogPaths { stdout: (&config.stdout_path).into(), stderr: (&config.stderr_path).into() };
        match settings.config.log_collection {
            LogCollection::Nomad => Self { logs: nomads, collected: None },
            LogCollection::Nobody => {
                Self { logs: LogPaths { stdout: DEV_NULL.into(), stderr: DEV_NULL.into() }, collected: None }
            }
            LogCollection::Driver(operators) => {
                let LogLimits { max_files, max_file_bytes } = options.logging.or_from(operators);
                let limits = Limits { max_files, max_file_bytes };
                let pipe = |nomads: PathBuf, stream: Stream| match nomads {
                    nowhere if nowhere.as_path() == Path::new(DEV_NULL) => nowhere,
                    _ => bundle.log_pipe(stream.name()),
                };
                let logs = LogPaths {
                    stdout: pipe(nomads.stdout, Stream::Stdout),
                    stderr: pipe(nomads.stderr, Stream::Stderr),
                };
                let target =
                    Target { alloc_dir: (&config.alloc_dir).into(), task: config.name.clone(), limits };
                Self { logs, collected: Some(target) }
            }
        }
    }

    /// Checks Nomad's pipes, and holds them open. Returns `None` where the driver has pipes of its own.
    ///
    /// # Errors
    /// Names the path that is no pipe.
    pub(super) async fn hold_nomads(&self) -> Result<Option<HeldPipes>> {
        if self.collected.is_some() {
            return Ok(None);
        }
        let (logs, place) = (self.logs.clone(), self.logs.stdout.clone());
        off_thread(&place, "the task's log pipes", move || Ok(Some(logs.hold_open()?))).await
    }

    /// Makes the driver's own pipes in the bundle, and holds them open. Also returns their read ends, which the shim is
    /// to hold for good: without a reader, a task's last output would be lost while no plugin is there.
    ///
    /// # Errors
    /// Names the pipe that can't be made.
    pub(super) async fn make_own(&self) -> Result<(HeldPipes, Vec<OwnedFd>)> {
        let logs = self.logs.clone();
        let made = blocking::run(move || Ok::<_, shim::Error>((logs.make()?, logs.readers()?)));
        let (held, readers) = made.await?;
        Ok((held, readers.into_iter().flatten().collect()))
    }
}

impl Tasks {
    /// Begins or resumes the collection of a task's output, where the driver collects it.
    ///
    /// # Errors
    /// When the task's pipes can't be read.
    pub(super) async fn collect_output(
        &self,
        driver_state: &DriverState,
        task_events: &TaskEvents,
    ) -> Result<Option<LogCollector>> {
        let Some(target) = &driver_state.collected else { return Ok(None) };
        let failed = |error: std::io::Error| Error::system("collect the task's output", error);
        let log_writers = self
            .log_writers
            .get_or_try_init(|| std::future::ready(WriterPool::new()))
            .await
            .map_err(failed)?;
        let logs = driver_state.logs.clone();
        let readers = blocking::run(move || logs.readers()).await?;
        let pipes = [Stream::Stdout, Stream::Stderr].into_iter().zip(readers);
        let pipes = pipes.filter_map(|(stream, pipe)| Some((stream, pipe?))).collect();
        let (task_events, container) = (task_events.clone(), driver_state.container_id.clone());
        let tell = move |event: LogEvent| {
            match &event {
                LogEvent::Resumed { .. } => tracing::info!(container, ?event, "log collection resumed"),
                _ => tracing::warn!(container, ?event, "log collection is impaired"),
            }
            task_events.logs(event);
        };
        Ok(Some(LogCollector::start(pipes, target, log_writers, tell).map_err(failed)?))
    }

    /// Retries the collection of a recovered task's output, which waits in its pipes meanwhile, until the task has
    /// exited. `trouble` is the error of the first try.
    pub(super) async fn collect_later(
        self: Arc<Self>,
        driver_state: DriverState,
        task_events: TaskEvents,
        mut phase: watch::Receiver<Phase>,
        trouble: Error,
    ) {
        let container = &driver_state.container_id;
        tracing::error!(container, error = %trouble.chain(), "the task's output can't be collected for now; trying again");
        let waits = |why: &Error| LogEvent::Blocked { stream: Stream::Stdout, why: why.chain().to_string() };
        let begin = async {
            let mut reported = false;
            loop {
                tokio::time::sleep(TRIED_AGAIN).await;
                match self.collect_output(&driver_state, &task_events).await {
                    Ok(log_collector) => break (log_collector, reported),
                    Err(error) if reported => {
                        tracing::debug!(container, error = %error.chain(), "the task's output still can't be collected");
                    }
                    Err(error) => task_events.logs(waits(&error)),
                }
                reported = true;
            }
        };
        let exited = |phase: &Phase| matches!(phase, Phase::Exited(_));
        let (log_collector, reported) = tokio::select! {
            begun = begin => begun,
            _ = phase.wait_for(exited) => return,
        };
        tracing::info!(container, "collecting the task's output again");
        if reported {
            task_events.logs(LogEvent::Resumed { stream: Stream::Stdout });
        }
        let Some(mut log_collector) = log_collector else { return };
        let last_words = async {
            let _ = phase.wait_for(exited).await;
            tokio::time::sleep(LOG_DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            () = log_collector.finished() => {}
            () = last_words => {}
        }
    }
}
