//! Where the paths that a runtime opens lead in the container that is about to be made, whose mounts hide the image's
//! files: into the kernel's own file systems, or to what a task or a job has put in a directory that is mounted.

use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use oci_spec::runtime::{Mount, Spec};

use super::tree::Tree;
use super::walk::{End, Kind, is_within, resolve};
use super::{Ends, GROUP, PASSWD, RootfsError, failed, is_in_proc};

/// Where a file is one of the kernel's: a device, a pipe that the task itself writes to, or one that has no end.
const KERNELS: [&str; 3] = ["/proc", "/dev", "/sys"];

/// A directory or file of the host, and where it is in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bind {
    at: String,
    source: String,
}

/// Looks at the account files and the working directory once more, where the specification mounts something over them.
///
/// # Errors
/// Names the file that is none, or the directory that leads into /proc.
pub(crate) async fn check(ends: &Arc<Ends>, spec: &Spec) -> Result<(), RootfsError> {
    let binds: Vec<Bind> = spec.mounts().iter().flatten().filter_map(Bind::of).collect();
    let is_hidden = |end: &String| covering(&binds, end).is_some();
    if ![&ends.passwd, &ends.group, &ends.cwd].into_iter().any(is_hidden) {
        return Ok(());
    }
    let ends = Arc::clone(ends);
    let looking = tokio::task::spawn_blocking(move || look(&ends, &binds));
    let looked = tokio::time::timeout(super::LOOK_LIMIT, looking).await.map_err(|_| RootfsError::Hangs)?;
    looked.map_err(|_| RootfsError::Lost)?
}

impl Bind {
    fn of(mount: &Mount) -> Option<Self> {
        let options = mount.options().iter().flatten();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.into_iter().any(|option| option == "bind" || option == "rbind");
        let source = mount.source().as_ref().filter(|_| is_bind)?;
        let at = mount.destination().display().to_string();
        Some(Self { at, source: source.display().to_string() })
    }
}

/// The mount that a path of the container is in; of several, the innermost and of those the last.
fn covering<'a>(binds: &'a [Bind], path: &str) -> Option<&'a Bind> {
    binds.iter().filter(|bind| is_within(path, &bind.at)).max_by_key(|bind| bind.at.len())
}

fn look(ends: &Ends, binds: &[Bind]) -> Result<(), RootfsError> {
    for (file, at) in [(PASSWD, &ends.passwd), (GROUP, &ends.group)] {
        let End { path, kind } = end(at, binds)?;
        check_place(file, &path)?;
        // What lies in the image was looked at there.
        if covering(binds, &path).is_some() && kind != Kind::Nothing {
            check_kind(file, &kind)?;
        } else if path != *at && kind != Kind::Nothing {
            let what = format!("a link that leads out of a mount, to {path}");
            return Err(RootfsError::NoFile { file, what });
        }
    }
    let end = end(&ends.cwd, binds)?.path;
    if is_in_proc(&end) {
        return Err(RootfsError::InProc { cwd: ends.cwd.clone(), end });
    }
    Ok(())
}

/// Where a path ends whose links in the image are resolved already.
fn end(path: &str, binds: &[Bind]) -> Result<End, RootfsError> {
    let kind = |path: &str| match covering(binds, path) {
        None => Ok::<_, Errno>(Kind::Directory),
        Some(bind) => Tree::open(Path::new(&bind.source))?.kind(&path[bind.at.trim_end_matches('/').len()..]),
    };
    resolve(path, kind).map_err(failed("look for", Path::new(path)))
}

/// # Errors
/// Names the file that is one of the kernel's.
pub(super) fn check_place(file: &'static str, path: &str) -> Result<(), RootfsError> {
    if KERNELS.iter().any(|kernels| is_within(path, kernels)) {
        return Err(RootfsError::NoFile { file, what: format!("a link that leads to {path}") });
    }
    Ok(())
}

/// # Errors
/// Names the file that is none.
pub(super) fn check_kind(file: &'static str, kind: &Kind) -> Result<(), RootfsError> {
    let what = match kind {
        Kind::File | Kind::Nothing => return Ok(()),
        Kind::Directory => "a directory",
        Kind::Link(_) => "a link",
        Kind::Other(what) => what,
    };
    Err(RootfsError::NoFile { file, what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn ends() -> Ends {
        let [passwd, group, cwd] = ["/etc/passwd", "/etc/group", "/local/w"].map(str::to_owned);
        Ends { passwd, group, cwd }
    }

    fn bind(at: &str, source: &Path) -> Bind {
        Bind { at: at.to_owned(), source: source.display().to_string() }
    }

    #[test]
    fn what_is_mounted_over_the_accounts_is_looked_at() {
        let host = tempfile::tempdir().unwrap();
        let (etc, file, pipe) = (host.path().join("etc"), host.path().join("file"), host.path().join("pipe"));
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(&file, "").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        look(&ends(), &[bind("/etc/passwd", &file), bind("/etc", &etc)]).unwrap();
        let refused = |binds: &[Bind], words: [&str; 2]| {
            let error = look(&ends(), binds).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        refused(&[bind("/etc/passwd", &pipe)], ["/etc/passwd", "a pipe"]);
        refused(&[bind("/etc/group", host.path())], ["/etc/group", "a directory"]);
        symlink("/dev/zero", etc.join("group")).unwrap();
        refused(&[bind("/etc", &etc)], ["/etc/group", "/dev/zero"]);
        std::fs::remove_file(etc.join("group")).unwrap();
        symlink("/usr/group", etc.join("group")).unwrap();
        refused(&[bind("/etc", &etc)], ["/etc/group", "/usr/group"]);
        std::fs::rename(&pipe, etc.join("passwd")).unwrap();
        refused(&[bind("/", host.path())], ["/etc/passwd", "a pipe"]);
    }

    #[test]
    fn a_working_directory_in_a_mount_does_not_lead_into_proc() {
        let host = tempfile::tempdir().unwrap();
        let binds = [bind("/local", host.path())];
        look(&ends(), &binds).unwrap();
        symlink("/local/v1", host.path().join("w")).unwrap();
        look(&ends(), &binds).unwrap();
        symlink("/proc/self/fd/7", host.path().join("v1")).unwrap();
        let error = look(&ends(), &binds).unwrap_err().to_string();
        assert!(error.contains("/local/w") && error.contains("/proc/self/fd/7"), "{error}");
    }
}
