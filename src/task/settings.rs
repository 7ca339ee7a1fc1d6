//! The plugin's configuration, and the clients that are built from it once. Knows no single task.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::auto_runtime::{self, Choice};
use super::container::ContainerHandles;
use super::error::{Error, Result};
use super::runtime;
use super::start::limit::StartLimiter;
use super::start::plan::StartPlan;
use crate::cni::{Cni, DefaultNetwork};
use crate::config::{
    AUTO_RUNTIME, Auth, Bridge, DriverName, Inline, Platform, PluginConfig, Pulls, TaskOptions,
};
use crate::containerd::{Containerd, ImageSettings, PullSettings};
use crate::image::platform::Target;
use crate::registry::{CredentialStore, Credentials};
use crate::security;
use crate::shim::{self, Family, FileId};
use crate::sys::host_files;

/// The plugin's configuration, and the clients that are built from it.
pub(crate) struct Settings {
    pub config: PluginConfig,
    pub containerd: Containerd,
    pub cni: Arc<Cni>,
    pub(super) events: shim::EventSocket,
    pub(super) start_inputs: shim::StartInputs,
    /// Average speed of a CPU core in MHz, as the agent counts it.
    pub mhz_per_core: f64,
    pub(super) starts: StartLimiter,
}

impl Settings {
    /// Builds the settings without any connection or I/O.
    ///
    /// # Errors
    /// Names an option that a shim can't have.
    pub(crate) fn new(config: PluginConfig, mhz_per_core: f64) -> Result<Self> {
        runtime::check_options(&config)?;
        runtime::warn_of_unknown_shim(&config);
        warn_of_options_without_effect(&config);
        let socket = config.containerd_socket.clone();
        let images = ImageSettings {
            credential_store: credential_store(&config.auth),
            hosts: config.registry_config_dir.clone(),
            pulls: pull_settings(&config.pulls),
            owner: config.state_dir.display().to_string(),
        };
        let containerd =
            Containerd::new(socket, config.name.containerd_namespace(), &config.snapshotter, images);
        let networks = &config.networks;
        let cni = Cni::new(
            networks.cni_path.clone(),
            networks.cni_config_dir.clone(),
            default_network(config.name, &networks.bridge, &config.state_dir),
            networks.cni_timeout,
        );
        let cni = Arc::new(cni);
        let starts = StartLimiter::new(config.start_limit.max_concurrent_starts());
        let events = shim::EventSocket::of(&config.state_dir);
        let start_inputs = shim::StartInputs::default();
        Ok(Self { config, containerd, cni, events, start_inputs, mhz_per_core, starts })
    }

    /// Returns the namespace in containerd of everything that this driver makes.
    pub(super) fn namespace(&self) -> &'static str {
        self.config.name.containerd_namespace()
    }

    /// Returns the path of the configured runtime's shim binary.
    ///
    /// # Errors
    /// Names the file that was looked for, and where.
    pub(crate) async fn shim(&self) -> Result<PathBuf> {
        find_programs(self.config.containerd_runtime.clone(), None).await
    }

    /// Returns the AppArmor profile of tasks whose jobs name none. `None` where it is none that the driver sets.
    pub(crate) async fn apparmor_profile(&self) -> Option<&'static str> {
        let family = runtime::family_of(&self.config, &self.config.containerd_runtime);
        security::default_apparmor_profile(&self.config.security_policy, family.shares_kernel()).await
    }

    /// Returns the program by which the configured runtime's shim runs a task whose job names none. Empty if the shim
    /// chooses, and it is not known to choose runc.
    ///
    /// # Errors
    /// If the choice is the driver's, and no program can be used.
    pub(crate) async fn oci_runtime(&self) -> Result<String> {
        let config = &self.config;
        match config.oci_runtime.as_deref() {
            Some(AUTO_RUNTIME) => Ok(auto_runtime::choose().await?.program.to_owned()),
            Some(program) => Ok(program.to_owned()),
            None if runtime::family_of(config, &config.containerd_runtime) == Family::Runc => {
                Ok(shim::RUNC.to_owned())
            }
            None => Ok(String::new()),
        }
    }

    /// Returns the program that the shim of a task runs, with the choice made that `auto` leaves to the driver, and the
    /// crun that was chosen. `None` for the program leaves it to the shim.
    ///
    /// # Errors
    /// If no program can be chosen, or there is no choice for a shim of this family.
    pub(super) async fn program(
        &self,
        options: &TaskOptions,
        family: Family,
    ) -> Result<(Option<String>, Option<FileId>)> {
        match options.runtime.program(&self.config) {
            Some(AUTO_RUNTIME) if family == Family::Runc => {
                let Choice { program, crun } = auto_runtime::choose().await?;
                Ok((Some(program.to_owned()), crun))
            }
            Some(AUTO_RUNTIME) => Err(runtime::no_choice(options.runtime.shim(&self.config))),
            program => Ok((program.map(str::to_owned), None)),
        }
    }

    /// Returns the runtimes that a task may have, and that are there, sorted.
    pub(crate) async fn runtimes(&self) -> Vec<String> {
        let mut there = Vec::new();
        for name in self.config.runtimes() {
            let is_shim = name.contains(['.', '/']);
            let (shim, program) = if is_shim {
                (name, None)
            } else {
                (&*self.config.containerd_runtime, Some(name.to_owned()))
            };
            if find_programs(shim.to_owned(), program).await.is_ok() {
                there.push(name.to_owned());
            }
        }
        there
    }

    /// Resolves the handles to the container of a task that starts, with the shim, OCI runtime and snapshotter that its
    /// job and the operator choose.
    ///
    /// # Errors
    /// When the shim of the task's runtime is missing, or the OCI runtime that the shim is to run.
    pub(super) async fn container_for(
        &self,
        container_id: &str,
        plan: &StartPlan,
        containerd: &Containerd,
    ) -> Result<ContainerHandles> {
        let runtime = &plan.options.runtime;
        let program = plan.runtime.program.clone();
        let shim = find_programs(runtime.shim(&self.config).to_owned(), program).await?;
        let mut container = ContainerHandles::of(self, container_id, shim);
        container.launcher.family = plan.runtime.family;
        container.containerd = containerd.with_snapshotter(runtime.snapshotter(&self.config));
        let Platform { arch, variant } = &plan.options.pull.platform;
        if arch.is_some() || variant.is_some() {
            let platform = Target::new(arch.as_deref(), variant.as_deref());
            container.containerd = container.containerd.with_platform(platform);
        }
        Ok(container)
    }
}

