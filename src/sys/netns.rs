//! Network namespaces that are bound to a file: creation, pinning, lookup of addresses, removal. Knows nothing of
//! tasks, nor of what gives such a namespace its interfaces.
//!
//! Only a thread can leave its namespace, and it would have to return before anything else runs on it. So each of these
//! operations runs on a thread of its own, which ends with it. The file is in the mount namespace of all processes, so
//! that whoever starts a container finds it.
//!
//! Source of the facts: network_namespaces(7), rtnetlink(7), netlink(7).

#![expect(
    clippy::disallowed_methods,
    reason = "opens namespaces that the driver has bound in the state directory, which only root can reach, and what the \
              kernel makes below /proc"
)]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::mount::{MsFlags, mount};
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, send, socket,
};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::sync::oneshot;

use crate::sys::mount_table;
use crate::sys::procfs::is_of_no_process;

/// Maximum time for the kernel: it creates and removes namespaces one at a time, and removes many slowly.
const LIMIT: Duration = Duration::from_secs(60);
/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// Maximum size of a list of routes that is read, and maximum number of gateways that are taken from it.
const ROUTES_LIMIT_BYTES: u64 = 256 * 1024;
const GATEWAYS_LIMIT: usize = 8;
/// Directory of the kernel's parameters.
const PARAMETERS: &str = "/proc/sys";
/// The routes of the calling thread's namespace, IPv4 and IPv6.
const ROUTES: &str = "/proc/thread-self/net/route";
const ROUTES_IPV6: &str = "/proc/thread-self/net/ipv6_route";
/// Flags of a route that is in use and leads to another host (`RTF_UP`, `RTF_GATEWAY`).
const TO_GATEWAY: u32 = 1 | 2;
/// Addresses of no network on earth, which only a default route leads to (RFC 5737, RFC 3849).
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ELSEWHERE_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The kernel's index of the interface `lo`, the same in each namespace.
const LOOPBACK_INDEX: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    #[error("can't {doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("can't keep a network namespace at {0}: the descriptor is not a network namespace")]
    Other(PathBuf),
    #[error("a thread that handled a network namespace ended early")]
    Lost,
}

impl NetnsError {
    fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source: source.into() }
    }
}

/// Creates a namespace with its loopback interface up, bound to `path`, which must not exist yet.
///
/// # Errors
/// Names the step that failed. Nothing is left over then.
pub(crate) async fn create(path: &Path) -> Result<(), NetnsError> {
    create_with(path, Vec::new()).await
}

/// Creates a namespace as [`create`] does, and sets kernel parameters in it, by name. One that can't be set, as where
/// `/proc/sys` is read-only for the plugin, has the kernel's default and is told in the log.
///
/// # Errors
/// Names the step that failed. Nothing is left over then.
pub(crate) async fn create_with(
    path: &Path,
    parameters: Vec<(&'static str, &'static str)>,
) -> Result<(), NetnsError> {
    let path = path.to_owned();
    let unwanted = path.clone();
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::io("make a network namespace for", &path))?;
        raise_loopback().map_err(NetnsError::io("raise the loopback interface of", &path))?;
        for (name, value) in parameters {
            // The kernel shows each thread the parameters of its own namespace.
            if let Err(error) = fs::write(Path::new(PARAMETERS).join(name.replace('.', "/")), value) {
                tracing::warn!(parameter = name, %error, "can't set a kernel parameter in the network namespace");
            }
        }
        keep_own(&path)
    };
    on_thread_or(make, move |()| drop(unbind(&unwanted))).await
}

/// Binds an existing namespace, such as `/proc/<pid>/ns/net`, to `path` as well.
///
/// # Errors
/// Names the step that failed, which may be that the descriptor is not of a network namespace.
pub(crate) async fn pin(namespace: OwnedFd, path: &Path) -> Result<(), NetnsError> {
    let path = path.to_owned();
    let unwanted = path.clone();
    let keep = move || match setns(&namespace, CloneFlags::CLONE_NEWNET) {
        Ok(()) => keep_own(&path),
        Err(Errno::EINVAL) => Err(NetnsError::Other(path)),
        Err(error) => Err(NetnsError::io("enter the network namespace for", &path)(error)),
    };
    on_thread_or(keep, move |()| drop(unbind(&unwanted))).await
}

/// Removes the file at `path`, whether or not a namespace is bound to it. The namespace ends with its last process.
///
/// # Errors
/// Names the step that failed.
pub(crate) async fn remove(path: &Path) -> Result<(), NetnsError> {
    let path = path.to_owned();
    on_thread(move || unbind(&path)).await
}

