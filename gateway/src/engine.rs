//! The engine: what carries out the operations of sessions on the data. Doors call it and nothing below it.
//!
//! # How a door uses it
//!
//! - [`Engine::open`] once. `Engine` is cheap to clone and shared by all threads.
//! - For each session: a [`Turnstile`] (kept by the session layer: `enter` before each request, `fence` and `drain` when
//!   the contract is void) and an [`EngineSession`]. After `fence` + `drain`: [`EngineSession::close`].
//! - For each request: `let admission = turnstile.enter()`, then [`Engine::serve_inline`] on the reader's thread and, if it
//!   says `None`, [`Engine::serve`] on a thread that may block. Keep the admission until the reply is on its way.
//!   Reply data are in the [`ReplyBuf`] if the outcome is `Outcome::Data`.
//! - [`Served::Later`]: the reply comes through the [`LockReply`] that was made by `call.later`, from another thread,
//!   when the lock is had, cancelled (`Op::CancelLock`: `EINTR`) or the session closed (`Fenced`).
//! - For slotted requests: write [`Engine::before`] into the slot ("executing"), `serve`, write the outcome ("done"). After
//!   a crash, a slot found "executing" whose request comes again: [`Engine::replayed`] first; `None` means: serve it.
//! - [`Done::claim`] tells of handles with the creator's rights: persist `Made` before the reply, forget on `Released`;
//!   give the surviving ones to [`EngineSession::new`] when a session is resumed by a new process.
//! - [`EngineSession::describe`] names the objects of an operation for audit lines (before `serve` for operations that
//!   make or remove names or handles).
//! - `Op::Ping`, `Op::Bye`, `Op::Forget` and `Op::CancelLock` are served too (`Bye` does nothing here; the door closes
//!   the session). `Op::Forget` has no reply: do not send its outcome.

use std::path::{Path, PathBuf};

use strongroom_contracts::Effective;
use strongroom_protocol::hello::GrantInfo;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

pub use crate::gate::{Admission, Turnstile};

/// How the store treats what is special.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SpecialFiles {
    /// Set-uid and set-gid bits are dropped, device nodes refused.
    #[default]
    Refuse,
    /// Both are kept as inert metadata in grants with `preserve` ownership.
    Store,
}

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Set-uid bits and device nodes.
    pub special_files: SpecialFiles,
    /// Most directory descriptors kept open between operations.
    pub directory_fds: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { special_files: SpecialFiles::Refuse, directory_fds: 4096 }
    }
}

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The data root cannot be opened.
    #[error("the data root `{}` cannot be opened: {reason}; it must be a directory that the gateway may enter", .path.display())]
    Root {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The kernel lacks openat2(2).
    #[error("this kernel has no openat2 with RESOLVE_BENEATH; Linux 5.10 or later is needed")]
    Kernel,
}

/// Bounds of one session's tables.
#[derive(Clone, Copy, Debug)]
pub struct SessionBounds {
    /// Open files and directories.
    pub handles: usize,
    /// Nodes known; beyond, the least recently used are forgotten.
    pub nodes: usize,
    /// Byte-range locks held or waited for.
    pub locks: usize,
}

impl Default for SessionBounds {
    fn default() -> Self {
        SessionBounds { handles: 16_384, nodes: 1_000_000, locks: 65_536 }
    }
}

/// That a handle of this session created a file and may write it freely until released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The grant's position.
    pub grant: u16,
    /// The file.
    pub ino: u64,
    /// Its generation ([`strongroom_protocol::attr::Attr::generation`]).
    pub generation: u64,
}

/// A change in the set of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimChange {
    /// It came into being with this operation.
    Made(Claim),
    /// The last handle that has it was released.
    Released(Claim),
}

/// What answers a waiting lock.
pub type LockReply = Box<dyn FnOnce(Outcome) + Send>;

/// A request as a door hands it in.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The request's id.
    pub id: u64,
    /// What is asked.
    pub op: &'a Op,
    /// The frame's raw part.
    pub data: &'a [u8],
    /// Makes the reply of a lock that must wait; called at most once, with no lock of the engine held.
    pub later: &'a dyn Fn() -> LockReply,
}

/// What became of a request.
#[derive(Debug)]
pub enum Served {
    /// It is finished.
    Done(Done),
    /// It waits for a lock.
    Later,
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// The answer; data are in the [`ReplyBuf`].
    pub outcome: Outcome,
    /// A claim made or released.
    pub claim: Option<ClaimChange>,
}

/// Receives the data of a reply. Reused from request to request, so that a read fills memory that is already mapped.
#[derive(Debug, Default)]
pub struct ReplyBuf {
    bytes: Vec<u8>,
    length: usize,
}

