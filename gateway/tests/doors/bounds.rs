//! Bounds: one holder's excess is its own trouble.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strongroom_channel::Address;
use strongroom_protocol::attr::OpenFlags;
use strongroom_protocol::hello::RefusedCode;
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::{Client, World, key};

#[test]
fn connections_and_sessions_are_bounded() {
    let world = World::with_limits("connections-per-session = 2\nsessions-per-holder = 2\nsessions = 3");
    let holder = key();
    let chain = world.contract(&holder);
    let first = world.client(&holder, &chain);
    let session = first.welcome.session;
    let _second = world.resume(&holder, session).unwrap();
    assert_eq!(world.resume(&holder, session).err().unwrap().code, RefusedCode::Busy);
    let other = world.client(&holder, &chain);
    assert_eq!(world.hello(&holder, &chain).err().unwrap().code, RefusedCode::Busy);
    // A session that nobody is connected to makes room.
    let gone = other.welcome.session;
    drop(other);
    crate::support::eventually("the abandoned session gives way", || world.hello(&holder, &chain).is_ok());
    assert_eq!(world.resume(&holder, gone).err().unwrap().code, RefusedCode::NoSession);
    let stranger = key();
    let _third = world.client(&stranger, &world.contract(&stranger));
    let fourth = key();
    assert_eq!(world.hello(&fourth, &world.contract(&fourth)).err().unwrap().code, RefusedCode::Busy);
}

#[test]
fn handles_are_bounded_by_gateway_and_contract() {
    let world = World::with_limits("handles = 3");
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    for (limit, most) in [(None, 3), (Some(2), 2), (Some(10), 3)] {
        terms.limits.open_handles = limit;
        terms.generation += 1;
        let mut client = world.client(&holder, &world.issue(&terms));
        let root = client.root();
        for n in 0..most {
            client.create(root, &format!("{}-{n}", terms.generation));
        }
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let create = Op::Create {
            parent: root,
            name: crate::support::name("more"),
            mode: 0o600,
            flags,
            by: crate::support::ME,
        };
        assert_eq!(client.call(create, &[]), Outcome::Failed(Failure::TooMany));
        assert!(!world.data().join("mail/more").exists(), "nothing half made");
    }
}

#[test]
fn requests_in_flight_are_bounded_and_none_is_lost() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.limits.in_flight = Some(2);
    terms.limits.write_rate = Some(1000);
    let mut client = world.client(&holder, &world.issue(&terms));
    assert_eq!(client.welcome.in_flight, 2);
    let root = client.root();
    let (handle, _) = client.create(root, "f");
    client.write(handle, 0, &[0; 1100]);
    // Two writes that wait for their rate fill the session; the ping behind them is not read before one of them ends.
    for slot in 0..2 {
        client.send_in(slot, Op::Write { handle, offset: 0 }, &[1; 300]);
    }
    let ping = client.send_in(0, Op::Ping, &[]);
    let mut answered = 0;
    for _ in 0..3 {
        if client.reply().0 == ping {
            // Its answer may overtake that of the write which made room for it, and not the write.
            let file = std::fs::read(world.data().join("mail/f")).unwrap();
            assert_eq!(file[0], 1, "it was read while two were in flight");
            answered += 1;
        }
    }
    assert_eq!(answered, 1);
}

#[test]
fn requests_out_of_order_are_refused() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let root = client.root();
    let mkdir = |file: &str| Op::Mkdir {
        parent: root,
        name: crate::support::name(file),
        mode: 0o755,
        by: crate::support::ME,
    };
    let mut ask = |index, sequence, file: &str| {
        client.send_request(&Request { id: 5, slot: Slot { index, sequence }, op: mkdir(file) }, &[]);
        client.reply().1
    };
    let bad = Outcome::Failed(Failure::BadSlot);
    assert_eq!(ask(0, 0, "a"), bad);
    assert_eq!(ask(0, 2, "a"), bad);
    assert_eq!(ask(u16::MAX, 1, "a"), bad);
    let first = ask(0, 1, "a");
    assert!(matches!(first, Outcome::Entry(_)));
    // The same number is the same request, whatever it says: answered, not run.
    assert_eq!(ask(0, 1, "b"), first);
    assert!(!world.data().join("mail/b").exists());
    assert!(matches!(ask(0, 2, "b"), Outcome::Entry(_)));
    assert_eq!(ask(0, 1, "c"), bad);
    world.audited(&[("event", "violation"), ("outcome", "bad slot"), ("op", "mkdir")]);
}

#[test]
fn malformed_requests_are_refused_and_the_connection_goes_on() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let root = client.root();
    for bad in [&b".."[..], b".", b"", b"a/b", b"a\0b", &[b'x'; 256], &[b'x'; 3000]] {
        // A lookup with a name that no codec of ours would make.
        let mut header = vec![];
        strongroom_protocol::codec::encode_header(
            &Request {
                id: 9,
                slot: Slot::default(),
                op: Op::Lookup { parent: root, name: crate::support::name("n") },
            },
            &mut header,
        )
        .unwrap();
        header.truncate(header.len() - 9);
        header.extend_from_slice(&(bad.len() as u64).to_le_bytes());
        header.extend_from_slice(bad);
        client.channel.sender.send(&header, &[]).unwrap();
        assert_eq!(client.reply(), (9, Outcome::Failed(Failure::Malformed)), "{bad:?}");
    }
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Done);
    world.audited(&[("event", "violation"), ("outcome", "malformed")]);
    // Without even a number, there is nothing to answer.
    client.channel.sender.send(&[1, 2, 3], &[]).unwrap();
    assert!(client.closed());
}

