//! Locks that clients answer themselves, simulated: the real gateway's engine, the real clients' file systems, and between them a network
//! in which anything that can happen does, in an order that a seed decides.
//!
//! Everything runs on one thread, one step after the other: a program asks, a message arrives, an answer is given, all connections of a
//! client break, somebody's patience ends, a client dies, one never answers a recall. At no moment may two programs both have been told
//! that they have locks which stand against each other; and in the end everybody is answered.
//!
//! `STRONGROOM_SIMULATIONS` sets how many schedules are run (2000), `STRONGROOM_SEED` the first seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "support/simulation.rs"]
mod simulation;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use simulation::{Dice, Outbox, contract};
use strongroom_fuse_client::attr::Owner;
use strongroom_fuse_client::errno::Ended;
use strongroom_fuse_client::fs::{Caller, Fs, LockRange};
use strongroom_fuse_client::lease::Drop as Dropped;
use strongroom_fuse_client::opening::Submit;
use strongroom_fuse_client::state::State;
use strongroom_fuse_client::telling;
use strongroom_fuse_client::transport::{Answer, Call, Carrier, Payload};
use strongroom_fuse_client::tree::ROOT;
use strongroom_gateway::engine::{
    Admission, Call as EngineCall, Engine, EngineOptions, EngineSession, LeaseOptions, LockReply, Parked,
    ReplyBuf, Served, SessionBounds, Turnstile,
};
use strongroom_protocol::attr::{Credentials, Handle, Node, SetAttr, SetTime, Time};
use strongroom_protocol::codec;
use strongroom_protocol::lease::{LeaseTerms, Note, Recalled, What};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Outcome};

const ME: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const CLIENTS: usize = 3;
const LINKS: usize = 2;
/// Programs of each client; each has the file open once.
const PROGRAMS: usize = 2;
const BYTES: usize = 4;
/// Steps of a schedule.
const STEPS: usize = 300;

/// What the client's file system asks for, until it is sent.
#[derive(Default)]
struct Asked(Mutex<VecDeque<Call>>);

impl Asked {
    fn next(&self) -> Option<Call> {
        self.0.lock().unwrap().pop_front()
    }
}

impl Carrier for Asked {
    fn submit(&self, call: Call) {
        self.0.lock().unwrap().push_back(call);
    }

    fn is_up(&self) -> bool {
        true
    }

    fn barred(&self) -> Option<Ended> {
        None
    }
}

enum Message {
    Reply(u64, Box<(Outcome, Note)>),
    Event(Event, Vec<u8>),
}

#[derive(Default)]
struct Link {
    up: VecDeque<(u64, Op)>,
    down: VecDeque<Message>,
}

/// What a program was told: for each byte 0 nothing, 1 a shared lock, 2 an exclusive one.
#[derive(Default)]
struct Program {
    file: u64,
    told: [u8; BYTES],
    waits: bool,
}

struct Client {
    session: EngineSession,
    turnstile: Arc<Turnstile>,
    outbox: Arc<Outbox>,
    state: Arc<State>,
    fs: Fs,
    asked: Arc<Asked>,
    links: Vec<Link>,
    /// The count of its connections: answers to former ones are lost.
    age: u64,
    life: u64,
    /// Requests without an answer.
    open: BTreeMap<u64, Call>,
    next: u64,
    /// What is to be sent when the gateway has been told: answers to recalls; and to take leases.
    owed: Arc<Mutex<Vec<Op>>>,
    silent: bool,
    programs: Vec<Arc<Mutex<Program>>>,
    node: Node,
}

struct Waiting {
    client: usize,
    age: u64,
    link: usize,
    id: u64,
    op: Op,
    admission: Admission,
    parked: Option<Box<Parked>>,
}

/// Client, its age, link, request.
type To = (usize, u64, usize, u64);

