//! Starts a program in cgroups other than the plugin's, without the wait for all CPUs that a move between cgroups takes:
//! on v2 it is born there (Linux 5.7), on v1 it inherits them from a thread that has entered them.
//!
//! Contains `unsafe`, since no crate offers `clone3` with `CLONE_INTO_CGROUP` by a safe function, and the child of a
//! process with threads may only make system calls until it runs its program.
//!
//! Source of the facts: clone(2), Linux `include/uapi/linux/sched.h`, `kernel/cgroup/cgroup.c`.
#![expect(unsafe_code, reason = "a system call that no crate offers by a safe function")]
#![expect(clippy::disallowed_methods, reason = "opens cgroups, and nothing that a job names")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_char, c_int};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::fs::XattrFlags;

/// Flags of clone3(2) that the libc crate has in a type too small for them.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Exit code of a child that could not run its program, as a shell has it.
const NOT_RUN: c_int = 127;

/// The cgroups of a program, by their directories. They are made where they are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// The one in each hierarchy of v1.
    pub v1: Vec<PathBuf>,
    /// The one in the hierarchy of v2.
    pub v2: Option<PathBuf>,
}

/// A child that was started. It is to be waited for by its pidfd.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// The kernel's `struct clone_args` in the form of Linux 5.7.
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// All that a child needs, made before it exists, since it can't allocate.
struct Prepared {
    /// The program and its arguments, and its variables.
    #[expect(dead_code, reason = "owns what the lists point to")]
    strings: [Vec<CString>; 2],
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    directory: CString,
    /// Descriptors, each with its number in the program.
    files: Vec<(OwnedFd, RawFd)>,
    /// Where the child says why it can't run its program.
    failure: OwnedFd,
    cgroup: Option<File>,
}

