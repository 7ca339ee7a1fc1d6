//! A plugin with one idle task, on which the plugin's paths are measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::Task;
use serde_json::Value;

use super::Session;

/// The script of an idle task. It exits at once on SIGTERM.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

pub(crate) struct Driven {
    pub(crate) context: CaseContext,
    pub(crate) plugin: Plugin,
    pub(crate) task: Task,
}

impl Driven {
    /// Starts a plugin and an idle task. `name` is the name of the test directory.
    ///
    /// # Errors
    /// Fails if the plugin or the task doesn't start.
    pub(crate) async fn start(session: &Session<'_>, name: &str) -> Result<Self> {
        let context = CaseContext::new(Arc::clone(session.environment), session.plugin, name.to_owned());
        let plugin = context.plugin().await?;
        // The container by runc alone has no seccomp either: runc compiles a profile anew for each exec, which takes
        // long.
        let mut config = context.shell(IDLE);
        config["seccomp"] = false.into();
        let task = context.run(&plugin, &config).await?;
        Ok(Self { context, plugin, task })
    }

    /// Returns the bundle of the task's container. The directory's name is the container's id.
    ///
    /// # Errors
    /// Fails if the plugin has no bundle.
    pub(crate) fn bundle(&self) -> Result<PathBuf> {
        let mut bundles = fs::read_dir(self.context.state_dir().join("nomad"))?;
        Ok(bundles.next().context("the plugin has no bundle")??.path())
    }

    /// Ends the task and the plugin. The leak check is left to the caller, for when all others that share the
    /// containerd have ended, too.
    ///
    /// # Errors
    /// Fails if the task or the plugin can't be ended.
    pub(crate) async fn end(mut self) -> Result<CaseContext> {
        self.task.end(&self.plugin).await?;
        self.plugin.shut_down().await?;
        Ok(self.context)
    }
}

/// # Errors
/// Names the file.
pub(crate) fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}
