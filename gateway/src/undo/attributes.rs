//! Putting attributes back: modes, owners and times when all else is done, because all else changes times; extended attributes
//! step by step.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fremovexattr, fsetxattr,
    utimensat,
};
use rustix::io::Errno;

use super::carry::{Carry, words};
use super::plan::Verdict;
use super::record::{Attributes, Object, Sides};
use crate::gate::refusal::Checked;
use crate::leases::Change;
use crate::store::Reach;
use crate::tree::{Stat, Tree};

/// What changed objects' attributes were.
#[derive(Default)]
pub(super) struct Former {
    /// The sides that were changed.
    pub(super) sides: Sides,
    /// The oldest that are told.
    pub(super) before: Option<Attributes>,
    /// The steps that are taken when these are set.
    pub(super) steps: Vec<u64>,
}

impl Carry<'_> {
    pub(super) fn restore_xattr(&mut self, object: Object, name: &[u8], old: Option<&[u8]>) -> Checked<()> {
        let path = self.object_path(object);
        if let Some((sides, who)) = self.conflict(object)
            && sides.has(Sides::XATTRS)
        {
            self.tell(path, Verdict::Kept, None, format!("{who} changed its extended attributes since"));
            return Ok(());
        }
        let Ok(node) = self.places.find(self.tree(), object) else {
            self.tell(path, Verdict::Kept, None, "somebody else deleted it since");
            return Ok(());
        };
        if !self.dry {
            let (file, _) = self.tree().open_node(&node, OFlags::RDONLY)?;
            self.authority.again(|| {
                let _size = node.size.lock();
                self.authority.changing(&[(&node, Change::All { data: false, open: false })])?;
                self.authority.undo().xattr(&node, &file, name)?;
                match old {
                    Some(value) => fsetxattr(&file, name, value, XattrFlags::empty())?,
                    None => match fremovexattr(&file, name) {
                        Ok(()) | Err(Errno::NODATA) => {}
                        Err(other) => return Err(other.into()),
                    },
                }
                Ok(())
            })?;
            self.changed(false);
        }
        let former = self.attributes.entry(object).or_default();
        former.sides = former.sides.with(Sides::XATTRS);
        self.tell(path, Verdict::Restored, None, "");
        Ok(())
    }

    /// Sets modes, owners and times as they were.
    pub(super) fn set_attributes(&mut self) {
        for (object, Former { sides, before, steps }) in std::mem::take(&mut self.attributes) {
            // Also where somebody else's stay: it was looked at, and a later undo has nothing to do there.
            let done = |carry: &Carry<'_>| steps.iter().for_each(|seq| carry.step_done(*seq));
            let Some(before) = before else {
                done(self);
                continue;
            };
            let theirs = self.conflict(object);
            let taken = |side: Sides| theirs.as_ref().is_some_and(|(theirs, _)| theirs.has(side));
            let mode = sides.has(Sides::MODE) && !taken(Sides::MODE);
            let changes_times =
                [Sides::CONTENT, Sides::TIMES, Sides::ENTRIES].into_iter().filter(|side| sides.has(*side));
            let times = changes_times.clone().count() > 0
                && !changes_times.clone().any(taken)
                && !taken(Sides::TIMES);
            let wanted = if mode { Sides::MODE } else { Sides::default() };
            let wanted = wanted.with(if times { Sides::TIMES } else { Sides::default() });
            let path = self.object_path(object);
            if sides.has(Sides::MODE) && !mode {
                let who = theirs.map(|(_, who)| who).unwrap_or_default();
                self.tell(
                    path.clone(),
                    Verdict::Kept,
                    None,
                    format!("{who} changed its mode or owner since"),
                );
            }
            if sides.has(Sides::MODE) || sides.has(Sides::TIMES) {
                self.tell(path.clone(), Verdict::Restored, None, "");
            }
            if self.dry || wanted == Sides::default() {
                done(self);
                continue;
            }
            let set = || -> Checked<()> {
                let Some((node, fd)) = self.reach(object, OFlags::PATH)? else { return Ok(()) };
                let _size = node.size.lock();
                self.authority.changing(&[(&node, Change::All { data: false, open: false })])?;
                self.authority.undo().attributes(&node, wanted, || Ok(Stat::of(&fd)?))?;
                set_attributes(self.tree(), &fd, wanted, &before)
            };
            match self.authority.again(set) {
                Ok(()) => {
                    self.changed(false);
                    done(self);
                }
                Err(refusal) => self.tell(path, Verdict::Failed, None, words(&refusal)),
            }
        }
    }
}

pub(super) fn set_attributes(tree: &Tree, fd: &OwnedFd, sides: Sides, before: &Attributes) -> Checked<()> {
    if sides.has(Sides::MODE) {
        let now = Attributes::of(&Stat::of(fd)?);
        if now.owner != before.owner {
            let (uid, gid) = before.owner;
            chownat(fd, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
        }
        if FileType::from_raw_mode(before.mode) != FileType::Symlink {
            tree.chmod(fd, before.mode & 0o7777)?;
        }
    }
    if sides.has(Sides::TIMES) {
        let time = |(secs, nanos): (i64, u32)| Timespec { tv_sec: secs, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time(before.atime), last_modification: time(before.mtime) };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}
