//! The jobs of a cluster, and how their tasks end.

use harness::agent::{Allocation, DRIVER};

/// How a group's tasks behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They end with 3 at SIGTERM.
    Heeds,
    /// They ignore SIGTERM.
    Deaf,
    /// They end with 3 at SIGTERM, and have networks of their own.
    Networked,
    /// They end with 3 at SIGTERM on one node, and with 9 at once on others.
    RunsOn(&'static str),
}

/// A group of a job: its name, the number of its tasks, how they behave, and more blocks of it.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub name: &'static str,
    pub count: usize,
    pub kind: Kind,
    pub more: &'static str,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub name: &'static str,
    pub groups: Vec<Group>,
}

/// What the agent waits for between SIGTERM and SIGKILL, in seconds.
pub const KILL_TIMEOUT: u64 = 4;
/// Output of a task that has heeded SIGTERM.
pub const STOPPED: &str = "up\nterm\n";
/// Exit code of a task that fails.
pub const FAILURE: i64 = 9;

impl Job {
    /// Returns a job with one group of tasks that heed SIGTERM.
    pub fn of(name: &'static str, count: usize, more: &'static str) -> Self {
        Self { name, groups: vec![Group { name: "heeds", count, kind: Kind::Heeds, more }] }
    }

    pub fn count(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// Returns the names that Nomad gives to the job's allocations, each of which has to run once.
    pub fn names(&self) -> Vec<String> {
        let of_group = |group: &Group| {
            let prefix = format!("{}.{}", self.name, group.name);
            (0..group.count).map(move |index| format!("{prefix}[{index}]"))
        };
        self.groups.iter().flat_map(of_group).collect()
    }

    /// Returns how the task of an allocation of this job behaves.
    pub fn kind_of(&self, allocation: &Allocation) -> Option<Kind> {
        let of = |group: &&Group| allocation.name.starts_with(&format!("{}.{}[", self.name, group.name));
        self.groups.iter().find(of).map(|group| group.kind)
    }

    /// Returns the job as a file for Nomad. Nothing of it needs a deployment, and its tasks are spread over all nodes, but for
    /// those that run on one only.
    pub fn text(&self, image: &str) -> String {
        let groups: String = self.groups.iter().map(|group| group.text(image)).collect();
        // It would lead tasks that fail on a node back to it again and again.
        let fails = self.groups.iter().any(|group| matches!(group.kind, Kind::RunsOn(_)));
        let spread = if fails { "" } else { "spread {\n    attribute = \"${node.unique.name}\"\n  }" };
        format!(
            r#"job "{name}" {{
  type = "service"
  update {{
    max_parallel = 0
  }}
  {spread}
{groups}}}
"#,
            name = self.name,
        )
    }
}

impl Group {
    fn text(&self, image: &str) -> String {
        let at_term = if self.kind == Kind::Deaf { "echo deaf" } else { "echo term; exit 3" };
        let failure = match self.kind {
            Kind::RunsOn(node) => format!("[ $NODE = {node} ] || exit {FAILURE}; "),
            _ => String::new(),
        };
        let network = if self.kind == Kind::Networked { "network_mode = \"bridge\"" } else { "" };
        format!(
            r#"
  group "{name}" {{
    count = {count}
    restart {{
      attempts = 0
      mode     = "fail"
    }}
    reschedule {{
      delay          = "5s"
      delay_function = "constant"
      unlimited      = true
    }}
    migrate {{
      max_parallel     = {count}
      health_check     = "task_states"
      min_healthy_time = "1s"
      healthy_deadline = "1m"
    }}
    {more}
    task "main" {{
      driver       = "{DRIVER}"
      kill_timeout = "{KILL_TIMEOUT}s"
      env {{
        NODE = "${{node.unique.name}}"
      }}
      config {{
        image   = "{image}"
        command = "sh"
        args    = ["-c", "trap '{at_term}' TERM; {failure}echo up; while :; do sleep 1000 & wait $!; done"]
        {network}
      }}
      resources {{
        cpu    = 10
        memory = 16
      }}
    }}
  }}
"#,
            name = self.name,
            count = self.count,
            more = self.more,
        )
    }
}
