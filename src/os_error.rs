//! Which errors of the operating system pass by themselves: what is asked for may work a moment later with nothing changed in
//! the job, in the plugin's configuration or in the host's. Everything that decides on whether Nomad tries a start again
//! asks here.
//!
//! Source of the facts: errno(3).

use std::io::{self, ErrorKind};

use nix::errno::Errno;

/// Want of memory, of processes, of descriptors, of room; somebody on the other side who is too busy, or just gone; and a
/// file system whose server is, such as one of a network or in user space.
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

/// [`Errno::ESTALE`] in the words of earlier versions of Go.
const STALE_IN_GO: &str = "stale nfs file handle";

/// Whether the same may work later. Of an error that a library has put something around, only its kind is left.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    let by_kind = matches!(
        error.kind(),
        ErrorKind::TimedOut | ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory
    );
    by_kind || error.raw_os_error().is_some_and(|code| TRANSIENT.contains(&Errno::from_raw(code)))
}

/// As [`is_transient`], of another program's words: a shim, a runtime and containerd have nothing else to tell an error of
/// the operating system by. Go's texts and the C library's are the same but for their first letters; each stands by itself
/// between colons and outside of quotes, so that no name in the text is taken for one: a job's command may have any.
pub(crate) fn tells_transient(text: &str) -> bool {
    let text = &without_quoted(text);
    // Rust adds the number.
    let words = |text: &str| text.split(" (os error").next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = TRANSIENT.map(|errno| words(&io::Error::from(errno).to_string()));
    let is_known = |part: String| part == STALE_IN_GO || known.contains(&part);
    text.split(": ").any(|part| is_known(words(part))) || was_killed(text)
}

/// A text without what is in quotes, as Go's `%q` sets them. What follows a quote without an end stays.
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

/// Whether a program ended by SIGKILL, in the words of Go's libraries: nobody but the kernel, which wants memory, and an
/// operator kills a runtime.
fn was_killed(text: &str) -> bool {
    const BY_SIGKILL: [&str; 2] = ["exit status 137", "signal: killed"];
    BY_SIGKILL.into_iter().any(|words| text.contains(&format!("did not terminate successfully: {words}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_for_a_moment_is_transient() {
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
    fn other_programs_words_are_told_from_names_in_them() {
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
            assert!(tells_transient(text), "{text}");
        }
        for text in [
            "exec: \"no space left on device\": executable file not found in $PATH",
            r#"create failed: exec: "a: no space left on device: b": executable file not found in $PATH: unknown"#,
            r#"exec: "a\": did not terminate successfully: signal: killed: text file busy: b": permission denied"#,
            "runc did not terminate successfully: exit status 1: no such file or directory",
            "exit status 137",
            "",
        ] {
            assert!(!tells_transient(text), "{text}");
        }
    }
}