/// Does work on a thread that has entered these cgroups of v1, so that its children are there. The work is told of those
/// that could not be made or entered. Blocking: not for an async thread.
///
/// # Errors
/// If no thread can be made, or memory or descriptors are short; the work is not done then.
pub(crate) fn within<T: Send>(
    v1: &[PathBuf],
    work: impl FnOnce(Vec<io::Error>) -> T + Send,
) -> io::Result<T> {
    if v1.is_empty() {
        return Ok(work(Vec::new()));
    }
    let enter = |directory: &PathBuf| {
        once_more(|| {
            std::fs::create_dir_all(directory)?;
            std::fs::write(directory.join("tasks"), "0")
        })
    };
    // A thread of its own, since it can't leave them.
    std::thread::scope(|scope| {
        let run = || {
            let mut failures = Vec::new();
            for directory in v1 {
                match enter(directory) {
                    Ok(()) => {}
                    Err(error) if is_short(&error) => return Err(error),
                    Err(error) => failures.push(naming("enter", directory, &error)),
                }
            }
            Ok(work(failures))
        };
        let thread = std::thread::Builder::new().name("shim-start".to_owned()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Does what is done with a cgroup, and does it again if somebody removes the empty cgroup meanwhile.
fn once_more<T>(work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let is_gone = |error: &io::Error| {
        error.raw_os_error().is_some_and(|code| [libc::ENOENT, libc::ENODEV].contains(&code))
    };
    work().or_else(|error| if is_gone(&error) { work() } else { Err(error) })
}

/// Starts a command in a cgroup of v2, as the leader of its process group. Of the command count the program, which is an
/// absolute path, its arguments, its directory and the variables that it sets: nothing else is inherited but `files`, each
/// with its number in the program, 0 to 2 among them. Blocking: not for an async thread.
///
/// # Errors
/// Says whether it is for the cgroup; nothing runs then.
pub(crate) fn spawn(command: &Command, files: &[(OwnedFd, RawFd)], v2: &Path) -> Result<Spawned, Failure> {
    let open = || {
        if !v2.exists() {
            std::fs::create_dir_all(v2)?;
            // A daemon that ends cgroups for want of memory would take all shims at once, and each task with its own.
            let _ = rustix::fs::setxattr(v2, "user.oomd_avoid", b"1", XattrFlags::empty());
        }
        File::open(v2)
    };
    let mut is_gone = false;
    loop {
        let cgroup = once_more(open).map_err(|error| match is_short(&error) {
            true => Failure::Command(error),
            false => Failure::Cgroup(naming("open", v2, &error)),
        })?;
        match spawn_with(command, files, Some(cgroup)) {
            Err(Failure::Cgroup(error)) if error.raw_os_error() == Some(libc::ENODEV) && !is_gone => {
                is_gone = true;
            }
            Err(Failure::Cgroup(error)) => {
                let step = "make a process by clone3, which takes Linux 5.7 and no filter of it, in";
                return Err(Failure::Cgroup(naming(step, v2, &error)));
            }
            spawned => return spawned,
        }
    }
}

/// Why a child was not started.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The cgroup can't be had. In that of this thread the child may be started.
    Cgroup(io::Error),
    /// The program can't be run, or memory, descriptors or processes are short.
    Command(io::Error),
}

/// Returns whether memory, descriptors or processes are short, which is nothing of the cgroup's.
fn is_short(error: &io::Error) -> bool {
    let short = [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EINTR, libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| short.contains(&code))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Command(error)
    }
}

fn naming(step: &str, directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{step} {}: {error}", directory.display()))
}

/// Starts a command in a cgroup, or in that of this thread.
fn spawn_with(
    command: &Command,
    files: &[(OwnedFd, RawFd)],
    cgroup: Option<File>,
) -> Result<Spawned, Failure> {
    if !Path::new(command.get_program()).is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the program is no absolute path").into());
    }
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let words: Vec<CString> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(text)
        .collect::<io::Result<_>>()?;
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let variables: Vec<CString> = variables
        .map(|(name, value)| {
            let variable: OsString = [name, OsStr::new("="), value].into_iter().collect();
            text(&variable)
        })
        .collect::<io::Result<_>>()?;
    let ended = |strings: &[CString]| {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
    };
    // Above all numbers in the program, so that none is overwritten before it is used.
    let above = files.iter().map(|(_, number)| number + 1).max().unwrap_or(0);
    let moved = |file: &OwnedFd| -> io::Result<OwnedFd> {
        let number = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(above))?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let prepared = Prepared {
        argv: ended(&words),
        envp: ended(&variables),
        strings: [words, variables],
        directory: text(command.get_current_dir().unwrap_or(Path::new("/")).as_os_str())?,
        files: files.iter().map(|(file, number)| Ok((moved(file)?, *number))).collect::<io::Result<_>>()?,
        failure: moved(&writer)?,
        cgroup,
    };
    drop(writer);
    let is_placed = prepared.cgroup.is_some();
    let spawned = clone(&prepared).map_err(|error| {
        let is_for_cgroup = is_placed && !is_short(&error);
        if is_for_cgroup { Failure::Cgroup(error) } else { Failure::Command(error) }
    })?;
    drop(prepared);
    let mut errno = [0; size_of::<c_int>()];
    // Without an error the pipe ends as the program runs. Whatever else fails, the child is there, and the caller's.
    if File::from(reader).read_exact(&mut errno).is_err() {
        return Ok(spawned);
    }
    let _ = wait(&spawned.pidfd);
    Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno)).into())
}

/// Waits for the end of a child, and takes its exit status from the kernel. Blocking: not for an async thread.
///
/// # Errors
/// If it is no child of this process, or was waited for.
pub(crate) fn wait(pidfd: &impl AsFd) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = waited(pidfd, WaitPidFlag::WEXITED)? {
            return Ok(status);
        }
    }
}

