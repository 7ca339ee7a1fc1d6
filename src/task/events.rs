//! What happens to a task besides its start and end, for `nomad alloc status`.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio::sync::broadcast;

use super::Identity;
use crate::containerd::PullEvent;

#[derive(Debug, Clone)]
pub(crate) struct TaskEvent {
    pub task_id: String,
    pub alloc_id: String,
    pub task_name: String,
    pub at: SystemTime,
    pub message: String,
    pub annotations: HashMap<String, String>,
}

/// Tells of one task's events. Nobody listening is nobody told.
#[derive(Clone)]
pub(super) struct Teller {
    pub(super) identity: Identity,
    pub(super) events: broadcast::Sender<TaskEvent>,
}

impl Teller {
    pub(super) fn pull(&self, image: &str, event: PullEvent) {
        match event {
            PullEvent::Started => self.tell(format!("Pulling image {image}"), &[("image", image.to_owned())]),
            PullEvent::Finished { size_bytes, took } => self.tell(
                format!("Pulled image {image}: {size_bytes} bytes in {:.1} s", took.as_secs_f64()),
                &[("image", image.to_owned()), ("size_bytes", size_bytes.to_string())],
            ),
        }
    }

    fn tell(&self, message: String, annotations: &[(&str, String)]) {
        let Identity { task_id, alloc_id, name } = self.identity.clone();
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        // An error only says that nobody listens.
        let _ = self.events.send(TaskEvent {
            task_id,
            alloc_id,
            task_name: name,
            at: SystemTime::now(),
            message,
            annotations,
        });
    }
}
