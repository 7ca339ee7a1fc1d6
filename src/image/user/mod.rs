//! Reads an image's own files before its container exists: which user it runs as, and where the paths lead that a
//! runtime opens by itself. runc and crun read `/etc/passwd` and `/etc/group` in the container whatever the user is,
//! and hang if one of them is a pipe.
//!
//! The image is mounted, read-only, in a mount namespace of a single thread: nobody else sees the mount, and it is gone
//! before the result is returned. Paths are resolved as from inside the container, so that a link in an image never
//! leads out of it, and nothing is opened before it is known to be a regular file.
//!
//! Source of the facts: runc `libcontainer/init_linux.go` (setupUser), crun `src/libcrun/container.c` (set_home_env,
//! additional groups); both tried.

mod accounts;
mod container;
mod tree;
mod walk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::types::Mount;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::{Semaphore, oneshot};

use super::mount::{self, MountError};
use crate::cache::Cache;
use accounts::Accounts;
use container::View;
pub(crate) use container::check;
use tree::Tree;
use walk::{End, Kind};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Maximum size of an account file.
const ACCOUNTS_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// Usual targets of mounts in a container.
const MOUNTED: [&str; 9] = [
    "/proc",
    "/dev",
    "/sys/fs/cgroup",
    "/alloc/logs",
    "/local",
    "/secrets",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];
/// Maximum number of file kinds that are kept for an image, and maximum length of a path with the target of its link.
const KINDS_LIMIT: usize = 256;
const KNOWN_PATH_BYTES: usize = 256;
/// Maximum size of both account files and of the key for a result to be cached. Hardly any image has more.
const REMEMBERED_BYTES: usize = 16 * 1024;
/// Maximum time of a lookup in an image.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// Maximum number of concurrent lookups, including those that nobody waits for any more.
const LOOKS_LIMIT: usize = 32;

/// User and groups that a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// All groups, including the primary one: a process that drops it must not get around files that deny it by group.
    pub groups: Vec<u32>,
    pub home: String,
}

/// An image with the findings about it, for [`check`] to look at again once the container's mounts are known.
pub(crate) struct Ends {
    root: Root,
    look: Arc<Look>,
    in_mounts: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// The job, or the image, names a user or group that doesn't exist.
    #[error("the {kind} {name:?} is not in the image's {file}; name one that is, or give its number")]
    Unknown { kind: &'static str, name: String, file: &'static str },
    /// The job, or the image, gives a number that is too high for an id, and no entry has it for a name.
    #[error("the {kind} {name:?} is neither a name in the image nor an id: a number is at most 2147483647")]
    TooHigh { kind: &'static str, name: String },
    /// The kernel takes the number for no id at all.
    #[error(
        "the image's accounts give the user {user:?} an id of 4294967295, which means no id: fix the image, or set \
         another user"
    )]
    NoId { user: String },
    /// The file is not a regular one: the runtime would hang on it, or worse.
    #[error(
        "{file} of the task is {what}, not a regular file; the runtime reads it at each start, and would hang or \
         fail: fix the image, or the mount that hides the image's file"
    )]
    NoFile { file: &'static str, what: String },
    #[error(
        "the working directory {cwd} leads into /proc (to {end}), where a task can't run; set another one by work_dir"
    )]
    InProc { cwd: String, end: String },
    #[error("the working directory {cwd} is {what}; set a directory by work_dir")]
    NoDirectory { cwd: String, what: &'static str },
    /// The image can't be read.
    #[error("can't {doing} the image {path}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("can't mount the image to find the user in it")]
    Unmountable(#[source] MountError),
    #[error(
        "the image's file system gave no answer within {} s; check whether its snapshotter or its disk hangs",
        LOOK_LIMIT.as_secs()
    )]
    Hangs,
    #[error("the thread that reads the image's file system ended early")]
    Lost,
}

/// The findings about an image.
#[derive(Debug, Default)]
struct Look {
    accounts: Accounts,
    kinds: Kinds,
}

/// Kinds of the files in an image that were looked up, by path.
#[derive(Debug, Default)]
struct Kinds(Mutex<BTreeMap<String, Kind>>);

impl Kinds {
    fn get(&self, path: &str) -> Option<Kind> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// Returns the kind of a file in `tree`. It is kept, unless that would exceed the limits.
    fn look(&self, tree: &Tree, path: &str) -> Result<Kind, UserError> {
        if let Some(kind) = self.get(path) {
            return Ok(kind);
        }
        let kind = tree.kind(path).map_err(failed("look for", Path::new(path)))?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let target = if let Kind::Link(target) = &kind { target.len() } else { 0 };
        if known.len() < KINDS_LIMIT && path.len() + target <= KNOWN_PATH_BYTES {
            known.insert(path.to_owned(), kind.clone());
        }
        Ok(kind)
    }
}

/// A cache of findings about images. Its keys stand for layers, which never change.
pub(crate) struct AccountCache {
    looks: Cache<String, Arc<Look>>,
    under_way: Arc<Semaphore>,
    /// Permits of the lookups in mounted sources: a volume that hangs delays no task that doesn't need such a lookup.
    in_mounts: Arc<Semaphore>,
}

