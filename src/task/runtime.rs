//! A task's runtime: the family of its shim, and the options that the shim gets when the container is created.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nomad_proto::driver as pb;
use shim_protos::RuncOptions;

use super::error::{Error, Result};
use super::mounts::off_thread;
use super::{Settings, container, find_programs};
use crate::cgroup::{self, Cgroup};
use crate::config::{AUTO_RUNTIME, PluginConfig, RuntimeOptions, ShimSharing, TaskOptions, sandbox};
use crate::gvisor::WRAPPER;
use crate::shim::gvisor::{self, Additions};
use crate::shim::{self, CreateOptions, Family, FileId};
use crate::sys::error_chain::Chained;
use crate::sys::host_path::Area;
use crate::sys::os_error::is_transient;

/// Maximum size of a file of options. Those in use have a few lines.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// The runtime that a task gets.
pub(super) struct Runtime {
    pub(super) family: Family,
    /// The program that the shim runs; `None` leaves it to the shim.
    pub(super) program: Option<String>,
    /// The crun that `oci_runtime = "auto"` has chosen.
    pub(super) chosen_crun: Option<FileId>,
    pub(super) options: CreateOptions,
}

impl Runtime {
    /// # Errors
    /// Names the option that the runtime can't give the task, or the operator's file that can't be read.
    pub(super) async fn of(
        settings: &Settings,
        options: &TaskOptions,
        task: &pb::TaskConfig,
    ) -> Result<Self> {
        let config = &settings.config;
        let runtime = options.runtime.shim(config);
        let shim_options = config.runtime_options.get(runtime).cloned().unwrap_or_default();
        let family = family_of(config, runtime);
        let (program, chosen_crun) = settings.program(options, family).await?;
        let options = match family {
            Family::Runc => runc_options(program.clone(), settings),
            Family::Gvisor => {
                options.fit_sandbox()?;
                nomads_fit_sandbox(task)?;
                gvisor_options(shim_options.config_path, program.clone(), settings).await?
            }
            Family::Other => other_options(runtime, shim_options, program.as_deref())?,
        };
        Ok(Self { family, program, chosen_crun, options })
    }
}

/// Returns the family of the shim of a runtime by its name and the operator's options.
pub(super) fn family_of(config: &PluginConfig, runtime: &str) -> Family {
    let options = config.runtime_options.get(runtime);
    Family::of_runtime(runtime, options.and_then(|options| options.type_url.as_deref()))
}

/// Warns if the driver doesn't know the options of the configured runtime's shim. A shim by another name that takes the
/// options of the runc family would run tasks in its runtime's default root, which all clients of containerd share.
pub(super) fn warn_of_unknown_shim(config: &PluginConfig) {
    let runtime = &config.containerd_runtime;
    if Family::of_runtime(runtime, None) == Family::Other && !config.runtime_options.contains_key(runtime) {
        tracing::warn!(
            runtime,
            "the type of options that the runtime's shim takes is not known, so it gets none; if it takes those of \
             the runc family, set the plugin option runtime_options (type_url = \"containerd.runc.v1.Options\")"
        );
    }
}

