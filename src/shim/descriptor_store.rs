//! The descriptors that a shared shim holds open for its tasks, such as the read ends of their log pipes.
//!
//! A process can be given descriptors only when it is launched, and a shared shim runs before its tasks are known. So it
//! is launched with both ends of a socket, in which descriptors wait that were sent and that nobody receives: they are
//! open for as long as the socket is, and the shim, which knows nothing of it, ends with the last of its tasks. A later
//! plugin has the socket's ends from the shim's process.
//!
//! Source of the facts: `unix(7)` (SCM_RIGHTS, MSG_PEEK), `pidfd_getfd(2)`.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, ioctl_fionread};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force, socket_domain};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::{Bundle, Error, FIRST_INHERITED_FD};
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::ProcessId;

/// Length of a message: the owner's name, then zeros, and in the last byte the number of descriptors.
const MESSAGE_BYTES: usize = 128;
const NAME_BYTES: usize = MESSAGE_BYTES - 1;
/// Maximum number of descriptors of one owner.
const MAX_DESCRIPTORS: usize = 8;
/// Size of the socket's buffer, which has room for thousands of messages.
const BUFFER_BYTES: usize = 8 << 20;

/// A message, with the name of its owner.
type Message = [u8; MESSAGE_BYTES];

/// An owner's descriptors.
type Held = (String, Vec<OwnedFd>);

/// The store of one shim.
#[derive(Debug)]
pub(crate) struct DescriptorStore {
    sender: OwnedFd,
    receiver: OwnedFd,
    /// Taken by whoever walks through the messages. What he could not put back, since there was no room.
    walking: Mutex<Vec<Held>>,
    /// Owners whose descriptors are to be removed.
    released: Mutex<BTreeSet<String>>,
}

impl DescriptorStore {
    /// Makes an empty store.
    ///
    /// # Errors
    /// For want of descriptors or memory.
    fn new() -> io::Result<Self> {
        let (sender, receiver) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Without the right to more, there is room for some hundred messages.
        if set_socket_send_buffer_size_force(&sender, BUFFER_BYTES).is_err() {
            let _ = set_socket_send_buffer_size(&sender, BUFFER_BYTES);
        }
        Ok(Self::over([sender, receiver]))
    }

    fn over([sender, receiver]: [OwnedFd; 2]) -> Self {
        Self { sender, receiver, walking: Mutex::default(), released: Mutex::default() }
    }

    /// Makes a store for the shim of a directory, with copies of the socket's ends, which the shim is to inherit before any
    /// other descriptor.
    ///
    /// # Errors
    /// For want of descriptors or memory; names the directory.
    pub(super) fn new_in(bundle: &Bundle) -> Result<(Vec<OwnedFd>, Self), Error> {
        let with_ends =
            |store: Self| Ok((vec![store.sender.try_clone()?, store.receiver.try_clone()?], store));
        let made = Self::new().and_then(with_ends);
        made.map_err(Error::file("make a store of descriptors for", bundle.directory()))
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

    /// Adds descriptors of an owner, each for as long as the owner has others here or the shim lives. Waits for nobody.
    ///
    /// # Errors
    /// When there are too many, or there is no room for more.
    pub(crate) fn add(&self, owner: &str, descriptors: &[OwnedFd]) -> io::Result<()> {
        if descriptors.is_empty() {
            return Ok(());
        }
        if descriptors.len() > MAX_DESCRIPTORS || owner.len() > NAME_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Those who were here before come first.
        if self.walking.try_lock().is_ok_and(|waiting| !waiting.is_empty()) {
            return Err(Errno::AGAIN.into());
        }
        Ok(self.send(owner, descriptors)?)
    }

    /// Removes the descriptors of an owner. Where somebody is at it for another one, he does it, and the call returns at
    /// once. Blocking: not for an async thread.
    ///
    /// # Errors
    /// The kernel's. What was not come to is kept until the next release.
    pub(crate) fn release(&self, owner: &str) -> io::Result<()> {
        lock(&self.released).insert(owner.to_owned());
        self.release_rest()
    }

    /// Removes the descriptors that a release has not come to. Blocking: not for an async thread.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub(crate) fn release_rest(&self) -> io::Result<()> {
        // Looked at once more after each walk: who has just come has seen that somebody walks, and has gone.
        while !lock(&self.released).is_empty() {
            let Ok(mut walk) = self.walking.try_lock() else { return Ok(()) };
            let released = std::mem::take(&mut *lock(&self.released));
            if let Err(error) = self.walk(&mut walk, |owner| !released.contains(owner)) {
                lock(&self.released).extend(released);
                return Err(error);
            }
            drop(walk);
        }
        Ok(())
    }

