//! Builds a container's OCI runtime specification from the job, the image and what Nomad sends. Pure: all facts of the
//! host and of the image have been looked up before.
//!
//! Source of the facts: opencontainers/runtime-spec `config.md`, `config-linux.md`; the defaults are docker's, which
//! users of Nomad expect.

mod cpu;
mod devices;
#[cfg(test)]
mod golden;
mod host_facts;
mod memory;
mod mounts;
mod namespaces;
mod process;
#[cfg(test)]
mod properties;
mod resources;
mod security;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{LinuxBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder};

use crate::config::{PluginLimits, Process, Sharing, TaskOptions};
use crate::devices::DeviceEdits;
use crate::image::platform;
use crate::image::user::Identity;
use crate::security::Confinement;

pub(crate) use cpu::hard_limited as hard_limited_cpus;
pub(crate) use host_facts::{HostFacts, check};
pub(crate) use mounts::{BoundFile, ImageVolume, StagedSource, nomad_directories};
pub(crate) use namespaces::{NETWORK_PARAMETERS, NetNamespace, with_private_pids};
pub(crate) use process::{INIT, exec_process, working_directory};
pub(crate) use resources::oom_score_adj;

/// Version of the runtime specification that is written; all runtimes in the field read it.
const SPEC_VERSION: &str = "1.0.2";

/// A pod's annotation that makes gVisor create a sandbox, and its shim close the pipes that the sandbox keeps.
const SANDBOX: (&str, &str) = ("io.kubernetes.cri.container-type", "sandbox");

/// The inputs of a specification.
pub(crate) struct Inputs<'a> {
    pub options: &'a TaskOptions,
    /// The operator's defaults and maximums of resource limits.
    pub plugin_limits: &'a PluginLimits,
    pub confinement: &'a Confinement,
    pub task: &'a pb::TaskConfig,
    pub image: &'a ImageConfiguration,
    pub identity: &'a Identity,
    /// Sources of mounts on the host, by target: Nomad's directories, the job's own mounts, volumes.
    pub sources: &'a BTreeMap<String, StagedSource>,
    pub rootfs: PathBuf,
    pub hostname: String,
    pub network: &'a NetNamespace,
    /// Bind mounts of the files in /etc for names and, if the task has one, of the init program.
    pub files: &'a [BoundFile],
    pub image_volumes: &'a [ImageVolume],
    /// Cgroup of the task, relative to the root of the cgroup hierarchies.
    pub cgroup_path: PathBuf,
    pub host: &'a HostFacts,
    pub devices: &'a DeviceEdits,
    /// `true` if the container runs in a gVisor sandbox.
    pub is_sandboxed: bool,
}

