//! The transport against a gateway of a few lines that speaks the real protocol over real TLS and does just what each test
//! says: answers, keeps silent, hangs up, forgets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use strongroom_channel::{Address, Channel, ClientTls, Frame, Peer, ServerTls, Socket};
use strongroom_contracts::{
    Audit, Chain, ContractId, Detection, Grant, Ownership, PolicyDigest, Rights, SecretKey, SessionLimits,
    Terms, UndoSpace, armour,
};
use strongroom_fuse_client::contract::ContractFile;
use strongroom_fuse_client::errno::Ended;
use strongroom_fuse_client::journal::Journal;
use strongroom_fuse_client::lease::Heard;
use strongroom_fuse_client::state::{OpenFile, State};
use strongroom_fuse_client::transport::{Call, Carrier, OpenError, Payload, Settings, Transport};
use strongroom_protocol::attr::{Handle, Node, OpenFlags};
use strongroom_protocol::codec;
use strongroom_protocol::hello::{Answer, GrantInfo, Hello, Refused, RefusedCode, SessionId, Welcome};
use strongroom_protocol::lease::{Lease, LeaseTerms, Note, Recalled, What};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Meant, Op, Request};
use strongroom_protocol::reply::{Event, Failure, FenceReason, FromGateway, Outcome};

/// Only against hanging for ever.
const HANG: Duration = Duration::from_secs(60);

/// The gateway's side: accepts connections one by one.
struct Door {
    listener: TcpListener,
    tls: ServerTls,
}

/// A connection after its hello.
struct Visitor {
    channel: Channel,
    frame: Frame,
    hello: Hello,
    chain: Vec<u8>,
}

impl Door {
    fn take(&self) -> Visitor {
        let (socket, _) = self.listener.accept().unwrap();
        let mut channel = self.tls.accept(Socket::Tcp(socket), HANG).unwrap();
        channel.receiver.set_timeout(Some(HANG)).unwrap();
        let mut frame = Frame::new();
        assert!(channel.receiver.recv(&mut frame).unwrap(), "no hello");
        let hello = codec::decode_header(frame.header()).unwrap();
        let chain = frame.data().to_vec();
        Visitor { channel, frame, hello, chain }
    }
}

impl Visitor {
    fn answer(&self, answer: &Answer, data: &[u8]) {
        let mut header = vec![];
        codec::encode_header(answer, &mut header).unwrap();
        self.channel.sender.send(&header, data).unwrap();
    }

    fn send(&self, message: &FromGateway) {
        let mut header = vec![];
        codec::encode_header(message, &mut header).unwrap();
        self.channel.sender.send(&header, &[]).unwrap();
    }

    fn welcome(&self, boot: u64, resumed: bool) {
        self.welcome_of(boot, resumed, 1);
    }

    fn welcome_of(&self, boot: u64, resumed: bool, connections: u16) {
        let welcome = Welcome {
            session: SessionId([7; 16]),
            boot,
            resumed,
            slots: 2,
            in_flight: 16,
            connections,
            contract: ContractId::from_bytes([1; 16]),
            generation: 1,
            application: "mail".into(),
            expires: 4_000_000_000,
            now: 0,
        };
        let grants = vec![GrantInfo {
            mount: "/Mail".parse().unwrap(),
            rights: Rights::READ_WRITE,
            ownership: Ownership::Single,
            max_file_bytes: None,
            root: None,
        }];
        self.answer(&Answer::Welcome(welcome), &codec::encode_list(&grants).unwrap());
    }

    fn refuse(&self, code: RefusedCode) {
        self.answer(&Answer::Refused(Refused { code, text: format!("{code:?}") }), &[]);
    }

    /// The next request that is about files.
    fn request(&mut self) -> Request {
        loop {
            let request = self.not_for_leases();
            if request.op != Op::Ping {
                return request;
            }
            self.reply(request.id, Outcome::Done);
        }
    }

    fn not_for_leases(&mut self) -> Request {
        loop {
            let request = self.any_request();
            if request.op != Op::TakeLeases {
                return request;
            }
        }
    }

    /// The next request, whatever it is.
    fn any_request(&mut self) -> Request {
        assert!(self.channel.receiver.recv(&mut self.frame).unwrap(), "the client hung up");
        codec::decode_header(self.frame.header()).unwrap()
    }

