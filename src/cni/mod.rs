//! A runtime for plugins of the Container Network Interface (CNI): attaches a network namespace to a network, and
//! detaches it, even if this process or a plugin died on the way. Knows neither tasks nor containerd.
//!
//! Everything that a detachment needs is written to a file, the record, before the first plugin runs, and again after
//! each one. The caller chooses its place.
//!
//! Source of the facts: the CNI specification 1.1, sections 2 and 3.

mod attachment;
mod call;
mod conf_file;
mod default_bridge;
mod error;
mod exec;
mod ipam;
mod kernel_hints;
mod network;
mod programs;
mod record;
mod result;
mod rules;
mod stale_plugins;
mod status;
mod version;
mod version_cache;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore};

pub(crate) use self::attachment::{Attachment, Bandwidth, Capabilities, Dns, PortMapping, Protocol};
pub(crate) use self::default_bridge::DefaultNetwork;
pub(crate) use self::error::Error;
#[cfg(test)]
pub(crate) use self::error::{PluginFailure, RunError};
pub(crate) use self::network::Network;
pub(crate) use self::result::AddResult;

use self::call::Call;
use self::network::Plugin;
use self::programs::Programs;
use self::record::{Phase, Record};
use self::rules::PacketFilter;
use self::status::StatusCache;
use self::version::Version;
use self::version_cache::PluginVersionCache;
use crate::sys::error_chain::Chained;
use crate::sys::{blocking, netns};

/// Maximum number of attachments that are checked at once: an agent recovers all tasks of a node one right after the
/// other.
const MAX_CONCURRENT_CHECKS: usize = 4;
/// Time for which a collection waits for a moment in which nothing is attached or detached; after it, the collection is
/// left for the next time.
const GC_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const GC_LOCK_POLL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Cni {
    /// Directories with plugins (`CNI_PATH`).
    directories: Vec<PathBuf>,
    /// Directory with the operator's network configurations.
    config_dir: PathBuf,
    default: DefaultNetwork,
    deadline: Duration,
    versions: PluginVersionCache,
    packet_filter: PacketFilter,
    status: StatusCache,
    /// Lock of the built-in network: shared by calls that attach or detach, exclusive for a GC, which the specification
    /// allows only while nothing else is done to the network. No other network is collected, so none takes part in
    /// this.
    gc_lock: RwLock<()>,
    checks: Semaphore,
    /// Set once the built-in bridge's addresses were found to be no other interface's.
    bridge_checked: OnceCell<()>,
}

/// An attachment that a GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    #[serde(rename = "ifname")]
    pub if_name: String,
}

impl Cni {
    /// Returns a runtime that gives each run of a plugin the time `deadline`.
    pub(crate) fn new(
        directories: Vec<PathBuf>,
        config_dir: PathBuf,
        default: DefaultNetwork,
        deadline: Duration,
    ) -> Self {
        let (versions, status, gc_lock) =
            (PluginVersionCache::default(), StatusCache::default(), RwLock::default());
        let (packet_filter, checks) = (PacketFilter::of_host(), Semaphore::new(MAX_CONCURRENT_CHECKS));
        let bridge_checked = OnceCell::new();
        Self {
            directories,
            config_dir,
            default,
            deadline,
            versions,
            packet_filter,
            status,
            gc_lock,
            checks,
            bridge_checked,
        }
    }

    /// Loads the built-in network, or the operator's network `name`, and checks that all its programs are there.
    ///
    /// # Errors
    /// Names what is missing or wrong, and the networks that there are.
    pub(crate) async fn network(&self, name: Option<&str>) -> Result<Network, Error> {
        let mut network = match name {
            None => self.default.network(self.default.rule_sets(&self.packet_filter).await?)?,
            Some(name) => {
                let (directory, name) = (self.config_dir.clone(), name.to_owned());
                blocking::run(move || conf_file::find(&directory, &name)).await?
            }
        };
        let programs = Programs::find(&network, &self.directories).await?;
        if network.versions.len() > 1 {
            let plugins = network.plugins.iter();
            let calls: Vec<_> =
                plugins.map(|plugin| self.call(&network, plugin, "VERSION", &programs)).collect();
            network.versions = vec![self.versions.newest_common(&network, &calls).await?];
        }
        Ok(network)
    }

    /// Checks, until it is so, that none of the built-in bridge's addresses is another interface's.
    ///
    /// # Errors
    /// Names the plugin option, the interface and the address.
    pub(crate) async fn check_bridge(&self) -> Result<(), Error> {
        let check = || async move {
            let listed = blocking::run(netns::hosts_interfaces).await;
            let all =
                listed.map_err(Error::io("list the addresses of", Path::new("the host's interfaces")))?;
            self.default.check_addresses(&all)
        };
        self.bridge_checked.get_or_try_init(check).await?;
        Ok(())
    }

