//! Finds the reason of a runtime's failure in the log that the runtime writes into the bundle, for a shim that reports
//! none: shims look for the reason in the form in which runc writes it, and not every runtime does. Knows nothing of
//! the calls that fail.
//!
//! Source of the facts: containerd `cmd/containerd-shim-runc-v2/process/init.go` and rust-extensions
//! `crates/runc-shim/src/runc.rs` (what shims look for and say), runc and crun (`"level":"error","msg"`), gVisor
//! `pkg/log/json.go` (the same), youki `crates/youki/src/observability.rs` (`"level":"ERROR","message"`).

use std::time::{Duration, SystemTime};

use serde_json::Value;
use shim_protos::CallError;

use super::excerpt::tail;
use super::{Bundle, Error};

/// Name of the log in the bundle that a shim has its runtime write.
const LOG: &str = "log.json";
/// Size of the part at the end of the log that is read. A line has a few hundred bytes.
const TAIL_BYTES: u64 = 64 * 1024;
/// Texts in errors of shims that know no more of their runtime than the exit status: of containerd's shims, and of
/// those in Rust.
const ERRORS_WITHOUT_REASON: [&str; 3] =
    ["did not terminate successfully", "unable to parse log msg", "no OCI runtime error in logfile"];
/// Levels of lines that say why the runtime gives up, in lower case.
const FAILURE_LEVELS: [&str; 3] = ["error", "fatal", "panic"];
/// Keys of a line's text: of most runtimes, and of those in Rust.
const TEXT_KEYS: [&str; 2] = ["msg", "message"];
/// Keys of the cause that a line gives beside its text.
const CAUSE_KEYS: [&str; 3] = ["err", "error", "e"];
/// Keys of the time at which a line was written.
const TIME_KEYS: [&str; 2] = ["time", "timestamp"];
/// Resolution of the times that runtimes in Go write, which are rounded down.
const TIME_RESOLUTION: Duration = Duration::from_secs(1);

/// Makes a call in which the shim runs the runtime. If the call fails and the shim reports no reason, the reason in the
/// runtime's log is appended.
///
/// # Errors
/// The errors of the call.
pub(crate) async fn with_runtime_reason<T>(
    bundle: &Bundle,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let since = SystemTime::now();
    match call.await {
        Err(Error::Call { doing, source: CallError::Refused(message) }) if lacks_reason(&message) => {
            let log = bundle.directory().join(LOG);
            let end = tokio::task::spawn_blocking(move || tail(&log, TAIL_BYTES)).await;
            let reasons =
                end.ok().and_then(Result::ok).map(|end| reasons(&end.text, since)).unwrap_or_default();
            Err(Error::Call { doing, source: CallError::Refused(with_reasons(message, &reasons)) })
        }
        answer => answer,
    }
}

fn lacks_reason(message: &str) -> bool {
    ERRORS_WITHOUT_REASON.iter().any(|without| message.contains(without))
}

/// Appends those reasons that an error's text lacks.
fn with_reasons(message: String, reasons: &[String]) -> String {
    let new: Vec<_> =
        reasons.iter().filter(|reason| !message.contains(reason.as_str())).map(String::as_str).collect();
    if new.is_empty() {
        message
    } else {
        let message = message.trim_end_matches(": unknown").trim_end().trim_end_matches(':');
        format!("{message}: {}", new.join("; "))
    }
}

/// Returns the texts of the first and the last line from `since` on that say why the runtime gave up: what went wrong,
/// and what that meant for the call. Earlier lines are about other calls: runc appends to them, and youki overwrites
/// them. Lines that are cut off or are no JSON are skipped.
fn reasons(log: &str, since: SystemTime) -> Vec<String> {
    let mut reasons = log.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let value_of = |keys: &[&str]| keys.iter().find_map(|key| line.get(key)?.as_str()).map(str::trim);
        let level = value_of(&["level"])?.to_ascii_lowercase();
        let written = value_of(&TIME_KEYS).and_then(timestamp)?;
        let text = value_of(&TEXT_KEYS).filter(|text| !text.is_empty())?;
        if !FAILURE_LEVELS.contains(&level.as_str()) || written + TIME_RESOLUTION < since {
            return None;
        }
        Some(value_of(&CAUSE_KEYS).map_or_else(|| text.to_owned(), |cause| format!("{text}: {cause}")))
    });
    let first = reasons.next();
    let last = reasons.next_back();
    first.into_iter().chain(last).collect()
}

