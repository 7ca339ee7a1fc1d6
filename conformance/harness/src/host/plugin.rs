//! A running plugin with the client's connection to it, and a method for each of its calls.
//!
//! Source of the facts: hashicorp/nomad `plugins/base`, `plugins/drivers/client.go`, hashicorp/go-plugin `grpc_client.go`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use nomad_proto::base as base_pb;
use nomad_proto::base::base_plugin_client::BasePluginClient;
use nomad_proto::driver as pb;
use nomad_proto::driver::driver_client::DriverClient;
use nomad_proto::go_plugin::Empty;
use nomad_proto::go_plugin::grpc_broker_client::GrpcBrokerClient;
use nomad_proto::go_plugin::grpc_controller_client::GrpcControllerClient;
use nomad_proto::go_plugin::grpc_stdio_client::GrpcStdioClient;
use nomad_proto::hclspec::Spec;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::hcl;
use super::launch::{END_LIMIT, Launch, Process};
use super::stderr::Lines;

pub(crate) type Answer<T> = std::result::Result<T, Status>;

/// Maximum size of a message that the host accepts.
const MESSAGE_LIMIT_BYTES: usize = i32::MAX as usize;
/// HTTP/2 window of a stream: the amount of data that the host accepts before it is read.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024 - 1;
/// Number and speed of the cores that the client reports.
pub(crate) const CORES: u32 = 2;
pub const CORE_MHZ: u64 = 2000;

pub struct Plugin {
    process: Process,
    socket: PathBuf,
    channel: Channel,
    held: Vec<JoinHandle<()>>,
    /// Descriptions of streams that ended although the agent keeps them open.
    ended_early: Arc<Mutex<Vec<String>>>,
}

impl Plugin {
    /// Starts the plugin and connects to it as go-plugin does: handshake, health, broker and stdio.
    ///
    /// # Errors
    /// Names the step that failed.
    pub async fn launch(launch: &Launch) -> Result<Self> {
        let mut process = launch.spawn()?;
        let socket = process.handshake().await?;
        let channel = dial(&socket).await?;
        let request = HealthCheckRequest { service: "plugin".to_owned() };
        let health =
            HealthClient::new(channel.clone()).check(request).await.context("ask for the plugin's health")?;
        let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
        ensure!(
            health.get_ref().status() == serving,
            "the plugin's health is {:?}",
            health.get_ref().status()
        );
        let held = vec![hold_broker(channel.clone()), hold_stdio(channel.clone())];
        Ok(Self { process, socket, channel, held, ended_early: Arc::default() })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn log(&self) -> Lines {
        self.process.stderr.clone()
    }

    /// Connects again, as an agent does that finds the plugin of its predecessor.
    ///
    /// # Errors
    /// Fails if nobody listens.
    pub async fn redial(&mut self) -> Result<()> {
        self.hang_up();
        self.channel = dial(&self.socket).await?;
        Ok(())
    }

    /// Closes the connection as the agent's death does, once no call is under way: nothing can be asked until
    /// [`Self::redial`].
    pub fn hang_up(&mut self) {
        self.held.drain(..).for_each(|held| held.abort());
        self.channel = Endpoint::from_static("http://nobody").connect_lazy();
    }

    /// Makes the calls that an agent makes after SetConfig: Init, and the two streams that stay open for good.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn listen(&mut self) -> Result<()> {
        match self.driver().init(pb::InitRequest {}).await {
            Err(status) if status.code() != Code::Unimplemented => return Err(status).context("Init"),
            _ => {}
        }
        let fingerprints = self.fingerprints().await.context("Fingerprint")?;
        self.hold("Fingerprint", async { Ok(fingerprints) });
        // The answer isn't awaited: a plugin in Go sends it only with the first event.
        let mut driver = self.driver();
        self.hold("TaskEvents", async move {
            driver.task_events(pb::TaskEventsRequest {}).await.map(tonic::Response::into_inner)
        });
        Ok(())
    }

