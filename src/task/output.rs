//! Where a task's output goes: into the pipes that Nomad reads, into pipes of our own and from there into its log files, or
//! nowhere.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nomad_proto::driver as pb;
use tokio::sync::watch;

use super::events::Teller;
use super::mounts::off_thread;
use super::supervisor::LAST_WORDS;
use super::{Phase, Saved, Settings, Tasks};
use crate::config::{LogCollection, LogLimits, TaskOptions};
use crate::error::{Error, Result};
use crate::logs::{Limits, Movers, News, Pump, Stream, Target};
use crate::shim::{Bundle, HeldPipes, LogPaths, NOWHERE};

/// Pause before another try to collect a recovered task's output.
const TRIED_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Output {
    pub(super) logs: LogPaths,
    /// None where it is not the driver that collects it.
    pub(super) collected: Option<Target>,
}

impl Output {
    /// Nomad names its pipes also where it was told that it is not to read them, and makes none.
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
                Self { logs: LogPaths { stdout: NOWHERE.into(), stderr: NOWHERE.into() }, collected: None }
            }
            LogCollection::Driver(operators) => {
                let LogLimits { max_files, max_file_bytes } = options.logging.over(operators);
                let limits = Limits { max_files, max_file_bytes };
                let pipe = |nomads: PathBuf, stream: Stream| match nomads {
                    nowhere if nowhere.as_path() == Path::new(NOWHERE) => nowhere,
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

    /// Checks Nomad's pipes, and holds them open; None where the driver has pipes of its own.
    ///
    /// # Errors
    /// Names the one that is none.
    pub(super) async fn hold_nomads(&self) -> Result<Option<HeldPipes>> {
        if self.collected.is_some() {
            return Ok(None);
        }
        let (logs, place) = (self.logs.clone(), self.logs.stdout.clone());
        off_thread(&place, "the task's log pipes", move || Ok(Some(logs.hold_open()?))).await
    }

    /// Makes our own pipes in the bundle, holds them open, and returns as well what the shim is to hold for good: without a
    /// reader, what a task has written last would go with it while no plugin is there.
    ///
    /// # Errors
    /// Names the one that can't be made.
    pub(super) fn make_own(&self) -> Result<(HeldPipes, Vec<OwnedFd>)> {
        let held = self.logs.make()?;
        Ok((held, self.logs.readers()?.into_iter().flatten().collect()))
    }
}

impl Tasks {
    /// Begins, or goes on, to collect a task's output, where that is the driver's.
    ///
    /// # Errors
    /// When its pipes can't be read.
    pub(super) async fn collect_output(&self, saved: &Saved, teller: &Teller) -> Result<Option<Pump>> {
        let Some(target) = &saved.collected else { return Ok(None) };
        let failed = |error: std::io::Error| Error::system("collect the task's output", &error);
        let movers =
            self.movers.get_or_try_init(|| std::future::ready(Movers::new())).await.map_err(failed)?;
        let pipes = [Stream::Stdout, Stream::Stderr].into_iter().zip(saved.logs.readers()?);
        let pipes = pipes.filter_map(|(stream, pipe)| Some((stream, pipe?))).collect();
        let (teller, container) = (teller.clone(), saved.container_id.clone());
        let tell = move |news: News| {
            match &news {
                News::GoesOn { .. } => tracing::info!(container, ?news, "the log goes on"),
                _ => tracing::warn!(container, ?news, "the log does not go on as it should"),
            }
            teller.logs(news);
        };
        Ok(Some(Pump::start(pipes, target, movers, tell).map_err(failed)?))
    }

    /// Tries on to collect the output of a recovered task, which waits in its pipes meanwhile, until the task has ended.
    /// `trouble` is why the first try failed.
    pub(super) async fn collect_later(
        self: Arc<Self>,
        saved: Saved,
        teller: Teller,
        mut phase: watch::Receiver<Phase>,
        trouble: Error,
    ) {
        let container = &saved.container_id;
        tracing::error!(container, error = %trouble, "the task goes on without its log for now; trying again");
        let waits = |why: &Error| News::Waits { stream: Stream::Stdout, why: why.to_string() };
        let begin = async {
            let mut told = false;
            loop {
                tokio::time::sleep(TRIED_AGAIN).await;
                match self.collect_output(&saved, &teller).await {
                    Ok(pump) => break (pump, told),
                    Err(error) if told => tracing::debug!(container, %error, "still no log of the task"),
                    Err(error) => teller.logs(waits(&error)),
                }
                told = true;
            }
        };
        let exited = |phase: &Phase| matches!(phase, Phase::Exited(_));
        let (pump, told) = tokio::select! {
            begun = begin => begun,
            _ = phase.wait_for(exited) => return,
        };
        tracing::info!(container, "the task's log goes on");
        if told {
            teller.logs(News::GoesOn { stream: Stream::Stdout });
        }
        let Some(mut pump) = pump else { return };
        let last_words = async {
            let _ = phase.wait_for(exited).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = pump.ended() => {}
            () = last_words => {}
        }
    }
}
