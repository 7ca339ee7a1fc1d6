//! The path `cli`: the OCI runtime's command line, run by the benchmark itself. It is the lower bound: nothing that is
//! built on that runtime can be faster.

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use containerd_client::types::Mount;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::call::{Call, Step};
use super::environment::{Environment, LIMIT};
use super::path::{Container, Path, Times};
use super::pipes::Pipes;
use super::{end, spec};

pub(crate) const NAME: &str = "cli";

pub(crate) struct Cli {
    environment: Arc<Environment>,
    runtime: PathBuf,
    /// The seccomp profile of containers, in the words of the OCI specification.
    profile: Option<serde_json::Value>,
}

impl Cli {
    /// Returns the path, or `None` if the shim is its own runtime.
    pub(crate) fn of(environment: &Arc<Environment>) -> Option<Self> {
        let runtime = environment.setup.runtime()?.to_owned();
        Some(Self { environment: Arc::clone(environment), runtime, profile: None })
    }

    /// Gives containers a seccomp profile.
    pub(crate) fn with_profile(self, profile: serde_json::Value) -> Self {
        Self { profile: Some(profile), ..self }
    }
}

impl Path for Cli {
    fn name(&self) -> &'static str {
        NAME
    }

    fn unsupported(&self, call: Call) -> Option<String> {
        let why = match call {
            Call::Bootstrap | Call::Connect | Call::Shutdown => "there is no shim",
            Call::ExecSetUp | Call::ExecStart => "it is all one command",
            Call::ExecUnary => "it is the same command as exec",
            Call::Resize => "a terminal is the caller's own",
            Call::Wait => "the process is the caller's own child",
            Call::Stats if self.environment.setup.programs.is_crun() => "crun has no command for it",
            _ => return None,
        };
        Some(why.to_owned())
    }

    fn prepare(&self) -> BoxFuture<'_, Result<Box<dyn Container>>> {
        async {
            let bare = Bare::prepare(self, false).await?;
            Ok(Box::new(bare) as Box<dyn Container>)
        }
        .boxed()
    }

    fn start(&self, _terminal: bool) -> BoxFuture<'_, Result<(Box<dyn Container>, Duration)>> {
        async {
            let begun = Instant::now();
            let mut bare = Bare::prepare(self, true).await?;
            match bare.bring_up().await {
                Ok(up) => Ok((Box::new(bare) as Box<dyn Container>, up - begun)),
                Err(error) => Err(match bare.take_away().await {
                    Ok(()) => error,
                    Err(stays) => error.context(format!("and it can't be removed: {stays:#}")),
                }),
            }
        }
        .boxed()
    }

    fn servers(&self) -> Vec<(&'static str, i32)> {
        self.environment.servers()
    }
}

struct Bare {
    environment: Arc<Environment>,
    runtime: PathBuf,
    id: String,
    bundle: PathBuf,
    pipes: Option<Pipes>,
    removed: bool,
}

