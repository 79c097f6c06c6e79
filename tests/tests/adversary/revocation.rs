//! After the receipt nothing of the contract reaches the data: not from open handles, queued requests, other connections,
//! waiting locks, reconnects, nor after a crash.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use strongroom_contracts::{Chain, ContractId, Rights, SecretKey, Subject, Terms};
use strongroom_protocol::admin::{AdminAnswer, AdminRequest};
use strongroom_protocol::attr::{Handle, Lock, LockKind, SetAttr};
use strongroom_protocol::codec::encode_header;
use strongroom_protocol::hello::{Hello, RefusedCode};
use strongroom_protocol::op::{Meant, Op, Request, Slot};
use strongroom_protocol::reply::{Event, Failure, FenceReason};

use crate::support::attacker::{Attacker, BOTH, CREDENTIALS, Greeting, READ, Reply, named, plain_hello};
use crate::support::gateway::{Gateway, grant};
use crate::support::{LONG, wait_for};

const WRITERS: u16 = 8;

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn world() -> (Gateway, SecretKey, Terms) {
    let (gateway, holder) = (Gateway::start(), key());
    let grants = [grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)];
    let terms = gateway.terms("editor", &holder.public(), &grants);
    (gateway, holder, terms)
}

/// One writer: a pipeline of writes, appends, fsyncs, names and cuts on its own file, without waiting for replies.
fn write_without_end(
    sender: &strongroom_channel::Sender,
    handle: Handle,
    root: strongroom_protocol::attr::Node,
    slot: u16,
    sequence: u64,
    done: &AtomicU64,
) {
    let data = vec![slot as u8; 64 * 1024];
    for n in sequence.. {
        let name = || named(&format!("w{slot}-{}", n % 5));
        let (op, data): (Op, &[u8]) = match n % 8 {
            0..=3 => (Op::Write { handle, offset: (n % 16) * 65_536 }, &data),
            4 => (Op::Mkdir { parent: root, name: name(), mode: 0o755, by: CREDENTIALS }, &[]),
            5 => (Op::Rmdir { parent: root, name: name(), directory: Meant::Whichever }, &[]),
            6 => (Op::Fallocate { handle, mode: 0, offset: n * 4096, length: 4096 }, &[]),
            _ => (Op::Symlink { parent: root, name: name(), by: CREDENTIALS }, b"target"),
        };
        let mut header = vec![];
        let request = Request { id: n << 16 | u64::from(slot), slot: Slot { index: slot, sequence: n }, op };
        encode_header(&request, &mut header).unwrap();
        if sender.send(&header, data).is_err() {
            return;
        }
        let mut header = vec![];
        let request = Request {
            id: 1 << 63 | n << 16 | u64::from(slot),
            slot: Slot::default(),
            op: Op::Fsync { handle, data_only: false },
        };
        encode_header(&request, &mut header).unwrap();
        if sender.send(&header, &[]).is_err() {
            return;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Everything a fenced holder can try: old connections, new ones, every way of saying hello.
fn try_everything(
    gateway: &Gateway,
    holder: &SecretKey,
    chain: &Chain,
    old: &mut [Attacker],
    handle: Handle,
) {
    for session in &mut *old {
        for (op, data) in [
            (Op::Write { handle, offset: 0 }, &b"after the receipt"[..]),
            (Op::Fsync { handle, data_only: false }, b""),
            (Op::Read { handle, offset: 0, length: 10 }, b""),
            (Op::Ping, b""),
        ] {
            assert!(matches!(session.call_with(op, data).refused(), None | Some(Failure::Fenced)));
        }
    }
    let session = old[0].welcome.session;
    let bytes = chain.to_bytes().unwrap();
    for resume in [None, Some(session)] {
        for chain in [&bytes[..], &[]] {
            match gateway.dial(holder).hello(Hello { resume, ..plain_hello() }, chain) {
                Greeting::Refused(refusal) => assert!(
                    matches!(
                        refusal.code,
                        RefusedCode::Revoked | RefusedCode::NoSession | RefusedCode::NoContract
                    ),
                    "{refusal:?}"
                ),
                Greeting::Welcome(_) => panic!("let in after the receipt"),
                Greeting::Gone => panic!("no answer"),
            }
        }
    }
}

#[test]
fn nothing_reaches_the_data_after_the_receipt() {
    let (mut gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    gateway.admin().deposit(&chain);
    let mut first = gateway.enter(&holder, &chain);
    let second = gateway.join(&holder, first.welcome.session, 0);
    let third = gateway.join(&holder, first.welcome.session, WRITERS + 20);
    first.slot = WRITERS + 10;
    let root = first.root(0);
    let handles: Vec<_> =
        (0..WRITERS).map(|n| first.create(root, &format!("file{n}"), BOTH).handle()).collect();
    let busy = AtomicU64::new(0);

    let (receipt, at_receipt, mut old) = std::thread::scope(|scope| {
        for slot in 0..WRITERS {
            let sender = if slot % 2 == 0 { &first } else { &second }.channel.sender.clone();
            let (handle, busy) = (handles[usize::from(slot)], &busy);
            scope.spawn(move || write_without_end(&sender, handle, root, slot, 1, busy));
        }
        let readers: Vec<_> = [first, second]
            .into_iter()
            .map(|mut session| {
                scope.spawn(move || {
                    while session.receive().is_some() {}
                    session
                })
            })
            .collect();
        wait_for("the writers to be busy", || (busy.load(Ordering::Relaxed) > 200).then_some(()));
        let receipt = gateway.admin().revoke_contract(&gateway, terms.id);
        // Taken at once: whatever is different later came after the receipt.
        let at_receipt = gateway.snapshot("users");
        let mut old: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        old.push(third);
        (receipt, at_receipt, old)
    });
    assert_eq!(receipt.sessions, 1);
    assert!(receipt.handles_closed >= u32::from(WRITERS) && receipt.last_operation > 0, "{receipt:?}");
    assert!(old.iter().any(|session| session.events.contains(&Event::Fenced(FenceReason::Revoked))));

    for _ in 0..20 {
        try_everything(&gateway, &holder, &chain, &mut old, handles[0]);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(gateway.snapshot("users"), at_receipt, "something reached the data after the receipt");
    }
    // Nor does the gateway hold a file of it open.
    let open_files: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(gateway.data("users/alice/Documents")) && path.is_file())
        .collect();
    assert_eq!(open_files, Vec::<std::path::PathBuf>::new());
    gateway.wait_audit(&[("event", "fenced"), ("application", "editor")]);

    gateway.restart();
    try_everything(&gateway, &holder, &chain, &mut old, handles[0]);
    assert_eq!(gateway.snapshot("users"), at_receipt);
}

#[test]
fn a_crash_right_after_the_receipt_forgets_nothing() {
    let (mut gateway, holder, terms) = world();
    for round in 0..5u8 {
        let terms = Terms { id: ContractId::from_bytes([round + 1; 16]), ..terms.clone() };
        let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
        gateway.admin().deposit(&chain);
        let mut session = gateway.enter(&holder, &chain);
        let root = session.root(0);
        let handle = session.create(root, &format!("round{round}"), BOTH).handle();
        session.write(handle, 0, b"before").ok();
        let mut admin = gateway.admin();
        admin.revoke_contract(&gateway, terms.id);
        gateway.restart();
        let before = gateway.snapshot("users");
        try_everything(&gateway, &holder, &chain, &mut [session], handle);
        assert_eq!(gateway.snapshot("users"), before);
    }
}

#[test]
fn a_crash_in_the_middle_leaves_all_or_nothing() {
    // Without a receipt the contract may be void or not; with one it is void. A session is never half alive.
    let (mut gateway, _, terms) = world();
    for round in 0..6u8 {
        // A holder of its own: what an earlier round may have left valid is no answer here.
        let holder = key();
        let terms =
            Terms { id: ContractId::from_bytes([round + 100; 16]), holder: holder.public(), ..terms.clone() };
        let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
        let mut session = gateway.enter(&holder, &chain);
        let root = session.root(0);
        session.create(root, &format!("crash{round}"), BOTH).handle();
        let statement = crate::support::admin::revocation(&gateway, Subject::Contract(terms.id));
        let bytes = strongroom_contracts::codec::encode(&statement.sign(&gateway.issuer).unwrap()).unwrap();
        let mut admin = gateway.admin();
        let answered = std::thread::scope(|scope| {
            let asking = scope.spawn(move || admin.ask(&AdminRequest::Revoke, &bytes));
            std::thread::sleep(Duration::from_micros(300 * u64::from(round)));
            gateway.kill();
            asking.join().unwrap()
        });
        gateway.restart();
        match gateway.greet(&holder, &chain.to_bytes().unwrap()) {
            Greeting::Refused(refusal) => assert_eq!(refusal.code, RefusedCode::Revoked),
            Greeting::Welcome(mut session) => {
                let fenced = matches!(answered, Some((AdminAnswer::Fenced { .. }, _)));
                assert!(!fenced, "the receipt was given and forgotten: {:?}", session.welcome);
                assert!(session.is_alive());
                session.bye();
            }
            Greeting::Gone => panic!("no answer"),
        }
    }
}

#[test]
fn waiting_locks_and_queued_requests_end_with_the_fence() {
    let (gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let lock = Lock { owner: 1, pid: 1, start: 0, end: 9, kind: LockKind::Exclusive };
    // Another guest holds the lock.
    let other_key = key();
    let other = gateway.contract(
        "other",
        &other_key.public(),
        &[grant("users/alice/Documents", "/d", Rights::READ_WRITE)],
    );
    let mut other = gateway.enter(&other_key, &other);
    let report = other.find(0, "report");
    let held = other.open(report, BOTH).handle();
    other.call(Op::SetLock { handle: held, lock, wait: false, reclaim: false }).ok();

    let mut session = gateway.enter(&holder, &chain);
    let report = session.find(0, "report");
    let handle = session.open(report, BOTH).handle();
    let own = Lock { start: 100, end: 200, ..lock };
    session.call(Op::SetLock { handle, lock: own, wait: false, reclaim: false }).ok();
    let waiting =
        session.send(Slot::default(), Op::SetLock { handle, lock, wait: true, reclaim: false }, &[]).unwrap();
    let receipt = gateway.admin().revoke_contract(&gateway, terms.id);
    assert_eq!(receipt.sessions, 1);
    assert!(matches!(session.reply_to(waiting).refused(), None | Some(Failure::Fenced)));
    // Its locks are free for others, and the lock it waited for does not come to it.
    other.call(Op::SetLock { handle: held, lock: own, wait: false, reclaim: false }).ok();
    other
        .call(Op::SetLock {
            handle: held,
            lock: Lock { kind: LockKind::Unlock, ..lock },
            wait: false,
            reclaim: false,
        })
        .ok();
    other.call(Op::SetLock { handle: held, lock, wait: false, reclaim: false }).ok();
    assert!(other.is_alive());
}

#[test]
fn a_guest_that_reads_nothing_does_not_delay_the_receipt() {
    let (gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    std::fs::write(gateway.data("users/alice/Documents/large"), vec![7; 1 << 20]).unwrap();
    let mut session = gateway.enter(&holder, &chain);
    let large = session.find(0, "large");
    let handle = session.open(large, READ).handle();
    for _ in 0..64 {
        session.send(Slot::default(), Op::Read { handle, offset: 0, length: 1 << 20 }, &[]).unwrap();
    }
    // The replies are stuck in the sockets, and nobody will ever read them.
    let receipt = gateway.admin().revoke_contract(&gateway, terms.id);
    assert_eq!(receipt.sessions, 1);
    assert!(Duration::from_micros(receipt.took_us) < LONG);
    assert_eq!(gateway.greet(&holder, &chain.to_bytes().unwrap()).refused().code, RefusedCode::Revoked);
}

#[test]
fn rates_do_not_hold_a_fence_up() {
    let (gateway, holder, mut terms) = world();
    // One byte a second: the write below would take more than a week.
    terms.limits.write_rate = Some(1);
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &chain);
    let root = session.root(0);
    let handle = session.create(root, "slow", BOTH).handle();
    let mut ids = vec![];
    for _ in 0..4 {
        let op = Op::Write { handle, offset: 0 };
        let slot = session.next_slot(&op);
        ids.push(
            session
                .send(
                    Slot { index: ids.len() as u16 + 1, ..Slot { sequence: 1, ..slot } },
                    op,
                    &vec![1; 1 << 20],
                )
                .unwrap(),
        );
    }
    let receipt = gateway.admin().revoke_contract(&gateway, terms.id);
    assert_eq!(receipt.sessions, 1);
    let after = gateway.snapshot("users");
    assert!(matches!(session.reply_to(ids[3]).refused(), None | Some(Failure::Fenced)));
    assert_eq!(gateway.snapshot("users"), after);
}

#[test]
fn revoking_one_application_leaves_others_alone() {
    let (gateway, holder, terms) = world();
    let mut cut = gateway.enter(&holder, &Chain::issue(&terms, &gateway.issuer).unwrap());
    let other_key = key();
    let other = gateway.contract(
        "other",
        &other_key.public(),
        &[grant("users/alice/Documents", "/d", Rights::READ_WRITE)],
    );
    let mut other = gateway.enter(&other_key, &other);
    let root = other.root(0);
    let handle = other.create(root, "others", BOTH).handle();
    let stop = AtomicBool::new(false);
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let (stop, barrier) = (&stop, &barrier);
        let working = scope.spawn(move || {
            barrier.wait();
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) || n < 100 {
                other.write(handle, n, b"x").ok();
                n += 1;
            }
            n
        });
        barrier.wait();
        let subject = Subject::Application { application: terms.application.clone(), below_generation: 2 };
        assert_eq!(gateway.admin().revoke(&gateway, subject).sessions, 1);
        stop.store(true, Ordering::Relaxed);
        let written = working.join().unwrap();
        assert_eq!(std::fs::metadata(gateway.data("users/alice/Documents/others")).unwrap().len(), written);
    });
    assert!(matches!(cut.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
}

#[test]
fn a_reissue_brings_the_holder_back_and_nothing_of_the_old_session() {
    let (gateway, holder, terms) = world();
    let old = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &old);
    let root = session.root(0);
    let handle = session.create(root, "f", BOTH).handle();
    let subject = Subject::Application { application: terms.application.clone(), below_generation: 2 };
    gateway.admin().revoke(&gateway, subject);
    let dialled = gateway.dial(&holder);
    dialled.send_hello(Hello { wait: true, ..plain_hello() }, &[]);
    let newer = Terms { generation: 2, id: ContractId::from_bytes([2; 16]), ..terms };
    let answer = gateway.admin().deposit(&Chain::issue(&newer, &gateway.issuer).unwrap());
    assert!(matches!(answer, AdminAnswer::Deposited { .. }), "{answer:?}");
    let mut healed = dialled.answer().welcome();
    assert!(!healed.welcome.resumed && healed.welcome.session != session.welcome.session);
    assert!(!healed.write(handle, 0, b"old handle").is_ok());
    let cut = SetAttr { size: Some(0), ..SetAttr::default() };
    let f = healed.find(0, "f");
    assert!(healed.call(Op::Setattr { node: f, handle: None, set: cut, by: CREDENTIALS }).is_ok());
    assert!(matches!(session.write(handle, 0, b"old session"), Reply::Gone | Reply::Failed(Failure::Fenced)));
}

#[test]
fn a_local_fence_lasts_until_the_next_deposit() {
    let (mut gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &chain);
    let request = AdminRequest::FenceLocally { application: terms.application.clone() };
    let (answer, _) = gateway.admin().ask(&request, &[]).expect("an answer");
    assert!(matches!(answer, AdminAnswer::Fenced { sessions: 1, .. }), "{answer:?}");
    assert!(matches!(session.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
    assert_eq!(gateway.greet(&holder, &chain.to_bytes().unwrap()).refused().code, RefusedCode::Revoked);
    gateway.restart();
    assert_eq!(gateway.greet(&holder, &chain.to_bytes().unwrap()).refused().code, RefusedCode::Revoked);
    gateway.admin().deposit(&chain);
    gateway.enter(&holder, &chain);
}

#[test]
fn sessions_that_open_while_it_is_revoked_are_cut_too() {
    let (gateway, holder, terms) = world();
    for round in 0..20u8 {
        let terms = Terms { id: ContractId::from_bytes([round + 1; 16]), ..terms.clone() };
        let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
        let bytes = chain.to_bytes().unwrap();
        let revoked = AtomicBool::new(false);
        let opened = AtomicU64::new(0);
        let mut sessions = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut sessions = vec![];
                        while !revoked.load(Ordering::Acquire) {
                            match gateway.greet(&holder, &bytes) {
                                Greeting::Welcome(session) => sessions.push(*session),
                                Greeting::Refused(refusal) => assert!(
                                    matches!(
                                        refusal.code,
                                        RefusedCode::Revoked | RefusedCode::Busy | RefusedCode::NoSession
                                    ),
                                    "{refusal:?}"
                                ),
                                // Fenced between its opening and its welcome.
                                Greeting::Gone => {}
                            }
                            opened.fetch_add(1, Ordering::Relaxed);
                        }
                        sessions
                    })
                })
                .collect();
            wait_for("sessions to be opened", || (opened.load(Ordering::Relaxed) > 3).then_some(()));
            gateway.admin().revoke_contract(&gateway, terms.id);
            revoked.store(true, Ordering::Release);
            opening.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(!sessions.is_empty());
        for session in &mut sessions {
            let root = session.root(0);
            let made = session.create(root, "after", BOTH);
            assert!(matches!(made.refused(), None | Some(Failure::Fenced)));
        }
        assert!(gateway.admin().sessions().iter().all(|info| info.contract != terms.id));
        assert!(!gateway.data("users/alice/Documents/after").exists());
    }
}

