//! Who is at the other end when proxies stand between: which of them are believed, and what of what
//! they say.
//!
//! A header is written by anybody. So an address in `X-Forwarded-For` counts only as far as it was
//! written by a proxy that is trusted: the peer of the socket must be one, then each entry from the
//! right must be, until the first that is not. That one is the client; what stands left of it, the
//! client may have made up.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// How many entries of `X-Forwarded-For` are looked at. Chains of proxies are short; without a bound a
/// client behind a trusted proxy could make each of its requests as long to parse as a head may be.
pub const FORWARDED_ENTRIES_MAX: usize = 32;

/// The longest address that is looked at: an IPv6 address in brackets with a port has 47 bytes.
const ADDRESS_BYTES_MAX: usize = 64;

/// Networks of proxies that are believed. Empty: nobody is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
}

/// A text that is no network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkError {
    given: String,
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is neither an address nor a network: expected one like 10.0.0.0/8, 192.0.2.7 or fd00::/8",
            self.given
        )
    }
}

impl std::error::Error for NetworkError {}

impl TrustedProxies {
    /// Parses networks as in `10.0.0.0/8`; an address alone is a network of one.
    pub fn parse<T: AsRef<str>>(
        networks: impl IntoIterator<Item = T>,
    ) -> Result<TrustedProxies, NetworkError> {
        let parsed = networks.into_iter().map(|text| {
            let text = text.as_ref().trim();
            let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            network.map(unmapped).ok_or_else(|| NetworkError { given: text.chars().take(100).collect() })
        });
        Ok(TrustedProxies { networks: parsed.collect::<Result<_, _>>()? })
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Whether `address` is that of a trusted proxy. An IPv4 address that is written as an IPv6 one
    /// (`::ffff:10.0.0.1`), as sockets of both families give it, is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The address of the client whose request came from `peer` with these `X-Forwarded-For` headers,
    /// in the order they were sent; give `headers.get_all("x-forwarded-for").iter()`.
    ///
    /// An entry that is no address ends the walk, and the proxy that wrote it is the best that is
    /// known.
    pub fn client_address<V: AsRef<[u8]>>(
        &self,
        peer: IpAddr,
        x_forwarded_for: impl DoubleEndedIterator<Item = V>,
    ) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut left = FORWARDED_ENTRIES_MAX;
        for header in x_forwarded_for.rev() {
            for entry in header.as_ref().rsplit(|byte| *byte == b',') {
                if left == 0 || !self.contains(client) {
                    return client;
                }
                left -= 1;
                match address(entry) {
                    Some(address) => client = address,
                    None => return client,
                }
            }
        }
        client
    }
}

/// A network of mapped IPv4 addresses is the IPv4 network.
fn unmapped(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let IpNet::V6(v6) = network else { return network };
    let bits = v6.prefix_len().checked_sub(MAPPED_BITS);
    match (Ipv6Addr::to_ipv4_mapped(&v6.addr()), bits) {
        (Some(address), Some(bits)) => IpNet::new(address.into(), bits).unwrap_or(network),
        _ => network,
    }
}

