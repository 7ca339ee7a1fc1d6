//! The path `plugin`: a task driver's RPCs, as Nomad's client calls them. Works with any driver that speaks go-plugin.
//! An operation that a driver's API has as a whole is measured as a whole.
//!
//! Source of the facts: hashicorp/nomad `plugins/drivers/proto/driver.proto`.

use std::fs;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use harness::fixture::containerd::NAMESPACE;
use harness::host::exec::{data_of, end_of_stdin};
use harness::host::{Alloc, Exec, Launch, Plugin, hcl};
use harness::processes;
use harness::task::Task;
use harness::timeline::{self, LoggedTimeline};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nomad_proto::driver::DriverCapabilities;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::call::{Call, Step};
use super::environment::{Environment, IMAGE, LIMIT};
use super::path::{Container, Path, Times};
use super::pipes::Output;
use super::{end, spec};

pub(crate) const NAME: &str = "plugin";
/// Number of lines of a plugin's log that an error shows.
const SHOWN_LINES: usize = 10;
/// Size of a message with stdin, as Nomad's own command line sends it.
const MESSAGE_BYTES: usize = 32 * 1024;

/// A running plugin. Its tasks have to be removed before it is ended.
pub(crate) struct Driver {
    environment: Arc<Environment>,
    plugin: Plugin,
    capabilities: DriverCapabilities,
    /// The task's configuration, encoded by the driver's schema.
    task: Vec<u8>,
}

impl Driver {
    /// Starts and configures the setup's plugin. Returns `None` if the setup has none.
    ///
    /// # Errors
    /// Names the step at which the start failed, and shows the last lines of the plugin's log.
    pub(crate) async fn start(environment: &Arc<Environment>) -> Result<Option<Arc<Self>>> {
        let setup = &environment.setup;
        let Some(binary) = &setup.plugin else { return Ok(None) };
        let options = configured(setup.plugin_config.as_deref(), environment, own_options)?;
        let config = configured(setup.task_config.as_deref(), environment, own_task)?;
        let temporary = environment.directory().join("t");
        let programs = environment.directory().join("p");
        fs::create_dir_all(&temporary)?;
        setup.programs.link_in(&programs)?;
        let mut launch = Launch::new(binary);
        launch.environment.push(("TMPDIR".into(), temporary.into()));
        launch.look_first_in(programs);
        let mut plugin = Plugin::launch(&launch).await?;
        let words = plugin.log();
        let ready = async {
            plugin.configure(&options).await?;
            plugin.listen().await?;
            let task = plugin.task_schema().await?;
            let task = hcl::encode(&task, &config).context("encode the task's config")?;
            anyhow::Ok((plugin.capabilities().await?, task))
        };
        let ready = timeout(LIMIT, ready).await.context("it gave no answer").flatten();
        let (capabilities, task) =
            ready.with_context(|| format!("its last words:\n{}\n", words.tail(SHOWN_LINES)))?;
        Ok(Some(Arc::new(Self { environment: Arc::clone(environment), plugin, capabilities, task })))
    }

    /// Ends the plugin as an agent does.
    pub(crate) async fn end(mut self) {
        // A plugin that doesn't exit by itself is killed, as an agent does.
        let _ = self.plugin.shut_down().await;
    }

    fn directory(&self) -> std::path::PathBuf {
        self.environment.directory().join("a")
    }
}

/// Reads a configuration from a file and fills in the values that only the run knows. Without a file, returns the
/// configuration for our own driver.
fn configured(
    file: Option<&FilePath>,
    environment: &Environment,
    own: fn(&Environment) -> Result<Value>,
) -> Result<Value> {
    let Some(path) = file else { return own(environment) };
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("read {shown}"))?;
    let programs = &environment.setup.programs;
    if text.contains("{{image}}") {
        environment.import(NAMESPACE)?;
    }
    let mut config = serde_json::from_str(&text).with_context(|| format!("{shown} is no JSON"))?;
    let words = [
        ("image", IMAGE.to_owned()),
        ("script", spec::SCRIPT.to_owned()),
        ("containerd_socket", environment.socket().display().to_string()),
        ("directory", environment.directory().join("d").display().to_string()),
        ("containerd_runtime", programs.shim_runtime().to_owned()),
        ("oci_runtime", programs.runtime_name()),
    ];
    fill(&mut config, &words).with_context(|| shown.to_string())?;
    Ok(config)
}

