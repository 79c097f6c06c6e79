//! Taking names away.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType};
use strongroom_protocol::op::Meant;
use strongroom_protocol::reply::Outcome;

use super::{Reach, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{InDir, Permit};
use crate::leases::Change;
use crate::quota::MeterSet;
use crate::tree::{Node, Stat, Tree, kept};

pub(crate) fn unlink(permit: &Permit<'_, InDir>, name: &[u8]) -> Checked<(Outcome, bool)> {
    remove(permit, permit.dir(), name, AtFlags::empty(), Meant::Whichever)
}

/// `directory`: the one that is meant; another one is left alone (`STALE`).
pub(crate) fn rmdir(permit: &Permit<'_, InDir>, name: &[u8], directory: Meant) -> Checked<(Outcome, bool)> {
    remove(permit, permit.dir(), name, AtFlags::REMOVEDIR, directory)
}

/// Also tells whether others must have noticed before it is answered.
pub(crate) fn remove(
    reach: &impl Reach,
    dir: &Arc<Node>,
    name: &[u8],
    how: AtFlags,
    meant: Meant,
) -> Checked<(Outcome, bool)> {
    let tree = reach.tree();
    let parent = tree.fd_of(dir)?;
    let undo = reach.undo();
    let directory = how.contains(AtFlags::REMOVEDIR);
    let kept = if directory && undo.keeps() { Some(tree.lookup(dir, name)?.0) } else { None };
    let kept = kept.filter(|node| node.is_dir() && tree.fd_of(node).is_ok());
    // The names of a directory that is kept are held too: nothing may appear in it any more.
    let change = tree.change(dir, kept.as_deref())?;
    let meters = tree.meters_at(dir);
    meters.ready()?;
    let stat = tree.stat_at(&parent, name)?;
    let mut vanishing = Vanishing::look(tree, dir, name, &stat, meters);
    // A size must not change between the look at it and the end of the file.
    let size = vanishing.node.size.lock();
    let stat = tree.stat_at(&parent, name)?;
    vanishing.links = tree.links(&stat);
    if kept.as_ref().is_some_and(|kept| kept.id != vanishing.node.id) || !meant.is(stat.ino()) {
        return Err(Refusal::STALE);
    }
    let open = vanishing.links <= 1 || vanishing.node.is_dir();
    reach.changing(&[(dir, Change::Name(name)), (&vanishing.node, Change::All { data: false, open })])?;
    if let Some(watch) = reach.watch().filter(|_| vanishing.links <= 1) {
        watching::about(tree, &vanishing.node, |about| watch.removes(about));
    }
    undo.remove(dir, &parent, name, &vanishing.node, &stat, directory)?;
    let crosses = vanishing.vanished(tree, (dir, name), &stat, None);
    drop(size);
    drop(change);
    reach.changed_names(dir);
    Ok((Outcome::Done, crosses))
}

/// An object that is about to lose a name.
pub(super) struct Vanishing {
    pub(super) node: Arc<Node>,
    meters: MeterSet,
    /// Names that it has at present.
    pub(super) links: u32,
}

impl Vanishing {
    /// The caller holds a change of the directory; `meters` are the directory's.
    pub(super) fn look(
        tree: &Tree,
        dir: &Arc<Node>,
        name: &[u8],
        stat: &Stat,
        meters: MeterSet,
    ) -> Vanishing {
        Vanishing { node: tree.note(dir, name, stat), meters, links: tree.links(stat) }
    }

    /// Just before the name goes to another object: what to hold for those who have found this one by it, if it is the last.
    pub(super) fn hold(&self, dir: &OwnedFd, name: &[u8], stat: &Stat) -> Option<OwnedFd> {
        if self.links <= 1 { kept::before(dir, name, &self.node, stat) } else { None }
    }

    /// Notes that the name is gone; `stat` is from just before, under the node's size lock. Tells whether the object
    /// has left a live grant without being gone.
    pub(super) fn vanished(
        &self,
        tree: &Tree,
        (dir, name): (&Arc<Node>, &[u8]),
        stat: &Stat,
        held: Option<OwnedFd>,
    ) -> bool {
        let node = &self.node;
        let links = self.links;
        let last = node.is_dir() || links <= 1;
        let size = if stat.kind() == FileType::RegularFile { stat.size() } else { 0 };
        tree.removed(node, dir, name, last);
        self.meters.release(0, 1);
        if last {
            node.orphaned(&self.meters, size);
            if let Some(fd) = held {
                tree.kept.hold(node, fd, stat.blocks_bytes());
            }
            return false;
        }
        self.meters.unlinked(stat.ino()).release(size, 0);
        if links == 2 {
            tree.all_meters().alone(stat.ino());
        }
        node.any_link().is_none_or(|(other, _)| tree.crosses(node, dir, &other))
    }
}
