//! Runs the same operations by `ctr`, in a namespace of the measurements, on the image that all containers are made
//! from.

use std::sync::Arc;

use anyhow::Result;
use harness::environment::TestEnvironment;
use harness::fixture::process::output;

/// The containerd namespace of the measurements. Not the driver's, so that the leak check of the driver isn't
/// disturbed.
const NAMESPACE: &str = "measure";

/// Runs `ctr` in the namespace of the measurements.
///
/// # Errors
/// Carries the output of `ctr`.
pub(crate) fn ctr(environment: &TestEnvironment, arguments: &[&str]) -> Result<String> {
    output(environment.containerd().ctr_command(NAMESPACE).args(arguments))
}

/// Returns the name of the image that all containers are made from.
pub(crate) fn image(environment: &TestEnvironment) -> String {
    environment.image("busybox:latest")
}

/// The image in the namespace of the measurements, removed on drop.
pub(crate) struct Pulled(Arc<TestEnvironment>);

impl Pulled {
    /// # Errors
    /// Carries the output of `ctr`.
    pub(crate) fn pull(environment: &Arc<TestEnvironment>) -> Result<Self> {
        ctr(environment, &["images", "pull", "--plain-http", &image(environment)])?;
        Ok(Self(Arc::clone(environment)))
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        let _ = ctr(&self.0, &["images", "remove", "--sync", &image(&self.0)]);
    }
}