/// Replaces `{{name}}` by its value in all strings.
fn fill(config: &mut Value, words: &[(&str, String)]) -> Result<()> {
    match config {
        Value::String(text) => {
            for (name, value) in words {
                *text = text.replace(&format!("{{{{{name}}}}}"), value);
            }
            let unknown = text.split_once("{{").and_then(|(_, rest)| rest.split_once("}}"));
            let known = || words.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            ensure!(unknown.is_none(), "{text:?} has a word that stands for nothing; there are {}", known());
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| fill(item, words)),
        Value::Object(fields) => fields.values_mut().try_for_each(|field| fill(field, words)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the other default can fail")]
fn own_options(environment: &Environment) -> Result<Value> {
    let programs = &environment.setup.programs;
    Ok(json!({
        "containerd_runtime": programs.shim_runtime(),
        "oci_runtime": programs.oci_runtime(),
        "containerd_socket": environment.socket().display().to_string(),
        "state_dir": environment.directory().join("d").display().to_string(),
        "registry_config_dir": "",
    }))
}

/// Returns the task configuration for our own driver. Seccomp is off, as for the containers of the other paths: runc
/// compiles the profile anew for each exec.
fn own_task(environment: &Environment) -> Result<Value> {
    environment.import(NAMESPACE)?;
    Ok(json!({"image": IMAGE, "command": "/bin/sh", "args": ["-c", spec::SCRIPT], "seccomp": false}))
}

pub(crate) struct ByPlugin(pub(crate) Arc<Driver>);

impl Path for ByPlugin {
    fn name(&self) -> &'static str {
        NAME
    }

    fn unsupported(&self, call: Call) -> Option<String> {
        let DriverCapabilities { exec, send_signals, .. } = &self.0.capabilities;
        let why = match call {
            Call::Bootstrap | Call::Create | Call::Start => {
                "a driver starts a task as a whole: see task-start"
            }
            Call::Delete | Call::Shutdown => "a driver removes a task as a whole: see task-removal",
            Call::Connect | Call::Pids | Call::Update => "a driver's API doesn't have it",
            Call::Resize => "a driver's API has it as a message without an answer",
            Call::ExecSetUp | Call::ExecStart => "a driver's API has an exec as one call",
            Call::ExecFirstByte | Call::ExecExit | Call::Exec | Call::ExecUnary if !exec => {
                "this driver says that it has no exec"
            }
            Call::Kill if !send_signals => "this driver says that it sends no signals",
            _ => return None,
        };
        Some(why.to_owned())
    }

    /// Starts a task: a driver's API has nothing less than a running one.
    fn prepare(&self) -> BoxFuture<'_, Result<Box<dyn Container>>> {
        async { Ok(self.start(false).await?.0) }.boxed()
    }

    fn start(&self, _terminal: bool) -> BoxFuture<'_, Result<(Box<dyn Container>, Duration)>> {
        async {
            let (driven, took) = Driven::start(&self.0).await?;
            Ok((Box::new(driven) as Box<dyn Container>, took))
        }
        .boxed()
    }

    fn servers(&self) -> Vec<(&'static str, i32)> {
        let mut servers = self.0.environment.servers();
        servers.extend(i32::try_from(self.0.plugin.pid()).ok().map(|pid| ("plugin", pid)));
        servers
    }

    fn logged_timelines(&self) -> Vec<LoggedTimeline> {
        timeline::logged(&self.0.plugin.log()).filter_map(Result::ok).collect()
    }
}

struct Driven {
    driver: Arc<Driver>,
    task: Task,
    pid: Option<i32>,
    removed: bool,
}

impl Driven {
    /// Starts a task, and returns the time until its first write. What a client prepares beforehand, such as the
    /// allocation's directory, isn't included.
    async fn start(driver: &Arc<Driver>) -> Result<(Self, Duration)> {
        let alloc = Alloc::create(&driver.directory(), "bench", true)?;
        let mut stdout = Output::of(&alloc.log_path("stdout"))?;
        let stderr = Output::of(&alloc.log_path("stderr"))?;
        let task = Task::new(alloc, driver.task.clone());
        let mut driven = Self { driver: Arc::clone(driver), task, pid: None, removed: false };
        let begun = Instant::now();
        let up = async {
            timeout(LIMIT, driven.task.start(&driver.plugin)).await.context("StartTask gave no answer")??;
            timeout(LIMIT, stdout.first()).await.context("no word of the process")?
        };
        let up = up.await;
        tokio::spawn(stderr.drain());
        match up {
            Ok(up) => {
                tokio::spawn(stdout.drain());
                driven.pid = driven.find();
                Ok((driven, up - begun))
            }
            Err(error) => {
                let _ = driven.take_away().await;
                Err(error.context(format!(
                    "the plugin's last words:\n{}\n",
                    driver.plugin.log().tail(SHOWN_LINES)
                )))
            }
        }
    }

    /// Returns the pid of the task's first process: of those that have the allocation's id in their environment, the
    /// one whose parent doesn't have it.
    fn find(&self) -> Option<i32> {
        let marked = processes::with_environment(&format!("NOMAD_ALLOC_ID={}", self.task.alloc.id));
        processes::first_of(&marked)
    }