/// An entry as proxies write it: an address, perhaps with a port, an IPv6 address perhaps in brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let entry = entry.trim_ascii();
    if entry.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(entry).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    text.parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(bracketed)
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted() -> TrustedProxies {
        TrustedProxies::parse(["10.0.0.0/8", " 192.0.2.7 ", "fd00::/8"]).unwrap()
    }

    fn client(peer: &str, headers: &[&str]) -> String {
        trusted().client_address(peer.parse().unwrap(), headers.iter()).to_string()
    }

    #[test]
    fn networks_and_single_addresses_are_trusted() {
        let contains = |address: &str| trusted().contains(address.parse().unwrap());
        for inside in ["10.255.0.1", "192.0.2.7", "fd12::1", "::ffff:10.1.2.3", "::ffff:192.0.2.7"] {
            assert!(contains(inside), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "fe80::1", "::ffff:11.0.0.1", "::10.0.0.1", "::1"] {
            assert!(!contains(outside), "{outside}");
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
        assert!(TrustedProxies::default().is_empty() && !trusted().is_empty());
    }

    #[test]
    fn mapped_networks_are_ipv4_networks() {
        let mapped = TrustedProxies::parse(["::ffff:10.0.0.0/104", "::ffff:192.0.2.7"]).unwrap();
        assert!(
            mapped.contains("10.9.9.9".parse().unwrap()) && mapped.contains("192.0.2.7".parse().unwrap())
        );
        assert!(!mapped.contains("11.0.0.1".parse().unwrap()));
        // A network wider than all mapped addresses trusts IPv6, and no IPv4 by accident.
        assert!(!TrustedProxies::parse(["::/0"]).unwrap().contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused_by_its_name() {
        for wrong in ["", "10.0.0.0/33", "fd00::/129", "proxy.example", "10.0.0", "10.0.0.0/-1"] {
            let error = TrustedProxies::parse(["10.0.0.1", wrong]).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")) && error.contains("10.0.0.0/8"), "{error}");
        }
    }

    #[test]
    fn the_first_address_from_the_right_that_is_not_trusted_is_the_client() {
        for (headers, address) in [
            (&[][..], "10.0.0.1"),
            (&["203.0.113.5"], "203.0.113.5"),
            (&["203.0.113.5, 10.0.0.2"], "203.0.113.5"),
            (&["203.0.113.5", "10.0.0.2,10.0.0.3"], "203.0.113.5"),
            (&["203.0.113.5:4711"], "203.0.113.5"),
            (&["[2001:db8::5]:4711"], "2001:db8::5"),
            (&["[2001:db8::5]"], "2001:db8::5"),
            (&["2001:db8::5"], "2001:db8::5"),
            (&["::ffff:203.0.113.5"], "203.0.113.5"),
            // A client within the trusted networks: the leftmost is as far as it goes.
            (&["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        ] {
            assert_eq!(client("10.0.0.1", headers), address, "{headers:?}");
        }
        assert_eq!(client("::ffff:10.0.0.1", &["203.0.113.5"]), "203.0.113.5");
    }

    #[test]
    fn what_a_client_makes_up_is_not_believed() {
        // It connects directly.
        assert_eq!(client("203.0.113.5", &["10.0.0.1"]), "203.0.113.5");
        assert_eq!(client("203.0.113.5", &["1.1.1.1, 10.0.0.2"]), "203.0.113.5");
        assert_eq!(client("::ffff:203.0.113.5", &["1.1.1.1"]), "203.0.113.5");
        // It writes a header that the proxy adds to.
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 203.0.113.5"]), "203.0.113.5");
        assert_eq!(client("10.0.0.1", &["10.0.0.7, 203.0.113.5"]), "203.0.113.5");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "203.0.113.5"]), "203.0.113.5");
        // It writes something that is no address, or hides a comma.
        for made_up in
            ["", "unknown", "_hidden", "1.1.1.1 2.2.2.2", "1.1.1.1:99999", "[::1", "01.1.1.1", "\"1.1.1.1\""]
        {
            assert_eq!(client("10.0.0.1", &[&format!("{made_up}, 203.0.113.5")]), "203.0.113.5", "{made_up}");
            assert_eq!(
                client("10.0.0.1", &[&format!("1.1.1.1, {made_up}, 10.0.0.2")]),
                "10.0.0.2",
                "{made_up}"
            );
        }
        let bytes: &[&[u8]] = &[b"1.1.1.1, \xff\xfe, 10.0.0.2"];
        let address = trusted().client_address("10.0.0.1".parse().unwrap(), bytes.iter());
        assert_eq!(address.to_string(), "10.0.0.2");
    }

    #[test]
    fn a_chain_without_end_is_not_followed() {
        let long = |proxies| format!("203.0.113.5{}", ", 10.0.0.2".repeat(proxies));
        assert_eq!(client("10.0.0.1", &[&long(FORWARDED_ENTRIES_MAX - 1)]), "203.0.113.5");
        assert_eq!(client("10.0.0.1", &[&long(FORWARDED_ENTRIES_MAX)]), "10.0.0.2");
        let many = vec!["10.0.0.2"; 10_000];
        assert_eq!(client("10.0.0.1", &many), "10.0.0.2");
    }
}
