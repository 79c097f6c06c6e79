//! A gateway of its own for each test, and the two kinds of client.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use strongroom_channel::{Address, Channel, ChannelError, ClientTls, Frame, Peer, Socket};
use strongroom_contracts::{
    Application, Audit, Chain, ContractId, Detection, GatewayId, Grant, Ownership, PolicyDigest, PublicKey,
    Revocation, Rights, SecretKey, SessionLimits, SignedReceipt, Subject, Terms, UndoSpace, keys,
};
use strongroom_protocol::admin::{AdminAnswer, AdminRequest};
use strongroom_protocol::attr::{Attr, Credentials, Handle, Node, OpenFlags};
use strongroom_protocol::codec;
use strongroom_protocol::hello::{Answer, GrantInfo, Hello, Refused, SessionId, Welcome};
use strongroom_protocol::lease::Note;
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::{Entry, Event, FromGateway, Outcome};
use strongroom_protocol::{ALPN_ADMIN, ALPN_NATIVE, VERSION};

/// How long a test waits for something that must happen, before it says that it hangs.
pub const HANG: Duration = Duration::from_secs(60);

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < until, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keys, directories and a gateway process.
pub struct World {
    pub dir: tempfile::TempDir,
    pub issuer: SecretKey,
    pub gateway: SecretKey,
    pub admin: SecretKey,
    pub limits: String,
    /// The admin door is a Unix socket there.
    pub admin_socket: Option<PathBuf>,
    process: Option<Child>,
    pub address: Option<Address>,
    pub admin_address: Option<Address>,
}

impl World {
    /// A running gateway with an empty data root.
    pub fn new() -> World {
        World::with_limits("")
    }

    /// The same with lines for `[limits]`.
    pub fn with_limits(limits: &str) -> World {
        let mut world = World::prepare(limits);
        world.start();
        world
    }

