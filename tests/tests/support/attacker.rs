//! A guest that speaks the protocol itself: one connection, any frame, in any order.

use std::net::{IpAddr, SocketAddr};

use strongroom_channel::{Channel, ChannelError, ClientTls, Frame, Peer, Socket};
use strongroom_contracts::{Chain, SecretKey};
use strongroom_protocol::attr::{Attr, Credentials, Handle, Node, OpenFlags};
use strongroom_protocol::codec::{decode_header, decode_list, encode_header};
use strongroom_protocol::hello::{Answer, GrantInfo, Hello, Refused, SessionId, Welcome};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::readdir::{self, DirEntry};
use strongroom_protocol::reply::{Entry, Event, Failure, FromGateway, Outcome};
use strongroom_protocol::{ALPN_NATIVE, VERSION};

use super::LONG;
use super::gateway::Gateway;

/// What became of a request.
#[derive(Debug)]
pub enum Reply {
    /// Carried out.
    Ok(Outcome, Vec<u8>),
    /// Refused.
    Failed(Failure),
    /// The connection was closed instead.
    Gone,
}

impl Reply {
    pub fn is_ok(&self) -> bool {
        matches!(self, Reply::Ok(..))
    }

    #[track_caller]
    pub fn ok(self) -> (Outcome, Vec<u8>) {
        match self {
            Reply::Ok(outcome, data) => (outcome, data),
            other => panic!("should have been carried out: {other:?}"),
        }
    }

    #[track_caller]
    pub fn failure(self) -> Failure {
        match self {
            Reply::Failed(failure) => failure,
            other => panic!("should have failed: {other:?}"),
        }
    }

    #[track_caller]
    pub fn errno(self) -> i32 {
        match self.failure() {
            Failure::Errno(number) => i32::from(number),
            other => panic!("should have been an errno: {other:?}"),
        }
    }

    /// Refused one way or the other; the failure if one was told.
    #[track_caller]
    pub fn refused(self) -> Option<Failure> {
        match self {
            Reply::Ok(outcome, data) => {
                panic!("was carried out and should not: {outcome:?} with {} bytes", data.len())
            }
            Reply::Failed(failure) => Some(failure),
            Reply::Gone => None,
        }
    }

    #[track_caller]
    pub fn entry(self) -> Entry {
        match self.ok().0 {
            Outcome::Entry(entry) | Outcome::Created(_, entry) => entry,
            other => panic!("not an entry: {other:?}"),
        }
    }

    #[track_caller]
    pub fn handle(self) -> Handle {
        match self.ok().0 {
            Outcome::Opened(handle, _) | Outcome::Created(handle, _) => handle,
            other => panic!("not a handle: {other:?}"),
        }
    }

    #[track_caller]
    pub fn attr(self) -> Attr {
        match self.ok().0 {
            Outcome::Attr(attr) | Outcome::Opened(_, attr) => attr,
            Outcome::Entry(entry) | Outcome::Created(_, entry) => entry.attr,
            other => panic!("no attributes: {other:?}"),
        }
    }

    #[track_caller]
    pub fn data(self) -> Vec<u8> {
        match self.ok() {
            (Outcome::Data, data) => data,
            (other, _) => panic!("no data: {other:?}"),
        }
    }
}

/// What the gateway answers to a hello.
pub enum Greeting {
    Welcome(Box<Attacker>),
    Refused(Refused),
    Gone,
}

/// A connection before the hello.
pub struct Dialled {
    pub channel: Channel,
}

pub struct Attacker {
    pub channel: Channel,
    pub welcome: Welcome,
    pub grants: Vec<GrantInfo>,
    pub events: Vec<Event>,
    /// The slot that this connection uses; connections of one session must use different ones.
    pub slot: u16,
    pub sequence: u64,
    next_id: u64,
    frame: Frame,
}

/// A connected socket from an address of choice.
pub fn socket_from(source: Option<IpAddr>, to: SocketAddr) -> Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    if let Some(ip) = source {
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    }
    socket.connect(&to.into()).unwrap();
    Socket::Tcp(socket.into())
}

impl Gateway {
    /// A TLS connection to the native door, without a hello. `None` if the handshake was refused.
    pub fn dial_from(&self, key: &SecretKey, source: Option<IpAddr>) -> Option<Dialled> {
        let tls = ClientTls::new(key, Peer::Gateway(self.id()), ALPN_NATIVE).unwrap();
        let channel = tls.handshake(socket_from(source, self.address), LONG).ok()?;
        channel.receiver.set_timeout(Some(LONG)).unwrap();
        Some(Dialled { channel })
    }

