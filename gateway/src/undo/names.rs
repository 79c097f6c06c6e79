//! Taking changes of names back: what was made goes, what was deleted or replaced comes back, what was moved goes to where it
//! was. Each looks first at what has the name now, and leaves what is somebody else's.

use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use strongroom_protocol::op::{Meant, RenameMode};

use super::OWN_NAME;
use super::carry::Carry;
use super::place::Spot;
use super::plan::Verdict;
use super::record::{At, Object, Sides};
use crate::gate::refusal::{Checked, Refusal};
use crate::leases::Change;
use crate::store::{self, Reach};
use crate::tree::{Node, Stat};

impl Carry<'_> {
    /// What has a name at present.
    pub(super) fn look(&self, at: &At) -> Option<Object> {
        if let Some(pretended) = self.pretended.get(at) {
            return *pretended;
        }
        let dir = self.places.find(self.tree(), at.dir).ok()?;
        let (node, _) = self.tree().lookup(&dir, &at.name).ok()?;
        Some(Object::of(&node))
    }

    pub(super) fn find_dir(&self, dir: Object) -> Checked<Arc<Node>> {
        let node = self.places.find(self.tree(), dir)?;
        if node.is_dir() { Ok(node) } else { Err(Refusal::errno(Errno::NOTDIR)) }
    }

    /// Takes away what was made.
    pub(super) fn unmake(&mut self, seq: u64, at: &At, after: u64) -> Checked<()> {
        let made = self.plan.story.made.get(&seq).copied();
        let Some(now) = self.look(at) else {
            // The steps before this one have taken back what the same one did to it.
            let moved = |object: &Object| {
                !self.plan.passing.contains(object) && self.places.find(self.tree(), *object).is_ok()
            };
            if let Some(object) = made.filter(moved) {
                self.tell(self.object_path(object), Verdict::Kept, None, "somebody else moved it since");
            }
            return Ok(());
        };
        let object = match made {
            Some(object) => object,
            // The process died before it could tell. What was born since, and is nobody else's, is what it made.
            None if now.generation >= after && !self.is_known(now) => now,
            None => return Ok(()),
        };
        if self.plan.passing.contains(&object) {
            return Ok(());
        }
        self.take_away(object, now, at)
    }

    fn is_known(&self, object: Object) -> bool {
        self.plan.story.made.values().any(|made| *made == object)
    }

    pub(super) fn unname(&mut self, object: Object, at: &At) -> Checked<()> {
        match self.look(at) {
            Some(now) => self.take_away(object, now, at),
            None => Ok(()),
        }
    }

    fn take_away(&mut self, object: Object, now: Object, at: &At) -> Checked<()> {
        let path = self.path(at);
        if now != object {
            self.tell(path, Verdict::Kept, None, "something else has its name since");
            return Ok(());
        }
        if let Some((sides, who)) = self.conflict(object)
            && (sides.has(Sides::CONTENT) || sides.has(Sides::XATTRS) || sides.has(Sides::MODE))
        {
            self.tell(path, Verdict::Kept, None, format!("{who} changed it since"));
            return Ok(());
        }
        if self.dry {
            if self.has_foreign_entries(object) {
                self.tell(path, Verdict::Kept, None, "others put something into it since");
                return Ok(());
            }
            self.pretended.insert(at.clone(), None);
            self.tell(path, Verdict::Restored, None, "");
            return Ok(());
        }
        let dir = self.find_dir(at.dir)?;
        let (node, _) = self.tree().lookup(&dir, &at.name)?;
        let how = if node.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        drop(node);
        match self
            .authority
            .again(|| store::unlink::remove(&self.authority, &dir, &at.name, how, Meant::Whichever))
        {
            Ok((_, settle)) => {
                self.changed(settle);
                // Undos run one after the other: the newest record of their log is that of the removal.
                let kept = self.authority.actor.log.get().map_or(0, |log| log.newest());
                self.places.lose(object, at);
                self.places.add(object, Spot::Kept(OWN_NAME.into(), kept));
                self.tell(path, Verdict::Restored, None, "");
                Ok(())
            }
            Err(refusal) if refusal.is(Errno::NOTEMPTY) => {
                self.tell(path, Verdict::Kept, None, "others put something into it since");
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// In a dry run: whether a directory holds what would not be taken away.
    fn has_foreign_entries(&self, object: Object) -> bool {
        let entries = || {
            let node = self.places.find(self.tree(), object).ok().filter(|node| node.is_dir())?;
            let fd = self.tree().open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY).ok()?.0;
            super::vault::list(&fd).ok()
        };
        entries().into_iter().flatten().any(|(name, _)| {
            let at = At { dir: object, name };
            !matches!(self.pretended.get(&at), Some(None))
        })
    }

    /// Puts what is in the vault back to its name.
    pub(super) fn bring_back(&mut self, application: &str, seq: u64, object: Object, at: &At) -> Checked<()> {
        let path = self.path(at);
        let there = self.look(at);
        if there == Some(object) {
            // Done before.
            self.tell(path, Verdict::Restored, None, "");
            return Ok(());
        }
        let kept = match self.undo().vault.stat(application, seq) {
            Ok(stat) if Object::told(&stat) == object => stat,
            Ok(_) | Err(Errno::NOENT) => {
                if self.places.find(self.tree(), object).is_ok() {
                    self.tell(path, Verdict::Kept, None, "it has another name by now");
                } else {
                    self.tell(path, Verdict::Expired, None, "what was kept of it is forgotten");
                }
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        };
        if self.dry {
            match there {
                None => {
                    self.pretended.insert(at.clone(), Some(object));
                    self.places.pretend(object, at);
                    self.tell(path, Verdict::Restored, None, "");
                }
                Some(_) => {
                    let beside = [&path[..], self.suffix(seq).as_bytes()].concat();
                    self.tell(path, Verdict::Kept, Some(beside), "something else has its name since");
                }
            }
            return Ok(());
        }
        // Where its directory is gone, the nearest one above that is left.
        let (mut dir_object, mut why) = (at.dir, "");
        let dir = loop {
            match self.find_dir(dir_object) {
                Ok(dir) => break dir,
                Err(refusal) => {
                    let above = self.places.name_of(dir_object).map(|at| at.dir);
                    dir_object = above.filter(|above| *above != dir_object).ok_or(refusal)?;
                    why = "its directory is gone";
                }
            }
        };
        if there.is_some() {
            why = "something else has its name since";
        }
        let mut name = if why.is_empty() { at.name.clone() } else { self.beside_name(&at.name, seq, 0) };
        for n in 1..100 {
            match self.authority.again(|| self.put_back(application, seq, &kept, &dir, &name)) {
                Ok(()) => {
                    self.places.add(object, Spot::At(At { dir: dir_object, name: name.clone() }));
                    break;
                }
                Err(refusal) if refusal.is(Errno::EXIST) => {
                    why = "something else has its name since";
                    name = self.beside_name(&at.name, seq, n);
                }
                Err(other) => return Err(other),
            }
        }
        if why.is_empty() {
            self.tell(path, Verdict::Restored, None, "");
        } else {
            let beside = self.path(&At { dir: dir_object, name });
            self.tell(path, Verdict::Kept, Some(beside), why);
        }
        Ok(())
    }

    fn put_back(
        &self,
        application: &str,
        seq: u64,
        kept: &Stat,
        dir: &Arc<Node>,
        name: &[u8],
    ) -> Checked<()> {
        let tree = self.tree();
        let fd = tree.fd_of(dir)?;
        let change = tree.change(dir, None)?;
        match tree.stat_at(&fd, name) {
            Err(refusal) if refusal.is(Errno::NOENT) => {}
            Err(other) => return Err(other),
            Ok(_) => return Err(Refusal::errno(Errno::EXIST)),
        }
        let links = tree.links(kept);
        let links = if kept.nlink() == 1 { 0 } else { links };
        let size = if kept.kind() == FileType::RegularFile { kept.size() } else { 0 };
        let new = tree.meters_at(dir);
        let names = new.reserve(&[], 0, 1)?;
        let old = match tree.known(kept) {
            Some(node) if links > 0 => tree.meters_of(&node, kept),
            _ => crate::quota::MeterSet::default(),
        };
        let bytes = if links == 0 { new.clone() } else { new.without(&old) }.reserve(&[], size, 0)?;
        self.authority.changing(&[(dir, Change::Name(name))])?;
        // The object is named before it has the name: after a kill in between, an undo of this undo knows what to take away.
        let making = self.authority.undo().returning(Object::told(kept), dir, &fd, name)?;
        self.undo().vault.restore(application, seq, &fd, name)?;
        names.keep();
        bytes.keep();
        tree.vaulted.remove(kept.ino());
        let stat = tree.stat_at(&fd, name)?;
        if let Some(making) = making {
            making.made(&stat);
        }
        // What it made is only the name: the object's content is no new one of its own.
        self.undo().marks.forget(Object::told(&stat));
        tree.returned(dir, name, &stat);
        if links > 0 {
            new.linked(stat.ino(), (links == 1).then_some(&old));
        }
        drop(change);
        self.changed(true);
        Ok(())
    }

    /// Gives a renamed object its former name.
    pub(super) fn move_back(&mut self, seq: u64, object: Object, from: &At, to: &At) -> Checked<()> {
        if self.plan.passing.contains(&object) {
            return Ok(());
        }
        let path = self.path(from);
        let (old, new) = (self.look(from), self.look(to));
        if old == Some(object) {
            self.tell(path, Verdict::Restored, None, "");
            return Ok(());
        }
        if new != Some(object) {
            if self.is_taken_away(object) {
                return Ok(());
            }
            self.tell(path, Verdict::Kept, None, "somebody else moved or deleted it since");
            return Ok(());
        }
        if self.dry {
            self.pretended.insert(to.clone(), None);
            if old.is_none() {
                self.pretended.insert(from.clone(), Some(object));
                self.places.pretend(object, from);
                self.tell(path, Verdict::Restored, None, "");
            } else {
                self.tell(path, Verdict::Kept, None, "something else has its name since");
            }
            return Ok(());
        }
        let target = self.find_dir(to.dir)?;
        let Ok(source) = self.find_dir(from.dir) else {
            self.tell(path, Verdict::Kept, None, "its former directory is gone");
            return Ok(());
        };
        let mut name = from.name.clone();
        for n in 0..100 {
            let mode = RenameMode::NoReplace;
            match self.authority.again(|| {
                let (from, to) = ((&target, &*to.name), (&source, &*name));
                store::rename::rename_in(&self.authority, from, to, mode, Meant::Whichever)
            }) {
                Ok((_, settle)) => {
                    self.changed(settle);
                    self.places.lose(object, to);
                    self.places.add(object, Spot::At(At { dir: from.dir, name: name.clone() }));
                    break;
                }
                Err(refusal) if refusal.is(Errno::EXIST) => name = self.beside_name(&from.name, seq, n),
                Err(other) => return Err(other),
            }
        }
        if name == from.name {
            self.tell(path, Verdict::Restored, None, "");
        } else {
            let beside = self.path(&At { dir: from.dir, name });
            self.tell(path, Verdict::Kept, Some(beside), "something else has its name since");
        }
        Ok(())
    }

    /// Whether an undo has taken the object away before.
    pub(super) fn is_taken_away(&self, object: Object) -> bool {
        matches!(self.places.of(object).next(), Some(Spot::Kept(application, _)) if **application == *OWN_NAME)
    }

    pub(super) fn exchange_back(
        &mut self,
        (one, from): (Object, &At),
        (other, to): (Object, &At),
    ) -> Checked<()> {
        let paths = [self.path(from), self.path(to)];
        let (old, new) = (self.look(from), self.look(to));
        let verdict = if (old, new) == (Some(one), Some(other)) {
            Verdict::Restored
        } else if (old, new) == (Some(other), Some(one)) {
            if self.dry {
                self.pretended.insert(from.clone(), Some(one));
                self.pretended.insert(to.clone(), Some(other));
                self.places.pretend(one, from);
                self.places.pretend(other, to);
            } else {
                let (source, target) = (self.find_dir(from.dir)?, self.find_dir(to.dir)?);
                let mode = RenameMode::Exchange;
                let (_, settle) = self.authority.again(|| {
                    store::rename::rename_in(
                        &self.authority,
                        (&source, &from.name),
                        (&target, &to.name),
                        mode,
                        Meant::Whichever,
                    )
                })?;
                self.changed(settle);
                self.places.lose(one, to);
                self.places.lose(other, from);
                self.places.add(one, Spot::At(from.clone()));
                self.places.add(other, Spot::At(to.clone()));
            }
            Verdict::Restored
        } else {
            Verdict::Kept
        };
        let why =
            if verdict == Verdict::Kept { "somebody else moved or deleted one of them since" } else { "" };
        paths.into_iter().for_each(|path| self.tell(path, verdict, None, why));
        Ok(())
    }
}
