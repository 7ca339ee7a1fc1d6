//! Task events beside start and exit, for `nomad alloc status`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures::StreamExt;
use tokio::sync::broadcast;
use tokio_stream::Stream;
use tokio_stream::wrappers::BroadcastStream;

use super::Identity;
use crate::config::Warnings;
use crate::containerd::PullEvent;
use crate::logs::{LogEvent, SkippedFile};
use crate::shorten::shorten;

/// Maximum number of events that a listener may lag behind, and that are kept for the first listener.
const QUEUED_EVENTS: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct TaskEvent {
    pub task_id: String,
    pub alloc_id: String,
    pub task_name: String,
    pub at: SystemTime,
    pub message: String,
    pub annotations: HashMap<String, String>,
}

/// The event bus. Events that nobody listens to are kept for the first listener: after the plugin's death the agent
/// recovers its tasks before it listens again.
#[derive(Clone)]
pub(super) struct EventBus {
    sender: broadcast::Sender<TaskEvent>,
    unheard: Arc<Mutex<VecDeque<TaskEvent>>>,
}

impl EventBus {
    pub(super) fn new() -> Self {
        Self { sender: broadcast::Sender::new(QUEUED_EVENTS), unheard: Arc::default() }
    }

    fn send(&self, event: TaskEvent) {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(broadcast::error::SendError(event)) = self.sender.send(event) {
            if unheard.len() == QUEUED_EVENTS {
                unheard.pop_front();
            }
            unheard.push_back(event);
        }
    }

    /// Returns the stream of events. A listener that lags misses old events; the stream itself never ends.
    pub(super) fn listen(&self) -> impl Stream<Item = TaskEvent> + Send + use<> {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        let events = BroadcastStream::new(self.sender.subscribe());
        let events = events.filter_map(|event| std::future::ready(event.ok()));
        futures::stream::iter(std::mem::take(&mut *unheard)).chain(events)
    }
}

/// The sender of one task's events.
#[derive(Clone)]
pub(super) struct TaskEvents {
    pub(super) identity: Identity,
    pub(super) events: EventBus,
}

impl TaskEvents {
    pub(super) fn pull(&self, image: &str, event: PullEvent) {
        let (message, counts) = match event {
            PullEvent::Waiting { on } => (format!("Image {image}: waiting for {on}"), None),
            PullEvent::Started => (format!("Pulling image {image}"), None),
            PullEvent::Progress { counts } => (
                format!(
                    "Pulling image {image}: {} of {} in {} of {} layers",
                    size(counts.here_bytes),
                    size(counts.total_bytes),
                    counts.layers_here,
                    counts.layers
                ),
                Some(counts),
            ),
            PullEvent::Finished { counts, took, from } => {
                let whence = match &from[..] {
                    [] => "all of it already present".to_owned(),
                    hosts => format!("{} downloaded from {}", size(counts.fetched_bytes), hosts.join(", ")),
                };
                let (layers, bytes) = (counts.layers, size(counts.total_bytes));
                let took_s = took.as_secs_f64();
                let message =
                    format!("Pulled image {image}: {layers} layers with {bytes} in {took_s:.1} s, {whence}");
                (message, Some(counts))
            }
        };
        let mut annotations = vec![("image", image.to_owned())];
        annotations.extend(counts.into_iter().flat_map(|counts| {
            [
                ("layers", counts.layers.to_string()),
                ("layers_here", counts.layers_here.to_string()),
                ("size_bytes", counts.total_bytes.to_string()),
                ("here_bytes", counts.here_bytes.to_string()),
                ("fetched_bytes", counts.fetched_bytes.to_string()),
            ]
        }));
        self.tell(message, &annotations);
    }

    /// Reports that the start has waited long for a start permit.
    pub(super) fn queued(&self, at_once: usize) {
        self.tell(
            format!(
                "Waiting for a start slot: at most {at_once} tasks start at once (max_concurrent_starts)"
            ),
            &[("max_concurrent_starts", at_once.to_string())],
        );
    }

    /// Reports the task's options that have no effect, in one event.
    pub(super) fn without_effect(&self, warnings: &Warnings) {
        if warnings.is_empty() {
            return;
        }
        let message = format!("Options without an effect under this driver: {warnings}");
        self.tell(message, &[("options", warnings.options().join(", "))]);
    }

