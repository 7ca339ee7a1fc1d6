//! Calls to the shim of the plugin's task without the plugin: what the wire and the shim themselves take.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shim_protos::api::{
    DeleteRequest, ExecProcessRequest, KillRequest, StartRequest, StateRequest, StatsRequest, WaitRequest,
};
use shim_protos::{Bootstrap, TaskClient, any};

use super::pipes::Pipes;
use crate::task::LIMIT;

pub struct Shim {
    client: TaskClient,
    id: String,
    process: Vec<u8>,
    directory: PathBuf,
}

impl Shim {
    /// # Errors
    /// When the bundle doesn't say where the shim is, or it doesn't answer.
    pub async fn of(bundle: &Path) -> Result<Self> {
        let shim = read(&bundle.join("shim.json"))?;
        let bootstrap: Bootstrap = serde_json::from_value(shim["bootstrap"].clone()).context("shim.json")?;
        let id = bundle.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let process = serde_json::to_vec(&exec_process(&read(&bundle.join("config.json"))?))?;
        let client = TaskClient::connect(&bootstrap, LIMIT).await?;
        Ok(Self { client, id, process, directory: bundle.join("io") })
    }

    /// # Errors
    /// Carries the shim's refusal.
    pub async fn exec(&self) -> Result<()> {
        let pipes = Pipes::make(&self.directory)?;
        let (id, exec_id) = (self.id.clone(), pipes.exec_id.clone());
        let request = ExecProcessRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            stdout: pipes.stdout(),
            stderr: pipes.stderr(),
            spec: Some(any::process(self.process.clone())).into(),
            ..Default::default()
        };
        self.client.exec(&request, LIMIT).await?;
        let wait = WaitRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        let start = StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        let (ended, started) = tokio::join!(self.client.wait(&wait), self.client.start(&start, LIMIT));
        started?;
        let ended = ended?;
        ensure!(ended.exit_status == 0, "true ends with {}", ended.exit_status);
        let delete = DeleteRequest { id, exec_id, ..Default::default() };
        self.client.delete(&delete, LIMIT).await?;
        pipes.drain().await
    }

    /// # Errors
    /// Carries the shim's refusal.
    pub async fn signal(&self, signal: u32) -> Result<()> {
        let request = KillRequest { id: self.id.clone(), signal, ..Default::default() };
        Ok(self.client.kill(&request, LIMIT).await.map(drop)?)
    }

    /// # Errors
    /// Carries the shim's refusal.
    pub async fn stats(&self) -> Result<()> {
        let request = StatsRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.client.stats(&request, LIMIT).await.map(drop)?)
    }

    /// # Errors
    /// Carries the shim's refusal.
    pub async fn state(&self) -> Result<()> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.client.state(&request, LIMIT).await.map(drop)?)
    }
}

/// The process of `true` in a container of that specification.
pub fn exec_process(spec: &Value) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = serde_json::json!(["true"]);
    process["terminal"] = false.into();
    process
}

/// # Errors
/// Names the file.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}
