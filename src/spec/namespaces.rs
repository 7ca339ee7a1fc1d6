//! A container's namespaces: which are its own, and whose the others are.

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};

use super::SpecError;
use crate::config::{Namespaces, PidMode};

/// A container has namespaces of its own but for the network, which Nomad may have made for the group. Without one it
/// gets an empty one, as under the driver that this one succeeds.
pub(super) fn namespaces(
    asked: &Namespaces,
    network: Option<&pb::NetworkIsolationSpec>,
) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Ipc, Mount, Network, Pid, Uts};
    let Namespaces { pid_mode } = asked;
    let own = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let mut namespaces = vec![own(Mount)?, own(Ipc)?, own(Uts)?];
    if *pid_mode == PidMode::Private {
        namespaces.push(own(Pid)?);
    }
    match network {
        Some(spec) if !spec.path.is_empty() => {
            namespaces.push(LinuxNamespaceBuilder::default().typ(Network).path(&spec.path).build()?);
        }
        Some(spec) if spec.mode() == pb::network_isolation_spec::NetworkIsolationMode::Host => {}
        _ => namespaces.push(own(Network)?),
    }
    Ok(namespaces)
}

/// What the shim is to read of a container that shares the host's pids, once that has been made from its real
/// specification: with no pid namespace in it, the shim of containerd 1.6 kills "all processes" at the end of the first
/// one, by a way that can lock it up for good.
pub(crate) fn with_private_pids(mut spec: Spec) -> Result<Spec, SpecError> {
    let own = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).build()?;
    if let Some(namespaces) = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()) {
        namespaces.push(own);
    }
    Ok(spec)
}