    /// Reports labels and variables that there is no room for in what a log receiver is sent.
    pub(super) fn attributes_left_out(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let list = names.join(", ");
        self.tell(
            format!(
                "The log receiver is not sent all labels and variables, as they have at most 16 KiB together: {list} \
                 are left out"
            ),
            &[("attributes", list)],
        );
    }

    /// Reports OOM kills of processes of the task, which may run on without them.
    pub(super) fn oom_killed(&self, count: u64) {
        let what = if count == 1 { "process" } else { "processes" };
        self.tell(
            format!("OOM killed: the kernel killed {count} {what} of the task, for lack of memory"),
            &[("oom_kills", count.to_string())],
        );
    }

    pub(super) fn logs(&self, event: LogEvent) {
        let stream = |name: &str| [("stream", name.to_owned())];
        match event {
            LogEvent::Blocked { stream: of, why } => self.tell(
                format!(
                    "The task's {} waits in its pipe, as it can't be written to the log: {why}",
                    of.name()
                ),
                &stream(of.name()),
            ),
            LogEvent::Resumed { stream: of } => {
                self.tell(
                    format!("The task's {} is written to its log again", of.name()),
                    &stream(of.name()),
                );
            }
            LogEvent::Discarded { stream: of, why } => self.tell(
                format!("The task's {} is not written to its log: {why}", of.name()),
                &stream(of.name()),
            ),
            LogEvent::SkippedFile(SkippedFile { path, why }) => {
                let path = path.display().to_string();
                self.tell(format!("The log file {path} is skipped: {why}"), &[("path", path)]);
            }
            LogEvent::ReceiverUnreachable { why, waits } => {
                let then = if waits { "the output waits" } else { "the output goes on without it" };
                self.tell(format!("The task's log receiver is not reached, and {then}: {why}"), &[]);
            }
            LogEvent::ReceiverReached { receiver } => {
                self.tell(format!("The task's output is sent to {receiver} again"), &[("receiver", receiver)]);
            }
            LogEvent::Unsent { lines, why } => self.tell(
                format!("{lines} lines of the task's output are not sent to its log receiver: {why}"),
                &[("unsent_lines", lines.to_string())],
            ),
            LogEvent::Unbuffered { bytes } => self.tell(
                format!(
                    "The output waits for the log receiver, as there is no room for its buffer of {}: the buffers of all \
                     tasks have at most 256 MiB",
                    size(bytes)
                ),
                &[],
            ),
        }
    }

    pub(super) fn recovered(&self, pid: i32) {
        self.tell(
            "Recovered after a restart of the plugin or the agent".to_owned(),
            &[("pid", pid.to_string())],
        );
    }

    fn tell(&self, message: String, annotations: &[(&str, String)]) {
        let Identity { task_id, alloc_id, name } = self.identity.clone();
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), shorten(value.clone()))).collect();
        self.events.send(TaskEvent {
            task_id,
            alloc_id,
            task_name: name,
            at: SystemTime::now(),
            message: shorten(message),
            annotations,
        });
    }
}

/// Formats a size for people, in powers of 1024.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0..0x2800 => format!("{bytes} bytes"),
        0x2800..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ if mib < 10_240.0 => format!("{mib:.1} MiB"),
        _ => format!("{:.1} GiB", mib / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_formatted() {
        for (bytes, text) in
            [(700, "700 bytes"), (20_480, "20 KiB"), (524_288_000, "500.0 MiB"), (21_474_836_480, "20.0 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[tokio::test]
    async fn events_are_kept_until_a_listener_comes() {
        let events = EventBus::new();
        let identity =
            Identity { task_id: "a/b/c".to_owned(), alloc_id: "a".to_owned(), name: "b".to_owned() };
        let task_events = TaskEvents { identity, events: events.clone() };
        for count in 0..=QUEUED_EVENTS as u64 {
            task_events.oom_killed(count);
        }
        let mut heard = events.listen();
        task_events.recovered(7);
        for count in 1..=QUEUED_EVENTS {
            let event = heard.next().await.unwrap();
            assert_eq!(event.annotations["oom_kills"], count.to_string());
        }
        assert_eq!(heard.next().await.unwrap().annotations["pid"], "7");
        drop(heard);
        task_events.recovered(8);
        assert_eq!(events.listen().next().await.unwrap().annotations["pid"], "8");
    }
}
