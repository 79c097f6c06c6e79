//! Open files: opening, reading, writing, closing.

use std::sync::Arc;
use std::time::Instant;

use fuser::{Errno, FopenFlags};
use strongroom_contracts::Right;
use strongroom_protocol::attr::{Handle, Node, OpenFlags};
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::name::Name;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use super::behind::NOBODY;
use super::locks::Asking;
use super::{Caller, Fs, PERMISSIONS, Told, nothing};
use crate::errno::{Ended, errno, of_name};
use crate::lease::{Heard, OwnChange};
use crate::opening;
use crate::state::{Closing, OpenFile};
use crate::transport::{Answer, Call, Payload};

/// Most bytes that one request copies: the gateway is busy with it, and a fence waits for it. Callers go on after a
/// short count (copy_file_range(2)).
const MAX_COPY: u64 = 64 << 20;

/// An open file as the kernel is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its number.
    pub file: u64,
    /// How the kernel treats it.
    pub flags: FopenFlags,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekFrom {
    /// The next data (SEEK_DATA).
    Data,
    /// The next hole (SEEK_HOLE).
    Hole,
}

/// The flags of open(2) as they travel.
pub(super) fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        sync: flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
    }
}

/// What is written through a handle that cannot read bypasses the page cache: pages that a write leaves there are asked for again before
/// they are read (the file's times have changed), so that making them is for nothing. A handle that appends must bypass it: the
/// gateway puts the bytes at the end as it is by then, which the kernel, not having asked, may take for another place.
fn fopen_flags(flags: OpenFlags) -> FopenFlags {
    if flags.write && (flags.append || !flags.read) {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::empty()
    }
}

