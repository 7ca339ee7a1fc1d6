//! Events, as a stream that the agent keeps open.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::Scene;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::task::LIMIT;

use crate::cases::support::{cases, same};

cases!["events":
    an_event_tells_of_a_pull_and_whose_it_is,
];

async fn an_event_tells_of_a_pull_and_whose_it_is(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let mut events = plugin.events().await?;
    scene.world().catalog().large(2)?.push(scene.world().registry(), "told", "v1", Form::Oci)?;
    let image = scene.image("told:v1");
    let task = scene.run(plugin, &config! { image = image }).await?;
    let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
    let event = event.context("the stream ended")?;
    same!(
        (event.task_id.as_str(), event.alloc_id.as_str(), event.task_name.as_str()),
        (task.id(), &*task.alloc.id, "web")
    );
    ensure!(event.message.contains(&image), "{:?}", event.message);
    task.wait(plugin).await?;
    task.destroy(plugin).await
}
