//! Below the protocol: wrong keys, wrong versions, wrong protocols, silence and noise.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use strongroom_channel::{Address, ChannelError, ClientTls, Peer};
use strongroom_contracts::{Rights, SecretKey};
use strongroom_protocol::codec::{decode_header, encode_header};
use strongroom_protocol::hello::Answer;
use strongroom_protocol::{ALPN_ADMIN, ALPN_NATIVE};

use crate::raw::{RawTls, Show, frame_bytes};
use crate::support::LONG;
use crate::support::attacker::plain_hello;
use crate::support::gateway::{Gateway, grant};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

/// A hello that would be welcome from `holder`.
fn good_hello(gateway: &Gateway, holder: &SecretKey) -> Vec<u8> {
    let chain = gateway.contract("mail", &holder.public(), &[grant("shared", "/shared", Rights::READ_WRITE)]);
    let mut header = vec![];
    encode_header(&plain_hello(), &mut header).unwrap();
    frame_bytes(&header, &chain.to_bytes().unwrap())
}

/// Tries to get in; true if the gateway answered anything at all.
fn gets_an_answer(gateway: &Gateway, show: Show<'_>, alpn: &[&[u8]], hello: &[u8]) -> bool {
    match RawTls::connect(gateway.address, show, alpn) {
        Err(_) => false,
        // The client finishes its handshake before the server has judged its key (RFC 8446, 4.4.2).
        Ok(mut tls) => tls.send(hello).is_ok() && !tls.ends(),
    }
}

#[test]
fn a_good_client_gets_in_this_way() {
    let (gateway, holder) = (Gateway::start(), key());
    let hello = good_hello(&gateway, &holder);
    assert!(gets_an_answer(&gateway, Show::Own(&holder), &[ALPN_NATIVE], &hello));
}

#[test]
fn no_key_or_no_proof_of_it() {
    let (gateway, holder) = (Gateway::start(), key());
    let hello = good_hello(&gateway, &holder);
    assert!(!gets_an_answer(&gateway, Show::Nothing, &[ALPN_NATIVE], &hello));
    assert!(!gets_an_answer(&gateway, Show::Stolen(holder.public(), &key()), &[ALPN_NATIVE], &hello));
    let garbage = Show::Certificate(b"\x30\x03\x02\x01\x01".to_vec(), &holder);
    assert!(!gets_an_answer(&gateway, garbage, &[ALPN_NATIVE], &hello));
    let as_certificate = Show::Certificate(holder.public().to_spki(), &holder);
    assert!(!gets_an_answer(&gateway, as_certificate, &[ALPN_NATIVE], &hello));
}

#[test]
fn other_protocols_are_not_spoken() {
    let (gateway, holder) = (Gateway::start(), key());
    let hello = good_hello(&gateway, &holder);
    for alpn in [&[][..], &[&b"h2"[..]], &[b"strongroom/2"], &[ALPN_ADMIN], &[b"strongroom/1 "]] {
        assert!(!gets_an_answer(&gateway, Show::Own(&holder), alpn, &hello), "{alpn:?}");
    }
}

/// A ClientHello of TLS 1.2 without the extension that offers 1.3 (RFC 5246, 7.4.1.2).
fn client_hello_12() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session id; ECDHE-ECDSA and ECDHE-RSA with AES-128-GCM; no compression.
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    // supported_groups: x25519; signature_algorithms: ed25519, ecdsa_secp256r1_sha256; ALPN.
    let mut extensions = vec![0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 6, 0, 4, 8, 7, 4, 3];
    let alpn = ALPN_NATIVE;
    extensions.extend([0, 16, 0, alpn.len() as u8 + 3, 0, alpn.len() as u8 + 1, alpn.len() as u8]);
    extensions.extend(alpn);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(&extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

/// Sends bytes to the native door; what comes back until the end.
fn send_raw(gateway: &Gateway, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    // The door may close before it has read all.
    let _ = socket.write_all(bytes);
    let mut answer = vec![];
    match socket.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the door keeps the connection")
        }
        // A reset is an end too.
        _ => answer,
    }
}

#[test]
fn tls_12_is_refused() {
    let gateway = Gateway::start();
    let answer = send_raw(&gateway, &client_hello_12());
    // At most an alert (content type 21), never a ServerHello.
    assert!(answer.first().is_none_or(|kind| *kind == 21), "{answer:02x?}");
}

#[test]
fn noise_instead_of_a_handshake() {
    let (gateway, holder) = (Gateway::start(), key());
    let noise = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xff; 100_000],
        // A record of the greatest length that never ends its handshake message, over and over.
        [&[22, 3, 1, 0x40, 0][..], &[1; 0x4000]].concat().repeat(20),
        // An empty record; an alert; application data before any key.
        vec![22, 3, 1, 0, 0],
        vec![21, 3, 3, 0, 2, 2, 40],
        vec![23, 3, 3, 0, 5, 1, 2, 3, 4, 5],
        good_hello(&gateway, &holder),
    ];
    for bytes in &noise {
        let answer = send_raw(&gateway, bytes);
        assert!(answer.first().is_none_or(|kind| *kind == 21), "{answer:02x?}");
    }
    assert!(gets_an_answer(&gateway, Show::Own(&holder), &[ALPN_NATIVE], &good_hello(&gateway, &holder)));
}

#[test]
fn a_stalled_handshake_ends_and_holds_nobody_up() {
    let gateway = Gateway::with("[limits]\nstall = \"1s\"\npending-per-address = 4");
    let holder = key();
    let begin = Instant::now();
    let mut silent: Vec<_> = (0..4)
        .map(|n| {
            let socket =
                crate::support::attacker::socket_from(Some("127.0.0.9".parse().unwrap()), gateway.address);
            let strongroom_channel::Socket::Tcp(mut tcp) = socket else { panic!("not TCP") };
            // Nothing; a part of a record; a part of a hello.
            tcp.write_all(&client_hello_12()[..[0, 1, 5, 40][n]]).unwrap();
            tcp.set_read_timeout(Some(LONG)).unwrap();
            tcp
        })
        .collect();
    // Another guest gets in meanwhile.
    assert!(gets_an_answer(&gateway, Show::Own(&holder), &[ALPN_NATIVE], &good_hello(&gateway, &holder)));
    for tcp in &mut silent {
        let mut answer = vec![];
        let read = tcp.read_to_end(&mut answer);
        assert!(!read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "kept for ever");
    }
    assert!(begin.elapsed() < LONG);
    // Nor is a peer kept that completes the handshake and then says nothing, or half of a hello.
    let hello = good_hello(&gateway, &holder);
    for length in [0, 1, 7, 8, 12, hello.len() - 1] {
        let mut tls = RawTls::connect(gateway.address, Show::Own(&holder), &[ALPN_NATIVE]).unwrap();
        tls.send(&hello[..length]).unwrap();
        let answer = tls.frame().map(|(header, _)| decode_header(&header).unwrap());
        assert!(
            matches!(answer, None | Some(Answer::Refused(_))),
            "half a hello of {length} bytes: {answer:?}"
        );
    }
}

#[test]
fn a_client_does_not_talk_to_an_impostor() {
    // The other direction: a gateway with another key, on the right address.
    let (gateway, real) = (Gateway::start(), key());
    let client = ClientTls::new(&key(), Peer::Key(real.public()), ALPN_NATIVE).unwrap();
    match client.connect(&Address::Tcp(gateway.address), LONG).err() {
        Some(ChannelError::WrongPeer { expected, found }) => {
            assert_eq!((expected, found), (real.public().gateway_id(), gateway.id()));
        }
        other => panic!("{other:?}"),
    }
}