impl Fs {
    /// Opens a file.
    pub fn open(
        &self,
        caller: Caller,
        number: u64,
        flags: i32,
        done: impl FnOnce(Result<Opened, Errno>) + Send + 'static,
    ) {
        let node = match self.granted(number) {
            Ok(node) => node,
            Err(errno) => return done(Err(errno)),
        };
        let flags = OpenFlags { exclusive: false, ..open_flags(flags) };
        let fs = self.clone();
        let op = Op::Open { node, flags };
        if flags.truncate {
            let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
                let (mut table, heard, sole) = fs.ended(&change, result.as_ref().ok(), None);
                let answer = result?;
                let (Outcome::Opened(handle, attr), Some(heard)) = (&answer.outcome, heard) else {
                    return Err(errno(Ended::Protocol));
                };
                if sole.contains(&node) {
                    table.learn(&heard, node, heard.note.node, attr, false);
                }
                table.has_cut(node, Instant::now());
                drop(table);
                Ok(fs.opened(node, flags, answer.epoch, *handle))
            };
            return self.settled(caller, node, move |fs, ready| match ready {
                Ok(()) => fs.change(caller, (op, Payload::default()), &[node], read, done),
                Err(errno) => done(Err(errno)),
            });
        }
        if !flags.write && self.may(node, Right::Read) {
            let gate = self.state.leases.gate();
            let keep = self.keep_pages(node);
            let (longer, known) = {
                let table = self.state.leases.table();
                (table.may_be_longer(node), table.attr(node, Instant::now()))
            };
            if let Some(file) = self.open_lazily(node, flags, libc::S_IFREG) {
                let opened = Opened { file, flags: keep };
                let Some((when, attr)) = longer.zip(known) else { return done(Ok(opened)) };
                drop(gate);
                return self.told_size(node, attr.size, when, opened, done);
            }
        }
        let asked = self.asked();
        let read = move |answer: Answer<'_>| match answer.outcome {
            Outcome::Opened(handle, attr) => {
                let heard = Heard { asked, life: answer.life, note: answer.note };
                let longer = {
                    let mut table = fs.state.leases.table();
                    table.learn(&heard, node, heard.note.node, &attr, false);
                    table.may_be_longer(node)
                };
                let opened = fs.opened(node, flags, answer.epoch, handle);
                Ok((opened, longer.map(|when| (when, attr.size))))
            }
            _ => Err(errno(Ended::Protocol)),
        };
        let fs = self.clone();
        self.ask(caller, op, Payload::default(), read, move |result| match result {
            Ok((opened, None)) => done(Ok(opened)),
            Ok((opened, Some((when, size)))) => fs.told_size(node, size, when, opened, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// Answers an open when the kernel knows that the file is as long as it is: it does not ask again before it is mapped.
    fn told_size(
        &self,
        node: Node,
        size: u64,
        when: u64,
        opened: Opened,
        done: impl FnOnce(Result<Opened, Errno>) + Send + 'static,
    ) {
        let fs = self.clone();
        self.state.tell_size(node, size, move || {
            let _gate = fs.state.leases.gate();
            fs.state.leases.table().told_size(node, when);
            let keep = opened.flags & FopenFlags::FOPEN_KEEP_CACHE & fs.keep_pages(node);
            done(Ok(Opened { flags: (opened.flags - FopenFlags::FOPEN_KEEP_CACHE) | keep, ..opened }));
        });
    }

    /// Opens what is known to be of a kind without telling the gateway; `None` if that must not be.
    pub(super) fn open_lazily(&self, node: Node, flags: OpenFlags, kind: u32) -> Option<u64> {
        let table = self.state.leases.table();
        // What has no name any more is there only for a while, so it is opened while it is.
        table.attr(node, Instant::now()).filter(|attr| attr.mode & libc::S_IFMT == kind && attr.nlink > 0)?;
        if !table.opens_lazily(node) {
            return None;
        }
        // With the table locked: whoever removes its name has told the table first, and then looks for it here.
        let directory = kind == libc::S_IFDIR;
        Some(self.state.handles.lock().add(OpenFile::lazy(node, flags, directory)))
    }

    /// Notes an open file. The kernel keeps what pages it has if they are known to be good.
    fn opened(&self, node: Node, flags: OpenFlags, epoch: u64, handle: Handle) -> Opened {
        let keep = self.keep_pages(node);
        let file = OpenFile::new(node, flags, false, false, epoch, handle);
        Opened { file: self.state.handles.lock().add(file), flags: fopen_flags(flags) | keep }
    }

    fn keep_pages(&self, node: Node) -> FopenFlags {
        // While nobody has it open, pages that may be old can be dropped at once.
        let keep = !self.scrub_needed(node) && self.state.leases.table().clean(node, Instant::now());
        if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
    }

    /// Creates and opens a file.
    pub fn create(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        mode: u32,
        flags: i32,
        done: impl FnOnce(Result<(Told, Opened), Errno>) + Send + 'static,
    ) {
        let (parent, name) = match (self.granted(place.0), Name::new(place.1)) {
            (Ok(parent), Ok(name)) => (parent, name),
            (Err(errno), _) => return done(Err(errno)),
            (_, Err(error)) => return done(Err(of_name(error))),
        };
        let flags = open_flags(flags);
        let mode = mode & PERMISSIONS;
        let op = Op::Create { parent, name: name.clone(), mode, flags, by: caller.credentials() };
        let fs = self.clone();
        // It may be there already, and then it may be cut.
        let there = self.stands_for(parent, &name).filter(|_| !flags.exclusive);
        let nodes: Vec<Node> = [parent].into_iter().chain(there).collect();
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            let opened = match &result {
                Ok(Answer { outcome: Outcome::Created(handle, _), epoch, .. }) => Some((*handle, *epoch)),
                _ => None,
            };
            let (told, (node, _)) = fs.made(parent, &name, result, &change, flags.exclusive)?;
            if flags.truncate {
                let mut table = fs.state.leases.table();
                table.has_cut(node, Instant::now());
                if !change.concerns(node) {
                    table.touched(node);
                }
            }
            let (handle, epoch) = opened.ok_or_else(|| errno(Ended::Protocol))?;
            let file = OpenFile::new(node, flags, false, true, epoch, handle);
            let file = fs.state.handles.lock().add(file);
            Ok((told, Opened { file, flags: fopen_flags(flags) }))
        };
        self.change(caller, (op, Payload::default()), &nodes, read, done);
    }

    /// Reads at most `length` bytes; fewer only at the end of the file.
    pub fn read(
        &self,
        caller: Caller,
        file: u64,
        offset: u64,
        length: u32,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        let length = length.min(MAX_DATA as u32);
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        self.settled(caller, open.node, move |fs, ready| match ready {
            Ok(()) => fs.read_settled(caller, (file, open), offset, length, done),
            Err(errno) => done(Err(errno)),
        });
    }

    fn read_settled(
        &self,
        caller: Caller,
        (file, open): (u64, Arc<OpenFile>),
        offset: u64,
        length: u32,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        if open.at_gateway() {
            let op = Op::Read { handle: Handle(file), offset, length };
            return self.ask_data(caller, op, Payload::default(), done);
        }
        let known = self.state.leases.table().contents(open.node, Instant::now());
        if known.is_some() {
            return self.read_known(caller, (file, open), offset, length, done);
        }
        if open.claim() {
            let node = open.node;
            self.open_and_read(caller, (file, open), offset, length, done);
            return self.read_missed(node);
        }
        let fs = self.clone();
        opening::ensure(&self.submitter(), &open, caller.pid, move |result| match result {
            Ok(()) => {
                let op = Op::Read { handle: Handle(file), offset, length };
                fs.ask_data(caller, op, Payload::default(), done);
            }
            Err(errno) => done(Err(errno)),
        });
    }

    /// Reads what came ahead, if it still holds.
    fn read_known(
        &self,
        caller: Caller,
        (file, open): (u64, Arc<OpenFile>),
        offset: u64,
        length: u32,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        let gate = self.state.leases.gate();
        let known = self.state.leases.table().contents(open.node, Instant::now());
        let Some(contents) = known else {
            drop(gate);
            return match open.claim() {
                true => self.open_and_read(caller, (file, open), offset, length, done),
                false => self.read(caller, file, offset, length, done),
            };
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(contents.len());
        let to = from.saturating_add(length as usize).min(contents.len());
        done(Ok(contents.get(from..to).unwrap_or_default()));
        if to == contents.len() {
            self.state.leases.table().contents_read(open.node);
        }
        drop(gate);
        self.read_found(open.node);
    }

    /// The first read of a file that is not open at the gateway yet.
    fn open_and_read(
        &self,
        caller: Caller,
        (file, open): (u64, Arc<OpenFile>),
        offset: u64,
        length: u32,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        let fs = self.clone();
        let op = Op::OpenRead { node: open.node, flags: open.flags, offset, length };
        let answered = move |result: Result<Answer<'_>, Ended>| {
            let data = result.as_ref().map_or(&[][..], |answer| answer.data);
            if let Err(ended @ (Ended::Interrupted | Ended::Deadline)) = result {
                done(Err(errno(ended)));
                return opening::go_on(&fs.submitter(), &open, open.give_back().into_iter());
            }
            match opening::opened(result) {
                // A request that was sent again is answered without the data.
                Ok((wire, size)) if data.is_empty() && offset < size && length > 0 => {
                    open.settle(Ok(wire));
                    let op = Op::Read { handle: Handle(file), offset, length };
                    fs.ask_data(caller, op, Payload::default(), done);
                }
                Ok((wire, _)) => {
                    done(Ok(data));
                    open.settle(Ok(wire));
                }
                Err(errno) => {
                    done(Err(errno));
                    open.settle(Err(errno));
                }
            }
        };
        let call =
            Call { op, data: Payload::default(), pid: caller.pid, done: Box::new(answered), keep: None };
        self.carrier.submit(call);
    }

    /// Writes; the answer is how many bytes were.
    pub fn write(
        &self,
        caller: Caller,
        file: u64,
        offset: u64,
        data: &[u8],
        done: impl FnOnce(Result<u32, Errno>) + Send + 'static,
    ) {
        // The kernel sends no more than was agreed upon; should it, the rest is written after a short count.
        let data = data.get(..MAX_DATA).unwrap_or(data);
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        if let Some(errno) = open.take_failure() {
            return done(Err(errno));
        }
        let payload = Payload::copy(data);
        if let Some(underway) = self.begin_behind(&open, offset, data.len()) {
            return self.write_behind((file, open), offset, payload, underway, done);
        }
        let op = Op::Write { handle: Handle(file), offset };
        let (node, append) = (open.node, open.flags.append);
        self.settled(caller, node, move |fs, ready| {
            let state = fs.state.clone();
            let told = move |result| match result {
                // Others have appended meanwhile: the kernel believes that the file ends with what it wrote.
                Ok((count, size, stamp)) if append && size > offset.saturating_add(u64::from(count)) => {
                    let then = move || done(Ok(count));
                    let cut = state.leases.table().was_cut(node, stamp, Instant::now());
                    if cut { state.tell_size(node, size, then) } else { state.lengthen(node, size, then) }
                }
                result => done(result.map(|(count, ..)| count)),
            };
            match ready {
                Ok(()) => fs.change_file(caller, file, (op, payload), written_of, told),
                Err(errno) => told(Err(errno)),
            }
        });
    }

    /// A descriptor is closed.
    pub fn flush(
        &self,
        caller: Caller,
        file: u64,
        lock_owner: u64,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        self.settled(caller, open.node, move |fs, ready| {
            match ready.and(open.take_failure().map_or(Ok(()), Err)) {
                Ok(()) => fs.flush_settled(caller, (file, open), lock_owner, done),
                Err(errno) => done(Err(errno)),
            }
        });
    }

    fn flush_settled(
        &self,
        caller: Caller,
        (file, open): (u64, Arc<OpenFile>),
        lock_owner: u64,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        // The gateway has all that was written, so there is nothing to tell but locks to release.
        let (fs, node) = (self.clone(), open.node);
        let closing = self.state.locks.lock().flush(node, lock_owner);
        match closing {
            Closing::Done => {
                let dead = open.wire.lock().dead;
                return done(self.unbarred().and(dead.map_or(Ok(()), Err)));
            }
            Closing::Tell => {
                // Whoever closes is not kept from that by a signal.
                return self.tell_locks(NOBODY, node, true, move |_| {
                    fs.flush_settled(caller, (file, open), lock_owner, done);
                });
            }
            Closing::Gateway => {}
        }
        let asking = Asking::of(&self.state, node);
        let op = Op::Flush { handle: Handle(file), lock_owner };
        let answered = move |result: Result<Answer<'_>, Ended>| {
            fs.state.locks.lock().drop_owner(node, lock_owner);
            asking.ended(&result);
            done(result.map_err(errno).and_then(nothing));
        };
        let call =
            Call { op, data: Payload::default(), pid: caller.pid, done: Box::new(answered), keep: None };
        self.carrier.submit(call);
    }

    /// The last descriptor is closed.
    pub fn release(
        &self,
        caller: Caller,
        file: u64,
        lock_owner: Option<u64>,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let open = self.state.handles.lock().close(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        let fs = self.clone();
        if open.claim() {
            // The gateway never knew of it.
            self.state.handles.lock().remove(file);
            open.gone();
            return done(Ok(()));
        }
        if !open.at_gateway() {
            return opening::ensure(&self.submitter(), &open, caller.pid, move |result| match result {
                Ok(()) => fs.release_at_gateway(caller, file, lock_owner, done),
                Err(_) => {
                    fs.state.handles.lock().remove(file);
                    done(Ok(()));
                }
            });
        }
        // What the kernel wrote back last may be under way; nobody is left who could be interrupted.
        let nobody = Caller { pid: 0, ..caller };
        self.settled(nobody, open.node, move |fs, _| fs.release_at_gateway(caller, file, lock_owner, done));
    }

    fn release_at_gateway(
        &self,
        caller: Caller,
        file: u64,
        lock_owner: Option<u64>,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let (open, others, there) = {
            let handles = self.state.handles.lock();
            let Some(open) = handles.get(file) else { return done(Err(Errno::EBADF)) };
            let (node, others) = (open.node, handles.has(open.node));
            (open, others, handles.of_node(node, OpenFile::at_gateway).is_some())
        };
        let (fs, node) = (self.clone(), open.node);
        // The kernel tells of no owner if the lock is one of the open file description. Nobody else's is left by now.
        let lock_owner =
            lock_owner.or_else(|| self.state.locks.lock().through(file).first().map(|lock| lock.owner));
        let closing = self.state.locks.lock().release((node, file), lock_owner, others, there);
        let asking = match closing {
            Closing::Done => None,
            Closing::Tell => {
                return self.tell_locks(NOBODY, node, true, move |_| {
                    fs.release_at_gateway(caller, file, lock_owner, done);
                });
            }
            Closing::Gateway => Some(Asking::of(&self.state, node)),
        };
        let op = Op::Release { handle: Handle(file), lock_owner };
        let answered = move |result: Result<Answer<'_>, Ended>| {
            if let Some(asking) = asking {
                let mut locks = fs.state.locks.lock();
                locks.drop_through(file);
                if let Some(owner) = lock_owner {
                    locks.drop_owner(node, owner);
                }
                drop(locks);
                asking.ended(&result);
            }
            fs.state.handles.lock().remove(file);
            // There is nobody left to tell of a failure (close(2) has returned).
            done(Ok(()));
        };
        let call =
            Call { op, data: Payload::default(), pid: caller.pid, done: Box::new(answered), keep: None };
        self.carrier.submit(call);
    }

    /// Brings a file or directory to stable storage.
    pub fn fsync(
        &self,
        caller: Caller,
        file: u64,
        data_only: bool,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.at_gateway(caller, file, done, move |fs, done| {
            let failure = fs.state.handles.lock().get(file).and_then(|open| open.take_failure());
            if let Some(errno) = failure {
                return done(Err(errno));
            }
            let op = Op::Fsync { handle: Handle(file), data_only };
            fs.ask_done(caller, op, Payload::default(), done);
        });
    }

    /// fallocate(2).
    pub fn fallocate(
        &self,
        caller: Caller,
        file: u64,
        range: (u64, u64),
        mode: i32,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let (offset, length) = range;
        // The bits as they are.
        let op = Op::Fallocate { handle: Handle(file), mode: mode as u32, offset, length };
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        self.settled(caller, open.node, move |fs, ready| match ready {
            Ok(()) => fs.change_file(caller, file, (op, Payload::default()), nothing, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// The next data or hole.
    pub fn seek(
        &self,
        caller: Caller,
        file: u64,
        offset: i64,
        from: SeekFrom,
        done: impl FnOnce(Result<i64, Errno>) + Send + 'static,
    ) {
        let Ok(offset) = u64::try_from(offset) else { return done(Err(Errno::ENXIO)) };
        let op = Op::Seek { handle: Handle(file), offset, hole: from == SeekFrom::Hole };
        let read = |answer: Answer<'_>| match answer.outcome {
            Outcome::Offset(offset) => i64::try_from(offset).map_err(|_| Errno::EOVERFLOW),
            _ => Err(errno(Ended::Protocol)),
        };
        self.at_gateway(caller, file, done, move |fs, done| {
            fs.ask(caller, op, Payload::default(), read, done);
        });
    }

    /// copy_file_range(2); may copy less.
    pub fn copy(
        &self,
        caller: Caller,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
        done: impl FnOnce(Result<u32, Errno>) + Send + 'static,
    ) {
        let op = Op::CopyRange {
            from: Handle(from.0),
            from_offset: from.1,
            to: Handle(to.0),
            to_offset: to.1,
            length: length.min(MAX_COPY),
        };
        let target = self.state.handles.lock().get(to.0);
        let Some(target) = target else { return done(Err(Errno::EBADF)) };
        self.at_gateway(caller, from.0, done, move |fs, done| {
            fs.settled(caller, target.node, move |fs, ready| match ready {
                Ok(()) => fs.change_file(caller, to.0, (op, Payload::default()), written, done),
                Err(errno) => done(Err(errno)),
            });
        });
    }

    /// Asks for a change of an open file's contents.
    fn change_file<T>(
        &self,
        caller: Caller,
        file: u64,
        asking: (Op, Payload),
        read: impl FnOnce(Answer<'_>) -> Result<T, Errno> + Send + 'static,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        let (fs, node) = (self.clone(), open.node);
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            fs.ended_plainly(&change, result.as_ref().ok(), node);
            read(result?)
        };
        self.change(caller, asking, &[node], read, done);
    }
}

fn written(answer: Answer<'_>) -> Result<u32, Errno> {
    written_of(answer).map(|(count, ..)| count)
}

/// How much was written, the size of the file since, and when that was on the session's clock.
fn written_of(answer: Answer<'_>) -> Result<(u32, u64, u64), Errno> {
    match answer.outcome {
        Outcome::Written { count, size } => u32::try_from(count)
            .map(|count| (count, size, answer.note.stamp))
            .map_err(|_| errno(Ended::Protocol)),
        _ => Err(errno(Ended::Protocol)),
    }
}