impl Bare {
    async fn prepare(cli: &Cli, talks: bool) -> Result<Self> {
        let id = Environment::new_id();
        let bundle = cli.environment.directory().join("b").join(&id);
        fs::create_dir_all(bundle.join("rootfs")).with_context(|| format!("make {}", bundle.display()))?;
        let mut spec = spec::container(&Environment::cgroup(&id), false);
        if let Some(profile) = &cli.profile {
            spec["linux"]["seccomp"] = profile.clone();
        }
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
        let pipes = talks.then(|| Pipes::make(&bundle, "init", 0, false)).transpose()?;
        let mounts = cli.environment.snapshot(&id).await?;
        let (environment, runtime) = (Arc::clone(&cli.environment), cli.runtime.clone());
        let mut bare = Self { environment, runtime, id, bundle, pipes, removed: false };
        let rootfs = bare.bundle.join("rootfs");
        let mounted =
            tokio::task::spawn_blocking(move || mounts.iter().try_for_each(|layer| mount_at(layer, &rootfs)));
        if let Err(error) = mounted.await? {
            let _ = bare.take_away().await;
            return Err(error);
        }
        Ok(bare)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.environment.directory().join("q")).args(arguments);
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }

    async fn well(&self, arguments: &[&str]) -> Result<Output> {
        let output = timeout(LIMIT, self.command(arguments).output()).await;
        let name = self.runtime.display();
        let output = output.with_context(|| format!("{name} did not end"))?;
        let output = output.with_context(|| format!("run {name}"))?;
        let stderr = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{name} ends with {}: {}", output.status, stderr());
        Ok(output)
    }

    /// Runs a command that leaves a process behind. Its output isn't captured by pipes of ours, since that process
    /// would hold them open.
    async fn leave(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(arguments);
        match &self.pipes {
            None => command.stdout(Stdio::null()).stderr(Stdio::null()),
            Some(pipes) => {
                let open = |path: &str| fs::OpenOptions::new().write(true).open(path);
                command.stdout(open(&pipes.paths.stdout)?).stderr(open(&pipes.paths.stderr)?)
            }
        };
        let log = self.bundle.join("log");
        let name = self.runtime.display();
        let status = timeout(LIMIT, command.status()).await.with_context(|| format!("{name} did not end"))?;
        let status = status.with_context(|| format!("run {name}"))?;
        let stderr = || fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "{name} ends with {status}: {}", stderr().trim());
        Ok(())
    }

    fn bundle(&self) -> String {
        self.bundle.display().to_string()
    }

    fn log(&self) -> String {
        self.bundle.join("log").display().to_string()
    }

    async fn bring_up(&mut self) -> Result<Instant> {
        self.leave(&["--log", &self.log(), "run", "--detach", "--bundle", &self.bundle(), &self.id]).await?;
        let mut output = self.pipes.as_mut().and_then(Pipes::output).context("a silent container")?;
        let first = timeout(LIMIT, output.first()).await.context("no word of the process")??;
        tokio::spawn(output.drain());
        Ok(first)
    }

    async fn make(&mut self, step: Step) -> Result<Times> {
        let id = &*self.id;
        let begun = Instant::now();
        match step {
            Step::Create => {
                self.leave(&["--log", &self.log(), "create", "--bundle", &self.bundle(), id]).await?;
            }
            Step::Start => self.leave(&["start", id]).await?,
            Step::End => return self.end().await,
            Step::Delete => drop(self.well(&["delete", id]).await?),
            Step::State => drop(self.well(&["state", id]).await?),
            Step::Pids => drop(self.well(&["ps", "--format", "json", id]).await?),
            Step::Stats => drop(self.well(&["events", "--stats", id]).await?),
            Step::Kill => drop(self.well(&["kill", id, "WINCH"]).await?),
            Step::Update => {
                let shares = (spec::SHARES + 1).to_string();
                drop(self.well(&["update", "--cpu-share", &shares, id]).await?);
            }
            Step::Exec(payload) => return self.exec(payload).await,
            Step::Bootstrap
            | Step::Shutdown
            | Step::Connect
            | Step::Resize
            | Step::ExecUnary
            | Step::Task => {
                bail!("{step:?} is no command of a runtime")
            }
        }
        let took = begun.elapsed();
        Ok(step.gives().into_iter().map(|call| (call, took)).collect())
    }

    /// Kills the process and waits for its exit. Returns no times, since there is nobody whose answer could be timed.
    async fn end(&self) -> Result<Times> {
        let ended = end::watch(self.pid()?)?;
        self.well(&["kill", &self.id, "KILL"]).await?;
        timeout(LIMIT, ended).await.context("the process survives SIGKILL")??;
        Ok(Vec::new())
    }

    /// Removes the container, whose process is killed first: `delete --force` alone polls for its exit ten times a
    /// second.
    async fn delete(&self) -> Result<()> {
        if self.end().await.is_ok() && self.well(&["delete", &self.id]).await.is_ok() {
            return Ok(());
        }
        self.well(&["delete", "--force", &self.id]).await.map(drop)
    }

    fn pid(&self) -> Result<i32> {
        let state = self.environment.directory().join("q").join(&self.id);
        // runc and crun keep the pid in files of different names, under different keys.
        ["state.json", "status"]
            .iter()
            .find_map(|name| {
                let text = fs::read(state.join(name)).ok()?;
                let state: serde_json::Value = serde_json::from_slice(&text).ok()?;
                ["init_process_pid", "pid"].iter().find_map(|key| i32::try_from(state[key].as_i64()?).ok())
            })
            .with_context(|| format!("{} has no pid", state.display()))
    }

    async fn exec(&self, payload: usize) -> Result<Times> {
        let words: Vec<&str> =
            ["exec", &self.id].into_iter().chain(spec::exec_command(payload).iter().copied()).collect();
        let mut command = self.command(&words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if payload > 0 {
            command.stdin(Stdio::piped());
        }
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("run {}", self.runtime.display()))?;
        let (stdin, mut stdout) = (child.stdin.take(), child.stdout.take().context("no stdout")?);
        let mut stderr = child.stderr.take().context("no stderr")?;
        let writing = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(&vec![0x5a; payload]).await?;
            }
            anyhow::Ok(())
        };
        let reading = async {
            let mut buffer = vec![0; 64 * 1024];
            let mut count = stdout.read(&mut buffer).await?;
            let first = begun.elapsed();
            let mut all = count;
            while count > 0 {
                count = stdout.read(&mut buffer).await?;
                all += count;
            }
            anyhow::Ok((first, all))
        };
        let complaining = async {
            let mut words = String::new();
            stderr.read_to_string(&mut words).await?;
            anyhow::Ok(words)
        };
        let ending = async {
            let status = child.wait().await?;
            anyhow::Ok((status, begun.elapsed()))
        };
        let all = async { tokio::try_join!(writing, reading, complaining, ending) };
        let ((), (first, count), words, (status, exit)) =
            timeout(LIMIT, all).await.context("the exec did not end")??;
        let whole = begun.elapsed();
        ensure!(status.success(), "exec ends with {status}: {}", words.trim());
        let expected = spec::exec_output(payload);
        ensure!(count == expected, "{count} bytes came out and not {expected}");
        Ok(vec![(Call::ExecFirstByte, first), (Call::ExecExit, exit), (Call::Exec, whole)])
    }

    async fn take_away(&mut self) -> Result<()> {
        if self.removed {
            return Ok(());
        }
        // `delete --force` succeeds if there is no such container.
        let deleted = self.delete().await;
        let rootfs = self.bundle.join("rootfs");
        let unmounted = tokio::task::spawn_blocking(move || umount2(&rootfs, MntFlags::MNT_DETACH)).await?;
        let snapshot = self.environment.remove_snapshot(&self.id).await;
        self.pipes = None;
        let _ = fs::remove_dir_all(&self.bundle);
        self.removed = true;
        deleted?;
        unmounted.context("unmount the rootfs")?;
        snapshot
    }
}

impl Container for Bare {
    fn step(&mut self, step: Step) -> BoxFuture<'_, Result<Times>> {
        self.make(step).boxed()
    }

    fn shim(&self) -> Option<i32> {
        None
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<()>> {
        self.take_away().boxed()
    }
}

/// Mounts a snapshot as the snapshotter describes it, as a shim would.
fn mount_at(layer: &Mount, target: &FilePath) -> Result<()> {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in &layer.options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => {}
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            other => data.push(other),
        }
    }
    let data = data.join(",");
    mount(Some(layer.source.as_str()), target, Some(layer.r#type.as_str()), flags, Some(data.as_str()))
        .with_context(|| format!("mount {} at {}", layer.r#type, target.display()))
}
