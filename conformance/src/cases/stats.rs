//! Usage and events, as streams that the agent keeps open.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tonic::Code;

use super::{cases, same};
use crate::config;
use crate::fixture::Form;
use crate::scene::Scene;
use crate::task::LIMIT;

cases!["streams":
    usage_comes_at_the_interval_with_all_its_parts,
    a_usage_stream_lives_through_the_tasks_end,
    an_event_tells_of_a_pull_and_whose_it_is,
];

async fn usage_comes_at_the_interval_with_all_its_parts(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("while :; do :; done")).await?;
    let mut stream = match plugin.stats(task.id(), Duration::from_millis(200)).await {
        Err(status) if status.code() == Code::Unimplemented => {
            task.end(&plugin).await?;
            return plugin.shut_down().await;
        }
        stream => stream?,
    };
    let mut percent = 0.0_f64;
    for _ in 0..5 {
        let next = tokio::time::timeout(LIMIT, stream.message()).await.context("no usage came")??;
        let stats = next.context("the stream ended")?.stats.context("no stats, which crashes the agent")?;
        same!(stats.id, task.id());
        ensure!(stats.timestamp.is_some(), "no timestamp");
        let usage = stats.agg_resource_usage.context("no usage, which crashes the agent")?;
        let (cpu, memory) = (usage.cpu.context("no cpu")?, usage.memory.context("no memory")?);
        ensure!(memory.rss > 0 || memory.usage > 0, "no memory in use: {memory:?}");
        percent = percent.max(cpu.percent);
    }
    ensure!(percent > 5.0, "a busy loop takes {percent} %");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_usage_stream_lives_through_the_tasks_end(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 1")).await?;
    let stream = plugin.stats(task.id(), Duration::from_millis(100)).await;
    task.wait(&plugin).await?;
    if let Ok(mut stream) = stream {
        // It may end by now, in good order.
        let read = async {
            while stream.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        if let Ok(end) = tokio::time::timeout(Duration::from_secs(1), read).await {
            end.context("the usage stream broke")?;
        }
    }
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn an_event_tells_of_a_pull_and_whose_it_is(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let mut events = plugin.events().await?;
    scene.world().catalog().large(2)?.push(scene.world().registry(), "told", "v1", Form::Oci)?;
    let image = scene.image("told:v1");
    let task = scene.run(&plugin, &config! { image = image }).await?;
    let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
    let event = event.context("the stream ended")?;
    same!(
        (event.task_id.as_str(), event.alloc_id.as_str(), event.task_name.as_str()),
        (task.id(), &*task.alloc.id, "web")
    );
    ensure!(event.message.contains(&image), "{:?}", event.message);
    task.wait(&plugin).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
