//! The network of a task group.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use harness::fixture::process;
use nomad_proto::driver as pb;
use nomad_proto::driver::network_isolation_spec::NetworkIsolationMode;

/// A network namespace as Nomad makes one for a group, with an interface in it. Removed on drop.
pub struct GroupNetwork {
    pub path: PathBuf,
}

impl GroupNetwork {
    /// Address of the interface in the group's namespace.
    pub const ADDRESS: &str = "192.0.2.18";
    /// Address of the default route's gateway in the group's namespace.
    pub const GATEWAY: &str = "192.0.2.17";

    /// Makes the namespace, bound to a file in `directory`, with one end of a veth pair in it.
    pub fn make(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join("group-netns");
        std::fs::write(&path, "")?;
        let setup = format!(
            "ip link set lo up; ip link add inside type veth peer name outside; ip address add {}/24 dev inside; ip link set outside up; ip link set inside up; ip route add default via {}",
            Self::ADDRESS,
            Self::GATEWAY
        );
        process::output(
            Command::new("unshare").arg(format!("--net={}", path.display())).args(["sh", "-ec", &setup]),
        )?;
        Ok(Self { path })
    }

    /// Returns the specification with which Nomad hands this network to a task of the group.
    pub fn spec(&self) -> pb::NetworkIsolationSpec {
        pb::NetworkIsolationSpec {
            mode: NetworkIsolationMode::Group.into(),
            path: self.path.display().to_string(),
            ..Default::default()
        }
    }
}

impl Drop for GroupNetwork {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH);
    }
}
