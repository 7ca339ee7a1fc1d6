//! Events, as a stream that the agent keeps open.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::{cases, ensure_eq};

cases!["events":
    an_event_reports_a_pull_and_whose_it_is,
    one_event_names_all_options_without_an_effect,
];

async fn an_event_reports_a_pull_and_whose_it_is(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut events = plugin.events().await?;
    case.environment().catalog().large(2)?.push(case.environment().registry(), "told", "v1", Form::Oci)?;
    let image = case.image("told:v1");
    let task = case.run(plugin, &config! { image = image }).await?;
    let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
    let event = event.context("the stream ended")?;
    ensure_eq!(
        (event.task_id.as_str(), event.alloc_id.as_str(), event.task_name.as_str()),
        (task.id(), &*task.alloc.id, "web")
    );
    ensure!(event.message.contains(&image), "{:?}", event.message);
    task.wait(plugin).await?;
    task.destroy(plugin).await
}

async fn one_event_names_all_options_without_an_effect(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut events = plugin.events().await?;
    let mut config = case.shell("true");
    config["container_exists_attempts"] = json!(5);
    config["auth"] = json!({"username": "me", "password": "hunter2", "email": "me@example.com"});
    config["labels"] = json!({"empty": ""});
    let task = case.run(plugin, &config).await?;
    let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
    let event = event.context("the stream ended")?;
    ensure_eq!(event.task_id, task.id());
    ensure_eq!(event.annotations["options"], "container_exists_attempts, auth.email, labels");
    for word in ["container_exists_attempts", "earlier attempt", "auth.email", "labels", "\"empty\""] {
        ensure!(event.message.contains(word), "{word} is not in {:?}", event.message);
    }
    task.wait(plugin).await?;
    task.destroy(plugin).await
}
