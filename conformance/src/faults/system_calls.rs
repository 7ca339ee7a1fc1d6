//! The system calls that are points: their numbers, the argument that says what they act on, and how they can fail.
//!
//! Calls that only order threads, keep time or map memory are left out: a failure of those is not one that a node sees.

use nix::errno::Errno;
use nix::errno::Errno::{EACCES, EAGAIN, EINTR, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, EROFS, ETIMEDOUT};
use nix::libc;

/// The object of a call on a socket of the network.
pub const OF_NETWORK: &str = "socket of the network";
/// The object of a call on a socket to containerd.
pub const OF_CONTAINERD: &str = "socket {environment}/ctd/c.sock";
/// Beginnings of names of files that are being made, which random letters follow.
pub const TEMPORARY: [&str; 2] = [".new-", ".tmp"];
/// All errors that are injected.
pub const ERRORS: [Errno; 10] =
    [ENOSPC, EMFILE, ENFILE, EIO, ENOMEM, EAGAIN, EINTR, EACCES, ETIMEDOUT, EROFS];

/// Where a call says what it acts on. Numbers are those of its arguments.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    /// The text at this argument is a path.
    Path(usize),
    /// A directory's descriptor, and a path below it.
    At(usize, usize),
    Descriptor(usize),
    /// The descriptor of a socket, and an address to connect to.
    Address(usize),
    /// Nothing that has a name.
    None,
}

/// A system call that is a point.
#[derive(Debug, Clone, Copy)]
pub struct SystemCall {
    pub number: i64,
    pub name: &'static str,
    pub object: Object,
    kind: Kind,
}

/// What a call does, which decides how it can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Makes a descriptor of something that is there.
    Open,
    /// Makes a descriptor out of nothing.
    Descriptor,
    /// Asks without changing anything.
    Look,
    Read,
    Write,
    /// Changes what a directory or file system says.
    Change,
    Mount,
    Lock,
    /// Makes a thread or a process.
    Spawn,
    Connect,
    /// Can't fail for want of anything.
    Sure,
}

const fn call(number: i64, name: &'static str, object: Object, kind: Kind) -> SystemCall {
    SystemCall { number, name, object, kind }
}

use Kind::{Change, Connect, Descriptor, Lock, Look, Mount, Open, Read, Spawn, Sure, Write};
use Object::{Address, At, Path};

