//! What the common plugins need of the kernel and say in no words that help when it is not there.

use std::path::Path;

use super::network::Network;

/// There once the kernel passes what a bridge forwards to iptables as well.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// What to do on a host where a network's plugins can't do their work.
pub(super) fn advice(network: &Network) -> Option<String> {
    let has_bridge = network.programs().contains(&"bridge");
    (has_bridge && !Path::new(BRIDGE_NETFILTER).exists()).then(|| {
        format!(
            "the kernel has no bridge netfilter ({BRIDGE_NETFILTER} is missing), which a bridge's rules need: load \
             it by \"modprobe br_netfilter\", and name it in /etc/modules-load.d"
        )
    })
}
