//! The plugin's log: one JSON object a line on stderr, as Nomad's logger (hclog) reads it.
//!
//! The shape is a contract. `@level`, `@message` and `@timestamp` must be strings, or the agent crashes; the timestamp
//! needs exactly six fractional digits, or the line is demoted to DEBUG; a line is at most 64 KiB. Lines go through a
//! bounded queue to a thread of their own: a reader that stalls must not stall a task, and one that has gone (the agent
//! died, the plugin lives on) must not end the plugin. What does not fit is dropped and counted.
//!
//! Source of the facts: hashicorp/go-plugin `client.go`, `log_entry.go`.

use std::fmt::Debug;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

const QUEUED_LINES: usize = 1024;
/// Below the host's 64 KiB a line, with room for JSON's escapes of what is cut here.
const TEXT_LIMIT_BYTES: usize = 8 * 1024;

/// Keeps the writer alive; dropped, it writes what is queued.
pub(crate) struct Log {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl Log {
    /// Sends the process's tracing events to stderr. The agent filters by its own level, so everything of ours from
    /// DEBUG up is sent; libraries only speak up from WARN.
    pub(crate) fn start() -> Self {
        let (lines, queue) = sync_channel(QUEUED_LINES);
        let writer =
            std::thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&queue)).ok();
        let filter = Targets::new()
            .with_target(env!("CARGO_CRATE_NAME"), LevelFilter::DEBUG)
            .with_default(LevelFilter::WARN);
        let layer = Hclog { lines: lines.clone(), dropped: AtomicU64::new(0) }.with_filter(filter);
        // Fails only where a subscriber is set already, which then keeps its place.
        let _ = tracing_subscriber::registry().with(layer).try_init();
        Self { lines: Some(lines), writer }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The subscriber holds a sender for good, so an empty line is the word to end.
        if let Some(lines) = self.lines.take() {
            let _ = lines.try_send(String::new());
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write_lines(queue: &Receiver<String>) {
    while let Ok(line) = queue.recv() {
        if line.is_empty() {
            break;
        }
        // A broken stderr is the normal end of an agent; the tasks go on.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

struct Hclog {
    lines: SyncSender<String>,
    dropped: AtomicU64,
}

impl<S: Subscriber> Layer<S> for Hclog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut pairs = Pairs::default();
        event.record(&mut pairs);
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            pairs.put("lines_dropped_before", lost.into());
        }
        let sent = self.lines.try_send(line(*event.metadata().level(), pairs));
        if matches!(sent, Err(TrySendError::Full(_))) {
            self.dropped.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

fn line(level: Level, pairs: Pairs) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let mut object = pairs.fields;
    object.insert("@level".to_owned(), level.into());
    object.insert("@message".to_owned(), pairs.message.into());
    object.insert("@module".to_owned(), "containerd-driver".into());
    let now = humantime::format_rfc3339_micros(SystemTime::now());
    object.insert("@timestamp".to_owned(), now.to_string().into());
    let mut text = Value::Object(object).to_string();
    text.push('\n');
    text
}

#[derive(Default)]
struct Pairs {
    message: String,
    fields: Map<String, Value>,
}

impl Pairs {
    fn put(&mut self, name: &str, value: Value) {
        // hclog's own keys start with `@`; a field of ours never replaces one.
        self.fields.insert(name.trim_start_matches('@').to_owned(), value);
    }

    fn text(&mut self, field: &Field, mut text: String) {
        if text.len() > TEXT_LIMIT_BYTES {
            let end = text.floor_char_boundary(TEXT_LIMIT_BYTES);
            text.truncate(end);
            text.push_str(" (cut)");
        }
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field.name(), text.into());
        }
    }
}

impl Visit for Pairs {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(emit: impl FnOnce()) -> Value {
        let (lines, queue) = sync_channel(4);
        let subscriber = tracing_subscriber::registry().with(Hclog { lines, dropped: AtomicU64::new(0) });
        tracing::subscriber::with_default(subscriber, emit);
        serde_json::from_str(&queue.recv().unwrap()).unwrap()
    }

    #[test]
    fn the_three_keys_are_strings_and_the_time_has_six_digits() {
        let line = logged(|| tracing::warn!(task = "t1", pid = 7, ok = true, "it {}", "happened"));
        assert_eq!(line["@level"], "warn");
        assert_eq!(line["@message"], "it happened");
        assert_eq!(line["task"], "t1");
        assert_eq!(line["pid"], 7);
        assert_eq!(line["ok"], true);
        let stamp = line["@timestamp"].as_str().unwrap();
        let fraction = stamp.split_once('.').unwrap().1;
        assert_eq!(fraction.len(), 7, "{stamp}");
        assert!(fraction.ends_with('Z') && fraction[..6].bytes().all(|b| b.is_ascii_digit()), "{stamp}");
    }

    #[test]
    fn a_message_that_is_no_text_still_becomes_a_string() {
        let line = logged(|| tracing::error!(message = 5));
        assert!(line["@message"].is_string());
    }

    #[test]
    fn a_line_stays_under_the_limit() {
        let (long, quotes) = ("x".repeat(100_000), "\"".repeat(100_000));
        let line = logged(|| tracing::info!(long, "{quotes}"));
        assert!(line.to_string().len() < 64 * 1024);
        assert!(line["long"].as_str().unwrap().ends_with("(cut)"));
    }

    #[test]
    fn a_queue_that_nobody_reads_drops_and_counts() {
        let (lines, queue) = sync_channel(1);
        let subscriber = tracing_subscriber::registry().with(Hclog { lines, dropped: AtomicU64::new(0) });
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..4 {
                tracing::info!("line {n}");
            }
            queue.recv().unwrap();
            tracing::info!("last");
        });
        let line: Value = serde_json::from_str(&queue.recv().unwrap()).unwrap();
        assert_eq!(line["lines_dropped_before"], 3);
    }
}
