//! An allocation as the agent's API describes it: the states of its tasks and their events. The times of events are
//! the reliable clock of a task.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
pub struct Allocation {
    #[serde(rename = "ID")]
    pub id: String,
    /// The job, the group and the index in it: `web.main[0]`.
    #[serde(rename = "Name", default)]
    pub name: String,
    #[serde(rename = "NodeID", default)]
    pub node: String,
    #[serde(rename = "DesiredStatus", default)]
    pub desired_status: String,
    #[serde(rename = "ClientStatus")]
    pub client_status: String,
    #[serde(rename = "TaskStates", default)]
    tasks: Option<BTreeMap<String, Task>>,
    #[serde(rename = "NetworkStatus", default)]
    network: Option<NetworkStatus>,
    #[serde(rename = "AllocatedResources", default)]
    resources: Resources,
}

/// The status of a group's network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkStatus {
    address: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Resources {
    tasks: BTreeMap<String, serde_json::Value>,
    shared: Shared,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Shared {
    ports: Option<Vec<Port>>,
}

/// A port of the host that Nomad has allocated to a group.
#[derive(Debug, Clone, Deserialize)]
pub struct Port {
    #[serde(rename = "Label")]
    label: String,
    #[serde(rename = "Value")]
    pub number: u16,
    #[serde(rename = "HostIP")]
    pub host: String,
}

impl Port {
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.number)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Task {
    pub state: String,
    pub failed: bool,
    pub restarts: u64,
    events: Option<Vec<Event>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    #[serde(rename = "Type")]
    pub kind: String,
    time: u64,
    #[serde(default)]
    pub display_message: String,
    #[serde(default)]
    details: Option<BTreeMap<String, String>>,
}

impl Allocation {
    /// Returns the state of a task. It is the default value as long as the agent has not reported any.
    pub fn task(&self, name: &str) -> Task {
        self.tasks.as_ref().and_then(|tasks| tasks.get(name)).cloned().unwrap_or_default()
    }

    /// Returns the names of the allocation's tasks.
    pub(crate) fn task_names(&self) -> impl Iterator<Item = &str> {
        self.resources.tasks.keys().map(String::as_str)
    }

    /// Returns the group's port with a label.
    ///
    /// # Errors
    /// Fails if the group has no port of that label.
    pub fn port(&self, label: &str) -> Result<&Port> {
        let mut ports = self.resources.shared.ports.iter().flatten();
        ports.find(|port| port.label == label).with_context(|| format!("no port {label:?}"))
    }

    /// Returns the address of the group's own network.
    ///
    /// # Errors
    /// Fails if Nomad knows none.
    pub fn address(&self) -> Result<&str> {
        let address = self.network.as_ref().map_or("", |network| &network.address);
        anyhow::ensure!(!address.is_empty(), "no address of the group is known");
        Ok(address)
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.client_status.as_str(), "complete" | "failed" | "lost")
    }

    /// Returns all tasks with all of their events as text, for the report of a failure.
    pub fn summary(&self) -> String {
        let mut summary = format!("allocation {}: {}\n", self.id, self.client_status);
        for (name, task) in self.tasks.iter().flatten() {
            summary += &format!(
                "  task {name}: {}, failed: {}, restarts: {}\n",
                task.state, task.failed, task.restarts
            );
            for event in task.events() {
                summary += &format!("    {}: {}\n", event.kind, event.display_message);
            }
        }
        summary
    }
}

impl Task {
    pub fn events(&self) -> &[Event] {
        self.events.as_deref().unwrap_or_default()
    }

    /// Returns the last event of a kind.
    ///
    /// # Errors
    /// Names the kind, and those that there are.
    pub fn event(&self, kind: &str) -> Result<&Event> {
        let found = self.events().iter().rev().find(|event| event.kind == kind);
        found.with_context(|| {
            let kinds: Vec<_> = self.events().iter().map(|event| event.kind.as_str()).collect();
            format!("no event {kind:?} among {kinds:?}")
        })
    }

    pub fn count(&self, kind: &str) -> usize {
        self.events().iter().filter(|event| event.kind == kind).count()
    }

    /// Returns the last exit of the task's process.
    ///
    /// # Errors
    /// Fails if it has not exited.
    pub fn ended(&self) -> Result<Ended> {
        let event = self.event("Terminated")?;
        let number = |name| event.detail(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Ended { exit_code: number("exit_code"), signal: number("signal") })
    }
}

/// The exit code and the signal of an exited process, as the agent reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i64,
    pub signal: i64,
}

impl Event {
    pub fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.time)
    }

    fn detail(&self, name: &str) -> Option<&str> {
        self.details.as_ref().and_then(|details| details.get(name)).map(String::as_str)
    }
}
