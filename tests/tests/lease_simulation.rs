//! The lease protocol, simulated: the real gateway's engine on real files, the real client's table, and between them a
//! network in which anything that can happen does, in an order that a seed decides.
//!
//! Everything runs on one thread, one step after the other: a client asks, a message arrives, an answer is given, a
//! connection breaks, somebody's patience ends. Whenever a client knows something without asking, it must be true of the
//! files at that very moment, except of what the client itself is changing just then, and except for clients that did not
//! answer a recall in time and have not yet heard that they lost their leases. So must be what a kernel has of files that are mapped, which
//! it uses without asking even the client, as soon as whoever changes them has his answer.
//!
//! `STRONGROOM_SIMULATIONS` sets how many schedules are run (2000), `STRONGROOM_SEED` the first seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "support/simulation.rs"]
mod simulation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use simulation::{Dice, Outbox, contract};
use strongroom_fuse_client::lease::{Asked, Drop as Dropped, Found, Heard, OwnChange, Table};
use strongroom_gateway::engine::{
    Admission, Call, Engine, EngineOptions, EngineSession, LeaseOptions, Parked, ReplyBuf, Served,
    SessionBounds, Turnstile,
};
use strongroom_protocol::attr::{Credentials, Handle, Node, OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::codec;
use strongroom_protocol::lease::{Lease, LeaseTerms, Note, Recalled, What};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::readdir::entries;
use strongroom_protocol::reply::{Event, Failure, Outcome};

const BY: Credentials = Credentials { uid: 0, gid: 0 };
const ENOENT: u16 = 2;
const CLIENTS: usize = 3;
const LINKS: usize = 2;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Steps of a schedule.
const STEPS: usize = 400;

/// From a client to the gateway.
enum Request {
    Op { id: u64, op: Op, data: Vec<u8> },
    Recalled(u64),
}

/// From the gateway to a client.
enum Message {
    Reply { id: u64, answer: Box<(Outcome, Note)>, data: Vec<u8> },
    Event(Event, Vec<u8>),
}

#[derive(Default)]
struct Link {
    up: VecDeque<Request>,
    down: VecDeque<Message>,
}

/// What clients mostly ask.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// Anything, of any name.
    Any,
    /// One name is looked up, made and removed again and again, so that inode numbers come again.
    Hasty,
    /// One file is mapped, and cut by others. Nobody keeps others waiting for ever.
    Mapped,
}

/// Who has noticed that a client's connections are broken, which carry nothing any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// The client goes on believing what it was told.
    GatewayKnows,
    ClientKnows,
}

/// What a client remembers of a request.
struct Open {
    op: Op,
    asked: Asked,
    life: u64,
    change: Option<OwnChange>,
    /// The directory that is listed.
    listed: Option<Node>,
    /// Files that are read ahead, one after the other.
    files: Vec<u64>,
}

struct Client {
    session: EngineSession,
    turnstile: Arc<Turnstile>,
    outbox: Arc<Outbox>,
    table: Table,
    links: Vec<Link>,
    broken: Option<Broken>,
    /// Requests without an answer.
    open: BTreeMap<u64, Open>,
    next: u64,
    /// Recalls that it has obeyed and not answered yet, with the readings that must be over before.
    owed: Vec<(u64, BTreeSet<u64>)>,
    /// Files that are mapped: how they are open, and what its kernel has of them.
    mapped: BTreeMap<u64, (Handle, Option<Vec<u8>>)>,
    /// How long mapped files are, as its kernel was told.
    sizes: BTreeMap<u64, u64>,
    /// Readings under way the bytes of which go as soon as they come.
    doomed: BTreeSet<u64>,
    /// Never answers recalls.
    silent: bool,
    /// It was too late, and has not heard of this yet: what it believes is its own harm.
    deluded: Option<u64>,
}

impl Client {
    /// Readings of a file under way, or of any: their pages are locked.
    fn readings(&self, ino: Option<u64>) -> BTreeSet<u64> {
        let of = |open: &Open| match open.op {
            Op::OpenRead { node, .. } => Some(node.ino),
            Op::Read { handle, .. } => {
                self.mapped.iter().find(|(_, (open, _))| *open == handle).map(|(ino, _)| *ino)
            }
            _ => None,
        };
        let read = |open: &Open| of(open).is_some_and(|read| ino.is_none_or(|ino| ino == read));
        self.open.iter().filter(|(_, open)| read(open)).map(|(id, _)| *id).collect()
    }

    /// All leases are over, and the kernel has nothing any more.
    fn end_life(&mut self) {
        drop(self.table.end_life());
        self.give_up(None);
    }

    fn hear_size(&mut self, ino: u64, size: u64) {
        let known = self.sizes.entry(ino).or_default();
        *known = size.max(*known);
    }

    /// Has the kernel give up what it has of a mapped file, or of all; returns the readings that must be over before that is done.
    fn give_up(&mut self, ino: Option<u64>) -> BTreeSet<u64> {
        let given_up = self.mapped.iter_mut().filter(|(mapped, _)| ino.is_none_or(|ino| ino == **mapped));
        given_up.for_each(|(_, (_, bytes))| *bytes = None);
        let readings = self.readings(ino);
        self.doomed.extend(&readings);
        readings
    }
}

/// A request that waits in the gateway.
struct Waiting {
    client: usize,
    link: usize,
    id: u64,
    op: Op,
    data: Vec<u8>,
    admission: Admission,
    parked: Option<Box<Parked>>,
}

