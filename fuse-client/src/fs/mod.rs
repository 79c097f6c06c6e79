//! The file system proper: what each operation asks of the gateway, and what the answer means. Knows no kernel, no mount and no
//! connection, so that it can be tested without any; each operation ends by calling `done` once, possibly on another thread.
//!
//! Nothing is decided here that the gateway does not decide again: what is refused at once (the skeleton is read-only,
//! grants are different file systems) only saves the way there.

mod ahead;
mod behind;
mod directory;
mod file;
mod locks;
mod names;
#[cfg(test)]
mod tests;
mod xattr;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::MutexGuard;

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use strongroom_contracts::{Ownership, Right};
use strongroom_protocol::attr::{Attr, Credentials, Handle, Node, SetAttr};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Entry, Outcome, Statfs};

use crate::asking;
use crate::attr::{self, Owner};
use crate::behind::Setting;
use crate::errno::{Ended, errno, of_name};
use crate::lease::{Asked, Found, Heard, OwnChange, Table, Underway};
use crate::opening::{self, Submit};
use crate::state::{OpenFile, State};
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
    /// Attributes, with the inode number of the mount; 0: there is no such name.
    pub attr: FileAttr,
    /// Tells apart files that had the number one after the other.
    pub generation: u64,
    /// For how long the kernel may keep the attributes.
    pub attr_ttl: Duration,
    /// For how long the kernel may keep what the name stands for.
    pub entry_ttl: Duration,
}

/// Attributes as the kernel is told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attrs {
    /// Attributes, with the inode number of the mount.
    pub attr: FileAttr,
    /// For how long the kernel may keep them.
    pub ttl: Duration,
}

