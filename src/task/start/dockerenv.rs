//! Makes `/.dockerenv`, by which programs tell that they run in a container of docker's. It is made where a snapshot has
//! the container's own changes, before that is mounted: no part of the path is the image's or the job's. The task may
//! remove it, as under docker.
//!
//! Source of the facts: moby v28 `daemon/initlayer/setup_unix.go`; containerd v2.0 `plugins/snapshots/{overlay,native}`.

use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::task::error::{Error, Result};
use crate::task::mounts::off_thread;

const NAME: &str = ".dockerenv";
/// The file's mode under docker.
const MODE: u32 = 0o755;

/// Makes the file in the root that these mounts are of. A root in another form than a directory or an overlay, such as a
/// block device, is left without it.
///
/// # Errors
/// Names the file.
pub(super) async fn make(root: &[Mount]) -> Result<()> {
    let Some(directory) = own_files(root) else { return Ok(()) };
    let place = PathBuf::from(directory);
    let directory = place.clone();
    let make = move || {
        let failed = |error: Errno| {
            let file = directory.join(NAME);
            Error::system(format_args!("make {}", file.display()), error.into())
        };
        make_in(&directory).map_err(failed)
    };
    off_thread(&place, "the container's own files", make).await
}

/// Returns the directory of a container's own files: that of the overlay's changes, or that of a copy of the image.
fn own_files(root: &[Mount]) -> Option<&str> {
    let [Mount { r#type, source, options, .. }] = root else { return None };
    let is_read_only = options.iter().any(|option| option == "ro");
    match r#type.as_str() {
        "bind" if !is_read_only => Some(source.as_str()),
        kind if kind.contains("overlay") => {
            options.iter().find_map(|option| option.strip_prefix("upperdir="))
        }
        _ => None,
    }
}

fn make_in(directory: &Path) -> std::result::Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&directory, NAME, flags, Mode::from_raw_mode(MODE)) {
        // openat(2) applies the process's umask; this does not.
        Ok(file) => rustix::fs::fchmod(&file, Mode::from_raw_mode(MODE)),
        // A copy of the image has what the image has there.
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::sys::error_chain::Chained;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { r#type: kind.to_owned(), source: source.to_owned(), target: String::new(), options }
    }

    #[test]
    fn a_containers_own_files_are_those_of_its_snapshot() {
        let overlay = ["index=off", "workdir=/s/7/work", "upperdir=/s/7/fs", "lowerdir=/s/6/fs"];
        for (root, wanted) in [
            (vec![mount("overlay", "overlay", &overlay)], Some("/s/7/fs")),
            (vec![mount("fuse3.fuse-overlayfs", "overlay", &overlay)], Some("/s/7/fs")),
            (vec![mount("overlay", "overlay", &["lowerdir=/s/6/fs:/s/5/fs"])], None),
            (vec![mount("bind", "/s/7", &["rbind", "rw"])], Some("/s/7")),
            (vec![mount("bind", "/s/7", &["rbind", "ro"])], None),
            (vec![mount("ext4", "/dev/mapper/7", &[])], None),
            (vec![mount("erofs", "/s/6", &["ro"]), mount("overlay", "overlay", &overlay)], None),
            (Vec::new(), None),
        ] {
            assert_eq!(own_files(&root), wanted, "{root:?}");
        }
    }

    #[test]
    fn the_file_is_made_once_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(NAME);
        for _ in 0..2 {
            make_in(directory.path()).unwrap();
            let made = fs::symlink_metadata(&file).unwrap();
            assert!(made.is_file() && made.len() == 0, "{made:?}");
            assert_eq!(made.permissions().mode() & 0o7777, MODE);
        }
        fs::remove_file(&file).unwrap();
        symlink("/no/such/file", &file).unwrap();
        make_in(directory.path()).unwrap();
        assert_eq!(fs::read_link(&file).unwrap(), Path::new("/no/such/file"));
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_made_is_named() {
        let root = [mount("bind", "/no/such/directory", &["rbind", "rw"])];
        let error = make(&root).await.unwrap_err().chain().to_string();
        assert!(error.contains("/no/such/directory/.dockerenv"), "{error}");
        make(&[]).await.unwrap();
    }
}