/// Checks the operator's options for shims that the driver knows.
///
/// # Errors
/// Names the option that the shim of its runtime can't have.
pub(super) fn check_options(config: &PluginConfig) -> Result<()> {
    let PluginConfig { shim_sharing, containerd_runtime, .. } = config;
    if *shim_sharing != ShimSharing::Task && family_of(config, containerd_runtime) != Family::Runc {
        return Err(Error::invalid(format!(
            "the plugin option shim_sharing can't be {:?} with containerd_runtime {containerd_runtime:?}: only shims of \
             the runc family have the containers of several tasks; set shim_sharing to \"task\", or containerd_runtime to \
             a runtime of that family, such as \"io.containerd.runc.v2\"",
            shim_sharing.name()
        )));
    }
    let runtime = &config.containerd_runtime;
    if config.oci_runtime.as_deref() == Some(AUTO_RUNTIME) && family_of(config, runtime) != Family::Runc {
        return Err(no_choice(runtime));
    }
    for (runtime, RuntimeOptions { type_url, config_path }) in &config.runtime_options {
        if let Some(takes) = Family::of_runtime(runtime, None).options_type()
            && let Some(given) = type_url.as_ref().filter(|given| *given != takes)
        {
            return Err(Error::invalid(format!(
                "the plugin option runtime_options.type_url can't be {given:?} for the runtime {runtime}: by its \
                 name, its shim takes options of the type {takes:?} only; leave type_url out, or, if it is another \
                 shim, rename its binary"
            )));
        }
        if Family::of_runtime(runtime, type_url.as_deref()) == Family::Runc
            && let Some(path) = config_path
        {
            return Err(Error::invalid(format!(
                "the plugin option runtime_options.config_path can't be {:?}: the shim of the runtime {runtime} is \
                 of the runc family, which reads no options file; leave it out, and set the program to run by \
                 oci_runtime",
                path.display().to_string()
            )));
        }
    }
    Ok(())
}

/// Warns of options for a runtime whose shim is not on this host; it may be installed later. A missing shim of
/// `containerd_runtime` is not named here: the driver's health tells of it.
pub(super) async fn warn_of_missing_shims(config: &PluginConfig) {
    for runtime in config.runtime_options.keys().filter(|runtime| **runtime != config.containerd_runtime) {
        if let Err(error) = find_programs(runtime.clone(), None).await {
            tracing::warn!(runtime, error = %error.chain(), "a block of the plugin option runtime_options has no effect for now");
        }
    }
}

/// Returns the error for a runtime whose shim runs neither crun nor runc.
pub(super) fn no_choice(runtime: &str) -> Error {
    Error::invalid(format!(
        "the option oci_runtime can't be \"auto\" with the runtime {runtime}: the choice is between crun and runc, which shims \
         of the runc family run; leave it out"
    ))
}

fn runc_options(program: Option<String>, settings: &Settings) -> CreateOptions {
    CreateOptions::Runc(Box::new(RuncOptions {
        root: container::runtime_root(settings),
        binary_name: program.unwrap_or_default(),
        ..RuncOptions::default()
    }))
}

fn other_options(runtime: &str, options: RuntimeOptions, program: Option<&str>) -> Result<CreateOptions> {
    if let Some(program) = program {
        return Err(Error::invalid(format!(
            "the option oci_runtime can't be {program:?} with the runtime {runtime}: the type of options that its \
             shim takes is not known; leave it out, or, if that shim takes the options of the runc family, set the \
             plugin option runtime_options with type_url = \"{}\"",
            shim_protos::any::RUNC_OPTIONS_URL
        )));
    }
    Ok(match options {
        RuntimeOptions { type_url: None, config_path: None } => CreateOptions::None,
        RuntimeOptions { type_url, config_path } => CreateOptions::File {
            type_url: type_url.unwrap_or_default(),
            path: config_path.unwrap_or_default(),
        },
    })
}

/// Checks what Nomad gives a sandboxed task beside its options, as [`TaskOptions::fit_sandbox`] checks the options.
fn nomads_fit_sandbox(task: &pb::TaskConfig) -> Result<()> {
    let unfit =
        |what: String, why: &str| Err(Error::invalid(format!("{what}: {}", sandbox::unfit_for_sandbox(why))));
    if let Some(device) = task.devices.first() {
        let what = format!("the device {} of the task's device block", device.host_path);
        return unfit(what, sandbox::NO_DEVICES);
    }
    if let Some(mount) = task.mounts.iter().find(|mount| mount.propagation_mode == "bidirectional") {
        let what = format!("the volume_mount at {} with propagation_mode \"bidirectional\"", mount.task_path);
        return unfit(what, sandbox::NO_SPREADING);
    }
    if is_taken_for_systemds(cgroup::mode(), &cgroup_of(task).path) {
        return Err(Error::invalid(format!(
            "the task name {:?}: under gVisor a task name with two colons is refused, since runsc takes the path of \
             its cgroup for names of systemd units; rename the task, or give it a runtime of the runc family (option \
             runtime)",
            task.name
        )));
    }
    Ok(())
}

