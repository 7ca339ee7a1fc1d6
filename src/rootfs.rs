//! What is looked up in an image's own files before its container exists: who the user is that it runs as.
//!
//! The image is mounted, read-only, in a mount namespace that one thread has to itself: nobody else sees the mount, and
//! it goes with the thread, whatever happens. Paths are resolved by the kernel as from the inside, so that a link in an
//! image never leads out of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use tokio::sync::oneshot;

/// No account file is larger; what is beyond it is not looked at.
const ACCOUNTS_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// Past this many images the memory starts over; it only saves the look.
const KNOWN_LIMIT: usize = 128;
/// Of both files. Hardly an image has more.
const REMEMBERED_BYTES: usize = 16 * 1024;
/// The kernel takes no longer options for a mount.
const MOUNT_OPTIONS_LIMIT_BYTES: usize = 4095;
/// Where Nomad says that its dynamic users are at home.
const DYNAMIC_HOME: &str = "/nonexistent";

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The primary one among them: a process that drops it must not get around files that deny it by group.
    pub groups: Vec<u32>,
    pub home: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    /// The job, or the image, names somebody who isn't there.
    #[error("the {kind} {name:?} is not in the image's {file}; name one that is, or give its number")]
    Unknown { kind: &'static str, name: String, file: &'static str },
    /// The image can't be looked into.
    #[error("can't {doing} the image {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the thread that looks into the image ended early")]
    Lost,
}

/// The accounts of images that were looked into. What a key stands for never changes: the layers of an image.
#[derive(Default)]
pub(crate) struct Known {
    accounts: Mutex<HashMap<String, Arc<Accounts>>>,
}

impl Known {
    fn get(&self, layers: &str) -> Option<Arc<Accounts>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(layers).cloned()
    }

    fn remember(&self, layers: String, accounts: &Arc<Accounts>) {
        if accounts.passwd.len() + accounts.group.len() > REMEMBERED_BYTES {
            return;
        }
        let mut known = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_LIMIT {
            known.clear();
        }
        known.insert(layers, Arc::clone(accounts));
    }
}

/// Where an image's files are.
pub(crate) struct Root {
    /// What tells its layers from others.
    pub layers: String,
    pub mounts: Vec<Mount>,
    /// An empty directory to mount it on.
    pub at: PathBuf,
}

/// Finds out who `user` (`name`, `uid`, `name:group`, ..; empty for root) is in an image, with `groups` beside the user's
/// own. An image is mounted and looked into once.
///
/// # Errors
/// Names the user or group that isn't there, or what could not be read.
pub(crate) async fn identity(
    known: &Known,
    root: Root,
    user: &str,
    groups: &[String],
) -> Result<Identity, RootfsError> {
    let Root { layers, mounts, at } = root;
    if let Some(accounts) = known.get(&layers) {
        return accounts.identity(user, groups);
    }
    let (found, answer) = oneshot::channel();
    let look = move || {
        // Nobody waits for the answer once the start has been called off.
        let _ = found.send(accounts(&mounts, &at));
    };
    let thread = std::thread::Builder::new().name("rootfs".to_owned());
    thread.spawn(look).map_err(failed("start a thread for", Path::new("rootfs")))?;
    let accounts = Arc::new(answer.await.map_err(|_| RootfsError::Lost)??);
    known.remember(layers, &accounts);
    accounts.identity(user, groups)
}

fn failed<E: Into<std::io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> RootfsError {
    let path = path.to_owned();
    move |source| RootfsError::Io { doing, path, source: source.into() }
}

struct Accounts {
    passwd: String,
    group: String,
}

/// Mounts for good in this thread's namespace: call it on a thread that ends.
fn accounts(mounts: &[Mount], at: &Path) -> Result<Accounts, RootfsError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace for", at))?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(failed("make private the mounts above", at))?;
    for layer in mounts {
        mount_read_only(layer, at).map_err(failed("mount", at))?;
    }
    let root = open(at, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("open", at))?;
    Ok(Accounts { passwd: read(&root, "etc/passwd")?, group: read(&root, "etc/group")? })
}