    /// Attaches a container by each plugin in turn, and makes the network's rules beside that. `record` has what `delete`
    /// needs before the first plugin runs.
    ///
    /// # Errors
    /// Quotes the plugin's words, or those of `iptables`. What was done by then stays until a `delete`.
    pub(crate) async fn add(
        &self,
        network: &Network,
        attachment: &Attachment,
        record: &Path,
    ) -> Result<AddResult, Error> {
        let conf = attachment.runtime_conf(network)?;
        let network = &network.without_idle_plugins(&conf.capability_args);
        let _guard = self.hold_off_gc(network).await;
        let programs = Programs::find(network, &self.directories).await?;
        let mut attached = Record {
            phase: Phase::Adding,
            network: network.clone(),
            conf,
            directories: self.directories.clone(),
            completed: 0,
            result: None,
        };
        attached.write(record).await?;
        let added = self.run_adds(network, &programs, &mut attached, record);
        // No plugin is cut off by a failure of the rules.
        let ruled = Box::pin(self.packet_filter.ensure(&network.rules, self.deadline));
        let (added, ruled) = tokio::join!(added, ruled);
        let added = added?;
        ruled.map(|()| added)
    }

    async fn run_adds(
        &self,
        network: &Network,
        programs: &Programs,
        attached: &mut Record,
        record: &Path,
    ) -> Result<AddResult, Error> {
        let mut added = AddResult::default();
        for plugin in &network.plugins {
            let conf = &attached.conf;
            let request = plugin.request(network, &conf.capability_args, attached.result.as_ref());
            let call = Call { conf: Some(conf), ..self.call(network, plugin, "ADD", programs) };
            let answer = call.execute(request).await?;
            let result = call.result(&answer)?;
            added = AddResult::read(&result, &conf.if_name)
                .map_err(|why| call.bad_output(&format!("its result is invalid: {why}"), &answer))?;
            attached.result = Some(result);
            attached.completed += 1;
            if attached.completed == network.plugins.len() {
                attached.phase = Phase::Added;
            }
            attached.write(record).await?;
        }
        Ok(added)
    }

    /// Detaches what `record` says, and removes the record. Without a record there is nothing to do. Each plugin is
    /// tried.
    ///
    /// # Errors
    /// Quotes the words of all plugins that failed. The call can be repeated.
    pub(crate) async fn delete(&self, record: &Path) -> Result<(), Error> {
        let Some(mut attached) = Record::read(record).await? else { return Record::remove(record).await };
        let _guard = self.hold_off_gc(&attached.network).await;
        if attached.phase != Phase::Added {
            stale_plugins::kill_stale(&attached.conf.container_id).await?;
        }
        attached.phase = Phase::Deleting;
        attached.write(record).await?;
        self.detach(&attached).await?;
        Record::remove(record).await
    }

    async fn detach(&self, attached: &Record) -> Result<(), Error> {
        let Record { phase: _, network, conf, directories, completed, result } = attached;
        let programs = Programs::look_up(network, &self.plugin_directories(directories)).await;
        let mut conf = conf.clone();
        let namespace = conf.netns.clone();
        if !blocking::run(move || netns::is_bound(&namespace)).await {
            conf.netns = PathBuf::new();
        }
        let previous = result.as_ref().filter(|_| network.version() >= Version::WITH_CHECK);
        let mut errors = Vec::new();
        for (number, plugin) in network.plugins.iter().enumerate().rev() {
            let request = plugin.request(network, &conf.capability_args, previous);
            let call = Call { conf: Some(&conf), ..self.call(network, plugin, "DEL", &programs) };
            let Err(error) = call.execute(request).await else { continue };
            if number > *completed || number == *completed && error.is_incompatible_version() {
                tracing::debug!(error = %error.chain(), "ignoring a failed DEL of a CNI plugin whose ADD did not run, or was refused");
            } else if error.is_absent_rule() {
                tracing::debug!(error = %error.chain(), "ignoring a failed DEL of a CNI plugin: the rule is already removed");
            } else if !error.is_unknown_container() {
                errors.push(error);
            }
        }
        Error::all(errors)
    }

