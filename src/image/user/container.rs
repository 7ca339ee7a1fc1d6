//! Resolves the paths that a runtime opens in a container that is about to be made, as it will find them: in the image,
//! with the task's mounts over it. Not only the target of a symbolic link counts, but also every place that it leads
//! through, since a mount may hide that; and so do links by which a mount ends up elsewhere than at its target.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{Mount, Spec};

use super::tree::Tree;
use super::walk::{End, Kind, is_within, resolve};
use super::{Ends, GROUP, PASSWD, UserError, apart, failed, mounted};

/// Directories with files of the kernel: devices, files without an end, and pipes that the task itself writes to.
const KERNELS: [&str; 3] = ["/proc", "/dev", "/sys"];
/// Directories of descriptors. A process on its way into the container has descriptors of the runtime's there, which
/// have allowed escapes from runtimes. The second is a link to the first that runtimes make.
const DESCRIPTORS: [&str; 2] = ["/proc", "/dev/fd"];

/// A mount of the container, with its source if that is a directory or file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Over {
    at: String,
    source: Option<PathBuf>,
}

/// The files of a container: the image with mounts over it.
pub(super) struct View<F> {
    image: F,
    /// Mounts in the order in which they are made, each at the path that its target resolves to.
    mounts: Vec<Over>,
    /// Permission to open the sources of mounts, which can block for ever.
    opens: bool,
}

/// The reason that a check of a container is incomplete.
pub(super) enum Fault {
    /// The kind of a file is not known, and must not be looked up now.
    NotKnown,
    Found(UserError),
}

impl From<UserError> for Fault {
    fn from(error: UserError) -> Self {
        Self::Found(error)
    }
}

impl From<Fault> for UserError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotKnown => Self::Lost,
            Fault::Found(error) => error,
        }
    }
}

/// Checks the account files and the working directory again, with the mounts of the specification.
///
/// # Errors
/// Names the account file that is not a regular file, or the working directory that leads into /proc.
pub(crate) async fn check(ends: &Arc<Ends>, spec: &Spec) -> Result<(), UserError> {
    let mounts: Vec<Over> = spec.mounts().iter().flatten().map(Over::of).collect();
    // Usually neither the image nor a mount's source has to be opened for this check.
    match look_known(ends, &mounts, false) {
        Err(Fault::NotKnown) => {
            let ends = Arc::clone(ends);
            apart(&Arc::clone(&ends.in_mounts), move || look(&ends, &mounts)).await
        }
        looked => Ok(looked?),
    }
}

fn look(ends: &Ends, mounts: &[Over]) -> Result<(), UserError> {
    let Ends { root, look, .. } = ends;
    match look_known(ends, mounts, true) {
        Err(Fault::NotKnown) => mounted(root, |tree| {
            let image = |path: &str| Ok(look.kinds.look(tree, path)?);
            Ok(look_through(image, mounts, &root.cwd, true)?)
        }),
        looked => Ok(looked?),
    }
}

/// Checks with the known files of the image only.
fn look_known(ends: &Ends, mounts: &[Over], opens: bool) -> Result<(), Fault> {
    let image = |path: &str| ends.look.kinds.get(path).ok_or(Fault::NotKnown);
    look_through(image, mounts, &ends.root.cwd, opens)
}

fn look_through(
    image: impl FnMut(&str) -> Result<Kind, Fault>,
    mounts: &[Over],
    cwd: &str,
    opens: bool,
) -> Result<(), Fault> {
    let mut view = View { image, mounts: Vec::new(), opens };
    for mount in mounts {
        let at = view.resolve(&mount.at)?.path;
        view.mounts.push(Over { at, source: mount.source.clone() });
    }
    view.check_file(PASSWD)?;
    view.check_file(GROUP)?;
    view.check_directory(cwd)
}

impl Over {
    fn of(mount: &Mount) -> Self {
        let options = mount.options().iter().flatten();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.into_iter().any(|option| option == "bind" || option == "rbind");
        let source = mount.source().clone().filter(|_| is_bind);
        Self { at: mount.destination().display().to_string(), source }
    }

    fn kind(&self, path: &str) -> Result<Kind, UserError> {
        let below = &path[self.at.trim_end_matches('/').len()..];
        match &self.source {
            Some(source) => {
                let tree = Tree::open(source).map_err(failed("look for", source))?;
                tree.kind(below).map_err(failed("look for", Path::new(path)))
            }
            None if below.is_empty() => Ok(Kind::Directory),
            None => Ok(Kind::Nothing),
        }
    }
}

impl<F: FnMut(&str) -> Result<Kind, Fault>> View<F> {
    /// Creates the view of an image without mounts. `image` returns the kind of the file at a path.
    pub(super) fn of(image: F) -> Self {
        Self { image, mounts: Vec::new(), opens: false }
    }

    /// Resolves an account file.
    ///
    /// # Errors
    /// If it exists, but is not a regular file.
    pub(super) fn check_file(&mut self, file: &'static str) -> Result<End, Fault> {
        let end = self.resolve(file)?;
        if let Some(place) = first_within(&end, &KERNELS) {
            return Err(UserError::NoFile { file, what: format!("a link that leads to {place}") }.into());
        }
        let what = match &end.kind {
            Kind::File | Kind::Nothing => return Ok(end),
            Kind::Directory => "a directory",
            Kind::Link(_) => "a link",
            Kind::Other(what) => what,
        };
        Err(UserError::NoFile { file, what: what.to_owned() }.into())
    }

