//! The addresses that a log receiver may have. The driver connects from the host, where a job's receiver could be a
//! service that trusts the host's own processes.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::sys::ip_network::IpNetwork;
use crate::sys::{blocking, netns};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reach {
    /// Any address, of a receiver that the operator chose.
    Operators,
    /// Any address, of a job's receiver.
    Anywhere,
    /// No address of the host's own, but for those in these networks.
    Beyond(Vec<IpNetwork>),
}

/// The reason that a receiver may not be reached, which lasts.
#[derive(Debug, thiserror::Error)]
#[error(
    "{address} is {what}, and a job's log receiver can't have one unless the plugin option \
     logging.allowed_host_addresses has it"
)]
pub(super) struct Forbidden {
    address: IpAddr,
    what: &'static str,
}

const OF_HOST: &str = "an address of the host's own";
const OF_MANY: &str = "an address of many hosts";

impl Forbidden {
    /// Returns whether it is the reason of an error.
    pub(super) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl Reach {
    /// Returns those of a receiver's addresses that it may have. A name may have others at each look.
    ///
    /// # Errors
    /// [`Forbidden`] if it has none.
    pub(super) async fn permitted(&self, found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let Self::Beyond(excepted) = self else { return Ok(found) };
        let interfaces = blocking::run(netns::hosts_interfaces).await?;
        let hosts: Vec<_> = interfaces.into_iter().map(|(_, address)| address).collect();
        let (mut permitted, mut forbidden) = (Vec::new(), None);
        for address in found {
            match check(address.ip(), excepted, &hosts) {
                Ok(()) => permitted.push(address),
                Err(why) => forbidden = forbidden.or(Some(why)),
            }
        }
        match forbidden {
            Some(why) if permitted.is_empty() => Err(io::Error::other(why)),
            _ => Ok(permitted),
        }
    }

    /// Checks the two addresses of a connection: one from an address to itself is to this host, also where no interface
    /// has the address, but a route of its own.
    ///
    /// # Errors
    /// [`Forbidden`] if the receiver may not be on this host.
    pub(super) fn check_connected(&self, own: SocketAddr, receivers: SocketAddr) -> io::Result<()> {
        let (own, address) = (own.ip().to_canonical(), receivers.ip().to_canonical());
        match self {
            Self::Beyond(excepted) if own == address && !is_excepted(address, excepted) => {
                Err(io::Error::other(Forbidden { address, what: OF_HOST }))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether the operator chose the receiver.
    pub(super) fn is_operators(&self) -> bool {
        *self == Self::Operators
    }
}

fn is_excepted(address: IpAddr, excepted: &[IpNetwork]) -> bool {
    excepted.iter().any(|network| network.contains(address))
}

fn check(address: IpAddr, excepted: &[IpNetwork], hosts: &[IpAddr]) -> Result<(), Forbidden> {
    let address = address.to_canonical();
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    let is_of_many = address.is_multicast() || is_broadcast;
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_hosts =
        address.is_loopback() || address.is_unspecified() || is_link_local || hosts.contains(&address);
    let what = match (is_of_many, is_hosts) {
        (true, _) => OF_MANY,
        (false, true) => OF_HOST,
        (false, false) => return Ok(()),
    };
    if is_excepted(address, excepted) { Ok(()) } else { Err(Forbidden { address, what }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_are_refused_unless_excepted() {
        let hosts: [IpAddr; 2] = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let is = |address: &str, excepted: &[&str]| {
            let excepted: Vec<_> = excepted.iter().filter_map(|network| IpNetwork::parse(network)).collect();
            check(address.parse().unwrap(), &excepted, &hosts).is_ok()
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
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
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
        assert!(Forbidden::is_in(&error));
        assert!(!Forbidden::is_in(&io::ErrorKind::PermissionDenied.into()), "the kernel's may pass");
        assert!(
            error.to_string().contains("127.0.0.1") && error.to_string().contains("allowed_host_addresses")
        );
        for reach in [Reach::Anywhere, Reach::Operators] {
            assert_eq!(reach.permitted(vec![own]).await.unwrap(), [own]);
        }
    }

    #[test]
    fn a_connection_to_its_own_address_is_to_this_host() {
        let (own, mapped, other): (SocketAddr, SocketAddr, SocketAddr) = (
            "192.0.2.1:1".parse().unwrap(),
            "[::ffff:192.0.2.1]:2".parse().unwrap(),
            "192.0.2.2:2".parse().unwrap(),
        );
        let beyond = |networks: &[&str]| {
            Reach::Beyond(networks.iter().filter_map(|network| IpNetwork::parse(network)).collect())
        };
        assert!(Forbidden::is_in(&beyond(&[]).check_connected(own, mapped).unwrap_err()));
        beyond(&[]).check_connected(own, other).unwrap();
        beyond(&["192.0.2.1"]).check_connected(own, mapped).unwrap();
        Reach::Anywhere.check_connected(own, mapped).unwrap();
    }
}
