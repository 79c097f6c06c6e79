//! Leases over real connections: a client made by hand that answers, does not answer, lies, or is gone.

use std::time::{Duration, Instant};

use strongroom_contracts::SecretKey;
use strongroom_protocol::attr::{Node, OpenFlags, SetAttr};
use strongroom_protocol::codec;
use strongroom_protocol::lease::{Lease, LeaseTerms, Recalled, What};
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::{Event, FromGateway, Outcome};

use crate::support::{Client, HANG, ME, World, key, name};

// Kept so briefly that what other processes change in the file system of the data root is not watched: if their events
// are too many for the kernel's queue, everything is recalled, and these tests count recalls.
const SHORT: &str = "[leases]\nkeep = \"1s\"\nrecall = \"200ms\"";
const LONG: &str = "[leases]\nkeep = \"1s\"\nrecall = \"60s\"";

fn take(client: &mut Client) -> LeaseTerms {
    match client.call(Op::TakeLeases, &[]) {
        Outcome::Terms(terms) => terms,
        other => panic!("{other:?}"),
    }
}

fn chmod(node: Node) -> Op {
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    Op::Setattr { node, handle: None, set, by: ME }
}

/// What the former process did, and did not live to answer, it may not have lived to tell those who have what it replaced either.
#[test]
fn what_is_answered_again_after_a_restart_waits_for_who_is_not_back() {
    let mut world = World::with_limits(LONG);
    let holder = key();
    let chain = world.contract(&holder);
    let [mut changer, mut keeper] = [0; 2].map(|_| world.client(&holder, &chain));
    let root = changer.root();
    let (handle, _) = changer.create(root, "f");
    changer.write(handle, 0, b"data");
    let last = changer.sequences[0];
    take(&mut changer);
    take(&mut keeper);
    world.restart();
    let mut again = world.resume(&holder, changer.welcome.session).unwrap();
    take(&mut again);
    let request =
        Request { id: 77, slot: Slot { index: 0, sequence: last }, op: Op::Write { handle, offset: 0 } };
    again.send_request(&request, b"data");
    assert!(is_silent(&mut again), "somebody may still have what was there before");
    take(&mut world.resume(&holder, keeper.welcome.session).unwrap());
    assert_eq!(again.reply(), (77, Outcome::Written { count: 4, size: 4 }));
}

/// Two sessions of one holder, the first with leases on the root and on a file.
fn two(world: &World) -> (Client, Client, Node) {
    two_of(world, &key())
}

fn two_of(world: &World, holder: &SecretKey) -> (Client, Client, Node) {
    let chain = world.contract(holder);
    let (mut keeper, mut changer) = (world.client(holder, &chain), world.client(holder, &chain));
    take(&mut keeper);
    let root = keeper.root();
    let (handle, _) = changer.create(root, "f");
    changer.write(handle, 0, b"data");
    keeper.call(Op::Getattr { node: root, handle: None }, &[]);
    let node = keeper.lookup(root, "f").node;
    assert_eq!((keeper.note.node, keeper.note.names), (Lease::Shared, true));
    (keeper, changer, node)
}

/// The next recall.
fn recall(client: &mut Client) -> (u64, u64, Vec<Recalled>) {
    assert!(client.channel.receiver.recv(&mut client.frame).unwrap());
    match codec::decode_header(client.frame.header()).unwrap() {
        FromGateway::Event(Event::Recall { id, stamp }) => {
            (id, stamp, codec::decode_list(client.frame.data()).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

fn answer(client: &Client, id: u64) {
    client.send_request(&Request { id: 0, slot: Slot::default(), op: Op::Recalled { id } }, &[]);
}

fn is_silent(client: &mut Client) -> bool {
    client.channel.receiver.set_timeout(Some(Duration::from_millis(50))).unwrap();
    let silent = matches!(
        client.channel.receiver.recv(&mut client.frame),
        Err(strongroom_channel::ChannelError::TimedOut)
    );
    client.channel.receiver.set_timeout(Some(HANG)).unwrap();
    silent
}

#[test]
fn a_change_is_answered_when_the_other_has_forgotten() {
    let world = World::with_limits(&format!("in-flight = 4\n{LONG}"));
    let (mut keeper, mut changer, node) = two(&world);
    let terms_before = keeper.note.stamp;
    let asked = changer.send_in(1, chmod(node), &[]);
    let (id, stamp, items) = recall(&mut keeper);
    assert_eq!(items, [Recalled { node, what: What::All { data: false, open: false } }]);
    assert!(stamp > terms_before);
    assert!(is_silent(&mut changer), "answered before the recall was");
    // While it waits its connection is served, also when as many as may be in flight wait.
    let waiting: Vec<_> = (2..5).map(|slot| changer.send_in(slot, chmod(node), &[])).collect();
    assert!(is_silent(&mut keeper), "the same is not asked for twice");
    answer(&keeper, id);
    // An answer to nothing is no matter.
    (0..10).for_each(|_| answer(&keeper, 999));
    let mut answered: Vec<_> = (0..4).map(|_| changer.reply()).collect();
    answered.sort_by_key(|(id, _)| *id);
    assert!(answered.iter().all(|(_, outcome)| matches!(outcome, Outcome::Attr(_))), "{answered:?}");
    assert_eq!(answered.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [&[asked][..], &waiting].concat());
    let Outcome::Attr(attr) = keeper.call(Op::Getattr { node, handle: None }, &[]) else { panic!() };
    assert_eq!((attr.mode & 0o777, keeper.note.node), (0o600, Lease::Shared));
    assert!(keeper.note.stamp >= stamp);
}

#[test]
fn who_waits_for_leases_still_answers_recalls() {
    // As many wait as there are threads for slow requests: answers to recalls are read all the same.
    let world = World::with_limits(&format!("workers-per-session = 1\n{LONG}"));
    let holder = key();
    let chain = world.contract(&holder);
    let mut clients = [world.client(&holder, &chain), world.client(&holder, &chain)];
    let root = clients[0].root();
    for client in &mut clients {
        take(client);
        client.call(Op::Getattr { node: root, handle: None }, &[]);
    }
    for (which, client) in clients.iter_mut().enumerate() {
        for slot in 0..12 {
            let name = name(&format!("{which}-{slot}"));
            client.send_in(slot, Op::Mkdir { parent: root, name, mode: 0o700, by: ME }, &[]);
        }
    }
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || {
                let mut made = 0;
                while made < 12 {
                    assert!(client.channel.receiver.recv(&mut client.frame).unwrap());
                    match codec::decode_header(client.frame.header()).unwrap() {
                        FromGateway::Leased { outcome: Outcome::Entry(_), .. } => made += 1,
                        FromGateway::Event(Event::Recall { id, .. }) => answer(client, id),
                        other => panic!("{other:?}"),
                    }
                }
                // Recalls that come after the last answer.
                client.call(Op::Bye, &[])
            });
        }
    });
    assert_eq!(std::fs::read_dir(world.data().join("mail")).unwrap().count(), 24);
}

