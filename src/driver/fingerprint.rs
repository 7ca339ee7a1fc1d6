//! The driver's fingerprint: health and attributes that tell the node whether tasks can be started, and why not.
//! Follows containerd's health, down and back, for as long as the agent listens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nomad_proto::driver::FingerprintResponse;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::{Attribute, attribute::Value};
use tokio::sync::watch;
use tokio_stream::Stream;

use crate::cgroup;
use crate::config::{DriverName, PluginConfig};
use crate::shorten::shorten;
use crate::sys::error_chain::Chained;
use crate::sys::open_files::OpenFiles;
use crate::task::{Settings, Tasks, kept_spares};

/// Interval of health checks.
const PROBE: Duration = Duration::from_secs(2);
/// Maximum wait for the lock on a state directory that no other plugin has.
const LOCK: Duration = Duration::from_secs(2);
/// Interval at which an unchanged fingerprint is repeated.
const REPEAT: Duration = Duration::from_secs(30);

/// The dockerd whose behaviour the driver has under docker's name.
const DOCKERD_VERSION: &str = "28.5.2";

type Configured = watch::Receiver<Option<Arc<Settings>>>;

/// Returns the stream of fingerprints: the first at once, then on each change and at intervals. It never ends by
/// itself, since the agent would open it again at once.
pub(super) fn stream(
    name: DriverName,
    settings: Configured,
    tasks: Arc<Tasks>,
) -> impl Stream<Item = FingerprintResponse> {
    let nothing_sent: Option<(FingerprintResponse, Instant)> = None;
    let state = (settings, tasks, nothing_sent);
    futures::stream::unfold(state, move |(mut settings, tasks, mut sent)| async move {
        loop {
            let current = settings.borrow_and_update().clone();
            if sent.is_some() {
                tokio::select! {
                    () = tokio::time::sleep(PROBE) => {}
                    Ok(()) = settings.changed() => {}
                    () = claim_changes(current.as_deref(), &tasks) => {}
                }
            }
            let current = settings.borrow_and_update().clone();
            let mut found = look(current.as_deref(), &tasks).await.response(name);
            // Nomad clears an attribute that it knows, and sets one to nothing that it doesn't.
            let was_sent =
                |key: &String| sent.as_ref().is_some_and(|(last, _)| last.attributes.contains_key(key));
            found.attributes.retain(|key, value| *value != cleared() || was_sent(key));
            let old = sent.as_ref().is_some_and(|(last, at)| *last == found && at.elapsed() < REPEAT);
            if old {
                continue;
            }
            if sent.as_ref().is_none_or(|(last, _)| last.health != found.health) {
                tracing::info!(health = ?found.health(), "{}", found.health_description);
            }
            sent = Some((found.clone(), Instant::now()));
            return Some((found, (settings, tasks, sent)));
        }
    })
}

/// Waits for a change of the claim to the state directory; forever if the driver makes none.
async fn claim_changes(settings: Option<&Settings>, tasks: &Tasks) {
    match settings.filter(|settings| settings.config.enabled) {
        Some(settings) => tasks.claim(settings).changes().await,
        None => std::future::pending().await,
    }
}

async fn look(settings: Option<&Settings>, tasks: &Tasks) -> Found {
    let answer =
        |health, description: &str, facts| Found { health, description: description.to_owned(), facts };
    let Some(settings) = settings else {
        return answer(HealthState::Undetected, "not configured yet", Facts::default());
    };
    if !settings.config.enabled {
        let why = "disabled by the plugin option enabled = false";
        return answer(HealthState::Undetected, why, Facts::default());
    }
    let mut facts = Facts::of(&settings.config);
    facts.bridge_network = settings.cni.is_ready().await;
    facts.apparmor_profile = settings.apparmor_profile().await;
    if settings.config.name.is_docker() {
        facts.runtimes = settings.runtimes().await.join(",");
    }
    if let Err(error) = tasks.claim(settings).held_within(LOCK).await {
        return answer(HealthState::Unhealthy, &error.chain().to_string(), facts);
    }
    match settings.shim().await {
        Ok(path) => facts.shim = path.display().to_string(),
        Err(error) => return answer(HealthState::Unhealthy, &error.chain().to_string(), facts),
    }
    match settings.oci_runtime().await {
        Ok(program) => facts.oci_runtime = program,
        Err(error) => return answer(HealthState::Unhealthy, &error.chain().to_string(), facts),
    }
    match settings.containerd.version().await {
        Ok(version) => facts.containerd = version,
        Err(error) => return answer(HealthState::Unhealthy, &error.chain().to_string(), facts),
    }
    if let Err(error) = settings.containerd.check_snapshotter().await {
        return answer(HealthState::Unhealthy, &error.chain().to_string(), facts);
    }
    answer(HealthState::Healthy, "Healthy", facts)
}

