//! Nodes, handles and attributes as they travel.

use bincode::{Decode, Encode};

/// A file, directory or link, as seen through one grant. Meaningful within one contract only; the gateway refuses a node
/// that it has not told this session of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Node {
    /// The position of the grant in [`crate::hello::Welcome`]'s list.
    pub grant: u16,
    /// The inode number in the storage guest.
    pub ino: u64,
}

/// An open file or directory of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Handle(pub u64);

/// A point in time (`struct timespec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord, Encode, Decode)]
pub struct Time {
    /// Seconds since the Unix epoch; negative before it.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// The attributes of a node (statx(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attr {
    /// Inode number in the storage guest.
    pub ino: u64,
    /// Tells apart two files that had the same inode number one after the other (made from the birth time).
    pub generation: u64,
    /// File type and permission bits (`st_mode`).
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner; 0 under `single` ownership, where the client shows the mounting user.
    pub uid: u32,
    /// Group; likewise.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Preferred block size of I/O.
    pub blksize: u32,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes in use.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

/// Who asks, within the guest. Matters only under `preserve` ownership: a guest may claim any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A time to set (utimensat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SetTime {
    /// The gateway's present time.
    Now,
    /// This time.
    At(Time),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of contents.
    pub mtime: Option<SetTime>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Each write goes to the end (O_APPEND).
    pub append: bool,
    /// Cut to zero on opening (O_TRUNC).
    pub truncate: bool,
    /// Fail if it exists (O_EXCL); with creation only.
    pub exclusive: bool,
    /// Each write reaches the disk before it is answered (O_SYNC or O_DSYNC).
    pub sync: bool,
}

/// The kind of a byte-range lock (fcntl(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockKind {
    /// F_RDLCK
    Shared,
    /// F_WRLCK
    Exclusive,
    /// F_UNLCK
    Unlock,
}

/// A byte-range lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lock {
    /// The owner within the session (the kernel's lock owner).
    pub owner: u64,
    /// The process to show in F_GETLK, as the guest numbers it.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX` for "to the end of the file, however long".
    pub end: u64,
    /// Kind.
    pub kind: LockKind,
}
