//! Mounts an image for reading its files: read-only, and without devices or programs. Mounts in the calling thread's
//! namespace, which has to be its own. Also mounts a snapshot that is to be written to, for all to see.
//!
//! Source of the facts: containerd `mount/mount_linux.go` @ v1.6.20 (the options that are flags), mount(2).

use std::path::Path;
use std::time::{Duration, Instant};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The kernel's maximum length of the options of a mount, in bytes.
const OPTIONS_LIMIT_BYTES: usize = 4095;
/// Time limit for retries of an unmount while something in the image is in use, and the pause between them.
const BUSY: Duration = Duration::from_secs(5);
const TRIED_AGAIN: Duration = Duration::from_millis(1);
const LOOK_ONLY: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);
/// Options that mount(2) takes as flags, not as text. They are replaced by [`LOOK_ONLY`].
const FLAGS: [&str; 26] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "rbind",
    "relatime",
    "remount",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "sync",
    "",
];
/// Overlay options about the writable directory, which is left out.
const OF_THE_UPPER: [&str; 5] = ["upperdir=", "workdir=", "lowerdir=", "index=", "volatile"];

/// The reason that an image can't be mounted for reading.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error(
        "its snapshotter mounts it by a loop device ({0}), which this driver can't read; set the option snapshotter \
         to another one"
    )]
    Loop(String),
    #[error(transparent)]
    Kernel(#[from] Errno),
}

/// Mounts all layers at `at`, one over the other.
///
/// # Errors
/// If the kernel refuses a layer. Those mounted before it go with the namespace.
pub(super) fn mount_all(layers: &[Mount], at: &Path) -> Result<(), MountError> {
    layers.iter().try_for_each(|layer| mount_one(layer, at))
}

/// Unmounts the layers that [`mount_all`] has mounted. A device that stays mounted read-only can't be mounted writable
/// by the shim, and a namespace ends only some time after its last thread.
///
/// # Errors
/// If something in it is still open after [`BUSY`].
pub(super) fn unmount_all(layers: &[Mount], at: &Path) -> Result<(), Errno> {
    layers.iter().try_for_each(|_| while_busy(BUSY, || umount2(at, MntFlags::UMOUNT_NOFOLLOW)))
}

/// Retries `attempt` for a time while it fails with EBUSY. A child that another thread has just forked has all
/// descriptors of this process until it runs its program.
fn while_busy(limit: Duration, mut attempt: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let until = Instant::now() + limit;
    loop {
        match attempt() {
            Err(Errno::EBUSY) if Instant::now() < until => std::thread::sleep(TRIED_AGAIN),
            done => return done,
        }
    }
}

/// Mounts a writable snapshot at `at`, as a runtime would mount a container's.
///
/// # Errors
/// If the kernel refuses it, or it would need a loop device.
pub(super) fn mount_writable(layers: &[Mount], at: &Path) -> Result<(), MountError> {
    for Mount { r#type: kind, source, options, .. } in layers {
        if options.iter().any(|option| option == "loop") {
            return Err(MountError::Loop(kind.clone()));
        }
        if kind == "bind" {
            let nothing: Option<&str> = None;
            mount(Some(source.as_str()), at, nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)?;
            continue;
        }
        let data = own_words(options).collect::<Vec<_>>().join(",");
        let data = (!data.is_empty()).then_some(data.as_str());
        mount(Some(source.as_str()), at, Some(kind.as_str()), MsFlags::empty(), data)?;
    }
    Ok(())
}

/// Mounts one layer. Of an overlay only the lower directories are used: nothing has been written to the upper one yet,
/// and two mounts may not share it.
fn mount_one(layer: &Mount, at: &Path) -> Result<(), MountError> {
    let lower = layer.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    match (layer.r#type.as_str(), lower) {
        ("overlay", Some(lower)) if lower.contains(':') => {
            let (directory, options) = overlay_options(lower, &layer.options);
            std::env::set_current_dir(directory)
                .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
            Ok(mount(Some("overlay"), at, Some("overlay"), LOOK_ONLY, Some(options.as_str()))?)
        }
        ("overlay", Some(only)) => Ok(bind(only, at)?),
        ("bind", _) => Ok(bind(&layer.source, at)?),
        (kind, _) => {
            if layer.options.iter().any(|option| option == "loop") {
                return Err(MountError::Loop(kind.to_owned()));
            }
            let data = own_words(&layer.options).collect::<Vec<_>>().join(",");
            let data = (!data.is_empty()).then_some(data.as_str());
            Ok(mount(Some(layer.source.as_str()), at, Some(kind), LOOK_ONLY, data)?)
        }
    }
}