impl ReplyBuf {
    /// An empty buffer.
    pub fn new() -> ReplyBuf {
        ReplyBuf::default()
    }

    /// The reply's data.
    pub fn data(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Forgets the data and keeps the memory.
    pub fn clear(&mut self) {
        self.length = 0;
    }
}

/// What a slotted operation found before it ran, as it is written into the session's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Before {
    kind: u8,
    first: u64,
    second: u64,
}

impl Before {
    /// Bytes of the fixed form.
    pub const BYTES: usize = 17;

    /// The fixed form.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0] = self.kind;
        out[1..9].copy_from_slice(&self.first.to_le_bytes());
        out[9..].copy_from_slice(&self.second.to_le_bytes());
        out
    }

    /// Reads the fixed form.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Before {
        let [kind, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Before {
            kind,
            first: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            second: u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        }
    }
}

/// Numbers of a session for `contract sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Open handles.
    pub handles: u32,
    /// Nodes known.
    pub nodes: u32,
    /// Locks held.
    pub locks: u32,
    /// Operations let through.
    pub operations: u64,
    /// Operations denied.
    pub denied: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

/// What closing a session took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Closed {
    /// Handles closed.
    pub handles: u32,
    /// Locks released.
    pub locks: u32,
    /// Waiting locks cancelled.
    pub waiting: u32,
}

/// Carries out operations below one data root.
#[derive(Clone)]
pub struct Engine {}

/// What one session sees of an engine: known nodes, handles, own creations. The doors share it in an `Arc`.
pub struct EngineSession {}

impl Engine {
    /// Opens the data root; nothing outside it is reachable afterwards. Sets the process' umask to 0.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn open(data_root: &Path, options: EngineOptions) -> Result<Engine, EngineError> {
        let _ = (data_root, options);
        Err(EngineError::Kernel)
    }

    /// Carries out a request; may block on the disk.
    pub fn serve(
        &self,
        session: &EngineSession,
        admission: &Admission,
        call: Call<'_>,
        out: &mut ReplyBuf,
    ) -> Served {
        let _ = (session, admission, call, out);
        Served::Later
    }

    /// Carries out a request if it is of a kind that hardly blocks and the data are in memory; `None`: not done, use
    /// [`Engine::serve`].
    pub fn serve_inline(
        &self,
        session: &EngineSession,
        admission: &Admission,
        call: Call<'_>,
        out: &mut ReplyBuf,
    ) -> Option<Served> {
        let _ = (session, admission, call, out);
        None
    }

    /// What to note before a slotted operation runs. Cheap for operations that can simply run again.
    pub fn before(&self, session: &EngineSession, admission: &Admission, op: &Op, data: &[u8]) -> Before {
        let _ = (session, admission, op, data);
        Before::default()
    }

    /// Decides whether an operation that was being carried out when the process died took effect, and answers it if so.
    /// Nodes of `op` must have been resolved again by the client; unknown ones answer `Stale` as usual.
    pub fn replayed(
        &self,
        session: &EngineSession,
        admission: &Admission,
        before: Before,
        op: &Op,
        data: &[u8],
    ) -> Option<Done> {
        let _ = (session, admission, before, op, data);
        None
    }

    /// While on, only locks that are reclaimed are given (after a restart); others fail with `Grace`.
    pub fn set_lock_grace(&self, on: bool) {
        let _ = on;
    }
}

impl EngineSession {
    /// The empty tables of a session under a contract. `claims`: what a former process recorded for the same session.
    pub fn new(
        engine: &Engine,
        contract: &Effective,
        bounds: SessionBounds,
        claims: &[Claim],
    ) -> EngineSession {
        let _ = (engine, contract, bounds, claims);
        EngineSession {}
    }

    /// Goes on under a renewed contract whose grants are equal. Returns false, and changes nothing, if they are not.
    pub fn rebind(&self, contract: &Effective) -> bool {
        let _ = contract;
        false
    }

    /// The grants as the client needs to know them.
    pub fn grant_infos(&self, admission: &Admission) -> Vec<GrantInfo> {
        let _ = admission;
        Vec::new()
    }

    /// The paths that an operation is about, as seen in the mount, for audit lines.
    pub fn describe(&self, op: &Op) -> String {
        let _ = op;
        String::new()
    }

    /// Numbers for `contract sessions`.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Closes all handles, releases all locks, answers all waiting locks with `Fenced`, forgets all nodes. To be called
    /// when the session's turnstile is fenced and drained. Nothing works through the session afterwards.
    pub fn close(&self) -> Closed {
        Closed::default()
    }
}
