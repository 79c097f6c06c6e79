//! What is kept before something is changed.
//!
//! Called by the store with the locks held that order the change: the names lock of the directories, the size lock of the
//! object. INVARIANT: if one of these functions fails, nothing has been changed, and the store must not change anything.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;

use super::record::{At, Attributes, Object, Record, Saved, Sides, What};
use super::vault::list;
use super::{Actor, Undo};
use crate::gate::refusal::{Checked, Refusal};
use crate::tree::{Node, Stat, Tree};

/// Overwritten bytes up to this many are kept in the log itself.
const MOST_INLINE: u64 = 64 * 1024;
/// A file of which more is overwritten at once is cloned where that is possible: cloning makes the kernel write the file
/// out, which does not pay for less.
const LEAST_CLONED: u64 = 256 * 1024;
/// The deepest chain of directories whose places are told.
const MOST_PLACES: usize = 128;
/// The most names of an object that are told.
const MOST_NAMES: usize = 8;
/// The longest value of an extended attribute (limits.h).
const MOST_XATTR: usize = 65_536;

/// What a permit offers to keep things with; nothing where nobody undoes.
#[derive(Clone, Copy)]
pub(crate) struct Capture<'a> {
    room: Option<(&'a Undo, &'a Actor)>,
    tree: &'a Tree,
    /// For how long, in seconds; 0: it is only told that something happened.
    window: u64,
}

/// A name that is about to be made. Void unless [`Making::made`] is called.
#[must_use]
pub(crate) struct Making<'a> {
    capture: Capture<'a>,
    seq: u64,
    /// The record tells what gets the name.
    told: bool,
}

