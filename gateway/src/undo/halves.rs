//! Operations that a kill cut in two. Replacing takes two steps: a directory is exchanged with the one that it replaces,
//! which then goes into the vault; a file that is replaced gets a name in the vault, and then loses its own. At the next
//! start, before anything else happens, the first is completed and the second taken back: nobody sees a half, a guest's
//! repeated request finds one of two states, and an undo finds what its record tells.
//!
//! Only records that nothing followed can be of such operations: the names are locked until both steps are done.

use std::sync::Arc;

use rustix::fs::{FileType, OFlags, openat};
use rustix::io::Errno;

use super::log::Log;
use super::place::Places;
use super::plan::{Story, UndoError};
use super::record::{At, Object, Record, What};
use super::{INTERVAL_US, Undo};
use crate::gate::refusal::Checked;
use crate::tree::{Node, Stat};

/// A replacement that the log tells of.
struct Replacing<'a> {
    seq: u64,
    object: Object,
    other: Object,
    from: &'a At,
    to: &'a At,
}

impl Undo {
    /// Completes or takes back what a kill of the former process left half done.
    ///
    /// # Errors
    /// Those of the vault's file system and of reading the logs.
    pub(super) fn mend_halves(&self) -> Result<(), Errno> {
        for log in self.all_logs() {
            let mut suspects = vec![];
            for record in log.take_replacing() {
                if self.is_suspect(&log, &record)? {
                    suspects.push(record);
                }
            }
            let Some(first) = suspects.iter().map(|record| record.seq).min() else { continue };
            let story = match Story::read(self, first - first % INTERVAL_US) {
                Ok(story) => story,
                Err(UndoError::Io(_)) => return Err(Errno::IO),
                // Too much to look at: an undo tells what does not fit.
                Err(_) => continue,
            };
            for record in &suspects {
                let Some(replacing) = Replacing::of(record).filter(|half| !half.is_followed(&story)) else {
                    continue;
                };
                // What cannot be found has been moved by somebody else: it is no half of this.
                let _ = self.mend(&log, &story.places, &replacing);
            }
        }
        Ok(())
    }

    /// Whether the vault looks as it does between the two steps.
    fn is_suspect(&self, log: &Log, record: &Record) -> Result<bool, Errno> {
        let What::Renamed { directory, .. } = &record.what else { return Ok(false) };
        match self.vault.stat(&log.application, record.seq) {
            Ok(stat) => Ok(!directory && stat.nlink() > 1),
            Err(Errno::NOENT) => Ok(*directory),
            Err(other) => Err(other),
        }
    }

    fn mend(&self, log: &Log, places: &Places, half: &Replacing<'_>) -> Checked<()> {
        let tree = &*self.tree;
        let (from, to) = (places.find(tree, half.from.dir)?, places.find(tree, half.to.dir)?);
        let named =
            |dir: &Arc<Node>, name: &[u8]| -> Checked<Stat> { tree.stat_at(&*tree.fd_of(dir)?, name) };
        let (old, new) = (named(&from, &half.from.name)?, named(&to, &half.to.name)?);
        if old.kind() == FileType::Directory
            && (Object::told(&old), Object::told(&new)) == (half.other, half.object)
        {
            let fd = tree.fd_of(&from)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = openat(&*fd, half.from.name.as_slice(), flags, rustix::fs::Mode::empty())?;
            if super::vault::list(&inside)?.is_empty() {
                self.vault.take(&fd, &half.from.name, &log.application, half.seq, false)?;
            }
        } else if (Object::told(&old), Object::told(&new)) == (half.object, half.other)
            && new.kind() != FileType::Directory
        {
            // Its own name is there: the one in the vault is one too many.
            if self.vault.is_marked(&log.application, half.seq)? {
                tree.vaulted.remove(new.ino());
            }
            self.vault.destroy(&log.application, half.seq)?;
        }
        Ok(())
    }
}

impl Replacing<'_> {
    fn of(record: &Record) -> Option<Replacing<'_>> {
        match &record.what {
            What::Renamed { object, from, to, replaced: Some(other), kept: true, .. } => {
                Some(Replacing { seq: record.seq, object: *object, other: *other, from, to })
            }
            _ => None,
        }
    }

    /// Whether something was done later with what it is about: then it was done, too.
    fn is_followed(&self, story: &Story) -> bool {
        let about = |object: &Object| *object == self.object || *object == self.other;
        let named = |at: &At| at == self.from || at == self.to;
        story.all.iter().rev().take_while(|told| told.record.seq > self.seq).any(|told| {
            match &told.record.what {
                What::Void { record } | What::Done { record } => *record == self.seq,
                What::Making { at, .. } => named(at),
                What::Linked { object, at }
                | What::Removed { object, at, .. }
                | What::Returned { object, at }
                | What::Beside { object, at, .. } => about(object) || named(at),
                What::Renamed { object, from, to, .. } => about(object) || named(from) || named(to),
                What::Exchanged { one, from, other, to } => {
                    about(one) || about(other) || named(from) || named(to)
                }
                _ => false,
            }
        })
    }
}
