//! A data root in a temporary directory, and guests that use it.

use std::path::PathBuf;
use std::sync::Arc;

use strongroom_contracts::chain::{Chain, Effective, VerifyContext};
use strongroom_contracts::{
    Audit, ContractId, Detection, Grant, Ownership, PolicyDigest, Rights, SecretKey, SessionLimits, Terms,
    UndoSpace,
};
use strongroom_gateway::engine::{
    Call, Claim, Done, Engine, EngineOptions, EngineSession, LockReply, ReplyBuf, Served, SessionBounds,
    Turnstile,
};
use strongroom_protocol::attr::{Attr, Credentials, Handle, Node, OpenFlags, SetAttr};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::readdir::entries;
use strongroom_protocol::reply::{Entry, Failure, Outcome};

pub const BY: Credentials = Credentials { uid: 0, gid: 0 };
pub const READ: OpenFlags =
    OpenFlags { read: true, write: false, append: false, truncate: false, exclusive: false, sync: false };
pub const WRITE: OpenFlags = OpenFlags { read: false, write: true, ..READ };
pub const BOTH: OpenFlags = OpenFlags { write: true, ..READ };

pub struct World {
    dir: tempfile::TempDir,
    pub engine: Engine,
}

pub struct Guest {
    pub engine: Engine,
    pub session: Arc<EngineSession>,
    pub turnstile: Arc<Turnstile>,
}

/// A grant with these rights and nothing else set.
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

pub fn rights(words: &str) -> Rights {
    words.parse().unwrap()
}

pub fn contract(grants: Vec<Grant>) -> Effective {
    contract_of("test", 7, 1, UndoSpace::default(), grants)
}

pub fn contract_of(
    application: &str,
    id: u8,
    generation: u64,
    undo: UndoSpace,
    grants: Vec<Grant>,
) -> Effective {
    let issuer = SecretKey::generate().unwrap();
    let gateway = SecretKey::generate().unwrap().public().gateway_id();
    let terms = Terms {
        version: strongroom_contracts::terms::VERSION,
        id: ContractId::from_bytes([id; 16]),
        issuer: issuer.public().id(),
        application: application.parse().unwrap(),
        holder: SecretKey::generate().unwrap().public(),
        gateway,
        generation,
        not_before: 0,
        expires: 100,
        grants,
        limits: SessionLimits::default(),
        networks: None,
        audit: Audit::Normal,
        undo,
        detection: Detection::default(),
        policy: PolicyDigest::of(""),
    };
    let chain = Chain::issue(&terms, &issuer).unwrap();
    chain.verify(VerifyContext { issuer: &issuer.public(), gateway: &gateway, now: 50 }).unwrap()
}

impl World {
    pub fn new() -> World {
        World::with(EngineOptions::default())
    }