/// What a look at the node has found.
struct Found {
    health: HealthState,
    description: String,
    facts: Facts,
}

/// Values of the attributes; an empty one clears an attribute that was set before.
#[derive(Default)]
struct Facts {
    runtime: String,
    shim: String,
    oci_runtime: String,
    containerd: String,
    bridge_network: bool,
    /// The profile of tasks whose jobs name none.
    apparmor_profile: Option<&'static str>,
    bridge_ip: String,
    is_privileged_allowed: bool,
    has_volumes: bool,
    pids_limit: Option<i64>,
    spare_shims: usize,
    runtimes: String,
}

impl Facts {
    fn of(config: &PluginConfig) -> Self {
        let bridge = config.networks.bridge.addresses();
        Self {
            runtime: config.containerd_runtime.clone(),
            bridge_ip: bridge.first().map(ToString::to_string).unwrap_or_default(),
            is_privileged_allowed: config.security_policy.allow_privileged,
            has_volumes: config.volumes.enabled,
            pids_limit: config.limits.pids_limit,
            spare_shims: kept_spares(config),
            ..Self::default()
        }
    }

    /// Returns the attributes that the driver has under each of its names.
    fn common(&self) -> Vec<(&'static str, Option<Value>)> {
        let text = |text: &str| Some(Value::StringVal(text.to_owned()));
        vec![
            ("containerd_version", text(&self.containerd)),
            ("containerd_runtime", text(&self.runtime)),
            ("shim", text(&self.shim)),
            ("oci_runtime", text(&self.oci_runtime)),
            ("cgroup_version", text(cgroup_version())),
            ("open_files", text(&OpenFiles::now().soft.to_string())),
            ("bridge_network", is_set(self.bridge_network)),
            ("apparmor_profile", self.apparmor_profile.and_then(text)),
            ("spare_shims", text(&self.spare_shims.to_string())),
        ]
    }

    /// Returns the attributes of Nomad's docker driver. Its version is that of dockerd, which jobs' constraints are
    /// about.
    ///
    /// Source of the facts: hashicorp/nomad `drivers/docker/fingerprint.go`.
    fn dockers(&self) -> Vec<(&'static str, Option<Value>)> {
        let text = |text: &str| Some(Value::StringVal(text.to_owned()));
        vec![
            ("version", text(DOCKERD_VERSION)),
            ("driver_version", text(env!("CARGO_PKG_VERSION"))),
            ("privileged.enabled", is_set(self.is_privileged_allowed)),
            ("volumes.enabled", is_set(self.has_volumes)),
            ("pids.limit", self.pids_limit.map(Value::IntVal)),
            // A job that asks for the bridge by it would fail here without one.
            ("bridge_ip", text(&self.bridge_ip).filter(|_| self.bridge_network)),
            ("runtimes", text(&self.runtimes)),
            ("os_type", text("linux")),
        ]
    }
}

/// Returns the attribute that removes one of its name from the node.
fn cleared() -> Attribute {
    Attribute { value: Some(Value::StringVal(String::new())), unit: String::new() }
}

fn is_set(it: bool) -> Option<Value> {
    it.then_some(Value::BoolVal(true))
}

impl Found {
    fn response(self, name: DriverName) -> FingerprintResponse {
        let Self { health, description, facts } = self;
        let own = match name {
            DriverName::Docker => facts.dockers(),
            DriverName::ContainerdDriver => {
                vec![("version", Some(Value::StringVal(env!("CARGO_PKG_VERSION").to_owned())))]
            }
        };
        let is_detected = health != HealthState::Undetected;
        let attribute = |value: Option<Value>| match value.filter(|_| is_detected) {
            Some(value) => Attribute { value: Some(value), unit: String::new() },
            None => cleared(),
        };
        let all = facts.common().into_iter().chain(own);
        let mut attributes: HashMap<_, _> =
            all.map(|(key, value)| (format!("driver.{name}.{key}"), attribute(value))).collect();
        attributes.insert(format!("driver.{name}"), attribute(is_set(true)));
        FingerprintResponse {
            attributes,
            health: health.into(),
            health_description: shorten(description),
            err: String::new(),
        }
    }
}

fn cgroup_version() -> &'static str {
    match cgroup::mode() {
        cgroup::Mode::V1 => "v1",
        cgroup::Mode::V2 => "v2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridges_address_is_told_where_the_built_in_network_is_ready() {
        let of = |bridge_network| {
            let facts = Facts { bridge_network, bridge_ip: "172.26.96.1".to_owned(), ..Facts::default() };
            facts.dockers().into_iter().find(|(name, _)| *name == "bridge_ip").and_then(|(_, value)| value)
        };
        assert_eq!(of(true), Some(Value::StringVal("172.26.96.1".to_owned())));
        assert_eq!(of(false), None);
    }
}
