//! Layers that no honest builder would make, and those that one makes seldom: each unpacks within its own root or
//! results in an error that says what is wrong with it, and the next pull works.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::Scene;
use harness::fixture::fault_proxy::Fault;
use harness::fixture::image::Image;
use harness::fixture::layer::{Layer, Packing, Tree};
use harness::host::Plugin;
use serde_json::json;

use crate::cases::support::slow_network::{Network, plugin_with, runs};
use crate::cases::support::{cases, is_recoverable, refused, same};

cases!["hostile layer":
    every_packing_is_unpacked,
    a_layer_that_is_cut_short_is_refused,
    a_layer_that_unpacks_to_more_than_the_operator_allows_is_stopped,
    an_image_that_is_larger_than_the_operator_allows_is_not_fetched,
    paths_that_lead_outside_stay_inside,
    a_manifest_that_never_ends_is_refused,
];

const MIB: usize = 1 << 20;

/// Returns busybox with this layer on top.
fn with(scene: &Scene, layer: std::sync::Arc<Layer>) -> Result<Image> {
    let mut image = scene.world().catalog().with(|_| Ok(()))?;
    image.layers[1] = layer;
    Ok(image)
}

/// Asserts that the image is refused permanently, and that another one then works.
async fn is_refused(scene: &Scene, plugin: &Plugin, image: &str, words: &[&str]) -> Result<()> {
    let task = scene.prepare(plugin, &config! { image = image, command = "true" }).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&[image][..], words].concat())?;
    ensure!(!is_recoverable(&status).unwrap_or(false), "it is to be tried again: {status:?}");
    scene.nothing_left()?;
    scene.still_works(plugin).await
}

async fn every_packing_is_unpacked(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    for (name, packing) in [("gzip", Packing::Gzip), ("zstd", Packing::Zstd), ("plain", Packing::Plain)] {
        let mut tree = Tree::new();
        tree.file("packed", 0o644, name.repeat(100_000).as_bytes())?;
        let image = network.push(scene, &with(scene, tree.finish_as(packing)?)?, name)?;
        let job = config! { image = image, command = "wc", args = ["-c", "/packed"] };
        let task = scene.run(plugin, &job).await?;
        same!(task.stdout(plugin).await?, format!("{} /packed\n", name.len() * 100_000));
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn a_layer_that_is_cut_short_is_refused(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    let whole = scene.world().catalog().large(1)?;
    let half = whole.layers[1].blob[..MIB / 2].to_vec();
    let image = with(scene, Layer::of_bytes(half, &whole.layers[1].diff_id))?;
    let image = network.push(scene, &image, "short")?;
    is_refused(scene, plugin, &image, &["corrupt", "unexpected EOF"]).await?;
    Ok(())
}

async fn a_layer_that_unpacks_to_more_than_the_operator_allows_is_stopped(scene: &Scene) -> Result<()> {
    let mut plugin = plugin_with(scene, &json!({"max_unpacked_size": "32m"})).await?;
    let network = Network::before(scene)?;
    // Some bombs are found out while they are unpacked, faster ones at their end.
    for mib in [40, 600] {
        let bomb = scene.world().catalog().with(|tree| tree.file("bomb", 0o644, &vec![0; mib * MIB]))?;
        ensure!(bomb.layers[1].blob.len() < 8 * MIB, "it is no bomb");
        let image = network.push(scene, &bomb, &format!("bomb-{mib}"))?;
        is_refused(scene, &plugin, &image, &["max_unpacked_size", &bomb.layers[1].digest]).await?;
    }
    let fits = scene.world().catalog().large(8)?;
    runs(scene, &plugin, &network.push(scene, &fits, "fits")?).await?;
    plugin.shut_down().await
}

async fn an_image_that_is_larger_than_the_operator_allows_is_not_fetched(scene: &Scene) -> Result<()> {
    let mut plugin = plugin_with(scene, &json!({"max_image_size": "3m"})).await?;
    let network = Network::before(scene)?;
    let large = scene.world().catalog().large(4)?;
    let image = network.push(scene, &large, "oversize")?;
    is_refused(scene, &plugin, &image, &["max_image_size"]).await?;
    same!(network.proxy.count("GET", &large.layers[1].digest), 0);
    runs(scene, &plugin, &network.push(scene, &scene.world().catalog().large(1)?, "small")?).await?;
    plugin.shut_down().await
}

async fn paths_that_lead_outside_stay_inside(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    let outside = scene.directory().join("outside");
    std::fs::create_dir_all(&outside)?;
    std::fs::write(outside.join("kept"), b"kept")?;
    let up = "../".repeat(12);
    let mut tree = Tree::new();
    let place = outside.display().to_string();
    tree.wild_file(&format!("{up}{}/x", place.trim_start_matches('/')), b"escaped")?;
    tree.link("way-out", &place)?;
    tree.wild_file("way-out/y", b"escaped")?;
    tree.wild_file("way-out/.wh.kept", b"")?;
    let image = network.push(scene, &with(scene, tree.finish()?)?, "escapes")?;
    let script = format!("cat {place}/x; ls -d /bin");
    let job = config! { image = image, command = "/bin/sh", args = ["-c", &script] };
    let task = scene.run(plugin, &job).await?;
    same!(task.stdout(plugin).await?, "escaped/bin\n");
    task.destroy(plugin).await?;
    let names: Vec<_> = std::fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    same!(names, ["kept"]);
    Ok(())
}

async fn a_manifest_that_never_ends_is_refused(scene: &Scene, plugin: &Plugin) -> Result<()> {
    let network = Network::before(scene)?;
    let image = network.push(scene, &scene.world().catalog().with(|_| Ok(()))?, "endless")?;
    network.proxy.inflict("/manifests/", Fault::Endless);
    is_refused(scene, plugin, &image, &["the manifest", "bytes"]).await?;
    network.proxy.heal();
    runs(scene, plugin, &image).await?;
    Ok(())
}
