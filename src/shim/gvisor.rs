//! Builds the options of gVisor's shim, which it reads from a file: the operator's own, and what a container needs
//! beside them.
//!
//! Source of the facts: gVisor `pkg/shim/v1/runsc/options.go`, `runsc/config/flags.go`, `runsc/sandbox/network.go`.

use std::path::Path;

use toml::{Table, Value};

use super::CreateOptions;

const ROOT: &str = "root";
const PROGRAM: &str = "binary_name";
const FLAGS: &str = "runsc_config";
/// The `runsc` that is run if neither the driver's options nor the operator's file names one.
const RUNSC: &str = "runsc";

/// The options that the driver adds to the operator's file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Additions<'a> {
    /// State directory of runsc: one in which no other client of containerd finds the container.
    pub root: &'a Path,
    /// Path of the program that the shim runs in the place of runsc.
    pub wrapper: &'a Path,
    /// The runsc to run. `None` for the one that the operator's file names, or else the one in PATH.
    pub program: Option<&'a str>,
}

/// The reasons why the operator's file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("it is not TOML")]
    NotToml(#[from] toml::de::Error),
    #[error("{key} in it must be {must}")]
    Key { key: &'static str, must: &'static str },
    #[error(transparent)]
    NotWritten(#[from] toml::ser::Error),
}

/// Builds the options of a container from the text of the operator's file.
///
/// # Errors
/// Says what is wrong with the operator's file.
pub(crate) fn options(operator_toml: &str, additions: Additions<'_>) -> Result<CreateOptions, FileError> {
    let Additions { root, wrapper, program } = additions;
    let mut options: Table = operator_toml.parse()?;
    // The shim takes its keys in letters of either case, and of two that differ in case the last.
    for key in [ROOT, PROGRAM, FLAGS] {
        if options.keys().any(|given| given != key && given.eq_ignore_ascii_case(key)) {
            return Err(FileError::Key { key, must: "in lower case" });
        }
    }
    let text = |text: &str| Value::String(text.to_owned());
    options.insert(ROOT.to_owned(), text(&root.display().to_string()));
    let operator_program = options.insert(PROGRAM.to_owned(), text(&wrapper.display().to_string()));
    let program = match (program, operator_program) {
        (Some(program), _) => program.to_owned(),
        (None, Some(Value::String(program))) => program,
        (None, None) => RUNSC.to_owned(),
        (None, Some(_)) => return Err(FileError::Key { key: PROGRAM, must: "a string" }),
    };
    let flags = options.entry(FLAGS).or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(flags) = flags else {
        return Err(FileError::Key { key: FLAGS, must: "a table of runsc's flags" });
    };
    for (flag, key) in [
        ("root", "runsc_config.root"),
        ("log", "runsc_config.log"),
        ("log-format", "runsc_config.log-format"),
    ] {
        if flags.contains_key(flag) {
            return Err(FileError::Key { key, must: "left out: the driver sets it for each container" });
        }
    }
    let flag_value = |flag: &str| flags.get(flag).map(|value| value.as_str().unwrap_or_default());
    if flag_value("ignore-cgroups").is_some_and(|word| word != "false") {
        return Err(FileError::Key {
            key: "runsc_config.ignore-cgroups",
            must: "left out: limits, statistics and the removal of a task need its cgroup",
        });
    }
    // With `systemd-cgroup`, runsc would take names of systemd's alone, and not the path of the cgroup that Nomad has
    // made.
    if let Some(by_systemd) = flags.get_mut("systemd-cgroup") {
        *by_systemd = text("false");
    }
    let flag_value = |flag: &str| flags.get(flag).map(|value| value.as_str().unwrap_or_default());
    match flag_value("network") {
        // `host`: the network stack of the host's kernel, within the task's network namespace.
        None => drop(flags.insert("network".to_owned(), text("host"))),
        Some("host" | "none") => {}
        Some(_) => {
            return Err(FileError::Key {
                key: "runsc_config.network",
                must: "left out, or \"host\" or \"none\": gVisor's own stack takes the addresses away from the namespace, where \
                       other tasks of the group, the next attempt and the CNI plugins at the end need them",
            });
        }
    }
    Ok(CreateOptions::Gvisor { text: toml::to_string(&options)?, program })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(operator_toml: &str, program: Option<&str>) -> Result<(Table, String), String> {
        let (root, wrapper) = (Path::new("/run/ours/runsc"), Path::new("/run/ours/wrapper"));
        let additions = Additions { root, wrapper, program };
        match options(operator_toml, additions).map_err(|error| error.to_string())? {
            CreateOptions::Gvisor { text, program } => Ok((text.parse().unwrap(), program)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_the_operators_with_the_drivers_root() {
        let operator_toml = "binary_name = \"/opt/runsc\"\nroot = \"/run/theirs\"\nlog_level = \"debug\"\n[runsc_config]\n\
                         platform = \"kvm\"\nnetwork = \"host\"\n";
        let expected = |rest: &str| rest.parse::<Table>().unwrap();
        let (options, program) = built(operator_toml, None).unwrap();
        let ours = "binary_name = \"/run/ours/wrapper\"\nroot = \"/run/ours/runsc\"\nlog_level = \"debug\"\n\
                    [runsc_config]\nplatform = \"kvm\"\nnetwork = \"host\"\n";
        assert_eq!((options, program.as_str()), (expected(ours), "/opt/runsc"));
        assert_eq!(built(operator_toml, Some("/other/runsc")).unwrap().1, "/other/runsc");
        assert_eq!(built("", None).unwrap().1, "runsc");
    }

    #[test]
    fn the_network_flag_defaults_to_host() {
        let network = |operator_toml: &str| {
            let flags = built(operator_toml, None).unwrap().0["runsc_config"].clone();
            flags.get("network").and_then(Value::as_str).map(str::to_owned)
        };
        assert_eq!(network("").as_deref(), Some("host"));
        assert_eq!(network("[runsc_config]\nnetwork = \"none\"\n").as_deref(), Some("none"));
    }

    #[test]
    fn systemd_cgroup_is_disabled() {
        let built = |operator_toml: &str| built(operator_toml, None).unwrap().0["runsc_config"].clone();
        let flags = built("[runsc_config]\nsystemd-cgroup = \"true\"\n");
        assert_eq!(flags.get("systemd-cgroup").and_then(Value::as_str), Some("false"));
        assert_eq!(built("").get("systemd-cgroup"), None);
    }

    #[test]
    fn an_invalid_options_file_is_refused_with_the_reason() {
        for (operator_toml, word) in [
            ("binary_name = ", "TOML"),
            ("runsc_config = 1", "runsc_config"),
            ("[Runsc_Config]\nignore-cgroups = \"true\"", "lower case"),
            ("ROOT = \"/x\"", "lower case"),
            ("[runsc_config]\nroot = \"/x\"", "runsc_config.root"),
            ("[runsc_config]\nlog = \"/x\"", "runsc_config.log"),
            ("[runsc_config]\nignore-cgroups = \"true\"", "ignore-cgroups"),
            ("[runsc_config]\nnetwork = \"sandbox\"", "runsc_config.network"),
        ] {
            let error = built(operator_toml, None).unwrap_err();
            assert!(error.contains(word), "{word} is not in {error}");
        }
    }
}
