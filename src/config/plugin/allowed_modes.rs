//! The plugin block's `allowed_modes { .. }`: the host namespaces that a job may use.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, object, optional};
use crate::config::{ConfigError, DriverName, forbidden, reject_nulls};

/// The value by which an option selects the host's namespace.
const HOST: &str = "host";

/// Allowed values of the task's option for each kind of namespace. Values that share nothing with the host are always
/// allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedModes {
    pub pid: Vec<String>,
    pub ipc: Vec<String>,
    pub uts: Vec<String>,
    pub cgroupns: Vec<String>,
    pub userns: Vec<String>,
    pub network: Vec<String>,
}

/// Allows the host's network, as the driver that this one succeeds did, and no other namespace of the host.
impl Default for AllowedModes {
    fn default() -> Self {
        let none = Vec::new;
        Self {
            pid: none(),
            ipc: none(),
            uts: none(),
            cgroupns: none(),
            userns: none(),
            network: vec![HOST.to_owned()],
        }
    }
}

type List = Option<Vec<Option<String>>>;

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    pid: List,
    ipc: List,
    uts: List,
    cgroupns: List,
    userns: List,
    network: List,
}

pub(super) fn schema() -> Spec {
    let kinds = ["pid", "ipc", "uts", "cgroupns", "userns", "network"];
    block("allowed_modes", object(kinds.map(|kind| (kind, optional(kind, "list(string)")))))
}

impl Raw {
    pub(super) fn decode(self, name: DriverName) -> Result<AllowedModes, ConfigError> {
        let Self { pid, ipc, uts, cgroupns, userns, network } = self;
        let open = name.either(AllowedModes::default(), AllowedModes::all());
        let list = |option, given: List, open| match given {
            None => Ok(open),
            given => reject_nulls(option, given),
        };
        Ok(AllowedModes {
            pid: list("allowed_modes.pid", pid, open.pid)?,
            ipc: list("allowed_modes.ipc", ipc, open.ipc)?,
            uts: list("allowed_modes.uts", uts, open.uts)?,
            cgroupns: list("allowed_modes.cgroupns", cgroupns, open.cgroupns)?,
            userns: list("allowed_modes.userns", userns, open.userns)?,
            network: list("allowed_modes.network", network, open.network)?,
        })
    }
}

impl AllowedModes {
    /// Allows each namespace of the host, as Nomad's docker driver does.
    fn all() -> Self {
        let host = || vec![HOST.to_owned()];
        Self { pid: host(), ipc: host(), uts: host(), cgroupns: host(), userns: host(), network: host() }
    }

    /// Checks that the host's namespace is in `allowed`, the list of `allowed_modes.<kind>`.
    ///
    /// # Errors
    /// Names the operator's option that does not list it.
    pub(in crate::config) fn permit_host(
        option: &'static str,
        value: &str,
        kind: &str,
        allowed: &[String],
    ) -> Result<(), ConfigError> {
        if allowed.iter().any(|one| one == HOST) {
            return Ok(());
        }
        Err(forbidden(option, value, &format!("allowed_modes.{kind}"), &format!("{kind} = [{HOST:?}]")))
    }
}
