//! What survives kill -9 of the gateway.

use std::collections::HashSet;
use std::time::Duration;

use strongroom_contracts::{Detection, OnVerdict, Subject};
use strongroom_protocol::admin::AdminRequest;
use strongroom_protocol::attr::{Lock, LockKind, OpenFlags};
use strongroom_protocol::hello::{RefusedCode, SessionId};
use strongroom_protocol::op::{Meant, Op, Request, Slot};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::{Client, ME, World, key, name};

#[test]
fn sessions_slots_and_claims_survive_the_process() {
    let mut world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.grants = vec![crate::support::grant("mail", "/Mail", strongroom_contracts::Rights::APPEND_ONLY)];
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let (handle, entry) = client.create(root, "kept");
    client.write(handle, 0, b"first");
    let last = client.sequences[0];
    world.restart();

    let mut again = world.resume(&holder, client.welcome.session).unwrap();
    assert!(again.welcome.resumed && again.welcome.boot != client.welcome.boot);
    again.sequences = client.sequences.clone();
    // The reply cache: the last request of the slot comes again and is not run again.
    std::fs::write(world.data().join("mail/kept"), b"changed since").unwrap();
    let write = Op::Write { handle, offset: 0 };
    again.send_request(
        &Request { id: 77, slot: Slot { index: 0, sequence: last }, op: write.clone() },
        b"first",
    );
    assert_eq!(again.reply(), (77, Outcome::Written { count: 5, size: 5 }));
    assert_eq!(std::fs::read(world.data().join("mail/kept")).unwrap(), b"changed since");
    // Nodes and handles of the old process are unknown, and that does not use the number up.
    let next = Slot { index: 0, sequence: last + 1 };
    again.send_request(&Request { id: 78, slot: next, op: write }, b"again");
    assert_eq!(again.reply().1, Outcome::Failed(Failure::BadHandle));
    // Found again by path, opened again with the creator's rights under append-only.
    let resolved = again.call(Op::Resolve { grant: 0, ino: entry.node.ino }, b"kept");
    assert!(matches!(resolved, Outcome::Entry(found) if found.node == entry.node), "{resolved:?}");
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let reopen = Op::Reopen { node: entry.node, flags, created: true, directory: false };
    let handle = match again.call(reopen.clone(), &[]) {
        Outcome::Opened(handle, _) => handle,
        other => panic!("{other:?}"),
    };
    again.send_request(&Request { id: 79, slot: next, op: Op::Write { handle, offset: 0 } }, b"CHANGED");
    assert!(matches!(again.reply().1, Outcome::Written { count: 7, .. }));
    assert_eq!(std::fs::read(world.data().join("mail/kept")).unwrap(), b"CHANGED since");
    // Once released, the claim is gone for good.
    again.sequences[0] = last + 1;
    assert_eq!(again.call(Op::Release { handle, lock_owner: None }, &[]), Outcome::Done);
    world.restart();
    let mut again = world.resume(&holder, client.welcome.session).unwrap();
    again.call(Op::Resolve { grant: 0, ino: entry.node.ino }, b"kept");
    let refused = again.call(reopen, &[]);
    assert!(matches!(refused, Outcome::Failed(_)), "{refused:?}");
}

/// Goes on after a kill as a client does: resumes, resolves, and sends the same request with the same number again.
fn settle(
    world: &World,
    holder: &strongroom_contracts::SecretKey,
    session: SessionId,
    request: &Request,
) -> Outcome {
    let mut client = world.resume(holder, session).unwrap();
    let root = client.root();
    let id = client.send_in(0, Op::Resolve { grant: 0, ino: root.ino }, &[]);
    assert_eq!(client.reply().0, id);
    client.send_request(&Request { id: 1 << 40, ..request.clone() }, &[]);
    client.reply().1
}

