//! Taking names away.

use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, unlinkat};
use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::Checked;
use crate::gate::{InDir, Permit};
use crate::leases::Change;
use crate::quota::MeterSet;
use crate::tree::{Node, Stat, Tree};

pub(crate) fn unlink(permit: &Permit<'_, InDir>, name: &[u8]) -> Checked<(Outcome, bool)> {
    remove(permit, name, AtFlags::empty())
}

pub(crate) fn rmdir(permit: &Permit<'_, InDir>, name: &[u8]) -> Checked<(Outcome, bool)> {
    remove(permit, name, AtFlags::REMOVEDIR)
}

/// Also tells whether others must have noticed before it is answered.
fn remove(permit: &Permit<'_, InDir>, name: &[u8], how: AtFlags) -> Checked<(Outcome, bool)> {
    let (tree, dir) = (permit.tree(), permit.dir());
    let parent = tree.fd_of(dir)?;
    let change = tree.change(dir, None)?;
    let meters = tree.meters_at(dir);
    meters.ready()?;
    let stat = tree.stat_at(&parent, name)?;
    let vanishing = Vanishing::look(tree, dir, name, &stat, meters);
    // A size must not change between the look at it and the end of the file.
    let size = vanishing.node.size.lock();
    let stat = tree.stat_at(&parent, name)?;
    let open = stat.nlink() <= 1 || vanishing.node.is_dir();
    permit.changing(&[(dir, Change::Name(name)), (&vanishing.node, Change::All { data: false, open })])?;
    unlinkat(&*parent, name, how)?;
    let crosses = vanishing.vanished(tree, dir, name, &stat);
    drop(size);
    drop(change);
    permit.changed_names(dir);
    Ok((Outcome::Done, crosses))
}

/// An object that is about to lose a name.
pub(super) struct Vanishing {
    pub(super) node: Arc<Node>,
    meters: MeterSet,
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
        Vanishing { node: tree.note(dir, name, stat), meters }
    }

    /// Notes that the name is gone; `stat` is from just before, under the node's size lock. Tells whether the object
    /// has left a live grant without being gone.
    pub(super) fn vanished(&self, tree: &Tree, dir: &Arc<Node>, name: &[u8], stat: &Stat) -> bool {
        let node = &self.node;
        let last = node.is_dir() || stat.nlink() <= 1;
        let size = if stat.kind() == FileType::RegularFile { stat.size() } else { 0 };
        tree.removed(node, dir, name, last);
        self.meters.release(0, 1);
        if last {
            node.orphaned(&self.meters, size);
            return false;
        }
        self.meters.unlinked(stat.ino()).release(size, 0);
        if stat.nlink() == 2 {
            tree.all_meters().alone(stat.ino());
        }
        node.any_link().is_none_or(|(other, _)| tree.crosses(node, dir, &other))
    }
}