    /// Everything but the process.
    pub fn prepare(limits: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let gateway = SecretKey::generate().unwrap();
        write_secret(&dir.path().join("gateway.key"), &gateway);
        World {
            dir,
            issuer: SecretKey::generate().unwrap(),
            gateway,
            admin: SecretKey::generate().unwrap(),
            limits: limits.to_owned(),
            admin_socket: None,
            process: None,
            address: None,
            admin_address: None,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("gateway.toml")
    }

    pub fn config_text(&self) -> String {
        let admin = match &self.admin_socket {
            Some(path) => format!("unix:{}", path.display()),
            None => "127.0.0.1:0".to_owned(),
        };
        format!(
            "data = \"data\"\nstate = \"state\"\nkey = \"gateway.key\"\nissuer = \"{}\"\nadmin-keys = [\"{}\"]\n\n\
             [listen]\ninterface = \"lo\"\nnetwork = \"127.0.0.0/8\"\naddress = \"127.0.0.1:0\"\n\
             admin = \"{admin}\"\n\n[limits]\n{}\n",
            self.issuer.public(),
            self.admin.public(),
            self.limits
        )
    }

    pub fn start(&mut self) {
        std::fs::write(self.config_file(), self.config_text()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_strongroom-gateway"))
            .arg("--config")
            .arg(self.config_file())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.process = Some(child);
        let mut address = |before: &str| -> Address {
            let line = lines.next().expect("the gateway ended").unwrap();
            line.split_once(before).unwrap_or_else(|| panic!("{line}")).1.parse().unwrap()
        };
        self.address = Some(address(" serves on "));
        self.admin_address = Some(address("administrators at "));
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.process.as_ref().unwrap())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.process.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    pub fn id(&self) -> GatewayId {
        self.gateway.public().gateway_id()
    }

    pub fn terms(&self, holder: &SecretKey) -> Terms {
        Terms {
            version: strongroom_contracts::terms::VERSION,
            id: ContractId::from_bytes(keys::random().unwrap()),
            issuer: self.issuer.public().id(),
            application: app("mail"),
            holder: holder.public(),
            gateway: self.id(),
            generation: 1,
            not_before: now() - 10,
            expires: now() + 3600,
            grants: vec![grant("mail", "/Mail", Rights::READ_WRITE)],
            limits: SessionLimits::default(),
            networks: None,
            audit: Audit::Normal,
            undo: UndoSpace::default(),
            detection: Detection::default(),
            policy: PolicyDigest::of(""),
        }
    }

    pub fn issue(&self, terms: &Terms) -> Vec<u8> {
        Chain::issue(terms, &self.issuer).unwrap().to_bytes().unwrap()
    }

    /// A read-write contract on `mail`, whose directory is made.
    pub fn contract(&self, holder: &SecretKey) -> Vec<u8> {
        std::fs::create_dir_all(self.data().join("mail")).unwrap();
        self.issue(&self.terms(holder))
    }

    pub fn connect(&self, holder: &SecretKey) -> Connection {
        let tls = ClientTls::new(holder, Peer::Gateway(self.id()), ALPN_NATIVE).unwrap();
        let channel = tls.connect(self.address.as_ref().unwrap(), HANG).unwrap();
        channel.receiver.set_timeout(Some(HANG)).unwrap();
        Connection { channel, frame: Frame::new() }
    }

    pub fn hello(&self, holder: &SecretKey, chain: &[u8]) -> Result<Client, Refused> {
        self.connect(holder).hello(None, false, chain)
    }

    pub fn client(&self, holder: &SecretKey, chain: &[u8]) -> Client {
        self.hello(holder, chain).unwrap()
    }

    pub fn resume(&self, holder: &SecretKey, session: SessionId) -> Result<Client, Refused> {
        self.connect(holder).hello(Some(session), false, &[])
    }

    pub fn admin(&self) -> Admin {
        Admin::connect(self, &self.admin)
    }

    pub fn revocation(&self, subject: Subject) -> Vec<u8> {
        let revocation = Revocation {
            version: 1,
            issuer: self.issuer.public().id(),
            gateway: self.id(),
            subject,
            issued_at: now(),
            why: "a test".into(),
        };
        strongroom_contracts::codec::encode(&revocation.sign(&self.issuer).unwrap()).unwrap()
    }

    /// The audit trail's lines so far.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.state().join("audit.jsonl")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an audit line with these members.
    pub fn audited(&self, members: &[(&str, &str)]) -> serde_json::Value {
        let mut found = None;
        eventually(&format!("an audit line with {members:?}"), || {
            found = self.audit().into_iter().find(|line| {
                members.iter().all(|(key, wanted)| {
                    line.get(*key).and_then(|value| value.as_str()).is_some_and(|text| text.contains(wanted))
                })
            });
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn write_secret(path: &std::path::Path, key: &SecretKey) {
    use std::io::Write;
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(key.to_file_text().as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

pub fn app(name: &str) -> Application {
    name.parse().unwrap()
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn grant(data: &str, mount: &str, rights: Rights) -> Grant {
    Grant {
        data: data.parse().unwrap(),
        mount: mount.parse().unwrap(),
        rights,
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
        undo_secs: 0,
        ownership: Ownership::Single,
    }
}

pub const ME: Credentials = Credentials { uid: 0, gid: 0 };

/// A connection that has not said hello.
pub struct Connection {
    pub channel: Channel,
    pub frame: Frame,
}

impl Connection {
    pub fn send_hello(&self, resume: Option<SessionId>, wait: bool, chain: &[u8]) {
        let mut header = vec![];
        codec::encode_header(&Hello { version: VERSION, resume, wait }, &mut header).unwrap();
        self.channel.sender.send(&header, chain).unwrap();
    }

    pub fn answer(mut self) -> Result<Client, Refused> {
        assert!(self.channel.receiver.recv(&mut self.frame).unwrap(), "closed without an answer");
        match codec::decode_header(self.frame.header()).unwrap() {
            Answer::Welcome(welcome) => {
                let grants: Vec<GrantInfo> = codec::decode_list(self.frame.data()).unwrap();
                let Connection { channel, frame } = self;
                Ok(Client {
                    channel,
                    frame,
                    welcome,
                    grants,
                    next: AtomicU64::new(1),
                    sequences: vec![],
                    events: vec![],
                    note: Note::default(),
                })
            }
            Answer::Refused(refused) => Err(refused),
        }
    }

    pub fn hello(self, resume: Option<SessionId>, wait: bool, chain: &[u8]) -> Result<Client, Refused> {
        self.send_hello(resume, wait, chain);
        self.answer()
    }
}

/// A welcomed connection.
pub struct Client {
    pub channel: Channel,
    pub frame: Frame,
    pub welcome: Welcome,
    pub grants: Vec<GrantInfo>,
    next: AtomicU64,
    /// The last sequence number of each slot.
    pub sequences: Vec<u64>,
    pub events: Vec<Event>,
    /// What the last reply said of leases.
    pub note: Note,
}

impl Client {
    pub fn root(&self) -> Node {
        Node { grant: 0, ino: self.grants[0].root.expect("the grant's root exists").ino }
    }

    pub fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn send_request(&self, request: &Request, data: &[u8]) {
        let mut header = vec![];
        codec::encode_header(request, &mut header).unwrap();
        self.channel.sender.send(&header, data).unwrap();
    }

    /// Sends without waiting; in the next number of a slot if the operation needs one.
    pub fn send_in(&mut self, index: u16, op: Op, data: &[u8]) -> u64 {
        let id = self.id();
        let mut slot = Slot::default();
        if op.needs_slot() {
            let place = usize::from(index);
            if self.sequences.len() <= place {
                self.sequences.resize(place + 1, 0);
            }
            self.sequences[place] += 1;
            slot = Slot { index, sequence: self.sequences[place] };
        }
        self.send_request(&Request { id, slot, op }, data);
        id
    }

    /// The next reply; events are put aside.
    pub fn reply(&mut self) -> (u64, Outcome) {
        loop {
            assert!(
                self.channel.receiver.recv(&mut self.frame).unwrap(),
                "the gateway closed the connection"
            );
            match codec::decode_header(self.frame.header()).unwrap() {
                FromGateway::Reply { id, outcome } => return (id, outcome),
                FromGateway::Leased { id, outcome, note } => {
                    self.note = note;
                    return (id, outcome);
                }
                FromGateway::Event(event) => self.events.push(event),
            }
        }
    }

    pub fn call(&mut self, op: Op, data: &[u8]) -> Outcome {
        let id = self.send_in(0, op, data);
        let (answered, outcome) = self.reply();
        assert_eq!(answered, id);
        outcome
    }

    /// The next event; replies that come before it are dropped.
    pub fn event(&mut self) -> Event {
        while self.events.is_empty() {
            assert!(
                self.channel.receiver.recv(&mut self.frame).unwrap(),
                "the gateway closed the connection"
            );
            if let FromGateway::Event(event) = codec::decode_header(self.frame.header()).unwrap() {
                self.events.push(event);
            }
        }
        self.events.remove(0)
    }

    /// Whether the gateway closes the connection; what comes before that is dropped.
    pub fn closed(&mut self) -> bool {
        loop {
            match self.channel.receiver.recv(&mut self.frame) {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    return error.is_disconnect()
                        && !matches!(error, strongroom_channel::ChannelError::TimedOut);
                }
            }
        }
    }

    pub fn create(&mut self, parent: Node, file: &str) -> (Handle, Entry) {
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        match self.call(Op::Create { parent, name: name(file), mode: 0o644, flags, by: ME }, &[]) {
            Outcome::Created(handle, entry) => (handle, entry),
            other => panic!("{other:?}"),
        }
    }

    pub fn lookup(&mut self, parent: Node, file: &str) -> Entry {
        match self.call(Op::Lookup { parent, name: name(file) }, &[]) {
            Outcome::Entry(entry) => entry,
            other => panic!("{other:?}"),
        }
    }

    pub fn open(&mut self, node: Node) -> (Handle, Attr) {
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        match self.call(Op::Open { node, flags }, &[]) {
            Outcome::Opened(handle, attr) => (handle, attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, handle: Handle, offset: u64, data: &[u8]) -> u64 {
        match self.call(Op::Write { handle, offset }, data) {
            Outcome::Written { count, .. } => count,
            other => panic!("{other:?}"),
        }
    }

    pub fn read(&mut self, handle: Handle, offset: u64, length: u32) -> Vec<u8> {
        match self.call(Op::Read { handle, offset, length }, &[]) {
            Outcome::Data => self.frame.data().to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

/// An administrator's connection.
pub struct Admin {
    channel: Channel,
    frame: Frame,
    gateway: PublicKey,
}

impl Admin {
    pub fn connect(world: &World, key: &SecretKey) -> Admin {
        let tls = ClientTls::new(key, Peer::Key(world.gateway.public()), ALPN_ADMIN).unwrap();
        let channel = tls.connect(world.admin_address.as_ref().unwrap(), HANG).unwrap();
        channel.receiver.set_timeout(Some(HANG)).unwrap();
        Admin { channel, frame: Frame::new(), gateway: world.gateway.public() }
    }

    /// From another address of this machine.
    pub fn connect_from(world: &World, key: &SecretKey, from: IpAddr) -> Admin {
        let tls = ClientTls::new(key, Peer::Key(world.gateway.public()), ALPN_ADMIN).unwrap();
        let Some(Address::Tcp(address)) = world.admin_address else { panic!("no TCP") };
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let channel = tls.handshake(Socket::Tcp(socket.into()), HANG).unwrap();
        channel.receiver.set_timeout(Some(HANG)).unwrap();
        Admin { channel, frame: Frame::new(), gateway: world.gateway.public() }
    }

    pub fn send(&mut self, request: &AdminRequest) {
        let mut header = vec![];
        codec::encode_header(request, &mut header).unwrap();
        self.channel.sender.send(&header, &[]).unwrap();
    }

    /// Waits until the door ends the connection, after whatever it still says.
    pub fn ends(&mut self) {
        loop {
            match self.channel.receiver.recv(&mut self.frame) {
                Ok(true) => {}
                Err(ChannelError::TimedOut) => panic!("the connection goes on"),
                Ok(false) | Err(_) => return,
            }
        }
    }

    pub fn ask(&mut self, request: &AdminRequest, data: &[u8]) -> (AdminAnswer, Vec<u8>) {
        let mut header = vec![];
        codec::encode_header(request, &mut header).unwrap();
        self.channel.sender.send(&header, data).unwrap();
        self.answer()
    }

    pub fn answer(&mut self) -> (AdminAnswer, Vec<u8>) {
        assert!(self.channel.receiver.recv(&mut self.frame).unwrap(), "the admin door closed");
        (codec::decode_header(self.frame.header()).unwrap(), self.frame.data().to_vec())
    }

    pub fn send_raw(&mut self, header: &[u8]) {
        self.channel.sender.send(header, &[]).unwrap();
    }

    pub fn deposit(&mut self, chain: &[u8]) -> u32 {
        match self.ask(&AdminRequest::Deposit, chain).0 {
            AdminAnswer::Deposited { renewed, .. } => renewed,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the revocation was answered before the gateway died.
    pub fn try_revoke(&mut self, statement: &[u8]) -> bool {
        let mut header = vec![];
        codec::encode_header(&AdminRequest::Revoke, &mut header).unwrap();
        self.channel.sender.send(&header, statement).is_ok()
            && matches!(self.channel.receiver.recv(&mut self.frame), Ok(true))
    }

    pub fn revoke(&mut self, statement: &[u8]) -> strongroom_contracts::FenceReceipt {
        match self.ask(&AdminRequest::Revoke, statement) {
            (AdminAnswer::Fenced { .. }, receipt) => {
                let signed: SignedReceipt = strongroom_contracts::codec::decode(&receipt).unwrap();
                signed.verify(&self.gateway).unwrap()
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}
