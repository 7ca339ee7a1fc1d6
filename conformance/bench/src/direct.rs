//! The path `direct`: a shim that the benchmark starts itself, in a bundle of its own, and calls over ttrpc.

use std::fs::{self, File};
use std::io::PipeReader;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;
use shim_protos::api::{
    CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, Mount,
    PidsRequest, ResizePtyRequest, ShutdownRequest, StartRequest, StateRequest, StatsRequest,
    UpdateTaskRequest, WaitRequest,
};
use shim_protos::protobuf::well_known_types::any::Any;
use shim_protos::{Bootstrap, CallError, StartInput, StartParams, TaskClient, any};
use tokio::process::Command;

use super::call::Call;
use super::container::ServiceContainer;
use super::environment::{Environment, LIMIT};
use super::path::{Container, Path};
use super::pipes::Paths;
use super::service::{Making, Service};

pub(crate) const NAME: &str = "direct";
const RESOURCES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

pub(crate) struct Direct(pub(crate) Arc<Environment>);

impl Path for Direct {
    fn name(&self) -> &'static str {
        NAME
    }

    fn unsupported(&self, call: Call) -> Option<String> {
        (call == Call::ExecUnary).then(|| "no shim has it".to_owned())
    }

    fn prepare(&self) -> BoxFuture<'_, Result<Box<dyn Container>>> {
        async {
            let container = ServiceContainer::prepare(&self.0, Shim::of(&self.0), false, false).await?;
            Ok(Box::new(container) as Box<dyn Container>)
        }
        .boxed()
    }

    fn start(&self, terminal: bool) -> BoxFuture<'_, Result<(Box<dyn Container>, Duration)>> {
        async move {
            let (container, took) = ServiceContainer::start(&self.0, Shim::of(&self.0), terminal).await?;
            Ok((Box::new(container) as Box<dyn Container>, took))
        }
        .boxed()
    }

    fn servers(&self) -> Vec<(&'static str, i32)> {
        self.0.servers()
    }
}

/// A shim, and the connection to it once it is started.
#[derive(Clone)]
struct Shim {
    environment: Arc<Environment>,
    running: Option<(TaskClient, Bootstrap)>,
}

impl Shim {
    fn of(environment: &Arc<Environment>) -> Self {
        Self { environment: Arc::clone(environment), running: None }
    }

    fn client(&self) -> Result<&TaskClient> {
        self.running.as_ref().map(|(client, _)| client).context("there is no shim")
    }

    /// Runs the shim's binary in the bundle until it exits, with `stdin` if there is one. A process that it leaves
    /// behind inherits no pipe of ours and no environment but what is set here.
    async fn run(&self, making: &Making, arguments: &[&str], stdin: Option<PipeReader>) -> Result<Vec<u8>> {
        let (out, err) = (making.bundle.join("shim.out"), making.bundle.join("shim.err"));
        let address = self.address();
        let mut command = Command::new(self.environment.setup.programs.shim());
        command
            .args(["-namespace", self.environment.namespace(), "-address", &address, "-id", &making.id])
            .args(["-publish-binary", "/bin/true"])
            .args(arguments)
            .current_dir(&making.bundle)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GOMAXPROCS", "2")
            .env("GRPC_ADDRESS", &address)
            .envs(self.environment.events().map(|events| ("TTRPC_ADDRESS", events)))
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .process_group(0)
            .kill_on_drop(true);
        let shim = self.environment.setup.programs.shim().display();
        let status = tokio::time::timeout(LIMIT, command.status()).await;
        let status = status.with_context(|| format!("{shim} did not end"))?;
        let status = status.with_context(|| format!("run {shim}"))?;
        if !status.success() {
            bail!("{shim} ends with {status}: {}", fs::read_to_string(&err).unwrap_or_default().trim());
        }
        Ok(fs::read(&out)?)
    }

    async fn start(&self, making: &Making) -> Result<Vec<u8>> {
        let address = self.address();
        let events = self.environment.events().map(|events| events.display().to_string());
        let params = StartParams {
            id: &making.id,
            namespace: self.environment.namespace(),
            address: &address,
            events: events.as_deref(),
        };
        let stdin = self.input(making).await?.pipe(params)?;
        self.run(making, &["start"], stdin).await
    }

    /// Returns the start input that the shim expects, by its version. The shim is asked for that once a setup.
    async fn input(&self, making: &Making) -> Result<StartInput> {
        let ask = || async {
            let printed = self.run(making, &["-v"], None).await?;
            anyhow::Ok(StartInput::by_version(&String::from_utf8_lossy(&printed)))
        };
        self.environment.start_input.get_or_try_init(ask).await.copied()
    }

    fn address(&self) -> String {
        self.environment.directory().display().to_string()
    }

    fn options(&self) -> Result<Option<Any>> {
        let options = self.environment.setup.options(&self.environment.runtime_root());
        Ok(options.as_ref().map(any::runc_options).transpose()?)
    }

    /// Removes the container and ends the shim by calls to the shim itself.
    async fn end(&self, id: &str) -> Result<()> {
        let client = self.client()?;
        let kill = KillRequest { id: id.to_owned(), signal: 9, all: true, ..KillRequest::default() };
        let _ = client.kill(&kill, LIMIT).await;
        let wait = WaitRequest { id: id.to_owned(), ..WaitRequest::default() };
        let _ = tokio::time::timeout(LIMIT, client.wait(&wait)).await;
        match Service::delete(self, id, "").await {
            Err(error) if is_gone(&error) => {}
            deleted => deleted?,
        }
        self.shutdown(id).await
    }
}

/// Returns whether an error of a removal means that the container is removed already.
fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<CallError>(), Some(CallError::NotFound(_) | CallError::Disconnected(_)))
}

