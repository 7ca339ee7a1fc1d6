//! Namespaces of a container: those of its own, and those that it joins.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};

use super::SpecError;
use crate::config::{Namespaces, Sharing};

/// The network namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetNamespace {
    /// A new one, without a connection.
    Own,
    /// An existing one, by its path.
    At(PathBuf),
    Host,
}

/// Returns the namespaces of a container. It has its own of each kind unless the job asks for the host's; a network
/// namespace may have been made by Nomad for the group. Without one it gets an empty one, as under the driver that this
/// one succeeds. The default for the cgroup namespace is docker's: its own under cgroup v2 only.
pub(super) fn namespaces(
    requested: &Namespaces,
    network: &NetNamespace,
    is_cgroup_v2: bool,
) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network as Net, Pid, Uts};
    let Namespaces {
        pid_mode,
        ipc_mode,
        uts_mode,
        cgroupns,
        userns_is_the_hosts: _,
        // Decided by now, in `network`.
        host_network: _,
        // Set within the namespaces, not here.
        sysctl: _,
        // Part of the mounts.
        without_shm: _,
    } = requested;
    let own = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let by_default = if is_cgroup_v2 { Sharing::Private } else { Sharing::Host };
    let mut namespaces = vec![own(Mount)?];
    for (kind, sharing) in
        [(Ipc, *ipc_mode), (Uts, *uts_mode), (Pid, *pid_mode), (Cgroup, cgroupns.unwrap_or(by_default))]
    {
        if sharing == Sharing::Private {
            namespaces.push(own(kind)?);
        }
    }
    match network {
        NetNamespace::Own => namespaces.push(own(Net)?),
        NetNamespace::At(path) => {
            namespaces.push(LinuxNamespaceBuilder::default().typ(Net).path(path).build()?);
        }
        NetNamespace::Host => {}
    }
    Ok(namespaces)
}

/// Kernel parameters of a network that is not the host's, as docker sets them where it makes one: any user may listen on
/// each port, and send pings.
pub(crate) const NETWORK_PARAMETERS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Returns the kernel parameters of a container: the defaults among `available` unless it is in the host's network, and
/// the job's, which win. There are none available for a network that others use as well: another task may have changed
/// them.
pub(super) fn sysctl(
    requested: &Namespaces,
    network: &NetNamespace,
    available: &[(&str, &str)],
) -> HashMap<String, String> {
    let defaults = if *network == NetNamespace::Host { &[] } else { available };
    let defaults = defaults.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    defaults.chain(requested.sysctl.clone()).collect()
}

/// Returns the specification with a private pid namespace, which the shim reads instead of the real one once a
/// container that shares the host's pids is created: with no pid namespace in it, the shim of containerd 1.6 kills "all
/// processes" at the exit of the first one, in a way that can deadlock it for good.
pub(crate) fn with_private_pids(mut spec: Spec) -> Result<Spec, SpecError> {
    let own = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).build()?;
    if let Some(namespaces) = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()) {
        namespaces.push(own);
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn kinds(requested: &Namespaces, network: &NetNamespace, v2: bool) -> Vec<LinuxNamespaceType> {
        let mut kinds: Vec<_> =
            namespaces(requested, network, v2).unwrap().iter().map(LinuxNamespace::typ).collect();
        kinds.sort_by_key(|kind| kind.to_string());
        kinds
    }

    #[test]
    fn namespaces_are_private_by_default() {
        use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network as Net, Pid, Uts};
        let own = Namespaces::default();
        assert_eq!(kinds(&own, &NetNamespace::Own, false), [Ipc, Mount, Net, Pid, Uts]);
        assert_eq!(kinds(&own, &NetNamespace::Own, true), [Cgroup, Ipc, Mount, Net, Pid, Uts]);
        let shared = Namespaces {
            pid_mode: Sharing::Host,
            ipc_mode: Sharing::Host,
            uts_mode: Sharing::Host,
            cgroupns: Some(Sharing::Host),
            ..Namespaces::default()
        };
        assert_eq!(kinds(&shared, &NetNamespace::Host, true), [Mount]);
        let view = Namespaces { cgroupns: Some(Sharing::Private), ..Namespaces::default() };
        assert!(kinds(&view, &NetNamespace::Own, false).contains(&Cgroup));
    }

    #[test]
    fn low_ports_and_pings_are_for_any_user_outside_of_the_hosts_network() {
        let own = Namespaces::default();
        let of = |requested: &Namespaces, network: &NetNamespace| {
            let mut all: Vec<_> = sysctl(requested, network, &NETWORK_PARAMETERS).into_iter().collect();
            all.sort();
            all.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let connected = NetNamespace::At("/run/driver/nomad/web-1/netns".into());
        for network in [&NetNamespace::Own, &connected] {
            let all = ["net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647"];
            assert_eq!(of(&own, network), all);
        }
        assert!(of(&own, &NetNamespace::Host).is_empty());
        assert!(sysctl(&own, &connected, &[]).is_empty(), "the kernel has none, or others use it");
        let sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned())].into();
        let stricter = Namespaces { sysctl: sysctls, ..own };
        assert!(of(&stricter, &connected).contains(&"net.ipv4.ip_unprivileged_port_start=1024".to_owned()));
    }

    #[test]
    fn the_groups_network_is_joined() {
        let group = NetNamespace::At("/var/run/netns/a".into());
        let all = namespaces(&Namespaces::default(), &group, false).unwrap();
        let network = all.iter().find(|one| one.typ() == LinuxNamespaceType::Network).unwrap();
        assert_eq!(network.path().as_deref(), Some(Path::new("/var/run/netns/a")));
    }
}
