//! Finds the host's init program, which a task can have as its first process: it forwards signals and reaps orphaned
//! processes. It has to run in any image, so it must be linked statically.
//!
//! Source of the facts: elf(5).

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

const NAMES: [&str; 4] = ["tini-static", "docker-init", "catatonit", "tini"];
const DIRECTORIES: [&str; 8] = [
    "/usr/local/bin",
    "/usr/bin",
    "/usr/sbin",
    "/bin",
    "/sbin",
    "/usr/libexec/docker",
    "/usr/libexec/podman",
    "/usr/libexec/catatonit",
];
const HEADER_BYTES: usize = 64;
/// Type of a program header that names a dynamic loader.
const INTERPRETER: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitProgramError {
    #[error(
        "the option init needs a static init program on this node, and there is none: install tini (Debian, Ubuntu), \
         catatonit or docker, or name one in the plugin option init_path"
    )]
    NotFound,
    #[error("the plugin option init_path can't be {path:?}: {why}")]
    Unfit { path: PathBuf, why: String },
}

/// Returns the path of the init program: the named one, else the first in one of the usual places.
///
/// # Errors
/// If there is none, or the named one can't run in any image.
pub(crate) fn find(named: Option<&Path>) -> Result<PathBuf, InitProgramError> {
    if let Some(path) = named {
        let unfit = |why| InitProgramError::Unfit { path: path.to_owned(), why };
        return fitness(path).map(|()| path.to_owned()).map_err(unfit);
    }
    let places = NAMES.iter().flat_map(|name| DIRECTORIES.map(|directory| Path::new(directory).join(name)));
    places.into_iter().find(|path| fitness(path).is_ok()).ok_or(InitProgramError::NotFound)
}

/// Checks that a file can run in any image; the error says why it can't.
fn fitness(path: &Path) -> Result<(), String> {
    let error_text = |error: std::io::Error| error.to_string();
    let file = File::open(path).map_err(error_text)?;
    let metadata = file.metadata().map_err(error_text)?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o001 == 0 {
        return Err("it is not a file that every user may execute".to_owned());
    }
    match loads_nothing(&file) {
        Some(true) => Ok(()),
        Some(false) => Err("it is not statically linked, and an image may lack its libraries".to_owned()),
        None => Err("it is not a program for this machine's architecture".to_owned()),
    }
}

/// Returns true if a program needs no dynamic loader. `None` if it is no 64-bit program of this machine's byte order.
fn loads_nothing(file: &File) -> Option<bool> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if !header.starts_with(b"\x7fELF\x02") || header[5] != order {
        return None;
    }
    let short = |at: usize| u64::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let first = u64::from_ne_bytes(header[32..40].try_into().ok()?);
    let (size, count) = (short(54), short(56));
    for number in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, first.checked_add(number * size)?).ok()?;
        if u32::from_ne_bytes(kind) == INTERPRETER {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a program with program headers of these types.
    fn program(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[5] = if cfg!(target_endian = "little") { 1 } else { 2 };
        bytes[32..40].copy_from_slice(&(HEADER_BYTES as u64).to_ne_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_ne_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_ne_bytes());
        for kind in kinds {
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 52]);
        }
        bytes
    }

    #[test]
    fn only_a_program_that_loads_nothing_fits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init");
        let with = |content: &[u8], mode: u32| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            find(Some(&path)).map(drop).map_err(|error| error.to_string())
        };
        with(&program(&[6, 1, 1]), 0o755).unwrap();
        for (content, mode, word) in [
            (program(&[6, INTERPRETER, 1]), 0o755, "statically"),
            (program(&[1]), 0o750, "every user"),
            (b"#!/bin/sh\n".repeat(20), 0o755, "not a program for this machine"),
            (program(&[1, 1])[..70].to_vec(), 0o755, "not a program for this machine"),
        ] {
            let error = with(&content, mode).unwrap_err();
            assert!(error.contains("init_path") && error.contains(word), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(find(Some(&path)).unwrap_err().to_string().contains("No such file"));
        assert!(find(Some(directory.path())).is_err());
    }
}
