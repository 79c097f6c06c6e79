//! Operations that make, remove and change names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Errno, RenameFlags};
use strongroom_protocol::attr::Node;
use strongroom_protocol::name::{MAX_PATH, Name};
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::reply::Outcome;

use super::{Caller, Fs, PERMISSIONS, Told};
use crate::errno::{Ended, of_name};
use crate::lease::{Found, Heard, OwnChange, Underway};
use crate::opening;
use crate::transport::{Answer, Payload};

/// A name that is about to go, told to the table.
struct Removal {
    underway: Arc<Underway>,
    /// What it stands for is not known.
    anything: Option<Anything>,
}

/// What loses its name by a request, if that is a directory.
fn directory_meant(op: &Op, grant: u16) -> Option<Node> {
    match op {
        Op::Rmdir { directory: Meant::Inode(ino), .. } | Op::Rename { directory: Meant::Inode(ino), .. } => {
            Some(Node { grant, ino: *ino })
        }
        _ => None,
    }
}

/// While it lives, nothing at all is opened without the gateway.
struct Anything(Fs);

impl std::ops::Drop for Anything {
    fn drop(&mut self) {
        self.0.state.leases.table().removals -= 1;
    }
}

impl Fs {
    /// The directory and name of something to be made or removed.
    fn spot(&self, parent: u64, name: &[u8]) -> Result<(Node, Name), Errno> {
        Ok((self.granted(parent)?, Name::new(name).map_err(of_name)?))
    }

