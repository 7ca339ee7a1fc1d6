//! Nomad's gRPC services: each call decodes the request, makes one call to a task, and encodes the answer. No decision
//! about a task is made here, and nothing here knows the shim.
//!
//! Source of the facts: hashicorp/nomad `plugins/drivers/` (server, client, and how the client handles each answer).

mod base;
mod exec_stream;
mod fingerprint;
mod reply;
mod usage;

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nomad_proto::base::base_plugin_server::BasePluginServer;
use nomad_proto::driver as pb;
use nomad_proto::driver::driver_server::DriverServer;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::config::{DriverName, TaskOptions};
use crate::task::{Agent, Error, Result, Settings, Task, Tasks};
use base::Base;

/// Timeout of a stop whose request has no valid one; Nomad's own default.
const DEFAULT_KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum wait of a call about a task for a state directory that another plugin has: a plugin that is shutting down
/// needs as long.
const STATE_DIR_WAIT: Duration = Duration::from_secs(2);
/// Maximum wait of a recovery for a state directory that another plugin has: an agent gives up a task that is not
/// recovered, and a plugin that its agent has left gives up the directory sooner.
const RECOVERY_STATE_DIR_WAIT: Duration = Duration::from_secs(15);

type Streamed<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;
type Answer<T> = std::result::Result<Response<T>, Status>;

/// Both gRPC services of the plugin, with their shared state.
#[derive(Clone)]
pub(crate) struct Driver {
    base: Arc<Base>,
    tasks: Arc<Tasks>,
    agent: Arc<Agent>,
}

impl Driver {
    /// Creates the services of the driver of this name. Notifying `stop` shuts the plugin down in good order.
    pub(crate) fn new(name: DriverName, stop: Arc<Notify>) -> Self {
        let agent = Arc::new(Agent::new());
        let tasks = Arc::new(Tasks::new(Arc::clone(&agent), stop));
        Self { base: Arc::new(Base::new(name)), tasks, agent }
    }

    /// Returns what is known of the agent, to be updated on each of its calls.
    pub(crate) fn agent(&self) -> Arc<Agent> {
        Arc::clone(&self.agent)
    }

    /// Ends what is of no use without the plugin.
    pub(crate) async fn shut_down(&self) {
        self.tasks.end_spares().await;
    }

    pub(crate) fn base_service(&self) -> BasePluginServer<Base> {
        BasePluginServer::from_arc(Arc::clone(&self.base))
    }

    pub(crate) fn driver_service(&self) -> DriverServer<Self> {
        DriverServer::new(self.clone())
    }

    fn task(&self, id: &str) -> Result<Arc<Task>> {
        self.tasks.get(id).ok_or(Error::TaskNotFound)
    }

    /// Returns the plugin's settings once this plugin has the state directory, for a call that changes something there.
    async fn claimed(&self, limit: Duration, doing: impl Display) -> Result<Arc<Settings>> {
        let settings = self.base.settings()?;
        let claim = self.tasks.claim(&settings);
        let _waiting = self.agent.waits();
        claim.held_within(limit).await.map_err(|error| error.context(doing))?;
        Ok(settings)
    }

    /// Returns the plugin's settings for a call about a group's network, which Nomad makes where the driver has said
    /// that it makes them.
    async fn of_groups(&self, call: &str, alloc_id: &str) -> Result<Arc<Settings>> {
        if !self.base.name.is_docker() {
            return Err(no_networks(call));
        }
        self.claimed(STATE_DIR_WAIT, format!("{call} of allocation {alloc_id}")).await
    }
}

#[tonic::async_trait]
impl pb::driver_server::Driver for Driver {
    type FingerprintStream = Streamed<pb::FingerprintResponse>;
    type TaskStatsStream = Streamed<pb::TaskStatsResponse>;
    type TaskEventsStream = Streamed<pb::DriverTaskEvent>;
    type ExecTaskStreamingStream = Streamed<pb::ExecTaskStreamingResponse>;

    async fn init(&self, _: Request<pb::InitRequest>) -> Answer<pb::InitResponse> {
        Ok(Response::new(pb::InitResponse {}))
    }

