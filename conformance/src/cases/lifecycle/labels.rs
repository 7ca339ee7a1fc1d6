//! Labels on a container's record: the job's, and those of Nomad's facts that the operator wants there.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused};

cases!["labels":
    a_record_bears_the_jobs_labels_and_the_drivers,
    the_operator_chooses_further_labels,
    a_label_that_is_not_a_jobs_to_set_is_refused,
];

/// Returns the labels of the only container record.
fn labels(case: &CaseContext) -> Result<BTreeMap<String, String>> {
    let containerd = case.environment().containerd();
    let id = containerd.ctr(&["containers", "list", "--quiet"])?;
    let record: Value = serde_json::from_str(&containerd.ctr(&["containers", "info", id.trim()])?)?;
    serde_json::from_value(record["Labels"].clone()).context("the record has no labels")
}

async fn a_record_bears_the_jobs_labels_and_the_drivers(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = case.shell("sleep 600");
    // As Nomad sends blocks, of which a job may have several.
    config["labels"] = json!([{"team": "web"}, {"example.com/tier": "front", "empty": ""}]);
    let task = case.run(plugin, &config).await?;
    let labels = labels(case)?;
    let label = |key: &str| labels.get(key).map(String::as_str);
    for (key, value) in [
        ("team", "web"),
        ("example.com/tier", "front"),
        ("nomad/alloc-id", task.alloc.id.as_str()),
        ("com.hashicorp.nomad.alloc_id", task.alloc.id.as_str()),
    ] {
        ensure_eq!(label(key), Some(value));
    }
    ensure_eq!(label("com.hashicorp.nomad.job_name"), None);
    ensure_eq!(label("empty"), None);
    task.end(plugin).await
}

async fn the_operator_chooses_further_labels(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["extra_labels"] = json!(["job*", "node_id", "task_name"]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let labels = labels(case)?;
    let names: Vec<_> = labels.keys().filter_map(|key| key.strip_prefix("com.hashicorp.nomad.")).collect();
    ensure_eq!(names, ["alloc_id", "job_id", "job_name", "node_id", "task_name"]);
    ensure_eq!(labels["com.hashicorp.nomad.task_name"], "web");
    task.end(&plugin).await?;
    plugin.shut_down().await?;
    options["extra_labels"] = json!(["colour"]);
    let refusal = case.plugin_as(&case.launch(), &options).await.err().context("it was taken")?;
    ensure!(format!("{refusal:#}").contains("extra_labels"), "{refusal:#}");
    Ok(())
}

async fn a_label_that_is_not_a_jobs_to_set_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let long = "x".repeat(4096);
    for (key, value) in
        [("containerd.io/gc.root", "now"), ("nomad/alloc-id", "another"), ("", "empty"), ("long", &long)]
    {
        let mut config = case.shell("true");
        config["labels"] = json!({key: value});
        let task = case.prepare(plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &["labels", key])?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}
