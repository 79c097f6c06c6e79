//! Revocation under load: after the receipt, nothing of the contract reaches the data.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use strongroom_contracts::Subject;
use strongroom_protocol::attr::{Lock, LockKind};
use strongroom_protocol::codec;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Failure, FenceReason, FromGateway, Outcome};

use crate::support::{World, app, eventually, key};

/// Contents and change times of everything below a directory.
fn picture(dir: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let path = entry.path().display().to_string();
        if meta.is_dir() {
            all.append(&mut picture(&entry.path()));
        }
        all.insert(path, (meta.size(), meta.ctime(), meta.ctime_nsec()));
    }
    all
}

#[test]
fn nothing_changes_after_the_receipt() {
    let world = Arc::new(World::new());
    for round in 0..4u64 {
        let holder = key();
        world.contract(&holder);
        let mut terms = world.terms(&holder);
        terms.generation = round + 1;
        let chain = world.issue(&terms);
        let stop = Arc::new(AtomicBool::new(false));
        let writes: Arc<[AtomicU64; 4]> = Arc::default();
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let mut client = world.client(&holder, &chain);
                let (stop, writes) = (stop.clone(), writes.clone());
                std::thread::spawn(move || {
                    let root = client.root();
                    let (handle, _) = client.create(root, &format!("file-{round}-{n}"));
                    let mut offset = 0;
                    // Several requests at a time, so that some are under way and some queued when the fence comes.
                    let mut slots: HashMap<u64, u16> = (0..8)
                        .map(|slot| (client.send_in(slot, Op::Write { handle, offset: 0 }, &[1; 4096]), slot))
                        .collect();
                    let mut fenced = false;
                    while !stop.load(Ordering::Relaxed) && !fenced {
                        let (id, outcome) = client.reply();
                        if offset % (64 * 4096) == 0 {
                            client.send_in(0, Op::Fsync { handle, data_only: false }, &[]);
                        }
                        match outcome {
                            Outcome::Done => {}
                            Outcome::Written { .. } => {
                                writes[n].fetch_add(1, Ordering::SeqCst);
                                offset += 4096;
                                let slot = slots.remove(&id).expect("an answer to an open request");
                                slots.insert(
                                    client.send_in(slot, Op::Write { handle, offset }, &[1; 4096]),
                                    slot,
                                );
                            }
                            Outcome::Failed(Failure::Fenced) => fenced = true,
                            other => panic!("{other:?}"),
                        }
                    }
                    assert!(fenced);
                })
            })
            .collect();
        eventually("all write", || writes.iter().all(|count| count.load(Ordering::SeqCst) > 50));
        let receipt = world.admin().revoke(&world.revocation(Subject::Contract(terms.id)));
        let before = picture(&world.data());
        assert_eq!((receipt.sessions, receipt.handles_closed, receipt.generation), (4, 4, round + 1));
        assert!(receipt.last_operation > 0 && receipt.took_us > 0);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(picture(&world.data()), before);
        assert!(world.hello(&holder, &chain).is_err());
    }
}

#[test]
fn revoking_twice_gives_the_same_receipt() {
    let world = World::new();
    let holder = key();
    let _client = world.client(&holder, &world.contract(&holder));
    let statement = world.revocation(Subject::Application { application: app("mail"), below_generation: 3 });
    let mut admin = world.admin();
    let first = admin.revoke(&statement);
    assert_eq!((first.sessions, first.generation), (1, 1));
    assert_eq!(admin.revoke(&statement), first);
    assert_eq!(world.admin().revoke(&statement), first);
    let other = world.revocation(Subject::Application { application: app("mail"), below_generation: 2 });
    let third = world.admin().revoke(&other);
    assert_eq!(third.sessions, 0);
    world.audited(&[("event", "revoke"), ("application", "mail")]);
    world.audited(&[("event", "fenced"), ("outcome", "revoked")]);
}

