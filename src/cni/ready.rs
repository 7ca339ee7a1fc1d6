//! The readiness of the built-in network on this host: its plugins are there, and those that can be asked say so.
//!
//! Source of the facts: the CNI specification 1.1, section 2, STATUS.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Map;

use super::Cni;
use super::error::Error;
use super::version::Version;

/// Time for which the plugins' answer is cached.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Maximum time that a caller waits for the plugins' answer.
const ANSWERS: Duration = Duration::from_secs(5);

/// The cached answer, and when it was given.
#[derive(Debug, Default)]
pub(super) struct Ready {
    known: Mutex<Option<(Instant, bool)>>,
}

impl Cni {
    /// Returns whether the built-in network can be joined, by the plugins' answer, which may be some seconds old.
    pub(crate) async fn is_ready(&self) -> bool {
        let known = *self.ready.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ready)) = known.filter(|(since, _)| since.elapsed() < ASK_AGAIN) {
            return ready;
        }
        let asked = tokio::time::timeout(ANSWERS, self.status()).await;
        let ready = matches!(asked, Ok(Ok(())));
        if known.is_none_or(|(_, before)| before != ready) {
            match asked {
                Ok(Ok(())) => tracing::info!("the driver's own network can be joined"),
                Ok(Err(error)) => tracing::info!(%error, "the driver's own network can't be joined"),
                Err(_) => {
                    tracing::info!("the driver's own network can't be joined: its plugins don't answer");
                }
            }
        }
        *self.ready.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ready));
        ready
    }

    /// Asks the plugins of the built-in network whether they could attach. Plugins of before version 1.1 can't be
    /// asked: it is only checked that they are there.
    async fn status(&self) -> Result<(), Error> {
        let network = self.network(None).await?;
        if network.version() < Version::WITH_STATUS {
            return Ok(());
        }
        for plugin in &network.plugins {
            let request = plugin.request(&network, &Map::new(), None);
            self.call(&network, plugin, "STATUS").make(request).await?;
        }
        Ok(())
    }
}
