//! A range of addresses, as `10.1.0.0/16`.

use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;

/// A range of addresses. IPv4 and IPv6 do not mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    first: u128,
    prefix: u32,
    is_v4: bool,
}

/// The text is not a range of addresses.
#[derive(Debug, Clone, thiserror::Error)]
#[error("must be a range of addresses like 10.1.0.0/16 or fd00::/8, or one address")]
pub struct BadNetwork;

impl Network {
    /// Whether an address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, is_v4) = bits(address);
        is_v4 == self.is_v4 && first_of(bits, self.prefix) == self.first
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let (bits, is_v4) = bits(address.parse().map_err(|_| BadNetwork)?);
        let width = if is_v4 { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(width), str::parse::<u32>).map_err(|_| BadNetwork)?;
        if prefix > width {
            return Err(BadNetwork);
        }
        // Both kinds are compared in 128 bits, IPv4 in the last 32 of them.
        let prefix = prefix + (128 - width);
        Ok(Self { first: first_of(bits, prefix), prefix, is_v4 })
    }
}

impl TryFrom<String> for Network {
    type Error = BadNetwork;

    fn try_from(text: String) -> Result<Self, BadNetwork> {
        text.parse()
    }
}

fn bits(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(address) => (u32::from(address).into(), true),
        IpAddr::V6(address) => (u128::from(address), false),
    }
}

fn first_of(bits: u128, prefix: u32) -> u128 {
    bits & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_addresses() {
        for (range, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("192.168.1.7", "192.168.1.7", true),
            ("192.168.1.7", "192.168.1.8", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "::1", false),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe00::1", false),
            ("::/0", "::1", true),
            ("::1", "::1", true),
            // The address is one of the range, not its first.
            ("10.1.2.3/8", "10.9.9.9", true),
        ] {
            let network: Network = range.parse().expect(range);
            assert_eq!(network.contains(address.parse().expect(address)), expected, "{range}");
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/-1", "host/8", "10.0.0.0/"]
        {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