#[test]
fn operations_run_once_across_kills_at_random_moments() {
    let mut world = World::new();
    let holder = key();
    let chain = world.contract(&holder);
    let mut client = world.client(&holder, &chain);
    let session = client.welcome.session;
    let root = client.root();
    let mut expected = HashSet::new();
    let mut sequence = 0;
    for round in 0..12u64 {
        // Requests one after the other until the gateway dies under them.
        let pid = world.pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(3_000 + round * 2_711));
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        let mut number = 0u64;
        loop {
            number += 1;
            sequence += 1;
            // Directories: a mkdir that runs twice fails, and one that does not run is missing. Each third is removed.
            let file = format!("{round}-{number}");
            let op = match number % 3 {
                0 => Op::Rmdir {
                    parent: root,
                    name: name(&format!("{round}-{}", number - 1)),
                    directory: Meant::Whichever,
                },
                _ => Op::Mkdir { parent: root, name: name(&file), mode: 0o755, by: ME },
            };
            let request = Request { id: client.id(), slot: Slot { index: 0, sequence }, op };
            let outcome = match attempt(&mut client, &request) {
                Some(outcome) => outcome,
                None => {
                    killer.join().unwrap();
                    world.restart();
                    let outcome = settle(&world, &holder, session, &request);
                    note(&mut expected, &request, &outcome, &file);
                    break;
                }
            };
            note(&mut expected, &request, &outcome, &file);
        }
        client = world.resume(&holder, session).unwrap();
        client.call(Op::Resolve { grant: 0, ino: root.ino }, &[]);
        let there: HashSet<String> = std::fs::read_dir(world.data().join("mail"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(there, expected, "round {round}");
    }
    assert!(sequence > 50, "the rounds were too short to show anything: {sequence} requests");
}

fn note(expected: &mut HashSet<String>, request: &Request, outcome: &Outcome, file: &str) {
    match (&request.op, outcome) {
        (Op::Mkdir { .. }, Outcome::Entry(_)) => assert!(expected.insert(file.to_owned())),
        (Op::Rmdir { name, .. }, Outcome::Done) => {
            assert!(expected.remove(std::str::from_utf8(name.as_bytes()).unwrap()));
        }
        other => panic!("{other:?}"),
    }
}

/// Sends and waits; `None` if the gateway died meanwhile.
fn attempt(client: &mut Client, request: &Request) -> Option<Outcome> {
    use strongroom_protocol::codec;
    use strongroom_protocol::reply::FromGateway;
    let mut header = vec![];
    codec::encode_header(request, &mut header).unwrap();
    client.channel.sender.send(&header, &[]).ok()?;
    match client.channel.receiver.recv(&mut client.frame) {
        Ok(true) => match codec::decode_header(client.frame.header()).unwrap() {
            FromGateway::Reply { id, outcome } => {
                assert_eq!(id, request.id);
                Some(outcome)
            }
            other => panic!("{other:?}"),
        },
        _ => None,
    }
}

#[test]
fn what_was_revoked_is_revoked_after_a_kill_at_any_moment() {
    let mut world = World::new();
    for round in 0..6u64 {
        let holder = key();
        world.contract(&holder);
        let terms = world.terms(&holder);
        let chain = world.issue(&terms);
        let _client = world.client(&holder, &chain);
        let statement = world.revocation(Subject::Contract(terms.id));
        let mut admin = world.admin();
        if round % 2 == 0 {
            admin.revoke(&statement);
            world.restart();
            assert_eq!(world.hello(&holder, &chain).err().unwrap().code, RefusedCode::Revoked);
        } else {
            // Unanswered: either it holds, or the issuer asks again and then it does.
            let pid = world.pid();
            let killer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(round * 900));
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            });
            let answered = admin.try_revoke(&statement);
            killer.join().unwrap();
            world.restart();
            if answered {
                assert_eq!(world.hello(&holder, &chain).err().unwrap().code, RefusedCode::Revoked);
            }
            world.admin().revoke(&statement);
            assert_eq!(world.hello(&holder, &chain).err().unwrap().code, RefusedCode::Revoked);
        }
    }
}