struct Sim {
    dice: Dice,
    dir: tempfile::TempDir,
    engine: Engine,
    clients: Vec<Client>,
    waiting: Vec<Waiting>,
    /// Requests that a client has on the way at once.
    busy: usize,
    mix: Mix,
    now: Instant,
    stamp: i64,
    /// What was known without asking, and true.
    known: usize,
    /// Contents among them.
    contained: usize,
    /// What kernels had of mapped files, and was true.
    mapped: usize,
    recalls: usize,
    /// Somebody did not answer in time. Who has not is told of changes without being waited for, for a while.
    late: bool,
    trace: Vec<String>,
    /// The directories, which stay.
    dirs: Vec<(Node, PathBuf)>,
    truth: Option<Arc<Truth>>,
}

/// What is on the disk.
#[derive(Default)]
struct Truth {
    /// Every object by its inode number.
    objects: BTreeMap<u64, std::fs::Metadata>,
    /// What names in directories lead to.
    names: BTreeMap<(u64, std::ffi::OsString), u64>,
    /// What is in files.
    contents: BTreeMap<u64, Vec<u8>>,
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a", "a/d0", "a/d1"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        // Nobody's patience ends by itself: the dice decide.
        let leases = LeaseOptions { recall: Duration::from_secs(3600), keep: Duration::from_secs(3600) };
        let engine = Engine::open(dir.path(), EngineOptions { leases, ..EngineOptions::default() }).unwrap();
        let most = if dice.one_in(3) { 4 } else { 1000 };
        let busy = 1 + dice.roll(5);
        let mix = match dice.roll(8) {
            0 => Mix::Hasty,
            1 => Mix::Mapped,
            _ => Mix::Any,
        };
        let silent = (mix != Mix::Mapped && dice.one_in(3)).then(|| dice.roll(CLIENTS));
        let client = |n| {
            let bounds = SessionBounds { leases: most, ..SessionBounds::default() };
            let session = EngineSession::new(&engine, &contract(), bounds, &[]);
            let outbox = Arc::new(Outbox::default());
            session.answer_to(outbox.clone());
            Client {
                session,
                turnstile: Turnstile::new(),
                outbox,
                table: Table::default(),
                links: (0..LINKS).map(|_| Link::default()).collect(),
                broken: None,
                open: BTreeMap::new(),
                next: 0,
                owed: vec![],
                mapped: BTreeMap::new(),
                sizes: BTreeMap::new(),
                doomed: BTreeSet::new(),
                silent: silent == Some(n),
                deluded: None,
            }
        };
        let clients = (0..CLIENTS).map(client).collect();
        let mut sim = Sim {
            dice,
            dir,
            engine,
            clients,
            waiting: vec![],
            busy,
            mix,
            now: Instant::now(),
            stamp: 0,
            known: 0,
            contained: 0,
            mapped: 0,
            recalls: 0,
            late: false,
            trace: vec![],
            dirs: vec![],
            truth: None,
        };
        for sub in ["a", "a/d0", "a/d1"] {
            let path = sim.dir.path().join(sub);
            let ino = std::fs::metadata(&path).unwrap().ino();
            sim.dirs.push((Node { grant: 0, ino }, path));
        }
        (0..CLIENTS).for_each(|client| sim.connect(client));
        sim
    }

    fn note(&mut self, text: String) {
        self.trace.push(text);
    }

    /// What is on the disk at this moment.
    fn truth(&mut self) -> Arc<Truth> {
        let dirs = &self.dirs;
        let look = || {
            let mut truth = Truth::default();
            for (dir, path) in dirs {
                truth.objects.insert(dir.ino, std::fs::metadata(path).unwrap());
                for entry in std::fs::read_dir(path).unwrap() {
                    let entry = entry.unwrap();
                    let meta = entry.metadata().unwrap();
                    truth.names.insert((dir.ino, entry.file_name()), meta.ino());
                    if meta.is_file() {
                        truth.contents.insert(meta.ino(), std::fs::read(entry.path()).unwrap());
                    }
                    truth.objects.insert(meta.ino(), meta);
                }
            }
            Arc::new(truth)
        };
        self.truth.get_or_insert_with(look).clone()
    }

    fn directories(&self) -> Vec<Node> {
        self.dirs.iter().map(|(dir, _)| *dir).collect()
    }

    fn connect(&mut self, which: usize) {
        let client = &mut self.clients[which];
        client.links = (0..LINKS).map(|_| Link::default()).collect();
        let id = client.next;
        client.next += 1;
        let asked = client.table.ask(self.now);
        let life = client.table.life();
        client
            .open
            .insert(id, Open { op: Op::TakeLeases, asked, life, change: None, listed: None, files: vec![] });
        client.links[0].up.push_back(Request::Op { id, op: Op::TakeLeases, data: vec![] });
        // The nodes that all requests go by are known to the session from the start.
        for node in self.directories() {
            self.find(which, node);
        }
    }

    /// Makes a directory known to a session, without any lease.
    fn find(&mut self, which: usize, node: Node) {
        let root = &self.dirs[0].1;
        let (_, path) = self.dirs.iter().find(|(dir, _)| *dir == node).unwrap();
        let below = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let client = &self.clients[which];
        let op = Op::Resolve { grant: 0, ino: node.ino };
        let admission = client.turnstile.enter().unwrap();
        let mut out = ReplyBuf::new();
        let call = Call {
            id: 0,
            op: &op,
            data: below.as_bytes(),
            later: &|| panic!("no locks here"),
            waits: &|| {},
        };
        // Only directories, of which no lease is exclusive: nothing is waited for.
        let served = self.engine.serve_or_park(&client.session, &admission, call, &mut out, None);
        assert!(served.is_ok());
    }

    fn run(&mut self) {
        for step in 0..if self.mix == Mix::Any { STEPS } else { 10 * STEPS } {
            self.now += Duration::from_millis(1);
            self.note(format!("-- {step}"));
            match self.dice.roll(100) {
                0..22 => self.ask(),
                22..52 => self.arrive(),
                52..82 => self.hear(),
                82..95 => self.acknowledge(),
                95 if self.mix != Mix::Mapped => self.lose_patience(),
                96 => self.break_links(),
                _ => self.forget(),
            }
            self.resume();
            self.check();
        }
        // In the end everybody gets an answer.
        (0..CLIENTS).for_each(|client| self.mend_links(client));
        let mut left = 100 * STEPS;
        while left > 0
            && (!self.waiting.is_empty() || self.clients.iter().any(|client| !client.open.is_empty()))
        {
            left -= 1;
            self.now += Duration::from_millis(1);
            self.arrive();
            self.hear();
            self.acknowledge();
            self.resume();
            if self.dice.one_in(200) {
                self.lose_patience();
            }
        }
        self.check();
        assert!(self.waiting.is_empty(), "somebody waits for ever");
        assert!(self.clients.iter().all(|client| client.open.is_empty()), "a request without an answer");
    }

    /// A client asks something.
    fn ask(&mut self) {
        let which = self.dice.roll(CLIENTS);
        if self.clients[which].open.len() >= self.busy || self.clients[which].broken.is_some() {
            return;
        }
        let any = self.mix == Mix::Any;
        let (directories, names) = (self.directories(), if any { &NAMES } else { &NAMES[..1] });
        let Some(dir) = self.dice.pick(if any { &directories } else { &directories[..1] }) else { return };
        let text = self.dice.pick(names).unwrap();
        let name_ = name(text);
        let file = self.truth().names.get(&(dir.ino, text.into())).copied();
        let node = file.map(|ino| Node { grant: 0, ino });
        let what = match self.dice.roll(20) {
            0..12 if self.mix == Mix::Hasty => [0, 7, 9][self.dice.roll(3)],
            0..16 if self.mix == Mix::Mapped => [0, 5, 5, 5, 7, 16][self.dice.roll(6)],
            any => any,
        };
        let (op, nodes): (Op, Vec<Node>) = match what {
            0..3 => (Op::Lookup { parent: dir, name: name_ }, vec![]),
            3 => (Op::Getattr { node: node.unwrap_or(dir), handle: None }, vec![]),
            4 => {
                let flags = OpenFlags { read: true, write: self.dice.one_in(2), ..OpenFlags::default() };
                match node {
                    Some(node) => (Op::Open { node, flags }, vec![]),
                    None => return,
                }
            }
            5 | 6 => {
                self.stamp += 1;
                let at = SetTime::At(Time { secs: self.stamp, nanos: 0 });
                let target = node.unwrap_or(dir);
                let file = target != dir && !self.directories().contains(&target);
                let size = (file && self.dice.one_in(2)).then(|| self.dice.roll(9) as u64);
                let set = SetAttr { mtime: size.is_none().then_some(at), size, ..SetAttr::default() };
                (Op::Setattr { node: target, handle: None, set, by: BY }, vec![target])
            }
            7 | 8 => {
                let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
                (Op::Create { parent: dir, name: name_, mode: 0o600, flags, by: BY }, vec![dir])
            }
            9 => {
                let victim = self.clients[which].table.named(dir, &name_);
                (Op::Unlink { parent: dir, name: name_ }, [Some(dir), victim].into_iter().flatten().collect())
            }
            10 => {
                let Some(to) = self.dice.pick(&self.directories()) else { return };
                let new_name = name(self.dice.pick(&NAMES).unwrap());
                let table = &self.clients[which].table;
                let known = [Some(dir), Some(to), table.named(dir, &name_), table.named(to, &new_name)];
                let mode = if self.dice.one_in(3) { RenameMode::Exchange } else { RenameMode::Replace };
                let op = Op::Rename {
                    parent: dir,
                    name: name_,
                    new_parent: to,
                    new_name,
                    mode,
                    directory: Meant::Whichever,
                };
                (op, known.into_iter().flatten().collect())
            }
            11 => {
                let (Some(node), Some(to)) = (node, self.dice.pick(&self.directories())) else { return };
                let new_name = name(self.dice.pick(&NAMES).unwrap());
                (Op::Link { node, parent: to, name: new_name }, vec![node, to])
            }
            12 => return self.list(which, dir),
            13 | 14 => {
                let asked = self.clients[which].table.ask(self.now);
                let ahead = self.dice.one_in(2);
                let op = Op::List { node: dir, cookie: 0, max_bytes: 1 << 20, plus: true, ahead };
                let id = self.send(which, op, asked, None);
                self.clients[which].open.get_mut(&id).unwrap().listed = Some(dir);
                return;
            }
            15 => return self.read_ahead(which),
            _ => return self.map(which, node),
        };
        let change = !nodes.is_empty();
        let client = &mut self.clients[which];
        // A kernel changes one thing at a time in a directory, and so it does the attributes of a file (i_rwsem).
        let dirs: Vec<Node> = self.dirs.iter().map(|(dir, _)| *dir).collect();
        let sets = matches!(op, Op::Setattr { .. });
        let busy = |node: &Node| {
            let mut changes = client.open.values().filter_map(|open| open.change.as_ref());
            (sets || dirs.contains(node)) && changes.any(|change| change.concerns(*node))
        };
        if nodes.iter().any(busy) {
            return;
        }
        let asked = client.table.ask(self.now);
        let change = change.then(|| client.table.begin(&nodes, self.now));
        let asked = change.as_ref().map_or(asked, |change| change.asked());
        self.send(which, op, asked, change);
    }

    /// Lists a directory whole: opens it at once (that is not what is tried here) and asks for the one page.
    fn list(&mut self, which: usize, dir: Node) {
        let client = &self.clients[which];
        let admission = client.turnstile.enter().unwrap();
        let op = Op::Opendir { node: dir };
        let mut out = ReplyBuf::new();
        let call = Call { id: 0, op: &op, data: b"", later: &|| panic!("no locks here"), waits: &|| {} };
        let served = self.engine.serve_or_park(&client.session, &admission, call, &mut out, None);
        let Ok(Served::Done(done)) = served else { return };
        let Outcome::Opened(handle, _) = done.outcome else { return };
        drop(admission);
        let asked = self.clients[which].table.ask(self.now);
        let op = Op::Readdir { handle, cookie: 0, max_bytes: 1 << 20, plus: true };
        let id = self.send(which, op, asked, None);
        self.clients[which].open.get_mut(&id).unwrap().listed = Some(dir);
    }

    /// Reads all files ahead that there are, in any order.
    fn read_ahead(&mut self, which: usize) {
        let truth = self.truth();
        let mut files: Vec<u64> = truth
            .objects
            .iter()
            .filter(|(_, meta)| meta.is_file() || self.dice.one_in(3))
            .map(|(ino, _)| *ino)
            .collect();
        let from = self.dice.roll(files.len().max(1));
        files.rotate_left(from);
        let data = files.iter().flat_map(|ino| ino.to_le_bytes()).collect();
        let asked = self.clients[which].table.ask(self.now);
        let op = Op::ReadFiles { grant: 0, longest: 1000, max_bytes: 1 << 20 };
        let id = self.send_data(which, op, data, asked, None);
        self.clients[which].open.get_mut(&id).unwrap().files = files;
    }

    /// Maps a file, uses what is mapped, or ends that.
    fn map(&mut self, which: usize, node: Option<Node>) {
        let directories = self.directories();
        let Some(node) = node.filter(|node| !directories.contains(node)) else { return };
        let client = &mut self.clients[which];
        if !client.readings(Some(node.ino)).is_empty() {
            return;
        }
        let op = match client.mapped.get(&node.ino) {
            None => {
                client.sizes.remove(&node.ino);
                let flags = OpenFlags { read: true, ..OpenFlags::default() };
                Op::OpenRead { node, flags, offset: 0, length: 64 }
            }
            Some((handle, _)) if self.dice.one_in(3) => {
                let handle = *handle;
                client.mapped.remove(&node.ino);
                Op::Release { handle, lock_owner: None }
            }
            Some((handle, None)) => Op::Read { handle: *handle, offset: 0, length: 64 },
            Some(_) => return,
        };
        let asked = client.table.ask(self.now);
        self.send(which, op, asked, None);
    }

    fn send(&mut self, which: usize, op: Op, asked: Asked, change: Option<OwnChange>) -> u64 {
        self.send_data(which, op, vec![], asked, change)
    }

    fn send_data(
        &mut self,
        which: usize,
        op: Op,
        data: Vec<u8>,
        asked: Asked,
        change: Option<OwnChange>,
    ) -> u64 {
        let link = self.dice.roll(LINKS);
        let client = &mut self.clients[which];
        let id = client.next;
        client.next += 1;
        let life = client.table.life();
        let open = Open { op: op.clone(), asked, life, change, listed: None, files: vec![] };
        client.open.insert(id, open);
        client.links[link].up.push_back(Request::Op { id, op: op.clone(), data });
        self.note(format!("client {which} asks #{id} {op:?} on {link}"));
        id
    }

    /// A message arrives at the gateway.
    fn arrive(&mut self) {
        let (which, link) = (self.dice.roll(CLIENTS), self.dice.roll(LINKS));
        let Some(request) = self.clients[which].links[link].up.pop_front() else { return };
        match request {
            Request::Recalled(id) => {
                self.note(format!("gateway hears client {which} recalled {id}"));
                self.clients[which].session.recalled(id);
            }
            Request::Op { id, op, data } => {
                let admission = self.clients[which].turnstile.enter().unwrap();
                self.serve(Waiting { client: which, link, id, op, data, admission, parked: None });
            }
        }
        self.collect();
    }

    fn serve(&mut self, mut request: Waiting) {
        let mut out = ReplyBuf::new();
        let client = &mut self.clients[request.client];
        let call = Call {
            id: request.id,
            op: &request.op,
            data: &request.data,
            later: &|| panic!("no locks here"),
            waits: &|| panic!("nothing is waited for"),
        };
        let parked = request.parked.take();
        self.truth = None;
        match self.engine.serve_or_park(&client.session, &request.admission, call, &mut out, parked) {
            Ok(Served::Done(done)) => {
                let message = Message::Reply {
                    id: request.id,
                    answer: Box::new((done.outcome.clone(), done.note)),
                    data: out.data().to_vec(),
                };
                client.links[request.link].down.push_back(message);
                let text = format!(
                    "gateway answers client {} #{}: {:?} {:?}",
                    request.client, request.id, done.outcome, done.note
                );
                self.note(text);
            }
            Ok(Served::Later) => panic!("nothing waits for locks"),
            Err(parked) => {
                let text = format!("client {} #{} waits", request.client, request.id);
                request.parked = Some(parked);
                self.waiting.push(request);
                self.note(text);
            }
        }
    }

    /// Requests that have waited long enough go on, in any order.
    fn resume(&mut self) {
        loop {
            let over = |waiting: &Waiting| waiting.parked.as_ref().is_some_and(|parked| parked.is_over());
            let ready: Vec<usize> = (0..self.waiting.len()).filter(|n| over(&self.waiting[*n])).collect();
            let Some(next) = self.dice.pick(&ready) else { break };
            let request = self.waiting.swap_remove(next);
            self.serve(request);
            self.collect();
        }
        self.collect();
    }

    /// What the gateway says on its own goes on the way.
    fn collect(&mut self) {
        for which in 0..CLIENTS {
            let said = std::mem::take(&mut *self.clients[which].outbox.0.lock().unwrap());
            for (event, data, everywhere) in said {
                if let Event::LeasesLost { id, .. } = event {
                    self.clients[which].deluded = Some(id);
                    self.late = true;
                }
                self.recalls += 1;
                if self.clients[which].broken.is_some() {
                    continue;
                }
                let on: Vec<usize> =
                    if everywhere { (0..LINKS).collect() } else { vec![self.dice.roll(LINKS)] };
                for link in on {
                    let message = Message::Event(event.clone(), data.clone());
                    self.clients[which].links[link].down.push_back(message);
                }
                self.note(format!("gateway tells client {which} {event:?}"));
            }
        }
    }

    /// A message arrives at a client.
    fn hear(&mut self) {
        let (which, link) = (self.dice.roll(CLIENTS), self.dice.roll(LINKS));
        let now = self.now;
        let truth = self.truth();
        let client = &mut self.clients[which];
        match client.links[link].down.pop_front() {
            None => {}
            Some(Message::Event(Event::Recall { id, stamp }, data)) => {
                let items: Vec<Recalled> = codec::decode_list(&data).unwrap();
                let mut dropped = Dropped::default();
                let mut readings = BTreeSet::new();
                for item in &items {
                    client.table.recall(stamp, item.node, &item.what, now, &mut dropped);
                    if matches!(item.what, What::All { .. }) {
                        readings.append(&mut client.give_up(Some(item.node.ino)));
                    }
                }
                for (node, size) in &dropped.longer {
                    client.hear_size(node.ino, *size);
                }
                // The kernel asks.
                for node in &dropped.shorter {
                    let is = truth.contents.get(&node.ino).map_or(0, Vec::len) as u64;
                    client.sizes.insert(node.ino, is);
                }
                client.owed.push((id, readings));
                self.note(format!("client {which} hears recall {id} at {stamp}: {items:?}"));
            }
            Some(Message::Event(Event::LeasesLost { id, stamp }, _)) => {
                client.table.lost(stamp, now);
                let readings = client.give_up(None);
                client.owed.push((id, readings));
                client.deluded.take_if(|last| *last <= id);
                self.note(format!("client {which} hears that all is lost"));
            }
            Some(Message::Event(event, _)) => panic!("{event:?}"),
            Some(Message::Reply { id, answer, data }) => self.learn(which, id, answer.0, answer.1, &data),
        }
    }

    /// What the client's file system makes of an answer.
    fn learn(&mut self, which: usize, id: u64, outcome: Outcome, note: Note, data: &[u8]) {
        self.note(format!("client {which} hears #{id}"));
        let truth = self.truth();
        let client = &mut self.clients[which];
        let Some(Open { op, asked, life, change, listed, files }) = client.open.remove(&id) else { return };
        let doomed = client.doomed.remove(&id);
        let table = &mut client.table;
        let heard = Heard { asked, life, note };
        let ended = change.as_ref().map(|change| (table.end(change), change));
        match (&op, &outcome) {
            (Op::TakeLeases, Outcome::Terms(terms)) => {
                table.terms(life, note.stamp, &LeaseTerms { keep_ms: 3_600_000, ..*terms })
            }
            (Op::Lookup { parent, name }, Outcome::Entry(found)) => {
                table.learn(&heard, found.node, note.node, &found.attr, false);
                table.learn_name(&heard, *parent, name, Some(found.node));
            }
            (Op::Lookup { parent, name }, Outcome::Failed(Failure::Errno(ENOENT))) => {
                table.learn_name(&heard, *parent, name, None);
            }
            (Op::Getattr { node, .. }, Outcome::Attr(attr))
            | (Op::Open { node, .. }, Outcome::Opened(_, attr)) => {
                table.learn(&heard, *node, note.node, attr, false);
            }
            (Op::Setattr { node, .. }, Outcome::Attr(attr)) => {
                // Which a kernel believes whatever it was told meanwhile. Where that may be later, the client asks again.
                let known =
                    truth.contents.get(&node.ino).filter(|_| table.was_resized(*node, note.stamp, attr.size));
                client.sizes.insert(node.ino, known.map_or(attr.size, |is| is.len() as u64));
                if matches!(op, Op::Setattr { set: SetAttr { size: Some(_), .. }, .. }) {
                    table.has_cut(*node, self.now);
                }
                let ((asked, sole), _) = ended.as_ref().unwrap();
                if sole.contains(node) {
                    let heard = Heard { asked: *asked, ..heard };
                    table.learn(&heard, *node, note.node, attr, false);
                }
            }
            (Op::Create { parent, name, .. }, _) => {
                let ((now_asked, sole), change) = ended.as_ref().unwrap();
                let heard = Heard { asked: *now_asked, ..heard };
                if let Some(after) = &note.after
                    && sole.contains(parent)
                {
                    table.learn_after(&heard, *parent, after);
                }
                match &outcome {
                    Outcome::Created(_, found) => {
                        table.changed_name(Some(&heard), *parent, name, Some(Some(found.node)));
                        let heard = Heard { asked: change.asked(), ..heard };
                        table.learn(&heard, found.node, note.node, &found.attr, false);
                    }
                    _ => table.changed_name(None, *parent, name, None),
                }
            }
            (Op::Unlink { parent, name }, _) => {
                let ((now_asked, sole), change) = ended.as_ref().unwrap();
                let heard = Heard { asked: *now_asked, ..heard };
                if let Some(after) = &note.after
                    && sole.contains(parent)
                {
                    table.learn_after(&heard, *parent, after);
                }
                if table.stood_for(change, *parent, name).is_none() {
                    table.distrust();
                }
                let gone = (outcome == Outcome::Done).then_some(None);
                table.changed_name(Some(&heard), *parent, name, gone);
            }
            (Op::Rename { parent, name, new_parent, new_name, mode, .. }, _) => {
                let ((now_asked, sole), change) = ended.as_ref().unwrap();
                let heard = Heard { asked: *now_asked, ..heard };
                if let Some(after) = &note.after
                    && sole.contains(new_parent)
                {
                    table.learn_after(&heard, *new_parent, after);
                }
                let moved = table.stood_for(change, *parent, name);
                let replaced = table.stood_for(change, *new_parent, new_name);
                if moved.is_none() || (replaced.is_none() && !table.was_absent(change, *new_parent, new_name))
                {
                    table.distrust();
                }
                let exchange = *mode == RenameMode::Exchange;
                let was_free = table.was_absent(change, *new_parent, new_name);
                let (here, there) = match (outcome == Outcome::Done, moved) {
                    (true, Some(node)) if exchange => (replaced.map(Some), Some(Some(node))),
                    (true, None) if exchange => (replaced.map(Some), None),
                    // Two names of one file are left as they are (rename(2)).
                    (true, Some(node)) if was_free || replaced.is_some_and(|other| other != node) => {
                        (Some(None), Some(Some(node)))
                    }
                    (true, moved) => (None, moved.map(Some)),
                    (false, _) => (None, None),
                };
                // A name that is renamed to itself stays.
                let same = (parent, name) == (new_parent, new_name);
                if same {
                    table.changed_name(None, *parent, name, None);
                } else {
                    table.changed_name(Some(&heard), *parent, name, here);
                    table.changed_name(Some(&heard), *new_parent, new_name, there);
                }
            }
            (Op::Link { parent, name, .. }, _) => {
                let ((now_asked, sole), _) = ended.as_ref().unwrap();
                let heard = Heard { asked: *now_asked, ..heard };
                match &outcome {
                    Outcome::Entry(found) => {
                        table.changed_name(Some(&heard), *parent, name, Some(Some(found.node)));
                        if sole.contains(&found.node) {
                            table.learn(&heard, found.node, note.node, &found.attr, false);
                        }
                    }
                    _ => table.changed_name(None, *parent, name, None),
                }
            }
            (Op::Readdir { .. } | Op::List { .. }, Outcome::Data) => {
                let dir = listed.unwrap();
                for entry in entries(data) {
                    let entry = entry.unwrap();
                    let node = Node { grant: 0, ino: entry.ino };
                    if let (true, Some(attr)) = (entry.leased, &entry.attr) {
                        table.learn(&heard, node, Lease::Shared, attr, false);
                    }
                    table.learn_name(&heard, dir, &entry.name, Some(node));
                }
                table.learn_all(&heard, dir, note.stamp);
            }
            (Op::OpenRead { node, .. }, Outcome::Opened(handle, attr)) => {
                table.learn(&heard, *node, note.node, attr, false);
                // Where the kernel may believe anything else, it asks.
                let is = truth.contents.get(&node.ino).map_or(attr.size, |is| is.len() as u64);
                client.sizes.insert(node.ino, is);
                client.mapped.insert(node.ino, (*handle, (!doomed).then(|| data.to_vec())));
            }
            (Op::Read { handle, .. }, Outcome::Data) => {
                let mapped = client.mapped.values_mut().find(|(open, _)| open == handle);
                mapped.unwrap().1 = (!doomed).then(|| data.to_vec());
            }
            (Op::ReadFiles { .. }, Outcome::Data) => {
                for file in strongroom_protocol::files::files(data) {
                    let file = file.unwrap();
                    let node = Node { grant: 0, ino: files[usize::from(file.position)] };
                    table.learn_contents(&heard, node, &file.attr, file.contents, false);
                }
            }
            _ => {}
        }
        // A kernel drops the contents of what it gives another size (fuse_do_setattr in Linux).
        if let Op::Setattr { node, set: SetAttr { size: Some(_), .. }, .. } = op {
            client.give_up(Some(node.ino));
        }
        // What nobody has open leaves its inode number to the next file when it is removed.
        let opened = match outcome {
            Outcome::Opened(..) if matches!(op, Op::OpenRead { .. }) => None,
            Outcome::Created(handle, _) | Outcome::Opened(handle, _) => Some(handle),
            _ => None,
        };
        if let Some(handle) = opened.filter(|_| !self.dice.one_in(20)) {
            let asked = self.clients[which].table.ask(self.now);
            self.send(which, Op::Release { handle, lock_owner: None }, asked, None);
        }
    }

    /// A client answers a recall that it has obeyed.
    fn acknowledge(&mut self) {
        let which = self.dice.roll(CLIENTS);
        let link = self.dice.roll(LINKS);
        let client = &mut self.clients[which];
        if client.owed.is_empty() || client.silent {
            return;
        }
        let at = self.dice.roll(client.owed.len());
        if client.owed[at].1.iter().any(|reading| client.open.contains_key(reading)) {
            return;
        }
        let (id, _) = client.owed.swap_remove(at);
        client.links[link].up.push_back(Request::Recalled(id));
    }

    /// Somebody has waited for too long.
    fn lose_patience(&mut self) {
        let all: Vec<usize> = (0..self.waiting.len()).collect();
        let Some(which) = self.dice.pick(&all) else { return };
        self.note(format!("patience of client {} ends", self.waiting[which].client));
        if let Some(parked) = &self.waiting[which].parked {
            parked.give_up();
        }
        for client in self.clients.iter_mut().filter(|client| client.broken == Some(Broken::GatewayKnows)) {
            // It may have been that one who was not back in time, and nobody can tell him.
            client.deluded = Some(u64::MAX);
            self.late = true;
        }
        self.collect();
    }

    /// All connections of a client break, or it makes new ones.
    fn break_links(&mut self) {
        let which = self.dice.roll(CLIENTS);
        if self.clients[which].broken.is_some() {
            return self.mend_links(which);
        }
        if self.waiting.iter().any(|waiting| waiting.client == which) {
            return;
        }
        let client = &mut self.clients[which];
        client.links = (0..LINKS).map(|_| Link::default()).collect();
        let first = if self.dice.one_in(2) {
            client.session.left_alone();
            Broken::GatewayKnows
        } else {
            client.end_life();
            Broken::ClientKnows
        };
        client.broken = Some(first);
        let who = if first == Broken::GatewayKnows { "the gateway" } else { "it" };
        self.note(format!("client {which} is cut off, and {who} knows"));
        if self.dice.one_in(2) {
            self.mend_links(which);
        }
    }

    /// Whoever did not know knows now, and the client makes new connections.
    fn mend_links(&mut self, which: usize) {
        let client = &mut self.clients[which];
        match client.broken.take() {
            None => return,
            Some(Broken::GatewayKnows) => client.end_life(),
            Some(Broken::ClientKnows) => client.session.left_alone(),
        }
        client.deluded = None;
        client.owed.clear();
        client.doomed.clear();
        let open = std::mem::take(&mut client.open);
        for change in open.values().filter_map(|open| open.change.as_ref()) {
            client.table.abandon(change, self.now);
        }
        // It asks for the sizes of what it has open before it takes leases, and hears of later ones by then.
        let truth = self.truth();
        for ino in self.clients[which].mapped.keys().copied().collect::<Vec<_>>() {
            if let Some(contents) = truth.contents.get(&ino) {
                self.clients[which].sizes.insert(ino, contents.len() as u64);
            }
        }
        self.note(format!("client {which} is back"));
        self.connect(which);
    }

    /// A client's kernel forgets a node, while anything may be on its way.
    fn forget(&mut self) {
        let which = self.dice.roll(CLIENTS);
        let all: Vec<u64> = self.truth().objects.keys().copied().collect();
        let Some(ino) = self.dice.pick(&all) else {
            return;
        };
        let node = Node { grant: 0, ino };
        if self.directories().contains(&node) {
            return;
        }
        let list = codec::encode_list(&vec![node]).unwrap();
        let client = &self.clients[which];
        if client.broken.is_some() {
            return;
        }
        let admission = client.turnstile.enter().unwrap();
        let call =
            Call { id: 0, op: &Op::Forget, data: &list, later: &|| panic!("no locks here"), waits: &|| {} };
        let served = self.engine.serve_or_park(&client.session, &admission, call, &mut ReplyBuf::new(), None);
        assert!(served.is_ok());
    }

    /// Whatever a client knows is true.
    fn check(&mut self) {
        let truth = self.truth();
        let directories = self.directories();
        let (mut known, mut contained, mut mapped) = (0, 0, 0);
        // Whoever changes their contents has no answer yet.
        let unanswered: BTreeSet<u64> = self
            .waiting
            .iter()
            .filter_map(|waiting| match waiting.op {
                Op::Setattr { node, set: SetAttr { size: Some(_), .. }, .. } => Some(node.ino),
                _ => None,
            })
            .collect();
        for (which, client) in self.clients.iter_mut().enumerate() {
            if client.deluded.is_some() {
                continue;
            }
            let changing = |node: Node| {
                client
                    .open
                    .values()
                    .filter_map(|open| open.change.as_ref())
                    .any(|change| change.concerns(node))
            };
            // What an own change under way may have touched without being known to is seen as it was or as it will be.
            let anything =
                client.open.values().any(|open| matches!(open.op, Op::Unlink { .. } | Op::Rename { .. }));
            for (ino, meta) in &truth.objects {
                let node = Node { grant: 0, ino: *ino };
                let Some(attr) = client.table.attr(node, self.now) else { continue };
                if changing(node) || anything {
                    continue;
                }
                known += 1;
                let told = (attr.mtime.secs, attr.ctime, attr.nlink, attr.size);
                let ctime = Time { secs: meta.ctime(), nanos: meta.ctime_nsec() as u32 };
                let is = (meta.mtime(), ctime, meta.nlink() as u32, meta.size());
                if told != is {
                    let trace = self.trace.join("\n");
                    panic!("{trace}\nclient {which} believes {told:?} of {ino}, which is {is:?}");
                }
                if let Some(contents) = client.table.contents(node, self.now) {
                    contained += 1;
                    let is = truth.contents.get(ino);
                    if is.map(Vec::as_slice) != Some(&*contents) {
                        let trace = self.trace.join("\n");
                        panic!(
                            "{trace}\nclient {which} believes that {contents:?} is in {ino}, it is {is:?}"
                        );
                    }
                }
            }
            for (ino, (_, bytes)) in client.mapped.iter().filter(|_| !self.late) {
                let Some(is) = truth.contents.get(ino).filter(|_| client.broken != Some(Broken::ClientKnows))
                else {
                    continue;
                };
                if changing(Node { grant: 0, ino: *ino }) || unanswered.contains(ino) {
                    continue;
                }
                mapped += 1;
                let size = client.sizes.get(ino).copied().unwrap_or_default();
                if size != is.len() as u64 {
                    let trace = self.trace.join("\n");
                    panic!(
                        "{trace}\nclient {which} has mapped {size} bytes of {ino}, which has {}",
                        is.len()
                    );
                }
                if let Some(bytes) = bytes.as_ref().filter(|bytes| *bytes != is) {
                    let trace = self.trace.join("\n");
                    panic!("{trace}\nclient {which} has mapped {bytes:?} of {ino}, it is {is:?}");
                }
            }
            for dir in directories.iter().filter(|dir| !changing(**dir)) {
                for text in NAMES {
                    let is = truth.names.get(&(dir.ino, text.into())).copied();
                    let told = match client.table.lookup(*dir, &name(text), self.now) {
                        Found::Unknown => continue,
                        Found::Absent => None,
                        Found::Node(node, _) => Some(node.ino),
                    };
                    known += 1;
                    if told != is {
                        let trace = self.trace.join("\n");
                        panic!(
                            "{trace}\nclient {which} believes that {text} in {} is {told:?}, it is {is:?}",
                            dir.ino
                        );
                    }
                }
            }
        }
        self.known += known;
        self.contained += contained;
        self.mapped += mapped;
        // Whoever may write before he tells anybody is alone with the file. (The lease of a file that he has removed is of no use to him before he
        // hears of another one that has got its number.)
        for ino in truth.objects.keys() {
            let node = Node { grant: 0, ino: *ino };
            let honest = || self.clients.iter().enumerate().filter(|(_, client)| client.deluded.is_none());
            // Nor before he hears that it is removed.
            let removes = |open: &Open| matches!(open.op, Op::Unlink { .. } | Op::Rename { .. });
            let keeps = |client: &Client| {
                client.table.attr(node, self.now).is_some() && !client.open.values().any(removes)
            };
            // While he changes it himself he keeps nothing of it, and is alone with it all the same.
            let changes = |open: &Open| open.change.as_ref().is_some_and(|change| change.concerns(node));
            let has = |client: &Client| {
                let removing = client.open.values().any(removes);
                keeps(client) || !removing && client.open.values().any(changes)
            };
            let alone = honest().find(|(_, client)| client.table.exclusive(node) && has(client));
            let Some((alone, _)) = alone else { continue };
            let other = honest().find(|(n, client)| *n != alone && keeps(client));
            if let Some((other, _)) = other {
                let trace = self.trace.join("\n");
                panic!("{trace}\nclient {alone} believes to be alone with {ino}, which client {other} keeps");
            }
        }
    }
}

