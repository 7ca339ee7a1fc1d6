//! Writes one stream from its pipe to its current log file. Blocking: not for an async thread.
//!
//! Bytes go from pipe to file within one system call, so that a plugin that is killed neither loses nor duplicates any:
//! they are in the pipe or in the file. The same holds for a full disk. Near the end of a file the output is first
//! examined in a copy, and then moved by such a call as well.
//!
//! Source of the facts: splice(2), tee(2), Linux `fs/splice.c`.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice, tee};

use super::directory::{Directory, Entry};
use super::rotation::{self, MAX_WHOLE_LINE_BYTES, Room, Series, Step};
use super::{LogError, Stream, Target};

/// Maximum number of bytes that are moved before other streams have their turn.
const BATCH_BYTES: u64 = 4 << 20;
/// Number of bytes after which a writer counts as busy, and is waited for during [`BUSY_PAUSE`]: then more can be moved
/// at once than the few kilobytes of each write, which would each wake a thread.
const BUSY_BYTES: u64 = 32 << 10;
/// Length of a head that holds any line which is kept whole.
const WHOLE_LINE: usize = MAX_WHOLE_LINE_BYTES as usize;
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// The reason that a move ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// The pipe is empty.
    Drained,
    /// There may be more in the pipe.
    More,
    /// Every writer is gone, and all output is in the file.
    Eof,
}

/// The result of a move of a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Bytes(u64),
    /// The source is empty or has ended, whatever was seen of it before: a task may read its own pipe.
    Nothing,
    /// The destination has no room.
    Full,
    /// The destination is a pipe that nobody reads.
    Unread,
}

/// An entry that has the name of a log file but can't be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SkippedFile {
    pub path: PathBuf,
    pub why: &'static str,
}

pub(super) struct Sink {
    target: Target,
    series: Series,
    current: Option<CurrentFile>,
    /// Set once the collector is dropped. Another one may write the files by then.
    stopped: Arc<AtomicBool>,
    /// Entries passed over since the last report.
    pub(super) skipped: Vec<SkippedFile>,
}

struct CurrentFile {
    index: u64,
    file: File,
    path: PathBuf,
}

impl Sink {
    pub(super) fn new(target: Target, stream: Stream, stopped: Arc<AtomicBool>) -> Self {
        let series = Series::of(&target.task, stream.name());
        Self { target, series, current: None, stopped, skipped: Vec::new() }
    }

    /// Moves output from the pipe to the log files, up to [`BATCH_BYTES`].
    ///
    /// # Errors
    /// When output can't be written now. It stays in the pipe.
    pub(super) fn take(&mut self, pipe: BorrowedFd<'_>) -> Result<Moved, LogError> {
        let (mut moved_bytes, mut since_pause) = (0, 0);
        while moved_bytes < BATCH_BYTES && !self.stopped.load(Ordering::Relaxed) {
            match self.step(pipe, u64::MAX)? {
                Spliced::Bytes(bytes) => {
                    moved_bytes += bytes;
                    since_pause += bytes;
                }
                Spliced::Empty if since_pause >= BUSY_BYTES => {
                    since_pause = 0;
                    std::thread::sleep(BUSY_PAUSE);
                }
                Spliced::Empty => return Ok(Moved::Drained),
                Spliced::Eof => return Ok(Moved::Eof),
            }
        }
        Ok(Moved::More)
    }

    /// Moves up to `most` bytes.
    ///
    /// # Errors
    /// As [`Self::take`], where no byte was moved before: the caller has to know of each that was.
    pub(super) fn take_up_to(&mut self, pipe: BorrowedFd<'_>, most: u64) -> Result<Taken, LogError> {
        let mut moved_bytes = 0;
        while moved_bytes < most && !self.stopped.load(Ordering::Relaxed) {
            match self.step(pipe, most - moved_bytes) {
                Ok(Spliced::Bytes(bytes)) => moved_bytes += bytes,
                Ok(Spliced::Empty | Spliced::Eof) => break,
                Err(error) if moved_bytes == 0 => return Err(error),
                // The next call has the same error.
                Err(_) => break,
            }
        }
        Ok(if moved_bytes == 0 { Taken::Nothing } else { Taken::Bytes(moved_bytes) })
    }

    fn step(&mut self, pipe: BorrowedFd<'_>, most: u64) -> Result<Spliced, LogError> {
        let limits = self.target.limits;
        let (current, size) = self.current()?;
        let bytes = match rotation::room(&limits, size) {
            Room::Plenty(bytes) => bytes,
            Room::Little(left) => {
                let head = peek(pipe, WHOLE_LINE).map_err(|error| {
                    LogError::new("examine the output for", current.path.clone(), &error.into())
                })?;
                match head {
                    Peeked::Empty => return Ok(Spliced::Empty),
                    Peeked::Eof => return Ok(Spliced::Eof),
                    Peeked::Head(head) => match rotation::step(&limits, left, &head) {
                        Step::Move(bytes) => bytes,
                        Step::Rotate => {
                            self.rotate()?;
                            return Ok(Spliced::Bytes(0));
                        }
                    },
                }
            }
        };
        current.take(pipe, size, bytes.min(most))
    }

