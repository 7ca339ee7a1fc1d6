//! The plugin's log: one JSON object per line on stderr, in the format of Nomad's logger (hclog).
//!
//! The shape is a contract. `@level`, `@message` and `@timestamp` must be strings, or the agent crashes; the timestamp
//! needs exactly six fractional digits, or the line is demoted to DEBUG; a line is at most 64 KiB. Lines go through a
//! bounded queue to a thread of their own: a reader that stalls must not stall a task, and one that has gone (the agent
//! died, the plugin lives on) must not end the plugin. What does not fit is dropped and counted.
//!
//! Source of the facts: hashicorp/go-plugin `client.go`, `log_entry.go`.

use std::convert::Infallible;
use std::fmt::Debug;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::DriverName;
use crate::shorten::shorten;

const QUEUED_LINES: usize = 1024;
/// Maximum wait at the end for a reader that has stalled. The agent kills a plugin that takes 2 s.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Maximum length of a line, below the host's 64 KiB.
const LINE_LIMIT_BYTES: usize = 60 * 1024;

/// The log, which keeps its writer thread alive. Dropping it writes the queued lines, unless nobody reads.
pub(crate) struct Log {
    /// Sender of the queue. The subscriber keeps another one for good, so the queue's end is an entry of its own.
    lines: SyncSender<Entry>,
    written: Receiver<Infallible>,
}

/// An entry of the queue.
enum Entry {
    Line(String),
    End,
}

impl Log {
    /// Sends the process's tracing events to stderr. The agent filters by its own level, so the plugin's own events
    /// from DEBUG up are sent; those of libraries only from WARN up.
    /// Each line names the driver as its module: those of two plugins are told apart by that.
    pub(crate) fn start(name: DriverName) -> Self {
        let (log, queue, over) = Self::queue();
        let write = move || {
            write_lines(&queue, &mut std::io::stderr());
            drop(over);
        };
        let _ = std::thread::Builder::new().name("log".to_owned()).spawn(write);
        let filter = Targets::new()
            .with_target(env!("CARGO_CRATE_NAME"), LevelFilter::DEBUG)
            .with_default(LevelFilter::WARN);
        let layer = Hclog { module: name.as_str(), lines: log.lines.clone(), dropped: AtomicU64::new(0) }
            .with_filter(filter);
        // Fails only if a subscriber is set already, which then stays in place.
        let _ = tracing_subscriber::registry().with(layer).try_init();
        log
    }

    /// Creates the queue. Returns with it the writer's end, and the sender that the writer drops when it is done.
    fn queue() -> (Self, Receiver<Entry>, SyncSender<Infallible>) {
        let (lines, queue) = sync_channel(QUEUED_LINES);
        let (over, written) = sync_channel(0);
        (Self { lines, written }, queue, over)
    }

    fn end_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut end = Entry::End;
        while let Err(TrySendError::Full(unsent)) = self.lines.try_send(end) {
            if Instant::now() >= deadline {
                return;
            }
            end = unsent;
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = self.written.recv_timeout(left);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.end_within(LAST_LINES);
    }
}

fn write_lines(queue: &Receiver<Entry>, to: &mut impl Write) {
    while let Ok(Entry::Line(line)) = queue.recv() {
        // A broken stderr is the normal end of an agent; the tasks go on.
        let _ = to.write_all(line.as_bytes());
    }
}

struct Hclog {
    module: &'static str,
    lines: SyncSender<Entry>,
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
        let sent = self.lines.try_send(Entry::Line(line(self.module, *event.metadata().level(), pairs)));
        if matches!(sent, Err(TrySendError::Full(_))) {
            self.dropped.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

fn line(module: &str, level: Level, pairs: Pairs) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let Pairs { message, fields: mut object } = pairs;
    object.insert("@level".to_owned(), level.into());
    object.insert("@message".to_owned(), message.into());
    object.insert("@module".to_owned(), module.into());
    let now = humantime::format_rfc3339_micros(SystemTime::now());
    object.insert("@timestamp".to_owned(), now.to_string().into());
    let mut line = Value::Object(object);
    let mut text = line.to_string();
    // Control characters are escaped to six times their length.
    if text.len() > LINE_LIMIT_BYTES
        && let Some(object) = line.as_object_mut()
    {
        object.retain(|name, value| name.starts_with('@') || !value.is_string());
        object.insert("fields_dropped".to_owned(), true.into());
        text = line.to_string();
    }
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
        // hclog's own keys start with `@`; a field of the plugin's never replaces one.
        self.fields.insert(name.trim_start_matches('@').to_owned(), value);
    }

    fn text(&mut self, field: &Field, text: String) {
        let text = shorten(text);
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

    fn layer(lines: SyncSender<Entry>) -> Hclog {
        Hclog { module: DriverName::Docker.as_str(), lines, dropped: AtomicU64::new(0) }
    }

    fn logged(emit: impl FnOnce()) -> Value {
        let (lines, queue) = sync_channel(4);
        let subscriber = tracing_subscriber::registry().with(layer(lines));
        tracing::subscriber::with_default(subscriber, emit);
        next(&queue)
    }

    fn next(queue: &Receiver<Entry>) -> Value {
        let Entry::Line(line) = queue.recv().unwrap() else { panic!("it is the end") };
        serde_json::from_str(&line).unwrap()
    }

    /// A reader that stalls at the first line.
    struct Stalled(Receiver<()>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_end_writes_what_is_queued_and_waits_for_no_stalled_reader() {
        for queued in [3, QUEUED_LINES] {
            let (log, queue, over) = Log::queue();
            for _ in 0..queued {
                log.lines.try_send(Entry::Line("x\n".to_owned())).unwrap();
            }
            let writer = std::thread::spawn(move || {
                let mut written = Vec::new();
                write_lines(&queue, &mut written);
                drop(over);
                written.len()
            });
            drop(log);
            assert_eq!(writer.join().unwrap(), 2 * queued);
            let (log, queue, over) = Log::queue();
            let (goes, stalls) = sync_channel(0);
            for _ in 0..queued {
                log.lines.try_send(Entry::Line("x\n".to_owned())).unwrap();
            }
            let writer = std::thread::spawn(move || {
                write_lines(&queue, &mut Stalled(stalls));
                drop(over);
            });
            let begun = Instant::now();
            log.end_within(Duration::from_millis(200));
            let took = begun.elapsed();
            assert!((200..2000).contains(&took.as_millis()), "{took:?}");
            drop(goes);
            drop(log);
            writer.join().unwrap();
        }
    }

    #[test]
    fn the_three_keys_are_strings_and_the_time_has_six_digits() {
        let line = logged(|| tracing::warn!(task = "t1", pid = 7, ok = true, "it {}", "happened"));
        assert_eq!(line["@level"], "warn");
        assert_eq!(line["@message"], "it happened");
        assert_eq!(line["@module"], "docker", "the driver's name");
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
        assert!(line["long"].as_str().unwrap().contains("bytes left out"));
        let control = "\u{1b}".repeat(100_000);
        let line = logged(|| tracing::info!(a = control, b = control, c = control, d = 1, "{control}"));
        assert!(line.to_string().len() < 64 * 1024 && line["fields_dropped"] == true && line["d"] == 1);
    }

    #[test]
    fn a_queue_that_nobody_reads_drops_and_counts() {
        let (lines, queue) = sync_channel(1);
        let subscriber = tracing_subscriber::registry().with(layer(lines));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..4 {
                tracing::info!("line {n}");
            }
            queue.recv().unwrap();
            tracing::info!("last");
        });
        let line = next(&queue);
        assert_eq!(line["lines_dropped_before"], 3);
    }
}
