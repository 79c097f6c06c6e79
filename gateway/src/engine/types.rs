//! What doors and the engine tell each other.

use std::path::PathBuf;

use strongroom_protocol::lease::Note;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

pub use crate::leases::{LeaseOptions, Teller};

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
    /// What sessions are offered that take leases.
    pub leases: LeaseOptions,
    /// Set-uid bits and device nodes.
    pub special_files: SpecialFiles,
    /// Most directory descriptors kept open between operations.
    pub directory_fds: usize,
    /// What decoys are drawn from; `None`: none are planted.
    pub decoys: Option<[u8; 64]>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            leases: LeaseOptions::default(),
            special_files: SpecialFiles::Refuse,
            directory_fds: 4096,
            decoys: None,
        }
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
    /// The vault of the undo log cannot be used.
    #[error("the undo vault `{}` cannot be used: {reason}", .path.display())]
    Vault {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
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
    /// Leases; beyond, the least recently used are recalled.
    pub leases: usize,
}

impl Default for SessionBounds {
    fn default() -> Self {
        SessionBounds { handles: 16_384, nodes: 1_000_000, locks: 4096, leases: 65_536 }
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
    /// Called before the operation waits for other sessions to let go of leases, which may take as long as a recall. The
    /// session must go on being served meanwhile: others may wait for its answer.
    pub waits: &'a dyn Fn(),
}

/// What became of a request.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is returned, never stored, and almost always the larger one"
)]
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
    /// What the client may keep of it.
    pub note: Note,
}

impl From<Outcome> for Done {
    /// Nothing may be kept of it.
    fn from(outcome: Outcome) -> Done {
        Done { outcome, claim: None, note: Note::default() }
    }
}

/// Receives the data of a reply. Reused from request to request, so that a read fills memory that is already mapped.
#[derive(Debug, Default)]
pub struct ReplyBuf {
    /// Filled by system calls; initialised up to its length, whatever it holds.
    block: Vec<u8>,
    /// Filled piece by piece.
    list: Vec<u8>,
    listed: bool,
    length: usize,
}

impl ReplyBuf {
    /// An empty buffer.
    pub fn new() -> ReplyBuf {
        ReplyBuf::default()
    }

    /// The reply's data.
    pub fn data(&self) -> &[u8] {
        let bytes = if self.listed { &self.list } else { &self.block };
        bytes.get(..self.length).unwrap_or_default()
    }

    /// Forgets the data and keeps the memory.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Room for a system call to fill; `length` bytes, which must be bounded.
    pub(crate) fn space(&mut self, length: usize) -> &mut [u8] {
        (self.listed, self.length) = (false, 0);
        if self.block.len() < length {
            // In few steps up to the longest reply, so that memory is set to zero hardly ever.
            self.block.resize(length.next_power_of_two(), 0);
        }
        self.block.get_mut(..length).unwrap_or_default()
    }

    /// Room to add pieces to.
    pub(crate) fn collect(&mut self) -> &mut Vec<u8> {
        (self.listed, self.length) = (true, 0);
        self.list.clear();
        &mut self.list
    }

    /// How much of the room is data.
    pub(crate) fn set_length(&mut self, length: usize) {
        self.length = length;
    }
}

/// What a slotted operation found before it ran, as it is written into the session's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Before {
    pub(super) kind: u8,
    pub(super) first: u64,
    pub(super) second: u64,
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
    /// Leases held.
    pub leases: u32,
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

impl Done {
    pub(crate) fn failed(errno: rustix::io::Errno) -> Done {
        // Linux error numbers are below 4096.
        let failure = strongroom_protocol::reply::Failure::Errno(errno.raw_os_error() as u16);
        Outcome::Failed(failure).into()
    }
}

impl EngineError {
    pub(crate) fn undo(path: &std::path::Path, errno: rustix::io::Errno) -> EngineError {
        use rustix::io::Errno;
        let reason = match errno {
            Errno::XDEV => "it must be on the file system of the data root, and on the same mount; choose a directory there".into(),
            Errno::INVAL => "the directory holds something else; name an empty or a new one".into(),
            other => std::io::Error::from(other).to_string(),
        };
        EngineError::Vault { path: path.to_owned(), reason }
    }
}
