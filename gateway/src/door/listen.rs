//! Listening sockets: bound to one address and one interface, and bounded.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};
use strongroom_channel::Socket;

use crate::config::{AdminListen, Listen};
use crate::former;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// A socket that takes connections.
pub struct Listener {
    kind: Kind,
}

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Ends a [`Listener`]'s accepting from another thread.
pub struct Stopper {
    kind: Kind,
}

impl Listener {
    /// Listens as configured.
    ///
    /// # Errors
    /// If the system refuses; the text says what was tried.
    pub fn open(listen: &Listen) -> Result<Listener, String> {
        let tell = |doing: &str, error: io::Error| format!("cannot {doing} {}: {error}", listen.address);
        let domain = Domain::for_address(listen.address);
        let socket = RawSocket::new(domain, Type::STREAM, Some(Protocol::TCP))
            .map_err(|error| tell("open a socket for", error))?;
        socket.set_reuse_address(true).map_err(|error| tell("prepare", error))?;
        // Answers arriving by another interface would reach the address as well (the weak host model).
        match socket.bind_device(Some(listen.interface.as_bytes())) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(tell(&format!("bind to interface {} for", listen.interface), error));
            }
            _ => {}
        }
        let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        let listens = || socket.bind(&listen.address.into()).and_then(|()| socket.listen(BACKLOG));
        former::outwait(in_use, listens).map_err(|error| tell("listen on", error))?;
        Ok(Listener { kind: Kind::Tcp(socket.into()) })
    }

    /// Listens for administrators.
    ///
    /// # Errors
    /// As [`Listener::open`].
    pub fn open_admin(listen: &AdminListen) -> Result<Listener, String> {
        match listen {
            AdminListen::Tcp(listen) => Listener::open(listen),
            AdminListen::Unix(path) => Listener::open_unix(path),
        }
    }

    fn open_unix(path: &Path) -> Result<Listener, String> {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt};
        let tell = |error: io::Error| format!("cannot listen on {}: {error}", path.display());
        match std::fs::symlink_metadata(path) {
            // Left behind by a killed process; this one holds the lock of the state directory.
            Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(tell)?,
            Ok(_) => {
                return Err(format!(
                    "{} is there and no socket; remove it or choose another path",
                    path.display()
                ));
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(tell)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(tell)?;
        Ok(Listener { kind: Kind::Unix(listener, path.to_owned()) })
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn address(&self) -> io::Result<strongroom_channel::Address> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().map(strongroom_channel::Address::Tcp),
            Kind::Unix(_, path) => Ok(strongroom_channel::Address::Unix(path.clone())),
        }
    }

    /// What ends the accepting.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub fn stopper(&self) -> io::Result<Stopper> {
        let kind = match &self.kind {
            Kind::Tcp(listener) => Kind::Tcp(listener.try_clone()?),
            Kind::Unix(listener, path) => Kind::Unix(listener.try_clone()?, path.clone()),
        };
        Ok(Stopper { kind })
    }

    /// Hands each connection to `take` until the stopper ends it.
    pub fn run(&self, stopped: impl Fn() -> bool, take: impl Fn(Socket, Option<SocketAddr>)) {
        while !stopped() {
            let accepted = match &self.kind {
                Kind::Tcp(listener) => {
                    listener.accept().map(|(socket, from)| (Socket::Tcp(socket), Some(from)))
                }
                Kind::Unix(listener, _) => listener.accept().map(|(socket, _)| (Socket::Unix(socket), None)),
            };
            match accepted {
                Ok((socket, from)) => take(socket, from),
                Err(_) if stopped() => break,
                // Out of descriptors or memory: what is closed meanwhile makes room.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Stopper {
    /// Ends the accepting. To be called when `stopped` holds.
    pub fn stop(&self) {
        // A listening socket that is shut down wakes accept(2) with an error.
        let _ = match &self.kind {
            Kind::Tcp(listener) => SockRef::from(listener).shutdown(std::net::Shutdown::Both),
            Kind::Unix(listener, _) => SockRef::from(listener).shutdown(std::net::Shutdown::Both),
        };
        if let Kind::Unix(_, path) = &self.kind {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Counts connections that have not been welcomed yet, by address: a guest that opens many and says nothing uses up its
/// own share only.
#[derive(Clone, Default)]
pub struct Pending {
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One pending connection; counted out when dropped.
pub struct PendingOne {
    pending: Pending,
    address: IpAddr,
}

impl Pending {
    /// Counts a connection in, unless its address has `most` already.
    pub fn enter(&self, address: IpAddr, most: usize) -> Option<PendingOne> {
        let mut all = self.by_address.lock();
        let count = all.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(PendingOne { pending: self.clone(), address })
    }
}

impl Drop for PendingOne {
    fn drop(&mut self) {
        let mut all = self.pending.by_address.lock();
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_a_dying_process_has_is_waited_for() {
        let listen = |address: SocketAddr| {
            let open = Listen { address, interface: "lo".into(), network: "127.0.0.0/8".parse().unwrap() };
            Listener::open(&open)
        };
        let former = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let Ok(strongroom_channel::Address::Tcp(address)) = former.address() else { panic!("no address") };
        std::thread::scope(|scope| {
            let next = scope.spawn(move || listen(address).map(drop));
            std::thread::sleep(former::PACE * 10);
            drop(former);
            assert_eq!(next.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn pending_connections_are_counted_by_address() {
        let pending = Pending::default();
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = pending.enter(a, 2).unwrap();
        let _second = pending.enter(a, 2).unwrap();
        assert!(pending.enter(a, 2).is_none());
        assert!(pending.enter(b, 2).is_some());
        drop(first);
        assert!(pending.enter(a, 2).is_some());
        assert_eq!(pending.by_address.lock().len(), 1);
    }
}
