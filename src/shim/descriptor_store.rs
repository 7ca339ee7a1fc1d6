//! The descriptors that a shared shim holds open for its tasks, such as the read ends of their log pipes.
//!
//! A process can be given descriptors only when it is launched, and a shared shim runs before its tasks are known. So it
//! is launched with both ends of a socket, in which descriptors wait that were sent and that nobody receives: they are
//! open for as long as the socket is, and the shim, which knows nothing of it, ends with the last of its tasks. A later
//! plugin has the socket's ends from the shim's process.
//!
//! Source of the facts: `unix(7)` (SCM_RIGHTS, MSG_PEEK), `pidfd_getfd(2)`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force, socket_domain};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::FIRST_INHERITED_FD;
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::ProcessId;

/// Length of a message: the owner's name, then zeros.
const MESSAGE_BYTES: usize = 128;
/// Maximum number of descriptors of one owner.
const MAX_DESCRIPTORS: usize = 8;
/// Size of the socket's buffer, which has room for thousands of messages.
const BUFFER_BYTES: usize = 8 << 20;
/// Name of the message that marks where a walk through the messages began. No owner has such a name.
const MARK: &str = ".";

/// A message, with the name of its owner.
type Message = [u8; MESSAGE_BYTES];

/// The store of one shim. Nothing here waits for anybody.
#[derive(Debug)]
pub(crate) struct DescriptorStore {
    sender: OwnedFd,
    receiver: OwnedFd,
    turn: Mutex<()>,
}

impl DescriptorStore {
    /// Makes an empty store, for a shim that is to be launched with [`Self::ends`].
    ///
    /// # Errors
    /// For want of descriptors or memory.
    pub(super) fn new() -> io::Result<Self> {
        let (sender, receiver) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Without the right to more, there is room for some hundred messages.
        if set_socket_send_buffer_size_force(&sender, BUFFER_BYTES).is_err() {
            let _ = set_socket_send_buffer_size(&sender, BUFFER_BYTES);
        }
        Ok(Self::over([sender, receiver]))
    }

    fn over([sender, receiver]: [OwnedFd; 2]) -> Self {
        Self { sender, receiver, turn: Mutex::default() }
    }

