//! The plugin block's `extra_labels`: facts about a task's job and node that are written as labels on its container's
//! record, beside the driver's own. The option's values and the label keys are those of Nomad's docker driver.

use nomad_proto::driver as pb;

use crate::config::{ConfigError, reject_nulls, value};

const OPTION: &str = "extra_labels";

/// Returns the value of a label for a task.
type ReadValue = fn(&pb::TaskConfig) -> &str;

const KNOWN_LABELS: [(&str, ReadValue); 8] = [
    ("job_name", |task| &task.job_name),
    ("job_id", |task| &task.job_id),
    ("parent_job_id", |task| &task.parent_job_id),
    ("task_group_name", |task| &task.task_group_name),
    ("task_name", |task| &task.name),
    ("namespace", |task| &task.namespace),
    ("node_name", |task| &task.node_name),
    ("node_id", |task| &task.node_id),
];

/// Names of [`KNOWN_LABELS`], or patterns that match at least one of them each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ExtraLabels(Vec<String>);

pub(super) fn decode(raw: Option<Vec<Option<String>>>) -> Result<ExtraLabels, ConfigError> {
    let patterns = reject_nulls(OPTION, raw)?;
    match patterns.iter().find(|pattern| !KNOWN_LABELS.iter().any(|(name, _)| matches_pattern(pattern, name)))
    {
        Some(pattern) => {
            let names = KNOWN_LABELS.map(|(name, _)| name).join(", ");
            Err(value(OPTION, pattern, format!("it matches none of {names}; a * stands for any characters")))
        }
        None => Ok(ExtraLabels(patterns)),
    }
}

impl ExtraLabels {
    /// Returns the labels of a task that the operator asks for.
    pub(crate) fn of(&self, task: &pb::TaskConfig) -> impl Iterator<Item = (String, String)> {
        let wanted = |name: &str| self.0.iter().any(|pattern| matches_pattern(pattern, name));
        KNOWN_LABELS
            .into_iter()
            .filter(move |(name, _)| wanted(name))
            .map(|(name, say)| (format!("com.hashicorp.nomad.{name}"), say(task).to_owned()))
            .filter(|(_, value)| !value.is_empty())
    }
}

/// Returns true if the pattern, in which each `*` stands for any characters, matches the whole name.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| matches_pattern(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_label_names() {
        for (pattern, name, wanted) in [
            ("job_name", "job_name", true),
            ("job", "job_name", false),
            ("job*", "job_name", true),
            ("*name", "job_name", true),
            ("*job*", "parent_job_id", true),
            ("t*_*e", "task_name", true),
            ("*", "", true),
            ("a*", "", false),
        ] {
            assert_eq!(matches_pattern(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn extra_labels_are_set_and_unknown_ones_refused() {
        let task = pb::TaskConfig {
            job_name: "web".to_owned(),
            job_id: "web-1".to_owned(),
            node_name: "n1".to_owned(),
            ..Default::default()
        };
        let extra = decode(Some(vec![Some("job*".to_owned()), Some("node_id".to_owned())])).unwrap();
        let labels: Vec<_> = extra.of(&task).collect();
        let label = |key: &str, value: &str| (format!("com.hashicorp.nomad.{key}"), value.to_owned());
        assert_eq!(labels, [label("job_name", "web"), label("job_id", "web-1")]);
        let error = decode(Some(vec![Some("alloc".to_owned())])).unwrap_err().to_string();
        assert!(error.contains("extra_labels") && error.contains("node_id"), "{error}");
        assert!(decode(Some(vec![None])).is_err());
    }
}