#[test]
fn kept_contracts_and_receipts_survive() {
    let mut world = World::new();
    let holder = key();
    world.admin().deposit(&world.contract(&holder));
    let statement = world
        .revocation(Subject::Application { application: crate::support::app("other"), below_generation: 2 });
    let receipt = world.admin().revoke(&statement);
    // The receipt is kept after the answer; a further answer on the same connection comes after that.
    let mut admin = world.admin();
    assert_eq!(admin.revoke(&statement), receipt);
    world.restart();
    assert_eq!(world.admin().revoke(&statement), receipt);
    assert!(world.hello(&holder, &[]).is_ok());
}

#[test]
fn locks_can_be_reclaimed_before_others_get_them() {
    let mut world = World::with_limits("lock-grace = \"2s\"");
    let holder = key();
    let chain = world.contract(&holder);
    let (mut a, mut b) = (world.client(&holder, &chain), world.client(&holder, &chain));
    let root = a.root();
    let (held, entry) = a.create(root, "f");
    let lock = Lock { owner: 1, pid: 1, start: 0, end: 9, kind: LockKind::Exclusive };
    let set = |handle, reclaim| Op::SetLock { handle, lock, wait: false, reclaim };
    assert_eq!(a.call(set(held, false), &[]), Outcome::Done);
    world.restart();
    let reopened = |client: &mut Client| {
        client.call(Op::Resolve { grant: 0, ino: entry.node.ino }, b"f");
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        match client.call(Op::Reopen { node: entry.node, flags, created: false, directory: false }, &[]) {
            Outcome::Opened(handle, _) => handle,
            other => panic!("{other:?}"),
        }
    };
    b = world.resume(&holder, b.welcome.session).unwrap();
    let wanted = reopened(&mut b);
    assert_eq!(b.call(set(wanted, false), &[]), Outcome::Failed(Failure::Grace));
    a = world.resume(&holder, a.welcome.session).unwrap();
    let held = reopened(&mut a);
    assert_eq!(a.call(set(held, true), &[]), Outcome::Done);
    const EAGAIN: u16 = 11;
    crate::support::eventually("the grace ends", || match b.call(set(wanted, false), &[]) {
        Outcome::Failed(Failure::Grace) => false,
        Outcome::Failed(Failure::Errno(EAGAIN)) => true,
        other => panic!("{other:?}"),
    });
}

/// New locks are given as soon as nobody is waited for; the time limit of this gateway is beyond that of any test.
#[test]
fn the_wait_for_old_locks_ends_when_all_are_claimed() {
    let lock = Lock { owner: 1, pid: 1, start: 0, end: 9, kind: LockKind::Exclusive };
    let set = |handle, reclaim| Op::SetLock { handle, lock, wait: false, reclaim };
    for over in ["claimed", "closed", "revoked"] {
        let mut world = World::with_limits("lock-grace = \"1h\"");
        let (holder, other) = (key(), key());
        let chain = world.contract(&holder);
        let mut terms = world.terms(&other);
        terms.application = crate::support::app("other");
        let others = world.issue(&terms);
        let mut sessions = [world.client(&holder, &chain), world.client(&other, &others)];
        for (n, client) in sessions.iter_mut().enumerate() {
            let root = client.root();
            let (handle, _) = client.create(root, &format!("f{n}"));
            assert_eq!(client.call(set(handle, false), &[]), Outcome::Done);
        }
        let quiet = world.client(&holder, &chain);
        world.restart();
        let mut quiet = world.resume(&holder, quiet.welcome.session).unwrap();
        let root = quiet.root();
        let (wanted, _) = quiet.create(root, "h");
        let grace = Outcome::Failed(Failure::Grace);
        // Who had none cannot end it, nor can one of two.
        assert_eq!(quiet.call(Op::Reclaimed, &[]), Outcome::Done);
        assert_eq!(quiet.call(set(wanted, false), &[]), grace);
        let mut first = world.resume(&holder, sessions[0].welcome.session).unwrap();
        assert_eq!(first.call(Op::Reclaimed, &[]), Outcome::Done);
        assert_eq!(first.call(Op::Reclaimed, &[]), Outcome::Done);
        assert_eq!(quiet.call(set(wanted, false), &[]), grace);
        match over {
            "claimed" => {
                let mut second = world.resume(&other, sessions[1].welcome.session).unwrap();
                assert_eq!(second.call(Op::Reclaimed, &[]), Outcome::Done);
            }
            "closed" => {
                let mut second = world.resume(&other, sessions[1].welcome.session).unwrap();
                assert_eq!(second.call(Op::Bye, &[]), Outcome::Done);
            }
            _ => {
                let subject =
                    Subject::Application { application: crate::support::app("other"), below_generation: 2 };
                world.admin().revoke(&world.revocation(subject));
            }
        }
        crate::support::eventually("new locks are given", || {
            let outcome = quiet.call(set(wanted, false), &[]);
            assert!(outcome == Outcome::Done || outcome == grace, "{over}: {outcome:?}");
            outcome == Outcome::Done
        });
    }
}

