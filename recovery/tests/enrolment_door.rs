//! The enrolment listener and guests that mean ill: whoever says nothing, or says it byte by byte, keeps nobody else out.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use strongroom_base::Base;
use strongroom_channel::{ChannelError, ClientTls, Frame, Peer, Socket};
use strongroom_contracts::{PublicKey, SecretKey};
use strongroom_protocol::ALPN_ENROL;
use strongroom_protocol::codec::{decode_header, encode_header};
use strongroom_protocol::enrol::{FromGuest, ToGuest};
use strongroom_recovery::{Daemon, Options};

/// Only a guard against hanging for ever.
const HANG_GUARD: Duration = Duration::from_secs(60);

struct Door {
    _dir: tempfile::TempDir,
    daemon: Arc<Daemon>,
    address: SocketAddr,
    key: PublicKey,
}

impl Door {
    fn open() -> Door {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap().public();
        // Nobody else has this port on this loopback address.
        let address = TcpListener::bind((Ipv4Addr::new(127, 77, 0, 2), 0)).unwrap().local_addr().unwrap();
        std::fs::create_dir_all(dir.path().join("base")).unwrap();
        std::fs::create_dir_all(dir.path().join("policy.d")).unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("base/base.toml", format!("gateway = \"{key}\"\nadmin = \"127.0.0.1:9\"\n"));
        write("base/recovery.toml", format!("[enrol]\naddress = \"{address}\"\n"));
        let base = Base::open(dir.path()).unwrap();
        let daemon = Daemon::start(base, Options { until_idle: true, ..Options::default() }).unwrap();
        let key = daemon.enrol_key.as_ref().unwrap().public();
        Door { _dir: dir, daemon, address, key }
    }

    /// A connection from a guest of this address.
    fn knock(&self, guest: u8) -> TcpStream {
        let from = SocketAddr::from((Ipv4Addr::new(127, 77, 1, guest), 0));
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &from).unwrap();
        connect(&socket, &self.address).unwrap();
        let stream = TcpStream::from(socket);
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([127, 77, 1, guest]));
        stream
    }

    fn handshake(&self, stream: TcpStream) -> Result<strongroom_channel::Channel, ChannelError> {
        let tls = ClientTls::new(&SecretKey::generate().unwrap(), Peer::Key(self.key), ALPN_ENROL).unwrap();
        tls.handshake(Socket::Tcp(stream), HANG_GUARD)
    }

    /// Whether a guest is heard: its beginning is answered by a challenge.
    fn hears(&self, guest: u8) -> bool {
        let Ok(mut channel) = self.handshake(self.knock(guest)) else { return false };
        let begin = FromGuest::Begin { incident: 1, application: "mail".parse().unwrap() };
        let mut header = vec![];
        encode_header(&begin, &mut header).unwrap();
        let mut frame = Frame::new();
        channel.receiver.set_timeout(Some(HANG_GUARD)).unwrap();
        channel.sender.send(&header, &[]).is_ok()
            && channel.receiver.recv(&mut frame).is_ok_and(|there| there)
            && matches!(decode_header(frame.header()), Ok(ToGuest::Challenge { .. }))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.daemon.stop();
    }
}

#[test]
fn a_guest_that_holds_many_connections_keeps_no_other_guest_out() {
    let door = Door::open();
    assert!(door.hears(9));
    // More than all places together, by one guest that says nothing.
    let silent: Vec<TcpStream> = (0..40).map(|_| door.knock(1)).collect();
    assert!(door.hears(9), "one silent guest has all places");
    drop(silent);
}

#[test]
fn a_guest_that_sends_byte_by_byte_is_cut_off() {
    let door = Door::open();
    let mut stream = door.knock(1);
    let channel = door.handshake(stream.try_clone().unwrap()).unwrap();
    // The header of a TLS record of 16 KiB (RFC 8446, 5.1), whose bytes then come one by one: each would begin a
    // time-out of the socket anew.
    stream.write_all(&[0x17, 3, 3, 0x40, 0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let begun = Instant::now();
    loop {
        let ended = match stream.read(&mut [0; 64]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        if ended || stream.write_all(&[0]).is_err() {
            break;
        }
        assert!(begun.elapsed() < HANG_GUARD / 2, "it holds its place for ever");
    }
    drop(channel);
    assert!(door.hears(1), "its place is free again");
}