impl<'a> Capture<'a> {
    /// For the grants of a session.
    pub(crate) fn new(
        undo: Option<&'a Undo>,
        actor: Option<&'a Actor>,
        tree: &'a Tree,
        window: u64,
    ) -> Capture<'a> {
        let any = |undo: &&Undo| undo.any.load(std::sync::atomic::Ordering::Relaxed);
        Capture { room: undo.filter(any).zip(actor), tree, window }
    }

    /// Whether what is destroyed is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.room.is_some() && self.window > 0
    }

    fn record(&self, undo: &Undo, cost: u64, what: What) -> Record {
        Record { seq: undo.stamp(), contract: 0, window: self.window, cost, what }
    }

    /// Notes that sides of an object are about to change. Returns the records that are due: its place, its attributes.
    fn touch(
        &self,
        undo: &Undo,
        actor: &Actor,
        node: &Node,
        sides: Sides,
        stat: impl FnOnce() -> Checked<Stat>,
    ) -> Checked<Vec<Record>> {
        let object = Object::of(node);
        let (known, placed) =
            self.mark(undo, actor, object, |mark, segment| (mark.sides, mark.segment == segment))?;
        if known.has(sides) {
            return Ok(vec![]);
        }
        // With the first change of the contents once more: the size is theirs.
        let tells = known == Sides::default() || sides.has(Sides::CONTENT);
        let before = if tells && self.window > 0 { Some(stat()?) } else { None };
        let mut records = vec![];
        if !placed {
            self.places(undo, actor, node, &mut records)?;
        }
        let what = What::Changed {
            object,
            sides,
            before: before.as_ref().map(Attributes::of),
            saved: Saved::Nothing,
        };
        records.push(self.record(undo, 0, what));
        Ok(records)
    }

    fn mark<T>(
        &self,
        undo: &Undo,
        actor: &Actor,
        object: Object,
        work: impl FnOnce(&mut super::marks::Mark, u32) -> T,
    ) -> Checked<T> {
        let segment = undo.log_of(actor)?.segment();
        // What was noted where nothing is kept does not count where something is.
        let writer = actor.number | if self.window == 0 { super::UNKEPT } else { 0 };
        Ok(undo.marks.of(object, writer, undo.interval(), |mark| work(mark, segment)))
    }

    /// Writes records and notes what they say of an object.
    fn write(
        &self,
        undo: &Undo,
        actor: &Actor,
        object: Object,
        records: Vec<Record>,
        note: impl FnOnce(&mut super::marks::Mark),
    ) -> Checked<()> {
        let last = records.iter().map(|record| record.seq).max().unwrap_or(0);
        undo.append(actor, records)?;
        self.mark(undo, actor, object, |mark, segment| {
            mark.segment = segment;
            mark.last = mark.last.max(last);
            note(mark);
        })
    }

    /// Tells where an object is, and the directories above that were not told of yet.
    fn places(&self, undo: &Undo, actor: &Actor, node: &Node, records: &mut Vec<Record>) -> Checked<()> {
        // All of them: later some may be gone.
        for (parent, name) in node.known_links(MOST_NAMES) {
            let at = At { dir: Object::of(&parent), name: name.as_bytes().to_vec() };
            records.push(self.record(undo, 0, What::Place { object: Object::of(node), at }));
            self.places_above(undo, actor, parent, records)?;
        }
        Ok(())
    }

    fn places_above(
        &self,
        undo: &Undo,
        actor: &Actor,
        mut dir: Arc<Node>,
        records: &mut Vec<Record>,
    ) -> Checked<()> {
        for _ in 0..MOST_PLACES {
            let object = Object::of(&dir);
            let told = self.mark(undo, actor, object, |mark, segment| {
                let told = mark.segment == segment;
                mark.segment = segment;
                told
            })?;
            let Some((parent, name)) = dir.any_link().filter(|_| !told) else { break };
            let at = At { dir: Object::of(&parent), name: name.as_bytes().to_vec() };
            records.push(self.record(undo, 0, What::Place { object, at }));
            dir = parent;
        }
        Ok(())
    }

    /// The bytes from `start` to `end` are about to be overwritten, or cut off; what lies at or behind the end of the file
    /// is only told to be new. `file`: open in whatever way.
    pub(crate) fn content(
        &self,
        node: &Node,
        file: &OwnedFd,
        stat: &Stat,
        start: u64,
        end: u64,
    ) -> Checked<()> {
        let Some((undo, actor)) = self.room else { return Ok(()) };
        let object = Object::of(node);
        let mut records = self.touch(undo, actor, node, Sides::CONTENT, || Ok(*stat))?;
        if self.window == 0 {
            if records.is_empty() {
                return Ok(());
            }
            return self
                .write(undo, actor, object, records, |mark| mark.sides = mark.sides.with(Sides::CONTENT));
        }
        let begins = !records.is_empty();
        let (unsaved, cloned) = self.mark(undo, actor, object, |mark, _| {
            if begins {
                mark.base = mark.base.min(stat.size());
            }
            (mark.unsaved(start, end), mark.cloned)
        })?;
        if cloned {
            let shared = end.min(stat.size()).saturating_sub(start);
            undo.room(actor, shared)?;
            undo.log_of(actor)?.charge(shared);
        }
        let kept = self.keep_bytes(undo, actor, file, stat, &unsaved, &mut records);
        let clone = match kept {
            Ok(clone) => clone,
            Err(refusal) => {
                undo.marks.forget(object);
                return Err(refusal);
            }
        };
        if records.is_empty() {
            return Ok(());
        }
        let noted = self.write(undo, actor, object, records, |mark| {
            mark.sides = mark.sides.with(Sides::CONTENT);
            mark.cloned |= clone;
            unsaved.iter().for_each(|(start, end)| mark.save(*start, *end));
        });
        if noted.is_err() {
            undo.marks.forget(object);
        }
        noted
    }

    /// Whether a clone was made.
    fn keep_bytes(
        &self,
        undo: &Undo,
        actor: &Actor,
        file: &OwnedFd,
        stat: &Stat,
        unsaved: &[(u64, u64)],
        records: &mut Vec<Record>,
    ) -> Checked<bool> {
        let total: u64 = unsaved.iter().map(|(start, end)| end - start).sum();
        if total == 0 {
            return Ok(false);
        }
        undo.room(actor, total)?;
        let object = Object::told(stat);
        let changed = |saved| What::Changed { object, sides: Sides::CONTENT, before: None, saved };
        let readable = self.tree.reopen(file, OFlags::RDONLY)?;
        let application = &actor.writer.application;
        if undo.vault.clones && total >= LEAST_CLONED {
            let record = self.record(undo, total, changed(Saved::Clone));
            match undo.vault.save_clone(&readable, application, record.seq) {
                Ok(()) => {
                    records.push(record);
                    return Ok(true);
                }
                // Not this file (a swap file, one without copy on write): as where there are no clones.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::XDEV | Errno::TXTBSY) => {
                    undo.vault.destroy(application, record.seq)?;
                }
                Err(other) => return Err(other.into()),
            }
        }
        for (start, end) in unsaved {
            let length = end - start;
            if length > MOST_INLINE {
                let saved = Saved::Range { offset: *start, length };
                let record = self.record(undo, length, changed(saved));
                undo.vault.save_range(&readable, application, record.seq, (*start, length))?;
                records.push(record);
            } else {
                let bytes = read_range(&readable, *start, length)?;
                records.push(self.record(undo, 0, changed(Saved::Bytes { offset: *start, bytes })));
            }
        }
        Ok(false)
    }

    /// A file is about to become `size` bytes long.
    pub(crate) fn resize(&self, node: &Node, file: &OwnedFd, stat: &Stat, size: u64) -> Checked<()> {
        self.content(node, file, stat, size.min(stat.size()), stat.size())
    }

    /// Mode, owner or times of an object are about to change.
    pub(crate) fn attributes(
        &self,
        node: &Node,
        sides: Sides,
        stat: impl FnOnce() -> Checked<Stat>,
    ) -> Checked<()> {
        let Some((undo, actor)) = self.room else { return Ok(()) };
        let records = self.touch(undo, actor, node, sides, stat)?;
        if records.is_empty() {
            return Ok(());
        }
        self.write(undo, actor, Object::of(node), records, |mark| mark.sides = mark.sides.with(sides))?;
        if sides.has(Sides::MODE) {
            self.must_sync_for(undo, actor, &[Object::of(node)])?;
        }
        Ok(())
    }

    /// An extended attribute is about to be set or removed.
    pub(crate) fn xattr(&self, node: &Node, file: &OwnedFd, name: &[u8]) -> Checked<()> {
        let Some((undo, actor)) = self.room else { return Ok(()) };
        let object = Object::of(node);
        let fresh = self.mark(undo, actor, object, |mark, _| mark.sides.has(Sides::ALL))?;
        if fresh {
            // Made in this interval.
            return Ok(());
        }
        let mut records = self.touch(undo, actor, node, Sides::XATTRS, || Ok(Stat::of(file)?))?;
        if self.window > 0 {
            let mut value = vec![0; MOST_XATTR];
            let old = match rustix::fs::fgetxattr(file, name, &mut *value) {
                Ok(length) => {
                    value.truncate(length);
                    Some(value)
                }
                Err(Errno::NODATA) => None,
                Err(other) => return Err(other.into()),
            };
            undo.room(actor, old.as_ref().map_or(0, Vec::len) as u64)?;
            records.push(self.record(undo, 0, What::Xattr { object, name: name.to_vec(), old }));
        }
        if records.is_empty() {
            return Ok(());
        }
        self.write(undo, actor, object, records, |mark| mark.sides = mark.sides.with(Sides::XATTRS))
    }

    /// A new name is about to be made in a directory.
    pub(crate) fn making(&self, dir: &Node, fd: &OwnedFd, name: &[u8]) -> Checked<Option<Making<'a>>> {
        self.naming(dir, fd, name, None)
    }

    /// An object that is there already is about to get a name, by an undo.
    pub(crate) fn returning(
        &self,
        object: Object,
        dir: &Node,
        fd: &OwnedFd,
        name: &[u8],
    ) -> Checked<Option<Making<'a>>> {
        self.naming(dir, fd, name, Some(object))
    }

    fn naming(
        &self,
        dir: &Node,
        fd: &OwnedFd,
        name: &[u8],
        object: Option<Object>,
    ) -> Checked<Option<Making<'a>>> {
        let Some((undo, actor)) = self.room.filter(|_| self.window > 0) else { return Ok(None) };
        if Stat::at(fd, name).is_ok() {
            // It will be refused. After a kill, what has the name then must not be taken for what was made.
            return Ok(None);
        }
        let mut records = self.touch(undo, actor, dir, Sides::ENTRIES, || Ok(Stat::of(fd)?))?;
        undo.room(actor, 0)?;
        let at = At { dir: Object::of(dir), name: name.to_vec() };
        let what = match object {
            None => What::Making { at, after: crate::engine::born_now() },
            Some(object) => What::Returned { object, at },
        };
        let record = self.record(undo, 0, what);
        let seq = record.seq;
        records.push(record);
        self.write_names(undo, actor, dir, records)?;
        Ok(Some(Making { capture: *self, seq, told: object.is_some() }))
    }

    fn write_names(&self, undo: &Undo, actor: &Actor, dir: &Node, records: Vec<Record>) -> Checked<()> {
        self.write(undo, actor, Object::of(dir), records, |mark| mark.sides = mark.sides.with(Sides::ENTRIES))
    }

    /// An object is about to get another name.
    pub(crate) fn linking(&self, node: &Node, dir: &Node, fd: &OwnedFd, name: &[u8]) -> Checked<()> {
        let Some((undo, actor)) = self.room.filter(|_| self.window > 0) else { return Ok(()) };
        if Stat::at(fd, name).is_ok() {
            // It will be refused.
            return Ok(());
        }
        let mut records = self.touch(undo, actor, dir, Sides::ENTRIES, || Ok(Stat::of(fd)?))?;
        self.places(undo, actor, node, &mut records)?;
        let at = At { dir: Object::of(dir), name: name.to_vec() };
        records.push(self.record(undo, 0, What::Linked { object: Object::of(node), at }));
        self.write_names(undo, actor, dir, records)
    }

    /// Takes a name away: into the vault where there is a window, for good elsewhere. The caller holds the names of the
    /// directory and, of a directory that is to be kept, its own.
    pub(crate) fn remove(
        &self,
        dir: &Node,
        fd: &OwnedFd,
        name: &[u8],
        node: &Node,
        stat: &Stat,
        directory: bool,
    ) -> Checked<()> {
        let how = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let kept = self.room.filter(|_| self.window > 0 && (stat.kind() == FileType::Directory) == directory);
        let Some((undo, actor)) = kept else {
            // Nothing is kept; or the kernel says why not.
            return Ok(unlinkat(fd, name, how)?);
        };
        if directory {
            self.must_be_empty(node)?;
        }
        let cost = stat.blocks_bytes();
        undo.room(actor, cost)?;
        let mut records = self.touch(undo, actor, dir, Sides::ENTRIES, || Ok(Stat::of(fd)?))?;
        let at = At { dir: Object::of(dir), name: name.to_vec() };
        let what = What::Removed { object: Object::told(stat), at, directory, kept: true };
        let record = self.record(undo, cost, what);
        let seq = record.seq;
        records.push(record);
        self.write_names(undo, actor, dir, records)?;
        self.must_sync_for(undo, actor, &[Object::told(stat)])?;
        let many = stat.nlink() > 1 && !directory;
        if let Err(error) = undo.vault.take(fd, name, &actor.writer.application, seq, many) {
            undo.later(actor, What::Void { record: seq });
            return Err(error.into());
        }
        if many || node.is_open() {
            self.tree.vaulted.add(stat.ino());
        }
        Ok(())
    }

    /// What is told of these objects has to outlast a loss of power, unless they were made so lately that nobody would miss
    /// them: a database's journal, a lock file.
    fn must_sync_for(&self, undo: &Undo, actor: &Actor, objects: &[Object]) -> Checked<()> {
        let writer = actor.number | if self.window == 0 { super::UNKEPT } else { 0 };
        let interval = undo.interval();
        if self.window > 0 && !objects.iter().all(|object| undo.marks.is_own(*object, writer, interval)) {
            undo.log_of(actor)?.must_sync();
        }
        Ok(())
    }

    fn must_be_empty(&self, node: &Node) -> Checked<()> {
        let fd = node.dir_fd().ok_or(Refusal::STALE)?;
        let real = rustix::fs::openat(
            &*fd,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        if list(&real)?.is_empty() { Ok(()) } else { Err(Refusal::errno(Errno::NOTEMPTY)) }
    }

    /// Renames, and keeps what is replaced. `target`: what has the new name.
    pub(crate) fn rename(
        &self,
        (from, from_fd, name): (&Node, &OwnedFd, &[u8]),
        (to, to_fd, new_name): (&Node, &OwnedFd, &[u8]),
        node: &Node,
        target: Option<(&Node, &Stat)>,
        flags: RenameFlags,
    ) -> Checked<()> {
        let act = || Ok::<_, Refusal>(renameat_with(from_fd, name, to_fd, new_name, flags)?);
        let Some((undo, actor)) = self.room else { return act() };
        if !flags.contains(RenameFlags::EXCHANGE)
            && target.is_some_and(|(other, _)| other.is_dir() != node.is_dir())
        {
            // The kernel says why not.
            return act();
        }
        let mut records = self.touch(undo, actor, from, Sides::ENTRIES, || Ok(Stat::of(from_fd)?))?;
        if from.id != to.id {
            records.extend(self.touch(undo, actor, to, Sides::ENTRIES, || Ok(Stat::of(to_fd)?))?);
        }
        if from.id != to.id {
            // Some file systems count the new parent of a directory as a change in it.
            records.extend(self.touch_moved(undo, actor, node, from_fd, name)?);
            // One that is replaced is exchanged first, too.
            if let Some((other, _)) = target {
                records.extend(self.touch_moved(undo, actor, other, to_fd, new_name)?);
            }
        }
        let at = |dir: &Node, name: &[u8]| At { dir: Object::of(dir), name: name.to_vec() };
        let (from_at, to_at) = (at(from, name), at(to, new_name));
        let object = Object::of(node);
        let target = target.filter(|_| !flags.contains(RenameFlags::NOREPLACE));
        if let Some((other, _)) = target.filter(|_| flags.contains(RenameFlags::EXCHANGE)) {
            let what = What::Exchanged { one: object, from: from_at, other: Object::of(other), to: to_at };
            let record = self.record(undo, 0, what);
            let seq = record.seq;
            records.push(record);
            self.write_both(undo, actor, from, to, records)?;
            self.must_sync_for(undo, actor, &[object, Object::of(other)])?;
            return act().inspect_err(|_| undo.later(actor, What::Void { record: seq }));
        }
        let keeps = self.window > 0 && target.is_some();
        let cost = if keeps { target.map_or(0, |(_, stat)| stat.blocks_bytes()) } else { 0 };
        if keeps {
            undo.room(actor, cost)?;
        }
        let what = What::Renamed {
            object,
            directory: node.is_dir(),
            from: from_at,
            to: to_at,
            replaced: target.map(|(other, _)| Object::of(other)),
            kept: keeps,
        };
        let record = self.record(undo, cost, what);
        let seq = record.seq;
        records.push(record);
        self.write_both(undo, actor, from, to, records)?;
        self.must_sync_for(undo, actor, &[object])?;
        if let Some((other, _)) = target {
            self.must_sync_for(undo, actor, &[Object::of(other)])?;
        }
        let Some((other, stat)) = target.filter(|_| keeps) else {
            return act().inspect_err(|_| undo.later(actor, What::Void { record: seq }));
        };
        let application = &actor.writer.application;
        let many = stat.nlink() > 1;
        let done = if other.is_dir() {
            self.replace_directory((from_fd, name), (to_fd, new_name), other, || {
                undo.vault.take(from_fd, name, application, seq, false)
            })
        } else {
            // Two names for a moment, never none: the new name always leads to the one or the other.
            undo.vault.link(to_fd, new_name, application, seq, many).map_err(Refusal::from).and_then(|()| {
                act().inspect_err(|_| {
                    // Without its record's effect, it would only be an unknown name in the vault.
                    let _ = undo.vault.destroy(application, seq);
                })
            })
        };
        if let Err(refusal) = done {
            undo.later(actor, What::Void { record: seq });
            return Err(refusal);
        }
        if !other.is_dir() && (many || other.is_open()) {
            self.tree.vaulted.add(stat.ino());
        }
        Ok(())
    }

    fn touch_moved(
        &self,
        undo: &Undo,
        actor: &Actor,
        node: &Node,
        fd: &OwnedFd,
        name: &[u8],
    ) -> Checked<Vec<Record>> {
        if !node.is_dir() {
            return Ok(vec![]);
        }
        let records = self.touch(undo, actor, node, Sides::TIMES, || Ok(Stat::at(fd, name)?))?;
        self.mark(undo, actor, Object::of(node), |mark, _| mark.sides = mark.sides.with(Sides::TIMES))?;
        Ok(records)
    }

    /// Puts a directory in the place of an empty one, which goes into the vault. The caller holds the names of the other.
    fn replace_directory(
        &self,
        from: (&OwnedFd, &[u8]),
        to: (&OwnedFd, &[u8]),
        other: &Node,
        take: impl FnOnce() -> Result<(), Errno>,
    ) -> Checked<()> {
        self.must_be_empty(other)?;
        renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE)?;
        take().map_err(|error| {
            let _ = renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE);
            Refusal::from(error)
        })
    }

    fn write_both(
        &self,
        undo: &Undo,
        actor: &Actor,
        one: &Node,
        other: &Node,
        records: Vec<Record>,
    ) -> Checked<()> {
        self.write_names(undo, actor, one, records)?;
        if one.id != other.id {
            self.mark(undo, actor, Object::of(other), |mark, segment| {
                mark.segment = segment;
                mark.sides = mark.sides.with(Sides::ENTRIES);
            })?;
        }
        Ok(())
    }

    /// An object is read: if somebody else changed it lately, that is worth a note.
    pub(crate) fn reading(&self, node: &Node) {
        self.note_reading(node, false);
    }

    /// An object's contents are sent before anybody asks for them: whether they are looked at, nobody hears.
    pub(crate) fn sending_ahead(&self, node: &Node) {
        self.note_reading(node, true);
    }

    fn note_reading(&self, node: &Node, ahead: bool) {
        let Some((undo, actor)) = self.room else { return };
        let object = Object::of(node);
        let writer = undo.marks.read(object, actor.number, ahead);
        let Some(writer) = writer.and_then(|number| undo.writer_of(number)) else { return };
        if writer.application == actor.writer.application {
            return;
        }
        let mut records = vec![];
        let noted = self.places(undo, actor, node, &mut records).and_then(|()| {
            let written_by = writer.application.clone();
            let what =
                if ahead { What::Sent { object, written_by } } else { What::Read { object, written_by } };
            records.push(Record { window: 0, ..self.record(undo, 0, what) });
            Ok(undo.append(actor, records)?)
        });
        // A note that is lost makes a later answer poorer; it is no reason to refuse the reading.
        drop(noted);
    }
}

impl Making<'_> {
    /// The object is there.
    pub(crate) fn made(self, stat: &Stat) {
        let Some((undo, actor)) = self.capture.room else { return };
        let object = Object::told(stat);
        if !self.told {
            undo.later(actor, What::Made { making: self.seq, object });
        }
        // All of it is the writer's own until the interval ends.
        let noted = self.capture.mark(undo, actor, object, |mark, segment| {
            mark.sides = Sides::ALL;
            mark.base = 0;
            mark.segment = segment;
            mark.last = self.seq;
        });
        drop(noted);
        std::mem::forget(self);
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if let Some((undo, actor)) = self.capture.room {
            undo.later(actor, What::Void { record: self.seq });
        }
    }
}

fn read_range(file: &OwnedFd, start: u64, length: u64) -> Checked<Vec<u8>> {
    // At most MOST_INLINE.
    let mut bytes = vec![0; length as usize];
    let mut filled = 0;
    while let Some(space) = bytes.get_mut(filled..).filter(|space| !space.is_empty()) {
        match rustix::io::pread(file, space, start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(other) => return Err(other.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
