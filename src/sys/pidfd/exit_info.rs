//! The exit status of a process, read from the kernel by its pidfd.
//!
//! Contains `unsafe`, since no crate offers this request (`PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, Linux 6.15), and an
//! ioctl of our own needs it.
//!
//! Source of the facts: Linux `include/uapi/linux/pidfd.h`, `fs/pidfs.c` @ v6.15.
#![expect(unsafe_code, reason = "an ioctl that no crate offers")]

use std::os::fd::BorrowedFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Flag of the exit status. The kernel sets it only if it is requested and known, which it is once the process was
/// waited for.
const EXIT: u64 = 1 << 3;
const GET_INFO: Opcode = opcode::read_write::<Info>(0xFF, 11);

/// The kernel's `struct pidfd_info` in its first form, which every kernel that has the request accepts.
#[derive(Default)]
#[repr(C)]
struct Info {
    mask: u64,
    cgroup_id: u64,
    /// Ids of the process, its parent, users and groups; unused.
    identity: [u32; 11],
    exit_code: i32,
}

/// Returns the wait status of a process that has exited and was waited for; `None` if the kernel doesn't have it.
pub(super) fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the number carries the size of `Info`, which is laid out as the kernel's `struct pidfd_info` of that size;
    // the kernel reads and writes no more than that, and any bits are a valid `Info`. A descriptor of another kind, or
    // an older kernel, refuses the number.
    unsafe { ioctl(pidfd, Updater::<GET_INFO, Info>::new(&mut info)) }.ok()?;
    (info.mask & EXIT != 0).then_some(info.exit_code)
}
