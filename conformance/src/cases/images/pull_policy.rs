//! Requests to registries: none for an image that is here, unless the job asks for it, and then as few as possible.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use serde_json::{Value, json};

use crate::cases::support::slow_network::{Network, runs};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["pull policy":
    an_image_that_is_here_needs_no_request,
    a_forced_pull_resolves_the_tag_and_follows_it,
    a_forced_pull_of_a_digest_asks_for_nothing,
    a_forced_pull_needs_the_registry,
    an_image_that_is_never_pulled_has_to_be_here,
];

async fn says(case: &CaseContext, plugin: &Plugin, job: &Value, text: &str) -> Result<()> {
    let task = case.run(plugin, job).await?;
    ensure_eq!(task.stdout(plugin).await?, text);
    task.destroy(plugin).await
}

/// Returns an image with a file that tells it from others.
fn image(case: &CaseContext, text: &str) -> Result<harness::fixture::image::Image> {
    case.environment().catalog().with(|tree| tree.file("which", 0o644, text.as_bytes()))
}

async fn an_image_that_is_here_needs_no_request(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let name = network.push(case, &image(case, "here")?, "here")?;
    runs(case, plugin, &name).await?;
    network.proxy.clear_requests();
    runs(case, plugin, &name).await?;
    ensure_eq!(network.proxy.requests().len(), 0);
    Ok(())
}

async fn a_forced_pull_resolves_the_tag_and_follows_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let name = network.push(case, &image(case, "old")?, "moves")?;
    let job = |options: Value| {
        let mut job = config! { image = name, command = "cat", args = ["/which"] };
        options.as_object().into_iter().flatten().for_each(|(key, value)| job[key] = value.clone());
        job
    };
    says(case, plugin, &job(json!({"force_pull": true})), "old").await?;
    network.proxy.clear_requests();
    for options in [json!({"force_pull": true}), json!({"image_pull_policy": "always"})] {
        says(case, plugin, &job(options), "old").await?;
    }
    ensure_eq!((network.proxy.count("HEAD", "/manifests/"), network.proxy.count("GET", "")), (2, 0));
    image(case, "new")?.push(case.environment().registry(), "moves", "v1", Form::OciIndex)?;
    says(case, plugin, &job(json!({})), "old").await?;
    says(case, plugin, &job(json!({"force_pull": true})), "new").await?;
    network.proxy.clear_requests();
    for policy in ["missing", "if_not_present", "never"] {
        says(case, plugin, &job(json!({"image_pull_policy": policy})), "new").await?;
    }
    ensure_eq!(network.proxy.requests().len(), 0);
    Ok(())
}

async fn a_forced_pull_of_a_digest_asks_for_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    network.push(case, &image(case, "fixed")?, "fixed")?;
    let digest = case.environment().registry().digest_of("fixed", "v1")?;
    let name = format!("{}/fixed@{digest}", network.proxy.address());
    let job = config! { image = name, command = "cat", args = ["/which"], force_pull = true };
    says(case, plugin, &job, "fixed").await?;
    network.proxy.clear_requests();
    says(case, plugin, &job, "fixed").await?;
    ensure_eq!(network.proxy.requests().len(), 0);
    Ok(())
}

async fn a_forced_pull_needs_the_registry(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    case.still_works(plugin).await?;
    case.environment().registry().stop();
    let mut job = case.shell("true");
    job["force_pull"] = json!(true);
    let task = case.prepare(plugin, &job).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &["busybox:latest"])?;
    ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn an_image_that_is_never_pulled_has_to_be_here(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let name = network.push(case, &image(case, "never")?, "never")?;
    let job = config! { image = name, command = "cat", args = ["/which"], image_pull_policy = "never" };
    let task = case.prepare(plugin, &job).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&name, "image_pull_policy"])?;
    ensure!(!is_recoverable(&status).unwrap_or(false), "it is to be tried again: {status:?}");
    ensure_eq!(network.proxy.requests().len(), 0);
    case.nothing_left()?;
    runs(case, plugin, &name).await?;
    says(case, plugin, &job, "never").await?;
    Ok(())
}