struct Sim {
    dice: Dice,
    _dir: tempfile::TempDir,
    engine: Engine,
    clients: Vec<Client>,
    waiting: Vec<Waiting>,
    late: Arc<Mutex<Vec<(To, Outcome)>>>,
    /// Who asks at present: often enough the same, so that it has the file alone.
    who: usize,
    /// Locks that clients answered at once.
    kept: usize,
    given: usize,
    trace: Vec<String>,
}

impl Client {
    fn new(engine: &Engine, silent: bool) -> Client {
        let session = EngineSession::new(engine, &contract(), SessionBounds::default(), &[]);
        let (outbox, turnstile) = (Arc::new(Outbox::default()), Turnstile::new());
        session.answer_to(outbox.clone());
        let state = Arc::new(State::default());
        let admission = turnstile.enter().unwrap();
        state.welcome(session.grant_infos(&admission));
        drop(admission);
        let asked = Arc::new(Asked::default());
        let fs = Fs::new(asked.clone(), state.clone(), Owner { uid: 0, gid: 0 });
        let life = state.leases.table().life();
        let mut client = Client {
            session,
            turnstile,
            outbox,
            state,
            fs,
            asked,
            links: (0..LINKS).map(|_| Link::default()).collect(),
            age: 0,
            life,
            open: BTreeMap::new(),
            next: 0,
            owed: Arc::default(),
            silent,
            programs: vec![],
            node: Node { grant: 0, ino: 0 },
        };
        // Nobody is waited for: that is not what is tried here.
        let root = client.at_once(engine, |fs, done| fs.lookup(ME, ROOT, b"a", done)).attr.ino.0;
        let file = client.at_once(engine, |fs, done| fs.lookup(ME, root, b"f", done)).attr.ino.0;
        client.node = client.state.nodes.lock().node(file).unwrap();
        for _ in 0..PROGRAMS {
            let file = client.at_once(engine, |fs, done| fs.open(ME, file, libc::O_RDWR, done)).file;
            client.programs.push(Arc::new(Mutex::new(Program { file, ..Program::default() })));
        }
        client.owed.lock().unwrap().push(Op::TakeLeases);
        client
    }

    /// Does something with nothing in between.
    fn at_once<T: Send + 'static, E: std::fmt::Debug + Send + 'static>(
        &mut self,
        engine: &Engine,
        act: impl FnOnce(&Fs, Box<dyn FnOnce(Result<T, E>) + Send>),
    ) -> T {
        let (tell, told) = mpsc::channel();
        act(&self.fs, Box::new(move |result| tell.send(result).unwrap()));
        loop {
            if let Ok(result) = told.try_recv() {
                return result.unwrap();
            }
            let call = self.asked.next().unwrap();
            let admission = self.turnstile.enter().unwrap();
            let (mut out, mut parked) = (ReplyBuf::new(), None);
            let done = loop {
                let (later, waits) = (|| panic!("no locks yet"), || {});
                let data = call.data.bytes();
                let asked = EngineCall { id: 0, op: &call.op, data, later: &later, waits: &waits };
                match engine.serve_or_park(&self.session, &admission, asked, &mut out, parked.take()) {
                    Ok(Served::Done(done)) => break done,
                    Ok(Served::Later) => panic!("no locks yet"),
                    Err(others) => {
                        others.give_up();
                        parked = Some(others);
                    }
                }
            };
            let (outcome, note) = (done.outcome, done.note);
            (call.done)(Ok(Answer { outcome, data: out.data(), epoch: 0, note, life: self.life }));
        }
    }

    fn submit(&self) -> Submit {
        let asked = self.asked.clone();
        Arc::new(move |call| asked.submit(call))
    }

    /// The request in the terms of the wire.
    fn to_wire(&self, op: &Op) -> Op {
        let mut op = op.clone();
        if let Op::SetLock { handle, .. } | Op::GetLock { handle, .. } = &mut op {
            let file = self.state.handles.lock().get(handle.0).unwrap();
            *handle = Handle(file.wire.lock().handle.0);
        }
        op
    }

