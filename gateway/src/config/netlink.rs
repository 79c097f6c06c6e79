//! What the kernel says about interfaces, addresses and routes (rtnetlink(7)).
//!
//! Netlink rather than `/proc/net/route`: it names the interface of each address and shows the routes of all tables.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTN_UNICAST: u8 = 1;

/// The number of an interface; `None` if there is none of that name.
///
/// # Errors
/// If the system cannot be asked.
pub fn interface(name: &str) -> io::Result<Option<u32>> {
    let socket = net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    match net::netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The addresses of an interface.
///
/// # Errors
/// If the system cannot be asked.
pub fn addresses(interface: u32) -> io::Result<Vec<IpAddr>> {
    let mut found = vec![];
    dump(RTM_GETADDR, |kind, body| {
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let Some((head, rest)) = body.split_first_chunk::<8>() else { return };
        let [_, _, _, _, index @ ..] = *head;
        if kind != RTM_NEWADDR || u32::from_ne_bytes(index) != interface {
            return;
        }
        let all: Vec<_> = attributes(rest).collect();
        // On point-to-point links IFA_ADDRESS is the other end, and IFA_LOCAL this one.
        let own = [IFA_LOCAL, IFA_ADDRESS]
            .iter()
            .find_map(|wanted| all.iter().find(|(kind, _)| kind == wanted).map(|(_, value)| *value));
        found.extend(own.and_then(ip));
    })?;
    Ok(found)
}

/// Whether some routing table has a default route through an interface.
///
/// # Errors
/// If the system cannot be asked.
pub fn carries_default_route(interface: u32) -> io::Result<bool> {
    let mut found = false;
    dump(RTM_GETROUTE, |kind, body| {
        // struct rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags.
        let Some((head, rest)) = body.split_first_chunk::<12>() else { return };
        let [_, destination, _, _, _, _, _, route, ..] = *head;
        if kind != RTM_NEWROUTE || destination != 0 || route != RTN_UNICAST {
            return;
        }
        found |= attributes(rest).any(|(kind, value)| match kind {
            RTA_OIF => number(value) == Some(interface),
            RTA_MULTIPATH => hops(value).any(|hop| hop == interface),
            _ => false,
        });
    })?;
    Ok(found)
}

/// Asks for a dump and shows each message's kind and body.
fn dump(request: u16, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is 0, the default.
        None,
    )?;
    // struct nlmsghdr, then a zeroed struct rtgenmsg padded to the size of the larger structures.
    let mut message = [0u8; 16 + 12];
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&request.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    net::send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let (received, _) = net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let Some(head) = rest.first_chunk::<16>() {
            let [a, b, c, d, e, f, ..] = *head;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            let kind = u16::from_ne_bytes([e, f]);
            let (Some(body), true) = (rest.get(16..length), length >= 16) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink message cut off"));
            };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => each(kind, body),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The attributes (struct rtattr) after a message's fixed part.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

/// The interfaces of a multipath route (struct rtnexthop).
fn hops(mut rest: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let [a, b, _, _, index @ ..] = *rest.first_chunk::<8>()?;
        let length = usize::from(u16::from_ne_bytes([a, b])).max(8);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(u32::from_ne_bytes(index))
    })
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        16 => <[u8; 16]>::try_from(value).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_as_every_machine_has_it() {
        let lo = interface("lo").unwrap().unwrap();
        assert!(addresses(lo).unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        // IPv6 keeps an unreachable default route on lo, which is none.
        assert!(!carries_default_route(lo).unwrap());
        assert_eq!(interface("no-such-iface0").unwrap(), None);
    }
}