fn unbind(path: &Path) -> Result<(), NetnsError> {
    match mount_table::unmount(path) {
        Ok(()) | Err(Errno::ENOTDIR) => {}
        Err(error) => return Err(NetnsError::io("unmount", path)(error)),
    }
    match fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(NetnsError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Returns true if a namespace is bound to `path`.
pub(crate) fn is_bound(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Returns true if a process is in the namespace at `path`. Blocks for as long as all processes take to look at.
///
/// # Errors
/// If none is found, and a process or the namespace can't be looked at.
pub(crate) fn has_process(path: &Path) -> io::Result<bool> {
    let number = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let namespace = number(path)?;
    let mut unseen = None;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_process {
            continue;
        }
        match number(&entry.path().join("ns/net")) {
            Ok(other) if other == namespace => return Ok(true),
            Ok(_) => {}
            Err(error) if is_of_no_process(&error) => {}
            // It has more rights than the driver, as no task has.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => unseen = Some(error),
        }
    }
    unseen.map_or(Ok(false), Err)
}

/// Returns the addresses by which others reach a namespace, IPv4 first.
///
/// # Errors
/// Names the namespace that can't be entered or read.
pub(crate) async fn addresses(path: &Path) -> Result<Vec<IpAddr>, NetnsError> {
    let path = path.to_owned();
    on_thread(move || {
        let namespace = File::open(&path).map_err(NetnsError::io("open", &path))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(NetnsError::io("enter the network namespace", &path))?;
        own_addresses().map_err(NetnsError::io("list the addresses of", &path))
    })
    .await
}

/// Returns all addresses of the plugin's own namespace, the host's, each with the name of its interface. Blocking: not for
/// an async thread.
///
/// # Errors
/// If the kernel doesn't list them.
pub(crate) fn hosts_interfaces() -> io::Result<Vec<(String, IpAddr)>> {
    let with_name = |interface: InterfaceAddress| {
        let address = address(&interface.address?)?;
        // An address may have a label, which begins with the interface's name.
        let name = interface.interface_name.split(':').next().unwrap_or_default();
        Some((name.to_owned(), address))
    };
    Ok(getifaddrs()?.filter_map(with_name).collect())
}

/// Returns the addresses by which others reach the plugin's own namespace, the host's: first the one that it sends from
/// to other networks, then IPv4, then IPv6.
///
/// # Errors
/// If they can't be listed.
pub(crate) async fn hosts_addresses() -> Result<Vec<IpAddr>, NetnsError> {
    on_thread(|| {
        let found =
            own_addresses().map_err(NetnsError::io("list the addresses of", Path::new("the host")))?;
        Ok(with_first(found, sends_from()))
    })
    .await
}

/// Returns the address that the calling thread's namespace sends from to other networks. Nothing is sent for that.
fn sends_from() -> Option<IpAddr> {
    let of = |own: (IpAddr, u16), elsewhere: (IpAddr, u16)| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(elsewhere).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let ipv4 = of((Ipv4Addr::UNSPECIFIED.into(), 0), (ELSEWHERE.into(), 9));
    ipv4.or_else(|| of((Ipv6Addr::UNSPECIFIED.into(), 0), (ELSEWHERE_IPV6.into(), 9)))
}

/// Moves an address to the front, if it is among those found.
fn with_first(mut found: Vec<IpAddr>, first: Option<IpAddr>) -> Vec<IpAddr> {
    found.sort_by_key(|address| Some(*address) != first);
    found
}

/// Returns the next hops of the default routes in a namespace, IPv4 first. Those that are known on their link alone are
/// left out.
///
/// # Errors
/// Names the namespace that can't be entered or read.
pub(crate) async fn gateways(path: &Path) -> Result<Vec<IpAddr>, NetnsError> {
    let path = path.to_owned();
    on_thread(move || {
        let namespace = File::open(&path).map_err(NetnsError::io("open", &path))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(NetnsError::io("enter the network namespace", &path))?;
        let read = |table: &str| {
            let mut text = String::new();
            // A task that may change routes can make any number.
            match File::open(table).and_then(|table| table.take(ROUTES_LIMIT_BYTES).read_to_string(&mut text))
            {
                // A kernel without IPv6 has no such file.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(text),
                read => read.map(|_| text).map_err(NetnsError::io("read the routes of", &path)),
            }
        };
        let (routes, routes_ipv6) = (read(ROUTES)?, read(ROUTES_IPV6)?);
        let ipv4 = routes.lines().filter_map(default_gateway).map(IpAddr::V4);
        let ipv6 = routes_ipv6.lines().filter_map(default_gateway_ipv6).map(IpAddr::V6);
        let mut found: Vec<_> = ipv4.chain(ipv6).filter(|address| is_global(*address)).collect();
        found.dedup();
        found.truncate(GATEWAYS_LIMIT);
        Ok(found)
    })
    .await
}

/// Returns the gateway of a line of [`ROUTES`], if it is a default route. Its columns are the interface, destination,
/// gateway, flags, three counts and the mask. An address is the number that its bytes make in the host's order.
fn default_gateway(line: &str) -> Option<Ipv4Addr> {
    let columns: Vec<_> = line.split_whitespace().collect();
    let number = |column: usize| u32::from_str_radix(columns.get(column)?, 16).ok();
    let is_default = number(1)? == 0 && number(7)? == 0 && number(3)? & TO_GATEWAY == TO_GATEWAY;
    is_default.then_some(number(2)?.to_ne_bytes().into())
}

/// Returns the gateway of a line of [`ROUTES_IPV6`], if it is a default route. Its columns are the destination and its
/// prefix, the source and its prefix, the next hop, three numbers, and the flags.
fn default_gateway_ipv6(line: &str) -> Option<Ipv6Addr> {
    let columns: Vec<_> = line.split_whitespace().collect();
    let number = |column: usize| u128::from_str_radix(columns.get(column)?, 16).ok();
    let is_default =
        number(0)? == 0 && number(1)? == 0 && number(8)? & u128::from(TO_GATEWAY) == u128::from(TO_GATEWAY);
    is_default.then_some(Ipv6Addr::from_bits(number(4)?))
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send + 'static,
) -> Result<T, NetnsError> {
    on_thread_or(work, |_| {}).await
}

/// Runs `work` like [`on_thread`]. If nobody waits for its result any more, passes that to `undo`.
async fn on_thread_or<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> Result<T, NetnsError> {
    let what = Path::new("a network namespace");
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            if let Err(Ok(unwanted)) = sender.send(work()) {
                undo(unwanted);
            }
        })
        .map_err(NetnsError::io("start a thread for", what))?;
    match tokio::time::timeout(LIMIT, receiver).await {
        Ok(answer) => answer.map_err(|_| NetnsError::Lost)?,
        Err(_) => Err(NetnsError::io("wait longer for the kernel's work on", what)(Errno::ETIMEDOUT)),
    }
}