/// Of an overlay only the lower directories are taken: nothing has been written to the upper one yet, and two mounts may
/// not share it.
fn mount_read_only(layer: &Mount, at: &Path) -> Result<(), Errno> {
    let nothing: Option<&str> = None;
    let lower = layer.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    match (layer.r#type.as_str(), lower) {
        ("overlay", Some(lower)) if lower.contains(':') => {
            let (directory, options) = shortened(lower);
            std::env::set_current_dir(directory)
                .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
            mount(Some("overlay"), at, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str()))
        }
        ("overlay", Some(only)) => mount(Some(only), at, nothing, MsFlags::MS_BIND, nothing),
        ("bind", _) => mount(Some(layer.source.as_str()), at, nothing, MsFlags::MS_BIND, nothing),
        (kind, _) => mount(Some(layer.source.as_str()), at, Some(kind), MsFlags::MS_RDONLY, nothing),
    }
}

/// The options for many lower directories fit only when they are named from the directory that they have in common. A
/// thread with a mount namespace of its own has a working directory of its own.
fn shortened(lower: &str) -> (&str, String) {
    if lower.len() + "lowerdir=".len() <= MOUNT_OPTIONS_LIMIT_BYTES {
        return ("/", format!("lowerdir={lower}"));
    }
    let first = lower.split(':').next().unwrap_or_default();
    let common = lower.split(':').fold(first.len(), |length, path| {
        first.bytes().zip(path.bytes()).take(length).take_while(|(a, b)| a == b).count()
    });
    let end = first[..common].rfind('/').map_or(0, |slash| slash + 1);
    let relative: Vec<_> = lower.split(':').map(|path| &path[end..]).collect();
    (&first[..end], format!("lowerdir={}", relative.join(":")))
}