/// Takes the exit status of a child that has ended; `None` of one that has not.
///
/// # Errors
/// As [`wait`].
pub(crate) fn try_wait(pidfd: &impl AsFd) -> io::Result<Option<ExitStatus>> {
    waited(pidfd, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
}

fn waited(pidfd: &impl AsFd, flags: WaitPidFlag) -> io::Result<Option<ExitStatus>> {
    let status = match waitid(Id::PIDFd(pidfd.as_fd()), flags) {
        Ok(WaitStatus::Exited(_, code)) => (code & 0xff) << 8,
        Ok(WaitStatus::Signaled(_, signal, dumped)) => signal as i32 | i32::from(dumped) << 7,
        Ok(_) | Err(nix::Error::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(ExitStatus::from_raw(status)))
}

fn clone(prepared: &Prepared) -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    let into = prepared.cgroup.as_ref().map(|cgroup| cgroup.as_raw_fd());
    let arguments = CloneArgs {
        flags: CLONE_PIDFD | CLONE_CLEAR_SIGHAND | if into.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: into.unwrap_or(0) as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments are of the kernel's form and of the size that is told, and outlive the call. Without
    // CLONE_VM the child has a copy of all memory and goes on here with a stack of its own, as after fork(2).
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&arguments), size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: this is the child.
        0 => unsafe { become_program(prepared) },
        pid => Ok(Spawned {
            pid: i32::try_from(pid).map_err(io::Error::other)?,
            // SAFETY: the kernel has made this descriptor for the caller, who is the only one to know it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Runs the program, or tells why it can't, and exits.
///
/// # Safety
/// To be called in a new process alone. Another thread of its parent may have held any lock when it was made: nothing here
/// allocates, unwinds or takes a lock.
unsafe fn become_program(prepared: &Prepared) -> ! {
    // SAFETY: the calls are async-signal-safe, and all pointers are of strings and lists that end with a null, which
    // `prepared` owns; `argv` has the program at least.
    unsafe {
        let is_ready = libc::setpgid(0, 0) == 0
            && libc::chdir(prepared.directory.as_ptr()) == 0
            && prepared.files.iter().all(|(file, number)| libc::dup2(file.as_raw_fd(), *number) != -1);
        if is_ready {
            // Ignored in this process, which is inherited.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::execve(*prepared.argv.as_ptr(), prepared.argv.as_ptr(), prepared.envp.as_ptr());
        }
        let errno: c_int = *libc::__errno_location();
        libc::write(prepared.failure.as_raw_fd(), std::ptr::from_ref(&errno).cast(), size_of::<c_int>());
        libc::_exit(NOT_RUN)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::sys) fn spawn_here(command: &Command) -> Spawned {
        spawn_with(command, &[], None).unwrap()
    }

    #[test]
    fn work_is_told_of_cgroups_that_can_t_be_had_and_not_done_for_want_of_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let (there, file) = (directory.path().join("there"), directory.path().join("file"));
        std::fs::write(&file, "").unwrap();
        let failures = within(&[there.clone(), file.join("below")], |failures| failures).unwrap();
        assert_eq!(std::fs::read_to_string(there.join("tasks")).unwrap(), "0");
        assert!(failures.len() == 1 && failures[0].to_string().contains("file/below"), "{failures:?}");
        assert!(is_short(&io::Error::from_raw_os_error(libc::EMFILE)) && !is_short(&failures[0]));
    }

    #[test]
    fn what_is_gone_is_tried_once_more() {
        let tries = std::cell::Cell::new(0);
        let of = |code: i32| {
            tries.set(0);
            let failed = once_more(|| -> io::Result<()> {
                tries.set(tries.get() + 1);
                Err(io::Error::from_raw_os_error(code))
            });
            (failed.is_err(), tries.get())
        };
        assert_eq!((of(libc::ENODEV), of(libc::EACCES)), ((true, 2), (true, 1)));
    }

    /// Runs a script with these files, in the cgroup of this test, and returns its exit status.
    fn run(script: &str, directory: &Path, files: Vec<(File, RawFd)>) -> io::Result<ExitStatus> {
        #[expect(clippy::disallowed_methods, reason = "its files are given")]
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "name"]).current_dir(directory).env_clear().env("WORD", "a b");
        let null = File::open("/dev/null")?;
        let standard = [0, 1, 2].map(|number| Ok((null.try_clone()?.into(), number)));
        let mut all: Vec<(OwnedFd, RawFd)> = standard.into_iter().collect::<io::Result<_>>()?;
        for (file, number) in files {
            all.retain(|(_, other)| *other != number);
            all.push((file.into(), number));
        }
        match spawn_with(&command, &all, None) {
            Ok(spawned) => wait(&spawned.pidfd),
            Err(Failure::Cgroup(error) | Failure::Command(error)) => Err(error),
        }
    }

    #[test]
    fn a_child_has_what_it_is_given_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let script = "echo \"$0 $WORD $(pwd) $(/bin/cat <&7)\"; /bin/grep SigIgn /proc/self/status; \
                      /bin/readlink /proc/self/fd/* | /bin/grep -c \"^$(pwd)/\"; \
                      test $$ = $(/usr/bin/cut -d ' ' -f 5 /proc/self/stat) && exit 5";
        std::fs::write(directory.path().join("in"), "kept").unwrap();
        let files =
            vec![(File::create(&out).unwrap(), 1), (File::open(directory.path().join("in")).unwrap(), 7)];
        let status = run(script, directory.path(), files).unwrap();
        assert_eq!(status.code(), Some(5), "not the leader of a process group");
        let text = std::fs::read_to_string(&out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("name a b {} kept", directory.path().display()));
        let ignored = u64::from_str_radix(lines[1].rsplit('\t').next().unwrap(), 16).unwrap();
        assert_eq!(ignored & 1 << (libc::SIGPIPE - 1), 0);
        // That of `in` alone: within the pipe stdout is another.
        assert_eq!(lines[2], "1", "{text}");
    }

    #[test]
    fn a_signal_is_a_childs_exit_status() {
        let status = run("kill -9 $$", Path::new("/"), Vec::new()).unwrap();
        assert_eq!((status.code(), status.signal()), (None, Some(9)));
    }

    #[test]
    fn what_can_not_be_run_is_an_error() {
        #[expect(clippy::disallowed_methods, reason = "never run")]
        let of = |program: &str| Command::new(program);
        let error = |program| match spawn_with(&of(program), &[], None) {
            Err(Failure::Command(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(error("/no/such/program").raw_os_error(), Some(libc::ENOENT));
        assert_eq!(error("sh").kind(), io::ErrorKind::InvalidInput);
        let error = run("true", Path::new("/no/such/directory"), Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let directory = tempfile::tempdir().unwrap();
        let failure = spawn(&of("/bin/true"), &[], directory.path()).unwrap_err();
        assert!(matches!(failure, Failure::Cgroup(_)), "no cgroup: {failure:?}");
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let failure = spawn(&of("/bin/true"), &[], &file.join("cgroup")).unwrap_err();
        let is_named = |error: &io::Error| error.to_string().contains("file/cgroup: ");
        assert!(matches!(&failure, Failure::Cgroup(error) if is_named(error)), "{failure:?}");
    }

    #[test]
    fn a_thread_enters_before_its_work() {
        let directory = tempfile::tempdir().unwrap();
        let v1 = ["a/shims", "b/shims"].map(|name| directory.path().join(name));
        let own = std::thread::current().id();
        let entering = within(&v1, |failures| {
            assert!(failures.is_empty(), "{failures:?}");
            assert_ne!(std::thread::current().id(), own);
            for cgroup in &v1 {
                assert_eq!(std::fs::read_to_string(cgroup.join("tasks")).unwrap(), "0");
            }
        });
        entering.unwrap();
        within(&[], |_| assert_eq!(std::thread::current().id(), own)).unwrap();
    }

    #[test]
    fn a_cgroup_that_can_not_be_entered_keeps_from_no_other() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let v1 = ["file/shims", "memory/shims"].map(|name| directory.path().join(name));
        let failures = within(&v1, |failures| failures).unwrap();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].to_string().contains("file/shims: "), "{failures:?}");
        assert_eq!(std::fs::read_to_string(v1[1].join("tasks")).unwrap(), "0");
    }
}