    /// Returns the current file and its size. If it was removed, nobody can read it any more, and the newest one is
    /// opened instead.
    fn current(&mut self) -> Result<(&CurrentFile, u64), LogError> {
        let size = |current: &CurrentFile| {
            let metadata = current.file.metadata();
            let metadata =
                metadata.map_err(|error| LogError::new("look at", current.path.clone(), &error))?;
            Ok((metadata.nlink() > 0).then_some(metadata.len()))
        };
        let there = self.current.as_ref().map(size).transpose()?.flatten();
        let (current, size) = match (self.current.take(), there) {
            (Some(current), Some(size)) => (current, size),
            _ => {
                let newest = self.open_newest()?;
                let size = size(&newest)?.unwrap_or(0);
                (newest, size)
            }
        };
        Ok((self.current.insert(current), size))
    }

    /// Opens the newest file of the series, or creates the first one.
    fn open_newest(&mut self) -> Result<CurrentFile, LogError> {
        let directory = Directory::open(&self.target.alloc_dir)?;
        let mut indexes = directory.indexes(&self.series)?;
        indexes.sort_unstable();
        let mut unfit = Vec::new();
        for index in indexes.into_iter().rev() {
            let name = self.series.name(index);
            match directory.existing(&name)? {
                Some(Entry::Log(file)) => {
                    self.skipped.append(&mut unfit);
                    return Ok(CurrentFile { index, file, path: directory.path(&name) });
                }
                Some(Entry::Unfit(why)) => unfit.push(SkippedFile { path: directory.path(&name), why }),
                None => {}
            }
        }
        self.skipped.append(&mut unfit);
        self.open_from(&directory, 0)
    }

    /// Opens the first file from an index on that is new or has room.
    fn open_from(&mut self, directory: &Directory, first: u64) -> Result<CurrentFile, LogError> {
        let mut index = first;
        loop {
            let name = self.series.name(index);
            match directory.log(&name)? {
                Entry::Log(file) => {
                    let path = directory.path(&name);
                    let metadata =
                        file.metadata().map_err(|error| LogError::new("look at", path.clone(), &error))?;
                    if metadata.len() < self.target.limits.max_file_bytes {
                        return Ok(CurrentFile { index, file, path });
                    }
                }
                Entry::Unfit(why) => {
                    let path = directory.path(&name);
                    if !self.skipped.iter().any(|skipped| skipped.path == path) {
                        self.skipped.push(SkippedFile { path, why });
                    }
                }
            }
            index += 1;
        }
    }

    fn rotate(&mut self) -> Result<(), LogError> {
        let directory = Directory::open(&self.target.alloc_dir)?;
        let next = self.current.as_ref().map_or(0, |current| current.index + 1);
        self.current = Some(self.open_from(&directory, next)?);
        let indexes = directory.indexes(&self.series)?;
        for index in rotation::outdated(&self.target.limits, indexes) {
            directory.remove(&self.series.name(index))?;
        }
        Ok(())
    }
}

enum Spliced {
    Bytes(u64),
    Empty,
    Eof,
}

impl CurrentFile {
    fn take(&self, pipe: BorrowedFd<'_>, size: u64, bytes: u64) -> Result<Spliced, LogError> {
        let mut at = size;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        match splice(pipe, None, self.file.as_fd(), Some(&mut at), length, SpliceFlags::NONBLOCK) {
            Ok(0) => Ok(Spliced::Eof),
            Ok(moved) => Ok(Spliced::Bytes(moved as u64)),
            Err(Errno::AGAIN) => Ok(Spliced::Empty),
            Err(Errno::INTR) => Ok(Spliced::Bytes(0)),
            // The file system doesn't support splice(2).
            Err(Errno::INVAL) => self.copy(pipe, size, bytes),
            Err(error) => Err(LogError::new("write", self.path.clone(), &error.into())),
        }
    }

