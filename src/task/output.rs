//! A task's output: it goes into the pipes that Nomad reads, into pipes of the driver's own and from there into the
//! task's log files or to a log receiver, or nowhere.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nomad_proto::driver as pb;
use tokio::sync::watch;

use super::error::{Error, Result};
use super::events::TaskEvents;
use super::log_receiver::{self, Receiver};
use super::mounts::off_thread;
use super::state::Forwarded;
use super::supervisor::LOG_DRAIN_TIMEOUT;
use super::{DriverState, Phase, Settings, Tasks};
use crate::config::{LogCollection, LogLimits, LogType, TaskOptions};
use crate::logs::{Limits, LogCollector, LogEvent, NomadLog, Stream, Target, WriterPool};
use crate::shim::{self, Bundle, DEV_NULL, HeldPipes, LogPaths};
use crate::sys::blocking;
use crate::sys::error_chain::Chained;

/// Limits of the log files that a plugin which knows no log receivers writes after a downgrade, where Nomad collects
/// the output or nobody does.
const AFTER_DOWNGRADE: Limits = Limits { max_files: 10, max_file_bytes: 10 << 20 };
/// Pause between retries of collecting a recovered task's output.
const TRIED_AGAIN: Duration = Duration::from_secs(5);

pub(super) struct Output {
    pub(super) logs: LogPaths,
    /// Log files that the driver writes the output to; `None` where it doesn't read the output.
    pub(super) collected: Option<Target>,
    /// Log receiver that the driver sends the output to.
    pub(super) receiver: Option<Receiver>,
    /// Way of the output that is sent to the receiver.
    pub(super) forwarded: Option<Forwarded>,
    /// Nomad's pipes, where somebody reads them and the task itself doesn't write to them.
    pub(super) nomads_pipes: Option<LogPaths>,
}

impl Output {
    /// Returns the output's paths for the plugin's `log_collection` and the task's log type. Nomad names its pipes also
    /// where it was told not to read them, and makes none then.
    ///
    /// # Errors
    /// Names a path of the log receiver's that the operator does not allow.
    pub(super) fn of(
        settings: &Settings,
        options: &TaskOptions,
        config: &pb::TaskConfig,
        bundle: &Bundle,
    ) -> Result<Self> {
        let plugin = &settings.config;
        let jobs = options.logging.log_type();
        let receiver = match jobs.unwrap_or(&plugin.log_type) {
            LogType::Files => None,
            LogType::Receiver(receiver) => Some(Receiver::of(receiver, jobs.is_some(), plugin, config)?),
            LogType::Nothing => {
                return Ok(Self {
                    logs: nowhere(),
                    collected: None,
                    receiver: None,
                    forwarded: None,
                    nomads_pipes: nomads_pipes(plugin.log_collection, config),
                });
            }
        };
        let nomads = nomads(config);
        let is_enabled = nomads != nowhere();
        let own = || LogPaths {
            stdout: bundle.log_pipe(Stream::Stdout.name()),
            stderr: bundle.log_pipe(Stream::Stderr.name()),
        };
        let target =
            |limits| Target { alloc_dir: (&config.alloc_dir).into(), task: config.name.clone(), limits };
        let collected = match plugin.log_collection {
            LogCollection::Driver(operators) if is_enabled => {
                let LogLimits { max_files, max_file_bytes } = options.logging.or_from(operators);
                Some(target(Limits { max_files, max_file_bytes }))
            }
            _ => None,
        };
        if let Some(receiver) = receiver {
            let nomads_pipes = nomads_pipes(plugin.log_collection, config);
            let forwarded = match (&collected, &nomads_pipes) {
                _ if !receiver.feeds_nomad() => Forwarded::Nowhere,
                (Some(_), _) => Forwarded::Files,
                (None, Some(pipes)) => Forwarded::Pipes(pipes.clone()),
                (None, None) => Forwarded::Nowhere,
            };
            let collected = collected.unwrap_or_else(|| target(AFTER_DOWNGRADE));
            return Ok(Self {
                logs: own(),
                collected: Some(collected),
                receiver: Some(receiver),
                forwarded: Some(forwarded),
                nomads_pipes,
            });
        }
        let logs = match plugin.log_collection {
            LogCollection::Nomad => nomads,
            LogCollection::Nobody => nowhere(),
            LogCollection::Driver(_) => {
                let unless_disabled = |nomads: PathBuf, own| {
                    if nomads.as_path() == Path::new(DEV_NULL) { nomads } else { own }
                };
                let own = own();
                LogPaths {
                    stdout: unless_disabled(nomads.stdout, own.stdout),
                    stderr: unless_disabled(nomads.stderr, own.stderr),
                }
            }
        };
        Ok(Self { logs, collected, receiver: None, forwarded: None, nomads_pipes: None })
    }