    fn hold<T: Send + 'static>(
        &mut self,
        name: &'static str,
        opening: impl Future<Output = Answer<Streaming<T>>> + Send + 'static,
    ) {
        let ended_early = Arc::clone(&self.ended_early);
        self.held.push(tokio::spawn(async move {
            let read = async {
                let mut stream = opening.await?;
                while stream.message().await?.is_some() {}
                Ok::<(), Status>(())
            };
            let end = match read.await {
                Ok(()) => format!("{name} ended"),
                Err(status) => format!("{name}: {status}"),
            };
            ended_early.lock().unwrap_or_else(PoisonError::into_inner).push(end);
        }));
    }

    /// Returns a client of the base service, for calls that have no method here.
    pub fn base(&self) -> BasePluginClient<Channel> {
        BasePluginClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }

    /// Returns a client of the driver service, for calls that have no method here.
    pub fn driver(&self) -> DriverClient<Channel> {
        DriverClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }

    /// Shuts the plugin down as the agent does: the request, two seconds, SIGKILL. Fails unless the plugin exits by
    /// itself and no child holds its pipes.
    ///
    /// # Errors
    /// Says what didn't end.
    pub async fn shut_down(&mut self) -> Result<()> {
        let ended = self.ended_early.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(ended.is_empty(), "streams that are to stay open: {}", ended.join(", "));
        // The answer may be lost with the connection: the host ignores it.
        let _ = GrpcControllerClient::new(self.channel.clone()).shutdown(Empty {}).await;
        let status = self.process.end_within(END_LIMIT).await?;
        ensure!(status.success(), "the plugin ended with {status}");
        ensure!(!self.socket.exists(), "the plugin left its socket {}", self.socket.display());
        Ok(())
    }

    /// Kills the plugin, and removes its socket.
    ///
    /// # Errors
    /// Says what didn't end.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await?;
        // The killed plugin can't remove its socket any more.
        let _ = std::fs::remove_file(&self.socket);
        if let Some(directory) = self.socket.parent() {
            let _ = std::fs::remove_dir(directory);
        }
        Ok(())
    }

    pub async fn info(&self) -> Answer<base_pb::PluginInfoResponse> {
        self.base().plugin_info(base_pb::PluginInfoRequest {}).await.map(tonic::Response::into_inner)
    }

    /// # Errors
    /// Fails if the plugin has none, which is fatal to an agent.
    pub async fn config_schema(&self) -> Result<Spec> {
        let answer = self.base().config_schema(base_pb::ConfigSchemaRequest {}).await?;
        answer.into_inner().spec.context("ConfigSchema without a spec")
    }

    /// # Errors
    /// Fails if the plugin has none, which fails every allocation.
    pub async fn task_schema(&self) -> Result<Spec> {
        let answer = self.driver().task_config_schema(pb::TaskConfigSchemaRequest {}).await?;
        answer.into_inner().spec.context("TaskConfigSchema without a spec")
    }

    /// Calls SetConfig as the agent does when it starts, with the options encoded by the plugin's own schema.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn configure(&self, options: &Value) -> Result<()> {
        let msgpack =
            hcl::encode(&self.config_schema().await?, options).context("encode the plugin's options")?;
        self.set_config(msgpack, Some(agent_config())).await.context("SetConfig")
    }

    /// # Errors
    /// Returns the plugin's error.
    pub async fn set_config(
        &self,
        msgpack_config: Vec<u8>,
        agent: Option<base_pb::NomadConfig>,
    ) -> Answer<()> {
        let plugin_api_version = "v0.1.0".to_owned();
        let request = base_pb::SetConfigRequest { msgpack_config, nomad_config: agent, plugin_api_version };
        self.base().set_config(request).await.map(drop)
    }

    pub async fn capabilities(&self) -> Result<pb::DriverCapabilities> {
        let answer = self.driver().capabilities(pb::CapabilitiesRequest {}).await?;
        answer.into_inner().capabilities.context("Capabilities without capabilities")
    }

    pub async fn fingerprints(&self) -> Answer<Streaming<pb::FingerprintResponse>> {
        self.driver().fingerprint(pb::FingerprintRequest {}).await.map(tonic::Response::into_inner)
    }

    pub async fn events(&self) -> Answer<Streaming<pb::DriverTaskEvent>> {
        self.driver().task_events(pb::TaskEventsRequest {}).await.map(tonic::Response::into_inner)
    }

    pub async fn stats(&self, task_id: &str, every: Duration) -> Answer<Streaming<pb::TaskStatsResponse>> {
        let collection_interval = every.try_into().ok();
        let request = pb::TaskStatsRequest { task_id: task_id.to_owned(), collection_interval };
        self.driver().task_stats(request).await.map(tonic::Response::into_inner)
    }

    pub async fn start_task(&self, config: pb::TaskConfig) -> Answer<pb::StartTaskResponse> {
        let request = pb::StartTaskRequest { task: Some(config) };
        self.driver().start_task(request).await.map(tonic::Response::into_inner)
    }

    pub async fn recover_task(&self, handle: pb::TaskHandle) -> Answer<()> {
        let task_id = handle.config.as_ref().map(|config| config.id.clone()).unwrap_or_default();
        let request = pb::RecoverTaskRequest { task_id, handle: Some(handle) };
        self.driver().recover_task(request).await.map(drop)
    }

    pub async fn wait_task(&self, task_id: &str) -> Answer<pb::WaitTaskResponse> {
        let request = pb::WaitTaskRequest { task_id: task_id.to_owned() };
        self.driver().wait_task(request).await.map(tonic::Response::into_inner)
    }

    pub async fn stop_task(&self, task_id: &str, timeout: Duration, signal: &str) -> Answer<()> {
        let (task_id, signal) = (task_id.to_owned(), signal.to_owned());
        let request = pb::StopTaskRequest { task_id, timeout: timeout.try_into().ok(), signal };
        self.driver().stop_task(request).await.map(drop)
    }

    pub async fn destroy_task(&self, task_id: &str, force: bool) -> Answer<()> {
        let request = pb::DestroyTaskRequest { task_id: task_id.to_owned(), force };
        self.driver().destroy_task(request).await.map(drop)
    }

    pub async fn inspect_task(&self, task_id: &str) -> Answer<pb::InspectTaskResponse> {
        let request = pb::InspectTaskRequest { task_id: task_id.to_owned() };
        self.driver().inspect_task(request).await.map(tonic::Response::into_inner)
    }

    pub async fn signal_task(&self, task_id: &str, signal: &str) -> Answer<()> {
        let request = pb::SignalTaskRequest { task_id: task_id.to_owned(), signal: signal.to_owned() };
        self.driver().signal_task(request).await.map(drop)
    }

    pub async fn exec_task(
        &self,
        task_id: &str,
        command: &[&str],
        limit: Duration,
    ) -> Answer<pb::ExecTaskResponse> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let request =
            pb::ExecTaskRequest { task_id: task_id.to_owned(), command, timeout: limit.try_into().ok() };
        self.driver().exec_task(request).await.map(tonic::Response::into_inner)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for held in &self.held {
            held.abort();
        }
    }
}

