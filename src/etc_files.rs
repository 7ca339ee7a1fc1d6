//! A task's `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`. They are written for each task, which may
//! change them unless its driver's name has them read-only.
//!
//! Source of the facts: hosts(5), resolv.conf(5), systemd-resolved.service(8); the default contents are docker's
//! (moby/libnetwork `etchosts`, `resolvconf`).

#![expect(
    clippy::disallowed_methods,
    reason = "opens the host's own /etc/hosts and its kin, and the bundle's"
)]

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) const HOSTS: &str = "/etc/hosts";
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// File in which systemd-resolved lists the servers that it asks itself.
const UPSTREAM_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";
const HOSTNAME: &str = "/proc/sys/kernel/hostname";
/// Default content of `/etc/hosts`.
const USUAL_HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nfe00:: ip6-localnet\n\
                           ff00:: ip6-mcastprefix\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n";
/// The address of a task's own name if it has no other.
const OWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

/// The facts that a task's files are made from.
#[derive(Debug)]
pub(crate) struct Names {
    pub hostname: String,
    /// Addresses of the host name in `/etc/hosts`; may be empty.
    pub addresses: Vec<IpAddr>,
    /// Further names of the same addresses.
    pub aliases: Vec<String>,
    pub extra_hosts: Vec<(String, IpAddr)>,
    pub in_the_hosts_network: bool,
    /// Whether the entry of the host name is docker's: an address, a tab, the name, and before its first dot once more.
    /// Where there is no address, there is no entry.
    pub as_docker: bool,
    /// Settings of `/etc/resolv.conf`. `None` leaves the image's own file.
    pub resolver: Option<Resolver>,
}

/// Settings of a resolver. An empty list is taken from the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// The files' contents, each with the name of the file and its path in the container.
#[derive(Debug)]
pub(crate) struct NameTexts(Vec<(&'static str, &'static str, String)>);

impl NameTexts {
    /// Returns the length of all files together.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, _, text)| text.len()).sum()
    }

    /// Writes the files into a directory. Blocking: not for an async thread.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub(crate) fn write(self, directory: &Path) -> Result<Vec<NameFile>, EtcFilesError> {
        let write = |(name, at, text): (&str, &'static str, String)| {
            let source = directory.join(name);
            fs::write(&source, text).map_err(failed("write", &source))?;
            // The mode is set despite the agent's umask: any user of the task must be able to read the files.
            fs::set_permissions(&source, fs::Permissions::from_mode(0o644))
                .map_err(failed("let be read", &source))?;
            Ok(NameFile { source, at })
        };
        self.0.into_iter().map(write).collect()
    }
}

/// A written file, and its path in the container.
#[derive(Debug)]
pub(crate) struct NameFile {
    pub source: PathBuf,
    pub at: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error("can't {doing} {path}")]
pub(crate) struct EtcFilesError {
    doing: &'static str,
    path: PathBuf,
    pub(crate) source: std::io::Error,
}