impl Default for AccountCache {
    fn default() -> Self {
        Self {
            looks: Cache::default(),
            under_way: Arc::new(Semaphore::new(LOOKS_LIMIT)),
            in_mounts: Arc::new(Semaphore::new(LOOKS_LIMIT)),
        }
    }
}

impl AccountCache {
    /// Caches the findings, unless they are too large: the working directory of a hostile image, which is in the key,
    /// can have megabytes.
    fn remember(&self, key: String, look: &Arc<Look>) {
        let Accounts { passwd, group } = &look.accounts;
        if key.len() + passwd.len() + group.len() <= REMEMBERED_BYTES {
            self.looks.put(key, Arc::clone(look));
        }
    }
}

/// The root file system of an image.
pub(crate) struct Root {
    /// Key that identifies the image's layers.
    pub layers: String,
    pub mounts: Vec<Mount>,
    /// An empty directory to mount the image on.
    pub at: PathBuf,
    /// The working directory of the process, absolute.
    pub cwd: String,
}

/// Looks up `user` (`name`, `uid`, `name:group`, ..; empty for root) in an image, with `groups` in addition to the
/// user's own, and checks the paths that the runtime opens. Each image is mounted once; the findings are cached.
///
/// # Errors
/// Names the user or group that doesn't exist, the file that is not a regular one, or the one that could not be read.
pub(crate) async fn look(
    known: &AccountCache,
    root: Root,
    user: &str,
    groups: &[String],
) -> Result<(Identity, Arc<Ends>), UserError> {
    let key = format!("{} {}", root.layers, root.cwd);
    let (root, look) = match known.looks.get(&key) {
        Some(look) => (root, look),
        None => {
            let looked = apart(&known.under_way, move || {
                let look = mounted(&root, |tree| look_into(tree, &root.cwd))?;
                Ok((root, Arc::new(look)))
            });
            let (root, look) = looked.await?;
            known.remember(key, &look);
            (root, look)
        }
    };
    let identity = look.accounts.identity(user, groups)?;
    let in_mounts = Arc::clone(&known.in_mounts);
    Ok((identity, Arc::new(Ends { root, look, in_mounts })))
}

/// Runs a lookup on a thread of its own, which is abandoned if a file system hangs.
async fn apart<T: Send + 'static>(
    under_way: &Arc<Semaphore>,
    look: impl FnOnce() -> Result<T, UserError> + Send + 'static,
) -> Result<T, UserError> {
    let looked = async {
        let permit = Arc::clone(under_way).acquire_owned().await.map_err(|_| UserError::Lost)?;
        let (found, answer) = oneshot::channel();
        let look = move || {
            let look = look();
            drop(permit);
            // Nobody waits for the result once the start has been cancelled.
            let _ = found.send(look);
        };
        let thread = std::thread::Builder::new().name("rootfs".to_owned());
        thread.spawn(look).map_err(failed("start a thread for", Path::new("rootfs")))?;
        answer.await.map_err(|_| UserError::Lost)?
    };
    tokio::time::timeout(LOOK_LIMIT, looked).await.map_err(|_| UserError::Hangs)?
}

fn failed<E: Into<std::io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> UserError {
    let path = path.to_owned();
    move |source| UserError::Io { doing, path, source: source.into() }
}

/// Runs `look` on the mounted image. Mounts in the calling thread's namespace, so the thread must end afterwards.
fn mounted<T>(root: &Root, look: impl FnOnce(&Tree) -> Result<T, UserError>) -> Result<T, UserError> {
    let Root { layers: _, mounts, at, cwd: _ } = root;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace for", at))?;
    let nothing: Option<&str> = None;
    nix::mount::mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(failed("make private the mounts above", at))?;
    mount::mount_all(mounts, at).map_err(|error| match error {
        MountError::Kernel(errno) => failed("mount", at)(errno),
        MountError::Loop(_) => UserError::Unmountable(error),
    })?;
    let look = Tree::open(at).map_err(failed("open", at)).and_then(|tree| look(&tree));
    mount::unmount_all(mounts, at).map_err(failed("unmount", at))?;
    look
}

fn look_into(tree: &Tree, cwd: &str) -> Result<Look, UserError> {
    let kinds = Kinds::default();
    let mut view = View::of(|path: &str| Ok(kinds.look(tree, path)?));
    let passwd = account_file(tree, PASSWD, &view.check_file(PASSWD)?)?;
    let group = account_file(tree, GROUP, &view.check_file(GROUP)?)?;
    view.check_directory(cwd)?;
    // These are looked up now so that the check of the container need not mount the image again.
    for place in MOUNTED {
        view.resolve(place)?;
    }
    drop(view);
    Ok(Look { accounts: Accounts { passwd, group }, kinds })
}

