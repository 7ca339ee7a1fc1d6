//! The plan of a start: what a job asks for, found to be possible here before anything is made. Also writes the files
//! by which the task finds names.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use nomad_proto::driver as pb;

use super::host_facts;
use crate::cgroup::Cgroup;
use crate::config::{
    Archive, DevicePath, Dns, DnsOptions, DriverName, HostAddress, Names as RequestedNames, ResolvedPath,
    Sharing, TaskOptions,
};
use crate::containerd::{ArchiveSource, LOADED};
use crate::devices::{self, DeviceEdits};
use crate::etc_files::{self, NameFile, Names, Resolver};
use crate::image::Reference;
use crate::image::archive::Scratch;
use crate::security::{self, Confinement};
use crate::shim::Bundle;
use crate::spec::{self, BoundFile};
use crate::sys::blocking;
use crate::sys::host_path::{self, Area};
use crate::task::Settings;
use crate::task::container::short_id;
use crate::task::error::{Error, Result};
use crate::task::group_network::check_hostname;
use crate::task::mounts::{Sources, directory_of, off_thread};
use crate::task::network::{Joined, NetworkPlan};
use crate::task::runtime::{Runtime, cgroup_of, family_of};
use crate::task::timeline::Timeline;
use crate::{cni, init_program};

/// The source of a task's image.
pub(in crate::task) enum ImageSource {
    /// An image that containerd has by this name, or else a registry.
    Name(Reference),
    /// An archive, which is held open until it is loaded.
    Archive(ArchiveSource),
}

pub(in crate::task) struct StartPlan {
    pub(in crate::task) options: TaskOptions,
    pub(in crate::task) image: ImageSource,
    pub(in crate::task) network: NetworkPlan,
    pub(in crate::task) hostname: String,
    /// Path of the host's init program, if the task is to have one.
    pub(in crate::task) init: Option<PathBuf>,
    pub(in crate::task) cgroup: Cgroup,
    pub(in crate::task) node: spec::HostFacts,
    /// Sources of the job's mounts, held open.
    pub(in crate::task) sources: Sources,
    pub(in crate::task) confinement: Confinement,
    pub(in crate::task) devices: DeviceEdits,
    pub(in crate::task) runtime: Runtime,
}

impl StartPlan {
    /// # Errors
    /// Names the option that can't be had, here or at all.
    pub(in crate::task) async fn resolve(
        settings: &Settings,
        config: &pb::TaskConfig,
        timeline: &Timeline,
    ) -> Result<Self> {
        let mut options = TaskOptions::decode(settings.config.name, &config.msgpack_driver_config)?;
        options.permitted_by(&settings.config)?;
        spec::check_words(&options.process, &config.env)?;
        let (group, allowed) = (config.network_isolation_spec.as_ref(), &settings.config.allowed_modes);
        let network = options.network_permitted_by(settings.config.name, group, allowed)?;
        options.warn_of_idle(settings.config.name, &network);
        let mut cgroup = cgroup_of(config);
        let family = family_of(&settings.config, options.runtime.shim(&settings.config));
        let rights =
            security::settle(&options.security, &settings.config.security_policy, family.shares_kernel());
        let devices = (options.devices.clone(), devices_of_nomad(config)?, settings.config.devices.clone());
        // None of these depends on another. Which error is reported does not depend on which was found first.
        let (image, network, init, node, confinement, devices, sources) = tokio::join!(
            timeline.step("wanted/image", ImageSource::of(&options, settings, config)),
            timeline.step("wanted/network", NetworkPlan::of(settings, network, &options.network, config)),
            timeline.step("wanted/init", init(settings, &options)),
            timeline.step("wanted/node", host_facts::look(cgroup.clone())),
            timeline.step("wanted/rights", rights),
            timeline.step("wanted/devices", devices::find(devices.0, devices.1, devices.2)),
            timeline.step("wanted/mounts", Sources::open(&options.mounts, &settings.config, config)),
        );
        let (image, network, init, mut node) = (image?, network?, init?, node?);
        if network.is_shared() {
            // Its own task's start, or the group's, has set them, or a job's own values. A group's of Nomad's is left as
            // it is.
            node.network_parameters.clear();
        }
        let runtime = Runtime::of(settings, &options, config).await?;
        let hostname = hostname(settings.config.name, &options, network.is_the_hosts(), config)?;
        spec::check(&options.limits, &settings.config.limits, config, &node)?;
        if options.limits.cpu.is_pinned() {
            cgroup.leave_shared();
        }
        let (confinement, devices, sources) = (confinement?, devices?, sources?);
        Ok(Self {
            options,
            image,
            network,
            hostname,
            init,
            cgroup,
            node,
            sources,
            confinement,
            devices,
            runtime,
        })
    }

