//! A plugin with one task that does nothing: what the plugin's paths are measured on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Ground;
use crate::host::Plugin;
use crate::scene::Scene;
use crate::task::Task;

/// It ends at once when told to.
pub const IDLE: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

pub struct Driven {
    pub scene: Scene,
    pub plugin: Plugin,
    pub task: Task,
}

impl Driven {
    /// `name` is the directory's.
    ///
    /// # Errors
    /// When plugin or task don't start.
    pub async fn start(ground: &Ground<'_>, name: &str) -> Result<Self> {
        let scene = Scene::new(Arc::clone(ground.world), ground.plugin, name.to_owned());
        let plugin = scene.plugin().await?;
        // As runc's own container has none: runc compiles a profile anew for each exec, which is dear.
        let mut config = scene.shell(IDLE);
        config["seccomp"] = false.into();
        let task = scene.run(&plugin, &config).await?;
        Ok(Self { scene, plugin, task })
    }

    /// Where the plugin keeps the task's container, whose id is the directory's name.
    ///
    /// # Errors
    /// When there is none.
    pub fn bundle(&self) -> Result<PathBuf> {
        let mut bundles = fs::read_dir(self.scene.state_dir().join("nomad"))?;
        Ok(bundles.next().context("the plugin has no bundle")??.path())
    }

    /// Ends task and plugin, and lets the account be taken once others that share the containerd have ended, too.
    ///
    /// # Errors
    /// When they don't end.
    pub async fn end(mut self) -> Result<Scene> {
        self.task.end(&self.plugin).await?;
        self.plugin.shut_down().await?;
        Ok(self.scene)
    }
}

/// # Errors
/// Names the file.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}
