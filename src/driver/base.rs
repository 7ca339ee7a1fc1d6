//! The base service of a Nomad plugin: its name, its schema and its configuration. Sole owner of the configuration;
//! others get a snapshot.
//!
//! The agent launches a plugin twice only to ask for its schema and to check its configuration, so a configuration is
//! accepted without any other access: containerd is contacted when a fingerprint or a task needs it.

use std::sync::Arc;

use nomad_proto::base as pb;
use nomad_proto::base::base_plugin_server::BasePlugin;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::config::{DriverName, PluginConfig};
use crate::driver::reply;
use crate::task::{Error, Result, Settings};

/// The version of Nomad's driver plugin API.
const PLUGIN_API_VERSION: &str = "v0.1.0";

pub(crate) struct Base {
    pub(super) name: DriverName,
    settings: watch::Sender<Option<Arc<Settings>>>,
}

impl Base {
    pub(crate) fn new(name: DriverName) -> Self {
        Self { name, settings: watch::Sender::new(None) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<Settings>>> {
        self.settings.subscribe()
    }

    /// Returns the plugin's current settings.
    ///
    /// # Errors
    /// [`Error::Conflict`] before the agent has configured the plugin.
    pub(crate) fn settings(&self) -> Result<Arc<Settings>> {
        self.settings
            .borrow()
            .clone()
            .ok_or_else(|| Error::conflict("the agent has not configured the plugin yet"))
    }
}

#[tonic::async_trait]
impl BasePlugin for Base {
    async fn plugin_info(
        &self,
        _: Request<pb::PluginInfoRequest>,
    ) -> std::result::Result<Response<pb::PluginInfoResponse>, Status> {
        Ok(Response::new(pb::PluginInfoResponse {
            r#type: pb::PluginType::Driver.into(),
            plugin_api_versions: vec![PLUGIN_API_VERSION.to_owned()],
            plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.to_string(),
        }))
    }

    async fn config_schema(
        &self,
        _: Request<pb::ConfigSchemaRequest>,
    ) -> std::result::Result<Response<pb::ConfigSchemaResponse>, Status> {
        Ok(Response::new(pb::ConfigSchemaResponse { spec: Some(PluginConfig::schema(self.name)) }))
    }

    async fn set_config(
        &self,
        request: Request<pb::SetConfigRequest>,
    ) -> std::result::Result<Response<pb::SetConfigResponse>, Status> {
        let request = request.into_inner();
        let config = PluginConfig::decode(self.name, &request.msgpack_config)
            .map_err(|error| reply::status(error.into()))?;
        if let Some(config) = config {
            let topology = request.nomad_config.and_then(|c| c.driver).and_then(|d| d.topology);
            let mhz = topology.as_ref().map_or(0.0, mhz_per_core);
            let settings = Settings::new(config, mhz).map_err(reply::status)?;
            self.settings.send_replace(Some(Arc::new(settings)));
        }
        Ok(Response::new(pb::SetConfigResponse {}))
    }
}

/// Returns the average MHz of a core as the agent counts it, including cores that it reserves from tasks.
///
/// Source of the facts: hashicorp/nomad `client/lib/numalib/topology.go`.
fn mhz_per_core(topology: &pb::ClientTopology) -> f64 {
    let speed = |core: &pb::ClientTopologyCore| {
        [core.base_speed, core.max_speed, core.guess_speed].into_iter().find(|mhz| *mhz > 0).unwrap_or(0)
    };
    let total = match topology.override_total_compute {
        0 => topology.cores.iter().map(speed).sum(),
        operators_word => operators_word,
    };
    match topology.cores.len() {
        0 => 0.0,
        cores => total as f64 / cores as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cores_speed_is_the_agents_average_or_the_operators_word() {
        let core = |max, base, guess, disable| pb::ClientTopologyCore {
            max_speed: max,
            base_speed: base,
            guess_speed: guess,
            disable,
            ..Default::default()
        };
        let mut topology = pb::ClientTopology {
            cores: vec![
                core(3000, 2000, 0, false),
                core(0, 2000, 0, false),
                core(0, 0, 1500, false),
                core(3000, 500, 0, true),
            ],
            ..Default::default()
        };
        assert_eq!(mhz_per_core(&topology), 1500.0);
        topology.override_total_compute = 4000;
        assert_eq!(mhz_per_core(&topology), 1000.0);
        assert_eq!(mhz_per_core(&pb::ClientTopology::default()), 0.0);
    }
}
