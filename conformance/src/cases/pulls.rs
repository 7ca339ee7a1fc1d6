//! Pulls over a network that is slow, breaks and lies: what is fetched once stays fetched, what can't succeed ends with an
//! error that says why, and the next pull works.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{cases, is_recoverable, refused, same};
use crate::config;
use crate::fixture::fault_proxy::{Fault, FaultProxy};
use crate::fixture::{Form, image::Image};
use crate::host::Plugin;
use crate::scene::Scene;

cases!["pull":
    a_layer_goes_on_where_its_connection_broke,
    a_manifest_that_never_ends_is_refused,
];

/// A registry behind a proxy of the case's own.
struct Network {
    proxy: FaultProxy,
}

impl Network {
    fn before(scene: &Scene) -> Result<Self> {
        Ok(Self { proxy: FaultProxy::before(scene.world().registry().address())? })
    }

    /// Pushes an image, past the proxy; returns its name by the proxy.
    fn push(&self, scene: &Scene, image: &Image, name: &str) -> Result<String> {
        image.push(scene.world().registry(), name, "v1", Form::Oci)?;
        Ok(format!("{}/{name}:v1", self.proxy.address()))
    }
}

/// That an image of [`crate::fixture::Catalog::large`] is whole.
async fn runs(scene: &Scene, plugin: &Plugin, image: &str, mib: usize) -> Result<()> {
    let config = config! { image = image, command = "wc", args = ["-c", "/large"] };
    let task = scene.run(plugin, &config).await?;
    same!(task.stdout(plugin).await?, format!("{} /large\n", mib << 20));
    task.destroy(plugin).await
}

async fn a_layer_goes_on_where_its_connection_broke(scene: &Scene) -> Result<()> {
    const MIB: usize = 6;
    let mut plugin = scene.plugin().await?;
    let network = Network::before(scene)?;
    let large = scene.world().catalog().large(MIB)?;
    let image = network.push(scene, &large, "breaks")?;
    let layer = &large.layers[1];
    network.proxy.inflict("/blobs/", Fault::Throttle(8 << 20));
    network.proxy.inflict_times(&layer.digest, Fault::CutAfter(2 << 20), 2);
    runs(scene, &plugin, &image, MIB).await?;
    let sent = network.proxy.sent_bytes(&layer.digest);
    let size = layer.blob.len() as u64;
    // What was on its way when the connection broke may be lost.
    ensure!(sent < size + (1 << 20), "{sent} bytes were sent of a layer of {size}");
    plugin.shut_down().await
}

async fn a_manifest_that_never_ends_is_refused(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let network = Network::before(scene)?;
    let image =
        network.push(scene, &scene.world().catalog().busybox(json!({"Cmd": ["true"]}))?, "endless")?;
    network.proxy.inflict("/manifests/", Fault::Endless);
    let task = scene.prepare(&plugin, &config! { image = image }).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&image, "the manifest", "bytes"])?;
    ensure!(!is_recoverable(&status)?, "it is to be tried again: {status:?}");
    scene.nothing_left()?;
    network.proxy.heal();
    let task = scene.run(&plugin, &config! { image = image }).await?;
    same!(task.wait(&plugin).await?.exit_code, 0);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