/// Returns the host's own name.
///
/// # Errors
/// If the kernel's file can't be read.
pub(crate) fn hosts_own() -> Result<String, EtcFilesError> {
    let path = Path::new(HOSTNAME);
    Ok(fs::read_to_string(path).map_err(failed("read", path))?.trim().to_owned())
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EtcFilesError {
    let path = path.to_owned();
    move |source| EtcFilesError { doing, path, source }
}

impl Names {
    /// Returns the content of each file. Blocking: not for an async thread.
    ///
    /// # Errors
    /// Names the host's file that could not be read.
    pub(crate) fn texts(&self) -> Result<NameTexts, EtcFilesError> {
        let known = if self.in_the_hosts_network { read(Path::new(HOSTS))? } else { None };
        let mut texts = vec![
            ("hostname", "/etc/hostname", format!("{}\n", self.hostname)),
            ("hosts", HOSTS, self.hosts(known.as_deref())),
        ];
        if let Some(resolver) = &self.resolver {
            texts.push((
                "resolv.conf",
                RESOLV_CONF,
                resolver.file(&self.hosts_servers(RESOLV_CONF, UPSTREAM_RESOLV_CONF)?),
            ));
        }
        Ok(NameTexts(texts))
    }

    /// Returns the content of `/etc/hosts`. It begins with `known`, else with the default entries.
    fn hosts(&self, known: Option<&str>) -> String {
        let mut hosts = known.unwrap_or(USUAL_HOSTS).to_owned();
        if !hosts.is_empty() && !hosts.ends_with('\n') {
            hosts.push('\n');
        }
        let Self { hostname, addresses, aliases, extra_hosts, as_docker, .. } = self;
        let between = if *as_docker { '\t' } else { ' ' };
        if !is_known(&hosts, hostname) {
            let has_address = *as_docker || !addresses.is_empty();
            let own = if has_address { &addresses[..] } else { &[OWN_ADDRESS][..] };
            let short = hostname.split_once('.').filter(|_| *as_docker).map(|(short, _)| short.to_owned());
            let names = [std::slice::from_ref(hostname), short.as_slice(), aliases].concat().join(" ");
            hosts.extend(own.iter().map(|address| format!("{address}{between}{names}\n")));
        }
        let extra = extra_hosts.iter().map(|(name, address)| format!("{address}{between}{name}\n"));
        extra.fold(hosts, |hosts, line| hosts + &line)
    }

    /// Returns the host's `resolv.conf` in a form that a task in another network can use. Servers on the loopback
    /// address are the host's own and out of reach there, so they are left out. If no other is left, the upstream
    /// servers of systemd-resolved are used.
    fn hosts_servers(
        &self,
        own: impl AsRef<Path>,
        upstream: impl AsRef<Path>,
    ) -> Result<String, EtcFilesError> {
        let own = read(own.as_ref())?.unwrap_or_default();
        if self.in_the_hosts_network || !own.lines().any(is_local_server) {
            return Ok(own);
        }
        if own.lines().any(|line| server(line).is_some() && !is_local_server(line)) {
            return Ok(without_local_servers(&own));
        }
        if let Some(upstream) = read(upstream.as_ref())? {
            return Ok(upstream);
        }
        tracing::warn!(
            "{RESOLV_CONF} has no server but on the loopback, which a task in another network can't reach; \
             give servers in the group's dns block, or have the task in the host's network"
        );
        Ok(own)
    }
}

/// Reads a file; `None` if it doesn't exist.
fn read(path: &Path) -> Result<Option<String>, EtcFilesError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn is_known(hosts: &str, name: &str) -> bool {
    let entries = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    entries.flat_map(|entry| entry.split_whitespace().skip(1)).any(|known| known == name)
}

/// Returns the server that a line of `resolv.conf` names.
fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    if words.next() == Some("nameserver") { words.next() } else { None }
}

fn is_local_server(line: &str) -> bool {
    // An IPv6 address may be followed by a zone.
    let address = server(line).and_then(|server| server.split('%').next());
    address.and_then(|address| address.parse::<IpAddr>().ok()).is_some_and(|address| address.is_loopback())
}

fn without_local_servers(resolv_conf: &str) -> String {
    resolv_conf.lines().filter(|line| !is_local_server(line)).map(|line| format!("{line}\n")).collect()
}

