//! Reads the table of contents of an archive written by `docker save` and the like: the files, and their positions. A
//! compressed archive is decompressed once, into an unnamed file in the scratch directory; nothing is unpacked. Knows
//! nothing of images.
//!
//! Nothing in an archive is trusted: extension headers are read up to a limit, and links lead to its own entries only.
//! Functions here block.
//! Source of the facts: pax(1), GNU tar's manual "Basic Tar Format"; docker `image/tarexport` (links between layers).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use tar::EntryType;
use tokio_util::sync::CancellationToken;

use super::error::ImageError;
use super::error::too_large;

/// Maximum size of an archive after decompression.
const DECOMPRESSED_LIMIT_BYTES: u64 = 64 << 30;
/// Maximum number of entries.
const ENTRIES_LIMIT: usize = 50_000;
/// Maximum size of an extension header: a long name, or the attributes of an entry.
const EXTENSION_LIMIT_BYTES: u64 = 64 * 1024;
/// Maximum number of links followed to find a file.
const LINKS_LIMIT: usize = 8;

/// First bytes of the compressed formats, with their names.
const MAGICS: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];

/// Allowance in a decompressed archive for everything besides layers.
const BESIDE_LAYERS_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes decompressed between two checks for cancellation.
const CHUNK_BYTES: usize = 256 * 1024;

/// A directory for unnamed files. It is held open, so that nothing takes its place.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    pub directory: Arc<OwnedFd>,
    /// The directory's name in error messages.
    pub shown: PathBuf,
}

impl Scratch {
    pub(crate) fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }
}

/// Limits on reading an archive: its size, and cancellation.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadTerms {
    /// The operator's limit, in bytes, for the layers of an image, and the plugin option that sets it.
    pub image_limit: Option<(u64, &'static str)>,
    /// Cancelled once nobody waits for the image any more.
    pub stop: CancellationToken,
}

impl ReadTerms {
    /// Checks for cancellation.
    ///
    /// # Errors
    /// Reading was cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<(), ImageError> {
        if self.stop.is_cancelled() {
            return Err(ImageError::Archive { reason: "reading it was cancelled".to_owned() });
        }
        Ok(())
    }

    /// Checks the size of an image's layers.
    ///
    /// # Errors
    /// Unsupported if layers of that size are over the operator's limit.
    pub(crate) fn check_image_size(&self, size_bytes: u64) -> Result<(), ImageError> {
        self.check(size_bytes, 0, "its layers have")
    }

    fn check(&self, size_bytes: u64, beside_bytes: u64, what: &str) -> Result<(), ImageError> {
        match self.image_limit {
            Some((limit_bytes, option)) if size_bytes > limit_bytes.saturating_add(beside_bytes) => {
                Err(too_large(what, size_bytes, limit_bytes, option))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<File>,
    terms: ReadTerms,
    entries: HashMap<String, Entry>,
}

/// Position and size of a file's bytes in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Extent {
    pub at: u64,
    pub size_bytes: u64,
}

#[derive(Debug)]
enum Entry {
    File(Extent),
    /// A link to another entry, by its path from the archive's root.
    Link(String),
}

impl Archive {
    /// Reads the table of contents. A compressed archive takes its decompressed size in `scratch`, until it is dropped.
    ///
    /// # Errors
    /// Corrupt if the file is no such archive, unsupported if it is compressed in another way or larger than it may be.
    pub(crate) fn open(file: &Arc<File>, scratch: &Scratch, terms: ReadTerms) -> Result<Self, ImageError> {
        let file = match compression(file).map_err(unreadable)? {
            None => Arc::clone(file),
            Some("gzip") => Arc::new(decompressed(file, scratch, &terms)?),
            Some(other) => {
                let reason =
                    format!("an archive compressed by {other}; decompress it, or compress it by gzip");
                return Err(ImageError::unsupported(reason));
            }
        };
        let entries = entries(&file, &terms)?;
        Ok(Self { file, terms, entries })
    }

    pub(crate) fn terms(&self) -> &ReadTerms {
        &self.terms
    }

    /// Finds the file of a path, through links.
    pub(crate) fn find(&self, path: &str) -> Option<Extent> {
        let mut path = normal("", path)?;
        for _ in 0..LINKS_LIMIT {
            match self.entries.get(&path)? {
                Entry::File(extent) => return Some(*extent),
                Entry::Link(to) => path.clone_from(to),
            }
        }
        None
    }

    /// Reads a small file whole.
    ///
    /// # Errors
    /// Corrupt if the file is missing, unsupported if it is larger than the limit.
    pub(crate) fn read(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, ImageError> {
        let extent = self.find(path).ok_or_else(|| missing(path))?;
        super::manifest::check_size(path, extent.size_bytes, limit_bytes)?;
        self.part(extent)
    }

    /// Reads the bytes of an extent.
    ///
    /// # Errors
    /// The archive can't be read or has become shorter, or nobody waits for the image any more.
    pub(crate) fn part(&self, extent: Extent) -> Result<Vec<u8>, ImageError> {
        self.terms.check_cancelled()?;
        let length = usize::try_from(extent.size_bytes).map_err(|_| missing("a part of it"))?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, extent.at).map_err(unreadable)?;
        Ok(bytes)
    }

    /// Detects how a file in the archive is compressed.
    pub(crate) fn compression(&self, extent: Extent) -> Result<Option<&'static str>, ImageError> {
        let beginning = Extent { size_bytes: extent.size_bytes.min(6), ..extent };
        Ok(magic(&self.part(beginning)?))
    }
}