    pub fn with(options: EngineOptions) -> World {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), options).unwrap();
        World { dir, engine }
    }

    /// The path on disk.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn dirs(&self, paths: &[&str]) {
        paths.iter().for_each(|path| std::fs::create_dir_all(self.path(path)).unwrap());
    }

    pub fn file(&self, path: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        std::fs::write(self.path(path), bytes).unwrap();
    }

    pub fn bytes(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap()
    }

    /// A new process on the same data.
    pub fn restart(&mut self) {
        self.engine = Engine::open(self.dir.path(), EngineOptions::default()).unwrap();
    }

    pub fn guest(&self, grants: Vec<Grant>) -> Guest {
        self.bounded(grants, SessionBounds::default(), &[])
    }

    pub fn bounded(&self, grants: Vec<Grant>, bounds: SessionBounds, claims: &[Claim]) -> Guest {
        let session = EngineSession::new(&self.engine, &contract(grants), bounds, claims);
        Guest { engine: self.engine.clone(), session: Arc::new(session), turnstile: Turnstile::new() }
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn errno(number: i32) -> Outcome {
    Outcome::Failed(Failure::Errno(u16::try_from(number).unwrap()))
}

pub fn denied(words: &str) -> Outcome {
    Outcome::Failed(Failure::Denied { missing: rights(words) })
}

pub const STALE: Outcome = Outcome::Failed(Failure::Stale);

fn no_wait() -> LockReply {
    panic!("nothing here waits for locks")
}

impl Guest {
    pub fn done(&self, op: &Op, data: &[u8]) -> (Done, Vec<u8>) {
        self.try_done(op, data).expect("the session is not fenced")
    }

    /// `None`: the session is fenced.
    pub fn try_done(&self, op: &Op, data: &[u8]) -> Option<(Done, Vec<u8>)> {
        let admission = self.turnstile.enter()?;
        let mut out = ReplyBuf::new();
        let call = Call { id: 1, op, data, later: &no_wait, waits: &|| {} };
        // What may run at once runs at once, as in the door.
        let served = self
            .engine
            .serve_inline(&self.session, &admission, call, &mut out)
            .unwrap_or_else(|| self.engine.serve(&self.session, &admission, call, &mut out));
        match served {
            Served::Done(done) => Some((done, out.data().to_vec())),
            Served::Later => panic!("nothing here waits for locks"),
        }
    }

    pub fn call(&self, op: &Op, data: &[u8]) -> (Outcome, Vec<u8>) {
        let (done, data) = self.done(op, data);
        (done.outcome, data)
    }

    pub fn ask(&self, op: &Op) -> Outcome {
        self.call(op, b"").0
    }

    pub fn try_root(&self, grant: u16) -> Outcome {
        self.ask(&Op::Resolve { grant, ino: 0 })
    }

    pub fn root(&self, grant: u16) -> Node {
        entry(self.try_root(grant)).node
    }

    /// Looks every component up.
    pub fn walk(&self, grant: u16, path: &str) -> Outcome {
        let mut at = self.root(grant);
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let found = self.lookup(at, part);
            match (&found, parts.peek()) {
                (Outcome::Entry(entry), Some(_)) => at = entry.node,
                _ => return found,
            }
        }
        unreachable!("split gives at least one part")
    }

    pub fn node(&self, grant: u16, path: &str) -> Node {
        entry(self.walk(grant, path)).node
    }

    pub fn lookup(&self, parent: Node, text: &str) -> Outcome {
        self.ask(&Op::Lookup { parent, name: name(text) })
    }

    pub fn getattr(&self, node: Node) -> Outcome {
        self.ask(&Op::Getattr { node, handle: None })
    }

    pub fn setattr(&self, node: Node, handle: Option<Handle>, set: SetAttr) -> Outcome {
        self.ask(&Op::Setattr { node, handle, set, by: BY })
    }

    pub fn truncate(&self, node: Node, size: u64) -> Outcome {
        self.setattr(node, None, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    pub fn create(&self, parent: Node, text: &str, flags: OpenFlags) -> Outcome {
        self.ask(&Op::Create { parent, name: name(text), mode: 0o644, flags, by: BY })
    }

    pub fn open(&self, node: Node, flags: OpenFlags) -> Outcome {
        self.ask(&Op::Open { node, flags })
    }

    pub fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Outcome {
        self.call(&Op::Write { handle, offset }, data).0
    }

    pub fn read(&self, handle: Handle, offset: u64, length: u32) -> Result<Vec<u8>, Outcome> {
        match self.call(&Op::Read { handle, offset, length }, b"") {
            (Outcome::Data, data) => Ok(data),
            (other, _) => Err(other),
        }
    }

    pub fn mkdir(&self, parent: Node, text: &str) -> Outcome {
        self.ask(&Op::Mkdir { parent, name: name(text), mode: 0o755, by: BY })
    }

    pub fn unlink(&self, parent: Node, text: &str) -> Outcome {
        self.ask(&Op::Unlink { parent, name: name(text) })
    }

    pub fn rmdir(&self, parent: Node, text: &str) -> Outcome {
        self.ask(&Op::Rmdir { parent, name: name(text), directory: Meant::Whichever })
    }

    pub fn link(&self, node: Node, parent: Node, text: &str) -> Outcome {
        self.ask(&Op::Link { node, parent, name: name(text) })
    }

    pub fn rename(&self, from: (Node, &str), to: (Node, &str), mode: RenameMode) -> Outcome {
        self.ask(&Op::Rename {
            parent: from.0,
            name: name(from.1),
            new_parent: to.0,
            new_name: name(to.1),
            mode,
            directory: Meant::Whichever,
        })
    }

    pub fn symlink(&self, parent: Node, text: &str, target: &[u8]) -> Outcome {
        self.call(&Op::Symlink { parent, name: name(text), by: BY }, target).0
    }

    pub fn release(&self, handle: Handle) -> Outcome {
        self.ask(&Op::Release { handle, lock_owner: None })
    }

    /// All names in a directory, sorted, by pages of `page` bytes.
    pub fn names(&self, node: Node, page: u32, plus: bool) -> Vec<String> {
        let handle = opened(self.ask(&Op::Opendir { node }));
        let (mut names, mut cookie) = (vec![], 0);
        loop {
            let op = Op::Readdir { handle, cookie, max_bytes: page, plus };
            let (outcome, data) = self.call(&op, b"");
            assert_eq!(outcome, Outcome::Data);
            assert!(data.len() <= page as usize);
            if data.is_empty() {
                break;
            }
            for entry in entries(&data) {
                let entry = entry.unwrap();
                assert_eq!(entry.attr.is_some(), plus);
                names.push(entry.name.to_string());
                cookie = entry.cookie;
            }
        }
        assert_eq!(self.release(handle), Outcome::Done);
        names.sort();
        names
    }
}

pub fn entry(outcome: Outcome) -> Entry {
    match outcome {
        Outcome::Entry(entry) => entry,
        other => panic!("no entry: {other:?}"),
    }
}

pub fn created(outcome: Outcome) -> (Handle, Entry) {
    match outcome {
        Outcome::Created(handle, entry) => (handle, entry),
        other => panic!("not created: {other:?}"),
    }
}

pub fn opened(outcome: Outcome) -> Handle {
    match outcome {
        Outcome::Opened(handle, _) => handle,
        other => panic!("not opened: {other:?}"),
    }
}

pub fn attr(outcome: Outcome) -> Attr {
    match outcome {
        Outcome::Attr(attr) => attr,
        other => panic!("no attributes: {other:?}"),
    }
}

pub fn written(outcome: Outcome) -> (u64, u64) {
    match outcome {
        Outcome::Written { count, size } => (count, size),
        other => panic!("not written: {other:?}"),
    }
}