/// The reason that a container can't be made as the job asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(
        "there is nothing to run: the image {0} has neither an entrypoint nor a command; set the option command"
    )]
    NothingToRun(String),
    #[error(
        "the image's WORKDIR {0:?} can't be the working directory: a task can't run in /proc; set another one by the \
         option work_dir"
    )]
    ImageDirectory(String),
    #[error("the option {option} can't be {value:?} here: {why}")]
    Unavailable { option: &'static str, value: String, why: String },
    #[error(
        "the mount of {host_path} at {task_path} can't have propagation_mode {mode:?}: use private, host-to-task or bidirectional"
    )]
    Propagation { host_path: String, task_path: String, mode: String },
    #[error("{what} has {bytes} bytes, more than the kernel's limit of {MAX_PATH_BYTES}")]
    TooLong { what: &'static str, bytes: usize },
    #[error("{0} has a NUL byte, which no program can be given")]
    Nul(String),
    #[error("the mount at {0} has no source")]
    NoSource(String),
    #[error(transparent)]
    Incomplete(#[from] OciSpecError),
}

/// Maximum length of a path (PATH_MAX), and of the options of a mount, in bytes. A runtime repeats on its stderr what
/// it can't run, mount or set. containerd's shim reads nothing from there before the runtime has exited: a text longer
/// than a pipe would block both, and a start permit with them.
const MAX_PATH_BYTES: usize = 4095;

/// Builds the specification.
///
/// # Errors
/// Names the option that can't be applied.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    let requested = &inputs.options.namespaces;
    // A sandbox has a kernel of its own, and takes none.
    let parameters = if inputs.is_sandboxed { &[] } else { &inputs.host.network_parameters[..] };
    let security = &inputs.options.security;
    let Confinement {
        capabilities: _,
        seccomp: _,
        seccomp_architectures: _,
        apparmor_profile: _,
        devices,
        masked_paths,
    } = inputs.confinement;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::namespaces(requested, inputs.network, inputs.host.is_cgroup_v2)?)
        .sysctl(namespaces::sysctl(requested, inputs.network, parameters))
        .cgroups_path(inputs.cgroup_path.clone())
        .resources(resources::limits(inputs)?)
        .devices(devices.clone())
        .masked_paths(security::masked_paths(security, masked_paths))
        .readonly_paths(security::readonly_paths(security))
        .build()?;
    let (arch, _) = platform::normal(inputs.image.architecture());
    linux.set_seccomp(inputs.confinement.seccomp_filter(&arch));
    linux.set_rootfs_propagation(mounts::propagation(&inputs.options.mounts, inputs.task));
    let mut spec = SpecBuilder::default()
        .version(SPEC_VERSION)
        .root(RootBuilder::default().path(inputs.rootfs.clone()).readonly(security.readonly_rootfs).build()?)
        .mounts(mounts::mounts(
            inputs.options,
            inputs.sources,
            inputs.files,
            inputs.image_volumes,
            inputs.task,
        )?)
        .process(process_of(inputs)?)
        .linux(linux)
        .build()?;
    // The host's name can't be set from a container; without this the crate sets a default name.
    spec.set_hostname((requested.uts_mode == Sharing::Private).then(|| inputs.hostname.clone()));
    if inputs.is_sandboxed {
        let (key, word) = SANDBOX;
        spec.set_annotations(Some([(key.to_owned(), word.to_owned())].into()));
    }
    devices::add(&mut spec, inputs.devices)?;
    check_lengths(&spec)?;
    // Also what the image and the devices add.
    let process = spec.process().as_ref();
    let arguments = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
    let environment = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    check_nul(arguments, environment)?;
    Ok(spec)
}

/// Checks the length of every text of the job's that a runtime may repeat in an error.
fn check_lengths(spec: &Spec) -> Result<(), SpecError> {
    let process = spec.process().as_ref();
    let program = process.and_then(|process| process.args().as_ref()?.first()).map_or(0, String::len);
    let cwd = process.map_or(0, |process| length(process.cwd()));
    let mounts = spec.mounts().iter().flatten().flat_map(|mount| {
        let options = mount.options().iter().flatten().map(|option| option.len() + 1).sum();
        let source = mount.source().as_ref().map_or(0, |source| length(source));
        [
            ("the path of a mount", length(mount.destination())),
            ("the source of a mount", source),
            ("the list of a mount's options", options),
        ]
    });
    let linux = spec.linux().as_ref();
    let devices = linux.iter().flat_map(|linux| linux.devices().iter().flatten());
    let parameters = linux.iter().flat_map(|linux| linux.sysctl().iter().flat_map(HashMap::keys));
    let mut all = [(PROGRAM, program), ("the working directory (option cwd)", cwd)]
        .into_iter()
        .chain(mounts)
        .chain(devices.map(|device| ("the path of a device", length(device.path()))))
        .chain(parameters.map(|name| ("the name of a kernel parameter (option sysctl)", name.len())));
    all.try_for_each(|(what, bytes)| check_length(what, bytes))
}

/// Checks an exec's program and arguments, as [`build`] does for the task's own.
///
/// # Errors
/// If the program's name is longer than the kernel accepts, or a word has a NUL byte.
pub(crate) fn check_command(command: &[String]) -> Result<(), SpecError> {
    check_length("the program", command.first().map_or(0, String::len))?;
    check_nul(command, &[])
}