/// Directories above the grants change with the contract only, which is told to the kernel.
const SKELETON_TTL: Duration = Duration::from_secs(3600);
/// Their attributes (the number of subdirectories) are not.
const SKELETON_ATTR_TTL: Duration = Duration::from_secs(1);

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
            Place::Skeleton(ROOT) => Err(Errno::EACCES),
            // What is gone is looked up anew by whoever came by a path (ESTALE).
            Place::Skeleton(number) if self.state.tree.read().has(number) => Err(Errno::EACCES),
            Place::Skeleton(_) => Err(Errno::ESTALE),
        }
    }

    /// The skeleton costs no message; but once the contract is void, it shows no names either.
    fn unbarred(&self) -> Result<(), Errno> {
        self.carrier.barred().map_or(Ok(()), |ended| Err(errno(ended)))
    }

    /// Does `then` once an open file is open at the gateway as well, and the gateway has all that was written to it.
    fn at_gateway<T: Send + 'static>(
        &self,
        caller: Caller,
        file: u64,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
        then: impl FnOnce(Fs, Box<dyn FnOnce(Result<T, Errno>) + Send>) + Send + 'static,
    ) {
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        self.settled(caller, open.node, move |fs, ready| match ready {
            Ok(()) => fs.at_gateway_settled(caller, &open, done, then),
            Err(errno) => done(Err(errno)),
        });
    }

    fn at_gateway_settled<T: Send + 'static>(
        &self,
        caller: Caller,
        open: &Arc<OpenFile>,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
        then: impl FnOnce(Fs, Box<dyn FnOnce(Result<T, Errno>) + Send>) + Send + 'static,
    ) {
        if open.at_gateway() {
            return then(self.clone(), Box::new(done));
        }
        let fs = self.clone();
        opening::ensure(&self.submitter(), open, caller.pid, move |result| match result {
            Ok(()) => then(fs, Box::new(done)),
            Err(errno) => done(Err(errno)),
        });
    }

    fn submitter(&self) -> Submit {
        let carrier = self.carrier.clone();
        Arc::new(move |call| carrier.submit(call))
    }

    /// Whether the contract gives a right on a grant.
    fn may(&self, node: Node, right: Right) -> bool {
        self.state.grants.read().get(node.grant).is_some_and(|grant| grant.rights.has(right))
    }

    fn asked(&self) -> Asked {
        self.state.leases.table().ask(Instant::now())
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
            done: {
                let state = self.state.clone();
                Box::new(move |result| {
                    let _gate = state.leases.gate();
                    done(result.map_err(errno).and_then(read));
                })
            },
            keep: None,
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

    /// Asks for a change of these nodes. `read` gets the change to tell the table how it ended ([`Fs::ended`]), and is not called
    /// if the caller may wait no longer while the gateway may still carry it out.
    fn change<T>(
        &self,
        caller: Caller,
        asking: (Op, Payload),
        nodes: &[Node],
        read: impl FnOnce(Result<Answer<'_>, Errno>, OwnChange) -> Result<T, Errno> + Send + 'static,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.change_begun(caller, asking, Underway::begin(&self.state, nodes), read, done);
    }

    /// The same for a change that the table was told of before.
    fn change_begun<T>(
        &self,
        caller: Caller,
        (op, data): (Op, Payload),
        underway: Arc<Underway>,
        read: impl FnOnce(Result<Answer<'_>, Errno>, OwnChange) -> Result<T, Errno> + Send + 'static,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let keep = Some(underway.clone());
        let state = self.state.clone();
        self.carrier.submit(Call {
            op,
            data,
            pid: caller.pid,
            done: Box::new(move |result| {
                let _gate = state.leases.gate();
                let change = underway.ended_by(&result);
                let result = result.map_err(errno);
                done(match change {
                    Some(change) => read(result, change),
                    None => Err(result.err().unwrap_or(Errno::EIO)),
                });
            }),
            keep,
        });
    }

    /// Tells the table that a change has ended which its answer tells all about.
    fn ended_plainly(&self, change: &OwnChange, answer: Option<&Answer<'_>>, after: Node) {
        drop(self.ended(change, answer, Some(after)));
    }

    /// Tells the table that a change has ended; the attributes that its answer brings are of `after`. Returns how the answer
    /// was heard, and the table, for what else it tells; nobody but this change has touched the nodes listed.
    fn ended<'a>(
        &'a self,
        change: &OwnChange,
        answer: Option<&Answer<'_>>,
        after: Option<Node>,
    ) -> (MutexGuard<'a, Table>, Option<Heard>, Vec<Node>) {
        let mut table = self.state.leases.table();
        let (asked, sole) = table.end(change);
        let heard = answer.map(|answer| Heard { asked, life: answer.life, note: answer.note });
        if let (Some(heard), Some(node)) = (&heard, after)
            && let Some(attr) = &heard.note.after
            && sole.contains(&node)
        {
            table.learn_after(heard, node, attr);
        }
        (table, heard, sole)
    }

    fn ownership(&self, node: Node) -> Ownership {
        self.state.grants.read().get(node.grant).map_or(Ownership::Single, |grant| grant.ownership)
    }

    /// Attributes as the kernel takes them.
    fn shown_attr(&self, node: Node, attr: &Attr) -> Result<FileAttr, Errno> {
        let (number, overtaken) = {
            let mut nodes = self.state.nodes.lock();
            (nodes.number_of(node, attr.generation), nodes.take_overtaken())
        };
        if let Some(kernel) = self.state.leases.kernel().filter(|_| !overtaken.is_empty()) {
            overtaken.into_iter().for_each(|number| _ = kernel.forget_attr(number));
            kernel.forget_entries();
        }
        self.state.leases.table().show(node, attr);
        attr::to_kernel(attr, number, self.ownership(node), self.shown).ok_or(Errno::EIO)
    }

    /// Notes that the kernel is told of an entry found or made in `parent`; returns whether it had nothing of it.
    fn tell(&self, parent: Node, name: &Name, node: Node, attr: &Attr) -> bool {
        let mut nodes = self.state.nodes.lock();
        let fresh = !nodes.knows(node);
        nodes.tell_named(node, attr.generation, parent, name.clone());
        fresh
    }

    /// What the kernel is told of an entry that was found.
    fn found(&self, parent: Node, name: &Name, node: Node, attr: &Attr) -> Result<Told, Errno> {
        let entry_ttl = self.state.leases.entry_ttl(parent, name, Some(node));
        let directory = attr.mode & libc::S_IFMT == libc::S_IFDIR;
        Ok(Told {
            attr: self.shown_attr(node, attr)?,
            generation: attr.generation,
            attr_ttl: self.state.leases.attr_ttl(node, attr),
            entry_ttl: if directory { self.keep_directory(node, entry_ttl) } else { entry_ttl },
        })
    }

    fn keep_directory(&self, node: Node, ttl: Duration) -> Duration {
        self.state.nodes.lock().keep_name(node, ttl, Instant::now())
    }

    /// There is no such name, and the kernel may keep that.
    fn absent(&self, parent: Node, name: &Name) -> Result<Told, Errno> {
        let entry_ttl = self.state.leases.entry_ttl(parent, name, None);
        if entry_ttl.is_zero() {
            return Err(Errno::ENOENT);
        }
        let attr = FileAttr { ino: INodeNo(0), ..self.skeleton_attr(0) };
        Ok(Told { attr, generation: 0, attr_ttl: Duration::ZERO, entry_ttl })
    }

    fn told_root(&self, grant: u16, entry: &Entry) -> Result<Told, Errno> {
        let node = Node { grant, ino: entry.node.ino };
        let attr = self.shown_attr(node, &entry.attr)?;
        let fresh = {
            let mut nodes = self.state.nodes.lock();
            let fresh = !nodes.knows(node);
            nodes.tell_root(node, entry.attr.generation);
            fresh
        };
        let leases = &self.state.leases;
        let known = {
            let mut table = leases.table();
            if fresh {
                table.fresh(node);
            }
            table.root(grant, Instant::now()).is_some_and(|(root, _)| root == node)
        };
        let attr_ttl = leases.attr_ttl(node, &entry.attr);
        let entry_ttl = if known { self.keep_directory(node, self.skeleton_ttl()) } else { Duration::ZERO };
        Ok(Told { attr, generation: entry.attr.generation, attr_ttl, entry_ttl })
    }

    fn skeleton_ttl(&self) -> Duration {
        if self.state.leases.entries_can_end() { SKELETON_TTL } else { Duration::ZERO }
    }

    fn skeleton_told(&self, number: u64) -> Told {
        let attr = self.skeleton_attr(number);
        Told { attr, generation: 0, attr_ttl: SKELETON_ATTR_TTL, entry_ttl: self.skeleton_ttl() }
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
                let known = {
                    let gate = self.state.leases.gate();
                    let known = self.state.leases.table().lookup(parent, &name, Instant::now());
                    match known {
                        Found::Absent => return done(self.absent(parent, &name)),
                        Found::Node(node, attr) => {
                            let fresh = self.tell(parent, &name, node, &attr);
                            if fresh {
                                self.state.leases.table().fresh(node);
                            }
                            done(self.found(parent, &name, node, &attr));
                            drop(gate);
                            return self.found_known(parent);
                        }
                        Found::Unknown => self.asked(),
                    }
                };
                let (fs, behind) = (self.clone(), self.state.behind.any());
                let op = Op::Lookup { parent, name: name.clone() };
                let read = move |answer: Answer<'_>| fs.looked_up(parent, &name, known, &answer);
                if behind {
                    let fs = self.clone();
                    let read = move |answer: Answer<'_>| read(answer).map(|told| (told, known));
                    self.ask(caller, op, Payload::default(), read, move |found| match found {
                        Ok((told, asked)) => fs.after_what_is_behind(caller, told, asked, done),
                        Err(errno) => done(Err(errno)),
                    });
                } else {
                    self.ask(caller, op, Payload::default(), read, done);
                }
                self.missed(parent);
            }
            Place::Skeleton(directory) => {
                let _gate = self.state.leases.gate();
                if let Err(errno) = self.unbarred() {
                    return done(Err(errno));
                }
                let found = self.state.tree.read().child(directory, name);
                match found {
                    Some(Branch::Directory(number)) => {
                        done(Ok(self.skeleton_told(number)));
                    }
                    Some(Branch::Grant(grant)) => {
                        let known = self.state.leases.table().root(grant, Instant::now());
                        if let Some((node, attr)) = known {
                            return done(self.told_root(grant, &Entry { node, attr }));
                        }
                        drop(_gate);
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

    /// The gateway has answered what a name stands for.
    fn looked_up(&self, parent: Node, name: &Name, asked: Asked, answer: &Answer<'_>) -> Result<Told, Errno> {
        let heard = Heard { asked, life: answer.life, note: answer.note };
        if let Outcome::Failed(_) = answer.outcome {
            self.state.leases.table().learn_name(&heard, parent, name, None);
            return self.absent(parent, name);
        }
        let found = entry(answer)?;
        // What a grant holds stays within it; the number on the wire may have changed with the contract.
        let node = Node { grant: parent.grant, ino: found.node.ino };
        let fresh = self.tell(parent, name, node, &found.attr);
        {
            let mut table = self.state.leases.table();
            table.learn(&heard, node, answer.note.node, &found.attr, fresh);
            table.learn_name(&heard, parent, name, Some(node));
        }
        self.found(parent, name, node, &found.attr)
    }

    /// A name was looked up while writes were under way that had been answered: if they were of this file, its attributes may be
    /// from before them, and are asked for once more.
    fn after_what_is_behind(
        &self,
        caller: Caller,
        told: Told,
        asked: Asked,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let number = told.attr.ino.0;
        let Place::Granted(node) = self.place(number) else { return done(Ok(told)) };
        let file = told.attr.kind == FileType::RegularFile;
        if !file || !self.state.leases.table().is_doubtful(node, asked) {
            return done(Ok(told));
        }
        let fs = self.clone();
        self.getattr(caller, number, None, move |attrs| match attrs {
            // What is kept is said with the attributes, or not at all.
            Ok(attrs) => done(Ok(Told {
                attr: attrs.attr,
                attr_ttl: Duration::ZERO,
                entry_ttl: Duration::ZERO,
                ..told
            })),
            Err(errno) => {
                fs.forget(number, 1);
                done(Err(errno));
            }
        });
    }

    /// Finds the root of a grant, whatever its inode number is by now.
    fn find_root(
        &self,
        caller: Caller,
        grant: u16,
        done: impl FnOnce(Result<Entry, Errno>) + Send + 'static,
    ) {
        let op = Op::Resolve { grant, ino: 0 };
        let (asked, state) = (self.asked(), self.state.clone());
        let read = move |answer: Answer<'_>| {
            let root = entry(&answer)?;
            let node = Node { grant, ino: root.node.ino };
            let heard = Heard { asked, life: answer.life, note: answer.note };
            let fresh = !state.nodes.lock().knows(node);
            let mut table = state.leases.table();
            table.learn(&heard, node, answer.note.node, &root.attr, fresh);
            table.learn_root(&heard, grant, node);
            Ok(root)
        };
        self.ask(caller, op, Payload::default(), read, done);
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
        done: impl FnOnce(Result<Attrs, Errno>) + Send + 'static,
    ) {
        let done = move |result: Result<Attrs, Errno>| match result {
            // The storage guest has given its number to another file.
            Ok(attrs) if attrs.attr.ino.0 != number => done(Err(Errno::ESTALE)),
            result => done(result),
        };
        let skeleton = |number| Attrs { attr: self.skeleton_attr(number), ttl: SKELETON_ATTR_TTL };
        let node = match self.place(number) {
            Place::Granted(node) => node,
            Place::Skeleton(ROOT) => return done(Ok(skeleton(ROOT))),
            Place::Skeleton(number) => {
                let there = self.state.tree.read().has(number);
                return done(if there { Ok(skeleton(number)) } else { Err(Errno::ESTALE) });
            }
        };
        let known = self.state.leases.table().attr(node, Instant::now());
        if asking::is_own(caller.pid) {
            return match known {
                Some(attr) => {
                    done(self.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl: Duration::ZERO }))
                }
                None => self.measure(caller, node, done),
            };
        }
        if known.is_some() {
            return self.tell_attr(caller, node, file, done);
        }
        // Its size and times are known when all that was written to it is with the gateway.
        self.settled(caller, node, move |fs, ready| match ready {
            Ok(()) if fs.state.leases.table().attr(node, Instant::now()).is_some() => {
                fs.tell_attr(caller, node, file, done);
            }
            Ok(()) => fs.ask_attr(caller, node, file, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// Attributes for the kernel alone, which is to hear how long a file is before a recall is answered: nobody is waited for.
    fn measure(&self, caller: Caller, node: Node, done: impl FnOnce(Result<Attrs, Errno>) + Send + 'static) {
        let handle = self.state.handles.lock().of_node(node, OpenFile::at_gateway).map(Handle);
        let fs = self.clone();
        let answered = move |result: Result<Answer<'_>, Ended>| {
            let attr = match result {
                Ok(Answer { outcome: Outcome::Attr(attr), .. }) => attr,
                Ok(_) => return done(Err(errno(Ended::Protocol))),
                Err(ended) => return done(Err(errno(ended))),
            };
            // What this guest has written early since then counts.
            let known = fs.state.leases.table().attr(node, Instant::now());
            if known.is_none() && fs.state.behind.busy(node) {
                return done(Err(Errno::EAGAIN));
            }
            let attr = known.unwrap_or(attr);
            done(fs.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl: Duration::ZERO }));
        };
        let op = Op::Measure { node, handle };
        let call =
            Call { op, data: Payload::default(), pid: caller.pid, done: Box::new(answered), keep: None };
        self.carrier.submit(call);
    }

    fn ask_attr(
        &self,
        caller: Caller,
        node: Node,
        file: Option<u64>,
        done: impl FnOnce(Result<Attrs, Errno>) + Send + 'static,
    ) {
        // A file that has lost its name is reached through a handle, which the kernel does not always give.
        let (handle, borrowed) = {
            let handles = self.state.handles.lock();
            let given = file.filter(|file| handles.get(*file).is_some_and(|file| file.at_gateway()));
            let borrowed = given.is_none();
            (given.or_else(|| handles.of_node(node, OpenFile::at_gateway)).map(Handle), borrowed)
        };
        let borrowed = borrowed && handle.is_some();
        let (fs, asked) = (self.clone(), self.asked());
        let op = Op::Getattr { node, handle };
        let answered = move |result: Result<Answer<'_>, Ended>| {
            let attr = match result {
                Ok(Answer { outcome: Outcome::Attr(attr), note, life, .. }) => {
                    let mut table = fs.state.leases.table();
                    table.learn(&Heard { asked, life, note }, node, note.node, &attr, false);
                    attr
                }
                Ok(_) => return done(Err(errno(Ended::Protocol))),
                // Somebody closed it meanwhile: it was only borrowed. It is not found again.
                Err(ended) if borrowed && errno(ended).code() == libc::EBADF => {
                    return fs.ask_attr(caller, node, file, done);
                }
                Err(ended) => return done(Err(errno(ended))),
            };
            let known = fs.state.leases.table().attr(node, Instant::now()).is_some();
            if known && !fs.scrub_needed(node) {
                let _gate = fs.state.leases.gate();
                let ttl = fs.state.leases.attr_ttl(node, &attr);
                return done(fs.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl }));
            }
            if known {
                return fs.tell_attr(caller, node, file, done);
            }
            done(fs.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl: Duration::ZERO }));
        };
        let call =
            Call { op, data: Payload::default(), pid: caller.pid, done: Box::new(answered), keep: None };
        self.carrier.submit(call);
    }

    /// Tells attributes from the table, if they are still there.
    fn tell_attr(
        &self,
        caller: Caller,
        node: Node,
        file: Option<u64>,
        done: impl FnOnce(Result<Attrs, Errno>) + Send + 'static,
    ) {
        if self.scrub_needed(node) {
            // The kernel does not believe an answer that overlaps a notice, and would read by the size of before. From one that
            // shows a change it drops the contents itself; what shows no change cannot leave it with a wrong size.
            let table = self.state.leases.table();
            let changed = table.attr(node, Instant::now()).filter(|attr| table.shows_change(node, attr));
            drop(table);
            return match changed {
                Some(attr) => {
                    done(self.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl: Duration::ZERO }));
                }
                None => self.scrub_and_tell(caller, node, file, done),
            };
        }
        let gate = self.state.leases.gate();
        let known = self.state.leases.table().attr(node, Instant::now());
        if let Some(attr) = known {
            let ttl = self.state.leases.attr_ttl(node, &attr);
            return done(self.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl }));
        }
        drop(gate);
        self.ask_attr(caller, node, file, done);
    }

    /// Whether the kernel may have contents of a node that are not those that the lease speaks of. If the kernel cannot be busy
    /// with them, they are dropped at once.
    fn scrub_needed(&self, node: Node) -> bool {
        let Some(kernel) = self.state.leases.kernel() else { return false };
        let Some(soiled) = self.state.leases.table().soiled(node) else { return false };
        if self.state.handles.lock().has(node) {
            return true;
        }
        // Nobody has it open, so no page of it is locked.
        let number = self.state.nodes.lock().number(node);
        kernel.forget_pages(number);
        self.state.leases.table().cleaned(node, soiled);
        false
    }

    /// Has the kernel drop the contents of a node, on another thread because it may have to wait for reads and writes that
    /// are under way, and then tells the attributes.
    fn scrub_and_tell(
        &self,
        caller: Caller,
        node: Node,
        file: Option<u64>,
        done: impl FnOnce(Result<Attrs, Errno>) + Send + 'static,
    ) {
        let Some(kernel) = self.state.leases.kernel().cloned() else {
            return self.ask_attr(caller, node, file, done);
        };
        let fs = self.clone();
        kernel.clone().aside(move || {
            let soiled = fs.state.leases.table().soiled(node);
            if let Some(soiled) = soiled {
                let number = fs.state.nodes.lock().number(node);
                kernel.forget_pages(number);
                fs.state.leases.table().cleaned(node, soiled);
            }
            let gate = fs.state.leases.gate();
            let known = fs.state.leases.table().attr(node, Instant::now());
            if let Some(attr) = known {
                let ttl = fs.state.leases.attr_ttl(node, &attr);
                return done(fs.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl }));
            }
            drop(gate);
            fs.ask_attr(caller, node, file, done);
        });
    }

    /// Changes attributes.
    pub fn setattr(
        &self,
        caller: Caller,
        number: u64,
        file: Option<u64>,
        change: Change,
        done: impl FnOnce(Result<Attrs, Errno>) + Send + 'static,
    ) {
        let node = match self.granted(number) {
            Ok(node) => node,
            Err(errno) => return done(Err(errno)),
        };
        // The handle that created a file may do more than the contract says otherwise, and the kernel does not tell
        // fchmod and futimens from their namesakes that take a path.
        let handle =
            file.or_else(|| self.state.handles.lock().of_node(node, |file| file.created)).map(Handle);
        let (again, borrowed) = (self.clone(), file.is_none() && handle.is_some());
        let done = move |result| match result {
            // Somebody closed it meanwhile: it was only borrowed, and is not found again. Nothing was changed.
            Err(Errno::EBADF) if borrowed => again.setattr(caller, number, None, change, done),
            result => done(result),
        };
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
        let setting = Setting { set, handle, by: caller.credentials() };
        let done = match self.set_behind(node, setting, done) {
            Ok(()) => return,
            Err(done) => done,
        };
        if set == SetAttr::default() {
            return self.getattr(caller, number, file, done);
        }
        let fs = self.clone();
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            let (mut table, heard, sole) = fs.ended(&change, result.as_ref().ok(), None);
            let Outcome::Attr(attr) = result?.outcome else { return Err(errno(Ended::Protocol)) };
            if set.size.is_some() {
                table.has_cut(node, Instant::now());
            }
            let Some(heard) = heard else { return Ok((attr, false)) };
            if sole.contains(&node) {
                table.learn(&heard, node, heard.note.node, &attr, false);
            }
            Ok((attr, table.was_resized(node, heard.note.stamp, attr.size)))
        };
        let fs = self.clone();
        // The kernel believes this answer whatever it was told meanwhile, so it may not keep it.
        let told = move |result: Result<(Attr, bool), Errno>| match result {
            Ok((attr, false)) => {
                fs.state.settles(node);
                done(fs.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl: Duration::ZERO }));
            }
            // Which of the two is later is not known here.
            Ok((_, true)) => fs.clone().ask_attr(caller, node, file, move |attrs| {
                fs.state.settles(node);
                done(attrs.map(|attrs| Attrs { ttl: Duration::ZERO, ..attrs }));
            }),
            Err(errno) => done(Err(errno)),
        };
        let op = Op::Setattr { node, handle, set, by: caller.credentials() };
        self.settled(caller, node, move |fs, ready| match ready {
            Ok(()) => fs.change(caller, (op, Payload::default()), &[node], read, told),
            Err(errno) => told(Err(errno)),
        });
    }

    /// The target of a symlink.
    pub fn readlink(
        &self,
        caller: Caller,
        number: u64,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        // The skeleton has no symlinks.
        let Ok(node) = self.granted(number) else { return done(Err(Errno::EINVAL)) };
        let known = self.state.leases.table().target(node, Instant::now());
        if let Some(target) = known {
            return done(Ok(&target));
        }
        let (state, asked) = (self.state.clone(), self.asked());
        self.carrier.submit(Call {
            op: Op::Readlink { node },
            data: Payload::default(),
            pid: caller.pid,
            done: Box::new(move |result| match result {
                Ok(Answer { outcome: Outcome::Data, data, note, life, .. }) => {
                    state.leases.table().learn_target(&Heard { asked, life, note }, node, data);
                    done(Ok(data));
                }
                Ok(_) => done(Err(errno(Ended::Protocol))),
                Err(ended) => done(Err(errno(ended))),
            }),
            keep: None,
        });
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
            keep: None,
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