    /// Writes the task's `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` into its bundle.
    ///
    /// # Errors
    /// Names the file that could not be read or written.
    pub(in crate::task) async fn name_files(
        &self,
        settings: &Settings,
        config: &pb::TaskConfig,
        bundle: &Bundle,
        joined: &Joined,
    ) -> Result<Vec<BoundFile>> {
        let nomads = groups_hosts(config, &self.options);
        let names = Names {
            hostname: self.hostname.clone(),
            addresses: match nomads.and_then(|hosts| hosts.address.parse().ok()) {
                Some(address) => vec![address],
                None => joined.addresses.clone(),
            },
            aliases: self.network.aliases().to_vec(),
            extra_hosts: extra_hosts(settings, &self.options.names, joined).await?,
            in_the_hosts_network: self.network.is_the_hosts(),
            // Nomad's own file of a group has its entry in another form.
            as_docker: settings.config.name.is_docker() && nomads.is_none(),
            resolver: resolver(config, &self.options.names, &joined.dns),
        };
        let bundle = bundle.clone();
        let write = move || {
            let texts = names.texts()?;
            let directory = bundle.mount_files(texts.bytes())?;
            Ok::<_, Error>(texts.write(&directory)?)
        };
        let files = blocking::run(write).await?;
        let bound = |NameFile { source, at }| {
            let writable = is_writable(settings.config.name, &self.options, config, at);
            BoundFile { source, at, writable }
        };
        Ok(files.into_iter().map(bound).collect())
    }
}

impl ImageSource {
    /// Returns the name by which the image is held; that of an archive isn't known yet.
    pub(in crate::task) fn name(&self) -> String {
        match self {
            Self::Name(reference) => reference.to_string(),
            Self::Archive(_) => LOADED.to_owned(),
        }
    }

    async fn of(options: &TaskOptions, settings: &Settings, config: &pb::TaskConfig) -> Result<Self> {
        let Some(archive) = &options.archive else {
            return Ok(Self::Name(options.image.parse()?));
        };
        let wanted = match archive {
            Archive::Load(_) => Some(options.image.parse()?),
            Archive::Image(_) => None,
        };
        let resolved = archive.resolved(&settings.config.volumes, directory_of(config))?;
        let shown = resolved.shown().display().to_string();
        let (option, alloc_dir, own) =
            (archive.option(), PathBuf::from(&config.alloc_dir), PathBuf::from(&config.name));
        let open = move || {
            let ResolvedPath { root, plain, path, .. } = &resolved;
            let file = Area { root, plain }.open_file(path).map_err(|error| {
                let what = format!("the option {option} is not the path of an archive");
                Error::unusable_path(error).context(what)
            })?;
            let directory = host_path::open_directory(&alloc_dir, &own).map_err(|error| {
                let transient = error.is_transient();
                let doing = "open the directory in which an archive is decompressed";
                Error::failure(error, transient).context(doing)
            })?;
            let scratch = Scratch { directory: Arc::new(directory), shown: alloc_dir.join(own) };
            Ok((file, scratch))
        };
        let (file, scratch) = off_thread(shown.as_ref(), "the archive of the task's image", open).await?;
        Ok(Self::Archive(ArchiveSource { file: Arc::new(file), shown, scratch, wanted }))
    }
}

async fn init(settings: &Settings, options: &TaskOptions) -> Result<Option<PathBuf>> {
    if !options.process.init {
        return Ok(None);
    }
    let named = settings.config.init_path.clone();
    let found = tokio::task::spawn_blocking(move || init_program::find(named.as_deref())).await;
    Ok(Some(found.map_err(Error::failed)??))
}

/// Returns the devices that Nomad's device plugins have given the task.
fn devices_of_nomad(config: &pb::TaskConfig) -> Result<Vec<DevicePath>> {
    let path = |device: &pb::Device| {
        let pb::Device { task_path, host_path, cgroup_permissions } = device;
        let permissions = if cgroup_permissions.is_empty() { "rwm" } else { cgroup_permissions };
        let refused =
            |why| Error::invalid(format!("the device {host_path} of the task's device block: {why}"));
        DevicePath::new(host_path, task_path, permissions).map_err(refused)
    };
    config.devices.iter().map(path).collect()
}

/// Returns the settings of the task's resolver. Nomad's, which are the group's, take precedence over what the job says
/// of the task, and that over what the CNI plugins say of its network; as under docker's driver.
fn resolver(config: &pb::TaskConfig, requested: &RequestedNames, plugins: &cni::Dns) -> Option<Resolver> {
    if let Some(pb::DnsConfig { servers, searches, options }) = config.dns.clone()
        && !(servers.is_empty() && searches.is_empty() && options.is_empty())
    {
        return Some(Resolver { servers, searches, options });
    }
    let DnsOptions { servers, searches, options } = &requested.resolver;
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let first = |one: &[String], other: &[String]| if one.is_empty() { other.to_vec() } else { one.to_vec() };
    let search = match &plugins.domain {
        Some(domain) if plugins.search.is_empty() => std::slice::from_ref(domain),
        _ => &plugins.search,
    };
    let resolver = Resolver {
        servers: first(&servers, &plugins.nameservers),
        searches: first(searches, search),
        options: first(options, &plugins.options),
    };
    let is_given = resolver != Resolver::default();
    (is_given || requested.dns == Dns::Host).then_some(resolver)
}