/// A file of the image; one that isn't there is empty.
fn read(root: &OwnedFd, path: &'static str) -> Result<String, RootfsError> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(root.as_fd(), path, how) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed("open", Path::new(path))(error)),
    };
    let mut bytes = Vec::new();
    file.take(ACCOUNTS_LIMIT_BYTES).read_to_end(&mut bytes).map_err(failed("read", Path::new(path)))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Accounts {
    fn identity(&self, user: &str, more_groups: &[String]) -> Result<Identity, RootfsError> {
        let mut identity = self.user(user)?;
        for group in more_groups {
            identity.groups.push(self.gid(group)?);
        }
        identity.groups.sort_unstable();
        identity.groups.dedup();
        Ok(identity)
    }

    /// By docker's rules: a number needs no entry, but has its group and home from one; the groups that list the user
    /// count unless a group is given.
    fn user(&self, user: &str) -> Result<Identity, RootfsError> {
        let (user, group) = user.split_once(':').map_or((user, ""), |(user, group)| (user, group));
        let user = if user.is_empty() { "0" } else { user };
        let number = number(user);
        let entry = self.passwd().find(|entry| entry.name == user || Some(entry.uid) == number);
        let (uid, gid, home) = match (&entry, number) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home),
            (None, Some(uid)) => (uid, 0, "/"),
            (None, None) => match dynamic(user) {
                Some(id) => (id, id, DYNAMIC_HOME),
                None => {
                    return Err(RootfsError::Unknown {
                        kind: "user",
                        name: user.to_owned(),
                        file: "/etc/passwd",
                    });
                }
            },
        };
        let home = if home.is_empty() { "/" } else { home }.to_owned();
        if !group.is_empty() {
            let gid = self.gid(group)?;
            return Ok(Identity { uid, gid, groups: vec![gid], home });
        }
        let name = entry.map_or(user, |entry| entry.name);
        let listing = self.groups().filter(|(_, _, members)| members.split(',').any(|member| member == name));
        let groups = listing.map(|(_, gid, _)| gid).chain([gid]).collect();
        Ok(Identity { uid, gid, groups, home })
    }

    fn gid(&self, group: &str) -> Result<u32, RootfsError> {
        let named = self.groups().find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid);
        named.or_else(|| number(group)).ok_or_else(|| RootfsError::Unknown {
            kind: "group",
            name: group.to_owned(),
            file: "/etc/group",
        })
    }

    fn passwd(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((name, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }
}

/// Whom Nomad names `nomad-<id>` is in no file: the number is that of the user and of the group.
fn dynamic(user: &str) -> Option<u32> {
    number(user.strip_prefix("nomad-")?)
}

/// An id, within docker's limit for them: the highest one of all is none to the kernel.
fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse::<i32>().ok()?.try_into().ok()).flatten()
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd:
                "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1000::/home/app:/bin/sh\nbare:x:7:8::\n"
                    .to_owned(),
            group: "root:x:0:\nwheel:x:10:root,app\napp:x:1000:app\naudio:x:29:app,bare\n".to_owned(),
        }
    }

    fn who(user: &str) -> Identity {
        accounts().identity(user, &[]).unwrap()
    }

    fn is(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[tokio::test]
    async fn an_image_is_looked_into_once_and_a_large_one_is_not_remembered() {
        let known = Known::default();
        known.remember("a".to_owned(), &Arc::new(accounts()));
        let root = || Root { layers: "a".to_owned(), mounts: Vec::new(), at: "/no/such/directory".into() };
        let app = identity(&known, root(), "app", &[]).await.unwrap();
        assert_eq!(app, who("app"));
        assert!(identity(&known, Root { layers: "b".to_owned(), ..root() }, "app", &[]).await.is_err());
        assert!(known.get("b").is_none());
        let large = Accounts { passwd: "x".repeat(REMEMBERED_BYTES), ..accounts() };
        known.remember("b".to_owned(), &Arc::new(large));
        assert!(known.get("b").is_none());
        for number in 0..=KNOWN_LIMIT {
            known.remember(number.to_string(), &Arc::new(accounts()));
        }
        assert!(known.accounts.lock().unwrap().len() <= KNOWN_LIMIT);
    }

    #[test]
    fn users_and_groups_are_the_images_own() {
        assert_eq!(who(""), is(0, 0, &[0, 10], "/root"));
        assert_eq!(who("app"), is(1000, 1000, &[10, 29, 1000], "/home/app"));
        assert_eq!(who("1000"), who("app"));
        assert_eq!(who("app:audio"), is(1000, 29, &[29], "/home/app"));
        assert_eq!(who("app:77"), is(1000, 77, &[77], "/home/app"));
        assert_eq!(who("4242"), is(4242, 0, &[0], "/"));
        assert_eq!(who("bare"), is(7, 8, &[8, 29], "/"));
    }

    #[test]
    fn a_dynamic_user_of_nomads_needs_no_entry() {
        assert_eq!(who("nomad-80000"), is(80000, 80000, &[80000], "/nonexistent"));
        for wrong in ["nomad-", "nomad-x", "nomad-+1", "nomad-4294967296", "nomad-4294967295"] {
            assert!(accounts().identity(wrong, &[]).unwrap_err().to_string().contains(wrong));
        }
    }

    #[test]
    fn a_number_is_an_id_that_there_can_be() {
        assert_eq!(who("2147483647:0").uid, 2_147_483_647);
        for wrong in ["2147483648", "4294967295", "+5", "-1", "5:4294967295", "5:+7"] {
            let named = wrong.rsplit(':').next().unwrap();
            let error = accounts().identity(wrong, &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("{named:?}")), "{error}");
        }
    }

    #[test]
    fn more_groups_are_the_images_or_numbers() {
        let with = |user: &str, groups: &[&str]| {
            let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
            accounts().identity(user, &groups).map(|identity| identity.groups)
        };
        assert_eq!(with("app", &["wheel", "77"]).unwrap(), [10, 29, 77, 1000]);
        assert_eq!(with("app:audio", &["wheel"]).unwrap(), [10, 29]);
        assert!(with("app", &["ghosts"]).unwrap_err().to_string().contains("group \"ghosts\""));
    }

    #[test]
    fn a_name_that_is_not_there_is_said() {
        let error = accounts().identity("ghost", &[]).unwrap_err().to_string();
        assert!(error.contains("user \"ghost\"") && error.contains("/etc/passwd"), "{error}");
        let error = accounts().identity("app:ghosts", &[]).unwrap_err().to_string();
        assert!(error.contains("group \"ghosts\"") && error.contains("/etc/group"), "{error}");
    }

    #[test]
    fn many_lower_directories_are_named_from_what_they_share() {
        assert_eq!(shortened("/a/1/fs:/a/2/fs"), ("/", "lowerdir=/a/1/fs:/a/2/fs".to_owned()));
        let many: Vec<_> = (100..300).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let many = many.join(":");
        let (directory, options) = shortened(&many);
        assert_eq!(directory, "/var/lib/containerd/snapshots/");
        assert!(options.starts_with("lowerdir=100/fs:101/fs:") && options.len() <= MOUNT_OPTIONS_LIMIT_BYTES);
    }

    #[test]
    fn a_link_in_an_image_does_not_lead_out_of_it() {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        std::fs::write(image.path().join("real"), "inside").unwrap();
        std::os::unix::fs::symlink("/real", image.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/hostname", image.path().join("etc/group")).unwrap();
        let root = open(image.path(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(read(&root, "etc/passwd").unwrap(), "inside");
        assert_eq!(read(&root, "etc/group").unwrap(), "");
    }
}
