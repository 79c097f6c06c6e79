//! Leases: what is given to whom, and that nothing changes before those who keep it have let go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strongroom_contracts::{Grant, Rights};
use strongroom_gateway::engine::{EngineOptions, LeaseOptions, SessionBounds, Teller};
use strongroom_protocol::attr::{Attr, Node, OpenFlags, SetAttr};
use strongroom_protocol::codec;
use strongroom_protocol::lease::{Lease, Note, Recalled, What};
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::readdir::entries;
use strongroom_protocol::reply::{Event, Failure, Outcome};

use crate::support::*;

/// A hang guard.
pub const LONG: Duration = Duration::from_secs(60);
const ALL: What = What::All { data: false, open: false };

struct Inbox(Mutex<Sender<(Event, Vec<u8>)>>);

impl Teller for Inbox {
    fn tell(&self, event: Event, data: Vec<u8>, _: bool) {
        let _ = self.0.lock().unwrap().send((event, data));
    }
}

/// A guest that takes leases.
pub struct Taker {
    guest: Guest,
    pub inbox: Receiver<(Event, Vec<u8>)>,
}

impl std::ops::Deref for Taker {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

/// Recalls are waited for `recall`.
pub fn world(recall: Duration) -> World {
    let leases = LeaseOptions { recall, ..LeaseOptions::default() };
    let world = World::with(EngineOptions { leases, ..EngineOptions::default() });
    world.dirs(&["a/dir/sub"]);
    world.file("a/f", b"0123456789");
    world
}

pub fn taker_of(world: &World, grants: Vec<Grant>, most: usize) -> Taker {
    let bounds = SessionBounds { leases: most, ..SessionBounds::default() };
    let guest = world.bounded(grants, bounds, &[]);
    let (sender, inbox) = channel();
    guest.session.answer_to(Arc::new(Inbox(Mutex::new(sender))));
    assert!(matches!(guest.ask(&Op::TakeLeases), Outcome::Terms(_)));
    Taker { guest, inbox }
}

fn whole() -> Vec<Grant> {
    vec![grant("a", "/a", Rights::READ_WRITE)]
}

pub fn taker(world: &World) -> Taker {
    taker_of(world, whole(), 1000)
}

impl Taker {
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    pub fn guest_copy(&self) -> Guest {
        self.guest.copy()
    }

    /// Answers what has been recalled so far.
    pub fn answer_all(&self) {
        for (event, _) in self.inbox.try_iter() {
            if let Event::Recall { id, .. } | Event::LeasesLost { id, .. } = event {
                self.answer(id);
            }
        }
    }

    pub fn noted(&self, op: &Op) -> (Outcome, Note) {
        let (done, _) = self.done(op, b"");
        (done.outcome, done.note)
    }

    fn find(&self, parent: Node, text: &str) -> (Outcome, Note) {
        self.noted(&Op::Lookup { parent, name: name(text) })
    }

    /// Takes a lease on a node by looking at it.
    fn look(&self, node: Node) -> Note {
        let note = self.noted(&Op::Getattr { node, handle: None }).1;
        assert_ne!(note.node, Lease::None);
        note
    }

    /// The next recall: its number and what it says.
    pub fn recall(&self) -> (u64, Vec<Recalled>) {
        match self.inbox.recv_timeout(LONG).expect("a recall") {
            (Event::Recall { id, .. }, data) => (id, codec::decode_list(&data).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    pub fn answer(&self, id: u64) {
        assert_eq!(self.ask(&Op::Recalled { id }), Outcome::Done);
    }

    /// Answers everything, until the returned guard is dropped.
    fn answering(self) -> Answering {
        let over = Arc::new(AtomicBool::new(false));
        let (stop, guest) = (over.clone(), self.guest.copy());
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok((Event::Recall { id, .. } | Event::LeasesLost { id, .. }, _)) =
                    self.inbox.recv_timeout(Duration::from_millis(1))
                {
                    self.guest.ask(&Op::Recalled { id });
                }
            }
        });
        Answering { guest, over, thread: Some(thread) }
    }
}

struct Answering {
    guest: Guest,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

impl Guest {
    fn copy(&self) -> Guest {
        Guest {
            engine: self.engine.clone(),
            session: self.session.clone(),
            turnstile: self.turnstile.clone(),
        }
    }

