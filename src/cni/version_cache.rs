//! A cache of the versions that plugins speak, by their answers to VERSION. A plugin is asked only where a network
//! leaves a choice, and once for each program as long as its file stays the same.
//!
//! Source of the facts: the CNI specification 1.1, section 1 ("version considerations") and section 5.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, json};

use super::call::Call;
use super::error::{Error, join_versions};
use super::network::Network;
use super::programs::Program;
use super::version::Version;

#[derive(Debug, Default)]
pub(super) struct PluginVersionCache {
    cached: Mutex<HashMap<PathBuf, CachedVersions>>,
}

#[derive(Debug, Clone)]
struct CachedVersions {
    modified: Option<SystemTime>,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionResult {
    supported_versions: Vec<String>,
}

impl PluginVersionCache {
    /// Returns the newest version of the network's that all of its plugins speak.
    ///
    /// # Errors
    /// Says what each plugin speaks, if there is no such version.
    pub(super) async fn newest_common(
        &self,
        network: &Network,
        calls: &[Call<'_>],
    ) -> Result<Version, Error> {
        let mut common = network.versions.clone();
        let mut supported = Vec::new();
        for call in calls {
            let versions = self.supported_by(call).await?;
            common.retain(|version| versions.contains(version));
            supported.push(format!("{} supports {}", call.plugin.kind, join_versions(&versions)));
        }
        common.last().copied().ok_or_else(|| Error::Version {
            network: network.name.clone(),
            wanted: join_versions(&network.versions),
            supported: supported.join("; "),
        })
    }

    async fn supported_by(&self, call: &Call<'_>) -> Result<Vec<Version>, Error> {
        let Program { path, modified } = call.programs.get(&call.plugin.kind)?;
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some(cached) = cached.filter(|cached| cached.modified == *modified) {
            return Ok(cached.versions);
        }
        let answer =
            call.execute(Map::from_iter([("cniVersion".to_owned(), json!(Version::NEWEST))])).await?;
        let VersionResult { supported_versions } = serde_json::from_slice(&answer.out)
            .map_err(|error| call.bad_output(&format!("it did not report its versions: {error}"), &answer))?;
        let versions: Vec<Version> = supported_versions.iter().filter_map(|text| text.parse().ok()).collect();
        let cached = CachedVersions { modified: *modified, versions: versions.clone() };
        self.cached.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), cached);
        Ok(versions)
    }
}