/// Returns what Nomad says of the names in the group's network, if the task is in it.
fn groups_hosts<'a>(config: &'a pb::TaskConfig, options: &TaskOptions) -> Option<&'a pb::HostsConfig> {
    let group = config.network_isolation_spec.as_ref().filter(|_| options.network.mode.is_none())?;
    group.hosts_config.as_ref()
}

/// Returns whether the task may change one of its name files. Docker's are as writable as the root, but that a group's hosts
/// are always, and a resolver that Nomad has set never is.
fn is_writable(driver: DriverName, options: &TaskOptions, config: &pb::TaskConfig, at: &str) -> bool {
    match at {
        _ if !driver.is_docker() => true,
        etc_files::HOSTS if groups_hosts(config, options).is_some() => true,
        etc_files::RESOLV_CONF if config.dns.is_some() => false,
        _ => !options.security.readonly_rootfs,
    }
}

/// Returns the entries of `/etc/hosts` that the job adds. A host with several addresses has an entry for each.
async fn extra_hosts(
    settings: &Settings,
    requested: &RequestedNames,
    joined: &Joined,
) -> Result<Vec<(String, IpAddr)>> {
    let names_host = |(_, address): &(String, HostAddress)| *address == HostAddress::HostGateway;
    let host = match requested.extra_hosts.iter().any(names_host) {
        true => joined.addresses_of_host(&settings.config.networks.bridge).await?,
        false => Vec::new(),
    };
    let entries = requested.extra_hosts.iter().flat_map(|(name, address)| {
        let addresses = match address {
            HostAddress::Ip(address) => vec![*address],
            HostAddress::HostGateway => host.clone(),
        };
        addresses.into_iter().map(|address| (name.clone(), address))
    });
    Ok(entries.collect())
}

/// Returns the task's host name: the job's, the host's, the group's, or else one that tells tasks apart.
///
/// # Errors
/// If the group's can't be one, or the host's can't be read.
fn hostname(
    driver: DriverName,
    options: &TaskOptions,
    in_the_hosts_network: bool,
    config: &pb::TaskConfig,
) -> Result<String> {
    if let Some(name) = &options.names.hostname {
        return Ok(name.clone());
    }
    // With the host's UTS namespace, docker's files and variable have the task's own name all the same.
    let shares_name = options.namespaces.uts_mode == Sharing::Host && !driver.is_docker();
    // In the host's network programs look up the address of their host's name.
    if shares_name || in_the_hosts_network {
        return Ok(etc_files::hosts_own()?);
    }
    match groups_hosts(config, options).map(|hosts| hosts.hostname.as_str()) {
        Some(name) if !name.is_empty() => {
            check_hostname(name)?;
            Ok(name.to_owned())
        }
        _ if driver.is_docker() => Ok(short_id(&config.id)),
        _ => Ok(readable_name(config)),
    }
}