    /// Checks Nomad's pipes, and holds them open. Returns `None` where the driver has pipes of its own.
    ///
    /// # Errors
    /// Names the path that is no pipe.
    pub(super) async fn hold_nomads(&self) -> Result<Option<HeldPipes>> {
        if self.collected.is_some() || self.receiver.is_some() {
            return Ok(None);
        }
        let (logs, place) = (self.logs.clone(), self.logs.stdout.clone());
        off_thread(&place, "the task's log pipes", move || Ok(Some(logs.hold_open()?))).await
    }

    /// Opens Nomad's pipes for writing, where the task doesn't write to them itself. Nomad's collector waits until
    /// somebody does.
    ///
    /// # Errors
    /// Names the path that is no pipe.
    pub(super) async fn open_nomads(&self) -> Result<Vec<OwnedFd>> {
        let Some(pipes) = &self.nomads_pipes else { return Ok(Vec::new()) };
        Ok(writers(pipes).await?.map(|(_, pipe)| pipe).collect::<std::result::Result<_, _>>()?)
    }

    /// Checks that the log receiver can be reached, if there is one.
    ///
    /// # Errors
    /// Names the receiver. A later start may find it.
    pub(super) async fn check_receiver(&self) -> Result<()> {
        match &self.receiver {
            Some(receiver) => receiver.check().await,
            None => Ok(()),
        }
    }

    /// Makes the driver's own pipes in the bundle, and holds them open. Also returns what the shim is to hold for good:
    /// their read ends, since without a reader a task's last output would be lost while no plugin is there, and the
    /// writers of Nomad's pipes, since without one Nomad's collector ends.
    ///
    /// # Errors
    /// Names the pipe that can't be made.
    pub(super) async fn make_own(&self, nomads: Vec<OwnedFd>) -> Result<(HeldPipes, Vec<OwnedFd>)> {
        let logs = self.logs.clone();
        let made = blocking::run(move || Ok::<_, shim::Error>((logs.make()?, logs.readers()?)));
        let (held, readers) = made.await?;
        Ok((held, readers.into_iter().flatten().chain(nomads).collect()))
    }
}

fn nomads(config: &pb::TaskConfig) -> LogPaths {
    LogPaths { stdout: (&config.stdout_path).into(), stderr: (&config.stderr_path).into() }
}

fn nowhere() -> LogPaths {
    LogPaths { stdout: DEV_NULL.into(), stderr: DEV_NULL.into() }
}

/// Returns Nomad's pipes, where Nomad collects the output and the job's logs are not disabled.
fn nomads_pipes(collection: LogCollection, config: &pb::TaskConfig) -> Option<LogPaths> {
    Some(nomads(config)).filter(|pipes| collection == LogCollection::Nomad && *pipes != nowhere())
}

/// A pipe of Nomad's, or the reason that it can't be opened.
type PipeResult = std::result::Result<OwnedFd, shim::Error>;