    #[track_caller]
    pub fn dial(&self, key: &SecretKey) -> Dialled {
        self.dial_from(key, None).expect("a handshake")
    }

    /// A hello with any chain bytes.
    pub fn greet(&self, key: &SecretKey, chain: &[u8]) -> Greeting {
        self.dial(key).hello(plain_hello(), chain)
    }

    /// A session under a contract that should be good.
    #[track_caller]
    pub fn enter(&self, key: &SecretKey, chain: &Chain) -> Attacker {
        self.greet(key, &chain.to_bytes().unwrap()).welcome()
    }

    /// One more connection of a session, on its own slot.
    #[track_caller]
    pub fn join(&self, key: &SecretKey, session: SessionId, slot: u16) -> Attacker {
        let hello = Hello { resume: Some(session), ..plain_hello() };
        let mut joined = self.dial(key).hello(hello, &[]).welcome();
        assert!(joined.welcome.resumed && joined.welcome.session == session);
        joined.slot = slot;
        joined
    }
}

pub fn plain_hello() -> Hello {
    Hello { version: VERSION, resume: None, wait: false }
}

impl Dialled {
    pub fn send_hello(&self, hello: Hello, chain: &[u8]) {
        let mut header = vec![];
        encode_header(&hello, &mut header).unwrap();
        // A door that has closed already shows in the answer that does not come.
        let _ = self.channel.sender.send(&header, chain);
    }

    pub fn hello(self, hello: Hello, chain: &[u8]) -> Greeting {
        self.send_hello(hello, chain);
        self.answer()
    }

    pub fn answer(mut self) -> Greeting {
        let mut frame = Frame::new();
        match self.channel.receiver.recv(&mut frame) {
            Ok(true) => match decode_header(frame.header()).expect("an answer") {
                Answer::Refused(refused) => {
                    assert!(!refused.text.is_empty() && refused.text.len() <= 512, "{refused:?}");
                    Greeting::Refused(refused)
                }
                Answer::Welcome(welcome) => {
                    let grants = decode_list(frame.data()).expect("grants");
                    Greeting::Welcome(Box::new(Attacker {
                        channel: self.channel,
                        welcome,
                        grants,
                        events: vec![],
                        slot: 0,
                        sequence: 0,
                        next_id: 0,
                        frame,
                    }))
                }
            },
            Err(ChannelError::TimedOut) => panic!("no answer to a hello"),
            Ok(false) | Err(_) => Greeting::Gone,
        }
    }
}

impl Greeting {
    #[track_caller]
    pub fn welcome(self) -> Attacker {
        match self {
            Greeting::Welcome(attacker) => *attacker,
            Greeting::Refused(refused) => panic!("refused: {refused:?}"),
            Greeting::Gone => panic!("the connection was closed instead of a welcome"),
        }
    }

    #[track_caller]
    pub fn refused(self) -> Refused {
        match self {
            Greeting::Welcome(attacker) => panic!("was let in: {:?}", attacker.welcome),
            Greeting::Refused(refused) => refused,
            Greeting::Gone => panic!("the connection was closed instead of a refusal"),
        }
    }
}

impl Attacker {
    /// Sends a request with a slot of choice.
    pub fn send(&mut self, slot: Slot, op: Op, data: &[u8]) -> Result<u64, ChannelError> {
        self.next_id += 1;
        let request = Request { id: self.next_id, slot, op };
        let mut header = vec![];
        encode_header(&request, &mut header).unwrap();
        self.channel.sender.send(&header, data)?;
        Ok(self.next_id)
    }

    /// The slot that the next request needs.
    pub fn next_slot(&mut self, op: &Op) -> Slot {
        if op.needs_slot() {
            self.sequence += 1;
            Slot { index: self.slot, sequence: self.sequence }
        } else {
            Slot::default()
        }
    }

    /// The next reply, whatever it answers.
    pub fn receive(&mut self) -> Option<(u64, Outcome, Vec<u8>)> {
        loop {
            match self.channel.receiver.recv(&mut self.frame) {
                Ok(true) => {}
                Err(ChannelError::TimedOut) => panic!("no reply"),
                Ok(false) | Err(_) => return None,
            }
            match decode_header(self.frame.header()).expect("a frame of the gateway") {
                FromGateway::Reply { id, outcome } => return Some((id, outcome, self.frame.take_data())),
                FromGateway::Event(event) => self.events.push(event),
                // Told apart only where it matters to a client that caches.
                FromGateway::Leased { id, outcome, .. } => {
                    return Some((id, outcome, self.frame.take_data()));
                }
            }
        }
    }