    /// Carries something out on another thread; the receiver hears when it is done.
    fn beside(&self, op: Op) -> Receiver<Option<(Outcome, Note)>> {
        let (guest, (done, heard)) = (self.copy(), channel());
        std::thread::spawn(move || {
            let _ = done.send(guest.try_done(&op, b"").map(|(done, _)| (done.outcome, done.note)));
        });
        heard
    }
}

fn chmod(node: Node) -> Op {
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    Op::Setattr { node, handle: None, set, by: BY }
}

fn is_pending<T>(heard: &Receiver<T>) -> bool {
    heard.recv_timeout(Duration::from_millis(30)).is_err()
}

#[test]
fn who_does_not_take_leases_gets_none_and_who_may_not_list_neither() {
    let world = world(LONG);
    let plain = world.guest(whole());
    let root = plain.root(0);
    let (done, _) = plain.done(&Op::Getattr { node: root, handle: None }, b"");
    assert_eq!((done.note.node, done.note.names), (Lease::None, false));
    let drop_box = taker_of(&world, vec![grant("a", "/a", Rights::DROP_BOX)], 10);
    let root = drop_box.root(0);
    let op = Op::Create { parent: root, name: name("own"), mode: 0o600, flags: WRITE, by: BY };
    let (outcome, note) = drop_box.noted(&op);
    created(outcome);
    assert_eq!(note, Note { stamp: note.stamp, ..Note::default() });
    assert_eq!(drop_box.session.counters().leases, 0);
}

#[test]
fn every_way_of_reading_gives_a_lease() {
    let world = world(LONG);
    let taker = taker(&world);
    let (root, note) = taker.noted(&Op::Resolve { grant: 0, ino: 0 });
    let root = entry(root).node;
    assert_eq!(note.node, Lease::Shared);
    // Under the lease of the directory, names and their absence may be kept.
    let (found, note) = taker.find(root, "dir");
    let dir = entry(found).node;
    assert_eq!((note.node, note.names), (Lease::Shared, true));
    let (missing, note) = taker.find(dir, "none");
    assert_eq!((missing, note.names), (errno(libc::ENOENT), true));
    let file = entry(taker.find(root, "f").0).node;
    assert_eq!(taker.noted(&Op::Open { node: file, flags: READ }).1.node, Lease::Shared);
    // Nobody else has it.
    assert_eq!(taker.noted(&Op::Open { node: file, flags: WRITE }).1.node, Lease::Exclusive);
    assert_eq!(taker.look(file).node, Lease::Exclusive);
    let op = Op::Create { parent: root, name: name("new"), mode: 0o600, flags: BOTH, by: BY };
    let (made, note) = taker.noted(&op);
    let (handle, new) = created(made);
    assert_eq!((note.node, note.names), (Lease::Exclusive, true));
    assert_eq!(note.after.map(|attr| attr.ino), Some(root.ino));
    let (done, _) = taker.done(&Op::Write { handle, offset: 0 }, b"abc");
    assert_eq!((done.note.node, done.note.after.map(|attr| attr.size)), (Lease::Exclusive, Some(3)));
    assert_eq!(
        taker.noted(&Op::Mkdir { parent: root, name: name("d"), mode: 0o700, by: BY }).1.node,
        Lease::Shared
    );
    let list = opened(taker.ask(&Op::Opendir { node: root }));
    let (done, data) =
        taker.done(&Op::Readdir { handle: list, cookie: 0, max_bytes: 65_536, plus: true }, b"");
    assert_eq!((done.note.node, done.note.names), (Lease::Shared, true));
    assert!(entries(&data).all(|entry| entry.unwrap().leased));
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let (done, data) = taker.done(&Op::OpenRead { node: new.node, flags, offset: 1, length: 9 }, b"");
    opened(done.outcome);
    assert_eq!((done.note.node, &*data), (Lease::Exclusive, &b"bc"[..]));
    let (gone, note) = taker.noted(&Op::Unlink { parent: root, name: name("new") });
    assert_eq!((gone, note.after.map(|attr| attr.ino)), (Outcome::Done, Some(root.ino)));
    assert!(taker.inbox.try_recv().is_err(), "nobody is told of what he does himself");
}

/// What another session holds is recalled for each kind of change, and not before the answer is the change made.
#[test]
fn a_change_waits_for_those_who_keep_what_it_replaces() {
    struct Case {
        op: fn(&Guest, Node, Node) -> Op,
        recalled: fn(Node, Node) -> Vec<(Node, What)>,
    }
    let cases = [
        Case { op: |_, _, file| chmod(file), recalled: |_, file| vec![(file, ALL)] },
        Case {
            op: |_, root, _| Op::Mkdir { parent: root, name: name("new"), mode: 0o700, by: BY },
            recalled: |root, _| vec![(root, What::Name(name("new")))],
        },
        Case {
            op: |_, root, _| Op::Unlink { parent: root, name: name("f") },
            recalled: |root, file| {
                vec![(root, What::Name(name("f"))), (file, What::All { data: false, open: true })]
            },
        },
        Case {
            op: |_, root, _| Op::Rename {
                parent: root,
                name: name("f"),
                new_parent: root,
                new_name: name("g"),
                mode: RenameMode::Replace,
                directory: Meant::Whichever,
            },
            recalled: |root, file| {
                vec![(root, What::Name(name("f"))), (root, What::Name(name("g"))), (file, ALL)]
            },
        },
        Case {
            op: |_, root, file| Op::Link { node: file, parent: root, name: name("g") },
            recalled: |root, file| vec![(root, What::Name(name("g"))), (file, ALL)],
        },
        Case {
            op: |guest, _, file| {
                let handle = opened(guest.open(file, WRITE));
                Op::Fallocate { handle, mode: 0, offset: 0, length: 100 }
            },
            recalled: |_, file| vec![(file, What::All { data: true, open: false })],
        },
        Case {
            op: |_, _, file| Op::Open { node: file, flags: OpenFlags { truncate: true, ..WRITE } },
            recalled: |_, file| vec![(file, What::All { data: true, open: false })],
        },
        Case {
            op: |_, root, _| Op::Create {
                parent: root,
                name: name("f"),
                mode: 0,
                flags: OpenFlags { truncate: true, ..WRITE },
                by: BY,
            },
            recalled: |_, file| vec![(file, What::All { data: true, open: false })],
        },
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let world = world(LONG);
        let (keeper, changer) = (taker(&world), taker(&world));
        let root = keeper.root(0);
        let file = keeper.node(0, "f");
        assert_eq!((changer.root(0), changer.node(0, "f")), (root, file));
        let op = (case.op)(&changer, root, file);
        let before = tree(&world);
        let heard = changer.beside(op);
        let (id, mut items) = keeper.recall();
        let mut wanted: Vec<_> =
            (case.recalled)(root, file).into_iter().map(|(node, what)| Recalled { node, what }).collect();
        let key = |item: &Recalled| format!("{item:?}");
        items.sort_by_key(key);
        wanted.sort_by_key(key);
        assert_eq!(items, wanted, "case {number}");
        assert!(is_pending(&heard), "case {number} did not wait");
        assert_eq!(tree(&world), before, "case {number} was applied before the answer");
        // Meanwhile nothing new may be kept.
        for item in &items {
            let (_, note) = keeper.noted(&Op::Getattr { node: item.node, handle: None });
            assert_eq!(note.node, Lease::None, "case {number}");
        }
        assert!(!keeper.find(root, "f").1.names || !items.iter().any(|item| item.node == root));
        keeper.answer(id);
        let (outcome, _) = heard.recv_timeout(LONG).unwrap().unwrap();
        assert!(!matches!(outcome, Outcome::Failed(_)), "case {number}: {outcome:?}");
        assert_ne!(tree(&world), before);
    }
}

/// Names, modes and sizes.
fn tree(world: &World) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let list = std::fs::read_dir(world.path("a")).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = list
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            format!("{:?} {:o} {} {}", entry.file_name(), meta.mode(), meta.size(), meta.nlink())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn what_is_exclusive_is_shared_before_another_reads() {
    type Read = fn(&Guest, Node, Node) -> Op;
    let reads: [Read; 7] = [
        |_, _, file| Op::Getattr { node: file, handle: None },
        |_, root, _| Op::Lookup { parent: root, name: name("f") },
        |_, _, file| Op::Open { node: file, flags: READ },
        |_, _, file| Op::OpenRead { node: file, flags: READ, offset: 0, length: 4 },
        |_, _, file| Op::Getxattr { node: file },
        |guest, root, _| {
            let handle = opened(guest.ask(&Op::Opendir { node: root }));
            Op::Readdir { handle, cookie: 0, max_bytes: 65_536, plus: true }
        },
        |_, root, _| Op::List { node: root, cookie: 0, max_bytes: 65_536, plus: true, ahead: false },
    ];
    for (number, read) in reads.into_iter().enumerate() {
        for leases in [false, true] {
            let world = world(LONG);
            let writer = taker(&world);
            let root = writer.root(0);
            let keeper = leases.then(|| taker(&world));
            let reader = keeper.as_ref().map_or_else(|| world.guest(whole()), |keeper| keeper.guest.copy());
            let file = reader.node(0, "f");
            assert_eq!(reader.root(0), root);
            assert_eq!(writer.node(0, "f"), file);
            let handle = opened(writer.open(file, WRITE));
            if let Some(keeper) = &keeper {
                // The reader's own lease went with the first write.
                let heard = writer.beside(Op::Fallocate { handle, mode: 0, offset: 0, length: 11 });
                keeper.answer(keeper.recall().0);
                let (_, note) = heard.recv_timeout(LONG).unwrap().unwrap();
                assert_eq!(note.node, Lease::Exclusive);
            }
            assert_eq!(writer.look(file).node, Lease::Exclusive);
            let op = read(&reader, root, file);
            let op = if let Op::Getxattr { node } = op { Op::Listxattr { node } } else { op };
            let heard = reader.beside(op);
            let (id, items) = writer.recall();
            assert_eq!(items, [Recalled { node: file, what: What::Shared }], "read {number}");
            assert!(is_pending(&heard), "read {number} did not wait");
            // What the client had answered already is sent first.
            let (done, _) = writer.done(&Op::Write { handle, offset: 0 }, b"late");
            assert_eq!(done.outcome, Outcome::Written { count: 4, size: if leases { 11 } else { 10 } });
            assert_ne!(done.note.node, Lease::Exclusive);
            writer.answer(id);
            let (outcome, _) = heard.recv_timeout(LONG).unwrap().unwrap();
            assert!(!matches!(outcome, Outcome::Failed(_)), "read {number}: {outcome:?}");
            assert_eq!(writer.look(file).node, Lease::Shared);
        }
    }
}

#[test]
fn who_does_not_answer_loses_everything_and_later_for_longer() {
    let world = world(Duration::from_millis(50));
    let (silent, changer) = (taker(&world), world.guest(whole()));
    let (root, file) = (silent.root(0), silent.node(0, "f"));
    changer.root(0);
    changer.node(0, "f");
    assert!(silent.session.counters().leases > 1);
    let began = Instant::now();
    attr(changer.ask(&chmod(file)));
    assert!(began.elapsed() >= Duration::from_millis(50));
    let (id, _) = silent.recall();
    // Asked again half-way.
    assert_eq!(silent.recall().0, id);
    let Ok((Event::LeasesLost { id: lost, .. }, _)) = silent.inbox.recv_timeout(LONG) else { panic!() };
    assert_eq!(silent.session.counters().leases, 0);
    let lease = |taker: &Taker| taker.noted(&Op::Getattr { node: root, handle: None }).1.node;
    assert_eq!(lease(&silent), Lease::None);
    // An answer that is too late is none.
    silent.answer(id);
    assert_eq!(lease(&silent), Lease::None);
    silent.answer(lost);
    assert_eq!(lease(&silent), Lease::Shared);
    silent.look(file);
    // The second time it gets none for a while, whatever it answers; nor do other sessions under its contract.
    attr(changer.ask(&chmod(file)));
    silent.recall();
    silent.recall();
    let Ok((Event::LeasesLost { id: lost, .. }, _)) = silent.inbox.recv_timeout(LONG) else { panic!() };
    silent.answer(lost);
    assert_eq!(lease(&silent), Lease::None);
    let other = taker(&world);
    assert_eq!(other.root(0), root);
    assert_eq!(lease(&other), Lease::None);
    attr(changer.ask(&chmod(file)));
    assert!(silent.inbox.try_recv().is_err());
}

fn open_read(node: Node) -> Op {
    Op::OpenRead { node, flags: READ, offset: 0, length: 20 }
}

/// Whoever reads while a change is waited for gets no lease, and has what was there before. He is told when the change is made, and
/// it is not answered before he has let go.
#[test]
fn what_is_read_without_a_lease_is_asked_back_once_it_has_changed() {
    let world = world(LONG);
    let [keeper, reader, changer] = [0; 3].map(|_| taker(&world));
    let [file, _, _] = [&keeper, &reader, &changer].map(|taker| {
        taker.root(0);
        taker.node(0, "f")
    });
    keeper.look(file);
    let cut = Op::Setattr {
        node: file,
        handle: None,
        set: SetAttr { size: Some(4), ..SetAttr::default() },
        by: BY,
    };
    let heard = changer.beside(cut);
    let (id, _) = keeper.recall();
    reader.answer(reader.recall().0);
    let (done, data) = reader.done(&open_read(file), b"");
    let handle = opened(done.outcome);
    assert_eq!((done.note.node, &*data), (Lease::None, &b"0123456789"[..]));
    keeper.answer(id);
    let (id, items) = reader.recall();
    let told = [What::All { data: true, open: false }, What::Shorter(4)];
    assert_eq!(items, told.map(|what| Recalled { node: file, what }));
    assert!(is_pending(&heard), "the change was answered while a reader had what it replaced");
    // It is made, and leases are given again.
    assert_eq!(std::fs::read(world.path("a/f")).unwrap(), b"0123");
    let (done, _) = reader.done(&Op::Read { handle, offset: 0, length: 20 }, b"");
    assert_eq!(done.note.node, Lease::Shared);
    reader.answer(id);
    heard.recv_timeout(LONG).unwrap().unwrap();
    assert!(keeper.inbox.try_recv().is_err() && reader.inbox.try_recv().is_err());
}

fn resize(node: Node, size: u64) -> Op {
    Op::Setattr { node, handle: None, set: SetAttr { size: Some(size), ..SetAttr::default() }, by: BY }
}

#[test]
fn who_has_a_file_open_hears_how_long_it_is_before_that_is_answered() {
    let world = world(LONG);
    let [opener, changer] = [0; 2].map(|_| taker(&world));
    let [file, _] = [&opener, &changer].map(|taker| {
        taker.root(0);
        taker.node(0, "f")
    });
    let handle = opened(opener.ask(&open_read(file)));
    let heard = changer.beside(resize(file, 20));
    opener.answer(opener.recall().0);
    let (id, items) = opener.recall();
    assert_eq!(items, [Recalled { node: file, what: What::Longer(20) }]);
    assert!(is_pending(&heard), "it was answered while a kernel believed in what was before");
    assert_eq!(std::fs::metadata(world.path("a/f")).unwrap().len(), 20);
    opener.answer(id);
    attr(heard.recv_timeout(LONG).unwrap().unwrap().0);
    let heard = changer.beside(resize(file, 4));
    let (id, items) = opener.recall();
    assert_eq!(items, [Recalled { node: file, what: What::Shorter(4) }]);
    assert!(is_pending(&heard), "it was answered while a kernel believed in what was before");
    opener.answer(id);
    attr(heard.recv_timeout(LONG).unwrap().unwrap().0);
    // Whoever changes it himself knows.
    let heard = opener.beside(resize(file, 30));
    changer.answer(changer.recall().0);
    attr(heard.recv_timeout(LONG).unwrap().unwrap().0);
    let heard = changer.beside(resize(file, 40));
    opener.answer(opener.recall().0);
    assert_eq!(opener.recall().1, [Recalled { node: file, what: What::Longer(40) }]);
    assert_eq!(opener.ask(&Op::Release { handle, lock_owner: None }), Outcome::Done);
    // It has not answered, and yet has nobody wait for what comes later.
    let later = changer.beside(resize(file, 50));
    attr(later.recv_timeout(LONG).unwrap().unwrap().0);
    assert!(opener.inbox.try_recv().is_err() && is_pending(&heard));
}

/// It is asked for before recalls are answered.
#[test]
fn measuring_waits_for_nobody_and_gives_no_lease() {
    let world = world(LONG);
    let writer = taker(&world);
    let other = taker(&world);
    writer.root(0);
    let file = writer.node(0, "f");
    assert_eq!(writer.noted(&Op::Open { node: file, flags: WRITE }).1.node, Lease::Exclusive);
    other.root(0);
    let heard = other.beside(Op::Lookup { parent: other.root(0), name: name("f") });
    writer.answer(writer.recall().0);
    heard.recv_timeout(LONG).unwrap().unwrap();
    let heard = writer.beside(chmod(file));
    other.answer(other.recall().0);
    heard.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(writer.noted(&Op::Open { node: file, flags: WRITE }).1.node, Lease::Exclusive);
    let (done, _) = other.done(&Op::Measure { node: file, handle: None }, b"");
    assert_eq!((attr(done.outcome).size, done.note.node), (10, Lease::None));
    assert!(writer.inbox.try_recv().is_err(), "somebody was asked to let go");
    assert_eq!(writer.look(file).node, Lease::Exclusive);
}

/// His kernel is to hear how long it is before a write is answered.
#[test]
fn nobody_writes_early_to_what_another_has_open() {
    let world = world(LONG);
    let [writer, other] = [0; 2].map(|_| taker(&world));
    let [file, _] = [&writer, &other].map(|taker| {
        taker.root(0);
        taker.node(0, "f")
    });
    let handle = opened(other.open(file, READ));
    let heard = writer.beside(chmod(file));
    other.answer(other.recall().0);
    heard.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(writer.noted(&Op::Open { node: file, flags: WRITE }).1.node, Lease::Shared);
    assert_eq!(other.release(handle), Outcome::Done);
    assert_eq!(writer.noted(&Op::Open { node: file, flags: WRITE }).1.node, Lease::Exclusive);
}

/// As after a start of the process: who has not come back yet may have what he was told in the former one.
#[test]
fn who_has_not_come_back_is_waited_for_and_nobody_waits_for_himself() {
    let world = world(LONG);
    let [one, two] = [0; 2].map(|_| taker(&world));
    let [_, root] = [&one, &two].map(|taker| taker.root(0));
    let file = one.node(0, "f");
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let handle = opened(one.ask(&Op::Open { node: file, flags }));
    world.engine.begin_lease_grace([&*one.session, &*two.session].into_iter());
    // What it may have answered already, and what finds and opens its files again.
    let (written, _) = one.done(&Op::Write { handle, offset: 0 }, b"new");
    assert!(matches!(written.outcome, Outcome::Written { count: 3, .. }));
    assert_ne!(one.noted(&Op::Getattr { node: file, handle: None }).0, errno(libc::EAGAIN));
    let read = one.beside(Op::Read { handle, offset: 0, length: 3 });
    let changed = one.beside(chmod(file));
    assert!(is_pending(&read) && is_pending(&changed));
    two.ask(&Op::TakeLeases);
    assert_eq!(read.recv_timeout(LONG).unwrap().unwrap().0, Outcome::Data);
    attr(changed.recv_timeout(LONG).unwrap().unwrap().0);
    let looked = two.beside(Op::Lookup { parent: root, name: name("f") });
    assert!(is_pending(&looked), "the other one may have written, and not sent it yet");
    one.ask(&Op::TakeLeases);
    one.answer(one.recall().0);
    entry(looked.recv_timeout(LONG).unwrap().unwrap().0);
}

/// Who did not answer in time gets no leases for a while, and can keep nobody waiting by what he reads without them either.
#[test]
fn who_did_not_answer_is_told_of_what_he_reads_and_not_waited_for() {
    let world = world(Duration::from_millis(50));
    let (silent, changer) = (taker(&world), world.guest(whole()));
    silent.root(0);
    changer.root(0);
    let file = silent.node(0, "f");
    changer.node(0, "f");
    let handle = opened(silent.ask(&open_read(file)));
    let cut = |size| Op::Setattr {
        node: file,
        handle: None,
        set: SetAttr { size: Some(size), ..SetAttr::default() },
        by: BY,
    };
    let lost = || loop {
        match silent.inbox.recv_timeout(LONG) {
            Ok((Event::LeasesLost { id, .. }, _)) => break id,
            Ok((Event::Recall { .. }, _)) => {}
            other => panic!("{other:?}"),
        }
    };
    silent.look(file);
    attr(changer.ask(&cut(9)));
    silent.answer(lost());
    silent.look(file);
    attr(changer.ask(&cut(8)));
    let id = lost();
    assert_eq!(silent.recall().1, [Recalled { node: file, what: What::Shorter(8) }]);
    for (size, answers) in [(7, false), (6, true)] {
        // Before it has said that it knows of its loss, and after.
        if answers {
            silent.answer(id);
        }
        let (done, _) = silent.done(&Op::Read { handle, offset: 0, length: 20 }, b"");
        assert_eq!(done.note.node, Lease::None);
        attr(changer.ask(&cut(size)));
        let (_, items) = silent.recall();
        let told = [What::All { data: true, open: false }, What::Shorter(size)];
        assert_eq!(items, told.map(|what| Recalled { node: file, what }));
        assert!(silent.inbox.try_recv().is_err(), "it was waited for");
    }
}

#[test]
fn a_fence_ends_the_waiting_and_the_change_is_not_made() {
    let world = world(LONG);
    let (keeper, changer) = (taker(&world), taker(&world));
    keeper.node(0, "f");
    let root = keeper.root(0);
    changer.root(0);
    let heard = changer.beside(Op::Unlink { parent: root, name: name("f") });
    let (id, _) = keeper.recall();
    changer.turnstile.fence();
    let fenced = heard.recv_timeout(LONG).unwrap().unwrap().0;
    assert_eq!(fenced, Outcome::Failed(Failure::Fenced));
    changer.turnstile.drain(None);
    changer.session.close();
    assert!(world.path("a/f").exists());
    // The mark is gone with the operation, and an answer to what nobody waits for does no harm.
    keeper.answer(id);
    assert!(keeper.find(root, "f").1.names);
    // The other way round: a holder that is fenced is waited for no longer.
    let other = world.guest(whole());
    other.root(0);
    let heard = other.beside(Op::Unlink { parent: root, name: name("f") });
    keeper.recall();
    assert!(is_pending(&heard));
    keeper.turnstile.fence();
    keeper.turnstile.drain(None);
    keeper.session.close();
    assert_eq!(heard.recv_timeout(LONG).unwrap().unwrap().0, Outcome::Done);
}

#[test]
fn two_who_change_the_same_directory_never_wait_for_each_other() {
    let world = world(LONG);
    let began = Instant::now();
    let takers = [taker(&world).answering(), taker(&world).answering()];
    std::thread::scope(|scope| {
        for (which, taker) in takers.iter().enumerate() {
            for thread in 0..2 {
                let guest = taker.guest.copy();
                scope.spawn(move || {
                    let root = guest.root(0);
                    for n in 0..200 {
                        let own = format!("{which}-{thread}-{n}");
                        let (handle, _) = created(guest.create(root, &own, WRITE));
                        written(guest.write(handle, 0, b"x"));
                        guest.lookup(root, "0-0-0");
                        assert_eq!(guest.release(handle), Outcome::Done);
                        let to = format!("moved-{own}");
                        assert_eq!(
                            guest.rename((root, &own), (root, &to), RenameMode::Replace),
                            Outcome::Done
                        );
                        assert_eq!(guest.unlink(root, &to), Outcome::Done);
                        // One name that all fight for.
                        if let Outcome::Created(handle, _) = guest.create(root, "common", WRITE) {
                            guest.write(handle, 0, b"x");
                            guest.release(handle);
                        }
                        guest.unlink(root, "common");
                    }
                });
            }
        }
    });
    assert!(began.elapsed() < LONG, "somebody was waited for in vain");
}

#[test]
fn a_grant_within_another_is_another_holder() {
    let world = world(LONG);
    let grants = vec![grant("a", "/a", Rights::READ_WRITE), grant("a/dir", "/d", Rights::READ_WRITE)];
    let taker = taker_of(&world, grants, 1000);
    let outer = taker.node(0, "dir/sub");
    let inner = taker.node(1, "sub");
    assert_eq!(outer.ino, inner.ino);
    let heard = taker.beside(chmod(outer));
    let (id, items) = taker.recall();
    assert_eq!(items, [Recalled { node: inner, what: ALL }]);
    taker.answer(id);
    attr(heard.recv_timeout(LONG).unwrap().unwrap().0);
    assert_ne!(taker.look(outer).node, Lease::None);
}

#[test]
fn leases_are_bounded_and_the_unused_ones_go_first() {
    let world = world(LONG);
    (0..500).for_each(|n| world.file(&format!("a/many/{n}"), b""));
    let taker = taker_of(&world, whole(), 64);
    let root = taker.root(0);
    let dir = entry(taker.find(root, "many").0).node;
    let mut recalled = vec![];
    let mut given = 0;
    for n in 0..500 {
        given += usize::from(taker.find(dir, &n.to_string()).1.node != Lease::None);
        assert!(taker.session.counters().leases <= 64);
        while let Ok((Event::Recall { id, .. }, data)) = taker.inbox.try_recv() {
            let items: Vec<Recalled> = codec::decode_list(&data).unwrap();
            taker.answer(id);
            recalled.extend(items.into_iter().map(|item| item.node));
        }
    }
    assert!(given >= 450, "only {given} leases were given");
    assert!(given - recalled.len() <= 64);
    // The directory was used all the time.
    assert!(!recalled.contains(&dir));
    // Who does not answer gets no more, and keeps what it has.
    let most = taker.session.counters().leases;
    for n in 0..500 {
        taker.find(dir, &n.to_string());
    }
    assert!(taker.session.counters().leases >= most.min(60));
    assert!(taker.session.counters().leases <= 64);
    assert!(taker.inbox.try_iter().count() <= 4, "few recalls are left unanswered");
}

#[test]
fn who_never_looks_at_a_directory_loses_it() {
    let world = world(LONG);
    let (keeper, changer) = (taker(&world), world.guest(whole()));
    let root = keeper.root(0);
    changer.root(0);
    let mut told = 0;
    for n in 0..40 {
        let op = Op::Mkdir { parent: root, name: name(&n.to_string()), mode: 0o700, by: BY };
        let heard = changer.beside(op);
        let answer = loop {
            if let Ok(answer) = heard.recv_timeout(Duration::from_millis(1)) {
                break answer;
            }
            if let Ok((Event::Recall { id, .. }, _)) = keeper.inbox.try_recv() {
                told += 1;
                keeper.answer(id);
            }
        };
        entry(answer.unwrap().0);
    }
    assert_eq!(told, 17);
    assert_eq!(keeper.session.counters().leases, 0);
}

#[test]
fn without_a_connection_leases_end() {
    let world = world(Duration::from_millis(300));
    let (keeper, changer) = (taker(&world), world.guest(whole()));
    let file = keeper.node(0, "f");
    changer.node(0, "f");
    let late = |once_more: bool| {
        let left = Instant::now();
        keeper.session.left_alone();
        attr(changer.ask(&chmod(file)));
        // It has the time of a recall to notice.
        assert!(left.elapsed() >= Duration::from_millis(300));
        assert_eq!(keeper.session.counters().leases, 0);
        assert_eq!(keeper.noted(&Op::Getattr { node: file, handle: None }).1.node, Lease::None);
        keeper.ask(&Op::TakeLeases);
        let lease = keeper.noted(&Op::Getattr { node: file, handle: None }).1.node;
        // Who has others wait again and again by being gone gets none for a while, as if it had not answered.
        assert_eq!(lease == Lease::None, once_more, "{lease:?}");
    };
    late(false);
    late(true);
}

/// Whom nobody has waited for has done nothing: it may be gone for good, and others open its files all the time.
#[test]
fn who_has_been_gone_for_long_is_neither_waited_for_nor_to_blame() {
    let world = world(Duration::from_millis(50));
    let (gone, changer) = (taker(&world), world.guest(whole()));
    let file = gone.node(0, "f");
    let handle = opened(gone.ask(&open_read(file)));
    changer.node(0, "f");
    gone.session.left_alone();
    std::thread::sleep(Duration::from_millis(60));
    for size in 20..30 {
        attr(changer.ask(&resize(file, size)));
    }
    // Nothing is said but of the lease, with which all are over.
    for (_, data) in gone.inbox.try_iter() {
        let items: Vec<Recalled> = codec::decode_list(&data).unwrap();
        assert_eq!(items, [Recalled { node: file, what: What::All { data: true, open: false } }]);
    }
    gone.ask(&Op::TakeLeases);
    gone.look(file);
    gone.ask(&Op::Release { handle, lock_owner: None });
}

#[test]
fn who_comes_back_has_nobody_wait_any_more() {
    let world = world(LONG);
    let (keeper, changer) = (taker(&world), world.guest(whole()));
    let file = keeper.node(0, "f");
    changer.node(0, "f");
    keeper.session.left_alone();
    let heard = changer.beside(chmod(file));
    assert!(is_pending(&heard));
    keeper.ask(&Op::TakeLeases);
    attr(heard.recv_timeout(LONG).unwrap().unwrap().0);
}

#[test]
fn what_moves_across_the_border_of_a_grant_is_forgotten_whole() {
    let world = world(LONG);
    world.dirs(&["a/dir/sub/deep", "a/out"]);
    let mover = world.guest(whole());
    let inner = taker_of(&world, vec![grant("a/dir", "/d", Rights::READ_WRITE)], 1000);
    let stranger = taker_of(&world, vec![grant("a/out", "/o", Rights::READ_WRITE)], 1000);
    let above = taker(&world);
    let (dir, deep) = (inner.root(0), inner.node(0, "sub/deep"));
    stranger.root(0);
    let root = above.root(0);
    above.node(0, "dir/sub/deep");
    mover.root(0);
    let from = mover.node(0, "dir");
    let held = inner.session.counters().leases as usize;
    assert_eq!(held, 3);
    let op = Op::Rename {
        parent: from,
        name: name("sub"),
        new_parent: root,
        new_name: name("sub"),
        mode: RenameMode::Replace,
        directory: Meant::Whichever,
    };
    let heard = mover.beside(op);
    let (id, first) = above.recall();
    assert!(first.iter().all(|item| item.node != deep), "for who sees both sides, it has just moved");
    above.answer(id);
    // First what the rename changes, then the rest.
    let mut forgotten = vec![];
    while forgotten.len() < held + 1 {
        let (id, items) = inner.recall();
        assert!(is_pending(&heard));
        forgotten.extend(items.into_iter().map(|item| item.node));
        inner.answer(id);
    }
    assert_eq!(heard.recv_timeout(LONG).unwrap().unwrap().0, Outcome::Done);
    assert!(forgotten.contains(&deep) && forgotten.contains(&dir));
    assert_eq!(inner.session.counters().leases, 0);
    assert_eq!(inner.getattr(deep), STALE);
    assert!(stranger.inbox.try_recv().is_err());
}

/// The tests' own process is the gateway's: others are made.
fn shell(world: &World, command: &str) {
    let status =
        std::process::Command::new("sh").arg("-c").arg(command).current_dir(world.path("a")).status();
    assert!(status.unwrap().success(), "{command}");
}

#[test]
fn what_others_change_behind_the_gateways_back_is_recalled() {
    let world = world(LONG);
    if let Err(error) = world.engine.watch_outside(Duration::from_secs(3600)) {
        // Not in a user namespace.
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        return;
    }
    let (keeper, other) = (taker(&world), world.guest(whole()));
    let Outcome::Terms(terms) = keeper.ask(&Op::TakeLeases) else { panic!() };
    assert_eq!(terms.keep_ms, 3_600_000);
    let (root, file) = (keeper.root(0), keeper.node(0, "f"));
    other.root(0);
    let wanted = [
        ("echo more >> f", vec![(file, What::All { data: true, open: false })]),
        ("chmod 600 f", vec![(file, ALL)]),
        ("mkdir new", vec![(root, What::Name(name("new")))]),
        ("rm f", vec![(root, What::Name(name("f")))]),
    ];
    for (command, wanted) in wanted {
        keeper.look(root);
        keeper.look(file);
        shell(&world, command);
        let mut missing = wanted;
        while !missing.is_empty() {
            let (id, items) = keeper.recall();
            missing.retain(|(node, what)| !items.contains(&Recalled { node: *node, what: what.clone() }));
            keeper.answer(id);
        }
        while let Ok((Event::Recall { id, .. }, _)) = keeper.inbox.recv_timeout(Duration::from_millis(100)) {
            keeper.answer(id);
        }
    }
    assert_eq!(keeper.find(root, "f").0, errno(libc::ENOENT));
    // What guests do is not taken for somebody else's.
    let held = keeper.session.counters().leases;
    opened(keeper.ask(&Op::Opendir { node: root }));
    created(keeper.create(root, "own", WRITE));
    assert!(keeper.inbox.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(keeper.session.counters().leases, held + 1);
}

#[test]
fn forgetting_a_node_does_not_end_its_lease() {
    // A reply that the client takes for a new lease may be on its way while it says that it forgets.
    let world = world(LONG);
    let (keeper, changer) = (taker(&world), world.guest(whole()));
    let file = keeper.node(0, "f");
    changer.node(0, "f");
    let list = codec::encode_list(&vec![file]).unwrap();
    keeper.call(&Op::Forget, &list);
    let heard = changer.beside(chmod(file));
    let (id, items) = keeper.recall();
    assert_eq!(items[0].node, file);
    assert!(is_pending(&heard));
    keeper.answer(id);
    let _: Attr = attr(heard.recv_timeout(LONG).unwrap().unwrap().0);
}

/// The request for the contents of files, and what it tells: positions and bytes.
fn read_files(guest: &Guest, numbers: &[u64], longest: u32, max_bytes: u32) -> Vec<(u16, Vec<u8>)> {
    let list: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let (outcome, data) = guest.call(&Op::ReadFiles { grant: 0, longest, max_bytes }, &list);
    assert_eq!(outcome, Outcome::Data);
    assert!(data.len() <= max_bytes as usize);
    let files = strongroom_protocol::files::files(&data).map(Result::unwrap);
    files
        .map(|file| {
            assert_eq!(file.attr.size, file.contents.len() as u64);
            assert_eq!(file.attr.ino, numbers[usize::from(file.position)]);
            (file.position, file.contents.to_vec())
        })
        .collect()
}

#[test]
fn what_is_read_ahead_is_whole_leased_and_within_bounds() {
    use strongroom_protocol::files::{MOST, OVERHEAD};
    let world = world(LONG);
    for n in 0..70_u8 {
        world.file(&format!("a/dir/f{n}"), &vec![n; usize::from(n)]);
    }
    world.file("a/dir/long", &[7; 300_000]);
    std::os::unix::fs::symlink("f1", world.path("a/dir/link")).unwrap();
    let taker = taker(&world);
    taker.root(0);
    let ino = |text: &str| taker.node(0, &format!("dir/{text}")).ino;
    let (sub, link, long) = (ino("sub"), ino("link"), ino("long"));
    let all: Vec<u64> = (0..70).map(|n| ino(&format!("f{n}"))).collect();
    let first = &all[..MOST];
    let read = read_files(&taker, first, 100, 1 << 20);
    assert_eq!(read, (0..MOST as u16).map(|n| (n, vec![n as u8; usize::from(n)])).collect::<Vec<_>>());
    let note = taker.noted(&Op::Getattr { node: Node { grant: 0, ino: all[5] }, handle: None }).1;
    assert_eq!(note.node, Lease::Shared);
    // What is something else, unknown, too long, or does not fit any more is left out.
    let mixed = [sub, all[1], link, 12_345_678, long, all[2], all[1]];
    let expected = vec![(1, vec![1]), (5, vec![2, 2]), (6, vec![1])];
    assert_eq!(read_files(&taker, &mixed, u32::MAX, u32::MAX), expected);
    assert_eq!(read_files(&taker, &all[30..40], 33, 1 << 20).len(), 4);
    let two = 2 * OVERHEAD as u32 + 30 + 31;
    assert_eq!(read_files(&taker, &all[30..40], 100, two).len(), 2);
    assert_eq!(read_files(&taker, &all[30..40], 100, OVERHEAD as u32).len(), 0);
    assert_eq!(read_files(&taker, &[], 100, 100), []);
    let wrong =
        |grant, list: Vec<u8>| taker.call(&Op::ReadFiles { grant, longest: 100, max_bytes: 100 }, &list).0;
    let malformed = Outcome::Failed(Failure::Malformed);
    assert_eq!(wrong(0, vec![0; 8 * (MOST + 1)]), malformed);
    assert_eq!(wrong(0, vec![0; 1 << 20]), malformed);
    assert_eq!(wrong(0, vec![0; 9]), malformed);
    let stale = Outcome::Failed(Failure::Stale);
    assert_eq!(wrong(0, 12_345_678_u64.to_le_bytes().to_vec()), stale);
    assert_eq!(wrong(9, all[1].to_le_bytes().to_vec()), stale);
    // Whoever takes no leases cannot keep it.
    let plain = world.guest(whole());
    plain.root(0);
    let one = plain.node(0, "dir/f1").ino;
    assert_eq!(read_files(&plain, &[one], 100, 1000), []);
}

#[test]
fn what_nobody_waits_for_troubles_nobody() {
    let world = world(LONG);
    let (writer, reader) = (taker(&world), taker(&world));
    let root = writer.root(0);
    let file = reader.node(0, "f");
    assert_eq!(reader.root(0), root);
    assert_eq!(writer.node(0, "f"), file);
    let handle = opened(writer.open(file, WRITE));
    let heard = writer.beside(Op::Fallocate { handle, mode: 0, offset: 0, length: 11 });
    reader.answer(reader.recall().0);
    heard.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(writer.look(file).node, Lease::Exclusive);
    assert_eq!(read_files(&reader, &[file.ino], 100, 1000), []);
    let (outcome, data) =
        reader.call(&Op::List { node: root, cookie: 0, max_bytes: 65_536, plus: true, ahead: true }, b"");
    assert_eq!(outcome, Outcome::Data);
    let listed: Vec<_> = entries(&data).map(Result::unwrap).collect();
    let of = |text: &str| listed.iter().find(|entry| entry.name == name(text)).unwrap();
    assert!(of("f").attr.is_none() && !of("f").leased);
    assert!(of("dir").attr.is_some() && of("dir").leased);
    assert!(writer.inbox.try_recv().is_err(), "it was not asked for anything");
    assert_eq!(writer.look(file).node, Lease::Exclusive);
}

#[test]
fn a_directory_is_listed_without_opening_it() {
    let world = world(LONG);
    for n in 0..300 {
        world.file(&format!("a/dir/f{n}"), b"x");
    }
    let taker = taker(&world);
    taker.root(0);
    let (dir, file) = (taker.node(0, "dir"), taker.node(0, "f"));
    let (mut names, mut cookie) = (vec![], 0);
    loop {
        let (outcome, data) =
            taker.call(&Op::List { node: dir, cookie, max_bytes: 4096, plus: true, ahead: true }, b"");
        assert_eq!(outcome, Outcome::Data);
        let page: Vec<_> = entries(&data).map(Result::unwrap).collect();
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        assert!(page.iter().all(|entry| entry.leased));
        names.extend(page.into_iter().map(|entry| entry.name));
    }
    names.sort();
    let mut expected: Vec<_> = (0..300).map(|n| name(&format!("f{n}"))).chain([name("sub")]).collect();
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(taker.session.counters().handles, 0);
    let list =
        |node, cookie, max_bytes| taker.ask(&Op::List { node, cookie, max_bytes, plus: false, ahead: true });
    assert_eq!(list(file, 0, 4096), errno(libc::ENOTDIR));
    assert_eq!(list(dir, u64::MAX, 4096), errno(libc::EINVAL));
    assert_eq!(list(dir, 0, 0), errno(libc::EINVAL));
    assert_eq!(list(dir, 0, u32::MAX), Outcome::Data);
    assert_eq!(list(Node { grant: 0, ino: 12_345_678 }, 0, 4096), Outcome::Failed(Failure::Stale));
}
