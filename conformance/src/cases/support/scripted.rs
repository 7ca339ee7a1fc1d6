//! Scripts in the place of shims and runtimes, which fail until they are repaired.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use harness::context::CaseContext;
use harness::fixture::Programs;
use harness::host::Plugin;
use serde_json::{Value, json};
use tonic::Status;

use crate::cases::support::refused;

/// Name of the scripted shim's binary.
pub const SHIM: &str = "containerd-shim-scripted-v1";

/// A directory of scripts that is first in the plugin's PATH.
pub struct Scripted {
    pub directory: PathBuf,
    /// The real programs behind the scripts.
    pub programs: Programs,
}

impl Scripted {
    /// Makes the directory, in the broken state: the scripts run.
    pub fn new(case: &CaseContext) -> Result<Self> {
        let directory = case.directory().join("bin");
        fs::create_dir_all(&directory)?;
        let scripted = Self { directory, programs: case.programs().clone() };
        scripted.break_again()?;
        Ok(scripted)
    }

    /// Adds a shim that runs `script` while the file `broken` is there, and then the real shim.
    pub fn shim(&self, script: &str) -> Result<()> {
        self.program(SHIM, self.programs.shim(), script)
    }

    /// Adds a runtime that runs `script` while the file `broken` is there, found in place of the real one.
    pub fn runtime(&self, script: &str) -> Result<()> {
        self.runtime_as(&self.programs.runtime_name(), script)
    }

    /// Adds a runtime like [`Self::runtime`], under another name.
    pub fn runtime_as(&self, name: &str, script: &str) -> Result<()> {
        self.program(name, self.programs.runtime(), script)
    }

    /// Adds a program that runs `script` while the file `broken` is there, and then the program `real`.
    pub fn program(&self, name: &str, real: &Path, script: &str) -> Result<()> {
        let path = self.directory.join(name);
        let broken = self.directory.join("broken");
        let real = real.display();
        let text = format!(
            "#!/bin/sh\nreal={real}\nif [ -e {} ]; then\n{script}\nfi\nexec $real \"$@\"\n",
            broken.display()
        );
        fs::write(&path, text)?;
        Ok(fs::set_permissions(&path, Permissions::from_mode(0o755))?)
    }

    /// Starts a plugin that finds the scripts first, and whose shim is the script's, if there is one.
    pub async fn plugin(&self, case: &CaseContext) -> Result<Plugin> {
        self.plugin_with(case, case.options()).await
    }

    /// Starts a plugin like [`Self::plugin`], with other options.
    pub async fn plugin_with(&self, case: &CaseContext, mut options: Value) -> Result<Plugin> {
        let mut launch = case.launch();
        launch.look_first_in(self.directory.clone());
        if self.directory.join(SHIM).exists() {
            // A script is to run for its task alone.
            options["spare_shims"] = json!(0);
            options["containerd_runtime"] = json!("io.containerd.scripted.v1");
            options["runtime_options"] =
                case.options_with("io.containerd.scripted.v1")["runtime_options"].clone();
        }
        case.plugin_as(&launch, &options).await
    }

    /// Ends the broken state: from here on the scripts run the real programs only.
    pub fn repair(&self) -> Result<()> {
        Ok(fs::remove_file(self.directory.join("broken"))?)
    }

    /// Restores the broken state.
    pub fn break_again(&self) -> Result<()> {
        Ok(fs::write(self.directory.join("broken"), "")?)
    }
}

/// Asserts that a start by the scripts is refused with all of `words` in the error, leaves nothing after `left_within`, and
/// that the next start by the real programs works. Returns the refusal.
pub async fn refusal(
    case: &CaseContext,
    scripted: &Scripted,
    words: &[&str],
    left_within: Duration,
) -> Result<Status> {
    let mut plugin = scripted.plugin(case).await?;
    let task = case.prepare(&plugin, &case.shell("exit 3")).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&[task.id()][..], words].concat())?;
    case.nothing_left_within(left_within)?;
    scripted.repair()?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await?;
    Ok(status)
}

/// Returns a script that does something in place of a sub-command of `runc`, which is found among the arguments.
/// `complain` reports a text where the shim looks for it: in the file of `--log`.
pub fn runc(sub_command: &str, then: &str) -> String {
    format!(
        "complain() {{ printf '{{\"level\":\"error\",\"msg\":\"%s\",\"time\":\"2026-01-01T00:00:00Z\"}}\\n' \"$1\" \
         >> \"$log\"; echo \"$1\" >&2; exit 1; }}\n\
         for word in \"$@\"; do [ \"$before\" = --log ] && log=$word; before=$word; done\n\
         for word in \"$@\"; do [ \"$word\" = {sub_command} ] && {{ {then}; }}; done"
    )
}
