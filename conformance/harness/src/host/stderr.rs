//! A plugin's stderr as the agent reads it: one JSON object per line. The agent crashes on some unexpected ones, so
//! every line of every case is checked.
//!
//! Source of the facts: hashicorp/go-plugin `client.go` (logStderr), `log_entry.go`.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Size of a line from which on the agent's reader breaks it in two.
const LINE_LIMIT_BYTES: usize = 64 * 1024;

/// The lines that a pipe has brought so far, and whether more may come.
#[derive(Clone)]
pub struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    ended: watch::Receiver<bool>,
    reader: AbortHandle,
}

impl Lines {
    /// Starts a task that reads the pipe to its end.
    pub fn collect(pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (end, ended) = watch::channel(false);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&lines);
        let reading = tokio::spawn(async move {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line).await, Ok(read) if read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                collected.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                line.clear();
            }
            let _ = end.send(true);
        });
        Self { lines, ended, reader: reading.abort_handle() }
    }

    /// Closes our end of the pipe: further writes fail with a broken pipe.
    pub fn close(&self) {
        self.reader.abort();
    }

    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the last writer has closed the pipe.
    pub async fn end(&mut self) {
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Returns the last lines, shortened to what a person wants to know.
    pub fn tail(&self, count: usize) -> String {
        let all = self.all();
        let shown = all[all.len().saturating_sub(count)..].iter().map(|line| shorten(line));
        shown.collect::<Vec<_>>().join("\n")
    }
}

fn shorten(line: &str) -> String {
    let Ok(Value::Object(mut pairs)) = serde_json::from_str(line) else { return line.to_owned() };
    let mut take =
        |key: &str| pairs.remove(key).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    let (time, level, message, _) = (take("@timestamp"), take("@level"), take("@message"), take("@module"));
    let clock = time.split('T').nth(1).unwrap_or(&time).trim_end_matches('Z').to_owned();
    let rest: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{clock} {level:5} {message} {}", rest.join(" "))
}

/// # Errors
/// Says what is wrong with the line.
pub fn check(line: &str) -> Result<()> {
    ensure!(line.len() < LINE_LIMIT_BYTES, "a line of {} bytes", line.len());
    let parsed: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    for key in ["@level", "@message", "@timestamp"] {
        ensure!(parsed[key].is_string(), "{key} is not text, which crashes the agent: {line}");
    }
    let level = parsed["@level"].as_str().unwrap_or_default();
    ensure!(["trace", "debug", "info", "warn", "error"].contains(&level), "@level {level:?}: {line}");
    let time = parsed["@timestamp"].as_str().unwrap_or_default();
    ensure!(is_hclog_time(time), "@timestamp {time:?} is not in hclog's form: {line}");
    Ok(())
}

/// Returns whether a text is a time like `2006-01-02T15:04:05.000000Z07:00`, with exactly six digits for the fraction
/// of a second.
fn is_hclog_time(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00.000000";
    let bytes = text.as_bytes();
    let Some((stamp, zone)) = bytes.split_at_checked(SHAPE.len()) else { return false };
    let same = |(got, wanted): (&u8, &u8)| if *wanted == b'0' { got.is_ascii_digit() } else { got == wanted };
    stamp.iter().zip(SHAPE).all(same) && (zone == b"Z" || (zone.len() == 6 && matches!(zone[0], b'+' | b'-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_form_passes_and_others_say_why_not() {
        let good = r#"{"@level":"info","@message":"x","@timestamp":"2026-01-02T03:04:05.123456Z","pid":1}"#;
        check(good).unwrap();
        for (from, to, why) in [
            ("\"info\"", "3", "@level is not text"),
            ("\"x\"", "null", "@message is not text"),
            (".123456Z", ".123Z", "hclog's form"),
            (".123456Z", ".123456789Z", "hclog's form"),
            ("\"info\"", "\"loud\"", "@level \"loud\""),
            ("{", "thread panicked {", "not JSON"),
        ] {
            let error = check(&good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(is_hclog_time("2026-01-02T03:04:05.123456+02:00"));
    }
}
