//! Which of the host's namespaces a job may ask for is the operator's word: the plugin's `allowed_modes`.

use anyhow::Result;
use serde_json::json;

use super::{cases, refused};
use crate::scene::Scene;

cases!["modes": a_job_does_not_get_the_hosts_pids_unless_the_operator_allows_it];

async fn a_job_does_not_get_the_hosts_pids_unless_the_operator_allows_it(scene: &Scene) -> Result<()> {
    let mut config = scene.shell("true");
    config["pid_mode"] = json!("host");
    for allowed in [json!(null), json!({"pid": []}), json!({"pid": ["private"]})] {
        let mut options = scene.options();
        options["allowed_modes"] = allowed;
        let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
        let task = scene.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &["pid_mode", "host", "allowed_modes.pid"])?;
        scene.nothing_left()?;
        plugin.shut_down().await?;
    }
    Ok(())
}