/// Finds a runtime's shim, and checks that the OCI runtime which it is to run exists. The lookup has a time limit,
/// since a directory of PATH may be on a slow file system.
pub(super) async fn find_programs(runtime: String, program: Option<String>) -> Result<PathBuf> {
    let named = [Some(runtime.as_str()), program.as_deref()].into_iter().flatten();
    let place = named.map(Path::new).find(|path| path.is_absolute()).unwrap_or(Path::new("/usr")).to_owned();
    let find = move || {
        let shim = shim::find_shim(&runtime)?;
        program.as_deref().map_or(Ok(()), shim::require_program)?;
        Ok::<_, shim::Error>(shim)
    };
    let found = host_files::look(&place, host_files::LIMIT, find).await;
    Ok(found.map_err(|error| Error::system("find the programs of the runtime, by PATH", error))??)
}

/// Warns, in one line of the log, of options of the plugin's that have no effect.
fn warn_of_options_without_effect(config: &PluginConfig) {
    if !config.warnings.is_empty() {
        tracing::warn!("plugin options without an effect under this driver: {}", config.warnings);
    }
}

fn pull_settings(pulls: &Pulls) -> PullSettings {
    let Pulls {
        max_parallel,
        max_parallel_layers,
        activity_timeout,
        // Each caller has its own.
        timeout: _,
        max_image_bytes,
        max_unpacked_bytes,
    } = *pulls;
    PullSettings {
        pulls_at_once: max_parallel,
        layers_at_once: max_parallel_layers,
        activity_timeout,
        image_limit_bytes: max_image_bytes,
        unpacked_limit_bytes: max_unpacked_bytes,
    }
}

/// Returns the settings of the built-in network. Its address leases are in the state directory: where that is emptied
/// at a reboot, they go together with the network namespaces that have the addresses.
fn default_network(driver: DriverName, bridge: &Bridge, state_dir: &Path) -> DefaultNetwork {
    let Bridge { name, subnets, hairpin } = bridge;
    // A bridge by the same name under each of the driver's names is two networks: neither collects the other's rules.
    let network = if driver.is_docker() { format!("{name}-docker") } else { name.clone() };
    DefaultNetwork {
        name: network,
        bridge: name.clone(),
        subnets: subnets.clone(),
        addresses: bridge.addresses(),
        hairpin: *hairpin,
        leases: state_dir.join("leases"),
    }
}

fn credential_store(auth: &Auth) -> CredentialStore {
    let Auth { inline, config, helper, helper_env } = auth.clone();
    let inline = inline.map(|Inline { username, password, server_address }| {
        (server_address, Credentials { username, password })
    });
    CredentialStore { inline, config, helper, helper_env }
}
