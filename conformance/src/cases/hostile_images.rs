//! Images that no honest builder would make: each is an error or a task, and never a plugin that hangs or looks outside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{cases, is_recoverable, refused, same};
use crate::config;
use crate::fixture::{Form, layer::Tree};
use crate::scene::Scene;

cases!["hostile image":
    a_layer_with_other_bytes_than_its_digest_says_is_refused,
    an_image_for_another_platform_is_said_to_be,
    an_image_without_a_command_needs_one_from_the_job,
    accounts_that_are_a_pipe_do_not_hang_the_start,
    accounts_that_are_a_link_are_looked_up_inside,
    mount_points_that_are_links_do_not_lead_outside,
    an_image_of_many_layers_runs,
    an_image_with_neither_accounts_nor_directories_runs,
];

/// Pushes busybox with a layer, as an image of that name.
fn push(scene: &Scene, name: &str, fill: impl FnOnce(&mut Tree) -> Result<()>) -> Result<String> {
    let image = scene.world().catalog().with(fill)?;
    image.push(scene.world().registry(), name, "v1", Form::Oci)?;
    Ok(scene.image(&format!("{name}:v1")))
}

async fn a_layer_with_other_bytes_than_its_digest_says_is_refused(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let image = scene.image("broken:tampered");
    for _ in 0..2 {
        let task = scene.prepare(&plugin, &config! { image = image }).await?;
        refused(plugin.start_task(task.config.clone()).await, &[&image, "sha256:"])?;
        scene.nothing_left()?;
    }
    scene.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn an_image_for_another_platform_is_said_to_be(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let image = scene.world().catalog().busybox(json!({"Cmd": ["true"]}))?;
    image.push(scene.world().registry(), "elsewhere", "v1", Form::OtherPlatform)?;
    let image = scene.image("elsewhere:v1");
    let task = scene.prepare(&plugin, &config! { image = image }).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&image, "amd64"])?;
    ensure!(!is_recoverable(&status).unwrap_or(false), "Nomad would try again");
    plugin.shut_down().await
}

async fn an_image_without_a_command_needs_one_from_the_job(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let image = scene.world().catalog().busybox(json!({}))?;
    image.push(scene.world().registry(), "bare", "v1", Form::Oci)?;
    let image = scene.image("bare:v1");
    let task = scene.prepare(&plugin, &config! { image = image }).await?;
    refused(plugin.start_task(task.config.clone()).await, &["command"])?;
    scene.nothing_left()?;
    let task = scene.run(&plugin, &config! { image = image, command = "/bin/pwd" }).await?;
    same!(task.stdout(&plugin).await?, "/\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn accounts_that_are_a_pipe_do_not_hang_the_start(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let image = push(scene, "pipe", |tree| tree.pipe("etc/passwd"))?;
    let mut task = scene.prepare(&plugin, &config! { image = image, command = "true" }).await?;
    task.config.user = "app".to_owned();
    let answer = tokio::time::timeout(Duration::from_secs(20), plugin.start_task(task.config.clone())).await;
    refused(answer.context("the start hangs")?, &["app"])?;
    scene.nothing_left()?;
    scene.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn accounts_that_are_a_link_are_looked_up_inside(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let outside = scene.directory().join("passwd");
    std::fs::create_dir_all(scene.directory())?;
    std::fs::write(&outside, "app:x:6666:6666::/:/bin/sh\n")?;
    let image = push(scene, "links", |tree| {
        tree.link("etc/passwd", "/accounts/users")?;
        tree.link("etc/group", &format!("../../../../../..{}", outside.display()))?;
        tree.directory("accounts", 0o755, 0)?;
        tree.file("accounts/users", 0o644, b"app:x:1234:5678::/:/bin/sh\n")
    })?;
    let config = config! { image = image, command = "/bin/sh", args = ["-c", "id -u; id -g"] };
    let mut task = scene.prepare(&plugin, &config).await?;
    task.config.user = "app".to_owned();
    task.start(&plugin).await?;
    same!(task.stdout(&plugin).await?, "1234\n5678\n");
    task.destroy(&plugin).await?;

    let image = push(scene, "outside", |tree| tree.link("etc/passwd", &outside.display().to_string()))?;
    let mut task = scene.prepare(&plugin, &config! { image = image, command = "true" }).await?;
    task.config.user = "app".to_owned();
    refused(plugin.start_task(task.config.clone()).await, &["app"])?;
    plugin.shut_down().await
}

async fn mount_points_that_are_links_do_not_lead_outside(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let outside = scene.directory().join("outside");
    std::fs::create_dir_all(&outside)?;
    let image = push(scene, "mount-links", |tree| {
        for name in ["alloc", "local", "secrets"] {
            tree.link(name, &format!("../../../../..{}/{name}", outside.display()))?;
        }
        Ok(())
    })?;
    let config = config! { image = image, command = "/bin/sh", args = ["-c", "echo x > /local/x"] };
    let mut task = scene.prepare(&plugin, &config).await?;
    if task.start(&plugin).await.is_ok() {
        task.wait(&plugin).await?;
        task.end(&plugin).await?;
    }
    same!(std::fs::read_dir(&outside)?.count(), 0);
    plugin.shut_down().await
}

async fn an_image_of_many_layers_runs(scene: &Scene) -> Result<()> {
    const LAYERS: usize = 90;
    let mut plugin = scene.plugin().await?;
    let mut image = scene.world().catalog().busybox(json!({"Env": ["PATH=/bin"], "User": "app"}))?;
    for number in 0..LAYERS {
        let layer =
            scene.world().catalog().with(|tree| tree.file(&format!("layer-{number}"), 0o644, b"here\n"))?;
        image.layers.extend(layer.layers.into_iter().skip(1));
    }
    image.push(scene.world().registry(), "many", "v1", Form::Oci)?;
    let script = "ls -d /layer-* | wc -l; id -un";
    let config = config! { image = scene.image("many:v1"), command = "sh", args = ["-c", script] };
    let task = scene.run(&plugin, &config).await?;
    same!(task.stdout(&plugin).await?, format!("{LAYERS}\napp\n"));
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn an_image_with_neither_accounts_nor_directories_runs(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let mut tree = Tree::new();
    tree.host_file(std::path::Path::new("/bin/busybox"), 0o755)?;
    let mut image = scene.world().catalog().busybox(json!({"Entrypoint": ["/bin/busybox"]}))?;
    image.layers = vec![tree.finish()?];
    image.push(scene.world().registry(), "scratch", "v1", Form::Oci)?;
    let script =
        "echo $HOME; busybox ls -d /alloc /local /secrets /proc /dev/null | busybox wc -l; busybox id";
    let config = config! { image = scene.image("scratch:v1"), args = ["sh", "-c", script] };
    let task = scene.run(&plugin, &config).await?;
    same!(task.stdout(&plugin).await?, "/\n5\nuid=0 gid=0 groups=0\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