    /// Makes something by the request that `op` gives for its place.
    fn make(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        data: Payload,
        op: impl FnOnce(Node, Name) -> Op,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let (parent, name) = match self.spot(place.0, place.1) {
            Ok(spot) => spot,
            Err(errno) => return done(Err(errno)),
        };
        let fs = self.clone();
        let op = op(parent, name.clone());
        let nodes = match &op {
            Op::Link { node, .. } => vec![parent, *node],
            _ => vec![parent],
        };
        let (directory, new) = (matches!(op, Op::Mkdir { .. }), !matches!(op, Op::Link { .. }));
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            let (told, made) = fs.made(parent, &name, result, &change, new)?;
            if directory {
                fs.state.leases.table().learn_empty(&made.1, made.0);
            }
            Ok(told)
        };
        self.change(caller, (op, data), &nodes, read, done);
    }

    /// A name was made, or not; `new`: its node was as well.
    pub(super) fn made(
        &self,
        parent: Node,
        name: &Name,
        result: Result<Answer<'_>, Errno>,
        change: &OwnChange,
        new: bool,
    ) -> Result<(Told, (Node, Heard)), Errno> {
        let found = result.as_ref().map_err(|errno| *errno).and_then(|answer| match &answer.outcome {
            Outcome::Entry(entry) | Outcome::Created(_, entry) => Ok(*entry),
            _ => Err(crate::errno::errno(Ended::Protocol)),
        });
        let (mut table, heard, sole) = self.ended(change, result.as_ref().ok(), Some(parent));
        let (Ok(found), Some(heard)) = (found, heard) else {
            table.changed_name(None, parent, name, None);
            return Err(found.err().unwrap_or(Errno::EIO));
        };
        let node = Node { grant: parent.grant, ino: found.node.ino };
        table.changed_name(Some(&heard), parent, name, Some(Some(node)));
        drop(table);
        let fresh = self.tell(parent, name, node, &found.attr);
        // Of what the change did not name, another one may have been under way.
        let asked = if sole.contains(&node) { heard.asked } else { change.asked() };
        let heard = Heard { asked, ..heard };
        if new {
            self.state.leases.table().born(node);
        }
        self.state.leases.table().learn(&heard, node, heard.note.node, &found.attr, fresh);
        let mut told = self.found(parent, name, node, &found.attr)?;
        // The kernel believes this answer whatever it was told meanwhile, so it may not keep the attributes.
        told.attr_ttl = Duration::ZERO;
        Ok((told, (node, heard)))
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let by = caller.credentials();
        let mode = mode & PERMISSIONS;
        let op = |parent, name| Op::Mkdir { parent, name, mode, by };
        self.make(caller, (parent, name), Payload::default(), op, done);
    }

    /// Makes a file, fifo, socket or device node.
    pub fn mknod(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        mode: u32,
        rdev: u32,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let by = caller.credentials();
        let op = |parent, name| Op::Mknod { parent, name, mode, rdev, by };
        self.make(caller, place, Payload::default(), op, done);
    }

    /// Makes a symlink.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        target: &[u8],
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        if target.len() >= MAX_PATH {
            return done(Err(Errno::ENAMETOOLONG));
        }
        let by = caller.credentials();
        let op = |parent, name| Op::Symlink { parent, name, by };
        self.make(caller, (parent, name), Payload::copy(target), op, done);
    }

    /// Makes another name for a file.
    pub fn link(
        &self,
        caller: Caller,
        number: u64,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let node = match (self.granted(number), self.granted(parent)) {
            (Ok(node), Ok(parent)) if node.grant != parent.grant => return done(Err(Errno::EXDEV)),
            (Ok(node), Ok(_)) => node,
            (Err(errno), _) | (_, Err(errno)) => return done(Err(errno)),
        };
        let name = name.to_vec();
        self.settled(caller, node, move |fs, ready| match ready {
            Ok(()) => {
                let op = |parent, name| Op::Link { node, parent, name };
                fs.make(caller, (parent, &name), Payload::default(), op, done);
            }
            Err(errno) => done(Err(errno)),
        });
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.remove(caller, (parent, name), |parent, name| Ok(Op::Unlink { parent, name }), done);
    }

    /// Removes an empty directory.
    pub fn rmdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let op = |parent, name| match self.meant(parent, &name) {
            Meant::Nothing => Err(Errno::ESTALE),
            directory => Ok(Op::Rmdir { parent, name, directory }),
        };
        self.remove(caller, (parent, name), op, done);
    }

    fn remove(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        op: impl FnOnce(Node, Name) -> Result<Op, Errno>,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let spot = self.spot(place.0, place.1);
        let (parent, name, op) =
            match spot.and_then(|(parent, name)| Ok((parent, name.clone(), op(parent, name)?))) {
                Ok(all) => all,
                Err(errno) => return done(Err(errno)),
            };
        let victim = self.stands_for(parent, &name);
        let nodes: Vec<Node> = [parent].into_iter().chain(victim).collect();
        let (asker, removal) = (self.clone(), self.begin_removal(&nodes, victim.is_none()));
        self.before_removal(parent, victim, move || {
            asker.remove_now(caller, (parent, name), removal, op, done)
        });
    }

    /// What the kernel means by a name that it is to lose. If that is a directory, it takes the one that it knows for removed, for good
    /// (`S_DEAD` in `vfs_rmdir` and `vfs_rename`), so it must be told if another one has the name by now: with ESTALE it looks the name up
    /// and tries again. It knows what it was told last.
    fn meant(&self, parent: Node, name: &Name) -> Meant {
        self.state.nodes.lock().named(parent, name).map_or(Meant::Nothing, |node| Meant::Inode(node.ino))
    }

    /// The table knows of the change before it is looked what is open: nothing that loses its name is opened without the gateway from
    /// here on until the gateway has answered.
    fn begin_removal(&self, nodes: &[Node], anything: bool) -> Removal {
        let anything = anything.then(|| {
            self.state.leases.table().removals += 1;
            Anything(self.clone())
        });
        Removal { underway: Underway::begin(&self.state, nodes), anything }
    }

    /// Does `then` once what may lose its last name, and is open, is open at the gateway.
    fn before_removal(&self, parent: Node, victim: Option<Node>, then: impl FnOnce() + Send + 'static) {
        let concerned = move |node: Node| match victim {
            Some(victim) => node == victim,
            // Whatever it is.
            None => node.grant == parent.grant,
        };
        let any = match victim {
            Some(victim) => self.state.handles.lock().lazy_of(victim),
            None => true,
        };
        if !any {
            return then();
        }
        opening::ensure_all(&self.submitter(), &self.state, &concerned, then);
    }

    fn remove_now(
        &self,
        caller: Caller,
        (parent, name): (Node, Name),
        removal: Removal,
        op: Op,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let fs = self.clone();
        let Removal { underway, anything } = removal;
        let victim = directory_meant(&op, parent.grant);
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            drop(anything);
            let result = fs.done_with(result);
            let (mut table, heard, _) = fs.ended(&change, result.as_ref().ok(), Some(parent));
            if let Some(victim) = victim.filter(|_| result.is_ok()) {
                table.unnamed(victim);
            }
            if table.stood_for(&change, parent, &name).is_none() {
                // What has lost its name may be another node than was thought.
                table.distrust();
            }
            let gone = if result.is_ok() { Some(None) } else { None };
            table.changed_name(heard.as_ref(), parent, &name, gone);
            drop(table);
            result.map(|_| fs.state.nodes.lock().removed(parent, &name))
        };
        self.change_begun(caller, (op, Payload::default()), underway, read, done);
    }

    fn done_with<'a>(&self, result: Result<Answer<'a>, Errno>) -> Result<Answer<'a>, Errno> {
        let answer = result?;
        match answer.outcome {
            Outcome::Done => Ok(answer),
            _ => Err(crate::errno::errno(Ended::Protocol)),
        }
    }

    /// The node that a name stands for, as far as is known.
    pub(super) fn stands_for(&self, parent: Node, name: &Name) -> Option<Node> {
        let known = self.state.leases.table().named(parent, name);
        known.or_else(|| self.state.nodes.lock().named(parent, name))
    }

    /// Renames (renameat2(2)).
    pub fn rename(
        &self,
        caller: Caller,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: RenameFlags,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return done(Err(Errno::EINVAL));
        };
        let ((parent, name), (new_parent, new_name)) =
            match (self.spot(from.0, from.1), self.spot(to.0, to.1)) {
                (Ok(from), Ok(to)) => (from, to),
                (Err(errno), _) | (_, Err(errno)) => return done(Err(errno)),
            };
        if parent.grant != new_parent.grant {
            return done(Err(Errno::EXDEV));
        }
        if (parent, &name) == (new_parent, &new_name) {
            // The kernel has found two nodes by one name, one after the other, or it would not ask.
            return done(Err(Errno::ESTALE));
        }
        let (moved, victim) = (self.stands_for(parent, &name), self.stands_for(new_parent, &new_name));
        let absent = self.absent_for_now(new_parent, &new_name) || mode != RenameMode::Replace;
        let nodes: Vec<Node> = [parent, new_parent].into_iter().chain(moved).chain(victim).collect();
        let (old, new, directory) = (name.clone(), new_name.clone(), self.meant(new_parent, &new_name));
        let op = Op::Rename { parent, name: old, new_parent, new_name: new, mode, directory };
        let (asker, removal) = (self.clone(), self.begin_removal(&nodes, victim.is_none() && !absent));
        let go =
            move || asker.rename_now(caller, (parent, name), (new_parent, new_name), (op, removal), done);
        if absent { go() } else { self.before_removal(new_parent, victim, go) }
    }

    fn absent_for_now(&self, dir: Node, name: &Name) -> bool {
        self.state.leases.table().lookup(dir, name, Instant::now()) == Found::Absent
    }

    fn rename_now(
        &self,
        caller: Caller,
        (parent, name): (Node, Name),
        (new_parent, new_name): (Node, Name),
        (op, removal): (Op, Removal),
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let fs = self.clone();
        let Removal { underway, anything } = removal;
        let exchange = matches!(op, Op::Rename { mode: RenameMode::Exchange, .. });
        let victim = directory_meant(&op, new_parent.grant).filter(|_| !exchange);
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            drop(anything);
            let result = fs.done_with(result);
            let (mut table, heard, _) = fs.ended(&change, result.as_ref().ok(), Some(new_parent));
            if let Some(victim) = victim.filter(|_| result.is_ok()) {
                table.unnamed(victim);
            }
            let moved = table.stood_for(&change, parent, &name);
            let replaced = table.stood_for(&change, new_parent, &new_name);
            let free = table.was_absent(&change, new_parent, &new_name);
            // A name that was there and is not known may have been replaced.
            if moved.is_none() || (replaced.is_none() && !free) {
                table.distrust();
            }
            let (here, there) = match (&result, moved) {
                (Ok(_), Some(node)) => {
                    let here = match replaced {
                        _ if exchange => replaced.map(Some),
                        // Two names of one file are left as they are (rename(2)).
                        Some(other) => (other != node).then_some(None),
                        None => free.then_some(None),
                    };
                    (here, Some(Some(node)))
                }
                _ => (None, None),
            };
            table.changed_name(heard.as_ref(), parent, &name, here);
            table.changed_name(heard.as_ref(), new_parent, &new_name, there);
            // The kernel moves what it has of the names when it has this answer, with the time for which it may keep it, and waits for nothing else.
            let sound = result.is_err()
                || (table.moved_to(new_parent, &new_name) && (!exchange || table.moved_to(parent, &name)));
            drop(table);
            if !sound && let Some(kernel) = fs.state.leases.kernel() {
                kernel.forget_entries();
            }
            result.map(|_| fs.state.nodes.lock().renamed((parent, name), (new_parent, new_name), exchange))
        };
        self.change_begun(caller, (op, Payload::default()), underway, read, done);
    }
}