    /// Checks the working directory.
    ///
    /// # Errors
    /// If it leads into /proc, or is something other than a directory.
    pub(super) fn check_directory(&mut self, cwd: &str) -> Result<(), Fault> {
        let end = self.resolve(cwd)?;
        if let Some(place) = first_within(&end, &DESCRIPTORS) {
            return Err(UserError::InProc { cwd: cwd.to_owned(), end: place.to_owned() }.into());
        }
        match end.kind {
            Kind::Other(what) => Err(UserError::NoDirectory { cwd: cwd.to_owned(), what }.into()),
            _ => Ok(()),
        }
    }

    /// Resolves a path of the container.
    ///
    /// # Errors
    /// If the kind of a file on the way can't be found out.
    pub(super) fn resolve(&mut self, path: &str) -> Result<End, Fault> {
        let Self { image, mounts, opens } = self;
        resolve(path, |place| {
            let kind = match mounts.iter().rev().find(|mount| is_within(place, &mount.at)) {
                Some(mount) if mount.source.is_some() && !*opens => return Err(Fault::NotKnown),
                Some(mount) => mount.kind(place)?,
                None => image(place)?,
            };
            // The runtime creates the mount points.
            let is_above = kind == Kind::Nothing && mounts.iter().any(|mount| is_within(&mount.at, place));
            Ok(if is_above { Kind::Directory } else { kind })
        })
    }
}

fn first_within<'a>(end: &'a End, directories: &[&str]) -> Option<&'a str> {
    let is_in = |place: &&String| directories.iter().any(|directory| is_within(place, directory));
    end.passed.iter().find(is_in).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Checks a container of an image that has only these links.
    fn look(image: &[(&str, &str)], mounts: &[Over], cwd: &str) -> Result<(), UserError> {
        let kind = |path: &str| {
            let link = image.iter().find(|(at, _)| *at == path);
            let is_above = image.iter().any(|(at, _)| is_within(at, path));
            let otherwise = if is_above { Kind::Directory } else { Kind::Nothing };
            Ok(link.map_or(otherwise, |(_, target)| Kind::Link((*target).to_owned())))
        };
        let kernels = ["/proc", "/dev"].map(|at| Over { at: at.to_owned(), source: None });
        Ok(look_through(kind, &[&kernels, mounts].concat(), cwd, true)?)
    }

    fn bind(at: &str, source: &Path) -> Over {
        Over { at: at.to_owned(), source: Some(source.to_owned()) }
    }

    fn refused(looked: Result<(), UserError>, words: [&str; 2]) {
        let error = looked.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    #[test]
    fn mounts_over_account_files_are_checked() {
        let host = tempfile::tempdir().unwrap();
        let (etc, file, pipe) = (host.path().join("etc"), host.path().join("file"), host.path().join("pipe"));
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(&file, "").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        look(&[], &[bind("/etc", &etc), bind("/etc/passwd", &file)], "/local/w").unwrap();
        refused(look(&[], &[bind("/etc/passwd", &pipe)], "/"), ["/etc/passwd", "a pipe"]);
        refused(look(&[], &[bind("/etc/group", host.path())], "/"), ["/etc/group", "a directory"]);
        symlink("/dev/zero", etc.join("group")).unwrap();
        refused(look(&[], &[bind("/etc", &etc)], "/"), ["/etc/group", "/dev/zero"]);
        std::fs::remove_file(etc.join("group")).unwrap();
        symlink("/usr/group", etc.join("group")).unwrap();
        let binds = [bind("/etc", &etc)];
        look(&[], &binds, "/").unwrap();
        refused(look(&[("/usr/group", "/dev/stdin")], &binds, "/"), ["/etc/group", "/dev/stdin"]);
        std::fs::rename(&pipe, etc.join("passwd")).unwrap();
        refused(look(&[], &[bind("/", host.path())], "/"), ["/etc/passwd", "a pipe"]);
    }

    #[test]
    fn links_through_mounts_are_checked() {
        let host = tempfile::tempdir().unwrap();
        for name in ["pipe", "passwd"] {
            nix::unistd::mkfifo(&host.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let local = [bind("/local", host.path())];
        // The image's own link at that path leads elsewhere.
        let image = [("/etc/passwd", "/local/pipe"), ("/local/pipe", "/real")];
        look(&image, &[], "/").unwrap();
        refused(look(&image, &local, "/"), ["/etc/passwd", "a pipe"]);
        // A mount whose target is a link of the image.
        let aside = [bind("/m", host.path())];
        look(&[], &aside, "/").unwrap();
        refused(look(&[("/m", "etc")], &aside, "/"), ["/etc/passwd", "a pipe"]);
        // The runtime creates the mount point.
        let made = [Over { at: "/made/below".to_owned(), source: None }, bind("/local", host.path())];
        refused(look(&[("/etc/group", "/made/../local/pipe")], &made, "/"), ["/etc/group", "a pipe"]);
    }

    #[test]
    fn a_working_directory_in_a_mount_does_not_lead_into_proc() {
        let host = tempfile::tempdir().unwrap();
        let binds = [bind("/local", host.path())];
        look(&[], &binds, "/local/w").unwrap();
        symlink("/local/v1", host.path().join("w")).unwrap();
        look(&[], &binds, "/local/w").unwrap();
        symlink("/x/fd/7", host.path().join("v1")).unwrap();
        look(&[], &binds, "/local/w").unwrap();
        refused(look(&[("/x", "/proc/self")], &binds, "/local/w"), ["/local/w", "/proc/self/fd/7"]);
        refused(look(&[("/x", "/dev")], &binds, "/local/w"), ["/local/w", "/dev/fd/7"]);
        nix::unistd::mkfifo(&host.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(look(&[], &binds, "/local/pipe"), ["/local/pipe", "a pipe"]);
    }
}
