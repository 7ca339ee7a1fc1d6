//! Plugins that collect logs themselves (`log_collection = "driver"`), and the files that they write.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::Task;
use serde_json::{Value, json};

/// Starts a plugin that collects the logs itself.
pub async fn collecting(case: &CaseContext) -> Result<Plugin> {
    with(case, json!(null)).await
}

/// Starts a plugin like [`collecting`], with the operator's `logging` block for the files' sizes.
pub async fn with(case: &CaseContext, logging: Value) -> Result<Plugin> {
    let mut options = case.options();
    options["log_collection"] = json!("driver");
    if !logging.is_null() {
        options["logging"] = logging;
    }
    case.plugin_as(&case.launch(), &options).await
}

/// Returns the log files of a stream by number, as `nomad alloc logs` finds them.
pub fn files(task: &Task, stream: &str) -> Result<BTreeMap<u64, Vec<u8>>> {
    let prefix = format!("{}.{stream}.", task.alloc.task);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(task.alloc.logs())? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else { continue };
        let number = number.parse().with_context(|| format!("Nomad can't read {}", path.display()))?;
        if path.symlink_metadata()?.is_file() {
            found.insert(number, fs::read(&path)?);
        }
    }
    Ok(found)
}

/// Returns the content of a stream's log files, oldest first, as one piece.
pub fn output(task: &Task, stream: &str) -> Result<Vec<u8>> {
    Ok(files(task, stream)?.into_values().collect::<Vec<_>>().concat())
}