    /// Answers the request for leases, which comes first on each connection.
    fn lend(&mut self) {
        let request = self.any_request();
        assert_eq!(request.op, Op::TakeLeases);
        let terms = LeaseTerms { keep_ms: 3_600_000, recall_ms: 1000, most: 1000 };
        self.leased(request.id, Outcome::Terms(terms), Note::default());
    }

    fn leased(&self, id: u64, outcome: Outcome, note: Note) {
        self.send(&FromGateway::Leased { id, outcome, note });
    }

    fn recall(&self, id: u64, stamp: u64, items: &[Recalled]) {
        let mut header = vec![];
        codec::encode_header(&FromGateway::Event(Event::Recall { id, stamp }), &mut header).unwrap();
        let data = codec::encode_list(&items.to_vec()).unwrap();
        self.channel.sender.send(&header, &data).unwrap();
    }

    fn reply(&self, id: u64, outcome: Outcome) {
        self.send(&FromGateway::Reply { id, outcome });
    }

    fn event(&self, event: Event) {
        self.send(&FromGateway::Event(event));
    }
}

struct Setup {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    issuer: SecretKey,
    terms: Terms,
    settings: Settings,
    door: Door,
}

fn setup(deadline: Option<Duration>, fetch: bool) -> Setup {
    let (issuer, gateway, holder) =
        (SecretKey::generate().unwrap(), SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let terms = Terms {
        version: strongroom_contracts::terms::VERSION,
        id: ContractId::from_bytes([1; 16]),
        issuer: issuer.public().id(),
        application: "mail".parse().unwrap(),
        holder: holder.public(),
        gateway: gateway.public().gateway_id(),
        generation: 1,
        not_before: 0,
        expires: 4_000_000_000,
        grants: vec![Grant {
            data: "users/alice/Mail".parse().unwrap(),
            mount: "/Mail".parse().unwrap(),
            rights: Rights::READ_WRITE,
            quota_bytes: None,
            quota_files: None,
            max_file_bytes: None,
            undo_secs: 0,
            ownership: Ownership::Single,
        }],
        limits: SessionLimits::default(),
        networks: None,
        audit: Audit::Normal,
        undo: UndoSpace::default(),
        detection: Detection::default(),
        policy: PolicyDigest::of(""),
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("contract");
    std::fs::write(&path, armour::write(&Chain::issue(&terms, &issuer).unwrap()).unwrap()).unwrap();
    let contract = ContractFile::read(&path, holder.public(), &dir.path().join("holder.key")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings {
        tls: ClientTls::new(&holder, Peer::Gateway(contract.gateway()), strongroom_protocol::ALPN_NATIVE)
            .unwrap(),
        gateway: Address::Tcp(listener.local_addr().unwrap()),
        contract,
        fetch,
        connections: 1,
        deadline,
        journal: Journal::default(),
    };
    let tls = ServerTls::new(&gateway, &[strongroom_protocol::ALPN_NATIVE]).unwrap();
    Setup { _dir: dir, path, issuer, terms, settings, door: Door { listener, tls } }
}

type Told = mpsc::Receiver<Result<Outcome, Ended>>;

fn ask(transport: &Transport, op: Op) -> Told {
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |result: Result<strongroom_fuse_client::transport::Answer<'_>, Ended>| {
        tell.send(result.map(|answer| answer.outcome)).unwrap();
    });
    transport.submit(Call { op, data: Payload::default(), pid: 0, done, keep: None });
    told
}

const ROOT: Node = Node { grant: 0, ino: 9 };

fn unlink(name: &str) -> Op {
    Op::Unlink { parent: ROOT, name: Name::new(name.as_bytes()).unwrap() }
}

/// Runs a gateway's script beside a client that has got its first welcome.
fn with(
    setup: Setup,
    script: impl FnOnce(&Door, Visitor) + Send,
    client: impl FnOnce(&Transport, &Arc<State>),
) {
    with_both(setup, 1, script, client);
}

fn with_connections(
    connections: u16,
    script: impl FnOnce(&Door, Visitor) + Send,
    client: impl FnOnce(&Transport, &Arc<State>),
) {
    let mut setup = setup(None, true);
    setup.settings.connections = connections.into();
    with_both(setup, connections, script, client);
}

fn with_both(
    setup: Setup,
    connections: u16,
    script: impl FnOnce(&Door, Visitor) + Send,
    client: impl FnOnce(&Transport, &Arc<State>),
) {
    let Setup { _dir, settings, door, .. } = setup;
    let state = Arc::new(State::default());
    std::thread::scope(|scope| {
        let gateway = scope.spawn(move || {
            let first = door.take();
            assert_eq!((first.hello.resume, first.hello.wait), (None, false));
            assert!(!first.chain.is_empty());
            first.welcome_of(1, false, connections);
            script(&door, first);
        });
        let transport = Transport::open(settings, state.clone()).unwrap();
        client(&transport, &state);
        gateway.join().unwrap();
        transport.close();
    });
}

#[test]
fn a_request_is_sent_again_under_its_number_after_a_lost_connection() {
    let script = |door: &Door, mut first: Visitor| {
        let before = first.request();
        first.channel.closer.close();
        let mut second = door.take();
        assert_eq!(second.hello.resume, Some(SessionId([7; 16])));
        second.welcome(1, true);
        let again = second.request();
        assert_eq!(again, before);
        assert_eq!(before.slot.sequence, 1);
        second.reply(again.id, Outcome::Done);
        let next = second.request();
        assert_eq!((next.slot.index, next.slot.sequence), (again.slot.index, 2));
        second.reply(next.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, _| {
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
        assert_eq!(ask(transport, unlink("b")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}

#[test]
fn what_cannot_be_known_in_another_session_is_not_done_twice() {
    let script = |door: &Door, mut first: Visitor| {
        let unlink = first.request();
        assert!(matches!(unlink.op, Op::Unlink { .. }));
        assert!(matches!(first.request().op, Op::Getattr { .. }));
        first.channel.closer.close();
        let resuming = door.take();
        resuming.refuse(RefusedCode::NoSession);
        let mut second = door.take();
        assert_eq!(second.hello.resume, None);
        second.welcome(2, false);
        let again = second.request();
        assert!(matches!(again.op, Op::Getattr { .. }), "{again:?}");
        second.reply(again.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, _| {
        let removed = ask(transport, unlink("a"));
        let looked = ask(transport, Op::Getattr { node: ROOT, handle: None });
        assert_eq!(removed.recv_timeout(HANG).unwrap(), Err(Ended::Lost));
        assert_eq!(looked.recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}

#[test]
fn requests_wait_for_a_slot_and_others_pass_them() {
    let script = |_: &Door, mut first: Visitor| {
        let (one, two) = (first.request(), first.request());
        let passing = first.request();
        assert!(matches!(passing.op, Op::Getattr { .. }), "{passing:?}");
        first.reply(passing.id, Outcome::Done);
        first.reply(two.id, Outcome::Done);
        let three = first.request();
        assert_eq!((three.slot.index, three.slot.sequence), (two.slot.index, 2));
        first.reply(one.id, Outcome::Done);
        first.reply(three.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, _| {
        let slotted = ["a", "b", "c"].map(|name| ask(transport, unlink(name)));
        let passing = ask(transport, Op::Getattr { node: ROOT, handle: None });
        for told in slotted.into_iter().chain([passing]) {
            assert_eq!(told.recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
        }
    });
}

#[test]
fn a_fence_ends_everything_at_once_and_another_contract_heals() {
    let (heal, healed) = mpsc::channel::<()>();
    let script = move |door: &Door, mut first: Visitor| {
        first.request();
        first.event(Event::Fenced(FenceReason::Revoked));
        let waiting = door.take();
        assert!(waiting.hello.wait && waiting.hello.resume.is_none() && waiting.chain.is_empty());
        healed.recv_timeout(HANG).unwrap();
        waiting.welcome(1, false);
        let mut second = waiting;
        let request = second.request();
        assert_eq!(request.slot.sequence, 1, "slots begin anew");
        second.reply(request.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, _| {
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Err(Ended::Void));
        assert_eq!(transport.barred(), Some(Ended::Void));
        assert_eq!(ask(transport, unlink("b")).try_recv().unwrap(), Err(Ended::Void), "at once");
        heal.send(()).unwrap();
        let start = Instant::now();
        while transport.barred().is_some() {
            assert!(start.elapsed() < HANG);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(ask(transport, unlink("c")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}

#[test]
fn a_superseded_session_refuses_nothing() {
    let script = |door: &Door, mut first: Visitor| {
        let request = first.request();
        first.event(Event::Fenced(FenceReason::Superseded));
        first.reply(request.id, Outcome::Failed(Failure::Fenced));
        first.channel.closer.close();
        let mut second = door.take();
        assert_eq!(second.hello.resume, None);
        second.welcome(1, false);
        let again = second.request();
        assert!(matches!(again.op, Op::Unlink { .. }));
        second.reply(again.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, _| {
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}

#[test]
fn a_refusal_that_overtakes_its_event_waits_for_it() {
    let script = |door: &Door, mut first: Visitor| {
        let request = first.request();
        first.reply(request.id, Outcome::Failed(Failure::Fenced));
        first.event(Event::Fenced(FenceReason::Superseded));
        first.channel.closer.close();
        let mut second = door.take();
        second.welcome(1, false);
        let again = second.request();
        assert!(matches!(again.op, Op::Unlink { .. }));
        second.reply(again.id, Outcome::Done);
        // Without an event it is believed after a few times.
        for _ in 0..5 {
            let request = second.request();
            second.reply(request.id, Outcome::Failed(Failure::Fenced));
        }
    };
    with(setup(None, true), script, |transport, _| {
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
        let told = ask(transport, unlink("b")).recv_timeout(HANG).unwrap();
        assert_eq!(told, Err(Ended::Failed(Failure::Fenced)));
    });
}

#[test]
fn a_deadline_ends_waiting() {
    let (end, ended) = mpsc::channel::<()>();
    let script = move |_: &Door, mut first: Visitor| {
        first.request();
        // Silent until the client has given up.
        ended.recv_timeout(HANG).unwrap();
    };
    with(setup(Some(Duration::from_secs(1)), true), script, |transport, _| {
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Err(Ended::Deadline));
        end.send(()).unwrap();
    });
}

#[test]
fn a_forgotten_node_is_found_by_its_path_and_asked_for_again() {
    let script = |_: &Door, mut first: Visitor| {
        let request = first.request();
        first.reply(request.id, Outcome::Failed(Failure::Stale));
        let resolve = first.request();
        assert_eq!(resolve.op, Op::Resolve { grant: 0, ino: 10 });
        assert_eq!(first.frame.data(), b"d");
        first.reply(resolve.id, Outcome::Done);
        let again = first.request();
        assert_eq!(again.op, request.op);
        assert_eq!(again.slot, request.slot, "the refusal did not use the number up");
        first.reply(again.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, state| {
        let node = Node { grant: 0, ino: 10 };
        state.nodes.lock().tell_root(ROOT, 0);
        state.nodes.lock().tell_named(node, 0, ROOT, Name::new(b"d").unwrap());
        let op = Op::Rmdir { parent: node, name: Name::new(b"x").unwrap(), directory: Meant::Whichever };
        assert_eq!(ask(transport, op).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}

#[test]
fn closing_says_goodbye_and_leaves_nobody_waiting() {
    let script = |_: &Door, mut first: Visitor| {
        first.request();
        assert_eq!(first.request().op, Op::Bye);
    };
    with(setup(None, true), script, |transport, _| {
        let told = ask(transport, unlink("a"));
        transport.close();
        assert_eq!(told.recv_timeout(HANG).unwrap(), Err(Ended::Closing));
    });
}

#[test]
fn a_replaced_contract_file_is_presented_while_the_old_contract_is_good() {
    let setup = setup(None, true);
    let (path, issuer, terms) = (setup.path.clone(), setup.issuer.to_file_text(), setup.terms.clone());
    let issuer = SecretKey::from_file_text(&issuer).unwrap();
    let replace = |expires| {
        let chain = Chain::issue(&Terms { expires, ..terms.clone() }, &issuer).unwrap();
        let new = path.with_extension("new");
        std::fs::write(&new, armour::write(&chain).unwrap()).unwrap();
        std::fs::rename(new, &path).unwrap();
        chain.to_bytes().unwrap()
    };
    let (tell, told) = mpsc::channel::<Vec<u8>>();
    let script = move |door: &Door, mut first: Visitor| {
        let chain = told.recv_timeout(HANG).unwrap();
        let second = door.take();
        assert_eq!(second.hello.resume, Some(SessionId([7; 16])), "the session goes on");
        assert_eq!(second.chain, chain);
        second.welcome(1, true);
        // Whether it is there still, and what the application asks; in any order.
        let asked = [first.not_for_leases(), first.not_for_leases()];
        assert!(asked.iter().any(|request| request.op == Op::Ping));
        asked.iter().for_each(|request| first.reply(request.id, Outcome::Done));
        // Lost before it is answered, presented again; and a session may have all its connections.
        let chain = told.recv_timeout(HANG).unwrap();
        drop(door.take());
        let again = door.take();
        assert_eq!(again.chain, chain);
        again.refuse(RefusedCode::Busy);
        let request = first.request();
        first.reply(request.id, Outcome::Done);
        // With the connection lost as well, it comes with the next one, and not after that.
        let chain = told.recv_timeout(HANG).unwrap();
        let offered = door.take();
        assert_eq!(offered.chain, chain);
        first.channel.closer.close();
        drop(offered);
        let mut next = door.take();
        assert_eq!((next.hello.resume, next.chain.clone()), (Some(SessionId([7; 16])), chain));
        next.welcome(1, true);
        let request = next.request();
        next.channel.closer.close();
        let mut last = door.take();
        assert!(last.chain.is_empty());
        last.welcome(1, true);
        let again = last.request();
        assert_eq!(again.op, request.op);
        last.reply(again.id, Outcome::Done);
    };
    with(setup, script, |transport, _| {
        for round in 0..3 {
            tell.send(replace(4_000_000_001 + round)).unwrap();
            assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
        }
    });
}

#[test]
fn a_void_contract_file_is_made_good_by_what_the_gateway_keeps() {
    for (fetch, fine) in [(true, true), (false, false)] {
        let Setup { _dir, settings, door, .. } = setup(None, fetch);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let file = door.take();
                assert!(!file.chain.is_empty());
                file.refuse(RefusedCode::Revoked);
                if fetch {
                    let kept = door.take();
                    assert!(kept.chain.is_empty());
                    kept.welcome(1, false);
                }
            });
            match Transport::open(settings, Arc::default()) {
                Ok(_) => assert!(fine),
                Err(OpenError::Refused(refused)) => {
                    assert!(!fine);
                    assert_eq!(refused.code, RefusedCode::Revoked);
                }
                Err(other) => panic!("{other}"),
            }
        });
    }
}

/// What a client knows of the root, asked for with `asked` and answered under a shared lease.
fn known(state: &State) -> bool {
    state.leases.table().attr(ROOT, Instant::now()).is_some()
}

fn learn(transport: &Transport, state: &Arc<State>) {
    let asked = state.leases.table().ask(Instant::now());
    let (tell, told) = mpsc::channel();
    let learnt = state.clone();
    let done = Box::new(move |result: Result<strongroom_fuse_client::transport::Answer<'_>, Ended>| {
        let answer = result.unwrap();
        let Outcome::Attr(attr) = answer.outcome else { panic!("no attributes") };
        let heard = Heard { asked, life: answer.life, note: answer.note };
        learnt.leases.table().learn(&heard, ROOT, answer.note.node, &attr, true);
        tell.send(()).unwrap();
    });
    let op = Op::Getattr { node: ROOT, handle: None };
    transport.submit(Call { op, data: Payload::default(), pid: 0, done, keep: None });
    told.recv_timeout(HANG).unwrap();
}

fn root_attr() -> Outcome {
    let time = strongroom_protocol::attr::Time::default();
    Outcome::Attr(strongroom_protocol::attr::Attr {
        ino: ROOT.ino,
        generation: 1,
        mode: 0o040_755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    })
}

#[test]
fn a_recall_is_answered_when_nothing_is_left_of_what_it_names() {
    let (go, gone) = mpsc::channel::<()>();
    let script = move |_: &Door, mut first: Visitor| {
        first.lend();
        let request = first.any_request();
        first.leased(request.id, root_attr(), Note { stamp: 1, node: Lease::Shared, ..Note::default() });
        gone.recv_timeout(HANG).unwrap();
        let what = What::All { data: false, open: false };
        // The second is of a grant that the contract does not have.
        let other = Node { grant: 9, ino: 1 };
        first.recall(7, 2, &[Recalled { node: ROOT, what: what.clone() }, Recalled { node: other, what }]);
        assert_eq!(first.any_request().op, Op::Recalled { id: 7 });
        first.event(Event::LeasesLost { id: 8, stamp: 3 });
        assert_eq!(first.any_request().op, Op::Recalled { id: 8 });
    };
    with(setup(None, true), script, |transport, state| {
        learn(transport, state);
        assert!(known(state));
        go.send(()).unwrap();
        let start = Instant::now();
        while known(state) {
            assert!(start.elapsed() < HANG);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn with_the_last_connection_all_leases_are_gone_before_there_is_another() {
    let script = |door: &Door, mut first: Visitor| {
        first.lend();
        let request = first.any_request();
        first.leased(request.id, root_attr(), Note { stamp: 1, node: Lease::Shared, ..Note::default() });
        let last = first.any_request();
        first.channel.closer.close();
        let mut second = door.take();
        second.welcome(1, true);
        second.lend();
        let again = second.request();
        assert_eq!(again, last);
        second.reply(again.id, Outcome::Done);
    };
    with(setup(None, true), script, |transport, state| {
        learn(transport, state);
        let life = state.leases.table().life();
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
        assert!(!known(state));
        // The reader and the keeper may each notice the loss.
        assert!(state.leases.table().life() > life);
    });
}

/// The gateway may know that a session's last connection is gone, and have ended its leases, before the client knows: so a further
/// connection is taken only while another one answers.
#[test]
fn a_further_connection_is_none_if_the_others_are_dead_at_the_gateway() {
    let script = |door: &Door, mut first: Visitor| {
        first.lend();
        let request = first.any_request();
        first.leased(request.id, root_attr(), Note { stamp: 1, node: Lease::Shared, ..Note::default() });
        let further = door.take();
        assert_eq!(further.hello.resume, Some(SessionId([7; 16])));
        further.welcome_of(1, true, 2);
        // Asked whether it is still there, it is not.
        assert_eq!(first.any_request().op, Op::Ping);
        first.channel.closer.close();
        let mut again = door.take();
        again.welcome_of(1, true, 1);
        again.lend();
        let request = again.request();
        again.reply(request.id, Outcome::Done);
        // Nothing was said on the other one.
        let mut further = further;
        let heard = further.channel.receiver.recv(&mut further.frame).unwrap_or(false);
        assert!(!heard, "{:?}", codec::decode_header::<Request>(further.frame.header()));
    };
    with_connections(2, script, |transport, state| {
        learn(transport, state);
        let start = Instant::now();
        while known(state) {
            assert!(start.elapsed() < HANG, "leases of connections that are dead are believed");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}

#[test]
fn a_further_connection_is_taken_while_another_one_answers() {
    let script = |door: &Door, mut first: Visitor| {
        first.lend();
        let mut further = door.take();
        further.welcome_of(1, true, 2);
        let ping = first.any_request();
        assert_eq!(ping.op, Op::Ping);
        first.reply(ping.id, Outcome::Done);
        further.lend();
    };
    with_connections(2, script, |_, _| {});
}

/// What is open here the gateway must know, and the kernel must know how long it is by now, before others need not wait for this guest any more;
/// and until then nothing new goes.
#[test]
fn leases_are_taken_last_by_who_has_something_open() {
    let (go, begun) = mpsc::channel::<()>();
    let script = move |door: &Door, mut first: Visitor| {
        first.lend();
        go.send(()).unwrap();
        let removal = first.request();
        first.channel.closer.close();
        let mut second = door.take();
        second.welcome_of(1, true, 2);
        let size = second.any_request();
        assert_eq!(size.op, Op::Getattr { node: ROOT, handle: Some(Handle(5)) });
        let mut further = door.take();
        further.welcome_of(1, true, 2);
        let ping = second.any_request();
        assert_eq!(ping.op, Op::Ping);
        second.reply(ping.id, Outcome::Done);
        // Whoever sends too early does so within a moment.
        for early in [&mut further, &mut second] {
            early.channel.receiver.set_timeout(Some(Duration::from_millis(200))).unwrap();
            let heard = early.channel.receiver.recv(&mut early.frame);
            assert!(heard.is_err(), "{:?}", codec::decode_header::<Request>(early.frame.header()));
            early.channel.receiver.set_timeout(Some(HANG)).unwrap();
        }
        second.reply(size.id, root_attr());
        second.lend();
        further.lend();
        assert_eq!(second.request(), removal);
        second.reply(removal.id, Outcome::Done);
    };
    let mut setup = setup(None, true);
    setup.settings.connections = 2;
    with_both(setup, 1, script, |transport, state| {
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        state.handles.lock().add(OpenFile::new(ROOT, flags, false, false, 1, Handle(5)));
        begun.recv_timeout(HANG).unwrap();
        assert_eq!(ask(transport, unlink("a")).recv_timeout(HANG).unwrap(), Ok(Outcome::Done));
    });
}