const TABLE: &[SystemCall] = &[
    call(libc::SYS_open, "open", Path(0), Open),
    call(libc::SYS_openat, "openat", At(0, 1), Open),
    call(libc::SYS_openat2, "openat2", At(0, 1), Open),
    call(libc::SYS_open_tree, "open_tree", At(0, 1), Open),
    call(libc::SYS_pidfd_open, "pidfd_open", Object::None, Descriptor),
    call(libc::SYS_socket, "socket", Object::None, Descriptor),
    call(libc::SYS_socketpair, "socketpair", Object::None, Descriptor),
    call(libc::SYS_pipe2, "pipe2", Object::None, Descriptor),
    call(libc::SYS_memfd_create, "memfd_create", Path(0), Descriptor),
    call(libc::SYS_inotify_init1, "inotify_init1", Object::None, Descriptor),
    call(libc::SYS_inotify_add_watch, "inotify_add_watch", Path(1), Change),
    call(libc::SYS_accept4, "accept4", Object::Descriptor(0), Descriptor),
    call(libc::SYS_stat, "stat", Path(0), Look),
    call(libc::SYS_lstat, "lstat", Path(0), Look),
    call(libc::SYS_fstat, "fstat", Object::Descriptor(0), Look),
    call(libc::SYS_newfstatat, "newfstatat", At(0, 1), Look),
    call(libc::SYS_statx, "statx", At(0, 1), Look),
    call(libc::SYS_statfs, "statfs", Path(0), Look),
    call(libc::SYS_fstatfs, "fstatfs", Object::Descriptor(0), Look),
    call(libc::SYS_access, "access", Path(0), Look),
    call(libc::SYS_faccessat, "faccessat", At(0, 1), Look),
    call(libc::SYS_faccessat2, "faccessat2", At(0, 1), Look),
    call(libc::SYS_readlink, "readlink", Path(0), Look),
    call(libc::SYS_readlinkat, "readlinkat", At(0, 1), Look),
    call(libc::SYS_getdents64, "getdents64", Object::Descriptor(0), Look),
    call(libc::SYS_ioctl, "ioctl", Object::Descriptor(0), Look),
    call(libc::SYS_read, "read", Object::Descriptor(0), Read),
    call(libc::SYS_pread64, "pread64", Object::Descriptor(0), Read),
    call(libc::SYS_readv, "readv", Object::Descriptor(0), Read),
    call(libc::SYS_recvfrom, "recvfrom", Object::Descriptor(0), Read),
    call(libc::SYS_recvmsg, "recvmsg", Object::Descriptor(0), Read),
    call(libc::SYS_write, "write", Object::Descriptor(0), Write),
    call(libc::SYS_pwrite64, "pwrite64", Object::Descriptor(0), Write),
    call(libc::SYS_writev, "writev", Object::Descriptor(0), Write),
    call(libc::SYS_sendto, "sendto", Object::Descriptor(0), Write),
    call(libc::SYS_sendmsg, "sendmsg", Object::Descriptor(0), Write),
    call(libc::SYS_splice, "splice", Object::Descriptor(2), Write),
    call(libc::SYS_sendfile, "sendfile", Object::Descriptor(0), Write),
    call(libc::SYS_copy_file_range, "copy_file_range", Object::Descriptor(2), Write),
    call(libc::SYS_mkdir, "mkdir", Path(0), Change),
    call(libc::SYS_mkdirat, "mkdirat", At(0, 1), Change),
    call(libc::SYS_mknod, "mknod", Path(0), Change),
    call(libc::SYS_mknodat, "mknodat", At(0, 1), Change),
    call(libc::SYS_unlink, "unlink", Path(0), Change),
    call(libc::SYS_unlinkat, "unlinkat", At(0, 1), Change),
    call(libc::SYS_rmdir, "rmdir", Path(0), Change),
    call(libc::SYS_rename, "rename", Path(1), Change),
    call(libc::SYS_renameat, "renameat", At(2, 3), Change),
    call(libc::SYS_renameat2, "renameat2", At(2, 3), Change),
    call(libc::SYS_link, "link", Path(1), Change),
    call(libc::SYS_linkat, "linkat", At(2, 3), Change),
    call(libc::SYS_symlink, "symlink", Path(1), Change),
    call(libc::SYS_symlinkat, "symlinkat", At(1, 2), Change),
    call(libc::SYS_chmod, "chmod", Path(0), Change),
    call(libc::SYS_fchmod, "fchmod", Object::Descriptor(0), Change),
    call(libc::SYS_fchmodat, "fchmodat", At(0, 1), Change),
    call(libc::SYS_chown, "chown", Path(0), Change),
    call(libc::SYS_lchown, "lchown", Path(0), Change),
    call(libc::SYS_fchown, "fchown", Object::Descriptor(0), Change),
    call(libc::SYS_fchownat, "fchownat", At(0, 1), Change),
    call(libc::SYS_ftruncate, "ftruncate", Object::Descriptor(0), Change),
    call(libc::SYS_fsync, "fsync", Object::Descriptor(0), Change),
    call(libc::SYS_fdatasync, "fdatasync", Object::Descriptor(0), Change),
    call(libc::SYS_utimensat, "utimensat", At(0, 1), Change),
    call(libc::SYS_bind, "bind", Address(0), Change),
    call(libc::SYS_mount, "mount", Path(1), Mount),
    call(libc::SYS_umount2, "umount2", Path(0), Mount),
    call(libc::SYS_move_mount, "move_mount", At(2, 3), Mount),
    call(libc::SYS_mount_setattr, "mount_setattr", At(0, 1), Mount),
    call(libc::SYS_setns, "setns", Object::None, Mount),
    call(libc::SYS_unshare, "unshare", Object::None, Mount),
    call(libc::SYS_flock, "flock", Object::Descriptor(0), Lock),
    call(libc::SYS_clone, "clone", Object::None, Spawn),
    call(libc::SYS_clone3, "clone3", Object::None, Spawn),
    call(libc::SYS_fork, "fork", Object::None, Spawn),
    call(libc::SYS_vfork, "vfork", Object::None, Spawn),
    call(libc::SYS_connect, "connect", Address(0), Connect),
    call(libc::SYS_listen, "listen", Object::Descriptor(0), Sure),
    call(libc::SYS_shutdown, "shutdown", Object::Descriptor(0), Sure),
    call(libc::SYS_wait4, "wait4", Object::None, Sure),
    call(libc::SYS_waitid, "waitid", Object::None, Sure),
    call(libc::SYS_kill, "kill", Object::None, Sure),
    call(libc::SYS_pidfd_send_signal, "pidfd_send_signal", Object::None, Sure),
    call(libc::SYS_close, "close", Object::Descriptor(0), Sure),
];

