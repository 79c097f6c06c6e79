//! The file system proper: what each operation asks of the gateway, and what the answer means. Knows no kernel, no mount and no
//! connection, so that it can be tested without any; each operation ends by calling `done` once, possibly on another thread.
//!
//! Nothing is decided here that the gateway does not decide again: what is refused at once (the skeleton is read-only,
//! grants are different file systems) only saves the way there.

mod directory;
mod file;
mod locks;
mod names;
#[cfg(test)]
mod tests;
mod xattr;

use std::sync::Arc;
use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use strongroom_contracts::Ownership;
use strongroom_protocol::attr::{Attr, Credentials, Handle, Node, SetAttr};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Entry, Outcome, Statfs};

use crate::attr::{self, Owner};
use crate::errno::{Ended, errno, of_name};
use crate::state::State;
use crate::transport::{Answer, Call, Carrier, Payload};
use crate::tree::{Branch, ROOT};

pub use directory::{DirOut, Sink};
pub use file::{Opened, SeekFrom};
pub use locks::LockRange;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Thread id in the client's process namespace; 0 if it is not visible there.
    pub pid: u32,
}

impl Caller {
    fn credentials(self) -> Credentials {
        Credentials { uid: self.uid, gid: self.gid }
    }
}

/// A node as the kernel is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Attributes, with the inode number of the mount.
    pub attr: FileAttr,
    /// Tells apart files that had the number one after the other.
    pub generation: u64,
}

/// Attributes to change, as the kernel gives them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeOrNow>,
    /// Last change of contents.
    pub mtime: Option<TimeOrNow>,
}

/// What an inode number stands for.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// A directory above the grants.
    Skeleton(u64),
    /// Something within a grant.
    Granted(Node),
}

/// The file system.
#[derive(Clone)]
pub struct Fs {
    carrier: Arc<dyn Carrier>,
    state: Arc<State>,
    shown: Owner,
    since: SystemTime,
}

impl Fs {
    /// A file system over a carrier; files of `single` grants appear to belong to `shown`.
    pub fn new(carrier: Arc<dyn Carrier>, state: Arc<State>, shown: Owner) -> Fs {
        Fs { carrier, state, shown, since: SystemTime::now() }
    }

    fn place(&self, number: u64) -> Place {
        match self.state.nodes.lock().node(number) {
            Some(node) => Place::Granted(node),
            None => Place::Skeleton(number),
        }
    }

    /// The node of an inode number that must lie within a grant: nothing can be changed above the grants.
    fn granted(&self, number: u64) -> Result<Node, Errno> {
        match self.place(number) {
            Place::Granted(node) => Ok(node),
            Place::Skeleton(_) => Err(Errno::EACCES),
        }
    }

    /// The skeleton costs no message; but once the contract is void, it shows no names either.
    fn unbarred(&self) -> Result<(), Errno> {
        self.carrier.barred().map_or(Ok(()), |ended| Err(errno(ended)))
    }