pub(crate) fn missing(path: &str) -> ImageError {
    ImageError::corrupt(format!("the archive refers to {path:?}, which is not in it"))
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err, which passes by value")]
pub(crate) fn unreadable(error: io::Error) -> ImageError {
    map_io_error(&error, "the archive can't be read", || "it can't be read".to_owned())
}

/// Maps an I/O error: one from the operating system is not the archive's fault; any other means that it is corrupt.
fn map_io_error(error: &io::Error, corrupt: &str, failed: impl FnOnce() -> String) -> ImageError {
    match error.raw_os_error() {
        None => ImageError::corrupt(format!("{corrupt}: {error}")),
        Some(_) => ImageError::Archive { reason: format!("{}: {error}", failed()) },
    }
}

fn compression(file: &File) -> io::Result<Option<&'static str>> {
    let mut beginning = [0; 6];
    let read = file.read_at(&mut beginning, 0)?;
    Ok(magic(&beginning[..read]))
}

fn magic(beginning: &[u8]) -> Option<&'static str> {
    MAGICS.into_iter().find(|(magic, _)| beginning.starts_with(magic)).map(|(_, name)| name)
}

/// Decompresses the whole archive into an unnamed file.
fn decompressed(mut file: &File, scratch: &Scratch, terms: &ReadTerms) -> Result<File, ImageError> {
    let failed = |error: io::Error| {
        let doing = || format!("it can't be decompressed in {}", scratch.shown.display());
        map_io_error(&error, "the archive can't be decompressed", doing)
    };
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut whole = scratch.file().map_err(failed)?;
    let mut decoder = MultiGzDecoder::new(BufReader::new(file));
    let (mut chunk, mut size_bytes) = (vec![0; CHUNK_BYTES], 0);
    loop {
        terms.check_cancelled()?;
        let read = match decoder.read(&mut chunk) {
            Ok(0) => return Ok(whole),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(failed)?,
        };
        size_bytes += read as u64;
        super::manifest::check_size("the decompressed archive", size_bytes, DECOMPRESSED_LIMIT_BYTES)?;
        terms.check(size_bytes, BESIDE_LAYERS_BYTES, "the decompressed archive has")?;
        whole.write_all(&chunk[..read]).map_err(failed)?;
    }
}