    async fn make(&self, step: Step) -> Result<Times> {
        let (plugin, id) = (&self.driver.plugin, self.task.id());
        let begun = Instant::now();
        match step {
            Step::State => drop(plugin.inspect_task(id).await?),
            Step::Stats => {
                let mut stream = plugin.stats(id, Duration::from_secs(1)).await?;
                stream.message().await?.context("the stream ended")?.stats.context("no stats")?;
            }
            Step::Kill => plugin.signal_task(id, Signal::SIGWINCH.as_str()).await?,
            Step::ExecUnary => {
                let answer = plugin.exec_task(id, spec::exec_command(0), LIMIT).await?;
                let code = answer.result.context("no result")?.exit_code;
                ensure!(code == 0, "the exec ends with {code}");
            }
            Step::Exec(payload) => return self.exec(payload).await,
            Step::End => return self.end().await,
            _ => bail!("{step:?} is no call of a driver"),
        }
        let took = begun.elapsed();
        Ok(step.gives().into_iter().map(|call| (call, took)).collect())
    }

    async fn exec(&self, payload: usize) -> Result<Times> {
        let input = vec![0x5a; payload];
        let mut messages: Vec<_> = input.chunks(MESSAGE_BYTES).map(data_of).collect();
        // Some drivers recognize the exit of an exec only after the end of its stdin.
        messages.push(end_of_stdin());
        let (plugin, id) = (&self.driver.plugin, self.task.id());
        let begun = Instant::now();
        let mut exec = Exec::open_saying(plugin, id, spec::exec_command(payload), false, messages).await?;
        exec.stdout_to_have(1, LIMIT).await?;
        let first = begun.elapsed();
        let output = exec.finish(LIMIT).await?;
        let whole = begun.elapsed();
        let (code, count) = (output.code()?, output.stdout.len());
        ensure!(code == 0, "the exec ends with {code}: {}", output.stderr_text().trim());
        let expected = spec::exec_output(payload);
        ensure!(count == expected, "{count} bytes came out and not {expected}");
        Ok(vec![(Call::ExecFirstByte, first), (Call::ExecExit, whole), (Call::Exec, whole)])
    }

    async fn end(&self) -> Result<Times> {
        let pid = self.pid.context("no process has the allocation's id: which one is the task's?")?;
        let ended = end::watch(pid)?;
        let waiting = async {
            let answer = self.task.wait_answer(&self.driver.plugin).await;
            (answer, Instant::now())
        };
        let killing = async {
            // The wait has to be pending when the process exits.
            tokio::time::sleep(Duration::from_millis(2)).await;
            kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the task")?;
            anyhow::Ok(timeout(LIMIT, ended).await.context("the process survives SIGKILL")??)
        };
        let ((answer, answered), ended) = tokio::join!(waiting, killing);
        answer?;
        Ok(vec![(Call::Wait, answered.saturating_duration_since(ended?))])
    }

    async fn take_away(&mut self) -> Result<()> {
        if self.removed {
            return Ok(());
        }
        let plugin = &self.driver.plugin;
        // The stop of a task that has exited already may fail. What counts is that the task is destroyed.
        let _ = timeout(LIMIT, plugin.stop_task(self.task.id(), Duration::from_secs(5), "SIGKILL")).await;
        timeout(LIMIT, self.task.end(plugin)).await.context("DestroyTask gave no answer")??;
        self.removed = true;
        Ok(())
    }
}

impl Container for Driven {
    fn step(&mut self, step: Step) -> BoxFuture<'_, Result<Times>> {
        async move { timeout(LIMIT, self.make(step)).await.context("no answer")? }.boxed()
    }

    /// Reads the statistics from one stream, as the agent does.
    fn read_each_second(&mut self, time: Duration) -> BoxFuture<'_, Result<()>> {
        async move {
            let until = tokio::time::Instant::now() + time;
            let every = Duration::from_secs(1);
            let mut stream = self.driver.plugin.stats(self.task.id(), every).await?;
            while let Ok(message) = tokio::time::timeout_at(until, stream.message()).await {
                message?.context("the stream ended")?;
            }
            Ok(())
        }
        .boxed()
    }

    fn shim(&self) -> Option<i32> {
        processes::shim_of(self.pid?)
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<()>> {
        self.take_away().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_filled_in_and_unknown_ones_are_refused() {
        let words = [("image", "busybox".to_owned()), ("script", "echo \"up\"".to_owned())];
        let mut config = json!({"image": "{{image}}", "args": ["-c", "{{script}}; true"], "seccomp": false});
        fill(&mut config, &words).unwrap();
        let expected = json!({"image": "busybox", "args": ["-c", "echo \"up\"; true"], "seccomp": false});
        assert_eq!(config, expected);
        let error = fill(&mut json!({"image": "{{imgae}}"}), &words).unwrap_err().to_string();
        assert!(error.contains("{{imgae}}") && error.contains("there are image, script"), "{error}");
    }
}
