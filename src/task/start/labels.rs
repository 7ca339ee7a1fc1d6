//! The labels of a task's container record and lease.

use std::collections::HashMap;

use super::Start;
use crate::config::Labels;

/// Label that tells containers and leases of this plugin from those of others in the same namespace.
pub(in crate::task) const OWNER_LABEL: &str = "containerd-driver/state-dir";
/// Label that Nomad's docker driver always sets, for tools that look for it.
const DOCKERS_ALLOC_LABEL: &str = "com.hashicorp.nomad.alloc_id";

impl Start<'_> {
    /// Returns the labels of the task's record. The driver's own take precedence over the operator's, and these over
    /// the job's.
    pub(super) fn labels(&self) -> HashMap<String, String> {
        let own = [
            (OWNER_LABEL, self.settings.config.state_dir.display().to_string()),
            ("nomad/alloc-id", self.config.alloc_id.clone()),
            ("nomad/task-id", self.config.id.clone()),
            ("nomad/task", self.config.name.clone()),
            ("nomad/group", self.config.task_group_name.clone()),
            ("nomad/job", self.config.job_name.clone()),
            ("nomad/namespace", self.config.namespace.clone()),
            (DOCKERS_ALLOC_LABEL, self.config.alloc_id.clone()),
        ];
        let own = own.into_iter().filter(|(_, value)| !value.is_empty());
        let Labels(jobs) = &self.plan.options.labels;
        jobs.clone()
            .into_iter()
            .chain(self.settings.config.extra_labels.of(self.config))
            .chain(own.map(|(key, value)| (key.to_owned(), value)))
            .collect()
    }
}