/// Returns whether runsc takes the path of a cgroup for `slice:prefix:name`, as newer releases do on cgroup v2.
fn is_taken_for_systemds(mode: cgroup::Mode, path: &Path) -> bool {
    mode == cgroup::Mode::V2 && path.as_os_str().as_bytes().iter().filter(|byte| **byte == b':').count() == 2
}

async fn gvisor_options(
    file: Option<PathBuf>,
    program: Option<String>,
    settings: &Settings,
) -> Result<CreateOptions> {
    let state_dir = settings.config.state_dir.clone();
    let root = gvisor_root(&state_dir);
    let place = file.clone().unwrap_or_else(|| "/".into());
    let build = move || {
        let named =
            |path: &Path| format!("the plugin option runtime_options.config_path names {}", path.display());
        let operators = match &file {
            Some(path) => read(path).map_err(|error| error.context(named(path)))?,
            None => String::new(),
        };
        let wrapper = wrapper(&state_dir)?;
        let additions = Additions { root: &root, wrapper: &wrapper, program: program.as_deref() };
        let built = gvisor::options(&operators, additions);
        let path = file.as_deref().unwrap_or(Path::new(""));
        let built = built.map_err(|error| Error::invalid(error).context(named(path)))?;
        if let CreateOptions::Gvisor { program, .. } = &built {
            shim::require_program(program)?;
        }
        Ok(built)
    };
    off_thread(&place, "the file with the options of gVisor's shim", build).await
}

/// Makes the link by which this binary is called in the place of runsc, and returns its path. It is a link, since the
/// state directory may be one from which nothing is executed; it leads to the binary of the plugin that was started
/// last.
fn wrapper(state_dir: &Path) -> Result<PathBuf> {
    let link = state_dir.join(WRAPPER);
    let failed = |error: std::io::Error| Error::system(format!("create the link {}", link.display()), error);
    let own = present(std::env::current_exe().map_err(failed)?);
    if !own.exists() {
        let text = format!("the plugin's binary {} was removed: install it again", own.display());
        return Err(Error::transient(text));
    }
    if std::fs::read_link(&link).is_ok_and(|leads_to| leads_to == own) {
        return Ok(link);
    }
    let new = tempfile::Builder::new()
        .prefix(".new-")
        .make_in(state_dir, |new| symlink(&own, new))
        .map_err(failed)?;
    new.persist(&link).map_err(|error| failed(error.error))?;
    Ok(link)
}

/// Has the tasks of an earlier plugin call this one's binary: the earlier one's may be gone, such as after an upgrade.
///
/// # Errors
/// Names the link, or the binary that is gone.
pub(super) async fn renew_wrapper(settings: &Settings) -> Result<()> {
    let state_dir = settings.config.state_dir.clone();
    off_thread(&settings.config.state_dir, "the plugin's own binary", move || wrapper(&state_dir).map(drop))
        .await
}

/// Returns the path of a running binary without the mark that the kernel puts on it once the file was replaced, as in
/// an upgrade: it leads to the new file.
fn present(own: PathBuf) -> PathBuf {
    const REPLACED: &[u8] = b" (deleted)";
    match own.as_os_str().as_bytes().strip_suffix(REPLACED) {
        Some(path) if !own.exists() => OsStr::from_bytes(path).into(),
        _ => own,
    }
}