/// Returns the content of an account file; empty if there is none.
fn account_file(tree: &Tree, file: &'static str, end: &End) -> Result<String, UserError> {
    if end.kind == Kind::Nothing {
        return Ok(String::new());
    }
    let bytes = tree.read(&end.path, ACCOUNTS_LIMIT_BYTES).map_err(failed("read", Path::new(file)))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > ACCOUNTS_LIMIT_BYTES) {
        return Err(UserError::NoFile { file, what: format!("of more than {ACCOUNTS_LIMIT_BYTES} bytes") });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::accounts::tests::accounts;
    use super::*;
    use crate::sys::error_chain::Chained;

    fn image(fill: impl FnOnce(&Path)) -> Result<Look, UserError> {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        fill(image.path());
        look_into(&Tree::open(image.path()).unwrap(), "/w")
    }

    #[tokio::test]
    async fn accounts_are_cached_unless_they_are_large() {
        let known = AccountCache::default();
        known.remember("a /".to_owned(), &Arc::new(Look { accounts: accounts(), ..Look::default() }));
        let root = |layers: &str| Root {
            layers: layers.to_owned(),
            mounts: Vec::new(),
            at: "/no/such/directory".into(),
            cwd: "/".to_owned(),
        };
        let (app, _) = look(&known, root("a"), "app", &[]).await.unwrap();
        assert_eq!(app, accounts().identity("app", &[]).unwrap());
        assert!(look(&known, root("b"), "app", &[]).await.is_err());
        assert!(known.looks.get("b /").is_none());
        let large = Accounts { passwd: "x".repeat(REMEMBERED_BYTES), ..accounts() };
        known.remember("b".to_owned(), &Arc::new(Look { accounts: large, ..Look::default() }));
        assert!(known.looks.get("b").is_none());
        let deep = format!("c /{}", "x".repeat(REMEMBERED_BYTES));
        known.remember(deep.clone(), &Arc::new(Look::default()));
        assert!(known.looks.get(&deep).is_none());
    }

    #[test]
    fn a_link_in_an_image_does_not_lead_out_of_it() {
        let look = image(|image| {
            std::fs::write(image.join("real"), "inside").unwrap();
            symlink("/real", image.join("etc/passwd")).unwrap();
            symlink("../../../../../../etc/hostname", image.join("etc/group")).unwrap();
            symlink("real/../x", image.join("w")).unwrap();
        });
        let Look { accounts, kinds } = look.unwrap();
        assert_eq!((accounts.passwd.as_str(), accounts.group.as_str()), ("inside", ""));
        assert_eq!(kinds.get("/real"), Some(Kind::File));
        assert_eq!((kinds.get("/etc/hostname"), kinds.get("/x")), (Some(Kind::Nothing), Some(Kind::Nothing)));
    }

    #[test]
    fn accounts_that_are_no_regular_file_are_refused() {
        let pipe = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for file in ["passwd", "group"] {
            let at = |image: &Path| image.join("etc").join(file);
            let refused = |fill: &dyn Fn(&Path), word: &str| {
                let error = image(fill).unwrap_err().to_string();
                assert!(error.contains(&format!("/etc/{file}")) && error.contains(word), "{error}");
            };
            refused(&|image| pipe(&at(image)), "a pipe");
            refused(&|image| std::fs::create_dir(at(image)).unwrap(), "a directory");
            let through = "/proc/self/cwd/../../../real";
            for place in ["/proc/self/fd/1", "/dev/zero", "../sys/kernel/x", "../proc/kmsg", through] {
                refused(&|image| symlink(place, at(image)).unwrap(), "leads");
            }
            let to_pipe = |image: &Path| {
                pipe(&image.join("pipe"));
                symlink("../pipe", at(image)).unwrap();
            };
            refused(&to_pipe, "a pipe");
            // A mount of the job may put a directory where there is none yet.
            let behind_nothing = |image: &Path| {
                pipe(&image.join("pipe"));
                symlink("../missing/../pipe", at(image)).unwrap();
            };
            refused(&behind_nothing, "a pipe");
            let large = |image: &Path| {
                std::fs::File::create(at(image)).unwrap().set_len(ACCOUNTS_LIMIT_BYTES + 1).unwrap();
            };
            refused(&large, "bytes");
        }
    }

    #[test]
    fn a_snapshotter_that_mounts_by_loop_devices_is_named_once() {
        let error = UserError::Unmountable(MountError::Loop("/dev/loop0".to_owned()));
        assert_eq!(
            error.chain().to_string(),
            "can't mount the image to find the user in it: its snapshotter mounts it by a loop device (/dev/loop0), which \
             this driver can't read; set the option snapshotter to another one"
        );
    }

    #[test]
    fn a_working_directory_that_leads_into_proc_is_refused() {
        // The runtime makes a link to /proc/self/fd there.
        for target in ["/proc/self/fd/7", "proc", "/w2", "/dev/fd/7", "missing/../w2"] {
            let error = image(|image| {
                symlink(target, image.join("w")).unwrap();
                symlink("/proc/1/cwd", image.join("w2")).unwrap();
            });
            let error = error.unwrap_err().to_string();
            assert!(error.contains("/w leads into /proc"), "{error}");
        }
        let endless = image(|image| symlink("/w", image.join("w")).unwrap()).unwrap_err().to_string();
        assert!(endless.contains("/w is a loop of symbolic links"), "{endless}");
    }
}
