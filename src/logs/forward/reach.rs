//! The addresses that a log receiver may have. The driver connects from the host, where a job's receiver could be a
//! service that trusts the host's own processes.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::sys::blocking;
use crate::sys::ip_network::{self, IpNetwork};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reach {
    Anywhere,
    /// No address of the host's own, but for those in these networks.
    Beyond(Vec<IpNetwork>),
}

impl Reach {
    /// Returns those of a receiver's addresses that it may have. A name may have others at each look.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] if it has none.
    pub(super) async fn permitted(&self, found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let Self::Beyond(excepted) = self else { return Ok(found) };
        let hosts = blocking::run(ip_network::of_host).await?;
        let (permitted, refused): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| is_permitted(address.ip(), excepted, &hosts));
        match (permitted.first(), refused.first()) {
            (None, Some(refused)) => {
                let why = format!(
                    "{} is an address of the host's own, and a job's log receiver can't have one unless the plugin option \
                     logging.allowed_host_addresses has it",
                    refused.ip()
                );
                Err(io::Error::new(ErrorKind::PermissionDenied, why))
            }
            _ => Ok(permitted),
        }
    }
}

fn is_permitted(address: IpAddr, excepted: &[IpNetwork], hosts: &[IpAddr]) -> bool {
    let address = address.to_canonical();
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_hosts =
        address.is_loopback() || address.is_unspecified() || is_link_local || hosts.contains(&address);
    !is_hosts || excepted.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_are_refused_unless_excepted() {
        let hosts: [IpAddr; 2] = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let is = |address: &str, excepted: &[&str]| {
            let excepted: Vec<_> = excepted.iter().filter_map(|network| IpNetwork::parse(network)).collect();
            is_permitted(address.parse().unwrap(), &excepted, &hosts)
        };
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "10.0.0.5",
            "::1",
            "::",
            "fe80::1",
            "fd00::5",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.5",
        ] {
            assert!(!is(own, &[]), "{own}");
        }
        assert!(is("10.0.0.6", &[]) && is("2001:db8::1", &[]) && is("fd00::6", &[]));
        assert!(is("127.0.0.1", &["127.0.0.0/8"]) && is("::ffff:127.0.0.1", &["127.0.0.1"]));
        assert!(!is("10.0.0.5", &["127.0.0.0/8"]));
    }

    #[tokio::test]
    async fn a_refusal_names_the_address_and_the_option() {
        let (own, other): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1".parse().unwrap(), "192.0.2.1:1".parse().unwrap());
        let beyond = Reach::Beyond(Vec::new());
        assert_eq!(beyond.permitted(vec![own, other]).await.unwrap(), [other]);
        let error = beyond.permitted(vec![own]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(
            error.to_string().contains("127.0.0.1") && error.to_string().contains("allowed_host_addresses")
        );
        assert_eq!(Reach::Anywhere.permitted(vec![own]).await.unwrap(), [own]);
    }
}
