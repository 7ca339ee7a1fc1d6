//! Images in the forms that registries hold, and the work that is done once for all tasks of an image.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use serde_json::json;

use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["images":
    every_form_of_an_image_is_unpacked_with_its_whiteouts,
    an_image_is_found_by_its_digest,
    an_image_that_is_there_is_not_requested_again,
    several_starts_of_a_new_image_fetch_it_together,
    an_image_that_was_removed_is_fetched_again,
    a_pull_times_out_for_the_tasks_that_set_a_timeout,
    the_operators_pull_timeout_is_for_tasks_that_set_none,
    a_job_chooses_the_platform_of_its_image,
];

async fn every_form_of_an_image_is_unpacked_with_its_whiteouts(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for tag in ["latest", "oci", "docker", "docker-list"] {
        let script =
            "cat /app/greeting /etc/replaced; ls /etc/removed 2>/dev/null || stat -c %a-%u /tmp /home/app";
        let config = config! {
            image = case.image(&format!("busybox:{tag}")), command = "/bin/sh", args = ["-c", script]
        };
        let task = case.run(plugin, &config).await?;
        ensure_eq!(task.stdout(plugin).await?, "hello from the image\nupper\n1777-0\n755-1000\n");
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn an_image_is_found_by_its_digest(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for tag in ["latest", "docker"] {
        let digest = case.environment().registry().digest_of("busybox", tag)?;
        for name in [format!("busybox@{digest}"), format!("busybox:{tag}@{digest}")] {
            let task = case.run(plugin, &config! { image = case.image(&name), command = "true" }).await?;
            ensure_eq!(task.wait(plugin).await?.exit_code, 0);
            task.destroy(plugin).await?;
        }
    }
    Ok(())
}

async fn an_image_that_is_there_is_not_requested_again(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    case.still_works(&plugin).await?;
    case.environment().registry().stop();
    case.still_works(&plugin).await?;
    plugin.shut_down().await?;
    let mut another = case.plugin().await?;
    case.still_works(&another).await?;
    another.shut_down().await
}

async fn several_starts_of_a_new_image_fetch_it_together(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let image = case.environment().catalog().large(4)?;
    image.push(case.environment().registry(), "together", "v1", Form::OciIndex)?;
    let start = || async {
        let config = config! { image = case.image("together:v1"), command = "wc", args = ["-c", "/large"] };
        let task = case.run(plugin, &config).await?;
        ensure!(task.stdout(plugin).await?.starts_with("4194304 "), "the file is not whole");
        task.destroy(plugin).await
    };
    tokio::try_join!(start(), start(), start(), start(), start())?;
    Ok(())
}

async fn an_image_that_was_removed_is_fetched_again(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let settings = json!({"Env": ["PATH=/bin"], "Cmd": ["cat", "/app/greeting"]});
    case.environment().catalog().busybox(settings)?.push(
        case.environment().registry(),
        "thinned",
        "v1",
        Form::Oci,
    )?;
    let containerd = case.environment().containerd();
    let run = || async {
        let task = case.run(plugin, &config! { image = case.image("thinned:v1") }).await?;
        ensure_eq!(task.stdout(plugin).await?, "hello from the image\n");
        task.destroy(plugin).await
    };
    run().await?;
    // Another client of containerd deletes the image and all that depends on it.
    containerd.ctr(&["images", "delete", "--sync", &case.image("thinned:v1")])?;
    run().await?;
    Ok(())
}

async fn a_pull_times_out_for_the_tasks_that_set_a_timeout(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let registry = case.environment().registry();
    case.environment().catalog().large(1)?.push(registry, "slow", "v1", Form::Oci)?;
    let job = |timeout: &str| {
        config! { image = case.image("slow:v1"), command = "true", image_pull_timeout = timeout }
    };
    registry.pause()?;
    let hasty = case.prepare(plugin, &job("1s")).await?;
    let patient = case.prepare(plugin, &job("5m")).await?;
    let gives_up = async {
        let words = ["slow:v1", "image_pull_timeout", "1s"];
        let status = refused(plugin.start_task(hasty.config.clone()).await, &words)?;
        ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
        registry.resume()
    };
    let (given_up, started) = tokio::join!(gives_up, plugin.start_task(patient.config.clone()));
    given_up?;
    started?;
    patient.end(plugin).await
}

async fn the_operators_pull_timeout_is_for_tasks_that_set_none(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["image_pull_timeout"] = json!("1s");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let registry = case.environment().registry();
    case.environment().catalog().large(1)?.push(registry, "slower", "v1", Form::Oci)?;
    let image = case.image("slower:v1");
    registry.pause()?;
    let hasty = case.prepare(&plugin, &config! { image = image.clone(), command = "true" }).await?;
    let job = config! { image = image, command = "true", image_pull_timeout = "5m" };
    let patient = case.prepare(&plugin, &job).await?;
    let gives_up = async {
        refused(plugin.start_task(hasty.config.clone()).await, &["slower:v1", "image_pull_timeout", "1s"])?;
        registry.resume()
    };
    let (given_up, started) = tokio::join!(gives_up, plugin.start_task(patient.config.clone()));
    given_up?;
    started?;
    patient.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_job_chooses_the_platform_of_its_image(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let image = case.environment().catalog().busybox(json!({"Cmd": ["/bin/echo", "native"]}))?;
    image.push(case.environment().registry(), "platforms", "v1", Form::OciIndex)?;
    let name = case.image("platforms:v1");
    // What is here for one platform is neither taken for the other, nor lost by its pull.
    for _ in 0..2 {
        let task = case.run(plugin, &config! { image = name.clone() }).await?;
        ensure_eq!(task.stdout(plugin).await?, "native\n");
        task.destroy(plugin).await?;
        let other = case.prepare(plugin, &config! { image = name.clone(), arch = "arm64" }).await?;
        refused(plugin.start_task(other.config.clone()).await, &["/wrong-platform"])?;
    }
    let variant = config! { image = name.clone(), arch = "arm64", variant = "v9" };
    let none = case.prepare(plugin, &variant).await?;
    refused(plugin.start_task(none.config.clone()).await, &["linux/arm64/v9", "linux/arm64/v8"])?;
    case.nothing_left()
}
