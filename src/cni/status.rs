//! The readiness of the built-in network on this host: its plugins are there, and those that can be asked say so.
//!
//! Source of the facts: the CNI specification 1.1, section 2, STATUS.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Map;

use super::Cni;
use super::error::Error;
use super::programs::Programs;
use super::version::Version;
use crate::sys::error_chain::Chained;

/// Time for which the plugins' answer is cached.
const CACHE_TTL: Duration = Duration::from_secs(30);
/// Maximum time that a caller waits for the plugins' answer.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// The cached answer, and when it was given.
#[derive(Debug, Default)]
pub(super) struct StatusCache {
    cached: Mutex<Option<(Instant, bool)>>,
}

impl Cni {
    /// Returns whether the built-in network can be joined, by the plugins' answer, which may be some seconds old.
    pub(crate) async fn is_ready(&self) -> bool {
        let cached = *self.status.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ready)) = cached.filter(|(since, _)| since.elapsed() < CACHE_TTL) {
            return ready;
        }
        let answer = tokio::time::timeout(STATUS_TIMEOUT, self.status()).await;
        let ready = matches!(answer, Ok(Ok(())));
        if cached.is_none_or(|(_, before)| before != ready) {
            match answer {
                Ok(Ok(())) => tracing::info!("the built-in network is ready"),
                Ok(Err(error)) => tracing::info!(error = %error.chain(), "the built-in network is not ready"),
                Err(_) => {
                    tracing::info!("the built-in network is not ready: its plugins do not answer");
                }
            }
        }
        *self.status.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ready));
        ready
    }

    /// Asks the plugins of the built-in network whether they could attach. Plugins of before version 1.1 can't be
    /// asked: it is only checked that they are there.
    async fn status(&self) -> Result<(), Error> {
        self.check_bridge().await?;
        let network = self.network(None).await?;
        if network.version() < Version::WITH_STATUS {
            return Ok(());
        }
        let programs = Programs::look_up(&network, &self.directories).await;
        for plugin in &network.plugins {
            let request = plugin.request(&network, &Map::new(), None);
            self.call(&network, plugin, "STATUS", &programs).execute(request).await?;
        }
        Ok(())
    }
}
