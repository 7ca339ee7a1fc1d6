//! The path `daemon`: containerd's own services, as drivers use them that leave tasks to containerd. It starts the
//! shims itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerd_client::services::v1 as pb;
use containerd_client::types::Mount;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use pb::container::Runtime;
use pb::containers_client::ContainersClient;
use pb::tasks_client::TasksClient;
use prost_types::Any;
use serde_json::Value;
use shim_protos::any;
use shim_protos::protobuf::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::call::Call;
use super::container::ServiceContainer;
use super::environment::{Environment, IMAGE};
use super::path::{Container, Path};
use super::pipes::Paths;
use super::service::{Making, Service};

pub(crate) const NAME: &str = "daemon";
const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RESOURCES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

pub(crate) struct Daemon(pub(crate) Arc<Environment>);

impl Path for Daemon {
    fn name(&self) -> &'static str {
        NAME
    }

    fn unsupported(&self, call: Call) -> Option<String> {
        let why = match call {
            Call::Bootstrap => "containerd starts the shim within its create",
            Call::Connect => "containerd keeps it for itself",
            Call::Shutdown => "containerd ends the shim within its delete",
            Call::ExecUnary => "containerd doesn't have it",
            _ => return None,
        };
        Some(why.to_owned())
    }

    fn prepare(&self) -> BoxFuture<'_, Result<Box<dyn Container>>> {
        async {
            let container = ServiceContainer::prepare(&self.0, Tasks::of(&self.0), false, false).await?;
            Ok(Box::new(container) as Box<dyn Container>)
        }
        .boxed()
    }

    fn start(&self, terminal: bool) -> BoxFuture<'_, Result<(Box<dyn Container>, Duration)>> {
        async move {
            let (container, took) = ServiceContainer::start(&self.0, Tasks::of(&self.0), terminal).await?;
            Ok((Box::new(container) as Box<dyn Container>, took))
        }
        .boxed()
    }

    fn servers(&self) -> Vec<(&'static str, i32)> {
        self.0.servers()
    }
}

#[derive(Clone)]
struct Tasks {
    environment: Arc<Environment>,
    client: TasksClient<Channel>,
}

impl Tasks {
    fn of(environment: &Arc<Environment>) -> Self {
        Self { environment: Arc::clone(environment), client: TasksClient::new(environment.channel.clone()) }
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.environment.channel.clone())
    }

    /// Returns the runtime for the container's record: the path of the setup's shim, so that containerd doesn't look
    /// for another one.
    fn runtime(&self) -> String {
        self.environment.setup.programs.shim().display().to_string()
    }

    fn options(&self) -> Result<Option<Any>> {
        let Some(options) = self.environment.setup.options(&self.environment.runtime_root()) else {
            return Ok(None);
        };
        Ok(Some(Any { type_url: any::RUNC_OPTIONS_URL.to_owned(), value: options.write_to_bytes()? }))
    }
}