    /// Writes a copy of the output, and reads the bytes out of the pipe once they are in the file.
    fn copy(&self, pipe: BorrowedFd<'_>, size: u64, bytes: u64) -> Result<Spliced, LogError> {
        let failed = |error: std::io::Error| LogError::new("write", self.path.clone(), &error);
        let head = match peek(pipe, WHOLE_LINE).map_err(|error| failed(error.into()))? {
            Peeked::Empty => return Ok(Spliced::Empty),
            Peeked::Eof => return Ok(Spliced::Eof),
            Peeked::Head(head) => head,
        };
        let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(head.len());
        let written = self.file.write_at(&head[..length], size).map_err(failed)?;
        let mut taken = vec![0; written];
        let mut so_far = 0;
        while so_far < written {
            match rustix::io::read(pipe, &mut taken[so_far..]) {
                // The task itself has read the rest meanwhile.
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(length) => so_far += length,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(Spliced::Bytes(written as u64))
    }
}

/// The beginning of a pipe's content.
pub(super) enum Peeked {
    Empty,
    Eof,
    Head(Vec<u8>),
}

/// Returns the first bytes in a pipe, up to `most` and no more than 64 KiB, and leaves them there.
pub(super) fn peek(pipe: BorrowedFd<'_>, most: usize) -> Result<Peeked, Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    match tee(pipe, &writer, most, SpliceFlags::NONBLOCK) {
        Ok(0) => Ok(Peeked::Eof),
        Ok(length) => {
            drop(writer);
            let mut head = Vec::with_capacity(length);
            match File::from(reader).read_to_end(&mut head) {
                Ok(_) => Ok(Peeked::Head(head)),
                Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        Err(Errno::AGAIN) => Ok(Peeked::Empty),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::logs::Limits;

    fn sink(max_file_bytes: u64) -> (tempfile::TempDir, PathBuf, Sink) {
        let alloc = tempfile::tempdir().unwrap();
        let logs = alloc.path().join("alloc/logs");
        fs::create_dir_all(&logs).unwrap();
        let limits = Limits { max_files: 10, max_file_bytes };
        let target = Target { alloc_dir: alloc.path().to_owned(), task: "web".to_owned(), limits };
        (alloc, logs, Sink::new(target, Stream::Stdout, Arc::default()))
    }

    fn pipe_of(bytes: &[u8]) -> (OwnedFd, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        assert_eq!(rustix::io::write(&writer, bytes).unwrap(), bytes.len());
        (reader, writer)
    }

    #[test]
    fn output_is_moved_until_eof() {
        let (_alloc, logs, mut sink) = sink(64 << 10);
        let (reader, writer) = pipe_of(b"one\n");
        assert_eq!(sink.take(reader.as_fd()).unwrap(), Moved::Drained);
        rustix::io::write(&writer, b"two\n").unwrap();
        drop(writer);
        assert_eq!(sink.take(reader.as_fd()).unwrap(), Moved::Eof);
        assert_eq!(fs::read_to_string(logs.join("web.stdout.0")).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_removed_file_is_created_again() {
        let (_alloc, logs, mut sink) = sink(64 << 10);
        let (reader, writer) = pipe_of(b"one\n");
        sink.take(reader.as_fd()).unwrap();
        fs::remove_file(logs.join("web.stdout.0")).unwrap();
        rustix::io::write(&writer, b"two\n").unwrap();
        sink.take(reader.as_fd()).unwrap();
        assert_eq!(fs::read_to_string(logs.join("web.stdout.0")).unwrap(), "two\n");
    }

    #[test]
    fn unwritable_output_stays_in_the_pipe() {
        let (_alloc, logs, mut sink) = sink(4);
        let (reader, _writer) = pipe_of(b"one\ntwo\n");
        fs::write(logs.join("web.stdout.0"), "full").unwrap();
        let aside = logs.with_file_name("aside");
        let (file, path) =
            (File::options().write(true).open(logs.join("web.stdout.0")).unwrap(), logs.clone());
        sink.current = Some(CurrentFile { index: 0, file, path });
        fs::rename(&logs, &aside).unwrap();
        let error = sink.take(reader.as_fd()).unwrap_err().to_string();
        assert!(error.contains("alloc/logs"), "{error}");
        fs::rename(&aside, &logs).unwrap();
        assert_eq!(sink.take(reader.as_fd()).unwrap(), Moved::Drained);
        let text = |number: u64| fs::read_to_string(logs.join(format!("web.stdout.{number}"))).unwrap();
        assert_eq!((text(0), text(1), text(2)), ("full".to_owned(), "one\n".to_owned(), "two\n".to_owned()));
    }

    #[test]
    fn bytes_that_were_moved_before_an_error_are_counted() {
        let (_alloc, logs, mut sink) = sink(4);
        let (reader, _writer) = pipe_of(b"one\ntwo\n");
        let path = logs.join("web.stdout.0");
        let file = File::options().write(true).create_new(true).open(&path).unwrap();
        sink.current = Some(CurrentFile { index: 0, file, path });
        fs::rename(&logs, logs.with_file_name("aside")).unwrap();
        assert_eq!(sink.take_up_to(reader.as_fd(), 8).unwrap(), Taken::Bytes(4));
        let error = sink.take_up_to(reader.as_fd(), 4).unwrap_err().to_string();
        assert!(error.contains("alloc/logs"), "{error}");
    }

    #[test]
    fn bytes_are_copied_where_splice_is_not_supported() {
        let (_alloc, logs, _) = sink(64 << 10);
        let path = logs.join("web.stdout.0");
        // Linux doesn't splice into a file that is open for appending.
        let file = File::options().append(true).create(true).open(&path).unwrap();
        let current = CurrentFile { index: 0, file, path: path.clone() };
        let (reader, writer) = pipe_of(b"one\ntwo\n");
        assert!(matches!(current.take(reader.as_fd(), 0, 4).unwrap(), Spliced::Bytes(4)));
        assert!(matches!(current.take(reader.as_fd(), 4, 100).unwrap(), Spliced::Bytes(4)));
        assert!(matches!(current.take(reader.as_fd(), 8, 100).unwrap(), Spliced::Empty));
        drop(writer);
        assert!(matches!(current.take(reader.as_fd(), 8, 100).unwrap(), Spliced::Eof));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
