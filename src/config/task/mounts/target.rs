//! Rules for the paths in a container at which a job may mount something.

use crate::config::{ConfigError, value};

/// Targets that are refused: every container needs them as they are, or Nomad and this driver mount something there.
const TAKEN: [&str; 7] = ["/", "/proc", "/dev/pts", "/alloc", "/alloc/logs", "/local", "/secrets"];
/// Paths below `/proc` that runtimes allow as targets: none tells a process who it is.
const BELOW_PROC: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// Returns the shortest form of a target.
///
/// # Errors
/// If the target is missing, not absolute, or has a part `..`, which could lead elsewhere through symbolic links.
pub(super) fn decode(option: &'static str, target: Option<String>) -> Result<String, ConfigError> {
    let target = target.unwrap_or_default();
    if !target.starts_with('/') {
        return Err(value(option, target, "a mount needs a target, the absolute path in the container"));
    }
    if target.split('/').any(|part| part == "..") {
        return Err(value(option, target, "a target must not contain \"..\"; write the resolved path"));
    }
    if target.contains('\0') {
        return Err(value(option, target, "a path must not contain NUL"));
    }
    Ok(shortest(&target))
}

pub(super) fn shortest(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.fold(String::new(), |path, part| path + "/" + part)
}

/// Checks that a job may mount something at the target.
///
/// # Errors
/// If the target is reserved in every container.
pub(super) fn check(option: &'static str, target: &str) -> Result<(), ConfigError> {
    let shown = if target.is_empty() { "/" } else { target };
    if TAKEN.contains(&shown) {
        let why = "the container itself uses this path; choose another target";
        return Err(value(option, shown, why));
    }
    if target.starts_with("/proc/") && !BELOW_PROC.contains(&target) {
        let why = format!("below /proc only these can be mounted over: {}", BELOW_PROC.join(", "));
        return Err(value(option, target, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_absolute_and_normalized() {
        let decode = |target: &str| decode("mounts", Some(target.to_owned()));
        assert_eq!(decode("/a//b/./c/").unwrap(), "/a/b/c");
        assert_eq!(decode("/...").unwrap(), "/...");
        for target in ["", "a", "./a", "/a/../b", "/..", "/a\0"] {
            let error = decode(target).unwrap_err().to_string();
            assert!(error.contains("mounts") && error.contains("target") || error.contains("NUL"), "{error}");
        }
    }

    #[test]
    fn targets_in_kernel_file_systems_are_refused() {
        let check = |target: &str| check("volumes", &shortest(target));
        for target in ["/", "/proc", "/proc/", "/proc/self", "/proc/sys", "/alloc", "/secrets//", "/dev/pts"]
        {
            let error = check(target).unwrap_err().to_string();
            assert!(error.contains("volumes") && error.contains(target.trim_end_matches('/')), "{error}");
        }
        for target in ["/data", "/proc/meminfo", "/process", "/dev/shm", "/local/x", "/alloc/data"] {
            check(target).unwrap();
        }
    }
}