#[test]
fn who_does_not_answer_is_waited_for_once() {
    let world = World::with_limits(SHORT);
    let (mut keeper, mut changer, node) = two(&world);
    let began = Instant::now();
    assert!(matches!(changer.call(chmod(node), &[]), Outcome::Attr(_)));
    assert!(began.elapsed() >= Duration::from_millis(200));
    let (id, _, _) = recall(&mut keeper);
    assert_eq!(recall(&mut keeper).0, id, "asked twice");
    let lost = match keeper.event() {
        Event::LeasesLost { id, .. } => id,
        other => panic!("{other:?}"),
    };
    keeper.call(Op::Getattr { node, handle: None }, &[]);
    assert_eq!(keeper.note.node, Lease::None);
    answer(&keeper, lost);
    keeper.call(Op::Getattr { node, handle: None }, &[]);
    assert_eq!(keeper.note.node, Lease::Shared);
}

#[test]
fn recalls_find_another_connection_and_end_with_the_last() {
    let world = World::with_limits(LONG);
    let holder = key();
    let chain = world.contract(&holder);
    let (mut keeper, mut changer) = (world.client(&holder, &chain), world.client(&holder, &chain));
    let mut second = world.resume(&holder, keeper.welcome.session).unwrap();
    take(&mut keeper);
    take(&mut second);
    let (_, entry) = changer.create(keeper.root(), "f");
    keeper.lookup(keeper.root(), "f");
    // The recall goes to the first connection, which does not read and is cut.
    changer.send_in(1, chmod(entry.node), &[]);
    assert!(is_silent(&mut changer));
    keeper.channel.closer.close();
    let (id, _, _) = recall(&mut second);
    answer(&second, id);
    assert!(matches!(changer.reply().1, Outcome::Attr(_)));
    second.lookup(changer.root(), "f");
    assert_eq!(second.note.node, Lease::Shared);
    drop((keeper, second));
    // Nobody is left who could keep anything.
    assert!(matches!(changer.call(chmod(entry.node), &[]), Outcome::Attr(_)));
}

#[test]
fn after_a_restart_changes_wait_for_those_who_had_leases() {
    for comes_back in [true, false] {
        let mut world =
            World::with_limits(if comes_back { LONG } else { "[leases]\nkeep = \"1s\"\nrecall = \"2s\"" });
        let holder = key();
        let (keeper, changer, node) = two_of(&world, &holder);
        let sessions = (keeper.welcome.session, changer.welcome.session);
        drop((keeper, changer));
        world.restart();
        let started = Instant::now();
        let mut changer = world.resume(&holder, sessions.1).unwrap();
        let root = changer.root();
        let asked = changer.send_in(1, Op::Mkdir { parent: root, name: name("d"), mode: 0o700, by: ME }, &[]);
        if comes_back {
            assert!(is_silent(&mut changer));
            let mut keeper = world.resume(&holder, sessions.0).unwrap();
            // It may find its nodes, and write what it had answered, before it says that it takes leases again.
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            assert!(matches!(keeper.call(Op::Resolve { grant: 0, ino: node.ino }, b"f"), Outcome::Entry(_)));
            keeper.sequences = vec![0];
            let reopen = Op::Reopen { node, flags, created: false, directory: false };
            let Outcome::Opened(handle, _) = keeper.call(reopen, &[]) else { panic!() };
            assert_eq!(keeper.write(handle, 0, b"late"), 4);
            assert!(is_silent(&mut changer));
            take(&mut keeper);
        }
        let (answered, outcome) = changer.reply();
        assert_eq!(answered, asked);
        assert!(matches!(outcome, Outcome::Entry(_)), "{outcome:?}");
        assert!(comes_back || started.elapsed() >= Duration::from_secs(1), "nothing was waited for");
        assert!(started.elapsed() < Duration::from_secs(50));
    }
}
