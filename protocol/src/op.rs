//! Requests.

use bincode::{Decode, Encode};

use crate::attr::{Credentials, Handle, Lock, Node, OpenFlags, SetAttr};
use crate::name::Name;

/// The header of a request frame.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    /// Chosen by the client; the reply carries it. Unique among the requests in flight.
    pub id: u64,
    /// For requests that change something ([`Op::needs_slot`]); otherwise ignored.
    pub slot: Slot,
    /// What is asked.
    pub op: Op,
}

/// A place in the session's reply cache (the model is RFC 8881, 2.10.6.1). Sequence numbers of a slot start at 1 and rise by
/// one; a request with the number of the last one is answered from the cache and not run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Slot {
    /// 0 to the session's number of slots less one.
    pub index: u16,
    /// Number of the request in this slot; 0: no slot.
    pub sequence: u64,
}

/// An operation. "Data" is the frame's raw part.
#[expect(missing_docs, reason = "the members are described with their variant")]
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Op {
    /// Find `name` in `parent`. Reply: `Entry`.
    Lookup { parent: Node, name: Name },
    /// Find a node again by path (after a restart of the gateway). Data: components separated by `/`, possibly none (the
    /// grant's root). Stale unless the inode number is `ino`. Reply: `Entry`.
    Resolve { grant: u16, ino: u64 },
    /// The client no longer knows these nodes. Data: a list of [`Node`]. Reply: none.
    Forget,
    /// Attributes. Reply: `Attr`.
    Getattr { node: Node, handle: Option<Handle> },
    /// Change attributes. Reply: `Attr`.
    Setattr { node: Node, handle: Option<Handle>, set: SetAttr, by: Credentials },
    /// The target of a symlink. Reply: `Data`.
    Readlink { node: Node },
    /// Open a file. Reply: `Opened`.
    Open { node: Node, flags: OpenFlags },
    /// Open a directory for reading. Reply: `Opened`.
    Opendir { node: Node },
    /// Create and open a file; opens an existing one unless `flags.exclusive`. Reply: `Created`.
    Create { parent: Node, name: Name, mode: u32, flags: OpenFlags, by: Credentials },
    /// Read at most `length` bytes. Reply: `Data`; shorter only at the end of the file.
    Read { handle: Handle, offset: u64, length: u32 },
    /// Write the data. Reply: `Written`.
    Write { handle: Handle, offset: u64 },
    /// The file descriptor is closed: release the POSIX locks of `lock_owner`, tell errors. Reply: `Done`.
    Flush { handle: Handle, lock_owner: u64 },
    /// Bring the file or directory to stable storage. Reply: `Done`.
    Fsync { handle: Handle, data_only: bool },
    /// Close a handle; also release the locks of `lock_owner` if there is one. Reply: `Done`.
    Release { handle: Handle, lock_owner: Option<u64> },
    /// Open a file again after the gateway restarted; never truncates. `created` claims the rights of the handle that
    /// created the file, which the gateway checks against its record. Reply: `Opened`.
    Reopen { node: Node, flags: OpenFlags, created: bool, directory: bool },
    /// Entries from `cookie` on (0: from the start), as many as fit in `max_bytes`, in the form of
    /// [`crate::readdir`]; with attributes (and nodes made known) if `plus`. Reply: `Data`; empty at the end. A page that leaves
    /// [`crate::readdir::SPARE`] bytes or more unused is the last one.
    Readdir { handle: Handle, cookie: u64, max_bytes: u32, plus: bool },
    /// Make a directory. Reply: `Entry`.
    Mkdir { parent: Node, name: Name, mode: u32, by: Credentials },
    /// Make a file, fifo, socket or device node; type in `mode`. Reply: `Entry`.
    Mknod { parent: Node, name: Name, mode: u32, rdev: u32, by: Credentials },
    /// Make a symlink. Data: the target. Reply: `Entry`.
    Symlink { parent: Node, name: Name, by: Credentials },
    /// Make another name for a file. Reply: `Entry`.
    Link { node: Node, parent: Node, name: Name },
    /// Remove a name of anything but a directory. Reply: `Done`.
    Unlink { parent: Node, name: Name },
    /// Remove an empty directory, if it is the one that is meant. Reply: `Done`.
    Rmdir { parent: Node, name: Name, directory: Meant },
    /// Rename (renameat2(2)); a directory is replaced by another one if it is the one that is meant. Reply: `Done`.
    Rename { parent: Node, name: Name, new_parent: Node, new_name: Name, mode: RenameMode, directory: Meant },
    /// fallocate(2); `mode` as there. Reply: `Done`.
    Fallocate { handle: Handle, mode: u32, offset: u64, length: u64 },
    /// The next data or hole (lseek(2) SEEK_DATA, SEEK_HOLE). Reply: `Offset`.
    Seek { handle: Handle, offset: u64, hole: bool },
    /// copy_file_range(2). Reply: `Written`.
    CopyRange { from: Handle, from_offset: u64, to: Handle, to_offset: u64, length: u64 },
    /// Space and files, of the grant's quota where there is one. Reply: `Statfs`.
    Statfs { node: Node },
    /// A user extended attribute. Data: its name. Reply: `Data`.
    Getxattr { node: Node },
    /// The names of user extended attributes, each ended by NUL. Reply: `Data`.
    Listxattr { node: Node },
    /// Set a user extended attribute. Data: its name (`name_length` bytes), then the value. `flags` as in setxattr(2).
    /// Reply: `Done`.
    Setxattr { node: Node, name_length: u16, flags: u32 },
    /// Remove a user extended attribute. Data: its name. Reply: `Done`.
    Removexattr { node: Node },
    /// The first lock that stands against this one (F_GETLK). Reply: `Locked`.
    GetLock { handle: Handle, lock: Lock },
    /// Set or release a lock; with `wait`, answered when it is had or [`Op::CancelLock`] names the request. With
    /// `reclaim`, it was had before the gateway restarted, or the client has answered for it itself. Reply: `Done`; with an
    /// exclusive lease in its note the client may answer for the locks of the file from now on.
    SetLock { handle: Handle, lock: Lock, wait: bool, reclaim: bool },
    /// End the waiting of a [`Op::SetLock`]. Reply to this: `Done`; to the other: `EINTR`.
    CancelLock { request: u64 },
    /// Nothing; shows that the session lives. Reply: `Done`.
    Ping,
    /// The client ends for good: the session is closed at once. Reply: `Done`.
    Bye,
    /// After a restart of the gateway: every lock that the session still wants is claimed, so that others need not wait for
    /// it any more (RFC 8881, 18.51). Reply: `Done`.
    Reclaimed,
    /// The client answers recalls: leases may be given to the session from now on. Reply: `Terms`, as
    /// [`crate::reply::FromGateway::Leased`] like all that follow on this connection; to be sent on each connection.
    TakeLeases,
    /// What a recall names is forgotten. Reply: none.
    Recalled { id: u64 },
    /// Open a file and read at most `length` bytes at `offset`. Reply: `Opened`, with the data; a repeated request is answered
    /// without them.
    OpenRead { node: Node, flags: OpenFlags, offset: u64, length: u32 },
    /// Entries of a directory, as [`Op::Readdir`], without opening it. With `ahead`, nobody waits for it, and nobody else is asked
    /// to let go of anything: where that would be necessary the entry has no attributes. Reply: `Data`; empty at the end.
    List { node: Node, cookie: u64, max_bytes: u32, plus: bool, ahead: bool },
    /// The contents of many small files, for a client that expects them to be read soon. Data: a list of inode numbers (8 bytes
    /// each), at most [`crate::files::MOST`]. Reply: `Data`, in the form of [`crate::files`]: whole files on which the
    /// session holds a lease; what is no regular file, is longer than `longest` bytes or does not fit in `max_bytes` is left
    /// out. Nobody else is asked to let go of anything for it.
    ReadFiles { grant: u16, longest: u32, max_bytes: u32 },
    /// Attributes as the storage guest has them at this moment, for a client that has to know them before it answers a recall: nobody is waited for,
    /// and no lease comes with them, so that they are old as soon as anybody changes them. Reply: `Attr`.
    Measure { node: Node, handle: Option<Handle> },
}

