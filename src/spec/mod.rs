//! From what the job, the image and Nomad say to the OCI runtime specification of a container. Pure: whatever has to be
//! looked up on the host or in the image has been looked up before.
//!
//! Source of the facts: opencontainers/runtime-spec `config.md`, `config-linux.md`; the defaults are docker's, which
//! users of Nomad expect.

mod cpu;
mod memory;
mod mounts;
mod namespaces;
mod node;
mod process;
mod resources;
mod security;

use std::collections::BTreeMap;
use std::path::PathBuf;

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{LinuxBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder};

use crate::config::{PluginLimits, TaskOptions};
use crate::rootfs::Identity;

pub(crate) use namespaces::with_private_pids;
pub(crate) use node::{Node, check};
pub(crate) use process::exec_process;

/// The version of the specification that is written; all runtimes in the field read it.
const SPEC_VERSION: &str = "1.0.2";

/// What a container is made from.
pub(crate) struct Inputs<'a> {
    pub options: &'a TaskOptions,
    /// The operator's defaults.
    pub operators: &'a PluginLimits,
    pub task: &'a pb::TaskConfig,
    pub image: &'a ImageConfiguration,
    pub identity: &'a Identity,
    /// Where on the host the sources of the job's mounts are, by target.
    pub sources: &'a BTreeMap<String, PathBuf>,
    pub rootfs: PathBuf,
    pub hostname: String,
    /// Below the root of the cgroup hierarchies.
    pub cgroup_path: PathBuf,
    pub node: &'a Node,
}

/// Why a container can't be made as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(
        "there is nothing to run: the image {0} has neither an entrypoint nor a command; set the option command"
    )]
    NothingToRun(String),
    #[error("the option {option} can't be {value:?} here: {why}")]
    NotHere { option: &'static str, value: String, why: String },
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(
        "the mount of {host_path} at {task_path} can't have propagation_mode {mode:?}: use private, host-to-task or bidirectional"
    )]
    Propagation { host_path: String, task_path: String, mode: String },
    #[error("the mount at {0} has no source")]
    NoSource(String),
    #[error(transparent)]
    Incomplete(#[from] OciSpecError),
}

/// Builds the specification.
///
/// # Errors
/// Names the option that can't be met.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    if !inputs.task.devices.is_empty() {
        return Err(SpecError::Unsupported(
            "devices of Nomad's device plugins are not supported yet: remove the task's device block",
        ));
    }
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::namespaces(
            &inputs.options.namespaces,
            inputs.task.network_isolation_spec.as_ref(),
        )?)
        .cgroups_path(inputs.cgroup_path.clone())
        .resources(resources::limits(inputs)?)
        .masked_paths(security::masked_paths())
        .readonly_paths(security::readonly_paths())
        .build()?;
    linux.set_rootfs_propagation(mounts::propagation(&inputs.options.mounts, inputs.task));
    let spec = SpecBuilder::default()
        .version(SPEC_VERSION)
        .root(RootBuilder::default().path(inputs.rootfs.clone()).readonly(false).build()?)
        .hostname(inputs.hostname.clone())
        .mounts(mounts::mounts(&inputs.options.mounts, inputs.sources, inputs.task)?)
        .process(process_of(inputs)?)
        .linux(linux)
        .build()?;
    Ok(spec)
}

fn process_of(inputs: &Inputs<'_>) -> Result<oci_spec::runtime::Process, SpecError> {
    let config = inputs.image.config();
    let args = process::arguments(&inputs.options.process, config.as_ref());
    if args.is_empty() {
        return Err(SpecError::NothingToRun(inputs.options.image.clone()));
    }
    let Identity { uid, gid, groups, home } = inputs.identity;
    let user = UserBuilder::default().uid(*uid).gid(*gid).additional_gids(groups.clone()).build()?;
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args)
        .env(process::environment(config.as_ref(), &inputs.task.env, &inputs.hostname, home))
        .cwd(process::working_directory(config.as_ref()))
        .capabilities(security::capabilities()?)
        .no_new_privileges(false)
        .rlimits(resources::rlimits(&inputs.options.limits)?)
        .oom_score_adj(resources::oom_score_adj(&inputs.options.limits, inputs.operators))
        .build()?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

    use super::*;
    use crate::config::PidMode;

    fn identity() -> Identity {
        Identity { uid: 1000, gid: 1001, groups: vec![7], home: "/home/app".to_owned() }
    }

    fn built(task: &pb::TaskConfig, command: Option<&str>) -> Result<Spec, SpecError> {
        built_with(task, command, PidMode::Private)
    }

    fn built_with(
        task: &pb::TaskConfig,
        command: Option<&str>,
        pid_mode: PidMode,
    ) -> Result<Spec, SpecError> {
        let mut options = TaskOptions { image: "img".to_owned(), ..TaskOptions::default() };
        options.process.command = command.map(str::to_owned);
        options.namespaces.pid_mode = pid_mode;
        build(&Inputs {
            options: &options,
            operators: &PluginLimits::default(),
            task,
            image: &ImageConfiguration::default(),
            identity: &identity(),
            sources: &BTreeMap::new(),
            rootfs: "/b/rootfs".into(),
            hostname: "web-1".to_owned(),
            cgroup_path: "/nomad/a.web".into(),
            node: &Node::default(),
        })
    }

    fn network_of(spec: &Spec) -> Option<&LinuxNamespace> {
        let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
    }

    #[test]
    fn the_groups_network_is_joined_and_host_is_none_of_its_own() {
        let mut task = pb::TaskConfig::default();
        let own = built(&task, Some("x")).unwrap();
        assert!(network_of(&own).unwrap().path().is_none());
        task.network_isolation_spec =
            Some(pb::NetworkIsolationSpec { path: "/var/run/netns/a".to_owned(), ..Default::default() });
        let group = built(&task, Some("x")).unwrap();
        assert_eq!(network_of(&group).unwrap().path().as_deref(), Some("/var/run/netns/a".as_ref()));
        task.network_isolation_spec = Some(pb::NetworkIsolationSpec::default());
        assert!(network_of(&built(&task, Some("x")).unwrap()).is_none());
    }

    #[test]
    fn the_hosts_pids_are_shared_where_asked_and_hidden_from_the_shim() {
        let pids = |spec: &Spec| {
            let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
            namespaces.iter().filter(|namespace| namespace.typ() == LinuxNamespaceType::Pid).count()
        };
        let task = pb::TaskConfig::default();
        assert_eq!(pids(&built(&task, Some("x")).unwrap()), 1);
        let shared = built_with(&task, Some("x"), PidMode::Host).unwrap();
        assert_eq!(pids(&shared), 0);
        assert_eq!(pids(&with_private_pids(shared).unwrap()), 1);
    }

    #[test]
    fn the_process_runs_as_asked_and_with_the_usual_oom_score() {
        let spec = built(&pb::TaskConfig::default(), Some("x")).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 1001));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[7][..]));
        assert_eq!(process.oom_score_adj(), Some(0));
        assert_eq!(process.rlimits().as_deref(), Some(&[][..]), "the agent's are inherited");
    }

    #[test]
    fn what_cannot_be_met_is_refused() {
        let nothing = built(&pb::TaskConfig::default(), None).unwrap_err().to_string();
        assert!(nothing.contains("img") && nothing.contains("option command"), "{nothing}");
        let task = pb::TaskConfig { devices: vec![pb::Device::default()], ..Default::default() };
        assert!(built(&task, Some("x")).unwrap_err().to_string().contains("device"));
    }
}
