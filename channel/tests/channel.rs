//! Both ends over real sockets: what arrives, who is refused, and what a broken peer can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use strongroom_channel::{Address, Channel, ChannelError, ClientTls, Frame, Peer, ServerTls, Socket};
use strongroom_contracts::SecretKey;
use strongroom_protocol::frame::{MAX_DATA, MAX_HEADER};

/// A guard against hanging for ever, never a measure of success.
const LONG: Duration = Duration::from_secs(60);

fn pair() -> (Channel, Channel, SecretKey, SecretKey) {
    let (server_key, client_key) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let server = ServerTls::new(&server_key, &[b"one", b"two"]).unwrap();
    let client = ClientTls::new(&client_key, Peer::Key(server_key.public()), b"two").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let accepting =
        thread::spawn(move || server.accept(Socket::Tcp(listener.accept().unwrap().0), LONG).unwrap());
    let near = client.connect(&address, LONG).unwrap();
    (near, accepting.join().unwrap(), client_key, server_key)
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * 31 + n / 251 + seed) % 256) as u8).collect()
}

#[test]
fn both_ends_know_each_other_and_the_protocol() {
    let (near, far, client_key, server_key) = pair();
    assert_eq!(near.peer, server_key.public());
    assert_eq!(far.peer, client_key.public());
    assert_eq!((near.alpn.as_slice(), far.alpn.as_slice()), (&b"two"[..], &b"two"[..]));
    assert!(far.peer_addr.unwrap().ip().is_loopback());
}