/// Path and link target that extension headers give for the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
}

/// Reads the entries by path. Of two entries with one path the later counts, as in unpacking.
fn entries(mut file: &File, terms: &ReadTerms) -> Result<HashMap<String, Entry>, ImageError> {
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let mut archive = tar::Archive::new(file);
    let mut found = HashMap::new();
    let mut extension = Extension::default();
    // Raw, since otherwise extension headers of any size are read into memory.
    for (number, entry) in archive.entries_with_seek().map_err(unreadable)?.raw(true).enumerate() {
        let mut entry = entry.map_err(unreadable)?;
        terms.check_cancelled()?;
        if number >= ENTRIES_LIMIT {
            return Err(ImageError::unsupported(format!("an archive of more than {ENTRIES_LIMIT} entries")));
        }
        let header = entry.header().clone();
        let kind = header.entry_type();
        if matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader) {
            read_extension(kind, &mut entry, &mut extension)?;
            continue;
        }
        let Extension { path, link } = std::mem::take(&mut extension);
        let path = path.unwrap_or_else(|| lossy(&header.path_bytes()));
        let linked = link.or_else(|| header.link_name_bytes().map(|name| lossy(&name))).unwrap_or_default();
        let Some(path) = normal("", &path) else { continue };
        let made = match kind {
            EntryType::Regular | EntryType::Continuous => {
                let extent = Extent { at: entry.raw_file_position(), size_bytes: entry.size() };
                Entry::File(extent)
            }
            EntryType::Symlink => {
                let from = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                match normal(from, &linked) {
                    Some(to) => Entry::Link(to),
                    None => continue,
                }
            }
            EntryType::Link => match normal("", &linked) {
                Some(to) => Entry::Link(to),
                None => continue,
            },
            _ => continue,
        };
        found.insert(path, made);
    }
    if found.is_empty() {
        return Err(ImageError::corrupt("the archive has no files in it"));
    }
    Ok(found)
}