#[test]
fn waiting_locks_and_queued_requests_end_at_once() {
    let world = World::new();
    let (a, b) = (key(), key());
    let mut first = world.client(&a, &world.contract(&a));
    let mut terms = world.terms(&b);
    terms.application = app("editor");
    let mut second = world.client(&b, &world.issue(&terms));
    let root = first.root();
    let (held, _) = first.create(root, "locked");
    let lock = Lock { owner: 1, pid: 1, start: 0, end: u64::MAX, kind: LockKind::Exclusive };
    let set = |handle| Op::SetLock { handle, lock, wait: true, reclaim: false };
    assert_eq!(first.call(set(held), &[]), Outcome::Done);
    let root = second.root();
    let node = second.lookup(root, "locked").node;
    let (wanted, _) = second.open(node);
    let id = second.send_in(0, set(wanted), &[]);
    // The lock waits, and other requests do not wait behind it.
    assert_eq!(second.call(Op::Ping, &[]), Outcome::Done);
    let receipt = world.admin().revoke(&world.revocation(Subject::Contract(terms.id)));
    assert_eq!(receipt.sessions, 1);
    let (mut answered, mut told) = (false, false);
    while !(answered && told) {
        assert!(second.channel.receiver.recv(&mut second.frame).unwrap());
        match codec::decode_header(second.frame.header()).unwrap() {
            FromGateway::Reply { id: of, outcome } => {
                assert_eq!((of, outcome), (id, Outcome::Failed(Failure::Fenced)));
                answered = true;
            }
            FromGateway::Event(event) => {
                assert_eq!(event, Event::Fenced(FenceReason::Revoked));
                told = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(first.call(Op::Ping, &[]), Outcome::Done, "another contract is not concerned");
}

#[test]
fn a_client_that_reads_nothing_does_not_delay_the_fence() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let terms = world.terms(&holder);
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let (handle, _) = client.create(root, "big");
    client.write(handle, 0, &vec![7; 1 << 20]);
    // Replies that fill the socket until the gateway cannot send any more.
    for _ in 0..60 {
        client.send_in(0, Op::Read { handle, offset: 0, length: 1 << 20 }, &[]);
    }
    std::thread::sleep(Duration::from_millis(100));
    let receipt = world.admin().revoke(&world.revocation(Subject::Contract(terms.id)));
    assert_eq!(receipt.sessions, 1);
    // Half of the time after which a stalled send is given up would be a wait for the client.
    assert!(receipt.took_us < 5_000_000, "{} us", receipt.took_us);
}

#[test]
fn rate_limited_requests_end_with_the_fence() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.limits.write_rate = Some(1024);
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let (handle, _) = client.create(root, "slow");
    // Overdraws the bucket by many minutes.
    client.write(handle, 0, &vec![0; 1 << 20]);
    let waiting = client.send_in(0, Op::Write { handle, offset: 0 }, b"later");
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Done, "what writes nothing does not wait");
    let receipt = world.admin().revoke(&world.revocation(Subject::Contract(terms.id)));
    assert_eq!(receipt.drained, 0, "what waits for its rate is not inside");
    let (id, outcome) = client.reply();
    assert_eq!((id, outcome), (waiting, Outcome::Failed(Failure::Fenced)));
}

#[test]
fn forged_and_foreign_revocations_are_refused() {
    use strongroom_protocol::admin::{AdminAnswer, AdminFailure, AdminRequest};
    let world = World::new();
    let holder = key();
    let client = world.client(&holder, &world.contract(&holder));
    let good = world.revocation(Subject::Contract(client.welcome.contract));
    let refused = |statement: &[u8]| {
        let answer = world.admin().ask(&AdminRequest::Revoke, statement).0;
        assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
    };
    for at in (0..good.len()).step_by(17) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(&bad);
    }
    refused(&[]);
    refused(&World::prepare("").revocation(Subject::Contract(client.welcome.contract)));
    assert!(world.resume(&holder, client.welcome.session).is_ok());
}