    async fn shutdown(&self, _: Request<pb::ShutdownRequest>) -> Answer<pb::ShutdownResponse> {
        // Tasks outlive the plugin, so there is nothing to shut down.
        Ok(Response::new(pb::ShutdownResponse {}))
    }

    async fn task_config_schema(
        &self,
        _: Request<pb::TaskConfigSchemaRequest>,
    ) -> Answer<pb::TaskConfigSchemaResponse> {
        Ok(Response::new(pb::TaskConfigSchemaResponse { spec: Some(TaskOptions::schema()) }))
    }

    async fn capabilities(&self, _: Request<pb::CapabilitiesRequest>) -> Answer<pb::CapabilitiesResponse> {
        // The agent calls this on launches that it has not configured, too.
        let settings = self.base.settings();
        let without_nomad = settings.is_ok_and(|settings| settings.config.log_collection.excludes_nomad());
        let capabilities = reply::capabilities(without_nomad, self.base.name);
        Ok(Response::new(pb::CapabilitiesResponse { capabilities: Some(capabilities) }))
    }

    async fn fingerprint(&self, _: Request<pb::FingerprintRequest>) -> Answer<Self::FingerprintStream> {
        let settings = self.base.subscribe();
        self.tasks.sweep_for(settings.clone());
        let (tasks, listening) = (Arc::clone(&self.tasks), self.agent.listens());
        let stream = fingerprint::stream(self.base.name, settings, tasks).map(move |fingerprint| {
            let _ = &listening;
            Ok(fingerprint)
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn start_task(&self, request: Request<pb::StartTaskRequest>) -> Answer<pb::StartTaskResponse> {
        let config = request.into_inner().task.ok_or_else(|| reply::missing("task"))?;
        let claimed = self.claimed(STATE_DIR_WAIT, format!("start task {}", config.id)).await;
        let settings = claimed.map_err(reply::start_status)?;
        let started = self.tasks.start(settings, config.clone()).await.map_err(reply::start_status)?;
        Ok(Response::new(reply::started(config, started)))
    }

    async fn recover_task(
        &self,
        request: Request<pb::RecoverTaskRequest>,
    ) -> Answer<pb::RecoverTaskResponse> {
        let handle = request.into_inner().handle.ok_or_else(|| reply::missing("handle"))?;
        let config = handle.config.ok_or_else(|| reply::missing("handle.config"))?;
        self.agent.recovers();
        let claimed = self.claimed(RECOVERY_STATE_DIR_WAIT, format!("recover task {}", config.id)).await;
        let settings = claimed.map_err(reply::status)?;
        let recovered = self.tasks.recover(settings, &config, &handle.driver_state).await;
        self.agent.recovers();
        recovered.map_err(reply::status)?;
        Ok(Response::new(pb::RecoverTaskResponse {}))
    }

    async fn wait_task(&self, request: Request<pb::WaitTaskRequest>) -> Answer<pb::WaitTaskResponse> {
        let task = self.task(&request.into_inner().task_id).map_err(reply::status)?;
        let exit = task.wait().await.map_err(reply::status)?;
        Ok(Response::new(reply::waited(&exit)))
    }

    async fn stop_task(&self, request: Request<pb::StopTaskRequest>) -> Answer<pb::StopTaskResponse> {
        let request = request.into_inner();
        let timeout =
            request.timeout.and_then(|t| Duration::try_from(t).ok()).unwrap_or(DEFAULT_KILL_TIMEOUT);
        // A task that isn't here has stopped, unless another plugin has it.
        self.claimed(STATE_DIR_WAIT, format!("stop task {}", request.task_id))
            .await
            .map_err(reply::status)?;
        self.tasks.stop(&request.task_id, &request.signal, timeout).await.map_err(reply::status)?;
        Ok(Response::new(pb::StopTaskResponse {}))
    }

    async fn destroy_task(
        &self,
        request: Request<pb::DestroyTaskRequest>,
    ) -> Answer<pb::DestroyTaskResponse> {
        let request = request.into_inner();
        let claimed = self.claimed(STATE_DIR_WAIT, format!("destroy task {}", request.task_id)).await;
        let settings = claimed.map_err(reply::status)?;
        self.tasks.destroy(settings, &request.task_id, request.force).await.map_err(reply::status)?;
        Ok(Response::new(pb::DestroyTaskResponse {}))
    }

    async fn inspect_task(
        &self,
        request: Request<pb::InspectTaskRequest>,
    ) -> Answer<pb::InspectTaskResponse> {
        let task = self.task(&request.into_inner().task_id).map_err(reply::status)?;
        Ok(Response::new(reply::inspected(&task)))
    }

    async fn task_stats(&self, request: Request<pb::TaskStatsRequest>) -> Answer<Self::TaskStatsStream> {
        let request = request.into_inner();
        let task = self.task(&request.task_id).map_err(reply::status)?;
        let requested = request.collection_interval.and_then(|i| Duration::try_from(i).ok());
        let mhz_per_core = self.base.settings().map_err(reply::status)?.mhz_per_core;
        let readings = task.stats(requested);
        let stats = readings.map(move |reading| Ok(reply::stats(&request.task_id, &reading, mhz_per_core)));
        Ok(Response::new(Box::pin(stats)))
    }

    async fn task_events(&self, _: Request<pb::TaskEventsRequest>) -> Answer<Self::TaskEventsStream> {
        // The stream never ends by itself, since it would be reopened at once.
        let events = self.tasks.events().map(|event| Ok(reply::event(event)));
        Ok(Response::new(Box::pin(events)))
    }

    async fn signal_task(&self, request: Request<pb::SignalTaskRequest>) -> Answer<pb::SignalTaskResponse> {
        let request = request.into_inner();
        let task = self.task(&request.task_id).map_err(reply::status)?;
        task.signal(&request.signal).await.map_err(reply::status)?;
        Ok(Response::new(pb::SignalTaskResponse {}))
    }

    async fn exec_task(&self, request: Request<pb::ExecTaskRequest>) -> Answer<pb::ExecTaskResponse> {
        let request = request.into_inner();
        let task = self.task(&request.task_id).map_err(reply::status)?;
        let timeout = request.timeout.and_then(|t| Duration::try_from(t).ok()).filter(|t| !t.is_zero());
        let output = task.exec_output(&request.command, timeout).await.map_err(reply::status)?;
        Ok(Response::new(reply::exec_output(output)))
    }

    async fn exec_task_streaming(
        &self,
        request: Request<Streaming<pb::ExecTaskStreamingRequest>>,
    ) -> Answer<Self::ExecTaskStreamingStream> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.setup);
        let setup = first.ok_or_else(|| reply::missing("setup in the first message"))?;
        let task = self.task(&setup.task_id).map_err(reply::status)?;
        Ok(Response::new(Box::pin(exec_stream::run(task, setup, input))))
    }

    async fn create_network(
        &self,
        request: Request<pb::CreateNetworkRequest>,
    ) -> Answer<pb::CreateNetworkResponse> {
        let pb::CreateNetworkRequest { alloc_id, hostname } = request.into_inner();
        let settings = self.of_groups("CreateNetwork", &alloc_id).await.map_err(reply::status)?;
        let made = self.tasks.create_group_network(&settings, &alloc_id, &hostname).await;
        let made =
            made.map_err(|error| error.context(format_args!("create the network of allocation {alloc_id}")));
        Ok(Response::new(reply::group_network(made.map_err(reply::status)?, &alloc_id, hostname)))
    }

    async fn destroy_network(
        &self,
        request: Request<pb::DestroyNetworkRequest>,
    ) -> Answer<pb::DestroyNetworkResponse> {
        // Its specification is the agent's memory of it, and not needed: the place follows from the allocation's id.
        let pb::DestroyNetworkRequest { alloc_id, isolation_spec: _ } = request.into_inner();
        let settings = self.of_groups("DestroyNetwork", &alloc_id).await.map_err(reply::status)?;
        let gone = self.tasks.destroy_group_network(&settings, &alloc_id).await;
        gone.map_err(|error| error.context(format_args!("remove the network of allocation {alloc_id}")))
            .map_err(reply::status)?;
        Ok(Response::new(pb::DestroyNetworkResponse {}))
    }
}

fn no_networks(call: &str) -> Error {
    Error::unsupported(format!(
        "{call} is not supported: the driver does not set must_create_network, so Nomad makes group networks itself"
    ))
}
