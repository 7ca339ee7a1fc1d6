//! Calls through containerd's task service, as drivers make them that leave tasks to the daemon, on a container that the
//! daemon made of the same image.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest, MetricsRequest, StartRequest,
    WaitRequest,
};
use nix::sys::signal::Signal;
use prost_types::Any;
use serde_json::Value;
use tonic::Request;
use tonic::transport::Channel;

use super::Ground;
use super::driven::IDLE;
use super::pipes::Pipes;
use super::shim::exec_process;
use crate::fixture::World;
use crate::fixture::process::output;

/// Apart from the driver's, so that the account of what the driver left is not disturbed.
const NAMESPACE: &str = "measure";
const ID: &str = "measure";

/// Runs `ctr` in a namespace of the figures' own.
///
/// # Errors
/// Carries what `ctr` said.
pub fn ctr(world: &World, arguments: &[&str]) -> Result<String> {
    output(world.containerd().ctr_command(NAMESPACE).args(arguments))
}

/// The image that all containers are made of.
pub fn image(world: &World) -> String {
    world.image("busybox:latest")
}

/// The image in the figures' namespace. Dropped, it is removed.
pub struct Pulled(Arc<World>);

impl Pulled {
    /// # Errors
    /// Carries what `ctr` said.
    pub fn pull(world: &Arc<World>) -> Result<Self> {
        ctr(world, &["images", "pull", "--plain-http", &image(world)])?;
        Ok(Self(Arc::clone(world)))
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        let _ = ctr(&self.0, &["images", "remove", "--sync", &image(&self.0)]);
    }
}

/// A running container of the daemon's. Dropped, it is removed.
pub struct Daemon {
    world: Arc<World>,
    tasks: TasksClient<Channel>,
    process: Vec<u8>,
    directory: PathBuf,
}

impl Daemon {
    /// # Errors
    /// Carries what `ctr` or the daemon said.
    pub fn start(ground: &Ground<'_>) -> Result<Self> {
        let world = ground.world;
        let directory = world.directory().join("measure-io");
        fs::create_dir_all(&directory)?;
        let channel = ground.runtime.block_on(containerd_client::connect(world.containerd().socket()))?;
        let tasks = TasksClient::new(channel);
        ctr(world, &["run", "--detach", "--null-io", &image(world), ID, "sh", "-c", IDLE])?;
        let mut daemon = Self { world: Arc::clone(world), tasks, process: Vec::new(), directory };
        let container: Value = serde_json::from_str(&ctr(world, &["containers", "info", ID])?)?;
        daemon.process = serde_json::to_vec(&exec_process(&container["Spec"]))?;
        Ok(daemon)
    }

    /// # Errors
    /// Carries the daemon's refusal.
    pub async fn exec(&self) -> Result<()> {
        let pipes = Pipes::make(&self.directory)?;
        let exec_id = pipes.exec_id.clone();
        let spec = Any { type_url: shim_protos::any::PROCESS_URL.to_owned(), value: self.process.clone() };
        let declared = ExecProcessRequest {
            container_id: ID.to_owned(),
            exec_id: exec_id.clone(),
            stdout: pipes.stdout(),
            stderr: pipes.stderr(),
            spec: Some(spec),
            ..ExecProcessRequest::default()
        };
        self.tasks.clone().exec(request(declared)).await?;
        let wait = WaitRequest { container_id: ID.to_owned(), exec_id: exec_id.clone() };
        let start = StartRequest { container_id: ID.to_owned(), exec_id: exec_id.clone() };
        let (mut waiting, mut starting) = (self.tasks.clone(), self.tasks.clone());
        let (ended, started) = tokio::join!(waiting.wait(request(wait)), starting.start(request(start)));
        started?;
        let status = ended?.into_inner().exit_status;
        ensure!(status == 0, "true ends with {status}");
        let delete = DeleteProcessRequest { container_id: ID.to_owned(), exec_id };
        self.tasks.clone().delete_process(request(delete)).await?;
        pipes.drain().await
    }

    /// # Errors
    /// Carries the daemon's refusal.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let kill = KillRequest {
            container_id: ID.to_owned(),
            signal: u32::try_from(signal as i32)?,
            ..KillRequest::default()
        };
        Ok(self.tasks.clone().kill(request(kill)).await.map(drop)?)
    }

    /// # Errors
    /// Carries the daemon's refusal.
    pub async fn stats(&self) -> Result<()> {
        let metrics = MetricsRequest { filters: vec![format!("id=={ID}")] };
        let answer = self.tasks.clone().metrics(request(metrics)).await?.into_inner();
        let metric = answer.metrics.first().context("the daemon has no metrics of its task")?;
        ensure!(metric.data.is_some(), "empty metrics");
        Ok(())
    }

    /// # Errors
    /// Carries the daemon's refusal.
    pub async fn state(&self) -> Result<()> {
        let get = GetRequest { container_id: ID.to_owned(), ..GetRequest::default() };
        Ok(self.tasks.clone().get(request(get)).await.map(drop)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = ctr(&self.world, &["tasks", "delete", "--force", ID]);
        let _ = ctr(&self.world, &["containers", "delete", ID]);
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = tonic::metadata::MetadataValue::from_static(NAMESPACE);
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}
