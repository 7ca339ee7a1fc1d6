//! Requests to registries: none for an image that is here, unless the job asks for it, and then as few as possible.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::Scene;
use harness::fixture::Form;
use harness::host::Plugin;
use serde_json::{Value, json};

use crate::cases::support::slow_network::{Network, runs};
use crate::cases::support::{cases, is_recoverable, refused, same};

cases!["pull policy":
    an_image_that_is_here_needs_no_request,
    a_forced_pull_asks_what_the_tag_stands_for_and_follows_it,
    a_forced_pull_of_a_digest_asks_for_nothing,
    a_forced_pull_needs_the_registry,
    an_image_that_is_never_pulled_has_to_be_here,
];

async fn says(scene: &Scene, plugin: &Plugin, job: &Value, text: &str) -> Result<()> {
    let task = scene.run(plugin, job).await?;
    same!(task.stdout(plugin).await?, text);
    task.destroy(plugin).await
}

/// Returns an image with a file that tells it from others.
fn image(scene: &Scene, text: &str) -> Result<harness::fixture::image::Image> {
    scene.world().catalog().with(|tree| tree.file("which", 0o644, text.as_bytes()))
}

async fn an_image_that_is_here_needs_no_request(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    let name = network.push(scene, &image(scene, "here")?, "here")?;
    runs(scene, plugin, &name).await?;
    network.proxy.forget();
    runs(scene, plugin, &name).await?;
    same!(network.proxy.requests().len(), 0);
    Ok(())
}

async fn a_forced_pull_asks_what_the_tag_stands_for_and_follows_it(
    scene: &Scene,
    plugin: &Plugin,
) -> Result<()> {
    let network = Network::before(scene)?;
    let name = network.push(scene, &image(scene, "old")?, "moves")?;
    let job = |options: Value| {
        let mut job = config! { image = name, command = "cat", args = ["/which"] };
        options.as_object().into_iter().flatten().for_each(|(key, value)| job[key] = value.clone());
        job
    };
    says(scene, plugin, &job(json!({"force_pull": true})), "old").await?;
    network.proxy.forget();
    for options in [json!({"force_pull": true}), json!({"image_pull_policy": "always"})] {
        says(scene, plugin, &job(options), "old").await?;
    }
    same!((network.proxy.count("HEAD", "/manifests/"), network.proxy.count("GET", "")), (2, 0));
    image(scene, "new")?.push(scene.world().registry(), "moves", "v1", Form::OciIndex)?;
    says(scene, plugin, &job(json!({})), "old").await?;
    says(scene, plugin, &job(json!({"force_pull": true})), "new").await?;
    network.proxy.forget();
    for policy in ["missing", "if_not_present", "never"] {
        says(scene, plugin, &job(json!({"image_pull_policy": policy})), "new").await?;
    }
    same!(network.proxy.requests().len(), 0);
    Ok(())
}

async fn a_forced_pull_of_a_digest_asks_for_nothing(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    network.push(scene, &image(scene, "fixed")?, "fixed")?;
    let digest = scene.world().registry().digest_of("fixed", "v1")?;
    let name = format!("{}/fixed@{digest}", network.proxy.address());
    let job = config! { image = name, command = "cat", args = ["/which"], force_pull = true };
    says(scene, plugin, &job, "fixed").await?;
    network.proxy.forget();
    says(scene, plugin, &job, "fixed").await?;
    same!(network.proxy.requests().len(), 0);
    Ok(())
}

async fn a_forced_pull_needs_the_registry(scene: &Scene, plugin: &Plugin) -> Result<()> {
    scene.still_works(plugin).await?;
    scene.world().registry().stop();
    let mut job = scene.shell("true");
    job["force_pull"] = json!(true);
    let task = scene.prepare(plugin, &job).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &["busybox:latest"])?;
    ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
    scene.nothing_left()?;
    scene.still_works(plugin).await
}

async fn an_image_that_is_never_pulled_has_to_be_here(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    let name = network.push(scene, &image(scene, "never")?, "never")?;
    let job = config! { image = name, command = "cat", args = ["/which"], image_pull_policy = "never" };
    let task = scene.prepare(plugin, &job).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&name, "image_pull_policy"])?;
    ensure!(!is_recoverable(&status).unwrap_or(false), "it is to be tried again: {status:?}");
    same!(network.proxy.requests().len(), 0);
    scene.nothing_left()?;
    runs(scene, plugin, &name).await?;
    says(scene, plugin, &job, "never").await?;
    Ok(())
}