/// Checks the job's own words for NUL bytes, before anything is made.
///
/// # Errors
/// Names the option or the variable.
pub(crate) fn check_words(process: &Process, variables: &HashMap<String, String>) -> Result<(), SpecError> {
    let entrypoint = process.entrypoint.as_deref().unwrap_or_default();
    let options =
        [("entrypoint", entrypoint), ("command", process.command.as_slice()), ("args", &process.args)];
    for (option, words) in options {
        if let Some(place) = words.iter().position(|word| word.contains('\0')) {
            return Err(SpecError::Nul(format!("word {} of the option {option}", place + 1)));
        }
    }
    match variables.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        Some((name, _)) => Err(nul_in_variable(name)),
        None => Ok(()),
    }
}

/// Checks that no argument or variable has a NUL byte, at which the kernel's strings end. A runtime finds that out only
/// once the task counts as started, and exits in its place.
fn check_nul(arguments: &[String], environment: &[String]) -> Result<(), SpecError> {
    if let Some(number) = arguments.iter().position(|argument| argument.contains('\0')) {
        return Err(SpecError::Nul(format!("argument {number} (the program is 0)")));
    }
    match environment.iter().find(|entry| entry.contains('\0')) {
        Some(entry) => Err(nul_in_variable(entry.split('=').next().unwrap_or_default())),
        None => Ok(()),
    }
}

/// Names the variable without its value, which may be a secret.
fn nul_in_variable(name: &str) -> SpecError {
    let name: String = name.chars().take(100).collect();
    SpecError::Nul(format!("the environment variable {name:?}"))
}

const PROGRAM: &str = "the program (options command and entrypoint)";

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

/// Checks a text's length.
///
/// # Errors
/// If it exceeds [`MAX_PATH_BYTES`].
fn check_length(what: &'static str, bytes: usize) -> Result<(), SpecError> {
    if bytes > MAX_PATH_BYTES { Err(SpecError::TooLong { what, bytes }) } else { Ok(()) }
}