    /// Returns copies of the socket's ends, which the shim is to inherit before any other descriptor.
    ///
    /// # Errors
    /// For want of descriptors.
    pub(super) fn ends(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.sender.try_clone()?, self.receiver.try_clone()?])
    }

    /// Opens the store of a shim that was launched with one by an earlier plugin.
    ///
    /// # Errors
    /// When the shim has ended, the kernel has no `pidfd_getfd` (before Linux 5.6) or forbids it, or the descriptors are no
    /// store's.
    pub(super) fn of(shim: ProcessId) -> io::Result<Self> {
        let process = ProcessHandle::open(shim)?.ok_or(io::ErrorKind::NotFound)?;
        let sender = process.descriptor(FIRST_INHERITED_FD)?;
        let receiver = process.descriptor(FIRST_INHERITED_FD + 1)?;
        for end in [&sender, &receiver] {
            if socket_domain(end)? != AddressFamily::UNIX {
                return Err(io::Error::other("its descriptor is of another socket"));
            }
        }
        Ok(Self::over([sender, receiver]))
    }

    /// Adds descriptors of an owner, each for as long as the owner has others here or the shim lives.
    ///
    /// # Errors
    /// When there are too many, or there is no room for more.
    pub(crate) fn add(&self, owner: &str, descriptors: &[OwnedFd]) -> io::Result<()> {
        if descriptors.is_empty() {
            return Ok(());
        }
        if descriptors.len() > MAX_DESCRIPTORS || owner.len() > MESSAGE_BYTES || owner == MARK {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.send(&message(owner), descriptors)?)
    }

    /// Removes the descriptors of all owners for which `is_kept` is false. A plugin that dies in the middle leaves each of
    /// the others at least once.
    ///
    /// # Errors
    /// The kernel's. What was not come to is kept.
    pub(crate) fn retain(&self, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_begun = false;
        loop {
            let (head, descriptors) = match self.receive(RecvFlags::PEEK) {
                Err(Errno::AGAIN) => return Ok(()),
                seen => seen?,
            };
            let owner = owner_of(&head);
            if owner == MARK {
                // One that isn't this walk's was left by a plugin that died.
                drop(self.receive(RecvFlags::empty())?);
                if is_begun {
                    return Ok(());
                }
                continue;
            }
            if !is_begun {
                self.send(&message(MARK), &[])?;
                is_begun = true;
            }
            // The copy comes first, so that the owner always has one.
            let is_copied = is_kept(owner) && self.send(&head, &descriptors).is_ok();
            drop(self.receive(RecvFlags::empty())?);
            if !is_copied && is_kept(owner) {
                self.send(&head, &descriptors)?;
            }
        }
    }

    fn send(&self, message: &Message, descriptors: &[OwnedFd]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(Errno::INVAL);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.sender, &[IoSlice::new(message)], &mut control, flags)?;
        if sent == MESSAGE_BYTES { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    fn receive(&self, how: RecvFlags) -> Result<(Message, Vec<OwnedFd>), Errno> {
        let mut message = [0; MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = how | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.receiver, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
        if received.bytes != MESSAGE_BYTES {
            return Err(Errno::MSGSIZE);
        }
        let descriptors = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        Ok((message, descriptors.flatten().collect()))
    }
}

fn message(owner: &str) -> Message {
    let mut message = [0; MESSAGE_BYTES];
    message[..owner.len()].copy_from_slice(owner.as_bytes());
    message
}

fn owner_of(message: &Message) -> &str {
    let end = message.iter().position(|byte| *byte == 0).unwrap_or(MESSAGE_BYTES);
    std::str::from_utf8(&message[..end]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Returns a pipe's writer, and its reader, which does not wait.
    fn pipe() -> (OwnedFd, std::fs::File) {
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
        (writer, reader.into())
    }

    fn is_open(reader: &mut std::fs::File) -> bool {
        reader.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn descriptors_are_open_until_their_owner_is_removed() {
        let store = DescriptorStore::new().unwrap();
        let mut readers: Vec<_> = ["web", "db", "web"]
            .into_iter()
            .map(|owner| {
                let (writer, reader) = pipe();
                store.add(owner, &[writer]).unwrap();
                (owner, reader)
            })
            .collect();
        let mut open = || -> Vec<&str> {
            readers.iter_mut().filter_map(|(owner, reader)| is_open(reader).then_some(*owner)).collect()
        };
        assert_eq!(open(), ["web", "db", "web"]);
        store.retain(|_| true).unwrap();
        assert_eq!(open(), ["web", "db", "web"]);
        // As by a plugin that died in the middle of a walk.
        store.send(&message(MARK), &[]).unwrap();
        store.retain(|owner| owner != "web").unwrap();
        assert_eq!(open(), ["db"]);
        store.retain(|owner| owner != "db").unwrap();
        assert_eq!(open(), [""; 0]);
        store.retain(|_| true).unwrap();
        assert!(store.add(MARK, &[pipe().0]).is_err());
        drop(store);
    }

    #[test]
    fn there_is_room_for_the_tasks_of_a_node() {
        let store = DescriptorStore::new().unwrap();
        let (writer, mut reader) = pipe();
        let descriptors = [writer];
        let added = (0..1000).take_while(|n| store.add(&format!("task-{n}"), &descriptors).is_ok()).count();
        drop(descriptors);
        assert!(added > 200, "{added}");
        assert!(is_open(&mut reader));
        store.retain(|owner| owner == "task-7").unwrap();
        assert!(is_open(&mut reader));
        store.retain(|_| false).unwrap();
        assert!(!is_open(&mut reader));
    }
}
