//! Whether the built-in network can be joined on this host: its plugins are there, and those that are asked say so.
//!
//! Source of the facts: the CNI specification 1.1, section 2, STATUS.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Map;

use super::Cni;
use super::error::Error;
use super::version::Version;

/// How long the word of plugins counts.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Who asks does not wait for longer.
const ANSWERS: Duration = Duration::from_secs(5);

/// What was found, and when.
#[derive(Debug, Default)]
pub(super) struct Ready {
    known: Mutex<Option<(Instant, bool)>>,
}

impl Cni {
    /// Whether the built-in network can be joined, by the word of its plugins. It may be some seconds old.
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

    /// Asks the plugins of the built-in network whether they could attach. Those of before version 1.1 are only looked for.
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
