//! Entries for systemd's journal, by its native protocol.
//!
//! Source of the facts: systemd's "Native Journal Protocol", systemd.journal-fields(7); moby `daemon/logger/journald`
//! (28.5).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::ContainerFields;
use super::lines::{Line, Part};
use crate::logs::Stream;

/// Path of the journal's socket.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
const ERR: &str = "3";
const INFO: &str = "6";
/// The journal's maximum length of a field's name.
const MAX_NAME_BYTES: usize = 64;
/// Fields that systemd's own tools trust, and what their names begin with; the journal ignores those with an underscore
/// first. By syslog's fields an entry gets into other logs of the host's, such as that of its logins. The last prefix is
/// of lines in parts.
const OTHERS: [&str; 8] = [
    "UNIT",
    "USER_UNIT",
    "MESSAGE_ID",
    "INVOCATION_ID",
    "USER_INVOCATION_ID",
    "SYSLOG_FACILITY",
    "SYSLOG_PID",
    "SYSLOG_RAW",
];
const OTHERS_PREFIXES: [&str; 4] = ["_", "OBJECT_", "COREDUMP_", "CONTAINER_PARTIAL_"];

/// The fields that are each line's own.
const OF_LINES: [&str; 4] = ["SYSLOG_TIMESTAMP", "CONTAINER_LOG_ORDINAL", "PRIORITY", "MESSAGE"];

/// Returns the fields that are the same in each line's entry. `epoch` is the sender's id.
pub(super) fn constant(container: &ContainerFields, epoch: &str) -> Vec<u8> {
    let ContainerFields { id, short_id, name, image_name, tag, attributes, .. } = container;
    let mut fields = BTreeMap::from([
        ("CONTAINER_ID", short_id.as_str()),
        ("CONTAINER_ID_FULL", id.as_str()),
        ("CONTAINER_NAME", name.as_str()),
        ("CONTAINER_TAG", tag.as_str()),
        ("IMAGE_NAME", image_name.as_str()),
        ("SYSLOG_IDENTIFIER", tag.as_str()),
        ("CONTAINER_LOG_EPOCH", epoch),
    ]);
    let attributes: Vec<_> =
        attributes.iter().filter_map(|(key, value)| Some((field_name(key)?, value))).collect();
    for (key, value) in &attributes {
        // What the driver says of the container is no job's to change.
        fields.entry(key.as_str()).or_insert(value.as_str());
    }
    let mut constant = Vec::new();
    for (key, value) in fields.into_iter().filter(|(key, _)| !OF_LINES.contains(key)) {
        write_field(&mut constant, key, value.as_bytes());
    }
    constant
}

/// Returns the entry of a line. `constant` is what [`constant`] returned, `ordinal` the line's number by its sender.
pub(super) fn entry(line: &Line, constant: &[u8], ordinal: u64) -> Vec<u8> {
    let mut entry = Vec::with_capacity(constant.len() + line.text.len() + 512);
    entry.extend_from_slice(constant);
    let mut write = |key: &str, value: &[u8]| write_field(&mut entry, key, value);
    write("SYSLOG_TIMESTAMP", humantime::format_rfc3339_nanos(line.at).to_string().as_bytes());
    write("CONTAINER_LOG_ORDINAL", ordinal.to_string().as_bytes());
    if let Some(Part { line_id, ordinal, is_last }) = &line.part {
        write("CONTAINER_PARTIAL_ID", line_id.as_bytes());
        write("CONTAINER_PARTIAL_ORDINAL", ordinal.to_string().as_bytes());
        write("CONTAINER_PARTIAL_LAST", if *is_last { b"true" } else { b"false" });
        if !is_last {
            write("CONTAINER_PARTIAL_MESSAGE", b"true");
        }
    }
    write("PRIORITY", if line.stream == Stream::Stderr { ERR } else { INFO }.as_bytes());
    write("MESSAGE", &line.text);
    entry
}

/// Returns an attribute's name in the letters of a field's: capitals, digits and underscores, with a letter first.
/// `None` if it has none, or is a field by which tools find the entries of a unit or of a kind.
fn field_name(key: &str) -> Option<String> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String =
        key.chars().map(letter).skip_while(char::is_ascii_digit).take(MAX_NAME_BYTES).collect();
    let is_others = name.is_empty()
        || OTHERS.contains(&name.as_str())
        || OTHERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    (!is_others).then_some(name)
}