    /// The reply to one request; others are dropped.
    pub fn reply_to(&mut self, id: u64) -> Reply {
        loop {
            match self.receive() {
                None => return Reply::Gone,
                Some((other, ..)) if other != id => {}
                Some((_, Outcome::Failed(failure), _)) => return Reply::Failed(failure),
                Some((_, outcome, data)) => return Reply::Ok(outcome, data),
            }
        }
    }

    pub fn call(&mut self, op: Op) -> Reply {
        self.call_with(op, &[])
    }

    pub fn call_with(&mut self, op: Op, data: &[u8]) -> Reply {
        let slot = self.next_slot(&op);
        self.call_in(slot, op, data)
    }

    pub fn call_in(&mut self, slot: Slot, op: Op, data: &[u8]) -> Reply {
        match self.send(slot, op, data) {
            Ok(id) => self.reply_to(id),
            Err(_) => Reply::Gone,
        }
    }

    /// Sends header bytes as they are; the reply to whatever id they begin with.
    pub fn call_raw(&mut self, header: &[u8], data: &[u8]) -> Reply {
        if self.channel.sender.send(header, data).is_err() {
            return Reply::Gone;
        }
        let id = header.first_chunk::<8>().map_or(0, |id| u64::from_le_bytes(*id));
        self.reply_to(id)
    }

    /// The header that the next call would send, to be damaged.
    pub fn header(&mut self, op: Op) -> Vec<u8> {
        self.next_id += 1;
        let slot = self.next_slot(&op);
        let mut header = vec![];
        encode_header(&Request { id: self.next_id, slot, op }, &mut header).unwrap();
        header
    }

    /// Waits for the end of the connection; true if it comes.
    pub fn is_closed(&mut self) -> bool {
        self.receive().is_none()
    }

    /// Whether the session still works.
    pub fn is_alive(&mut self) -> bool {
        self.call(Op::Ping).is_ok()
    }

    pub fn bye(&mut self) {
        let _ = self.call(Op::Bye);
    }

    /// The root of a grant.
    #[track_caller]
    pub fn root(&self, grant: u16) -> Node {
        let info = &self.grants[usize::from(grant)];
        let attr = info.root.unwrap_or_else(|| panic!("the root of {} is not told", info.mount));
        Node { grant, ino: attr.ino }
    }

    pub fn lookup(&mut self, parent: Node, name: &str) -> Reply {
        self.call(Op::Lookup { parent, name: named(name) })
    }

    /// Walks down from a grant's root.
    #[track_caller]
    pub fn find(&mut self, grant: u16, path: &str) -> Node {
        path.split('/').fold(self.root(grant), |node, name| self.lookup(node, name).entry().node)
    }

    pub fn open(&mut self, node: Node, flags: OpenFlags) -> Reply {
        self.call(Op::Open { node, flags })
    }

    pub fn create(&mut self, parent: Node, name: &str, flags: OpenFlags) -> Reply {
        self.call(Op::Create { parent, name: named(name), mode: 0o644, flags, by: CREDENTIALS })
    }

    pub fn write(&mut self, handle: Handle, offset: u64, data: &[u8]) -> Reply {
        self.call_with(Op::Write { handle, offset }, data)
    }

    pub fn read(&mut self, handle: Handle, offset: u64, length: u32) -> Reply {
        self.call(Op::Read { handle, offset, length })
    }

    /// All names of a directory.
    pub fn list(&mut self, node: Node) -> Result<Vec<DirEntry>, Reply> {
        let handle = match self.call(Op::Opendir { node }) {
            Reply::Ok(Outcome::Opened(handle, _), _) => handle,
            other => return Err(other),
        };
        let (mut all, mut cookie) = (vec![], 0);
        loop {
            let data = match self.call(Op::Readdir { handle, cookie, max_bytes: 65_536, plus: true }) {
                Reply::Ok(Outcome::Data, data) => data,
                other => return Err(other),
            };
            let page: Vec<DirEntry> = readdir::entries(&data).collect::<Result<_, _>>().unwrap();
            let Some(last) = page.last() else { break };
            cookie = last.cookie;
            all.extend(page);
        }
        let _ = self.call(Op::Release { handle, lock_owner: None });
        Ok(all)
    }
}

pub const CREDENTIALS: Credentials = Credentials { uid: 1000, gid: 1000 };
pub const READ: OpenFlags =
    OpenFlags { read: true, write: false, append: false, truncate: false, exclusive: false, sync: false };
pub const WRITE: OpenFlags = OpenFlags { read: false, write: true, ..READ };
pub const BOTH: OpenFlags = OpenFlags { write: true, ..READ };
pub const APPEND: OpenFlags = OpenFlags { append: true, ..WRITE };

pub fn named(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}