fn process_of(inputs: &Inputs<'_>) -> Result<oci_spec::runtime::Process, SpecError> {
    let config = inputs.image.config();
    let args = process::arguments(&inputs.options.process, config.as_ref());
    if args.is_empty() {
        return Err(SpecError::NothingToRun(inputs.options.image.clone()));
    }
    let tty = inputs.options.process.tty;
    let variables = process::with_port_map(&inputs.task.env, &inputs.options.network.own_network.port_map);
    let Identity { uid, gid, groups, home } = inputs.identity;
    let user = UserBuilder::default().uid(*uid).gid(*gid).additional_gids(groups.clone()).build()?;
    let Confinement {
        capabilities,
        seccomp: _,
        seccomp_architectures: _,
        apparmor_profile,
        devices: _,
        masked_paths: _,
    } = inputs.confinement;
    let mut process = ProcessBuilder::default()
        .terminal(tty)
        .user(user)
        .args(args)
        .env(process::environment(config.as_ref(), &variables, &inputs.hostname, home, tty))
        .cwd(working_directory(&inputs.options.process, config.as_ref())?)
        .capabilities(security::capabilities(capabilities)?)
        .rlimits(resources::rlimits(&inputs.options.limits, inputs.host)?)
        .oom_score_adj(oom_score_adj(&inputs.options.limits, inputs.plugin_limits))
        .build()?;
    // Set only if requested, although `false` is the default: youki takes any value for true, and loads the seccomp
    // filter too late for a process without privileges.
    process.set_no_new_privileges(inputs.options.security.no_new_privileges.then_some(true));
    process.set_apparmor_profile(apparmor_profile.clone());
    Ok(process)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use oci_spec::runtime::{Capability, LinuxDevice, LinuxNamespaceType, LinuxSeccomp, Mount};

    use super::*;
    use crate::config::{SeccompArchitectures, Security};

    fn identity() -> Identity {
        Identity { uid: 1000, gid: 1001, groups: vec![7], home: "/home/app".to_owned() }
    }

    fn options(command: Option<&str>) -> TaskOptions {
        let mut options = TaskOptions { image: "img".to_owned(), ..TaskOptions::default() };
        options.process.command = command.map(str::to_owned);
        options
    }

    fn built(task: &pb::TaskConfig, options: &TaskOptions) -> Result<Spec, SpecError> {
        built_from(options, &Confinement::default(), task)
    }

    fn built_from(
        options: &TaskOptions,
        confinement: &Confinement,
        task: &pb::TaskConfig,
    ) -> Result<Spec, SpecError> {
        build(&Inputs {
            options,
            confinement,
            plugin_limits: &PluginLimits::default(),
            task,
            image: &ImageConfiguration::default(),
            identity: &identity(),
            sources: &mounts::tests::staged_by_nomad(),
            rootfs: "/b/rootfs".into(),
            hostname: "web-1".to_owned(),
            network: &NetNamespace::Own,
            files: &[],
            image_volumes: &[],
            cgroup_path: "/nomad/a.web".into(),
            host: &HostFacts::default(),
            devices: &DeviceEdits::default(),
            is_sandboxed: false,
        })
    }

    #[test]
    fn pid_mode_host_leaves_the_pid_namespace_out() {
        let pids = |spec: &Spec| {
            let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
            namespaces.iter().filter(|namespace| namespace.typ() == LinuxNamespaceType::Pid).count()
        };
        let (task, mut options) = (pb::TaskConfig::default(), options(Some("x")));
        assert_eq!(pids(&built(&task, &options).unwrap()), 1);
        options.namespaces.pid_mode = Sharing::Host;
        let shared = built(&task, &options).unwrap();
        assert_eq!(pids(&shared), 0);
        assert_eq!(pids(&with_private_pids(shared).unwrap()), 1);
    }

    #[test]
    fn a_hostname_needs_a_uts_namespace_of_the_tasks_own() {
        let (task, mut options) = (pb::TaskConfig::default(), options(Some("x")));
        assert_eq!(built(&task, &options).unwrap().hostname().as_deref(), Some("web-1"));
        options.namespaces.uts_mode = Sharing::Host;
        let shared = built(&task, &options).unwrap();
        assert_eq!(shared.hostname(), &None);
        let environment = shared.process().as_ref().unwrap().env().clone().unwrap();
        assert!(environment.contains(&"HOSTNAME=web-1".to_owned()), "{environment:?}");
    }

    #[test]
    fn the_process_has_the_jobs_settings_and_a_default_oom_score() {
        let mut options = options(Some("x"));
        options.process.tty = true;
        options.namespaces.sysctl.insert("net.core.somaxconn".to_owned(), "7".to_owned());
        let spec = built(&pb::TaskConfig::default(), &options).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 1001));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[7][..]));
        assert_eq!(process.oom_score_adj(), Some(0));
        assert_eq!(process.rlimits().as_deref(), Some(&[][..]), "the agent's are inherited");
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(spec.linux().as_ref().unwrap().sysctl().as_ref().unwrap()["net.core.somaxconn"], "7");
    }

    /// Builds the specification of a task with these rights.
    fn with_rights(security: Security, confinement: &Confinement) -> Spec {
        let mut options = TaskOptions { image: "img".to_owned(), security, ..TaskOptions::default() };
        options.process.command = Some("x".to_owned());
        built_from(&options, confinement, &pb::TaskConfig::default()).unwrap()
    }

    #[test]
    fn privileged_tasks_are_unconfined() {
        let is_open = |security: Security| {
            let spec = with_rights(security, &Confinement::default());
            let linux = spec.linux().as_ref().unwrap();
            let paths = [linux.masked_paths(), linux.readonly_paths()];
            let of_kernel = |mount: &&Mount| mount.destination().starts_with("/sys");
            let kernels: Vec<_> = spec.mounts().as_ref().unwrap().iter().filter(of_kernel).collect();
            let is_read_only = |mount: &Mount| mount.options().iter().flatten().any(|option| option == "ro");
            let devices = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
            (
                paths.iter().all(|paths| paths.as_ref().unwrap().is_empty()),
                !kernels.iter().any(|mount| is_read_only(mount)),
                devices.iter().all(|rule| rule.allow()),
            )
        };
        assert_eq!(is_open(Security::default()), (false, false, false));
        assert_eq!(is_open(Security { privileged: true, ..Security::default() }), (true, true, true));
        let paths = Security { system_paths_unconfined: true, ..Security::default() };
        assert_eq!(is_open(paths), (true, false, false));
    }

    #[test]
    fn resolved_security_settings_are_in_the_specification() {
        let confinement = Confinement {
            capabilities: [Capability::Kill].into(),
            seccomp: Some(Arc::new(LinuxSeccomp::default())),
            seccomp_architectures: SeccompArchitectures::All,
            apparmor_profile: Some("mine".to_owned()),
            devices: vec![LinuxDevice::default()],
            masked_paths: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned()],
        };
        let security = Security { no_new_privileges: true, readonly_rootfs: true, ..Security::default() };
        let spec = with_rights(security, &confinement);
        let process = spec.process().as_ref().unwrap();
        let capabilities = process.capabilities().as_ref().unwrap();
        for set in [capabilities.bounding(), capabilities.effective(), capabilities.permitted()] {
            assert_eq!(set.as_ref(), Some(&confinement.capabilities));
        }
        for set in [capabilities.inheritable(), capabilities.ambient()] {
            assert!(set.as_ref().unwrap().is_empty());
        }
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.apparmor_profile().as_deref(), Some("mine"));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.seccomp().as_ref(), confinement.seccomp.as_deref());
        assert_eq!(*linux.devices(), Some(confinement.devices.clone()));
        let is_masked = |spec: &Spec| {
            let masked = spec.linux().as_ref().unwrap().masked_paths().as_ref().unwrap();
            masked.contains(&confinement.masked_paths[0])
        };
        assert!(is_masked(&spec));
        assert!(!is_masked(&with_rights(Security { privileged: true, ..Security::default() }, &confinement)));
    }

    #[test]
    fn paths_are_no_longer_than_the_kernels_limit() {
        let long = "x".repeat(MAX_PATH_BYTES + 1);
        let refused = |change: &dyn Fn(&mut TaskOptions)| {
            let mut options = options(Some("x"));
            change(&mut options);
            built(&pb::TaskConfig::default(), &options).unwrap_err().to_string()
        };
        let mount = |source, options: Vec<String>| crate::config::JobMount {
            option: "tmpfs",
            target: "/x".to_owned(),
            source,
            options,
        };
        let memory = crate::config::MountSource::Memory;
        for (error, word) in [
            (refused(&|options| options.process.command = Some(long.clone())), "command"),
            (refused(&|options| options.process.cwd = Some(long.clone())), "cwd"),
            (
                refused(&|options| drop(options.namespaces.sysctl.insert(long.clone(), "1".to_owned()))),
                "sysctl",
            ),
            (
                refused(&|options| {
                    options.mounts.list = vec![mount(memory.clone(), vec!["uid=1".to_owned(); 1000])];
                }),
                "options",
            ),
        ] {
            assert!(error.contains(word) && error.contains("4095"), "{error}");
        }
        assert!(check_command(&[long]).is_err() && check_command(&["/bin/sh".to_owned()]).is_ok());
    }

    #[test]
    fn nul_bytes_in_arguments_and_variables_are_refused() {
        let mut with_nul = options(Some("/bin/sh"));
        with_nul.process.args = vec!["a".to_owned(), "b\0c".to_owned()];
        let error = built(&pb::TaskConfig::default(), &with_nul).unwrap_err().to_string();
        assert!(error.contains("argument 2") && error.contains("NUL"), "{error}");
        for (name, value) in [("TOKEN", "secret\0"), ("A\0", "b")] {
            let env = [(name.to_owned(), value.to_owned())].into();
            let task = pb::TaskConfig { env, ..pb::TaskConfig::default() };
            let error = built(&task, &options(Some("/bin/sh"))).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")) && !error.contains("secret"), "{error}");
        }
        let command = |word: &str| check_command(&["/bin/sh".to_owned(), word.to_owned()]);
        assert!(command("a\0").is_err() && command("a").is_ok());
    }

    #[test]
    fn unsupported_requests_are_refused() {
        let nothing = built(&pb::TaskConfig::default(), &options(None)).unwrap_err().to_string();
        assert!(nothing.contains("img") && nothing.contains("option command"), "{nothing}");
    }
}