/// Reads a file of the operator's.
fn read(path: &Path) -> Result<String> {
    let beneath = path.strip_prefix("/").unwrap_or(path);
    let area = Area { root: Path::new("/"), plain: Path::new("") };
    let file = area.open_file(beneath).map_err(Error::unusable_path)?;
    let mut text = String::new();
    match file.take(FILE_LIMIT_BYTES + 1).read_to_string(&mut text) {
        Err(error) => {
            let transient = is_transient(&error);
            Err(Error::refused(error, transient))
        }
        Ok(length) if length as u64 > FILE_LIMIT_BYTES => {
            Err(Error::invalid(format!("it has more than {FILE_LIMIT_BYTES} bytes")))
        }
        Ok(_) => Ok(text),
    }
}

/// Returns the directory in which runsc keeps its state of this plugin's containers, to which it appends the namespace.
/// Private, as [`container::runtime_root`] is.
fn gvisor_root(state_dir: &Path) -> PathBuf {
    state_dir.join("runsc")
}

/// Returns the files by which runsc knows a container, and the sockets by which it reaches the sandbox: these are
/// elsewhere where the path of its state is too long for a socket's.
pub(super) fn gvisor_state(state_dir: &Path, namespace: &str, id: &str) -> [PathBuf; 4] {
    let directory = gvisor_root(state_dir).join(namespace);
    let file = |kind: &str| directory.join(format!("{id}_sandbox:{id}.{kind}"));
    let socket = |directory: &Path| directory.join(format!("runsc-{id}.sock"));
    [file("state"), file("lock"), socket(&directory), socket(Path::new("/var/run"))]
}