/// Binds the calling thread's namespace to `path`.
fn keep_own(path: &Path) -> Result<(), NetnsError> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(NetnsError::io("create", path))?;
    let nothing: Option<&str> = None;
    mount(Some(OWN), path, nothing, MsFlags::MS_BIND, nothing).map_err(|error| {
        let _ = fs::remove_file(path);
        NetnsError::io("keep a network namespace at", path)(error)
    })
}

fn raise_loopback() -> io::Result<()> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &raise(LOOPBACK_INDEX), MsgFlags::empty())?;
    acknowledged(netlink.as_fd())
}

/// Builds the netlink request that brings an interface up: `struct nlmsghdr`, then `struct ifinfomsg`, both in the
/// host's byte order.
fn raise(index: u32) -> Vec<u8> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
    const UP: u32 = 1;
    let mut message = LENGTH.to_ne_bytes().to_vec();
    message.extend([RTM_NEWLINK, REQUEST_AND_ACKNOWLEDGE].map(u16::to_ne_bytes).concat());
    // The sequence number; 0 addresses the kernel. Then neither a family nor a type.
    message.extend([1, 0, 0].map(u32::to_ne_bytes).concat());
    // The values of the flags, and the mask of those to change.
    message.extend([index, UP, UP].map(u32::to_ne_bytes).concat());
    message
}

