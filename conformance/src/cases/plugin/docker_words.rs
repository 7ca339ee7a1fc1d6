//! Options of Nomad's docker driver that have no meaning here, in the plugin's block.

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use serde_json::json;

use crate::cases::support::{cases, ensure_eq};

cases!["docker words":
    the_plugins_options_without_an_effect_are_named_in_one_warning,
];

async fn the_plugins_options_without_an_effect_are_named_in_one_warning(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    let of_docker = json!({
        "endpoint": "unix:///var/run/docker.sock",
        "tls": {"cert": "/etc/nomad/cert.pem", "key": "/etc/nomad/key.pem", "ca": "/etc/nomad/ca.pem"},
        "infra_image": "registry.k8s.io/pause-amd64:3.3",
        "infra_image_pull_timeout": "5m",
        "nvidia_runtime": "nvidia",
        "container_exists_attempts": 5,
        "windows_allow_insecure_container_admin": false,
    });
    let of_docker = of_docker.as_object().cloned().unwrap_or_default();
    for (option, value) in &of_docker {
        options[option] = value.clone();
    }
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell("echo runs")).await?;
    ensure_eq!(task.stdout(&plugin).await?, "runs\n");
    task.destroy(&plugin).await?;
    let warnings: Vec<String> =
        plugin.log().all().into_iter().filter(|line| line.contains("without an effect")).collect();
    ensure_eq!(warnings.len(), 1);
    for option in of_docker.keys() {
        ensure!(warnings[0].contains(option), "{option} is not in {}", warnings[0]);
    }
    plugin.shut_down().await
}
