//! Reads parts of files in the state directory that other programs write, and may have made as long as they like. No link is
//! followed, and nothing but a regular file is read.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what lies in the state directory, which only root can reach"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The end of a file, as text.
pub(super) struct Tail {
    pub(super) text: String,
    /// Whether the file has more before this text.
    pub(super) is_cut: bool,
}

/// Reads the first bytes of a file.
///
/// # Errors
/// When the file can't be read, or is no regular file.
pub(crate) fn head(file: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let (file, _) = open(file)?;
    let mut start = Vec::new();
    file.take(limit_bytes).read_to_end(&mut start)?;
    Ok(start)
}

/// Reads the last bytes of a file.
///
/// # Errors
/// When the file can't be read, or is no regular file.
pub(super) fn tail(file: &Path, limit_bytes: u64) -> io::Result<Tail> {
    let (mut file, length) = open(file)?;
    file.seek(SeekFrom::Start(length.saturating_sub(limit_bytes)))?;
    let mut end = Vec::new();
    file.take(limit_bytes).read_to_end(&mut end)?;
    Ok(Tail { text: String::from_utf8_lossy(&end).into_owned(), is_cut: length > limit_bytes })
}

fn open(file: &Path) -> io::Result<(File, u64)> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(file)?;
    let facts = file.metadata()?;
    if facts.is_file() { Ok((file, facts.len())) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_are_bounded_and_need_a_regular_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), b"caf\xc3 closed").unwrap();
        assert_eq!(head(&at("file"), 3).unwrap(), b"caf");
        assert_eq!(head(&at("file"), 100).unwrap().len(), 11);
        let whole = tail(&at("file"), 11).unwrap();
        assert_eq!((whole.text.as_str(), whole.is_cut), ("caf\u{fffd} closed", false));
        let end = tail(&at("file"), 6).unwrap();
        assert_eq!((end.text.as_str(), end.is_cut), ("closed", true));
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["link", "pipe", ".", "missing"] {
            assert!(head(&at(name), 9).is_err() && tail(&at(name), 9).is_err(), "{name}");
        }
    }
}
