//! Directories and mounts of the host, and jobs that mount them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use harness::context::CaseContext;
use harness::leaks::sweep;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

/// Makes a directory of the host with a file in it, and another file in a directory below it.
pub fn host_directory(case: &CaseContext) -> Result<PathBuf> {
    let host = case.directory().join("host");
    fs::create_dir_all(host.join("sub"))?;
    fs::write(host.join("greeting"), "hello from the host\n")?;
    fs::write(host.join("sub/deeper"), "deeper\n")?;
    Ok(host)
}

/// Returns a shell's configuration with more options.
pub fn shell_with(case: &CaseContext, script: &str, more: &Value) -> Value {
    let mut config = case.shell(script);
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

/// Returns a bind mount for the job option `mounts`.
pub fn bind(source: impl AsRef<Path>, target: &str, options: &[&str]) -> Value {
    json!({"type": "bind", "source": source.as_ref(), "target": target, "options": options})
}

/// Mounts below a directory of the host, unmounted on drop.
pub struct HostMounts {
    pub at: PathBuf,
}

impl HostMounts {
    /// Mounts a tmpfs below the host's directory, and another one within it.
    pub fn nested(host: &Path) -> Result<Self> {
        let mounts = Self { at: host.to_owned() };
        let mut at = host.to_owned();
        for (name, flags) in [("sub", MsFlags::MS_NOEXEC), ("sub/a b", MsFlags::MS_NOSUID)] {
            at = host.join(name);
            fs::create_dir_all(&at)?;
            mount(Some("tmpfs"), &at, Some("tmpfs"), flags, None::<&str>)?;
        }
        fs::write(at.join("deepest"), "deepest\n")?;
        Ok(mounts)
    }

    /// Mounts the host's directory over itself with flags, as an operator may have restricted it.
    pub fn over(host: &Path, flags: MsFlags) -> Result<Self> {
        let nothing: Option<&str> = None;
        mount(Some(host), host, nothing, MsFlags::MS_BIND, nothing)?;
        let mounts = Self { at: host.to_owned() };
        mount(nothing, host, nothing, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, nothing)?;
        Ok(mounts)
    }
}

impl Drop for HostMounts {
    fn drop(&mut self) {
        sweep::unmount_under(&self.at);
    }
}