/// Names of the gateway's threads that run before all others; the policy is field 41 of proc_pid_stat(5), 2 is SCHED_RR.
fn urgent_threads(gateway: &Gateway) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let mut names = vec![];
    for task in tasks {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
        if rest.split(' ').nth(38) == Some("2") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names
}

#[test]
fn only_administrators_are_served_before_all_others() {
    let (gateway, holder, terms) = world();
    let allowed = std::process::Command::new("chrt").args(["--rr", "1", "true"]).output();
    let allowed = allowed.is_ok_and(|output| output.status.success());
    let expected = |waiting| {
        let admins = ["accept"].into_iter().chain(std::iter::repeat_n("admin", waiting));
        if allowed { admins.map(str::to_owned).collect() } else { vec![] }
    };
    let becomes = |expected: Vec<String>| {
        wait_for(&format!("urgent threads: {expected:?}"), || {
            (urgent_threads(&gateway) == expected).then_some(())
        });
    };
    becomes(expected(0));
    // Each fence starts threads: to write the ledger, to tell the client, to forget the session.
    for round in 0..3u8 {
        let mut admin = gateway.admin();
        admin.status().expect("an answer");
        becomes(expected(1));
        let terms = Terms { id: ContractId::from_bytes([round + 1; 16]), ..terms.clone() };
        let mut session = gateway.enter(&holder, &Chain::issue(&terms, &gateway.issuer).unwrap());
        admin.revoke_contract(&gateway, terms.id);
        assert!(matches!(session.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
        becomes(expected(1));
        drop(admin);
        becomes(expected(0));
    }
}
