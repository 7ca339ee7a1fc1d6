//! What a case is to the suite that runs it. Knows nothing of what cases there are.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::scene::Scene;

/// Past it a case has failed, where it doesn't say otherwise.
pub const CASE_LIMIT: Duration = Duration::from_secs(100);

/// A behaviour, by a sentence.
pub struct Case {
    pub name: String,
    pub body: Box<dyn Fn(Arc<Scene>) -> BoxFuture<'static, Result<()>> + Send + Sync>,
    /// Past it, it has failed.
    pub limit: Duration,
}