/// Treats `NotFound` as success: the object is removed already.
fn unless_gone<T>(answer: std::result::Result<T, Status>) -> Result<()> {
    match answer {
        Err(status) if status.code() != Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}

fn json(type_url: &str, value: &Value) -> Result<Any> {
    Ok(Any { type_url: type_url.to_owned(), value: serde_json::to_vec(value)? })
}

impl Service for Tasks {
    async fn prepare(&mut self, making: &Making) -> Result<()> {
        let runtime = Runtime { name: self.runtime(), options: self.options()? };
        let container = pb::Container {
            id: making.id.clone(),
            image: IMAGE.to_owned(),
            runtime: Some(runtime),
            spec: Some(json(SPEC_URL, &making.spec)?),
            labels: HashMap::new(),
            ..pb::Container::default()
        };
        let create = pb::CreateContainerRequest { container: Some(container) };
        self.containers().create(self.environment.request(create)).await.context("write the record")?;
        Ok(())
    }

    async fn bootstrap(&mut self, _making: &Making) -> Result<()> {
        Ok(())
    }

    async fn create(&self, making: &Making) -> Result<i32> {
        let rootfs: Vec<Mount> = making.rootfs.clone();
        let request = pb::CreateTaskRequest {
            container_id: making.id.clone(),
            rootfs,
            terminal: making.terminal,
            stdout: making.paths.stdout.clone(),
            stderr: making.paths.stderr.clone(),
            options: self.options()?,
            ..pb::CreateTaskRequest::default()
        };
        let answer = self.client.clone().create(self.environment.request(request)).await?;
        Ok(i32::try_from(answer.into_inner().pid)?)
    }

    async fn start(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = pb::StartRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        Ok(self.client.clone().start(self.environment.request(request)).await.map(drop)?)
    }

    async fn wait(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = pb::WaitRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        Ok(self
            .client
            .clone()
            .wait(self.environment.request_without_timeout(request))
            .await?
            .into_inner()
            .exit_status)
    }

    async fn delete(&self, id: &str, exec_id: &str) -> Result<()> {
        let container_id = id.to_owned();
        if exec_id.is_empty() {
            let request = pb::DeleteTaskRequest { container_id };
            return Ok(self.client.clone().delete(self.environment.request(request)).await.map(drop)?);
        }
        let request = pb::DeleteProcessRequest { container_id, exec_id: exec_id.to_owned() };
        Ok(self.client.clone().delete_process(self.environment.request(request)).await.map(drop)?)
    }

    async fn exec(&self, id: &str, exec_id: &str, paths: &Paths, process: &Value) -> Result<()> {
        let request = pb::ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: paths.stdin.clone(),
            stdout: paths.stdout.clone(),
            stderr: paths.stderr.clone(),
            spec: Some(json(any::PROCESS_URL, process)?),
            ..pb::ExecProcessRequest::default()
        };
        Ok(self.client.clone().exec(self.environment.request(request)).await.map(drop)?)
    }

    async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<()> {
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = pb::CloseIoRequest { container_id, exec_id, stdin: true };
        Ok(self.client.clone().close_io(self.environment.request(request)).await.map(drop)?)
    }

    async fn kill(&self, id: &str, signal: u32) -> Result<()> {
        let container_id = id.to_owned();
        let request = pb::KillRequest { container_id, signal, ..pb::KillRequest::default() };
        Ok(self.client.clone().kill(self.environment.request(request)).await.map(drop)?)
    }

    async fn state(&self, id: &str) -> Result<()> {
        let request = pb::GetRequest { container_id: id.to_owned(), ..pb::GetRequest::default() };
        Ok(self.client.clone().get(self.environment.request(request)).await.map(drop)?)
    }

    async fn connect(&self, id: &str) -> Result<()> {
        self.state(id).await
    }

    async fn pids(&self, id: &str) -> Result<()> {
        let request = pb::ListPidsRequest { container_id: id.to_owned() };
        Ok(self.client.clone().list_pids(self.environment.request(request)).await.map(drop)?)
    }

    async fn stats(&self, id: &str) -> Result<()> {
        let request = pb::MetricsRequest { filters: vec![format!("id=={id}")] };
        let answer = self.client.clone().metrics(self.environment.request(request)).await?.into_inner();
        let metric = answer.metrics.first().context("no metrics of its task")?;
        ensure!(metric.data.is_some(), "empty metrics");
        Ok(())
    }

    async fn resize(&self, id: &str, width: u32, height: u32) -> Result<()> {
        let container_id = id.to_owned();
        let request = pb::ResizePtyRequest { container_id, width, height, ..pb::ResizePtyRequest::default() };
        Ok(self.client.clone().resize_pty(self.environment.request(request)).await.map(drop)?)
    }

    async fn update(&self, id: &str, resources: &Value) -> Result<()> {
        let resources = Some(json(RESOURCES_URL, resources)?);
        let request = pb::UpdateTaskRequest {
            container_id: id.to_owned(),
            resources,
            ..pb::UpdateTaskRequest::default()
        };
        Ok(self.client.clone().update(self.environment.request(request)).await.map(drop)?)
    }

    async fn shutdown(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    async fn clear(&mut self, making: &Making) -> Result<()> {
        let id = &*making.id;
        if self.kill(id, 9).await.is_ok() {
            let _ = tokio::time::timeout(super::environment::LIMIT, self.wait(id, "")).await;
        }
        let request = pb::DeleteTaskRequest { container_id: id.to_owned() };
        let task = unless_gone(self.client.clone().delete(self.environment.request(request)).await);
        let request = pb::DeleteContainerRequest { id: id.to_owned() };
        let record = unless_gone(self.containers().delete(self.environment.request(request)).await);
        task.context("delete the task").and(record.context("delete the record"))
    }
}
