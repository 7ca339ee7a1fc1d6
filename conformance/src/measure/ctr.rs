//! The same by `ctr`, in a namespace of the figures' own, with the image that all containers are made of.

use std::sync::Arc;

use anyhow::Result;

use crate::fixture::World;
use crate::fixture::process::output;

/// Apart from the driver's, so that the account of what the driver left is not disturbed.
const NAMESPACE: &str = "measure";

/// Runs `ctr` in a namespace of the figures' own.
///
/// # Errors
/// Carries what `ctr` said.
pub fn ctr(world: &World, arguments: &[&str]) -> Result<String> {
    output(world.containerd().ctr_command(NAMESPACE).args(arguments))
}

/// The image that all containers are made of.
pub fn image(world: &World) -> String {
    world.image("busybox:latest")
}

/// The image in the figures' namespace. Dropped, it is removed.
pub struct Pulled(Arc<World>);

impl Pulled {
    /// # Errors
    /// Carries what `ctr` said.
    pub fn pull(world: &Arc<World>) -> Result<Self> {
        ctr(world, &["images", "pull", "--plain-http", &image(world)])?;
        Ok(Self(Arc::clone(world)))
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        let _ = ctr(&self.0, &["images", "remove", "--sync", &image(&self.0)]);
    }
}