/// Returns the task's name and the start of its allocation's id, in the letters of host names.
fn readable_name(config: &pb::TaskConfig) -> String {
    let short = config.alloc_id.get(..8).unwrap_or(&config.alloc_id);
    let full = format!("{}-{short}", config.name);
    let letters = full.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let mut name: String = letters.skip_while(|c| *c == '-').collect();
    // The kernel's limit is 64, that of DNS 63.
    name.truncate(63);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetworkMode;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_group_counts_before_the_task_and_the_task_before_the_plugins_and_all_before_the_host() {
        let mut config = pb::TaskConfig::default();
        let mut requested = RequestedNames::default();
        let (none, mut plugins) = (cni::Dns::default(), cni::Dns::default());
        assert_eq!(resolver(&config, &requested, &none), Some(Resolver::default()), "the host's");
        requested.dns = Dns::Image;
        assert_eq!(resolver(&config, &requested, &none), None);
        plugins.nameservers = words("10.0.0.1");
        plugins.domain = Some("plugins.example".to_owned());
        let of_plugins = resolver(&config, &requested, &plugins).unwrap();
        assert_eq!((of_plugins.servers, of_plugins.searches), (words("10.0.0.1"), words("plugins.example")));
        plugins.search = words("a.example b.example");
        assert_eq!(resolver(&config, &requested, &plugins).unwrap().searches, words("a.example b.example"));
        requested.resolver.servers = vec![[10, 0, 0, 2].into()];
        requested.resolver.options = words("ndots:2");
        let of_task = resolver(&config, &requested, &plugins).unwrap();
        assert_eq!((of_task.servers, of_task.options), (words("10.0.0.2"), words("ndots:2")));
        assert_eq!(of_task.searches, words("a.example b.example"), "what the task doesn't say");
        config.dns = Some(pb::DnsConfig { servers: words("10.0.0.3"), ..Default::default() });
        let of_group = Resolver { servers: words("10.0.0.3"), ..Resolver::default() };
        assert_eq!(resolver(&config, &requested, &plugins), Some(of_group));
    }

    #[test]
    fn the_groups_names_are_those_of_a_task_without_a_network_mode() {
        let hosts = pb::HostsConfig { hostname: "web".to_owned(), address: "10.0.0.1".to_owned() };
        let group = pb::NetworkIsolationSpec { hosts_config: Some(hosts.clone()), ..Default::default() };
        let config = pb::TaskConfig { network_isolation_spec: Some(group), ..Default::default() };
        let mut options = TaskOptions::default();
        assert_eq!(groups_hosts(&config, &options), Some(&hosts));
        assert_eq!(groups_hosts(&pb::TaskConfig::default(), &options), None);
        options.network.mode = Some(NetworkMode::Bridge);
        assert_eq!(groups_hosts(&config, &options), None);
    }

    #[test]
    fn under_dockers_name_a_read_only_root_has_read_only_name_files() {
        use DriverName::{ContainerdDriver, Docker};
        let (mut options, mut config) = (TaskOptions::default(), pb::TaskConfig::default());
        let files = [etc_files::HOSTS, "/etc/hostname", etc_files::RESOLV_CONF];
        let writable = |driver, options: &TaskOptions, config: &pb::TaskConfig| {
            files.map(|at| is_writable(driver, options, config, at))
        };
        assert_eq!(writable(Docker, &options, &config), [true; 3]);
        options.security.readonly_rootfs = true;
        assert_eq!(writable(Docker, &options, &config), [false; 3]);
        let hosts_config = Some(pb::HostsConfig::default());
        config.network_isolation_spec = Some(pb::NetworkIsolationSpec { hosts_config, ..Default::default() });
        assert_eq!(writable(Docker, &options, &config), [true, false, false]);
        config.dns = Some(pb::DnsConfig::default());
        assert_eq!(writable(ContainerdDriver, &options, &config), [true; 3]);
        options.security.readonly_rootfs = false;
        assert_eq!(writable(Docker, &options, &config), [true, true, false]);
    }

    #[test]
    fn a_hostname_has_only_the_letters_of_one() {
        let named = |name: &str| {
            readable_name(&pb::TaskConfig {
                name: name.to_owned(),
                alloc_id: "5f1b2c3d-0000".to_owned(),
                ..Default::default()
            })
        };
        assert_eq!(named("redis_task"), "redis-task-5f1b2c3d");
        assert_eq!(named("ü"), "5f1b2c3d");
        assert!(named(&"x".repeat(100)).len() <= 63);
    }

    #[test]
    fn the_default_hostname_is_a_short_id_under_dockers_name() {
        use DriverName::{ContainerdDriver, Docker};
        let hosts = pb::HostsConfig { hostname: "of-the-group".to_owned(), ..Default::default() };
        let group = pb::NetworkIsolationSpec { hosts_config: Some(hosts), ..Default::default() };
        let alone = pb::TaskConfig {
            id: "5f1b2c3d-0000/web/0a1b2c3d".to_owned(),
            name: "web".to_owned(),
            alloc_id: "5f1b2c3d-0000".to_owned(),
            ..Default::default()
        };
        let in_group = pb::TaskConfig { network_isolation_spec: Some(group), ..alone.clone() };
        let (short, hosts_own) = (short_id(&alone.id), etc_files::hosts_own().unwrap());
        let mut options = TaskOptions::default();
        let named = |driver, options: &TaskOptions, in_the_hosts_network, config| {
            hostname(driver, options, in_the_hosts_network, config).unwrap()
        };
        assert_eq!(named(Docker, &options, false, &alone), short);
        assert_eq!(named(ContainerdDriver, &options, false, &alone), "web-5f1b2c3d");
        for driver in [ContainerdDriver, Docker] {
            assert_eq!(named(driver, &options, false, &in_group), "of-the-group");
            assert_eq!(named(driver, &options, true, &alone), hosts_own);
        }
        options.namespaces.uts_mode = Sharing::Host;
        assert_eq!(named(Docker, &options, false, &alone), short);
        assert_eq!(named(ContainerdDriver, &options, false, &alone), hosts_own);
        options.names.hostname = Some("own".to_owned());
        assert_eq!(named(Docker, &options, true, &in_group), "own");
    }
}
