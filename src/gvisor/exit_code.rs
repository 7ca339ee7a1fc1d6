//! The file in a bundle with the exit code of a sandbox: blank until the sandbox has ended. Both sides hold it open
//! from the sandbox's start on, so that the code is not lost if somebody removes the bundle meanwhile.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

const FILE: &str = "sandbox-exit-code";
/// Number of characters in the file, which are written before there is a code: then a full disk does not keep the code
/// from being written.
const CODE_WIDTH: usize = 4;

/// The open file with the exit code of a sandbox.
pub(super) struct ExitCodeFile(File);

impl ExitCodeFile {
    /// Makes the file, with the room that a code needs.
    ///
    /// # Errors
    /// When the file can't be made.
    pub(super) fn create(bundle: &Path) -> io::Result<Self> {
        let file = File::create_new(bundle.join(FILE))?;
        file.write_all_at(&[b' '; CODE_WIDTH], 0)?;
        Ok(Self(file))
    }

    /// Opens the file. `None` if it doesn't exist.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub(super) fn open(bundle: &Path) -> io::Result<Option<Self>> {
        match File::open(bundle.join(FILE)) {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the code.
    ///
    /// # Errors
    /// When the code can't be written.
    pub(super) fn write(&self, code: i32) -> io::Result<()> {
        self.0.write_all_at(format!("{code:>CODE_WIDTH$}").as_bytes(), 0)
    }

    /// Reads the code. `None` if the sandbox has not ended.
    ///
    /// # Errors
    /// When the file can't be read, or has no code in it.
    pub(super) fn read(&self) -> io::Result<Option<i32>> {
        let mut text = [0; CODE_WIDTH];
        self.0.read_exact_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text);
        match text.trim() {
            "" => Ok(None),
            code => code.parse().map(Some).map_err(io::Error::other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_once_the_sandbox_has_ended() {
        let bundle = tempfile::tempdir().unwrap();
        let own = ExitCodeFile::create(bundle.path()).unwrap();
        let others = ExitCodeFile::open(bundle.path()).unwrap().unwrap();
        assert_eq!(others.read().unwrap(), None);
        for code in [137, 7, 0] {
            own.write(code).unwrap();
            assert_eq!(others.read().unwrap(), Some(code));
        }
    }

    #[test]
    fn an_unreadable_file_is_no_absent_one() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(ExitCodeFile::open(bundle.path()).unwrap().is_none());
        let file = bundle.path().join(FILE);
        std::os::unix::fs::symlink(FILE, &file).unwrap();
        assert!(ExitCodeFile::open(bundle.path()).is_err(), "a loop of links");
    }
}