fn read_extension(
    kind: EntryType,
    entry: &mut impl Read,
    extension: &mut Extension,
) -> Result<(), ImageError> {
    let mut bytes = Vec::new();
    entry.take(EXTENSION_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    super::manifest::check_size("an extension header", bytes.len() as u64, EXTENSION_LIMIT_BYTES)?;
    let name = || lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default());
    match kind {
        EntryType::GNULongName => extension.path = Some(name()),
        EntryType::GNULongLink => extension.link = Some(name()),
        _ => {
            for attribute in tar::PaxExtensions::new(&bytes) {
                let attribute = attribute.map_err(unreadable)?;
                match attribute.key_bytes() {
                    b"path" => extension.path = Some(lossy(attribute.value_bytes())),
                    b"linkpath" => extension.link = Some(lossy(attribute.value_bytes())),
                    b"size" => {
                        let reason = "an archive with an entry of more than 8 GiB in pax form; write it in GNU's form \
                                      (tar --format=gnu)";
                        return Err(ImageError::unsupported(reason));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Resolves a path from the archive's root; `None` where it leads out of the archive.
fn normal(from: &str, path: &str) -> Option<String> {
    let from = if path.starts_with('/') { "" } else { from };
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    fn scratch() -> Scratch {
        let shown = std::env::temp_dir();
        Scratch { directory: Arc::new(File::open(&shown).unwrap().into()), shown }
    }

    /// Builds an archive of these files and links.
    pub(crate) fn archive(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *bytes).unwrap();
        }
        for (path, to) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, path, to).unwrap();
        }
        tar.into_inner().unwrap()
    }

    impl Archive {
        /// Asserts that no path and no link leads out of the archive, and that no position is beyond all numbers.
        pub(crate) fn check_paths(&self) {
            assert!(self.entries.len() <= ENTRIES_LIMIT);
            let is_within = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            for (path, entry) in &self.entries {
                assert!(is_within(path), "{path:?}");
                match entry {
                    Entry::Link(to) => assert!(is_within(to), "{to:?}"),
                    Entry::File(extent) => {
                        assert!(extent.at.checked_add(extent.size_bytes).is_some(), "{extent:?}");
                    }
                }
                assert!(matches!(entry, Entry::Link(_)) || self.find(path).is_some());
                assert!(self.read(path, 1024).map_or(0, |bytes| bytes.len()) <= 1024);
            }
        }
    }

    pub(crate) fn opened(bytes: &[u8]) -> Result<Archive, ImageError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Archive::open(&Arc::new(file), &scratch(), ReadTerms::default())
    }

    /// Returns a gzip file of so many MiB of zeros, which is itself tiny.
    fn zeros(mib: usize) -> Arc<File> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&vec![0; mib << 20]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&gzip.finish().unwrap()).unwrap();
        Arc::new(file)
    }

    #[test]
    fn decompression_ends_at_the_limit_and_on_cancellation() {
        let scratch = scratch();
        let terms = ReadTerms { image_limit: Some((1 << 20, "max_image_size")), ..ReadTerms::default() };
        let error = Archive::open(&zeros(66), &scratch, terms.clone()).unwrap_err().to_string();
        assert!(error.contains("max_image_size") && error.contains("1048576"), "{error}");
        assert!(terms.check_image_size(1 << 20).is_ok() && terms.check_image_size((1 << 20) + 1).is_err());
        terms.stop.cancel();
        let error = Archive::open(&zeros(1), &scratch, terms).unwrap_err().to_string();
        assert!(error.contains("cancelled"), "{error}");
    }

    #[test]
    fn archive_files_are_found_by_path_and_by_link() {
        let long = "x/".repeat(120) + "layer.tar";
        let archive = archive(
            &[("./a/layer.tar", b"layer"), (&long, b"deep"), ("b", b"old"), ("b", b"new")],
            &[("c/layer.tar", "../a/layer.tar"), ("out", "../../etc/passwd"), ("loop", "loop")],
        );
        let found = opened(&archive).unwrap();
        let read = |path: &str| found.read(path, 100).map(|bytes| lossy(&bytes));
        assert_eq!(read("a/layer.tar").unwrap(), "layer");
        assert_eq!(read("c/layer.tar").unwrap(), "layer");
        assert_eq!(read(&long).unwrap(), "deep");
        assert_eq!(read("b").unwrap(), "new");
        for path in ["out", "loop", "none", "../a/layer.tar"] {
            assert!(read(path).unwrap_err().to_string().contains(path), "{path}");
        }
        assert!(found.read("b", 2).unwrap_err().to_string().contains("more than 2"));
    }

    #[test]
    fn a_compressed_archive_is_decompressed_or_refused_by_name() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&archive(&[("a", b"b")], &[])).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(opened(&gzip).unwrap().read("a", 1).unwrap(), b"b");
        let cut = opened(&gzip[..gzip.len() / 2]).unwrap_err();
        assert!(matches!(cut, ImageError::Corrupt { .. }), "{cut}");
        for (magic, name) in &MAGICS[1..] {
            let error = opened(&[magic, &[0; 600][..]].concat()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("gzip"), "{error}");
        }
    }

    #[test]
    fn garbage_is_a_corrupt_archive_and_costs_no_memory() {
        for bytes in [&b""[..], b"hello", &[b'x'; 2000], &[0; 2048]] {
            let error = opened(bytes).unwrap_err();
            assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
        }
        // A name of a gigabyte, in a sparse file that takes no room on the disk.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 30);
        header.set_cksum();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(2 << 30).unwrap();
        let error = Archive::open(&Arc::new(file), &scratch(), ReadTerms::default()).unwrap_err().to_string();
        assert!(error.contains("extension header"), "{error}");
    }
}