/// Parses a time of RFC 3339 in any zone: runtimes in Go write it in the zone of their host.
fn timestamp(text: &str) -> Option<SystemTime> {
    if let Ok(time) = humantime::parse_rfc3339(text) {
        return Some(time);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let offset_minutes = hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?;
    let time = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let offset_time = Duration::from_secs(offset_minutes * 60);
    if offset.starts_with('-') { time.checked_add(offset_time) } else { time.checked_sub(offset_time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: &str = "2026-11-29T04:25:38.5Z";

    #[test]
    fn the_first_and_last_error_of_each_runtimes_log_are_found() {
        for (log, expected) in [
            (
                r#"{"level":"error","msg":"of an exec before","time":"2026-11-29T04:25:37Z"}
{"level":"warning","msg":"slow","time":"2026-11-29T04:25:38Z"}
{"level":"error","msg":"runc create failed: no such file","time":"2026-11-29T05:25:38+01:00"}
"#,
                &["runc create failed: no such file"][..],
            ),
            (
                r#"{"msg":"open executable: No such file","level":"error","time":"2026-11-29T04:25:38.600000Z"}"#,
                &["open executable: No such file"],
            ),
            // Lines of youki's, which were written over longer ones of an earlier failure.
            (
                r#"{"timestamp":"2026-11-29T04:25:38.6Z","level":"ERROR","message":"failed to chdir","e":"ENOENT"}
{"timestamp":"2026-11-29T04:25:38.7Z","level":"ERROR","message":"failed to wait"}
{"timestamp":"2026-11-29T04:25:38.7Z","level":"ERROR","message":"failed to create container"}
{"timestamp":"2026-11-29T04:25:38.7Z","level":"INFO","message":"cleaning up"}
ner of old"}
{"timestamp":"2026-11-29T04:20:28Z","level":"ERROR","message":"failed to create the old one"}"#,
                &["failed to chdir: ENOENT", "failed to create container"],
            ),
            (r#"{"level":"error","msg":"  ","time":"2026-11-29T04:25:39Z"}"#, &[]),
            (r#"{"level":"error","msg":7,"time":"2026-11-29T04:25:39Z"}"#, &[]),
            (r#"{"level":"error","msg":"of whenever"}"#, &[]),
            (r#"{"level":"info","msg":"all is well","time":"2026-11-29T04:25:39Z"}"#, &[]),
            ("[1]\n\"text\"\nplain text\n{\"level\":\"error\",\"ms", &[]),
            ("", &[]),
        ] {
            assert_eq!(reasons(log, timestamp(SINCE).unwrap()), expected, "{log}");
        }
    }

    #[test]
    fn timestamps_are_parsed_in_any_time_zone() {
        let time = timestamp("2026-11-29T04:25:38Z").unwrap();
        for same in
            ["2026-11-29T05:25:38+01:00", "2026-11-28T22:55:38-05:30", "2026-11-29T04:25:38.000+00:00"]
        {
            assert_eq!(timestamp(same), Some(time), "{same}");
        }
        for wrong in ["", "+00:00", "now", "2026-11-29T04:25:38", "2026-11-29T04:25:38+1:xx", "äöüäöü"]
        {
            assert_eq!(timestamp(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn reasons_are_appended_once() {
        let message = "create failed: youki did not terminate successfully: exit status 1";
        let appended = |message: &str, reasons: &[&str]| {
            with_reasons(message.to_owned(), &reasons.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(appended(message, &[]), message);
        assert_eq!(appended(message, &["no seccomp"]), format!("{message}: no seccomp"));
        assert_eq!(appended(message, &["no filter", "no start"]), format!("{message}: no filter; no start"));
        assert_eq!(
            appended(&format!("{message}: unknown"), &["no seccomp"]),
            format!("{message}: no seccomp")
        );
        // The shim appends what the runtime printed, which may be nothing.
        assert_eq!(appended(&format!("{message}: \n"), &["no seccomp"]), format!("{message}: no seccomp"));
        let complete = format!("{message}: no seccomp");
        assert_eq!(appended(&complete, &["no seccomp"]), complete);
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn logs() {
        let since = timestamp("2026-11-29T04:25:38.5Z").unwrap();
        crate::fuzz::text("runtime-log", |log| {
            let reasons = reasons(log, since);
            assert!(
                reasons.len() <= 2 && reasons.iter().all(|reason| !reason.trim().is_empty()),
                "{reasons:?}"
            );
            let text = with_reasons("OCI runtime create failed: unknown".to_owned(), &reasons);
            assert!(reasons.iter().all(|reason| text.contains(reason.as_str())), "{text}");
            for line in log.lines() {
                let Some(time) = timestamp(line).filter(|time| *time >= SystemTime::UNIX_EPOCH) else {
                    continue;
                };
                assert_eq!(
                    timestamp(&humantime::format_rfc3339_nanos(time).to_string()),
                    Some(time),
                    "{line}"
                );
            }
        });
    }
}