fn add(one: [usize; 4], other: [usize; 4]) -> [usize; 4] {
    std::array::from_fn(|n| one[n] + other[n])
}

fn from_environment(key: &str, default: u64) -> u64 {
    std::env::var(key)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key} is no number: {text}")))
}

#[test]
fn nobody_sees_what_a_completed_change_has_replaced() {
    let first = from_environment("STRONGROOM_SEED", 1);
    let count = from_environment("STRONGROOM_SIMULATIONS", 2000);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(8);
    let results: Vec<[usize; 4]> = std::thread::scope(|scope| {
        let run = |which: u64| {
            let seeds = (first..first + count).filter(move |seed| seed % threads == which);
            seeds.fold([0; 4], |sum, seed| {
                let mut sim = Sim::new(seed);
                let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run()));
                assert!(
                    ran.is_ok(),
                    "schedule {seed} went wrong: STRONGROOM_SEED={seed} STRONGROOM_SIMULATIONS=1 shows it"
                );
                add(sum, [sim.known, sim.contained, sim.mapped, sim.recalls])
            })
        };
        let all: Vec<_> = (0..threads).map(|which| scope.spawn(move || run(which))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let [known, contained, mapped, recalls] = results.into_iter().fold([0; 4], add);
    println!(
        "{count} schedules: {known} things known without asking, {contained} of them contents of files, and {mapped} mapped contents, all \
         true; {recalls} recalls"
    );
    // A client that never knows anything is never wrong.
    assert!(known as u64 > 100 * count, "only {known} things were ever known");
    assert!(contained as u64 > 10 * count, "only {contained} contents were ever known");
    assert!(mapped as u64 > 20 * count, "only {mapped} contents were ever mapped");
    assert!(recalls as u64 > 5 * count, "only {recalls} recalls");
}