/// Returns the part of the agent's configuration that is passed to plugins beside their own block.
pub fn agent_config() -> base_pb::NomadConfig {
    let core = |core_id| base_pb::ClientTopologyCore {
        core_id,
        base_speed: CORE_MHZ,
        ..base_pb::ClientTopologyCore::default()
    };
    let topology = base_pb::ClientTopology {
        node_ids: vec![0],
        cores: (0..CORES).map(core).collect(),
        ..base_pb::ClientTopology::default()
    };
    let driver = base_pb::NomadDriverConfig {
        client_min_port: 14000,
        client_max_port: 14512,
        topology: Some(topology),
    };
    base_pb::NomadConfig { driver: Some(driver) }
}

async fn dial(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // Flow control like the agent's: a stream that isn't read stops after that much, and never stops the others.
    let endpoint = Endpoint::from_static("http://plugin")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(i32::MAX.cast_unsigned());
    endpoint.connect_with_connector(connect).await.with_context(|| format!("dial {}", socket.display()))
}

/// Opens the broker's stream. go-plugin opens it and that of stdio when it connects, and ignores the errors of both.
fn hold_broker(channel: Channel) -> JoinHandle<()> {
    tokio::spawn(async move {
        let opened = GrpcBrokerClient::new(channel).start_stream(tokio_stream::pending()).await;
        if let Ok(answer) = opened {
            let mut stream = answer.into_inner();
            while let Ok(Some(_)) = stream.message().await {}
        }
    })
}

fn hold_stdio(channel: Channel) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Ok(answer) = GrpcStdioClient::new(channel).stream_stdio(()).await {
            let mut stream = answer.into_inner();
            while let Ok(Some(_)) = stream.message().await {}
        }
    })
}