    /// Waits while the network is being collected. As long as the guard is held, no collection begins.
    async fn hold_off_gc(&self, network: &Network) -> Option<RwLockReadGuard<'_, ()>> {
        if network.name == self.default.name { Some(self.gc_lock.read().await) } else { None }
    }

    /// Waits for a moment in which nothing is attached to the built-in network or detached. Does not queue for the
    /// lock: calls that come later would wait for it, and so for the slowest plugin that runs.
    async fn lock_for_gc(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let found = async {
            loop {
                if let Ok(guard) = self.gc_lock.try_write() {
                    return guard;
                }
                tokio::time::sleep(GC_LOCK_POLL).await;
            }
        };
        tokio::time::timeout(GC_LOCK_TIMEOUT, found).await.ok()
    }

    /// Has the plugins check that the attachment still is as it was made. Waits for a permit while many others are
    /// checked.
    ///
    /// # Errors
    /// Quotes the words of the first plugin that says no.
    pub(crate) async fn check(&self, record: &Path) -> Result<(), Error> {
        let Some(attached) = Record::read(record).await?.filter(|attached| attached.phase == Phase::Added)
        else {
            let source = std::io::ErrorKind::NotFound;
            return Err(Error::io("find the attachment in", record)(source));
        };
        let Record { phase: _, network, conf, directories, completed: _, result } = attached;
        if network.disable_check || network.version() < Version::WITH_CHECK {
            return Ok(());
        }
        let _permit = self.checks.acquire().await;
        let programs = Programs::look_up(&network, &self.plugin_directories(&directories)).await;
        for plugin in &network.plugins {
            let request = plugin.request(&network, &conf.capability_args, result.as_ref());
            let call = Call { conf: Some(&conf), ..self.call(&network, plugin, "CHECK", &programs) };
            call.execute(request).await?;
        }
        Ok(())
    }

    /// Has the built-in network give up what it holds for attachments that are not among the valid ones: their records
    /// were lost. `valid` is called while nothing is attached or detached; `None` means that the valid ones are not
    /// known.
    ///
    /// No other network is touched, whether or not it says `disableGC`: others attach to those, too, and their
    /// attachments are not known here.
    ///
    /// # Errors
    /// Quotes the words of all plugins that failed.
    pub(crate) async fn gc(
        &self,
        valid: impl FnOnce() -> Option<Vec<ValidAttachment>> + Send + 'static,
    ) -> Result<(), Error> {
        let leases = self.default.leases.join(&self.default.name);
        let directory = leases.clone();
        if !blocking::run(move || directory.exists()).await {
            return Ok(());
        }
        let network = self.network(None).await?;
        let Some(_guard) = self.lock_for_gc().await else {
            tracing::debug!("the built-in network is in use; its unused addresses are collected later");
            return Ok(());
        };
        let collect = async {
            match blocking::run(valid).await {
                Some(valid) => self.release_stale(&network, leases, &valid).await,
                None => Ok(()),
            }
        };
        // Tasks wait for the collection; a plugin that is cut off here is killed.
        let collected = tokio::time::timeout(self.deadline, collect).await;
        collected.unwrap_or(Err(Error::Timeout { doing: "collect addresses", limit: self.deadline }))
    }

    /// Makes the rules of the built-in network that somebody has removed, if anything is attached to it.
    ///
    /// # Errors
    /// Quotes the words of `iptables`. The call can be repeated.
    pub(crate) async fn mend_rules(&self) -> Result<(), Error> {
        let leases = self.default.leases.join(&self.default.name);
        if blocking::run(move || ipam::holders(&leases)).await?.is_empty() {
            return Ok(());
        }
        let sets = self.default.rule_sets(&self.packet_filter).await?;
        self.packet_filter.ensure(&sets, self.deadline).await
    }

    async fn release_stale(
        &self,
        network: &Network,
        leases: PathBuf,
        valid: &[ValidAttachment],
    ) -> Result<(), Error> {
        let holders = blocking::run(move || ipam::holders(&leases)).await?;
        let mut errors = Vec::new();
        for stale in holders.into_iter().filter(|holder| !valid.contains(holder)) {
            tracing::warn!(container = stale.container_id, "releasing an address that no task uses");
            errors.extend(self.detach(&Record::without_own_record(network, stale)).await.err());
        }
        if network.version() >= Version::WITH_STATUS {
            errors.extend(self.run_gc_commands(network, valid).await.err());
        }
        Error::all(errors)
    }

    async fn run_gc_commands(&self, network: &Network, valid: &[ValidAttachment]) -> Result<(), Error> {
        let programs = Programs::look_up(network, &self.directories).await;
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            let mut request = plugin.request(network, &Map::new(), None);
            request.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            // Name in the first release of 1.1's library, which plugins of that time read.
            request.insert("cni.dev/attachments".to_owned(), json!(valid));
            errors.extend(self.call(network, plugin, "GC", &programs).execute(request).await.err());
        }
        Error::all(errors)
    }

    /// Returns the current plugin directories, and after them those of an earlier time.
    fn plugin_directories(&self, recorded: &[PathBuf]) -> Vec<PathBuf> {
        let others = recorded.iter().filter(|directory| !self.directories.contains(directory));
        self.directories.iter().chain(others).cloned().collect()
    }

    fn call<'a>(
        &self,
        network: &'a Network,
        plugin: &'a Plugin,
        command: &'static str,
        programs: &'a Programs,
    ) -> Call<'a> {
        Call { network, plugin, command, conf: None, programs, deadline: self.deadline }
    }
}
