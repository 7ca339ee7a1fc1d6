//! Advice for a kernel that lacks what the common plugins need, since their own errors don't name it.

use std::path::Path;

/// Path that exists once the kernel passes what a bridge forwards to iptables as well.
pub(super) const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Returns advice for a host whose kernel lacks what these plugins of a network need.
pub(super) fn hint(programs: &[&str], netfilter: &Path) -> Option<String> {
    programs.contains(&"bridge").then(|| missing(netfilter)).flatten()
}

fn missing(netfilter: &Path) -> Option<String> {
    (!netfilter.exists()).then(|| {
        format!(
            "the rules of a bridge need the kernel module br_netfilter, and {} is missing: run \"modprobe \
             br_netfilter\", and add the module to /etc/modules-load.d",
            netfilter.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_bridge_netfilter_hints_at_its_kernel_module() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(hint(&["bridge"], directory.path()), None);
        let absent = directory.path().join("bridge-nf-call-iptables");
        assert_eq!(hint(&["macvlan"], &absent), None);
        let hint = hint(&["bridge", "host-local"], &absent).unwrap();
        assert!(hint.contains("bridge-nf-call-iptables") && hint.contains("modprobe br_netfilter"), "{hint}");
    }
}
