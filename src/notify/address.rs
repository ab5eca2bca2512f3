//! Which addresses may be called: the guard against requests into our own network (SSRF).
//!
//! A name is looked up by the guard itself, and the connection goes to the addresses that it has
//! looked at, so that a second answer of the name server changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::config::Network;

/// Longest URL.
const MAX_URL_CHARS: usize = 2_000;

/// What may be called.
#[derive(Debug, Clone)]
pub struct Guard {
    allowed: Arc<[Network]>,
    allow_http: bool,
}

/// The address is not one that may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the address is not public, and no setting allows it")]
pub struct AddressRefused;

impl Guard {
    /// Public addresses, and those of `allowed`.
    pub fn new(allowed: &[Network], allow_http: bool) -> Self {
        Self { allowed: allowed.into(), allow_http }
    }

    /// Reads a URL; the error says what was expected. Names are looked up when they are called.
    ///
    /// # Errors
    /// What was expected.
    pub fn read(&self, text: &str) -> Result<Url, &'static str> {
        let expected = if self.allow_http {
            "must be a URL like https://hooks.example/registrar, with http or https"
        } else {
            "must be a URL like https://hooks.example/registrar, with https"
        };
        if text.chars().count() > MAX_URL_CHARS {
            return Err("must be at most 2000 characters");
        }
        let url = Url::parse(text).map_err(|_| expected)?;
        let scheme = url.scheme() == "https" || (self.allow_http && url.scheme() == "http");
        if !scheme || url.host().is_none() {
            return Err(expected);
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err("must be without user, password and fragment");
        }
        self.check_literal(&url)
            .map_err(|_| "must be a public address, or one of webhook.allow_networks")?;
        Ok(url)
    }

    /// Looks at an address that is written out in the URL, which no name server is asked for.
    ///
    /// # Errors
    /// [`AddressRefused`]
    pub fn check_literal(&self, url: &Url) -> Result<(), AddressRefused> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.check(address.into()),
            Some(Host::Ipv6(address)) => self.check(address.into()),
            Some(Host::Domain(_)) => Ok(()),
            None => Err(AddressRefused),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), AddressRefused> {
        let address = address.to_canonical();
        let allowed = self.allowed.iter().any(|network| network.contains(address));
        if allowed || is_public(address) { Ok(()) } else { Err(AddressRefused) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One that is refused refuses all: an honest name has no private address among others.
            for address in &found {
                guard.check(address.ip())?;
            }
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// The registry of special addresses (RFC 6890) and what has no single receiver.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, ..)
    )
}

/// Global unicast is 2000::/3; of it, what embeds or tunnels other addresses, or is for documents,
/// is left out.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let global = a & 0xe000 == 0x2000;
    let special =
        a == 0x2002 || (a == 0x2001 && (b < 0x0200 || b == 0x0db8)) || a & 0xfff0 == 0x3ff0;
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_may_be_called() {
        let guard = Guard::new(&[], true);
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
            "::127.0.0.1",
        ] {
            assert_eq!(guard.check(address.parse().unwrap()), Err(AddressRefused), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "192.0.1.1"] {
            assert_eq!(guard.check(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn a_setting_allows_a_range() {
        let guard = Guard::new(&["10.1.0.0/16".parse().unwrap()], true);
        assert_eq!(guard.check("10.1.2.3".parse().unwrap()), Ok(()));
        assert_eq!(guard.check("::ffff:10.1.2.3".parse().unwrap()), Ok(()));
        assert_eq!(guard.check("10.2.2.3".parse().unwrap()), Err(AddressRefused));
    }

    #[test]
    fn urls_are_read_or_refused() {
        let (strict, open) = (Guard::new(&[], false), Guard::new(&[], true));
        assert!(strict.read("https://hooks.example/x?y=1").is_ok());
        assert!(open.read("http://hooks.example").is_ok());
        for url in [
            "http://hooks.example",
            "ftp://hooks.example",
            "hooks.example",
            "https://",
            "",
            "https://ann:secret@hooks.example",
            "https://hooks.example/#x",
            "https://127.0.0.1/",
            // Other spellings of 127.0.0.1, which the URL's own rules read as that.
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:7f00:1]/",
        ] {
            assert!(strict.read(url).is_err(), "{url}");
        }
    }
}