    /// Asks, and hands on what `read` makes of the answer.
    fn ask<T>(
        &self,
        caller: Caller,
        op: Op,
        data: Payload,
        read: impl FnOnce(Answer<'_>) -> Result<T, Errno> + Send + 'static,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.carrier.submit(Call {
            op,
            data,
            pid: caller.pid,
            done: Box::new(move |result| done(result.map_err(errno).and_then(read))),
        });
    }

    /// Asks for something that is simply done, or not.
    fn ask_done(
        &self,
        caller: Caller,
        op: Op,
        data: Payload,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.ask(caller, op, data, nothing, done);
    }

    fn ownership(&self, node: Node) -> Ownership {
        self.state.grants.read().get(node.grant).map_or(Ownership::Single, |grant| grant.ownership)
    }

    /// Attributes as the kernel takes them.
    fn shown_attr(&self, node: Node, attr: &Attr) -> Result<FileAttr, Errno> {
        let number = self.state.nodes.lock().number(node);
        attr::to_kernel(attr, number, self.ownership(node), self.shown).ok_or(Errno::EIO)
    }

    /// Notes that the kernel is told of an entry found or made in `parent`.
    fn told(&self, parent: Node, name: Name, entry: &Entry) -> Result<Told, Errno> {
        // What a grant holds stays within it; the number on the wire may have changed with the contract.
        let node = Node { grant: parent.grant, ino: entry.node.ino };
        let attr = self.shown_attr(node, &entry.attr)?;
        self.state.nodes.lock().tell_named(node, entry.attr.generation, parent, name);
        Ok(Told { attr, generation: entry.attr.generation })
    }

    fn told_root(&self, grant: u16, entry: &Entry) -> Result<Told, Errno> {
        let node = Node { grant, ino: entry.node.ino };
        let attr = self.shown_attr(node, &entry.attr)?;
        self.state.nodes.lock().tell_root(node, entry.attr.generation);
        Ok(Told { attr, generation: entry.attr.generation })
    }

    fn skeleton_attr(&self, number: u64) -> FileAttr {
        let subdirectories = self.state.tree.read().subdirectories(number);
        FileAttr {
            ino: INodeNo(number),
            size: 0,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: FileType::Directory,
            perm: 0o555,
            nlink: 2 + subdirectories,
            uid: self.shown.uid,
            gid: self.shown.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Finds a name in a directory.
    pub fn lookup(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        match self.place(parent) {
            Place::Granted(parent) => {
                let name = match Name::new(name) {
                    Ok(name) => name,
                    Err(error) => return done(Err(of_name(error))),
                };
                let fs = self.clone();
                let op = Op::Lookup { parent, name: name.clone() };
                let read = move |answer: Answer<'_>| fs.told(parent, name, &entry(&answer)?);
                self.ask(caller, op, Payload::default(), read, done);
            }
            Place::Skeleton(directory) => {
                if let Err(errno) = self.unbarred() {
                    return done(Err(errno));
                }
                let found = self.state.tree.read().child(directory, name);
                match found {
                    Some(Branch::Directory(number)) => {
                        done(Ok(Told { attr: self.skeleton_attr(number), generation: 0 }));
                    }
                    Some(Branch::Grant(grant)) => {
                        let fs = self.clone();
                        self.find_root(caller, grant, move |root| {
                            done(root.and_then(|root| fs.told_root(grant, &root)));
                        });
                    }
                    None => done(Err(Errno::ENOENT)),
                }
            }
        }
    }

    /// Finds the root of a grant, whatever its inode number is by now.
    fn find_root(
        &self,
        caller: Caller,
        grant: u16,
        done: impl FnOnce(Result<Entry, Errno>) + Send + 'static,
    ) {
        let op = Op::Resolve { grant, ino: 0 };
        self.ask(caller, op, Payload::default(), |answer| entry(&answer), done);
    }

    /// The kernel forgets a node as many times as it was told of it.
    pub fn forget(&self, number: u64, lookups: u64) {
        self.state.nodes.lock().forget(number, lookups);
    }

    /// Attributes.
    pub fn getattr(
        &self,
        caller: Caller,
        number: u64,
        file: Option<u64>,
        done: impl FnOnce(Result<FileAttr, Errno>) + Send + 'static,
    ) {
        let node = match self.place(number) {
            Place::Granted(node) => node,
            Place::Skeleton(ROOT) => return done(Ok(self.skeleton_attr(ROOT))),
            Place::Skeleton(number) => {
                let there = self.state.tree.read().has(number);
                return done(if there { Ok(self.skeleton_attr(number)) } else { Err(Errno::ESTALE) });
            }
        };
        // A file that has lost its name is reached through a handle, which the kernel does not always give.
        let handle = file.or_else(|| self.state.handles.lock().of_node(node, |_| true)).map(Handle);
        let fs = self.clone();
        let read = move |answer: Answer<'_>| match answer.outcome {
            Outcome::Attr(attr) => fs.shown_attr(node, &attr),
            _ => Err(errno(Ended::Protocol)),
        };
        self.ask(caller, Op::Getattr { node, handle }, Payload::default(), read, done);
    }

    /// Changes attributes.
    pub fn setattr(
        &self,
        caller: Caller,
        number: u64,
        file: Option<u64>,
        change: Change,
        done: impl FnOnce(Result<FileAttr, Errno>) + Send + 'static,
    ) {
        let node = match self.granted(number) {
            Ok(node) => node,
            Err(errno) => return done(Err(errno)),
        };
        // The handle that created a file may do more than the contract says otherwise, and the kernel does not tell
        // fchmod and futimens from their namesakes that take a path.
        let handle =
            file.or_else(|| self.state.handles.lock().of_node(node, |file| file.created)).map(Handle);
        let single = self.ownership(node) == Ownership::Single;
        let set = SetAttr {
            // The kernel sends the file type along.
            mode: change.mode.map(|mode| mode & PERMISSIONS),
            // To "change" the owner to the one that is shown is no change.
            uid: change.uid.filter(|uid| !(single && *uid == self.shown.uid)),
            gid: change.gid.filter(|gid| !(single && *gid == self.shown.gid)),
            size: change.size,
            atime: change.atime.map(attr::from_kernel),
            mtime: change.mtime.map(attr::from_kernel),
        };
        if set == SetAttr::default() {
            return self.getattr(caller, number, file, done);
        }
        let fs = self.clone();
        let read = move |answer: Answer<'_>| match answer.outcome {
            Outcome::Attr(attr) => fs.shown_attr(node, &attr),
            _ => Err(errno(Ended::Protocol)),
        };
        let op = Op::Setattr { node, handle, set, by: caller.credentials() };
        self.ask(caller, op, Payload::default(), read, done);
    }

    /// The target of a symlink.
    pub fn readlink(
        &self,
        caller: Caller,
        number: u64,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        match self.granted(number) {
            Ok(node) => self.ask_data(caller, Op::Readlink { node }, Payload::default(), done),
            // The skeleton has no symlinks.
            Err(_) => done(Err(Errno::EINVAL)),
        }
    }

    /// Asks for data, which are handed on without a copy.
    fn ask_data(
        &self,
        caller: Caller,
        op: Op,
        data: Payload,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        self.carrier.submit(Call {
            op,
            data,
            pid: caller.pid,
            done: Box::new(move |result| match result {
                Ok(Answer { outcome: Outcome::Data, data, .. }) => done(Ok(data)),
                Ok(_) => done(Err(errno(Ended::Protocol))),
                Err(ended) => done(Err(errno(ended))),
            }),
        });
    }

    /// Space and files. Above the grants: those of the first grant.
    pub fn statfs(
        &self,
        caller: Caller,
        number: u64,
        done: impl FnOnce(Result<Statfs, Errno>) + Send + 'static,
    ) {
        match self.place(number) {
            Place::Granted(node) => self.ask_statfs(caller, node, done),
            Place::Skeleton(_) => {
                if let Err(errno) = self.unbarred() {
                    return done(Err(errno));
                }
                let first = self.state.grants.read().active().next().map(|(number, _)| number);
                let Some(grant) = first else { return done(Ok(NO_SPACE)) };
                let fs = self.clone();
                self.find_root(caller, grant, move |root| match root {
                    Ok(root) => fs.ask_statfs(caller, Node { grant, ino: root.node.ino }, done),
                    // There is nothing there yet, and so no space either.
                    Err(Errno::ENOENT | Errno::ESTALE) => done(Ok(NO_SPACE)),
                    Err(errno) => done(Err(errno)),
                });
            }
        }
    }

    fn ask_statfs(
        &self,
        caller: Caller,
        node: Node,
        done: impl FnOnce(Result<Statfs, Errno>) + Send + 'static,
    ) {
        let read = |answer: Answer<'_>| match answer.outcome {
            Outcome::Statfs(statfs) => Ok(statfs),
            _ => Err(errno(Ended::Protocol)),
        };
        self.ask(caller, Op::Statfs { node }, Payload::default(), read, done);
    }
}

/// The bits of a mode that can be changed (chmod(2)).
const PERMISSIONS: u32 = 0o7777;

const NO_SPACE: Statfs =
    Statfs { block_size: 4096, blocks: 0, free: 0, files: 0, files_free: 0, name_max: 255 };

fn nothing(answer: Answer<'_>) -> Result<(), Errno> {
    match answer.outcome {
        Outcome::Done => Ok(()),
        _ => Err(errno(Ended::Protocol)),
    }
}

fn entry(answer: &Answer<'_>) -> Result<Entry, Errno> {
    match &answer.outcome {
        Outcome::Entry(entry) => Ok(*entry),
        _ => Err(errno(Ended::Protocol)),
    }
}
