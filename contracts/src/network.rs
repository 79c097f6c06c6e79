//! Address ranges that a contract may be bound to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use bincode::{Decode, Encode};

/// An address range in CIDR form (RFC 4632, RFC 4291); host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    v6: bool,
    /// IPv4 in the lowest 32 bits.
    base: u128,
    prefix: u8,
}

/// Text that is no address range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not `ADDRESS` or `ADDRESS/BITS`.
    #[error("`{0}` is not an address or an address range such as `10.77.0.0/24`")]
    Form(String),
    /// Bits below the prefix are set.
    #[error("`{given}` has bits set below its prefix; write `{meant}`")]
    HostBits {
        /// The text as given.
        given: String,
        /// The range that contains it.
        meant: Network,
    },
}

fn bits(address: IpAddr) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (false, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (true, u128::from(v6)),
    }
}

fn mask(v6: bool, prefix: u8) -> u128 {
    let width = if v6 { 128 } else { 32 };
    let free = u32::from(width - prefix);
    let all = if v6 { u128::MAX } else { u128::from(u32::MAX) };
    if free == 128 { 0 } else { all & (u128::MAX << free) }
}

impl Network {
    /// The range that holds `address` alone.
    pub fn host(address: IpAddr) -> Network {
        let (v6, base) = bits(address);
        Network { v6, base, prefix: if v6 { 128 } else { 32 } }
    }

    /// Whether the range holds `address`. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (v6, value) = bits(address);
        v6 == self.v6 && value & mask(v6, self.prefix) == self.base
    }

    /// The meet of two ranges: the narrower if one lies in the other, otherwise none.
    pub fn meet(self, other: Network) -> Option<Network> {
        let (wide, narrow) = if self.prefix <= other.prefix { (self, other) } else { (other, self) };
        (wide.v6 == narrow.v6 && narrow.base & mask(wide.v6, wide.prefix) == wide.base).then_some(narrow)
    }

    /// The number of fixed leading bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The first address of the range.
    pub fn address(&self) -> IpAddr {
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from(self.base))
        } else {
            // The constructor keeps IPv4 bases within 32 bits.
            IpAddr::V4(Ipv4Addr::from((self.base & u128::from(u32::MAX)) as u32))
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let form = || NetworkError::Form(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| form())?)),
        };
        let (v6, value) = bits(address.parse::<IpAddr>().map_err(|_| form())?);
        let width = if v6 { 128 } else { 32 };
        let prefix = prefix.unwrap_or(width);
        if prefix > width {
            return Err(form());
        }
        let network = Network { v6, base: value & mask(v6, prefix), prefix };
        if network.base == value {
            Ok(network)
        } else {
            Err(NetworkError::HostBits { given: text.to_owned(), meant: network })
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Encode for Network {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        (self.v6, self.base, self.prefix).encode(encoder)
    }
}

impl<Context> Decode<Context> for Network {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let (v6, base, prefix) = <(bool, u128, u8)>::decode(decoder)?;
        if prefix > if v6 { 128 } else { 32 } || base & mask(v6, prefix) != base {
            return Err(bincode::error::DecodeError::Other("invalid network"));
        }
        Ok(Network { v6, base, prefix })
    }
}
bincode::impl_borrow_decode!(Network);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let net: Network = "10.77.0.0/24".parse().unwrap();
        assert!(net.contains("10.77.0.255".parse().unwrap()));
        assert!(net.contains("::ffff:10.77.0.1".parse().unwrap()));
        assert!(!net.contains("10.77.1.0".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains("255.1.2.3".parse().unwrap()));
        assert!("::/0".parse::<Network>().unwrap().contains("fd00::1".parse().unwrap()));
        assert!(matches!("10.77.0.1/24".parse::<Network>(), Err(NetworkError::HostBits { .. })));
        for bad in ["", "10.77.0.0/33", "ten", "10.77.0.0/", "10.77.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn meet_is_the_narrower_or_nothing() {
        let wide: Network = "10.77.0.0/16".parse().unwrap();
        let narrow: Network = "10.77.3.0/24".parse().unwrap();
        assert_eq!(wide.meet(narrow), Some(narrow));
        assert_eq!(narrow.meet(wide), Some(narrow));
        assert_eq!(narrow.meet("10.78.0.0/24".parse().unwrap()), None);
        assert_eq!(wide.meet("::/0".parse().unwrap()), None);
    }
}