impl Resolver {
    /// Returns the host's file with the settings that are given in place of its own.
    fn file(&self, hosts: &str) -> String {
        let Self { servers, searches, options } = self;
        let is_replaced = |line: &&str| match line.split_whitespace().next() {
            Some("nameserver") => !servers.is_empty(),
            Some("search" | "domain") => !searches.is_empty(),
            Some("options") => !options.is_empty(),
            _ => false,
        };
        let mut lines: Vec<String> =
            hosts.lines().filter(|line| !is_replaced(line)).map(str::to_owned).collect();
        lines.extend(servers.iter().map(|server| format!("nameserver {server}")));
        for (keyword, words) in [("search", searches), ("options", options)] {
            if !words.is_empty() {
                lines.push(format!("{keyword} {}", words.join(" ")));
            }
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::error_chain::Chained;

    fn names(hostname: &str) -> Names {
        Names {
            hostname: hostname.to_owned(),
            addresses: Vec::new(),
            aliases: Vec::new(),
            extra_hosts: vec![("db".to_owned(), [10, 0, 0, 5].into())],
            in_the_hosts_network: false,
            as_docker: false,
            resolver: None,
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_task_knows_itself_and_the_extra_hosts() {
        let hosts = names("web").hosts(None);
        assert!(hosts.starts_with("127.0.0.1 localhost\n"), "{hosts}");
        assert!(hosts.ends_with("\n127.0.1.1 web\n10.0.0.5 db\n"), "{hosts}");
        let given = Names {
            addresses: vec![[10, 1, 1, 1].into(), "fd00::1".parse().unwrap()],
            aliases: vec!["www".to_owned()],
            ..names("web")
        };
        assert!(given.hosts(None).contains("\n10.1.1.1 web www\nfd00::1 web www\n"));
        let known = "127.0.0.1 localhost # web\n192.0.2.1 node web.example";
        assert_eq!(names("node").hosts(Some(known)), format!("{known}\n10.0.0.5 db\n"));
        assert_eq!(names("web").hosts(Some(known)), format!("{known}\n127.0.1.1 web\n10.0.0.5 db\n"));
    }

    #[test]
    fn dockers_entry_has_a_tab_the_short_name_and_no_address_of_its_own() {
        let addresses = vec![[172, 17, 0, 2].into()];
        let own = Names { addresses, as_docker: true, ..names("0123456789ab") };
        assert!(own.hosts(None).ends_with("\n172.17.0.2\t0123456789ab\n10.0.0.5\tdb\n"));
        let long = Names { hostname: "web.some.example".to_owned(), ..own };
        assert!(long.hosts(None).contains("\n172.17.0.2\tweb.some.example web\n"));
        let without = Names { addresses: Vec::new(), ..long };
        assert_eq!(without.hosts(None), format!("{USUAL_HOSTS}10.0.0.5\tdb\n"));
    }

    #[test]
    fn loopback_servers_are_recognized() {
        for local in
            ["nameserver 127.0.0.53", "nameserver\t127.0.0.1 # x", "nameserver ::1", "nameserver ::1%lo"]
        {
            assert!(is_local_server(local), "{local}");
        }
        for other in
            ["search x", "options edns0", "nameserver 10.0.0.1", "# nameserver 127.0.0.1", "nameserver"]
        {
            assert!(!is_local_server(other), "{other}");
        }
    }

    #[test]
    fn a_loopback_stub_resolver_is_replaced_by_its_upstreams() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("stub"), "nameserver 127.0.0.53\n").unwrap();
        fs::write(at("real"), "nameserver 10.0.0.1\n").unwrap();
        let of = |in_the_hosts_network, own: &str, upstream: &str| {
            let names = Names { in_the_hosts_network, ..names("web") };
            names.hosts_servers(at(own), at(upstream)).unwrap()
        };
        assert_eq!(of(false, "stub", "real"), "nameserver 10.0.0.1\n");
        assert_eq!(of(true, "stub", "real"), "nameserver 127.0.0.53\n", "it is in reach there");
        assert_eq!(of(false, "stub", "none"), "nameserver 127.0.0.53\n");
        assert_eq!(of(false, "real", "stub"), "nameserver 10.0.0.1\n");
        let both = "nameserver 127.0.0.1\nsearch x\nnameserver 10.0.0.2\n";
        fs::write(at("both"), both).unwrap();
        assert_eq!(
            of(false, "both", "real"),
            "search x\nnameserver 10.0.0.2\n",
            "what is in reach is enough"
        );
        assert_eq!(of(true, "both", "real"), both);
        assert_eq!(of(false, "none", "real"), "");
    }

    #[test]
    fn nomads_dns_replaces_the_hosts() {
        let host = "# by hand\nnameserver 10.0.0.1\nsearch example\noptions edns0\n";
        assert_eq!(Resolver::default().file(host), host);
        let servers = Resolver { servers: words("1.1.1.1 9.9.9.9"), ..Resolver::default() };
        assert_eq!(
            servers.file(host),
            "# by hand\nsearch example\noptions edns0\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n"
        );
        let rest = Resolver { servers: Vec::new(), searches: words("a b"), options: words("ndots:2 rotate") };
        assert_eq!(rest.file(host), "# by hand\nnameserver 10.0.0.1\nsearch a b\noptions ndots:2 rotate\n");
    }

    #[test]
    fn a_file_that_can_not_be_written_is_named_with_the_reason() {
        let error = names("web").texts().unwrap().write(Path::new("/no/such/directory")).unwrap_err();
        assert_eq!(error.to_string(), "can't write /no/such/directory/hostname");
        let whole = "can't write /no/such/directory/hostname: No such file or directory (os error 2)";
        assert_eq!(error.chain().to_string(), whole);
    }

    #[test]
    fn the_files_are_for_everybody_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let with_servers = Names { resolver: Some(Resolver::default()), ..names("web") };
        for (names, count) in [(names("web"), 2), (with_servers, 3)] {
            let texts = names.texts().unwrap();
            let bytes = texts.bytes() as u64;
            let files = texts.write(directory.path()).unwrap();
            assert_eq!(
                files.iter().map(|file| fs::metadata(&file.source).unwrap().len()).sum::<u64>(),
                bytes
            );
            assert_eq!(files.len(), count);
            for file in files {
                assert_eq!(
                    fs::metadata(&file.source).unwrap().permissions().mode() & 0o777,
                    0o644,
                    "{file:?}"
                );
            }
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn resolvers() {
        crate::fuzz::text("resolv-conf", |text| {
            let rest = without_local_servers(text);
            assert!(!rest.lines().any(is_local_server) && rest.len() <= text.len() + 1);
            // The end of a line may become one of two bytes.
            let plain = |text: &str| text.replace('\r', "");
            assert_eq!(plain(&without_local_servers(&rest)), plain(&rest));
            for name in text.split_whitespace().take(8) {
                assert!(!is_known(text, name) || text.contains(name));
            }
        });
    }
}
