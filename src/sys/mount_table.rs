//! The mounts of the plugin's own mount namespace, from the kernel's list: their flags, their propagation, and those
//! below a path; and unmounting. Knows nothing of what is mounted where.
//!
//! Source of the facts: proc_pid_mountinfo(5), proc_pid_fdinfo(5).

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

const TABLE: &str = "/proc/self/mountinfo";
/// Restrictions of a mount, with their names in the mount table. A remount lifts those that are not named again.
const FLAGS: [(&str, MsFlags); 5] = [
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    // MS_NOSYMFOLLOW of linux/mount.h.
    ("nosymfollow", MsFlags::from_bits_retain(256)),
];

/// Propagation of mounts to and from a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Propagation {
    /// The mount is in a peer group, which shares mounts below any of its members.
    pub shared: bool,
    /// The mount receives mounts below another one.
    pub slave: bool,
}

/// An entry of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub point: PathBuf,
    /// Restrictions as flags of mount(2): read-only, no devices and the like.
    pub flags: MsFlags,
    pub propagation: Propagation,
}

/// Unmounts everything that is mounted at `place`, also if it is in use. Nothing mounted is success. No symbolic link
/// is followed.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn unmount(place: &Path) -> Result<(), Errno> {
    loop {
        match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Returns the mount that `place` is in.
///
/// # Errors
/// If the mount table can't be read.
pub(crate) fn of(place: &OwnedFd) -> io::Result<Mount> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim().to_owned();
    let table = fs::read(TABLE)?;
    let mount = with_id(&id, &table);
    mount.ok_or_else(|| io::Error::other(format!("there is no mount {id} in {TABLE}")))
}

/// Returns all mounts at or below `path`, outer ones first.
///
/// # Errors
/// If the mount table can't be read.
pub(crate) fn below(path: &Path) -> io::Result<Vec<Mount>> {
    let table = fs::read(TABLE)?;
    Ok(lines(&table).filter_map(parsed).filter(|mount| mount.point.starts_with(path)).collect())
}

/// Returns the mount point that `path` is on, by its name alone: its file system is not accessed. `None` if the mount
/// table can't be read.
pub(crate) fn point_of(path: &Path) -> Option<PathBuf> {
    innermost(path, &fs::read(TABLE).unwrap_or_default())
}

fn innermost(path: &Path, table: &[u8]) -> Option<PathBuf> {
    let points = lines(table).filter_map(parsed).map(|mount| mount.point);
    points.filter(|point| path.starts_with(point)).max_by_key(|point| point.components().count())
}

fn with_id(id: &str, table: &[u8]) -> Option<Mount> {
    lines(table).find(|line| line.split(|byte| *byte == b' ').next() == Some(id.as_bytes())).and_then(parsed)
}

fn lines(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    table.split(|byte| *byte == b'\n')
}

fn parsed(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ').skip(4);
    let point = unescaped(fields.next()?);
    let options = fields.next()?.split(|byte| *byte == b',');
    let flag = |option: &[u8]| FLAGS.iter().find(|(name, _)| name.as_bytes() == option);
    let flags = options.filter_map(flag).fold(MsFlags::empty(), |flags, (_, flag)| flags | *flag);
    let tags = fields.take_while(|tag| *tag != b"-");
    let propagation = tags.fold(Propagation::default(), |propagation, tag| Propagation {
        shared: propagation.shared || tag.starts_with(b"shared:"),
        slave: propagation.slave || tag.starts_with(b"master:"),
    });
    Some(Mount { point, flags, propagation })
}

/// Decodes the kernel's escapes: a blank, a tab, a newline and a backslash are written as a backslash and three octal
/// digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *byte == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_propagation_are_read_from_mountinfo() {
        let table = b"29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 29 0:5 / /dev ro,nosuid,noexec master:2 - devtmpfs dev rw\n\
                      31 29 0:6 / /sys rw,nodev,nosymfollow shared:3 master:4 - sysfs sys rw\n\
                      32 29 0:7 / /x rw - tmpfs shared:9 rw\n";
        let propagation = |id: &str| with_id(id, table).map(|mount| mount.propagation);
        let is = |shared, slave| Some(Propagation { shared, slave });
        assert_eq!(propagation("29"), is(true, false));
        assert_eq!(propagation("30"), is(false, true));
        assert_eq!(propagation("31"), is(true, true));
        assert_eq!(propagation("32"), is(false, false));
        assert_eq!(propagation("9"), None);
        let flags = |id: &str| with_id(id, table).map(|mount| mount.flags);
        assert_eq!(flags("29"), Some(MsFlags::empty()));
        assert_eq!(flags("30"), Some(MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC));
        assert_eq!(flags("31"), Some(MsFlags::MS_NODEV | MsFlags::from_bits_retain(256)));
        assert_eq!(of(&fs::File::open("/proc").unwrap().into()).unwrap().point, Path::new("/proc"));
    }

    #[test]
    fn mount_points_are_read_whatever_bytes_are_in_them() {
        let table = b"29 1 254:0 / /a rw shared:1 - ext4 /dev/vda rw\n\
                      30 29 0:5 / /a/b\\040c\\011\\012\\134d rw - tmpfs x rw\n\
                      31 29 0:5 / /a/\xc3\xbc\\9 rw - tmpfs x rw\n";
        let points: Vec<_> = lines(table).filter_map(parsed).map(|mount| mount.point).collect();
        assert_eq!(points, ["/a", "/a/b c\t\n\\d", "/a/\u{fc}\\9"].map(PathBuf::from));
        for (path, point) in [("/a/x", "/a"), ("/a/b c\t\n\\d/x", "/a/b c\t\n\\d"), ("/a/b", "/a")] {
            assert_eq!(innermost(Path::new(path), table).unwrap(), Path::new(point), "{path}");
        }
        assert_eq!(innermost(Path::new("/b"), table), None);
        assert!(below(Path::new("/proc")).unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
    }
}

#[cfg(test)]
mod fuzz {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn escaped(point: &Path) -> Vec<u8> {
        let octal = |byte: u8| format!("\\{byte:03o}").into_bytes();
        let escaped =
            |byte: &u8| if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') { octal(*byte) } else { vec![*byte] };
        point.as_os_str().as_bytes().iter().flat_map(escaped).collect()
    }

    #[test]
    fn tables() {
        crate::fuzz::bytes("mountinfo", |table| {
            for line in lines(table) {
                let Some(mount) = parsed(line) else { continue };
                assert_eq!(unescaped(&escaped(&mount.point)), mount.point);
            }
            let path = Path::new("/run/containerd/io");
            assert!(innermost(path, table).is_none_or(|point| path.starts_with(point)));
            let _ = with_id("36", table);
        });
    }
}