/// The directory that is meant by a name that it is to lose. While the request is on its way somebody may give the name to another
/// one, which is then left alone: the answer is `Stale`. A kernel takes the directory that it knew by the name for removed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Meant {
    /// Whichever has the name.
    Whichever,
    /// None is known.
    Nothing,
    /// The one with this inode number.
    Inode(u64),
}

impl Meant {
    /// Whether it is the directory with this inode number.
    pub fn is(self, ino: u64) -> bool {
        match self {
            Meant::Whichever => true,
            Meant::Nothing => false,
            Meant::Inode(meant) => meant == ino,
        }
    }
}

/// What becomes of an existing target of a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// The rename fails (RENAME_NOREPLACE).
    NoReplace,
    /// The two are exchanged (RENAME_EXCHANGE).
    Exchange,
}

impl Op {
    /// Whether the request must run once only, so that it needs a slot of the reply cache.
    pub fn needs_slot(&self) -> bool {
        match self {
            Op::Setattr { .. }
            | Op::Open { .. }
            | Op::Opendir { .. }
            | Op::Create { .. }
            | Op::Write { .. }
            | Op::Release { .. }
            | Op::Mkdir { .. }
            | Op::Mknod { .. }
            | Op::Symlink { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Fallocate { .. }
            | Op::CopyRange { .. }
            | Op::Setxattr { .. }
            | Op::Removexattr { .. }
            | Op::OpenRead { .. } => true,
            Op::Lookup { .. }
            | Op::Resolve { .. }
            | Op::Forget
            | Op::Getattr { .. }
            | Op::Readlink { .. }
            | Op::Read { .. }
            | Op::Flush { .. }
            | Op::Fsync { .. }
            | Op::Reopen { .. }
            | Op::Readdir { .. }
            | Op::Seek { .. }
            | Op::Statfs { .. }
            | Op::Getxattr { .. }
            | Op::Listxattr { .. }
            // Setting the same lock again changes nothing, and a waiting request must not hold a slot.
            | Op::GetLock { .. }
            | Op::SetLock { .. }
            | Op::CancelLock { .. }
            | Op::Ping
            | Op::Bye
            | Op::Reclaimed
            | Op::TakeLeases
            | Op::Recalled { .. }
            | Op::List { .. }
            | Op::ReadFiles { .. }
            | Op::Measure { .. } => false,
        }
    }

    /// Whether the request has data; one that brings any and should not makes no sense.
    pub fn takes_data(&self) -> bool {
        match self {
            Op::Resolve { .. }
            | Op::Forget
            | Op::Write { .. }
            | Op::Symlink { .. }
            | Op::Getxattr { .. }
            | Op::Setxattr { .. }
            | Op::Removexattr { .. }
            | Op::ReadFiles { .. } => true,
            Op::Lookup { .. }
            | Op::Getattr { .. }
            | Op::Setattr { .. }
            | Op::Readlink { .. }
            | Op::Open { .. }
            | Op::Opendir { .. }
            | Op::Create { .. }
            | Op::Read { .. }
            | Op::Flush { .. }
            | Op::Fsync { .. }
            | Op::Release { .. }
            | Op::Reopen { .. }
            | Op::Readdir { .. }
            | Op::Mkdir { .. }
            | Op::Mknod { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Fallocate { .. }
            | Op::Seek { .. }
            | Op::CopyRange { .. }
            | Op::Statfs { .. }
            | Op::Listxattr { .. }
            | Op::GetLock { .. }
            | Op::SetLock { .. }
            | Op::CancelLock { .. }
            | Op::Ping
            | Op::Bye
            | Op::Reclaimed
            | Op::TakeLeases
            | Op::Recalled { .. }
            | Op::OpenRead { .. }
            | Op::List { .. }
            | Op::Measure { .. } => false,
        }
    }

    /// The name of the operation in audit lines and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Lookup { .. } => "lookup",
            Op::Resolve { .. } => "resolve",
            Op::Forget => "forget",
            Op::Getattr { .. } => "getattr",
            Op::Setattr { .. } => "setattr",
            Op::Readlink { .. } => "readlink",
            Op::Open { .. } => "open",
            Op::Opendir { .. } => "opendir",
            Op::Create { .. } => "create",
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::Flush { .. } => "flush",
            Op::Fsync { .. } => "fsync",
            Op::Release { .. } => "release",
            Op::Reopen { .. } => "reopen",
            Op::Readdir { .. } => "readdir",
            Op::Mkdir { .. } => "mkdir",
            Op::Mknod { .. } => "mknod",
            Op::Symlink { .. } => "symlink",
            Op::Link { .. } => "link",
            Op::Unlink { .. } => "unlink",
            Op::Rmdir { .. } => "rmdir",
            Op::Rename { .. } => "rename",
            Op::Fallocate { .. } => "fallocate",
            Op::Seek { .. } => "seek",
            Op::CopyRange { .. } => "copy-range",
            Op::Statfs { .. } => "statfs",
            Op::Getxattr { .. } => "getxattr",
            Op::Listxattr { .. } => "listxattr",
            Op::Setxattr { .. } => "setxattr",
            Op::Removexattr { .. } => "removexattr",
            Op::GetLock { .. } => "getlock",
            Op::SetLock { .. } => "setlock",
            Op::CancelLock { .. } => "cancel-lock",
            Op::Ping => "ping",
            Op::Bye => "bye",
            Op::Reclaimed => "reclaimed",
            Op::TakeLeases => "take-leases",
            Op::Recalled { .. } => "recalled",
            Op::OpenRead { .. } => "open-read",
            Op::List { .. } => "list",
            Op::ReadFiles { .. } => "read-files",
            Op::Measure { .. } => "measure",
        }
    }
}
