//! A job of one task in the words of docker's driver, the same for both sides.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// How the probe ends, if the task runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with the value of its variable PROBE_END: an exit code, or a signal that it sends to itself.
    Itself(String),
    /// At the first signal that it can catch.
    Signal,
    /// Not before it is killed.
    Kill,
}

impl Ending {
    /// Returns the ending that a value of PROBE_END stands for.
    fn of(end: &str) -> Self {
        match end {
            "wait" => Self::Signal,
            "deaf" => Self::Kill,
            other => Self::Itself(other.to_owned()),
        }
    }
}

/// Time between the signal to end and SIGKILL.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Debug, Clone)]
pub struct Job {
    /// What the job is about: an option and one of its values, or a seed.
    pub about: String,
    /// Name of the image among those of the run.
    pub image: &'static str,
    /// Options of docker's driver, but for the image.
    pub config: Map<String, Value>,
    /// Fields of the task, such as `User` and `KillSignal`.
    pub task: Map<String, Value>,
    pub env: Map<String, Value>,
    /// Fields of the task's resources.
    pub resources: Map<String, Value>,
    /// Fields of the task's group, such as `Networks`.
    pub group: Map<String, Value>,
    pub ending: Ending,
    /// Options that the job sets, for the report.
    pub options: Vec<&'static str>,
}

impl Job {
    /// Returns a job that runs the probe in an image whose command it is, until it is stopped.
    pub fn of(about: impl Into<String>, image: &'static str) -> Self {
        Self {
            about: about.into(),
            image,
            config: Map::new(),
            task: Map::new(),
            env: Map::new(),
            resources: Map::new(),
            group: Map::new(),
            ending: Ending::Signal,
            options: Vec::new(),
        }
    }

    /// Applies a value of an option: an object whose keys are options of docker's driver, or `task`, `env`, `resources`
    /// and `group` with fields of these, or `end` with a value of PROBE_END.
    pub fn apply(&mut self, option: &'static str, value: &Value) {
        self.options.push(option);
        for (key, value) in value.as_object().into_iter().flatten() {
            let fields = match key.as_str() {
                "end" => {
                    self.ending = Ending::of(value.as_str().unwrap_or_default());
                    continue;
                }
                "task" => &mut self.task,
                "env" => &mut self.env,
                "resources" => &mut self.resources,
                "group" => &mut self.group,
                _ => {
                    self.config.insert(key.clone(), value.clone());
                    continue;
                }
            };
            fields.extend(value.as_object().cloned().unwrap_or_default());
        }
    }

    /// Returns the job for Nomad under a name, for a node. `put_in` replaces the placeholders of a text.
    pub fn text(&self, name: &str, node: &str, image: &str, put_in: &dyn Fn(&str) -> String) -> Value {
        let end = match &self.ending {
            Ending::Itself(how) => how.as_str(),
            Ending::Signal => "wait",
            Ending::Kill => "deaf",
        };
        let mut config = self.config.clone();
        config.entry("image").or_insert_with(|| json!(image));
        let mut env = self.env.clone();
        env.entry("PROBE_END").or_insert_with(|| json!(end));
        let mut resources = json!({"CPU": 100, "MemoryMB": 64});
        add(&mut resources, &self.resources);
        let mut task = json!({
            "Name": "main",
            "Driver": "docker",
            "Config": config,
            "Env": env,
            "Resources": resources,
            "KillTimeout": nanoseconds(KILL_TIMEOUT),
            "LogConfig": {"MaxFiles": 2, "MaxFileSizeMB": 2},
        });
        add(&mut task, &self.task);
        let once = nanoseconds(Duration::from_secs(5));
        let mut group = json!({
            "Name": "group",
            "Count": 1,
            "RestartPolicy": {"Attempts": 0, "Mode": "fail", "Interval": once, "Delay": once},
            "ReschedulePolicy": {"Attempts": 0, "Unlimited": false},
            "EphemeralDisk": {"SizeMB": 10},
            "Tasks": [task],
        });
        add(&mut group, &self.group);
        let job = json!({"Job": {
            "ID": name,
            "Name": name,
            "Type": "batch",
            "Datacenters": ["*"],
            "Constraints": [{"LTarget": "${node.unique.name}", "RTarget": node, "Operand": "="}],
            "TaskGroups": [group],
        }});
        replaced(&job, put_in)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn add(object: &mut Value, fields: &Map<String, Value>) {
    if let Some(object) = object.as_object_mut() {
        object.extend(fields.clone());
    }
}

/// Returns a value with each text in it replaced.
fn replaced(value: &Value, put_in: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => json!(put_in(text)),
        Value::Array(values) => values.iter().map(|value| replaced(value, put_in)).collect(),
        Value::Object(fields) => {
            let replaced = fields.iter().map(|(key, value)| (key.clone(), replaced(value, put_in)));
            Value::Object(replaced.collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_sets_options_and_fields_of_the_task() {
        let mut job = Job::of("x", "plain");
        job.apply("user", &json!({"task": {"User": "app"}, "privileged": true, "env": {"A": "{shared}"}}));
        let text = job.text("j", "node-1", "registry/plain", &|text| text.replace("{shared}", "/s"));
        let task = &text["Job"]["TaskGroups"][0]["Tasks"][0];
        assert_eq!((&task["User"], &task["Env"]["A"]), (&json!("app"), &json!("/s")));
        assert_eq!(task["Config"], json!({"privileged": true, "image": "registry/plain"}));
        assert_eq!(job.options, ["user"]);
    }
}
