//! A container that is created and entered by an OCI runtime's command line alone: the lower bound for anything that
//! is built on that runtime.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use harness::environment::TestEnvironment;
use serde_json::Value;

use super::ctr::{ctr, image};
use super::driven::read;

/// A container of a runtime's command line, removed on drop.
pub(crate) struct Bare {
    environment: Arc<TestEnvironment>,
    runtime: &'static str,
    directory: PathBuf,
    id: String,
}

impl Bare {
    /// Starts a container like the driver's one of that bundle: the same specification in a control group of its own,
    /// on its own snapshot of the same image.
    ///
    /// # Errors
    /// Carries the runtime's output.
    pub(crate) fn like(
        bundle: &Path,
        runtime: &'static str,
        environment: &Arc<TestEnvironment>,
    ) -> Result<Self> {
        let directory = environment.directory().join(format!("bare-{runtime}"));
        let rootfs = directory.join("rootfs");
        fs::create_dir_all(&rootfs)?;
        let id = format!("measure-{runtime}-{}", std::process::id());
        let mut spec: Value = read(&bundle.join("config.json"))?;
        spec["root"]["path"] = rootfs.display().to_string().into();
        spec["linux"]["cgroupsPath"] = format!("/measure/{runtime}").into();
        // The sources of the driver's own mounts (name files, /alloc and the like) lie in its bundle, and exist only
        // while the container is created.
        let is_of_bundle = |mount: &Value| {
            mount["source"].as_str().is_some_and(|source| Path::new(source).starts_with(bundle))
        };
        spec["mounts"]
            .as_array_mut()
            .into_iter()
            .for_each(|mounts| mounts.retain(|mount| !is_of_bundle(mount)));
        fs::write(directory.join("config.json"), serde_json::to_vec(&spec)?)?;
        ctr(environment, &["images", "mount", "--rw", &image(environment), &rootfs.display().to_string()])?;
        let bare = Self { environment: Arc::clone(environment), runtime, directory, id };
        // The output goes to a file: the container would inherit pipes, and hold them open.
        let log = fs::File::create(bare.directory.join("log"))?;
        let bundle = bare.directory.display().to_string();
        let mut run = bare.command(&["run", "--detach", "--bundle", &bundle, &bare.id]);
        let status = run.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status();
        let status = status.with_context(|| format!("run {runtime}"))?;
        let stderr = || fs::read_to_string(bare.directory.join("log")).unwrap_or_default();
        ensure!(status.success(), "{runtime} run ends with {status}: {}", stderr().trim());
        Ok(bare)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.runtime);
        command.arg("--root").arg(self.directory.join("state")).args(arguments);
        command
    }

    /// Writes a file into the container's file system. `path` is the path within the container.
    ///
    /// # Errors
    /// Carries the kernel's error.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.directory.join("rootfs").join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(file.parent().unwrap_or(&file))?;
        fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))
    }

    /// Runs a command in the container and returns its stdout.
    ///
    /// # Errors
    /// Carries the runtime's output.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<Vec<u8>> {
        let command = [&["exec", &self.id], words].concat();
        self.well(&mut self.command(&command)).map(|output| output.stdout)
    }

    fn well(&self, command: &mut Command) -> Result<Output> {
        let output =
            command.stdin(Stdio::null()).output().with_context(|| format!("run {}", self.runtime))?;
        let stderr = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{} ends with {}: {}", self.runtime, output.status, stderr());
        Ok(output)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.well(&mut self.command(&["delete", "--force", &self.id]));
        let rootfs = self.directory.join("rootfs").display().to_string();
        let _ = ctr(&self.environment, &["images", "unmount", "--rm", &rootfs]);
        let _ = fs::remove_dir_all(&self.directory);
    }
}