fn write_field(entry: &mut Vec<u8>, key: &str, value: &[u8]) {
    entry.extend_from_slice(key.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// Sends an entry that is too large for a datagram: in a sealed file in memory.
///
/// # Errors
/// When the kernel refuses, or the journal's queue is full ([`io::ErrorKind::WouldBlock`]).
pub(super) fn send_by_file(socket: &impl AsRawFd, entry: &OwnedFd) -> io::Result<()> {
    let files = [entry.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&files)];
    sendmsg::<()>(socket.as_raw_fd(), &[], &rights, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Returns an entry's file in memory, sealed as the journal wants it.
///
/// # Errors
/// When the kernel has no memory or descriptor for it.
pub(super) fn sealed(entry: &[u8]) -> io::Result<OwnedFd> {
    let mut file =
        File::from(memfd_create("journal-entry", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(entry)?;
    let seals =
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::tests::container;
    use super::*;

    fn line(text: &str, part: Option<Part>) -> Line {
        Line { stream: Stream::Stderr, text: text.into(), at: SystemTime::UNIX_EPOCH, part }
    }

    #[test]
    fn an_entry_has_docker_s_fields() {
        let text = String::from_utf8(entry(&line("hi", None), &constant(&container(), "e"), 4)).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "CONTAINER_ID=0123456789ab",
                "CONTAINER_ID_FULL=web-0123456789abcdef",
                "CONTAINER_LOG_EPOCH=e",
                "CONTAINER_LOG_ORDINAL=4",
                "CONTAINER_NAME=web-5f1b",
                "CONTAINER_TAG=web",
                "IMAGE_NAME=docker.io/library/web:1",
                "MESSAGE=hi",
                "PRIORITY=3",
                "SYSLOG_IDENTIFIER=web",
                "SYSLOG_TIMESTAMP=1970-01-01T00:00:00.000000000Z",
                "TEAM=a",
            ]
        );
        let part = Part { line_id: "x".to_owned(), ordinal: 1, is_last: false };
        let text =
            String::from_utf8(entry(&line("hi", Some(part)), &constant(&container(), "e"), 4)).unwrap();
        assert!(
            text.contains("CONTAINER_PARTIAL_ID=x\n") && text.contains("CONTAINER_PARTIAL_MESSAGE=true\n")
        );
    }

    #[test]
    fn a_value_of_several_lines_has_its_length_before_it() {
        let mut written = Vec::new();
        write_field(&mut written, "A", b"one\ntwo");
        assert_eq!(written, [&b"A\n"[..], &7_u64.to_le_bytes(), b"one\ntwo\n"].concat());
    }

    #[test]
    fn a_field_s_name_can_t_be_the_journal_s_own() {
        assert_eq!(field_name("com.example/app").unwrap(), "COM_EXAMPLE_APP");
        assert_eq!(field_name("1st").unwrap(), "ST");
        assert_eq!(field_name(&"x".repeat(100)).unwrap().len(), 64);
        for others in [
            "_PID",
            "-PID",
            "__",
            "",
            "7",
            "unit",
            "1UNIT",
            "user-unit",
            "object_pid",
            "Coredump.Unit",
            "message-id",
            "container_partial_last",
            "syslog_facility",
            "Syslog-PID",
            "syslog.raw",
        ] {
            assert_eq!(field_name(others), None, "{others}");
        }
        let mut container = container();
        container.attributes =
            [("message", "forged"), ("Priority", "0"), ("container-name", "forged"), ("--", "x")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        let text = String::from_utf8(entry(&line("hi", None), &constant(&container, "e"), 1)).unwrap();
        assert!(
            !text.contains("forged") && text.contains("PRIORITY=3\n") && !text.contains("PRIORITY=0"),
            "{text}"
        );
    }

    #[test]
    fn a_sealed_file_can_t_be_changed() {
        let mut file = File::from(sealed(b"MESSAGE=x\n").unwrap());
        assert!(file.write_all(b"more").is_err());
    }
}
