//! Resolves the name of a runtime to the binary of its shim by containerd's rule: of `io.containerd.runc.v2` the last
//! two parts count, and the binary is `containerd-shim-runc-v2`. A path names the binary itself.
//!
//! Source of the facts: containerd `runtime/v2/shim/util.go` (1.x), `pkg/shim/util.go` (2.x).

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{DEFAULT_PATH, Error, Family, FileId};

/// The OCI runtime that shims of the runc family run unless they are told another.
pub(crate) const RUNC: &str = "runc";

/// Finds the shim of a runtime, in the directories of the plugin's PATH and then in the usual ones.
///
/// # Errors
/// Says which file was looked for, and where.
pub(crate) fn find_shim(runtime: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(runtime, &[path.as_os_str(), OsStr::new(DEFAULT_PATH)])
}

/// Checks that the program exists that a shim is told to run, since not every shim names a program that it misses. A
/// shim looks for the program in the PATH that it is given.
///
/// # Errors
/// Says which program was looked for, and where.
pub(crate) fn require_program(program: &str) -> Result<(), Error> {
    find_program(program).map(drop)
}

/// Returns the identity of the file that a shim runs for a program; `None` if it vanishes meanwhile.
///
/// # Errors
/// As [`require_program`].
pub(crate) fn identify_program(program: &str) -> Result<Option<FileId>, Error> {
    find_program(program).map(|file| FileId::of(&file))
}

fn find_program(program: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    find_program_in(program, &path)
}

fn find_program_in(program: &str, path: &OsStr) -> Result<PathBuf, Error> {
    let missing = |looked_in: String| Error::RuntimeMissing { program: program.to_owned(), looked_in };
    if program.starts_with('/') {
        let file = PathBuf::from(program);
        return if is_executable(&file) { Ok(file) } else { Err(missing("at that path".to_owned())) };
    }
    let mut files = std::env::split_paths(path).map(|directory| directory.join(program));
    files.find(|file| is_executable(file)).ok_or_else(|| missing(format!("in {}", path.display())))
}

fn find_in(runtime: &str, paths: &[&OsStr]) -> Result<PathBuf, Error> {
    let missing = |file: &Path, looked_in: String| Error::ShimMissing {
        runtime: runtime.to_owned(),
        file: file.to_owned(),
        looked_in,
    };
    if runtime.starts_with('/') {
        let file = PathBuf::from(runtime);
        return if is_executable(&file) { Ok(file) } else { Err(missing(&file, "at that path".to_owned())) };
    }
    let name = PathBuf::from(binary_name(runtime));
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in paths.iter().flat_map(std::env::split_paths).filter(|directory| directory.is_absolute())
    {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    let found = directories.iter().map(|directory| directory.join(&name)).find(|file| is_executable(file));
    found.ok_or_else(|| {
        let listed: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        missing(&name, format!("in {}", listed.join(", ")))
    })
}

/// Returns the binary of a runtime's shim: a path, or the name by which it is looked for.
pub(super) fn binary_of(runtime: &str) -> PathBuf {
    if runtime.starts_with('/') { runtime.into() } else { binary_name(runtime).into() }
}

fn binary_name(runtime: &str) -> String {
    let mut parts = runtime.rsplit('.');
    let version = parts.next().unwrap_or_default();
    let name = parts.next().unwrap_or_default();
    format!("containerd-shim-{name}-{version}")
}

/// Returns whether no process of a created container, nor of an exec in it, gets the OOM score of its shim: runc sets
/// the score of each process, and processes in a sandbox of gVisor are none of the host's. Another runtime may leave a
/// process the score that it inherits. A link by the name of runc to another program is not runc.
pub(crate) fn sets_oom_scores(family: Family, program: Option<&str>) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    match family {
        Family::Runc => is_runc(program.unwrap_or(RUNC), &path),
        Family::Gvisor => true,
        Family::Other => false,
    }
}

fn is_runc(program: &str, path: &OsStr) -> bool {
    let found = std::env::split_paths(path).map(|directory| directory.join(program));
    let real = found.filter(|file| is_executable(file)).find_map(|file| file.canonicalize().ok());
    real.is_some_and(|real| real.file_name() == Some(OsStr::new(RUNC)))
}

pub(super) fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_name_resolves_by_its_last_two_parts() {
        assert_eq!(binary_name("io.containerd.runc.v2"), "containerd-shim-runc-v2");
        assert_eq!(binary_name("io.containerd.runc.v1"), "containerd-shim-runc-v1");
        assert_eq!(binary_name("io.containerd.runc.v2-rs"), "containerd-shim-runc-v2-rs");
        assert_eq!(binary_name("kata.v2"), "containerd-shim-kata-v2");
    }

    #[test]
    fn runc_is_recognized_behind_symlinks() {
        let directory = tempfile::tempdir().unwrap();
        let (path, at) = (directory.path().as_os_str(), |name: &str| directory.path().join(name));
        assert!(!is_runc("runc", path), "it is not there");
        for name in ["crun", "elsewhere"] {
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::symlink("crun", at("runc")).unwrap();
        assert!(!is_runc("runc", path) && !is_runc("crun", path));
        std::fs::remove_file(at("runc")).unwrap();
        std::fs::rename(at("elsewhere"), at("runc")).unwrap();
        assert!(is_runc("runc", path));
        assert!(is_runc(&at("runc").display().to_string(), OsStr::new("/nowhere")));
    }

    #[test]
    fn a_missing_shim_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("containerd-shim-mine-v7");
        std::fs::write(&file, b"").unwrap();
        let paths = [OsStr::new("/nowhere"), directory.path().as_os_str()];
        let error = find_in("io.mine.v7", &paths).unwrap_err().to_string();
        assert!(
            error.contains("containerd-shim-mine-v7") && error.contains("/nowhere, /"),
            "not executable: {error}"
        );
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("io.mine.v7", &paths).unwrap(), file);
        assert_eq!(find_in(file.to_str().unwrap(), &[]).unwrap(), file);
        let error = find_in("/no/such/shim", &paths).unwrap_err().to_string();
        assert!(error.contains("/no/such/shim"), "{error}");
    }

    #[test]
    fn a_missing_runtime_is_named_with_its_options() {
        let found = find_program_in("sh", OsStr::new("/nowhere:/bin")).unwrap();
        assert_eq!(found, find_program_in("/bin/sh", OsStr::new("")).unwrap());
        for (program, looked_in) in [("crun-x", "in /nowhere:/bin"), ("/opt/crun", "at that path")] {
            let error = find_program_in(program, OsStr::new("/nowhere:/bin")).unwrap_err().to_string();
            for word in [program, looked_in, "oci_runtime"] {
                assert!(error.contains(word), "{word} is not in {error}");
            }
        }
    }
}
