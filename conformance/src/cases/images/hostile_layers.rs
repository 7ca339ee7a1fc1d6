//! Layers that no honest builder would make, and those that one makes seldom: each unpacks within its own root or
//! results in an error that says what is wrong with it, and the next pull works.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::fault_proxy::Fault;
use harness::fixture::image::Image;
use harness::fixture::layer::{Layer, Packing, Tree};
use harness::host::Plugin;
use serde_json::json;

use crate::cases::support::slow_network::{Network, plugin_with, runs};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

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
fn with(case: &CaseContext, layer: std::sync::Arc<Layer>) -> Result<Image> {
    let mut image = case.environment().catalog().with(|_| Ok(()))?;
    image.layers[1] = layer;
    Ok(image)
}

/// Asserts that the image is refused permanently, and that another one then works.
async fn is_refused(case: &CaseContext, plugin: &Plugin, image: &str, words: &[&str]) -> Result<()> {
    let task = case.prepare(plugin, &config! { image = image, command = "true" }).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&[image][..], words].concat())?;
    ensure!(!is_recoverable(&status).unwrap_or(false), "it is to be tried again: {status:?}");
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn every_packing_is_unpacked(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    for (name, packing) in [("gzip", Packing::Gzip), ("zstd", Packing::Zstd), ("plain", Packing::Plain)] {
        let mut tree = Tree::new();
        tree.file("packed", 0o644, name.repeat(100_000).as_bytes())?;
        let image = network.push(case, &with(case, tree.finish_as(packing)?)?, name)?;
        let job = config! { image = image, command = "wc", args = ["-c", "/packed"] };
        let task = case.run(plugin, &job).await?;
        ensure_eq!(task.stdout(plugin).await?, format!("{} /packed\n", name.len() * 100_000));
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn a_layer_that_is_cut_short_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let whole = case.environment().catalog().large(1)?;
    let half = whole.layers[1].blob[..MIB / 2].to_vec();
    let image = with(case, Layer::of_bytes(half, &whole.layers[1].diff_id))?;
    let image = network.push(case, &image, "short")?;
    is_refused(case, plugin, &image, &["corrupt", "unexpected EOF"]).await?;
    Ok(())
}

async fn a_layer_that_unpacks_to_more_than_the_operator_allows_is_stopped(case: &CaseContext) -> Result<()> {
    let mut plugin = plugin_with(case, &json!({"max_unpacked_size": "32m"})).await?;
    let network = Network::before(case)?;
    // Some bombs are found out while they are unpacked, faster ones at their end.
    for mib in [40, 600] {
        let bomb = case.environment().catalog().with(|tree| tree.file("bomb", 0o644, &vec![0; mib * MIB]))?;
        ensure!(bomb.layers[1].blob.len() < 8 * MIB, "it is no bomb");
        let image = network.push(case, &bomb, &format!("bomb-{mib}"))?;
        is_refused(case, &plugin, &image, &["max_unpacked_size", &bomb.layers[1].digest]).await?;
    }
    let fits = case.environment().catalog().large(8)?;
    runs(case, &plugin, &network.push(case, &fits, "fits")?).await?;
    plugin.shut_down().await
}

async fn an_image_that_is_larger_than_the_operator_allows_is_not_fetched(case: &CaseContext) -> Result<()> {
    let mut plugin = plugin_with(case, &json!({"max_image_size": "3m"})).await?;
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(4)?;
    let image = network.push(case, &large, "oversize")?;
    is_refused(case, &plugin, &image, &["max_image_size"]).await?;
    ensure_eq!(network.proxy.count("GET", &large.layers[1].digest), 0);
    runs(case, &plugin, &network.push(case, &case.environment().catalog().large(1)?, "small")?).await?;
    plugin.shut_down().await
}

async fn paths_that_lead_outside_stay_inside(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let outside = case.directory().join("outside");
    std::fs::create_dir_all(&outside)?;
    std::fs::write(outside.join("kept"), b"kept")?;
    let up = "../".repeat(12);
    let mut tree = Tree::new();
    let place = outside.display().to_string();
    tree.wild_file(&format!("{up}{}/x", place.trim_start_matches('/')), b"escaped")?;
    tree.link("way-out", &place)?;
    tree.wild_file("way-out/y", b"escaped")?;
    tree.wild_file("way-out/.wh.kept", b"")?;
    let image = network.push(case, &with(case, tree.finish()?)?, "escapes")?;
    let script = format!("cat {place}/x; ls -d /bin");
    let job = config! { image = image, command = "/bin/sh", args = ["-c", &script] };
    let task = case.run(plugin, &job).await?;
    ensure_eq!(task.stdout(plugin).await?, "escaped/bin\n");
    task.destroy(plugin).await?;
    let names: Vec<_> = std::fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    ensure_eq!(names, ["kept"]);
    Ok(())
}

async fn a_manifest_that_never_ends_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let image = network.push(case, &case.environment().catalog().with(|_| Ok(()))?, "endless")?;
    network.proxy.inject("/manifests/", Fault::Endless);
    is_refused(case, plugin, &image, &["the manifest", "bytes"]).await?;
    network.proxy.heal();
    runs(case, plugin, &image).await?;
    Ok(())
}