fn acknowledged(netlink: BorrowedFd) -> io::Result<()> {
    const HEADER: usize = 16;
    let mut answer = [0; 256];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer.get(HEADER..HEADER + 4).filter(|_| length >= HEADER + 4);
    let code: [u8; 4] =
        code.and_then(|code| code.try_into().ok()).ok_or(io::Error::from(ErrorKind::InvalidData))?;
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let up = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    let mut found: Vec<IpAddr> = getifaddrs()?
        .filter(|interface| up(interface.flags))
        .filter_map(|interface| address(&interface.address?))
        .filter(|address| is_global(*address))
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = of.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| of.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Returns true if the address is reachable from beyond its link.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creating a namespace needs privileges.
    #[tokio::test]
    async fn a_namespace_persists_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("one"), directory.path().join("other"));
        match create(&path).await {
            Ok(()) => {
                assert!(is_bound(&path));
                assert!(!has_process(&path).unwrap());
                assert!(addresses(&path).await.unwrap().is_empty());
                assert!(gateways(&path).await.unwrap().is_empty());
                assert!(create(&path).await.is_err(), "one was made over another");
                pin(File::open(&path).unwrap().into(), &other).await.unwrap();
                remove(&path).await.unwrap();
                assert!(is_bound(&other));
                remove(&other).await.unwrap();
            }
            Err(error) => assert!(error.to_string().contains("one"), "{error}"),
        }
        assert!(!path.exists() && !other.exists());
    }

    #[tokio::test]
    async fn removing_a_missing_namespace_succeeds_and_a_plain_file_is_no_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one");
        remove(&path).await.unwrap();
        remove(&path.join("below")).await.unwrap();
        fs::write(&path, "").unwrap();
        assert!(!is_bound(&path));
        // Created, but interrupted before it was mounted.
        remove(&path).await.unwrap();
        assert!(!path.exists());
        for wrong in ["/proc/self/ns/mnt", "/dev/null"] {
            let error = pin(File::open(wrong).unwrap().into(), &path).await.unwrap_err();
            assert!(error.to_string().contains("not a network namespace"), "{error}");
        }
        let error = addresses(&path).await.unwrap_err().to_string();
        assert!(error.contains("one"), "{error}");
    }

    /// Creating a namespace needs privileges, and setting a parameter that `/proc/sys` is writable.
    #[tokio::test]
    async fn parameters_are_set_in_the_new_namespace_alone() {
        const NAME: &str = "net.ipv4.ip_unprivileged_port_start";
        const FILE: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one");
        let own = fs::read_to_string(FILE).ok();
        let can_be_set = fs::OpenOptions::new().write(true).open(FILE).is_ok();
        if create_with(&path, vec![(NAME, "7"), ("net.none", "1")]).await.is_ok() {
            let namespace = File::open(&path).unwrap();
            let read = move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                fs::read_to_string(FILE).ok()
            };
            let seen = std::thread::spawn(read).join().unwrap();
            assert!(!can_be_set || seen.as_deref() == Some("7\n"), "{seen:?}");
            remove(&path).await.unwrap();
        }
        assert_eq!(fs::read_to_string(FILE).ok(), own);
    }

    #[test]
    fn a_namespace_has_the_processes_that_are_in_it() {
        assert!(has_process(Path::new("/proc/self/ns/net")).unwrap());
        assert!(has_process(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn default_routes_lead_to_gateways() {
        let address = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let line = |destination: &str, flags: &str| {
            format!("eth0\t{destination}\t{}\t{flags}\t0\t0\t0\t00000000\t0\t0\t0", address([172, 26, 64, 1]))
        };
        assert_eq!(default_gateway(&line("00000000", "0003")), Some([172, 26, 64, 1].into()));
        for other in [
            line("00000000", "0001"),
            line(&address([10, 0, 0, 0]), "0003"),
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask".to_owned(),
            String::new(),
        ] {
            assert_eq!(default_gateway(&other), None, "{other}");
        }
        let ipv6 = |prefix: &str, flags: &str| {
            let (zero, hop) = ("0".repeat(32), "fd000172002600800000000000000001");
            format!("{zero} {prefix} {zero} 00 {hop} 00000400 00000001 00000000 {flags}     eth0")
        };
        assert_eq!(default_gateway_ipv6(&ipv6("00", "00000003")), "fd00:172:26:80::1".parse().ok());
        assert_eq!(default_gateway_ipv6(&ipv6("40", "00000003")), None);
        assert_eq!(default_gateway_ipv6(&ipv6("00", "00200200")), None, "the kernel's own, of lo");
    }

    #[tokio::test]
    async fn the_hosts_addresses_begin_with_the_one_that_it_sends_from() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(address).to_vec();
        assert_eq!(with_first(found.clone(), None), found);
        assert_eq!(with_first(found.clone(), Some(address("10.9.9.9"))), found);
        let moved = ["fd00::1", "10.0.0.1", "10.0.0.2"].map(address);
        assert_eq!(with_first(found, Some(address("fd00::1"))), moved);
        let all = hosts_interfaces().unwrap();
        assert!(all.iter().any(|(_, address)| address.is_loopback()), "{all:?}");
        for address in hosts_addresses().await.unwrap() {
            assert!(is_global(address) && all.iter().any(|(_, found)| *found == address), "{address}");
        }
    }

    #[test]
    fn addresses_of_use_on_one_link_only_are_left_out() {
        for (address, wanted) in [
            ("10.0.0.2", true),
            ("fd00::2", true),
            ("2001:db8::1", true),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("127.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(is_global(address.parse().unwrap()), wanted, "{address}");
        }
    }
}