#[test]
fn a_peer_that_is_gone_is_noticed_without_receiving() {
    let (near, far, ..) = pair();
    near.sender.send(b"still here", b"").unwrap();
    assert!(!far.closer.peer_is_gone() && !near.closer.peer_is_gone());
    near.closer.close();
    let begun = std::time::Instant::now();
    while !far.closer.peer_is_gone() {
        assert!(begun.elapsed() < LONG, "in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_of_every_size_arrive_whole_and_in_order() {
    let (near, mut far, ..) = pair();
    let sizes = [(1, 0), (17, 1), (100, 16_384), (MAX_HEADER, 16_385), (5, 131_072), (9, MAX_DATA), (2, 3)];
    let sending = thread::spawn(move || {
        for (n, (header, data)) in sizes.into_iter().enumerate() {
            near.sender.send(&pattern(header, n), &pattern(data, n)).unwrap();
        }
        let many: Vec<_> = (0..100).map(|n| (pattern(20, n), pattern(n * 40, n))).collect();
        let frames: Vec<_> = many.iter().map(|(header, data)| (header.as_slice(), data.as_slice())).collect();
        near.sender.send_all(&frames).unwrap();
        near.closer.close();
    });
    let mut frame = Frame::new();
    for (n, (header, data)) in sizes.into_iter().enumerate() {
        assert!(far.receiver.recv(&mut frame).unwrap());
        assert!(frame.header() == pattern(header, n) && frame.data() == pattern(data, n), "frame {n}");
    }
    for n in 0..100 {
        assert!(far.receiver.recv(&mut frame).unwrap());
        assert!(frame.header() == pattern(20, n) && frame.data() == pattern(n * 40, n), "frame {n}");
    }
    assert!(!far.receiver.recv(&mut frame).unwrap());
    sending.join().unwrap();
}

#[test]
fn who_does_not_wait_for_other_senders_keeps_its_order_and_loses_nothing() {
    const SENDERS: usize = 8;
    const FRAMES: usize = 3000;
    let (near, mut far, ..) = pair();
    let senders: Vec<_> = (0..SENDERS)
        .map(|who| {
            let sender = near.sender.clone();
            thread::spawn(move || {
                for n in 0..FRAMES {
                    let header = [&[who as u8][..], &(n as u32).to_le_bytes()].concat();
                    // Now and then a long one, and one of those that wait.
                    let data = pattern(if n % 500 == 7 { 300_000 } else { n % 97 }, who);
                    match n % 11 {
                        0 => sender.send(&header, &data).unwrap(),
                        _ => sender.send_soon(&header, &data).unwrap(),
                    }
                }
            })
        })
        .collect();
    let mut next = [0; SENDERS];
    let mut frame = Frame::new();
    for _ in 0..SENDERS * FRAMES {
        assert!(far.receiver.recv(&mut frame).unwrap());
        let (who, n) = frame.header().split_first().unwrap();
        let n = u32::from_le_bytes(n.try_into().unwrap()) as usize;
        let expected = std::mem::replace(&mut next[usize::from(*who)], n + 1);
        assert_eq!(n, expected, "sender {who}");
        let length = if n % 500 == 7 { 300_000 } else { n % 97 };
        assert_eq!(frame.data(), pattern(length, usize::from(*who)), "sender {who}, frame {n}");
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn what_is_held_back_goes_with_the_next_or_when_told_or_before_waiting() {
    let (near, mut far, ..) = pair();
    let nothing = |far: &mut Channel| {
        far.receiver.set_timeout(Some(Duration::from_millis(20))).unwrap();
        let received = far.receiver.recv(&mut Frame::new());
        assert!(matches!(received, Err(ChannelError::TimedOut)), "{received:?}");
        far.receiver.set_timeout(Some(LONG)).unwrap();
    };
    let expect = |far: &mut Channel, headers: &[&[u8]]| {
        let mut frame = Frame::new();
        for header in headers {
            assert!(far.receiver.recv(&mut frame).unwrap());
            assert_eq!((frame.header(), frame.data()), (*header, &b"data"[..]));
        }
    };
    let Channel { sender, mut receiver, .. } = near;
    assert!(sender.hold(b"1", b"data").unwrap() && sender.hold(b"2", b"data").unwrap());
    nothing(&mut far);
    sender.send(b"3", b"data").unwrap();
    expect(&mut far, &[b"1", b"2", b"3"]);

    assert!(sender.hold(b"4", b"data").unwrap());
    sender.send_soon(b"5", b"data").unwrap();
    expect(&mut far, &[b"4", b"5"]);

    assert!(sender.hold(b"6", b"data").unwrap());
    nothing(&mut far);
    sender.flush().unwrap();
    expect(&mut far, &[b"6"]);

    assert!(sender.hold(b"7", b"data").unwrap());
    let waiting = thread::spawn(move || receiver.recv(&mut Frame::new()));
    expect(&mut far, &[b"7"]);

    assert!(!sender.hold(b"8", &[0; 100_000]).unwrap(), "too long to be held back");
    let held = (0..1000).take_while(|_| sender.hold(b"9", b"data").unwrap()).count();
    assert!((2..1000).contains(&held), "{held}");
    sender.send(b"0", b"data").unwrap();
    expect(&mut far, &vec![&b"9"[..]; held]);
    expect(&mut far, &[b"0"]);
    far.closer.close();
    assert!(!matches!(waiting.join().unwrap(), Ok(true)));
}

#[test]
fn many_senders_and_both_directions_at_once() {
    let (near, far, ..) = pair();
    let work = |channel: Channel| {
        let Channel { sender, mut receiver, .. } = channel;
        let senders: Vec<_> = (0..4)
            .map(|who: usize| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for n in 0..50 {
                        sender.send(&[who as u8, n as u8], &pattern(n * 7919, who)).unwrap();
                    }
                })
            })
            .collect();
        let receiving = thread::spawn(move || {
            let (mut frame, mut next) = (Frame::new(), [0usize; 4]);
            for _ in 0..200 {
                assert!(receiver.recv(&mut frame).unwrap());
                let (who, n) = (frame.header()[0] as usize, frame.header()[1] as usize);
                assert_eq!(n, next[who]);
                next[who] += 1;
                assert!(frame.data() == pattern(n * 7919, who));
            }
        });
        (senders, receiving)
    };
    let (a, b) = (work(near), work(far));
    for (senders, receiving) in [a, b] {
        receiving.join().unwrap();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}

/// The client's Finished and its first frames in one segment: a relay holds them back until the client has sent all.
#[test]
fn frames_that_come_with_the_end_of_the_handshake_are_not_lost() {
    let (server_key, client_key) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let server = ServerTls::new(&server_key, &[b"p"]).unwrap();
    let client = ClientTls::new(&client_key, Peer::Key(server_key.public()), b"p").unwrap();
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let back = TcpListener::bind("127.0.0.1:0").unwrap();
    let front_address = Address::Tcp(front.local_addr().unwrap());
    let mut to_server = TcpStream::connect(back.local_addr().unwrap()).unwrap();
    let accepting =
        thread::spawn(move || server.accept(Socket::Tcp(back.accept().unwrap().0), LONG).unwrap());
    let sending = thread::spawn(move || {
        let near = client.connect(&front_address, LONG).unwrap();
        near.sender.send(b"first", &pattern(20_000, 1)).unwrap();
        near.sender.send(b"second", b"2").unwrap();
        near
    });
    let (mut from_client, _) = front.accept().unwrap();
    let mut chunk = vec![0; 65_536];
    let count = from_client.read(&mut chunk).unwrap();
    to_server.write_all(&chunk[..count]).unwrap();
    let mut back_to_client = from_client.try_clone().unwrap();
    let mut from_server = to_server.try_clone().unwrap();
    let relaying = thread::spawn(move || std::io::copy(&mut from_server, &mut back_to_client));
    let near = sending.join().unwrap();
    let count = from_client.read(&mut chunk).unwrap();
    assert!(count > 20_000, "the relay has Finished and the first frame together");
    to_server.write_all(&chunk[..count]).unwrap();
    let mut far = accepting.join().unwrap();
    let mut frame = Frame::new();
    assert!(far.receiver.recv(&mut frame).unwrap());
    assert!(frame.header() == b"first" && frame.data() == pattern(20_000, 1));
    assert!(far.receiver.recv(&mut frame).unwrap());
    assert_eq!((frame.header(), frame.data()), (&b"second"[..], &b"2"[..]));
    near.closer.close();
    far.closer.close();
    relaying.join().unwrap().ok();
}

#[test]
fn another_gateway_is_refused_by_name() {
    let (real, impostor) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let server = ServerTls::new(&impostor, &[b"p"]).unwrap();
    let client =
        ClientTls::new(&SecretKey::generate().unwrap(), Peer::Gateway(real.public().gateway_id()), b"p")
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let accepting =
        thread::spawn(move || server.accept(Socket::Tcp(listener.accept().unwrap().0), LONG).err());
    match client.connect(&address, LONG).err() {
        Some(ChannelError::WrongPeer { expected, found }) => {
            assert_eq!(expected, real.public().gateway_id());
            assert_eq!(found, impostor.public().gateway_id());
        }
        other => panic!("{other:?}"),
    }
    assert!(accepting.join().unwrap().is_some());
}

#[test]
fn an_unknown_protocol_is_refused() {
    let (server_key, client_key) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let server = ServerTls::new(&server_key, &[b"p"]).unwrap();
    let client = ClientTls::new(&client_key, Peer::Key(server_key.public()), b"q").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let accepting =
        thread::spawn(move || server.accept(Socket::Tcp(listener.accept().unwrap().0), LONG).err());
    assert!(client.connect(&address, LONG).is_err());
    assert!(matches!(accepting.join().unwrap(), Some(ChannelError::Tls(_))));
}

#[test]
fn garbage_and_silence_end_the_handshake() {
    let key = SecretKey::generate().unwrap();
    let server = ServerTls::new(&key, &[b"p"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut raw = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    raw.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(matches!(
        server.accept(Socket::Tcp(listener.accept().unwrap().0), LONG),
        Err(ChannelError::Tls(_))
    ));
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(matches!(
        server.accept(Socket::Tcp(listener.accept().unwrap().0), Duration::from_millis(50)),
        Err(ChannelError::TimedOut)
    ));
}

#[test]
fn a_time_out_leaves_the_connection_usable() {
    let (near, mut far, ..) = pair();
    far.receiver.set_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut frame = Frame::new();
    assert!(matches!(far.receiver.recv(&mut frame), Err(ChannelError::TimedOut)));
    assert!(!far.receiver.mid_frame());
    near.sender.send(b"h", b"d").unwrap();
    while let Err(error) = far.receiver.recv(&mut frame) {
        assert!(matches!(error, ChannelError::TimedOut));
    }
    assert_eq!((frame.header(), frame.data()), (&b"h"[..], &b"d"[..]));
}

#[test]
fn a_frame_that_cannot_be_sent_harms_nothing() {
    let (near, mut far, ..) = pair();
    assert!(matches!(near.sender.send(b"", b"x"), Err(ChannelError::TooLong { .. })));
    assert!(matches!(near.sender.send(b"h", &vec![0; MAX_DATA + 1]), Err(ChannelError::TooLong { .. })));
    near.sender.send(b"h", b"").unwrap();
    let mut frame = Frame::new();
    assert!(far.receiver.recv(&mut frame).unwrap());
    assert_eq!(frame.header(), b"h");
}

#[test]
fn closing_frees_a_blocked_receiver_and_a_blocked_sender() {
    let (near, far, ..) = pair();
    let Channel { mut receiver, closer, .. } = far;
    let blocked = thread::spawn(move || receiver.recv(&mut Frame::new()));
    closer.close();
    assert!(!matches!(blocked.join().unwrap(), Ok(true)));

    let sending = thread::spawn(move || {
        let data = vec![0; MAX_DATA];
        while near.sender.send(b"h", &data).is_ok() {}
    });
    sending.join().unwrap();
}
