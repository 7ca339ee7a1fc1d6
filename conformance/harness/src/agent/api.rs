//! A client for the agent's HTTP API.

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::fixture::http::{self, Answer};
use crate::leaks::agent::check_interrupt;

#[derive(Debug, Clone)]
pub(crate) struct Api {
    address: String,
}

/// The value of an answer, and the index for the next blocking query.
pub(crate) struct Indexed<T> {
    pub index: u64,
    pub value: T,
}

impl Api {
    pub(crate) fn at(address: String) -> Self {
        Self { address }
    }

    /// Returns the address and the port of the API.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns the URL of the API, in the form of `NOMAD_ADDR`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// # Errors
    /// Names the path, with the status and the text of an answer that isn't 200.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.read(path)?.value)
    }

    /// Makes a blocking query: returns once `path` has changed after `index`, or after two seconds.
    ///
    /// # Errors
    /// Fails as [`Self::get`] does, and after an interrupt.
    pub(crate) fn get_after<T: DeserializeOwned>(&self, path: &str, index: u64) -> Result<Indexed<T>> {
        check_interrupt()?;
        self.read(&format!("{path}?index={index}&wait=2s"))
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Indexed<T>> {
        let answer = self.ask(path)?;
        let index = answer.header("X-Nomad-Index").and_then(|index| index.parse().ok()).unwrap_or(0);
        let value =
            serde_json::from_slice(&answer.body).with_context(|| format!("GET {path}: not as expected"))?;
        Ok(Indexed { index, value })
    }

    fn ask(&self, path: &str) -> Result<Answer> {
        let answer = http::request(&self.address, "GET", path, &[], b"")?;
        if answer.status != 200 {
            let text = String::from_utf8_lossy(&answer.body);
            bail!("GET {path}: the agent answers {}: {}", answer.status, text.trim());
        }
        Ok(answer)
    }
}
