//! The task service that both a shim and containerd offer: the same calls under different names. Knows nothing of
//! times.

use std::future::Future;
use std::path::PathBuf;

use anyhow::Result;
use containerd_client::types::Mount;
use serde_json::Value;

use super::pipes::Paths;

/// The parts that a container is created from.
#[derive(Debug, Clone)]
pub(crate) struct Making {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) spec: Value,
    pub(crate) paths: Paths,
    pub(crate) terminal: bool,
}

pub(crate) trait Service: Clone + Send + Sync + 'static {
    /// Writes what has to exist before the first call: files or records.
    fn prepare(&mut self, making: &Making) -> impl Future<Output = Result<()>> + Send;
    /// Starts the shim, if that is a step of its own.
    fn bootstrap(&mut self, making: &Making) -> impl Future<Output = Result<()>> + Send;
    /// Returns the pid of the container's process.
    fn create(&self, making: &Making) -> impl Future<Output = Result<i32>> + Send;
    /// Starts the container's process, or that of the exec with this id. Here and in the calls below, an empty
    /// `exec_id` is the container itself.
    fn start(&self, id: &str, exec_id: &str) -> impl Future<Output = Result<()>> + Send;
    /// Waits for the exit of the process, and returns its exit status.
    fn wait(&self, id: &str, exec_id: &str) -> impl Future<Output = Result<u32>> + Send;
    fn delete(&self, id: &str, exec_id: &str) -> impl Future<Output = Result<()>> + Send;
    fn exec(
        &self,
        id: &str,
        exec_id: &str,
        paths: &Paths,
        process: &Value,
    ) -> impl Future<Output = Result<()>> + Send;
    fn close_stdin(&self, id: &str, exec_id: &str) -> impl Future<Output = Result<()>> + Send;
    fn kill(&self, id: &str, signal: u32) -> impl Future<Output = Result<()>> + Send;
    fn state(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    fn connect(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    fn pids(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    fn stats(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    fn resize(&self, id: &str, width: u32, height: u32) -> impl Future<Output = Result<()>> + Send;
    fn update(&self, id: &str, resources: &Value) -> impl Future<Output = Result<()>> + Send;
    /// Shuts the shim down, if that is a step of its own.
    fn shutdown(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    /// Removes all that is left of a container, in whatever state it is.
    fn clear(&mut self, making: &Making) -> impl Future<Output = Result<()>> + Send;
}