    /// Tells the gateway of the locks of these files, then says so.
    fn tell(&self, kept: Vec<Node>, owed: Op) {
        let debts = self.owed.clone();
        telling::tell_all(&self.submit(), &self.state, kept, false, move || debts.lock().unwrap().push(owed));
    }
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/f"), b"x").unwrap();
        // Nobody's patience ends by itself: the dice decide.
        let leases = LeaseOptions { recall: Duration::from_secs(3600), keep: Duration::from_secs(3600) };
        let engine = Engine::open(dir.path(), EngineOptions { leases, ..EngineOptions::default() }).unwrap();
        let silent = dice.roll(2 * CLIENTS);
        let clients = (0..CLIENTS).map(|n| Client::new(&engine, n == silent)).collect();
        Sim {
            dice,
            _dir: dir,
            engine,
            clients,
            waiting: vec![],
            late: Arc::default(),
            who: 0,
            kept: 0,
            given: 0,
            trace: vec![],
        }
    }

    fn run(&mut self) {
        for step in 0..STEPS {
            self.trace.push(format!("-- {step}"));
            match self.dice.roll(200) {
                0..40 => self.ask(),
                40..90 => self.arrive(),
                90..140 => self.hear(),
                140..180 => self.pay(),
                180..190 => self.write(),
                190..193 => self.lose_patience(),
                193..195 => self.break_links(),
                195..197 => self.look_for_idle(),
                197 => self.die(),
                _ => {}
            }
            self.go_on();
        }
        // Who never answers is not waited for without end, and whoever has a lock gives it up.
        for which in 0..CLIENTS {
            if self.clients[which].silent {
                self.end(which);
            }
        }
        let busy = |sim: &Sim| {
            let waits = |client: &Client| client.programs.iter().any(|program| program.lock().unwrap().waits);
            !sim.waiting.is_empty()
                || sim.clients.iter().any(|client| waits(client) || !client.open.is_empty())
        };
        let mut left = 1000 * STEPS;
        while left > 0 && busy(self) {
            left -= 1;
            match self.dice.roll(4) {
                0 => self.arrive(),
                1 => self.hear(),
                2 => self.pay(),
                _ => {
                    let (which, program) = (self.dice.roll(CLIENTS), self.dice.roll(PROGRAMS));
                    self.set(which, program, 0..BYTES, 0, false);
                }
            }
            self.go_on();
        }
        let trace = self.trace.join("\n");
        assert!(!busy(self), "{trace}\nsomebody waits for ever");
    }

    fn go_on(&mut self) {
        self.send();
        self.resume();
        self.check();
    }

    /// A program asks for a lock, or gives one up.
    fn ask(&mut self) {
        if self.dice.roll(12) == 0 {
            self.who = self.dice.roll(CLIENTS);
        }
        let (which, program) = (self.who, self.dice.roll(PROGRAMS));
        let start = self.dice.roll(BYTES);
        let end = start + 1 + self.dice.roll(BYTES - start);
        let (kind, wait) = (self.dice.roll(3) as u8, self.dice.roll(3) == 0);
        self.set(which, program, start..end, kind, wait);
    }

    fn set(&mut self, which: usize, number: usize, range: std::ops::Range<usize>, kind: u8, wait: bool) {
        let client = &self.clients[which];
        let program = client.programs[number].clone();
        let file = {
            let mut program = program.lock().unwrap();
            if program.waits {
                return;
            }
            program.waits = true;
            // From here on it counts on no more than it had before and will have.
            program.told[range.clone()].iter_mut().for_each(|told| *told = kind.min(*told));
            program.file
        };
        self.trace.push(format!("client {which}.{number} asks for {kind} of {range:?}, waits: {wait}"));
        let kind_ = [libc::F_UNLCK, libc::F_RDLCK, libc::F_WRLCK][usize::from(kind)];
        let asked = LockRange { start: range.start as u64, end: range.end as u64 - 1, kind: kind_, pid: 1 };
        let here = program.clone();
        client.fs.setlk(ME, file, number as u64, asked, wait, move |result| {
            let mut program = program.lock().unwrap();
            program.waits = false;
            if result.is_ok() {
                program.told[range].iter_mut().for_each(|told| *told = kind);
            }
        });
        if kind > 0 {
            self.kept += usize::from(!here.lock().unwrap().waits);
            self.given += 1;
        }
    }

    /// What clients ask for goes on the way.
    fn send(&mut self) {
        for client in &mut self.clients {
            while let Some(call) = client.asked.next() {
                let id = client.next;
                client.next += 1;
                let op = client.to_wire(&call.op);
                client.open.insert(id, call);
                client.links[self.dice.roll(LINKS)].up.push_back((id, op));
            }
        }
    }

    /// A connection on which something is on the way.
    fn link(&mut self, busy: impl Fn(&Link) -> bool) -> Option<(usize, usize)> {
        let all = (0..CLIENTS).flat_map(|which| (0..LINKS).map(move |link| (which, link)));
        let ready: Vec<_> = all.filter(|(which, link)| busy(&self.clients[*which].links[*link])).collect();
        (!ready.is_empty()).then(|| ready[self.dice.roll(ready.len())])
    }

    /// A message arrives at the gateway.
    fn arrive(&mut self) {
        let Some((which, link)) = self.link(|link| !link.up.is_empty()) else { return };
        let client = &mut self.clients[which];
        let Some((id, op)) = client.links[link].up.pop_front() else { return };
        self.trace.push(format!("client {which} #{id} arrives: {op:?}"));
        if let Op::Recalled { id } = op {
            client.session.recalled(id);
        } else {
            let admission = client.turnstile.enter().unwrap();
            let age = client.age;
            self.serve(Waiting { client: which, age, link, id, op, admission, parked: None });
        }
        self.collect();
    }

    fn serve(&mut self, mut request: Waiting) {
        let client = &self.clients[request.client];
        let to: To = (request.client, request.age, request.link, request.id);
        let late = self.late.clone();
        let later = move || -> LockReply {
            let late = late.clone();
            Box::new(move |outcome| late.lock().unwrap().push((to, outcome)))
        };
        let call = EngineCall { id: request.id, op: &request.op, data: &[], later: &later, waits: &|| {} };
        let (mut out, parked) = (ReplyBuf::new(), request.parked.take());
        match self.engine.serve_or_park(&client.session, &request.admission, call, &mut out, parked) {
            Ok(Served::Done(done)) => self.reply(to, done.outcome, done.note),
            Ok(Served::Later) => {}
            Err(parked) => {
                request.parked = Some(parked);
                self.waiting.push(request);
            }
        }
    }

    fn reply(&mut self, (which, age, link, id): To, outcome: Outcome, note: Note) {
        self.trace.push(format!("gateway answers client {which} #{id}: {outcome:?} {note:?}"));
        let client = &mut self.clients[which];
        if client.age == age {
            client.links[link].down.push_back(Message::Reply(id, Box::new((outcome, note))));
        }
    }

    /// Requests that have waited long enough go on, in any order.
    fn resume(&mut self) {
        loop {
            self.collect();
            let over = |waiting: &Waiting| waiting.parked.as_ref().is_some_and(|parked| parked.is_over());
            let ready: Vec<usize> = (0..self.waiting.len()).filter(|n| over(&self.waiting[*n])).collect();
            if ready.is_empty() {
                return;
            }
            let next = ready[self.dice.roll(ready.len())];
            let request = self.waiting.swap_remove(next);
            self.serve(request);
        }
    }

    /// What the gateway says on its own goes on the way.
    fn collect(&mut self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        for (to, outcome) in late {
            self.reply(to, outcome, Note::default());
        }
        for (which, client) in self.clients.iter_mut().enumerate() {
            let said = std::mem::take(&mut *client.outbox.0.lock().unwrap());
            for (event, data, everywhere) in said {
                self.trace.push(format!("gateway tells client {which} {event:?}"));
                let first = self.dice.roll(LINKS);
                for (number, link) in client.links.iter_mut().enumerate() {
                    if everywhere || number == first {
                        link.down.push_back(Message::Event(event.clone(), data.clone()));
                    }
                }
            }
        }
    }

    /// A message arrives at a client.
    fn hear(&mut self) {
        let Some((which, link)) = self.link(|link| !link.down.is_empty()) else { return };
        let client = &mut self.clients[which];
        let Some(message) = client.links[link].down.pop_front() else { return };
        let now = Instant::now();
        match message {
            Message::Event(Event::Recall { id, stamp }, data) => {
                let items: Vec<Recalled> = codec::decode_list(&data).unwrap();
                self.trace.push(format!("client {which} hears recall {id} at {stamp}: {items:?}"));
                {
                    let mut table = client.state.leases.table();
                    for item in &items {
                        table.recall(stamp, item.node, &item.what, now, &mut Dropped::default());
                    }
                }
                let mut kept = client.state.locks.lock().kept();
                let named = |node: &Node| {
                    items.iter().any(|item| item.node == *node && !matches!(item.what, What::Name(_)))
                };
                kept.retain(named);
                if !client.silent {
                    client.tell(kept, Op::Recalled { id });
                }
            }
            Message::Event(Event::LeasesLost { id, stamp }, _) => {
                self.trace.push(format!("client {which} hears that all is lost"));
                drop(client.state.leases.table().lost(stamp, now));
                let kept = client.state.locks.lock().kept();
                if !client.silent {
                    client.tell(kept, Op::Recalled { id });
                }
            }
            Message::Event(event, _) => panic!("{event:?}"),
            Message::Reply(id, answer) => {
                let (outcome, note) = *answer;
                self.trace.push(format!("client {which} hears #{id}"));
                let Some(call) = client.open.remove(&id) else { return };
                if let Outcome::Terms(terms) = outcome {
                    let terms = LeaseTerms { keep_ms: 3_600_000, ..terms };
                    client.state.leases.table().terms(client.life, 0, &terms);
                    return;
                }
                let life = client.life;
                let result = match outcome {
                    Outcome::Failed(failure) => Err(failure.into()),
                    outcome => Ok(Answer { outcome, data: &[], epoch: 0, note, life }),
                };
                (call.done)(result);
            }
        }
    }

    /// A client sends what it owes.
    fn pay(&mut self) {
        let (which, link) = (self.dice.roll(CLIENTS), self.dice.roll(LINKS));
        let client = &mut self.clients[which];
        let debt = {
            let mut owed = client.owed.lock().unwrap();
            if owed.is_empty() {
                return;
            }
            let at = self.dice.roll(owed.len());
            owed.swap_remove(at)
        };
        match debt {
            Op::TakeLeases => client.asked.submit(nobodys(Op::TakeLeases)),
            answer => client.links[link].up.push_back((u64::MAX, answer)),
        }
    }

    /// A client changes the file: nobody else keeps anything of it then.
    fn write(&mut self) {
        let client = &self.clients[self.who];
        let time = SetTime::At(Time { secs: self.trace.len() as i64, nanos: 0 });
        let set = SetAttr { mtime: Some(time), ..SetAttr::default() };
        let by = Credentials { uid: 0, gid: 0 };
        client.asked.submit(nobodys(Op::Setattr { node: client.node, handle: None, set, by }));
    }

    fn lose_patience(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let which = self.dice.roll(self.waiting.len());
        self.trace.push(format!("patience with {} ends", self.waiting[which].client));
        if let Some(parked) = &self.waiting[which].parked {
            parked.give_up();
        }
    }

    /// What nobody looks at is given back.
    fn look_for_idle(&mut self) {
        let client = &self.clients[self.dice.roll(CLIENTS)];
        if client.silent {
            return;
        }
        let idle = client.state.locks.lock().idle();
        telling::tell_all(&client.submit(), &client.state, idle, true, || {});
    }

    /// All connections of a client break, and it makes new ones; what was not answered is sent again.
    fn break_links(&mut self) {
        let which = self.dice.roll(CLIENTS);
        if self.waiting.iter().any(|waiting| waiting.client == which) {
            return;
        }
        self.trace.push(format!("client {which} is cut off"));
        let client = &mut self.clients[which];
        if self.dice.roll(2) == 0 {
            client.session.left_alone();
            drop(client.state.leases.table().end_life());
        } else {
            drop(client.state.leases.table().end_life());
            client.session.left_alone();
        }
        client.life = client.state.leases.table().life();
        client.age += 1;
        client.links = (0..LINKS).map(|_| Link::default()).collect();
        client.owed.lock().unwrap().clear();
        let again = std::mem::take(&mut client.open);
        for (id, call) in again {
            if matches!(call.op, Op::TakeLeases) {
                continue;
            }
            let op = client.to_wire(&call.op);
            client.open.insert(id, call);
            client.links[self.dice.roll(LINKS)].up.push_back((id, op));
        }
        // The gateway is told before leases are taken again.
        let kept = client.state.locks.lock().kept();
        client.tell(kept, Op::TakeLeases);
    }

    fn die(&mut self) {
        let which = self.dice.roll(CLIENTS);
        self.end(which);
    }

    /// A client dies with all its programs, its session ends, and another takes its place.
    fn end(&mut self, which: usize) {
        self.trace.push(format!("client {which} dies"));
        self.waiting.retain(|waiting| waiting.client != which);
        let old = &self.clients[which];
        let age = old.age + 1;
        old.turnstile.fence();
        old.turnstile.drain(None);
        old.session.close();
        self.clients[which] = Client { age, ..Client::new(&self.engine, false) };
    }

    /// Nobody counts on a lock that stands against one on which somebody else counts.
    fn check(&self) {
        let programs = || {
            self.clients.iter().enumerate().flat_map(|(which, client)| {
                client.programs.iter().enumerate().map(move |(n, program)| ((which, n), program))
            })
        };
        for byte in 0..BYTES {
            let told: Vec<_> =
                programs().map(|(who, program)| (who, program.lock().unwrap().told[byte])).collect();
            let held = told.iter().filter(|(_, kind)| *kind > 0).count();
            if held > 1 && told.iter().any(|(_, kind)| *kind == 2) {
                panic!("{}\nlocks on byte {byte}: {told:?}", self.trace.join("\n"));
            }
        }
    }
}