/// Returns the cgroup that the agent names for a task.
pub(super) fn cgroup_of(config: &pb::TaskConfig) -> Cgroup {
    let linux = config.resources.as_ref().and_then(|resources| resources.linux_resources.as_ref());
    Cgroup::of(&config.alloc_id, &config.name, linux.map_or("", |linux| linux.cpuset_cgroup.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::DriverName;

    #[test]
    fn a_path_with_two_colons_is_no_sandboxs_on_v2() {
        let taken = |mode, name: &str| {
            let path = format!("/nomad.slice/share.slice/a1.{name}.scope");
            is_taken_for_systemds(mode, Path::new(&path))
        };
        assert!(taken(cgroup::Mode::V2, "a:b:c") && !taken(cgroup::Mode::V1, "a:b:c"));
        for name in ["web", "a:b", "a:b:c:d"] {
            assert!(!taken(cgroup::Mode::V2, name), "{name}");
        }
    }

    #[test]
    fn another_shim_gets_what_the_operator_says_and_no_program() {
        let options = |type_url: Option<&str>, path: Option<&str>| RuntimeOptions {
            type_url: type_url.map(str::to_owned),
            config_path: path.map(PathBuf::from),
        };
        let of = |options| other_options("io.containerd.kata.v2", options, None).unwrap();
        assert_eq!(of(options(None, None)), CreateOptions::None);
        let kata = CreateOptions::File {
            type_url: "io.containerd.kata.v2.options".to_owned(),
            path: "/etc/kata.toml".into(),
        };
        assert_eq!(of(options(Some("io.containerd.kata.v2.options"), Some("/etc/kata.toml"))), kata);
        let error = other_options("io.containerd.kata.v2", options(None, None), Some("crun"))
            .unwrap_err()
            .to_string();
        for word in
            ["oci_runtime", "crun", "io.containerd.kata.v2", "runtime_options", "containerd.runc.v1.Options"]
        {
            assert!(error.contains(word), "{word} is not in {error}");
        }
    }

    #[test]
    fn options_that_a_known_shim_does_not_take_are_refused() {
        let check = |runtime: &str, type_url: Option<&str>, path: Option<&str>| {
            let block = json!([{"runtime": runtime, "type_url": type_url, "config_path": path}]);
            let options = json!({"containerd_runtime": runtime, "runtime_options": block});
            let options = rmp_serde::to_vec_named(&options).unwrap();
            let config = PluginConfig::decode(DriverName::ContainerdDriver, &options).unwrap().unwrap();
            check_options(&config).map_err(|error| error.to_string())
        };
        let (runc, gvisor) = ("containerd.runc.v1.Options", "io.containerd.runsc.v1.options");
        for (runtime, type_url, path) in [
            ("io.containerd.runc.v2", Some(runc), None),
            ("/opt/wrapper", Some(runc), None),
            ("io.containerd.runsc.v1", Some(gvisor), Some("/etc/runsc.toml")),
            ("io.containerd.runsc.v1", None, Some("/etc/runsc.toml")),
            ("/opt/sandbox", Some(gvisor), Some("/etc/runsc.toml")),
            ("io.containerd.kata.v2", Some("io.containerd.kata.v2.options"), Some("/etc/kata.toml")),
        ] {
            check(runtime, type_url, path).unwrap();
        }
        for (runtime, type_url, path, option) in [
            ("io.containerd.runc.v2", Some("io.containerd.kata.v2.options"), None, "type_url"),
            ("io.containerd.runc.v2-rs", Some(gvisor), Some("/etc/runsc.toml"), "type_url"),
            ("/opt/containerd-shim-runsc-v1", Some(runc), None, "type_url"),
            ("io.containerd.runc.v2", None, Some("/etc/x.toml"), "config_path"),
            ("/opt/wrapper", Some(runc), Some("/etc/x.toml"), "config_path"),
        ] {
            let error = check(runtime, type_url, path).unwrap_err();
            for word in [&format!("runtime_options.{option}"), runtime, "out, "] {
                assert!(error.contains(word), "{word} is not in {error}");
            }
        }
    }

    #[test]
    fn auto_is_refused_with_a_shim_that_runs_neither_crun_nor_runc() {
        let check = |runtime: &str, blocks: serde_json::Value| {
            let options =
                json!({"containerd_runtime": runtime, "oci_runtime": "auto", "runtime_options": blocks});
            let options = rmp_serde::to_vec_named(&options).unwrap();
            let config = PluginConfig::decode(DriverName::ContainerdDriver, &options).unwrap().unwrap();
            check_options(&config).map_err(|error| error.to_string())
        };
        check("io.containerd.runc.v2", json!([])).unwrap();
        check("/opt/containerd-shim-runc-v2-rs", json!([])).unwrap();
        let block = json!([{"runtime": "/opt/wrapper", "type_url": "containerd.runc.v1.Options"}]);
        check("/opt/wrapper", block).unwrap();
        for runtime in ["io.containerd.runsc.v1", "io.containerd.kata.v2", "/opt/wrapper"] {
            let error = check(runtime, json!([])).unwrap_err();
            for word in ["oci_runtime", "\"auto\"", runtime, "leave it out"] {
                assert!(error.contains(word), "{word} is not in {error}");
            }
        }
    }

    #[test]
    fn a_replaced_binary_is_found_at_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let (plugin, odd) = (directory.path().join("plugin"), directory.path().join("odd (deleted)"));
        assert_eq!(present(directory.path().join("plugin (deleted)")), plugin);
        std::fs::write(&odd, "").unwrap();
        assert_eq!(present(odd.clone()), odd, "it is called so");
        assert_eq!(present(plugin.clone()), plugin);
    }

    #[test]
    fn an_operators_file_is_read_whole_or_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("good"), "root = \"/x\"\n").unwrap();
        assert_eq!(read(&at("good")).unwrap(), "root = \"/x\"\n");
        symlink("good", at("link")).unwrap();
        assert_eq!(read(&at("link")).unwrap(), "root = \"/x\"\n");
        std::fs::write(at("large"), vec![b' '; 2 << 20]).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["large", "pipe", "missing"] {
            let error = read(&at(name)).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{name}: {error:?}");
        }
    }
}