impl Service for Shim {
    async fn prepare(&mut self, making: &Making) -> Result<()> {
        // Without a log file the shim dies, and with a pipe that nobody reads it hangs.
        fs::write(making.bundle.join("log"), b"")?;
        fs::write(making.bundle.join("config.json"), serde_json::to_vec(&making.spec)?)?;
        // The version is queried here, since the start is measured.
        self.input(making).await?;
        Ok(())
    }

    async fn bootstrap(&mut self, making: &Making) -> Result<()> {
        let answer = match self.start(making).await {
            // Some shims refuse to start without an address to publish events to.
            Err(error)
                if format!("{error:#}").contains("TTRPC_ADDRESS") && self.environment.events().is_none() =>
            {
                self.environment.tell_events();
                self.start(making).await?
            }
            answer => answer?,
        };
        let bootstrap = Bootstrap::parse(&answer)?;
        let client = TaskClient::connect(&bootstrap, LIMIT).await?;
        self.running = Some((client, bootstrap));
        Ok(())
    }

    async fn create(&self, making: &Making) -> Result<i32> {
        let mounts = making.rootfs.iter().map(|mount| Mount {
            type_: mount.r#type.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
            ..Mount::default()
        });
        let request = CreateTaskRequest {
            id: making.id.clone(),
            bundle: making.bundle.display().to_string(),
            rootfs: mounts.collect(),
            terminal: making.terminal,
            stdout: making.paths.stdout.clone(),
            stderr: making.paths.stderr.clone(),
            options: self.options()?.into(),
            ..CreateTaskRequest::default()
        };
        let pid = self.client()?.create(&request, LIMIT).await?.pid;
        Ok(i32::try_from(pid)?)
    }

    async fn start(&self, id: &str, exec_id: &str) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = StartRequest { id, exec_id, ..StartRequest::default() };
        Ok(self.client()?.start(&request, LIMIT).await.map(drop)?)
    }

    async fn wait(&self, id: &str, exec_id: &str) -> Result<u32> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = WaitRequest { id, exec_id, ..WaitRequest::default() };
        Ok(self.client()?.wait(&request).await?.exit_status)
    }

    async fn delete(&self, id: &str, exec_id: &str) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = DeleteRequest { id, exec_id, ..DeleteRequest::default() };
        Ok(self.client()?.delete(&request, LIMIT).await.map(drop)?)
    }

    async fn exec(&self, id: &str, exec_id: &str, paths: &Paths, process: &Value) -> Result<()> {
        let request = ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: paths.stdin.clone(),
            stdout: paths.stdout.clone(),
            stderr: paths.stderr.clone(),
            spec: Some(any::process(serde_json::to_vec(process)?)).into(),
            ..ExecProcessRequest::default()
        };
        Ok(self.client()?.exec(&request, LIMIT).await.map(drop)?)
    }

    async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = CloseIORequest { id, exec_id, stdin: true, ..CloseIORequest::default() };
        Ok(self.client()?.close_io(&request, LIMIT).await.map(drop)?)
    }

    async fn kill(&self, id: &str, signal: u32) -> Result<()> {
        let request = KillRequest { id: id.to_owned(), signal, ..KillRequest::default() };
        Ok(self.client()?.kill(&request, LIMIT).await.map(drop)?)
    }

    async fn state(&self, id: &str) -> Result<()> {
        let request = StateRequest { id: id.to_owned(), ..StateRequest::default() };
        Ok(self.client()?.state(&request, LIMIT).await.map(drop)?)
    }

    async fn connect(&self, id: &str) -> Result<()> {
        let request = ConnectRequest { id: id.to_owned(), ..ConnectRequest::default() };
        Ok(self.client()?.pids_of_shim_and_task(&request, LIMIT).await.map(drop)?)
    }

    async fn pids(&self, id: &str) -> Result<()> {
        let request = PidsRequest { id: id.to_owned(), ..PidsRequest::default() };
        Ok(self.client()?.pids(&request, LIMIT).await.map(drop)?)
    }

    async fn stats(&self, id: &str) -> Result<()> {
        let request = StatsRequest { id: id.to_owned(), ..StatsRequest::default() };
        Ok(self.client()?.stats(&request, LIMIT).await.map(drop)?)
    }

    async fn resize(&self, id: &str, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest { id: id.to_owned(), width, height, ..ResizePtyRequest::default() };
        Ok(self.client()?.resize_pty(&request, LIMIT).await.map(drop)?)
    }

    async fn update(&self, id: &str, resources: &Value) -> Result<()> {
        let value = serde_json::to_vec(resources)?;
        let resources = Any { type_url: RESOURCES_URL.to_owned(), value, ..Any::default() };
        let id = id.to_owned();
        let request =
            UpdateTaskRequest { id, resources: Some(resources).into(), ..UpdateTaskRequest::default() };
        Ok(self.client()?.update(&request, LIMIT).await.map(drop)?)
    }

    /// Shuts the shim down. A closed connection counts as success: the shim may exit before its answer is sent.
    async fn shutdown(&self, id: &str) -> Result<()> {
        let request = ShutdownRequest { id: id.to_owned(), ..ShutdownRequest::default() };
        match self.client()?.shutdown(&request, LIMIT).await {
            Ok(_) | Err(CallError::Disconnected(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn clear(&mut self, making: &Making) -> Result<()> {
        let cleared = match self.end(&making.id).await {
            Ok(()) => Ok(()),
            // The shim's binary removes the container without a running shim.
            Err(_) => {
                let bundle = making.bundle.display().to_string();
                self.run(making, &["-bundle", &bundle, "delete"], None).await.map(drop)
            }
        };
        if let Some((_, bootstrap)) = self.running.take() {
            let _ = fs::remove_file(&bootstrap.socket);
        }
        cleared
    }
}