/// The process ends between the verdict, which is on the disk, and its fence, which is not: the next one fences.
#[test]
fn a_verdict_without_its_fence_is_carried_out_by_the_next_process() {
    let mut world = World::new();
    let holder = key();
    world.contract(&holder);
    for file in 0..10 {
        let text = format!("Letter {file}. Dear reader, all is well. ").repeat(100);
        std::fs::write(world.data().join(format!("mail/letter{file}.txt")), text).unwrap();
    }
    let mut terms = world.terms(&holder);
    terms.detection = Detection { verdict: OnVerdict::Fence, ..Detection::default() };
    let mut client = world.client(&holder, &world.issue(&terms));
    let session = client.welcome.session;
    world.kill();
    // What the ledger and the sessions were before the verdict.
    let kept = tempfile::tempdir().unwrap();
    copy(&world.state().join("sessions"), &kept.path().join("sessions"));
    std::fs::copy(world.state().join("ledger.redb"), kept.path().join("ledger.redb")).unwrap();
    world.start();

    let sequences = client.sequences.clone();
    client = world.resume(&holder, session).unwrap();
    client.sequences = sequences;
    let root = client.root();
    client.call(Op::Resolve { grant: 0, ino: root.ino }, &[]);
    let noise: Vec<u8> = (0..4096_u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(n | 1) >> 40) as u8)
        .collect();
    for file in 0..10 {
        let found = client.call(Op::Lookup { parent: root, name: name(&format!("letter{file}.txt")) }, &[]);
        let Outcome::Entry(entry) = found else { break };
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let opened = client.call(Op::Open { node: entry.node, flags }, &[]);
        let Outcome::Opened(handle, _) = opened else { break };
        if matches!(client.call(Op::Write { handle, offset: 0 }, &noise), Outcome::Failed(_)) {
            break;
        }
    }
    world.audited(&[("event", "fence")]);
    assert!(world.resume(&holder, session).is_err());
    world.kill();
    std::fs::remove_dir_all(world.state().join("sessions")).unwrap();
    copy(&kept.path().join("sessions"), &world.state().join("sessions"));
    std::fs::copy(kept.path().join("ledger.redb"), world.state().join("ledger.redb")).unwrap();
    world.start();

    let refused = world.resume(&holder, session).err().unwrap();
    assert_ne!(refused.code, RefusedCode::Busy, "{refused:?}");
    let refused = world.hello(&holder, &world.issue(&terms)).err().unwrap();
    assert_eq!(refused.code, RefusedCode::Revoked, "{refused:?}");
    let (_, told) = world.admin().ask(&AdminRequest::Alerts { boot: 0, after: 0, wait_ms: 0 }, &[]);
    assert!(String::from_utf8_lossy(&told).contains("harmed within a minute"), "nobody hears of it");
    // The next contract ends the fence, and it stays so.
    terms.generation = 2;
    let next = world.issue(&terms);
    world.admin().deposit(&next);
    world.client(&holder, &next);
    world.restart();
    world.client(&holder, &next);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
