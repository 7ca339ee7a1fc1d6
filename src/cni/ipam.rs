//! The leases of the built-in network's addresses, as its IPAM plugin (host-local) keeps them: a file for each address,
//! with the container and its interface.
//!
//! Source of the facts: CNI plugins 1.1.1, `plugins/ipam/host-local/backend/disk/backend.go`.

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use super::ValidAttachment;
use super::error::Error;

/// Returns the attachments that have an address; none where the directory doesn't exist, since there never was any.
pub(super) fn holders(directory: &Path) -> Result<BTreeSet<ValidAttachment>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let is_address = |name: &str| name.parse::<IpAddr>().is_ok();
    let paths = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_str().is_some_and(is_address));
    Ok(paths.filter_map(|entry| holder(&fs::read_to_string(entry.path()).ok()?)).collect())
}

fn holder(text: &str) -> Option<ValidAttachment> {
    let mut lines = text.lines().map(str::trim);
    let (container_id, if_name) = (lines.next()?.to_owned(), lines.next()?.to_owned());
    (!container_id.is_empty() && !if_name.is_empty()).then_some(ValidAttachment { container_id, if_name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_files_name_their_holders() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("10.0.0.2", "web-1\r\neth0"),
            ("fd00::2", "web-1\r\neth0"),
            ("10.0.0.3", "web-2\neth1\n"),
            ("10.0.0.4", ""),
            ("10.0.0.5", "only-an-id"),
            ("last_reserved_ip.0", "10.0.0.3"),
            ("lock", ""),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let valid =
            |id: &str, name: &str| ValidAttachment { container_id: id.to_owned(), if_name: name.to_owned() };
        let wanted = BTreeSet::from([valid("web-1", "eth0"), valid("web-2", "eth1")]);
        assert_eq!(holders(directory.path()).unwrap(), wanted);
        assert!(holders(&directory.path().join("absent")).unwrap().is_empty());
    }
}