/// A TLS client over a socket whose other copy the test keeps, to write raw bytes.
fn raw(world: &World) -> TcpStream {
    match world.address.as_ref().unwrap() {
        Address::Tcp(address) => TcpStream::connect(address).unwrap(),
        Address::Unix(_) => panic!("the native door is TCP"),
    }
}

fn served(world: &World) -> Client {
    let holder = key();
    world.client(&holder, &world.contract(&holder))
}

#[test]
fn half_sent_frames_hold_nothing_for_ever() {
    let world = World::with_limits("stall = \"300ms\"");
    // A handshake that never goes on, and garbage instead of one.
    let mut silent = raw(&world);
    silent.write_all(&[0x16, 3, 1]).unwrap();
    let mut garbage = raw(&world);
    garbage.write_all(&[0xff; 600]).unwrap();
    for stream in [&silent, &garbage] {
        stream.set_read_timeout(Some(crate::support::HANG)).unwrap();
        let mut rest = vec![];
        let _ = std::io::Read::read_to_end(&mut { stream }, &mut rest);
    }
    let mut client = served(&world);
    let holder = key();
    let chain = world.contract(&holder);
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Done);
    // Idle connections stay.
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Done);
    let connection = world.connect(&holder);
    // No hello at all.
    std::thread::sleep(Duration::from_millis(900));
    let mut connection = connection;
    assert!(
        !matches!(connection.channel.receiver.recv(&mut connection.frame), Ok(true)) || {
            // The refusal says what was missing, and the connection ends.
            !matches!(connection.channel.receiver.recv(&mut connection.frame), Ok(true))
        }
    );
    assert!(world.hello(&holder, &chain).is_ok());
    world.audited(&[("event", "violation"), ("outcome", "handshake")]);
}

/// Passes bytes on between a client and the gateway; once told so, only the first of the next bytes from the client.
fn cut_off(world: &World) -> (SocketAddr, Arc<AtomicBool>) {
    use std::io::Read;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = raw(world);
    let cut = Arc::new(AtomicBool::new(false));
    let told = cut.clone();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let (mut back_from, mut back_to) = (gateway.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(std::net::Shutdown::Both);
        });
        let (mut from, mut to) = (client, gateway);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let pass = if told.load(Ordering::SeqCst) { count / 2 } else { count };
            if to.write_all(&buffer[..pass]).is_err() {
                break;
            }
            if pass < count {
                // Neither more bytes nor an end.
                std::thread::sleep(crate::support::HANG);
            }
        }
    });
    (address, cut)
}

#[test]
fn a_frame_that_stops_half_way_ends_its_connection_only() {
    let mut world = World::with_limits("stall = \"300ms\"");
    let holder = key();
    let chain = world.contract(&holder);
    let mut other = world.client(&holder, &chain);
    let (proxy, cut) = cut_off(&world);
    let direct = world.address.replace(Address::Tcp(proxy));
    let mut client = world.client(&holder, &chain);
    world.address = direct;
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Done);
    cut.store(true, Ordering::SeqCst);
    client.send_in(0, Op::Ping, &[]);
    assert!(client.closed());
    world.audited(&[("event", "violation"), ("outcome", "stalled")]);
    assert_eq!(other.call(Op::Ping, &[]), Outcome::Done);
    assert!(world.resume(&holder, client.welcome.session).is_ok(), "the session is not over for that");
}

#[test]
fn an_address_that_says_nothing_uses_up_its_own_share() {
    let world = World::with_limits("pending-per-address = 4\nstall = \"1s\"");
    let silent: Vec<_> = (0..12).map(|_| raw(&world)).collect();
    world.audited(&[("event", "refused"), ("outcome", "busy"), ("text", "have not said hello")]);
    // Their time runs out by itself.
    let holder = key();
    let chain = world.contract(&holder);
    crate::support::eventually("there is room again", || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.hello(&holder, &chain).is_ok()))
            .unwrap_or(false)
    });
    drop(silent);
}

/// Kilobytes of memory that a process has, by a line of /proc/PID/status.
fn memory(world: &World) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_session_costs_little() {
    const SESSIONS: u64 = 200;
    let world = World::with_limits("sessions-per-holder = 1000");
    let holder = key();
    let chain = world.contract(&holder);
    let mut clients = vec![];
    let mut open = |count: u64| {
        for _ in 0..count {
            let mut client = world.client(&holder, &chain);
            let root = client.root();
            let node = client.lookup(root, "f").node;
            client.open(node);
            clients.push(client);
        }
        memory(&world)
    };
    std::fs::write(world.data().join("mail/f"), b"x").unwrap();
    // What the first ones cost (arenas of the allocator, tables) is paid once.
    let before = open(50);
    let after = open(SESSIONS);
    let each = (after - before) * 1024 / SESSIONS;
    eprintln!("{each} bytes for each session with one connection and one open file");
    assert!(each < 160 * 1024, "{each} bytes");
}
