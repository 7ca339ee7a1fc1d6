//! Reads the memory of a traced process.

use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::unistd::Pid;

/// Maximum length of a path.
const PATH_BYTES: usize = 4096;
/// Step of a read, so that the end of a mapping behind a short text is not run into.
const STEP_BYTES: usize = 256;

pub struct Memory(File);

impl Memory {
    /// # Errors
    /// Fails if the process is gone.
    pub fn of(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        Ok(Self(File::open(&path).with_context(|| format!("open {path}"))?))
    }

    /// Reads up to `length` bytes.
    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = self.0.read_at(&mut bytes, address).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// Reads a path that ends with a NUL.
    pub fn path(&self, address: u64) -> PathBuf {
        let mut path = Vec::new();
        let mut at = address;
        while path.len() < PATH_BYTES {
            // A step ends where a page does.
            let to_boundary = STEP_BYTES - usize::try_from(at).unwrap_or(0) % STEP_BYTES;
            let part = self.bytes(at, to_boundary);
            let end = part.iter().position(|&byte| byte == 0);
            path.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            if end.is_some() || part.is_empty() {
                break;
            }
            at += part.len() as u64;
        }
        std::ffi::OsString::from_vec(path).into()
    }
}