/// Makes a bind mount. The kernel applies the flags of a bind only on a remount.
fn bind(source: &str, at: &Path) -> Result<(), Errno> {
    let nothing: Option<&str> = None;
    mount(Some(source), at, nothing, MsFlags::MS_BIND, nothing)?;
    mount(nothing, at, nothing, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | LOOK_ONLY, nothing)
}

/// Returns the options for the file system itself, such as `nouuid` of xfs.
fn own_words(options: &[String]) -> impl Iterator<Item = &str> {
    let words = options.iter().map(String::as_str);
    words.filter(|word| !FLAGS.contains(word) && !word.starts_with("X-"))
}

/// Returns the working directory, and the options of an overlay of only the lower directories. Many of them fit into
/// the options only if they are named relative to the directory that they have in common. A thread with a mount
/// namespace of its own has a working directory of its own.
fn overlay_options<'a>(lower: &'a str, options: &[String]) -> (&'a str, String) {
    let is_uppers = |word: &&str| OF_THE_UPPER.iter().any(|beginning| word.starts_with(beginning));
    let others: String =
        own_words(options).filter(|word| !is_uppers(word)).map(|word| format!(",{word}")).collect();
    if "lowerdir=".len() + lower.len() + others.len() <= OPTIONS_LIMIT_BYTES {
        return ("/", format!("lowerdir={lower}{others}"));
    }
    let first = lower.split(':').next().unwrap_or_default();
    let common = lower.split(':').fold(first.len(), |length, path| {
        first.bytes().zip(path.bytes()).take(length).take_while(|(a, b)| a == b).count()
    });
    let end = first[..common].rfind('/').map_or(0, |slash| slash + 1);
    let relative: Vec<_> = lower.split(':').map(|path| &path[end..]).collect();
    (&first[..end], format!("lowerdir={}{others}", relative.join(":")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn many_lower_directories_are_named_from_what_they_share() {
        assert_eq!(overlay_options("/a/1/fs:/a/2/fs", &[]), ("/", "lowerdir=/a/1/fs:/a/2/fs".to_owned()));
        let many: Vec<_> = (100..300).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let many = many.join(":");
        let (directory, options) = overlay_options(&many, &[]);
        assert_eq!(directory, "/var/lib/containerd/snapshots/");
        assert!(options.starts_with("lowerdir=100/fs:101/fs:") && options.len() <= OPTIONS_LIMIT_BYTES);
    }

    #[test]
    fn mount_options_of_the_file_system_are_kept() {
        let options = words("ro nouuid rbind X-containerd.x=1 discard");
        assert_eq!(own_words(&options).collect::<Vec<_>>(), ["nouuid", "discard"]);
        let options = words("index=off workdir=/w upperdir=/u lowerdir=/a:/b userxattr");
        assert_eq!(overlay_options("/a:/b", &options).1, "lowerdir=/a:/b,userxattr");
    }

    #[test]
    fn loop_mounts_are_refused_and_name_the_snapshotter() {
        let layer = Mount {
            r#type: "ext4".to_owned(),
            source: "/x".to_owned(),
            options: words("loop rw"),
            ..Mount::default()
        };
        let error = mount_one(&layer, Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("snapshotter"), "{error}");
    }

    #[test]
    fn a_busy_mount_is_retried_until_the_limit() {
        let mut left = 3;
        let unmount = || {
            left -= 1;
            if left > 0 { Err(Errno::EBUSY) } else { Ok(()) }
        };
        assert_eq!(while_busy(BUSY, unmount), Ok(()));
        assert_eq!(while_busy(TRIED_AGAIN, || Err(Errno::EBUSY)), Err(Errno::EBUSY));
        assert_eq!(while_busy(BUSY, || Err(Errno::EPERM)), Err(Errno::EPERM));
    }
}