/// Returns the call of this number, if it is a point.
pub fn by_number(number: i64) -> Option<&'static SystemCall> {
    TABLE.iter().find(|call| call.number == number)
}

/// Returns whether a call on an object may wait for a disk. The kernel's own file systems always answer, and a file that
/// was only read is closed at once.
pub fn may_wait(name: &str, object: &str) -> bool {
    let is_file = object.starts_with(['/', '{']);
    is_file
        && name != "close"
        && !["/proc/", "/sys/", "/dev/"].iter().any(|kernels| object.starts_with(kernels))
}

/// The ways in which a call can fail.
#[derive(Debug, Clone, Copy)]
pub struct Failures {
    pub errors: &'static [Errno],
    /// Whether it may transfer fewer bytes than it was asked to.
    pub can_be_short: bool,
    /// Whether it changes something outside of the plugin.
    pub changes: bool,
}

/// Returns how the call of this name can fail on an object. A socket of an asynchronous program is only used while it is
/// ready, and a call that isn't made would never be woken again, so its errors are those of a broken connection: they
/// come from the other side, and other faults make them.
pub fn failures(name: &str, object: &str) -> Option<Failures> {
    let SystemCall { kind, object: acts_on, .. } = *TABLE.iter().find(|call| call.name == name)?;
    let is_of_network = object == OF_NETWORK;
    let is_new = TEMPORARY.into_iter().any(|beginning| object.contains(&format!("/{beginning}")));
    let is_socket = object.starts_with("socket") || object.starts_with("pipe");
    let errors: &[Errno] = match kind {
        // Only what is made needs room.
        Open if is_new => &[EMFILE, ENFILE, EIO, ENOMEM, EACCES, EINTR, ENOSPC, EROFS],
        Open => &[EMFILE, ENFILE, EIO, ENOMEM, EACCES, EINTR],
        Descriptor => &[EMFILE, ENFILE, ENOMEM],
        Look | Read | Write if is_socket => &[],
        // Whoever has a descriptor has got past the permissions.
        Look if matches!(acts_on, Object::Descriptor(_)) => &[EIO, ENOMEM],
        Look => &[EIO, ENOMEM, EACCES],
        Read => &[EIO, EINTR],
        Write => &[ENOSPC, EIO, EINTR],
        Change => &[ENOSPC, EIO, ENOMEM, EACCES, EROFS],
        Mount => &[ENOMEM, EACCES, EIO],
        Lock => &[EINTR, EIO],
        Spawn => &[EAGAIN, ENOMEM],
        Connect if is_of_network => &[EACCES, ETIMEDOUT, ENOMEM],
        // A backlog that is full.
        Connect => &[EACCES, EAGAIN, ENOMEM],
        Sure => &[],
    };
    // The kernel takes what is written to its own files whole or not at all: half of a pid is another process's.
    let is_of_kernel = object.starts_with("/sys/") || object.starts_with("/proc/");
    let can_be_short = (kind == Read || (kind == Write && !is_of_kernel))
        && ["read", "write", "pread64", "pwrite64"].contains(&name);
    let changes = matches!(kind, Write | Change | Mount | Lock | Spawn | Connect)
        || ["kill", "pidfd_send_signal", "wait4", "waitid"].contains(&name);
    Some(Failures { errors, can_be_short, changes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_listed_once() {
        for (place, call) in TABLE.iter().enumerate() {
            let others = &TABLE[place + 1..];
            assert!(
                !others.iter().any(|other| other.number == call.number || other.name == call.name),
                "{call:?}"
            );
        }
    }

    #[test]
    fn a_file_of_the_kernels_is_never_written_by_halves() {
        for (name, object, can_be_short) in [
            ("write", "/sys/fs/cgroup/cpuset/nomad/share/cgroup.procs", false),
            ("write", "{state}/nomad/{task}/config.json", true),
            ("read", "/proc/self/mountinfo", true),
        ] {
            assert_eq!(failures(name, object).unwrap().can_be_short, can_be_short, "{name} {object}");
        }
    }

    #[test]
    fn a_failure_is_one_of_the_injected_errors() {
        for call in TABLE {
            for object in ["/x", "socket", "pipe"] {
                let failures = failures(call.name, object).unwrap();
                assert!(failures.errors.iter().all(|errno| ERRORS.contains(errno)), "{call:?}");
            }
        }
    }
}
