//! A cache of the versions that plugins speak, by their answers to VERSION. A plugin is asked only where a network
//! leaves a choice, and once for each program as long as its file stays the same.
//!
//! Source of the facts: the CNI specification 1.1, section 1 ("version considerations") and section 5.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, json};

use super::call::{Call, program};
use super::error::{Error, listed};
use super::network::Network;
use super::version::Version;

#[derive(Debug, Default)]
pub(super) struct Spoken {
    known: Mutex<HashMap<PathBuf, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    written: Option<SystemTime>,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    supported_versions: Vec<String>,
}

impl Spoken {
    /// Returns the newest version of the network's that all of its plugins speak.
    ///
    /// # Errors
    /// Says what each plugin speaks, if there is no such version.
    pub(super) async fn common(&self, network: &Network, calls: &[Call<'_>]) -> Result<Version, Error> {
        let mut common = network.versions.clone();
        let mut told = Vec::new();
        for call in calls {
            let versions = self.of(call).await?;
            common.retain(|version| versions.contains(version));
            told.push(format!("{} speaks {}", call.plugin.kind, listed(&versions)));
        }
        common.last().copied().ok_or_else(|| Error::Version {
            network: network.name.clone(),
            wanted: listed(&network.versions),
            spoken: told.join("; "),
        })
    }

    async fn of(&self, call: &Call<'_>) -> Result<Vec<Version>, Error> {
        let program = program(call.network, &call.plugin.kind, call.directories)?;
        let written = fs::metadata(&program).and_then(|program| program.modified()).ok();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&program).cloned();
        if let Some(known) = known.filter(|known| known.written == written) {
            return Ok(known.versions);
        }
        let out = call.make(Map::from_iter([("cniVersion".to_owned(), json!(Version::NEWEST))])).await?;
        let Answer { supported_versions } = serde_json::from_slice(&out)
            .map_err(|error| call.garbage(&format!("it does not say its versions: {error}"), &out))?;
        let versions: Vec<Version> = supported_versions.iter().filter_map(|text| text.parse().ok()).collect();
        let known = Known { written, versions: versions.clone() };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(program, known);
        Ok(versions)
    }
}
