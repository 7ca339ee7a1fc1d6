//! The requests to a Nomad server about jobs that are in JSON, and what it says of their allocations, as it says it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::fixture::http;
use crate::interrupt::check;

/// Time between two looks at something that changes.
const PACE: Duration = Duration::from_millis(60);

/// The HTTP API of a server.
#[derive(Debug, Clone)]
pub struct JobApi {
    address: String,
}

impl JobApi {
    pub fn at(address: String) -> Self {
        Self { address }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let answer = http::request(&self.address, method, path, &[], &body)?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(
            answer.status == 200,
            "{method} {path}: the server answers {}: {}",
            answer.status,
            text.trim()
        );
        serde_json::from_slice(&answer.body).with_context(|| format!("{method} {path}: not as expected"))
    }

    /// # Errors
    /// Fails if the server doesn't answer, or has nothing there.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, &Value::Null)
    }

    /// Submits a job, `{"Job": ..}`. Returns the server's reason if it refuses it.
    ///
    /// # Errors
    /// Fails if the server doesn't answer.
    pub fn submit(&self, job: &Value) -> Result<Option<String>> {
        let answer = http::request(&self.address, "PUT", "/v1/jobs", &[], &serde_json::to_vec(job)?)?;
        let text = String::from_utf8_lossy(&answer.body);
        Ok((answer.status != 200).then(|| text.trim().to_owned()))
    }

    /// Stops a job, and with `purge` forgets it.
    ///
    /// # Errors
    /// Fails if the server knows no such job.
    pub fn stop(&self, job: &str, purge: bool) -> Result<()> {
        self.ask("DELETE", &format!("/v1/job/{job}?purge={purge}"), &Value::Null).map(drop)
    }

    /// Waits until a job has an allocation, and returns its id.
    ///
    /// # Errors
    /// Fails if it isn't placed in time, with the reasons that the server has.
    pub fn placed(&self, job: &str, limit: Duration) -> Result<String> {
        let path = format!("/v1/job/{job}/allocations");
        let mut found = String::new();
        let placed = until("allocation", limit, || {
            self.get(&path)?[0]["ID"].as_str().unwrap_or_default().clone_into(&mut found);
            Ok(!found.is_empty())
        });
        placed.with_context(|| {
            self.get(&format!("/v1/job/{job}/evaluations")).unwrap_or_default().to_string()
        })?;
        Ok(found)
    }

    /// # Errors
    /// Fails if the server doesn't answer.
    pub fn allocation(&self, id: &str) -> Result<Value> {
        self.get(&format!("/v1/allocation/{id}"))
    }
}

/// Waits until `is` returns true.
///
/// # Errors
/// Fails after `limit`, after an interrupt, and if `is` fails.
pub fn until(what: &str, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        check()?;
        if is()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("no {what} after {} s", limit.as_secs());
        }
        thread::sleep(PACE);
    }
}

/// Returns whether an allocation has ended.
pub fn is_terminal(allocation: &Value) -> bool {
    matches!(allocation["ClientStatus"].as_str(), Some("complete" | "failed" | "lost"))
}

/// Returns the events of an allocation's task `main`, the first one first.
pub fn events(allocation: &Value) -> Vec<Value> {
    allocation["TaskStates"]["main"]["Events"].as_array().cloned().unwrap_or_default()
}
