//! Tells which errors of the operating system are transient: the same may work a moment later with nothing changed in
//! the job, in the plugin's configuration or in the host's. Every decision on whether Nomad retries a start is based on
//! this.
//!
//! Source of the facts: errno(3).

use std::io::{self, ErrorKind};

use nix::errno::Errno;

/// Transient errors: lack of memory, processes, descriptors or space; a peer that is too busy, or just gone; and a file
/// system whose server is gone, such as one of a network or in user space.
pub(crate) const TRANSIENT: [Errno; 16] = [
    Errno::EAGAIN,
    Errno::ENOMEM,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::ETXTBSY,
    Errno::EBUSY,
    Errno::EIO,
    Errno::EINTR,
    Errno::ETIMEDOUT,
    Errno::ECONNREFUSED,
    Errno::ECONNRESET,
    Errno::ENOTCONN,
    Errno::ESTALE,
    Errno::EHOSTDOWN,
];

/// The text of [`Errno::ESTALE`] in earlier versions of Go.
const STALE_IN_GO: &str = "stale nfs file handle";

/// Returns true if the same may work later. An error that a library has wrapped is judged by its kind only.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    let by_kind = matches!(
        error.kind(),
        ErrorKind::TimedOut | ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory
    );
    by_kind || error.raw_os_error().is_some_and(|code| TRANSIENT.contains(&Errno::from_raw(code)))
}

/// Returns true if a text of another program reports a transient error: a shim, a runtime and containerd report errors
/// of the operating system by their texts only. The texts of Go and of the C library are the same except for their
/// first letters. A part counts only if it stands alone between colons and outside of quotes, so that no name in the
/// text is taken for an error: a job's command may have any.
pub(crate) fn reports_transient(text: &str) -> bool {
    let text = &without_quoted(text);
    let is_stale = |part: &str| words(part) == STALE_IN_GO;
    reports_one_of(&TRANSIENT, text) || text.split(": ").any(is_stale) || was_killed(text)
}

/// Returns true if a text of another program reports, as [`reports_transient`] understands it, that a process lacks
/// descriptors, processes or memory.
pub(crate) fn reports_shortage(text: &str) -> bool {
    reports_one_of(&[Errno::EMFILE, Errno::EAGAIN, Errno::ENOMEM], &without_quoted(text))
}

fn reports_one_of(errors: &[Errno], text: &str) -> bool {
    let known: Vec<_> = errors.iter().map(|errno| words(&io::Error::from(*errno).to_string())).collect();
    text.split(": ").any(|part| known.contains(&words(part)))
}

/// Returns an error's text without the number that Rust appends.
fn words(text: &str) -> String {
    text.split(" (os error").next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Returns a text without its quoted parts, as quoted by Go's `%q`. Text after an unclosed quote is kept.
fn without_quoted(text: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, quoted)) = rest.split_once('"') {
        let mut is_escaped = false;
        let end = quoted.find(|c| {
            let ends = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            ends
        });
        let Some(end) = end else { break };
        kept.push_str(before);
        rest = &quoted[end + 1..];
    }
    kept + rest
}

/// Returns true if the text of a Go library says that a program ended by SIGKILL: only the kernel, when out of memory,
/// and an operator kill a runtime.
fn was_killed(text: &str) -> bool {
    const BY_SIGKILL: [&str; 2] = ["exit status 137", "signal: killed"];
    BY_SIGKILL.into_iter().any(|words| text.contains(&format!("did not terminate successfully: {words}")))
}

/// Returns the last error of a chain, which says what happened; the links before it say only `transport error`.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn momentary_shortages_are_transient() {
        for errno in TRANSIENT {
            assert!(is_transient(&errno.into()), "{errno}");
        }
        assert!(is_transient(&ErrorKind::TimedOut.into()));
        for errno in [Errno::ENOENT, Errno::EACCES, Errno::EPERM, Errno::ENOEXEC, Errno::EROFS, Errno::EINVAL]
        {
            assert!(!is_transient(&errno.into()), "{errno}");
        }
        assert!(!is_transient(&io::Error::other("no space left on device")));
        for (kind, passes) in [(ErrorKind::StorageFull, true), (ErrorKind::NotFound, false)] {
            assert_eq!(is_transient(&io::Error::new(kind, "put around")), passes, "{kind}");
        }
    }

    #[test]
    fn a_shortage_is_of_what_a_process_may_have() {
        for text in [
            "OCI runtime create failed: fork/exec /usr/sbin/runc: resource temporarily unavailable: unknown",
            "failed to create pipe: too many open files",
            "can't run it: Cannot allocate memory (os error 12)",
        ] {
            assert!(reports_shortage(text) && reports_transient(text), "{text}");
        }
        for text in [
            "open /run/x/init.pid: no space left on device",
            "runc did not terminate successfully: signal: killed: unknown",
            "exec: \"a: too many open files: b\": executable file not found in $PATH",
        ] {
            assert!(!reports_shortage(text), "{text}");
        }
    }

    #[test]
    fn quoted_texts_of_other_programs_are_distinguished_from_names() {
        for text in [
            "OCI runtime create failed: open /run/x/init.pid: no space left on device: unknown",
            "fork/exec /usr/sbin/runc: resource temporarily unavailable",
            "can't write /run/x: No space left on device (os error 28)",
            "mkdir /run/x: cannot allocate memory",
            "too many open files",
            "error mounting /mnt/a to rootfs at /b: stat /mnt/a: stale NFS file handle: unknown",
            "open /mnt/a: stale file handle",
            "stat /mnt/a: transport endpoint is not connected",
            "stat /mnt/a: host is down",
            r#"error mounting "/a" to rootfs at "/b": mount src=/a, dst=/b: no space left on device: unknown"#,
            r#"a quote without an end: ": device or resource busy"#,
            "OCI runtime create failed: unable to retrieve OCI runtime error (open log.json): runc did not terminate \
             successfully: exit status 137: unknown",
            "runc did not terminate successfully: signal: killed: unknown",
        ] {
            assert!(reports_transient(text), "{text}");
        }
        for text in [
            "exec: \"no space left on device\": executable file not found in $PATH",
            r#"create failed: exec: "a: no space left on device: b": executable file not found in $PATH: unknown"#,
            r#"exec: "a\": did not terminate successfully: signal: killed: text file busy: b": permission denied"#,
            "runc did not terminate successfully: exit status 1: no such file or directory",
            "exit status 137",
            "",
        ] {
            assert!(!reports_transient(text), "{text}");
        }
    }
}
