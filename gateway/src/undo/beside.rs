//! Old versions of what others changed since, put beside it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;
use strongroom_contracts::armour::rfc3339;

use super::attributes::set_attributes;
use super::carry::{Carry, words};
use super::plan::Verdict;
use super::record::{At, Object, Record, Sides, What};
use crate::gate::refusal::{Checked, Refusal};
use crate::leases::Change;
use crate::store::Reach;
use crate::tree::{Node, Stat};

/// The longest name.
const NAME_MAX: usize = 255;

impl Carry<'_> {
    /// Puts the old versions of what others changed since beside it.
    pub(super) fn put_beside(&mut self) {
        for (object, first) in std::mem::take(&mut self.beside) {
            let path = self.object_path(object);
            let who = self.conflict(object).map(|(_, who)| who).unwrap_or_default();
            let why = format!("{who} changed it since");
            if self.dry {
                let beside = [&path[..], self.suffix(first).as_bytes()].concat();
                self.tell(path, Verdict::Kept, Some(beside), why);
                continue;
            }
            if self.beside_before.contains(&object) {
                self.tell(path, Verdict::Kept, None, why);
                continue;
            }
            match self.put_one_beside(object, first) {
                Ok(beside) => self.tell(path, Verdict::Kept, beside, why),
                Err(refusal) => self.tell(path, Verdict::Failed, None, words(&refusal)),
            }
        }
    }

    fn put_one_beside(&mut self, object: Object, first: u64) -> Checked<Option<Vec<u8>>> {
        let Ok(node) = self.places.find(self.tree(), object) else { return Ok(None) };
        let (dir, own_name) = node.any_link().ok_or(Refusal::STALE)?;
        let (old, rewound) = self.undo().version(self.tree(), &self.plan.story, &node, first)?;
        if rewound.forgotten {
            return Ok(None);
        }
        if let Some(before) = self.attributes.get(&object).and_then(|former| former.before.as_ref()) {
            set_attributes(self.tree(), &old, Sides::ALL, before)?;
        }
        let mut name = vec![];
        for n in 0..100 {
            name = self.beside_name(own_name.as_bytes(), first, n);
            match self.authority.again(|| self.link_beside(&old, object, &dir, &name)) {
                Ok(()) => break,
                Err(refusal) if refusal.is(Errno::EXIST) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(Some(self.path(&At { dir: Object::of(&dir), name })))
    }

    fn link_beside(&self, old: &OwnedFd, of: Object, dir: &Arc<Node>, name: &[u8]) -> Checked<()> {
        let tree = self.tree();
        let fd = tree.fd_of(dir)?;
        let change = tree.change(dir, None)?;
        let stat = Stat::of(old)?;
        let room = tree.meters_at(dir).reserve(&[], stat.size(), 1)?;
        self.authority.changing(&[(dir, Change::Name(name))])?;
        let making = self.authority.undo().returning(Object::told(&stat), dir, &fd, name)?;
        let at = At { dir: Object::of(dir), name: name.to_vec() };
        let what = What::Beside { object: Object::told(&stat), at, of };
        let undo = self.undo();
        let record = Record { seq: undo.stamp(), contract: 0, window: 0, cost: 0, what };
        undo.append(&self.authority.actor, [record])?;
        let path = format!("/proc/self/fd/{}", old.as_raw_fd());
        linkat(CWD, &*path, &*fd, name, AtFlags::SYMLINK_FOLLOW)?;
        room.keep();
        let stat = tree.stat_at(&fd, name)?;
        if let Some(making) = making {
            making.made(&stat);
        }
        tree.note(dir, name, &stat);
        drop(change);
        self.changed(false);
        Ok(())
    }

    pub(super) fn suffix(&self, seq: u64) -> String {
        let time = rfc3339(seq / 1_000_000);
        let application = self.filter.application.trim_start_matches('@');
        format!(
            " (before {application} {} {})",
            time.get(..10).unwrap_or_default(),
            time.get(11..16).unwrap_or_default()
        )
    }

    /// A name for the old version of what has this name.
    pub(super) fn beside_name(&self, name: &[u8], seq: u64, n: usize) -> Vec<u8> {
        let suffix = self.suffix(seq);
        let suffix = if n == 0 { suffix } else { format!("{suffix} {}", n + 1) };
        let most = NAME_MAX.saturating_sub(suffix.len());
        [name.get(..name.len().min(most)).unwrap_or_default(), suffix.as_bytes()].concat()
    }
}
