//! Names what a system call acts on, in words that are the same in each run of a scenario.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::libc::user_regs_struct;
use nix::unistd::Pid;

use super::memory::Memory;
use crate::faults::system_calls::{Object, SystemCall, TEMPORARY};

/// Length from which a run of hexadecimal digits is taken for an id or a digest.
const ID_DIGITS: usize = 8;
const UNIX: u8 = 1;
/// Beginnings of the ids of shims that are no container's own.
const SHIMS: [&str; 2] = ["spare-", "shared-"];

pub struct Names {
    pid: Pid,
    memory: Memory,
    /// Peers of the plugin's sockets, by the text of their link in `/proc/<pid>/fd`.
    peers: HashMap<String, String>,
}

impl Names {
    pub fn new(pid: Pid, memory: Memory) -> Self {
        Self { pid, memory, peers: HashMap::new() }
    }

    /// Returns the object of a call that begins. `None` if the call isn't a point because of what it acts on: a
    /// descriptor by which threads wake each other, or the plugin's log.
    pub fn object(&mut self, call: &SystemCall, regs: &user_regs_struct) -> Option<String> {
        let argument = |number| argument(regs, number);
        match call.object {
            Object::None => Some("-".to_owned()),
            Object::Path(path) => Some(self.memory.path(argument(path)).display().to_string()),
            Object::At(directory, path) => {
                let path = self.memory.path(argument(path));
                Some(self.below(descriptor(argument(directory)), &path).display().to_string())
            }
            Object::Descriptor(place) => self.of_descriptor(descriptor(argument(place))),
            Object::Address(socket) => {
                let length = usize::try_from(argument(socket + 2)).unwrap_or(0).min(110);
                let peer = address(&self.memory.bytes(argument(socket + 1), length));
                if let Some(link) = self.link(descriptor(argument(socket))) {
                    self.peers.insert(link.display().to_string(), peer.clone());
                }
                Some(format!("socket {peer}"))
            }
        }
    }

    fn below(&self, directory: i32, path: &Path) -> PathBuf {
        if path.is_absolute() || directory < 0 {
            return path.to_owned();
        }
        let directory = self.link(directory).unwrap_or_default();
        if path.as_os_str().is_empty() { directory } else { directory.join(path) }
    }

    fn link(&self, descriptor: i32) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/fd/{descriptor}", self.pid)).ok()
    }

    fn of_descriptor(&mut self, descriptor: i32) -> Option<String> {
        let link = self.link(descriptor)?.display().to_string();
        let is_named_pipe = || {
            let found = fs::metadata(format!("/proc/{}/fd/{descriptor}", self.pid));
            found.is_ok_and(|found| found.file_type().is_fifo())
        };
        if link.starts_with('/') && is_named_pipe() {
            return Some(format!("pipe {link}"));
        }
        if link.starts_with("pipe:") {
            return (descriptor > 2).then(|| "pipe".to_owned());
        }
        if link.starts_with("socket:") {
            let peer =
                self.peers.entry(link.clone()).or_insert_with(|| bound_path(&link).unwrap_or_default());
            return Some(format!("socket {peer}").trim_end().to_owned());
        }
        (!link.starts_with("anon_inode:[event") && !link.starts_with("anon_inode:[timer")).then_some(link)
    }
}

/// Returns the path that a socket is bound to: for one that was accepted, the path of its listener.
fn bound_path(link: &str) -> Option<String> {
    let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    let line = table.lines().find(|line| line.split_whitespace().nth(6) == Some(inode))?;
    line.split_whitespace().nth(7).map(str::to_owned)
}

/// Returns the argument of this number, counted from 0.
pub fn argument(regs: &user_regs_struct, number: usize) -> u64 {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9][number]
}

/// Returns an argument that is a descriptor, which has 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the kernel takes no more than these bits")]
fn descriptor(argument: u64) -> i32 {
    argument as i32
}

fn address(bytes: &[u8]) -> String {
    if bytes.first() != Some(&UNIX) {
        return "of the network".to_owned();
    }
    let path = &bytes[2..];
    let (at, path) = if path.first() == Some(&0) { ("@", &path[1..]) } else { ("", path) };
    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
    format!("{at}{}", String::from_utf8_lossy(&path[..end]))
}

/// Puts the words of `names` in the place of what differs between runs, and `*` in that of ids, digests and pids.
pub fn in_general(object: &str, names: &[(String, String)]) -> String {
    let mut text = object.to_owned();
    for (name, word) in names {
        text = text.replace(name, word);
    }
    let parts = text.split('/').map(scrubbed);
    parts.collect::<Vec<_>>().join("/")
}

/// Replaces the ids in a part of a path: runs of hexadecimal digits with a decimal one, a number alone, and the letters
/// of a temporary file.
fn scrubbed(part: &str) -> String {
    if let Some(beginning) = TEMPORARY.into_iter().chain(SHIMS).find(|beginning| part.starts_with(beginning))
    {
        return format!("{beginning}*");
    }
    if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
        return "*".to_owned();
    }
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let bytes = part.as_bytes();
    let (mut text, mut at) = (String::new(), 0);
    while at < bytes.len() {
        let run = bytes[at..].iter().take_while(|&&byte| is_hex(byte)).count();
        if run >= ID_DIGITS {
            text.push('*');
            at += run;
            continue;
        }
        let end = part[at..].char_indices().nth(run.max(1)).map_or(part.len(), |(next, _)| at + next);
        text.push_str(&part[at..end]);
        at = end;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_runs_is_replaced() {
        let names =
            [("/tmp/cfm-1/s".to_owned(), "{state}".to_owned()), ("web-77".to_owned(), "{task}".to_owned())];
        for (object, general) in [
            ("/tmp/cfm-1/s/nomad/web-77/config.json", "{state}/nomad/{task}/config.json"),
            ("/proc/1234/stat", "/proc/*/stat"),
            ("/run/containerd/s/0123456789abcdef", "/run/containerd/s/*"),
            ("/x/sha256:00ff00ff00ff-part.ü", "/x/sha256:*-part.ü"),
            ("/x/face.json", "/x/face.json"),
            ("/tmp/cfm-1/s/nomad/web-77/.new-OkAsYS", "{state}/nomad/{task}/.new-*"),
        ] {
            assert_eq!(in_general(object, &names), general);
        }
    }

    #[test]
    fn an_address_is_shown_as_its_path() {
        assert_eq!(address(b"\x01\0/run/x.sock\0\0"), "/run/x.sock");
        assert_eq!(address(b"\x01\0\0abstract"), "@abstract");
        assert_eq!(address(b"\x02\0\x01\xbb"), "of the network");
    }
}