/// A request whose answer nobody waits for.
fn nobodys(op: Op) -> Call {
    Call { op, data: Payload::default(), pid: 0, done: Box::new(|_| {}), keep: None }
}

fn from_environment(key: &str, default: u64) -> u64 {
    std::env::var(key)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key} is no number: {text}")))
}

#[test]
fn nobody_has_a_lock_that_stands_against_anothers() {
    let first = from_environment("STRONGROOM_SEED", 1);
    let count = from_environment("STRONGROOM_SIMULATIONS", 2000);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(8);
    let results: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let run = |which: u64| {
            let seeds = (first..first + count).filter(move |seed| seed % threads == which);
            seeds.fold((0, 0), |(kept, given), seed| {
                let mut sim = Sim::new(seed);
                let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run()));
                assert!(
                    ran.is_ok(),
                    "schedule {seed} went wrong: STRONGROOM_SEED={seed} STRONGROOM_SIMULATIONS=1 shows it"
                );
                (kept + sim.kept, given + sim.given)
            })
        };
        let all: Vec<_> = (0..threads).map(|which| scope.spawn(move || run(which))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (kept, given) = results.into_iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!("{count} schedules: {given} locks asked for, {kept} of them answered by the clients");
    // A client that answers nothing is never wrong.
    assert!(kept as u64 > count, "only {kept} of {given} were answered by the clients");
}
