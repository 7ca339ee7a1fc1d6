//! A registry behind a network with faults.

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::fixture::fault_proxy::FaultProxy;
use harness::fixture::image::Image;
use harness::fixture::layer::Layer;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::Value;

use crate::cases::support::{ensure_eq, until};

/// Bytes of one mebibyte.
pub const MIB: u64 = 1 << 20;

/// Maximum content that may be fetched again because it was in transit when a connection broke.
pub const LOST_BYTES: u64 = MIB;

/// The registry behind a proxy of the case's own.
pub struct Network {
    pub proxy: FaultProxy,
}

impl Network {
    /// Starts a proxy without faults in front of the test environment's registry.
    pub fn before(case: &CaseContext) -> Result<Self> {
        Ok(Self { proxy: FaultProxy::before(case.environment().registry().address())? })
    }

    /// Pushes an image directly to the registry. Returns its name by the proxy.
    pub fn push(&self, case: &CaseContext, image: &Image, name: &str) -> Result<String> {
        image.push(case.environment().registry(), name, "v1", Form::Oci)?;
        Ok(format!("{}/{name}:v1", self.proxy.address()))
    }

    /// Asserts that no more of a layer was sent than its size, except for content lost in transit.
    pub fn sent_once(&self, layer: &Layer) -> Result<()> {
        let (sent, size) = (self.proxy.sent_bytes(&layer.digest), layer.blob.len() as u64);
        ensure!((size..size + LOST_BYTES).contains(&sent), "{sent} bytes were sent of a layer of {size}");
        Ok(())
    }

    /// Waits until at least so many bytes of a layer were sent.
    pub async fn has_sent(&self, layer: &Layer, bytes: u64) -> Result<()> {
        until(LIMIT, "the layer is sent", || self.proxy.sent_bytes(&layer.digest) >= bytes).await
    }
}

/// Runs a task of an image to its end.
pub async fn runs(case: &CaseContext, plugin: &Plugin, image: &str) -> Result<()> {
    let task = case.run(plugin, &config! { image = image, command = "true" }).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await
}

/// Starts a plugin with the usual options and those of `more`.
pub async fn plugin_with(case: &CaseContext, more: &Value) -> Result<Plugin> {
    let mut options = case.options();
    for (option, value) in more.as_object().into_iter().flatten() {
        options[option] = value.clone();
    }
    case.plugin_as(&case.launch(), &options).await
}
