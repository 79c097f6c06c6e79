//! What reaches the data: one file for each operation. Every function takes a permit; none decides.

use std::sync::Arc;

use crate::detect::Watch;
use crate::gate::Permit;
use crate::gate::refusal::Checked;
use crate::leases::Change;
use crate::quota::Limit;
use crate::tree::{Node, Tree};
use crate::undo::Capture;

pub(crate) mod copy_range;
pub(crate) mod create;
pub(crate) mod fallocate;
pub(crate) mod fsync;
pub(crate) mod getattr;
pub(crate) mod link;
pub(crate) mod lock;
pub(crate) mod lookup;
mod make;
pub(crate) mod mkdir;
pub(crate) mod mknod;
pub(crate) mod open;
pub(crate) mod opendir;
pub(crate) mod read;
pub(crate) mod read_files;
pub(crate) mod readdir;
pub(crate) mod readlink;
pub(crate) mod release;
pub(crate) mod rename;
pub(crate) mod resolve;
pub(crate) mod seek;
pub(crate) mod setattr;
mod sizes;
pub(crate) mod statfs;
pub(crate) mod symlink;
pub(crate) mod unlink;
mod watching;
pub(crate) mod write;
pub(crate) mod xattr;

/// What lets names be changed: a permit of the gate, or the authority of an undo that an administrator asked for.
pub(crate) trait Reach {
    fn tree(&self) -> &Arc<Tree>;
    fn undo(&self) -> Capture<'_>;
    fn watch(&self) -> Option<&Watch>;
    fn limits(&self) -> Checked<Arc<[Limit]>>;
    /// As [`Permit::changing`].
    fn changing(&self, changes: &[(&Arc<Node>, Change<'_>)]) -> Checked<()>;
    /// As [`Permit::moving`].
    fn moving(&self, ends: (&Arc<Node>, &Arc<Node>), crosses: bool, moved: &[&Arc<Node>]) -> Checked<()>;
    /// As [`Permit::changed_names`].
    fn changed_names(&self, dir: &Arc<Node>);
    /// As [`Permit::moved_names`].
    fn moved_names(&self, from: &Arc<Node>, to: &Arc<Node>);
}

impl<On> Reach for Permit<'_, On> {
    fn tree(&self) -> &Arc<Tree> {
        self.tree()
    }

    fn undo(&self) -> Capture<'_> {
        self.undo()
    }

    fn watch(&self) -> Option<&Watch> {
        self.watch()
    }

    fn limits(&self) -> Checked<Arc<[Limit]>> {
        self.limits()
    }

    fn changing(&self, changes: &[(&Arc<Node>, Change<'_>)]) -> Checked<()> {
        self.changing(changes)
    }

    fn moving(&self, ends: (&Arc<Node>, &Arc<Node>), crosses: bool, moved: &[&Arc<Node>]) -> Checked<()> {
        self.moving(ends, crosses, moved)
    }

    fn changed_names(&self, dir: &Arc<Node>) {
        self.changed_names(dir);
    }

    fn moved_names(&self, from: &Arc<Node>, to: &Arc<Node>) {
        self.moved_names(from, to);
    }
}