/// Opens Nomad's pipes for writing, those that there are, by their streams.
async fn writers(paths: &LogPaths) -> Result<impl Iterator<Item = (Stream, PipeResult)>> {
    let (paths, place) = (paths.clone(), paths.stdout.clone());
    let writers = off_thread(&place, "the task's log pipes", move || Ok(paths.writers())).await?;
    let pipes = [Stream::Stdout, Stream::Stderr].into_iter().zip(writers);
    Ok(pipes.filter_map(|(stream, pipe)| Some((stream, pipe?))))
}

/// Opens Nomad's pipes like [`writers`]. A pipe that is gone, or in whose place is something else, is left out and told
/// of: it may stay so, and the task must not wait for it.
///
/// # Errors
/// Names the pipe that can't be opened now.
async fn writers_there(paths: &LogPaths, tell: impl Fn(LogEvent)) -> Result<Vec<(Stream, OwnedFd)>> {
    let mut pipes = Vec::new();
    for (stream, pipe) in writers(paths).await? {
        match pipe {
            Ok(pipe) => pipes.push((stream, pipe)),
            Err(error) if error.is_no_pipe() => {
                tell(LogEvent::Discarded { stream, why: error.chain().to_string() });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(pipes)
}

impl Tasks {
    /// Begins or resumes the collection of a task's output, where the driver collects it.
    ///
    /// # Errors
    /// When the task's pipes can't be read.
    pub(super) async fn collect_output(
        &self,
        bundle: &Bundle,
        driver_state: &DriverState,
        task_events: &TaskEvents,
    ) -> Result<Option<LogCollector>> {
        let DriverState { collected, forwarded, .. } = driver_state;
        let Some(target) = collected else { return Ok(None) };
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
                LogEvent::Resumed { .. } | LogEvent::ReceiverReached { .. } => {
                    tracing::info!(container, ?event, "log collection resumed");
                }
                _ => tracing::warn!(container, ?event, "log collection is impaired"),
            }
            task_events.logs(event);
        };
        let begun = match forwarded {
            None => LogCollector::start(pipes, target, log_writers, tell),
            Some(forwarded) => {
                let forwarding = bundle.off_thread(log_receiver::read).await?;
                if forwarding.is_none() {
                    let why = "its address in the task's bundle is gone".to_owned();
                    tell(LogEvent::ReceiverUnreachable { why, waits: false });
                }
                let log = match forwarded {
                    Forwarded::Files => NomadLog::Files(target.clone()),
                    Forwarded::Pipes(paths) => NomadLog::Pipes(writers_there(paths, &tell).await?),
                    Forwarded::Nowhere => NomadLog::Nothing,
                };
                LogCollector::forward(pipes, forwarding.as_ref(), log, log_writers, tell)
            }
        };
        Ok(Some(begun.map_err(failed)?))
    }

    /// Retries the collection of a recovered task's output, which waits in its pipes meanwhile, until the task has
    /// exited. `trouble` is the error of the first try.
    pub(super) async fn collect_later(
        self: Arc<Self>,
        bundle: Bundle,
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
                match self.collect_output(&bundle, &driver_state, &task_events).await {
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
        tokio::select! {
            () = log_collector.finished() => return,
            _ = phase.wait_for(exited) => {}
        }
        log_collector.finished_within(LOG_DRAIN_TIMEOUT).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nix::sys::stat::Mode;

    use super::*;

    #[tokio::test]
    async fn output_is_collected_where_one_of_nomads_pipes_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let pipes =
            LogPaths { stdout: directory.path().join("stdout"), stderr: directory.path().join("stderr") };
        nix::unistd::mkfifo(&pipes.stderr, Mode::S_IRWXU).unwrap();
        let told = Mutex::new(Vec::new());
        let there = writers_there(&pipes, |event| told.lock().unwrap().push(event)).await.unwrap();
        assert!(matches!(there[..], [(Stream::Stderr, _)]));
        let told = told.into_inner().unwrap();
        assert!(matches!(told[..], [LogEvent::Discarded { stream: Stream::Stdout, .. }]), "{told:?}");
    }
}