    /// Removes the descriptors of all owners for which `is_kept` is false. Returns false, and does nothing, while somebody
    /// else removes some. Blocking: not for an async thread.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub(crate) fn retain(&self, is_kept: impl Fn(&str) -> bool) -> io::Result<bool> {
        let Ok(mut walk) = self.walking.try_lock() else { return Ok(false) };
        self.walk(&mut walk, is_kept)?;
        drop(walk);
        // Who has come meanwhile has gone.
        self.release_rest().map(|()| true)
    }

    /// Takes each message that is there at the beginning, and puts those to be kept at the end. A plugin that dies in the
    /// middle leaves each of these at least once.
    fn walk(&self, waiting: &mut Vec<Held>, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        waiting.retain(|(owner, descriptors)| is_kept(owner) && self.send(owner, descriptors).is_err());
        let count = ioctl_fionread(&self.receiver)? / MESSAGE_BYTES as u64;
        for _ in 0..count {
            let (head, descriptors) = match self.receive(RecvFlags::PEEK) {
                Err(Errno::AGAIN) => return Ok(()),
                seen => seen?,
            };
            let owner = owner_of(&head);
            // The copy comes first, so that the owner always has one.
            let is_kept = is_kept(owner);
            let is_copied = is_kept && self.send(owner, &descriptors).is_ok();
            drop(self.receive(RecvFlags::empty())?);
            // There was no room, and now there is, unless another one was faster.
            if is_kept
                && !is_copied
                && let Err(error) = self.send(owner, &descriptors)
            {
                waiting.push((owner.to_owned(), descriptors));
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn send(&self, owner: &str, descriptors: &[OwnedFd]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(Errno::INVAL);
        }
        let message = message(owner, descriptors.len());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.sender, &[IoSlice::new(&message)], &mut control, flags)?;
        if sent == MESSAGE_BYTES { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    /// Receives a message with all of its descriptors. A process that can have no more descriptors gets the message without
    /// them: that is an error, and a message that was only looked at is still there then.
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
        let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
        let is_whole = usize::from(message[NAME_BYTES]) == descriptors.len();
        if how.contains(RecvFlags::PEEK) && (!is_whole || received.flags.contains(ReturnFlags::CTRUNC)) {
            return Err(Errno::MFILE);
        }
        Ok((message, descriptors))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(owner: &str, descriptors: usize) -> Message {
    let mut message = [0; MESSAGE_BYTES];
    message[..owner.len()].copy_from_slice(owner.as_bytes());
    message[NAME_BYTES] = u8::try_from(descriptors).unwrap_or(u8::MAX);
    message
}

fn owner_of(message: &Message) -> &str {
    let end = message.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    std::str::from_utf8(&message[..end.min(NAME_BYTES)]).unwrap_or_default()
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
        store.release("web").unwrap();
        assert_eq!(open(), ["db"]);
        store.release("other").unwrap();
        assert_eq!(open(), ["db"]);
        store.retain(|owner| owner != "db").unwrap();
        assert_eq!(open(), [""; 0]);
        store.retain(|_| true).unwrap();
        assert!(store.add(&"x".repeat(MESSAGE_BYTES), &[pipe().0]).is_err());
    }

    #[test]
    fn a_walk_that_was_cut_off_leaves_all_and_the_next_one_is_whole() {
        let store = DescriptorStore::new().unwrap();
        let (writer, mut reader) = pipe();
        let held = [writer];
        for owner in ["web", "db", "cache"] {
            store.add(owner, &held).unwrap();
        }
        drop(held);
        // As by a plugin that died between the copy and the removal of the first.
        let (_, descriptors) = store.receive(RecvFlags::PEEK).unwrap();
        store.send("web", &descriptors).unwrap();
        drop(descriptors);
        for owner in ["db", "cache"] {
            store.release(owner).unwrap();
            assert!(is_open(&mut reader), "after {owner}");
        }
        store.release("web").unwrap();
        assert!(!is_open(&mut reader));
        assert_eq!(ioctl_fionread(&store.receiver).unwrap(), 0);
    }

    #[test]
    fn a_message_without_its_descriptors_stays() {
        let store = DescriptorStore::new().unwrap();
        let (writer, mut reader) = pipe();
        let descriptors = [writer];
        store.add("web", &descriptors).unwrap();
        drop(descriptors);
        // As the kernel gives it to a process that can have no more descriptors.
        let cut = message("db", 2);
        let flags = SendFlags::DONTWAIT;
        sendmsg(&store.sender, &[IoSlice::new(&cut)], &mut SendAncillaryBuffer::default(), flags).unwrap();
        assert!(store.retain(|_| false).is_err());
        assert!(!is_open(&mut reader), "what came before it was removed");
        assert_eq!(ioctl_fionread(&store.receiver).unwrap(), MESSAGE_BYTES as u64);
        assert!(store.retain(|_| true).is_err());
    }

    #[test]
    fn a_full_store_can_be_emptied() {
        let store = DescriptorStore::new().unwrap();
        let (writer, mut reader) = pipe();
        let descriptors = [writer];
        while store.add("web", &descriptors).is_ok() {}
        drop(descriptors);
        store.release("db").unwrap();
        assert!(is_open(&mut reader));
        assert!(store.add("db", &[pipe().0]).is_err(), "something was removed");
        store.release("web").unwrap();
        assert!(!is_open(&mut reader));
        store.add("db", &[pipe().0]).unwrap();
    }

    #[test]
    fn what_finds_no_room_waits_and_comes_before_others() {
        let store = DescriptorStore::new().unwrap();
        let (writer, mut reader) = pipe();
        store.walking.lock().unwrap().push(("web".to_owned(), vec![writer]));
        assert!(store.add("db", &[pipe().0]).is_err());
        store.release("db").unwrap();
        assert!(is_open(&mut reader) && store.walking.lock().unwrap().is_empty());
        store.add("db", &[pipe().0]).unwrap();
        store.release("web").unwrap();
        assert!(!is_open(&mut reader));
    }

    #[test]
    fn who_comes_while_another_one_walks_has_him_do_it() {
        let store = DescriptorStore::new().unwrap();
        let (writer, mut reader) = pipe();
        store.add("web", &[writer]).unwrap();
        let walk = store.walking.lock().unwrap();
        store.release("web").unwrap();
        assert!(!store.retain(|_| false).unwrap());
        assert!(is_open(&mut reader));
        drop(walk);
        store.release("other").unwrap();
        assert!(!is_open(&mut reader));
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
