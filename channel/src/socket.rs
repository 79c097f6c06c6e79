//! A stream socket: TCP between guests, or Unix within the storage guest (admin door).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// How long data may stay unacknowledged before the connection counts as lost (TCP_USER_TIMEOUT, RFC 5482).
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// Between guests.
    Tcp(TcpStream),
    /// Within one guest.
    Unix(UnixStream),
}

/// Where a door is: `ADDRESS:PORT`, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    pub(crate) fn connect(&self, timeout: Duration) -> io::Result<Socket> {
        match self {
            Address::Tcp(address) => TcpStream::connect_timeout(address, timeout).map(Socket::Tcp),
            Address::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Text that is no address of a door.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither `ADDRESS:PORT` (such as `10.77.0.1:7070`) nor `unix:/path/to/socket`")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            Some(_) => Err(AddressError(text.to_owned())),
            None => text.parse().map(Address::Tcp).map_err(|_| AddressError(text.to_owned())),
        }
    }
}

impl Socket {
    /// Sets what every connection wants: no delay of small frames, and notice of a peer that is gone.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        if let Socket::Tcp(tcp) = self {
            tcp.set_nodelay(true)?;
            let socket = socket2::SockRef::from(tcp);
            let keepalive = socket2::TcpKeepalive::new()
                .with_time(Duration::from_secs(10))
                .with_interval(Duration::from_secs(5))
                .with_retries(3);
            socket.set_tcp_keepalive(&keepalive)?;
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        }
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.set_read_timeout(timeout),
            Socket::Unix(socket) => socket.set_read_timeout(timeout),
        }
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.set_write_timeout(timeout),
            Socket::Unix(socket) => socket.set_write_timeout(timeout),
        }
    }

    pub(crate) fn shutdown(&self) {
        // A socket that is not connected any more is as shut as it can be.
        let _ = match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }

    /// Whether the peer has ended its side (poll(2), `POLLRDHUP`).
    pub(crate) fn is_ended(&self) -> bool {
        let fd = match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut polled = [PollFd::from_borrowed_fd(fd, gone)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // What cannot be asked goes on until it is used.
        poll(&mut polled, Some(&now)).is_ok() && polled.iter().any(|one| one.revents().intersects(gone))
    }

    /// The peer's address; `None` for a Unix socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(socket) => socket.peer_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&mut &*socket).read(buffer),
            Socket::Unix(socket) => (&mut &*socket).read(buffer),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&mut &*socket).write(bytes),
            Socket::Unix(socket) => (&mut &*socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
