//! What a permit offers about leases.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use strongroom_contracts::Right;
use strongroom_protocol::lease::Lease;

use super::grant::GrantState;
use super::refusal::Checked;
use super::{OnHandle, Permit, Scope};
use crate::engine::Shared;
use crate::leases::{Change, Deal, Deed, Held, Lessee, Wish};
use crate::tree::{Node, Stat};

impl Scope<'_> {
    /// Only where names and attributes may be seen is there anything to keep.
    fn hold(&self, node: &Arc<Node>, wish: Wish) -> Checked<Held> {
        self.deal.in_time(&self.engine.grace, Deed::Read)?;
        self.deal.hold(node, self.number, wish, self.has(Right::List))
    }
}

impl<On> Permit<'_, On> {
    /// To be called before the state of a node is read that the reply tells. The reply says what the session holds then.
    ///
    /// # Errors
    /// [`super::refusal::Refusal::Recall`] if somebody may know more of the node than the gateway.
    pub(crate) fn reading(&self, node: &Arc<Node>) -> Checked<()> {
        let held = self.scope.hold(node, Wish::Read)?;
        self.scope.deal.note_node(held.lease);
        Ok(())
    }

    /// The same before its contents are read: those the client's kernel has from then on.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn reading_contents(&self, node: &Arc<Node>) -> Checked<()> {
        self.scope.deal.in_time(&self.scope.engine.grace, Deed::ReadContents)?;
        let held = self.scope.hold(node, Wish::Read)?;
        if held.lease == Lease::None {
            self.strays(node);
        }
        self.scope.deal.note_node(held.lease);
        Ok(())
    }

    /// The client's kernel has contents of a node without a lease.
    fn strays(&self, node: &Arc<Node>) {
        self.scope.deal.strays(node, self.scope.number, &self.scope.engine.lessees);
    }

    /// The same for a node that is opened to be written.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn writing(&self, node: &Arc<Node>) -> Checked<()> {
        let held = self.scope.hold(node, Wish::Write)?;
        self.scope.deal.note_node(held.lease);
        Ok(())
    }

    /// The same for a node that was just found by its name. Returns whether what was read of it may be old by now, so that
    /// it must be read again.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn found(&self, node: &Arc<Node>) -> Checked<bool> {
        let held = self.scope.hold(node, Wish::Read)?;
        self.scope.deal.note_node(held.lease);
        Ok(held.fresh && held.lease != Lease::None)
    }

    /// What the reply tells may not be kept after all.
    pub(crate) fn found_other(&self) {
        self.scope.deal.note_node(Lease::None);
    }

    /// As [`Permit::found`] for one of many nodes: also returns whether the session holds a lease, and the reply says nothing.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn found_one(&self, node: &Arc<Node>) -> Checked<(bool, bool)> {
        let held = self.scope.hold(node, Wish::Read)?;
        let leased = held.lease != Lease::None;
        Ok((leased && held.fresh, leased))
    }

    /// To be called after a node was made and noted. What was read of it before is still true and, if it is a directory, it
    /// is empty, or else nothing may be kept.
    pub(crate) fn made(&self, node: &Arc<Node>) {
        if self.changed(node) != Lease::None && !node.leases.is_pristine() {
            self.found_other();
        }
    }

    /// To be called after a node was changed, and before its attributes are read for the reply.
    pub(crate) fn changed(&self, node: &Arc<Node>) -> Lease {
        // All others have let go; and what is done is done.
        let held = self.scope.hold(node, Wish::Write);
        let lease = held.map_or(Lease::None, |held| held.lease);
        self.scope.deal.note_node(lease);
        lease
    }

    /// The same where the reply has no attributes: they are told beside it if they may be kept.
    pub(crate) fn wrote(&self, node: &Arc<Node>, file: &OwnedFd) {
        if self.changed(node) == Lease::None {
            self.strays(node);
        } else if let Ok(stat) = Stat::of(file) {
            self.scope.deal.note_after(self.show(&stat));
        }
    }

    /// To be called before names in a directory are read. The reply says whether they may be kept.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn reading_names(&self, dir: &Arc<Node>) -> Checked<()> {
        let held = self.scope.hold(dir, Wish::Touch)?;
        self.scope.deal.note_names(held.lease != Lease::None);
        Ok(())
    }

    /// To be called before a change is applied, when all that it changes is known and nothing can come in between.
    ///
    /// # Errors
    /// [`super::refusal::Refusal::Recall`] if others must let go first.
    pub(crate) fn changing(&self, changes: &[(&Arc<Node>, Change<'_>)]) -> Checked<()> {
        let contents = |(_, change): &(_, Change<'_>)| matches!(change, Change::All { data: true, .. });
        let deed = if changes.iter().all(contents) { Deed::ChangeContents } else { Deed::Change };
        self.scope.deal.in_time(&self.scope.engine.grace, deed)?;
        self.scope.deal.changing(self.scope.number, changes)
    }

    /// Whether a change in a directory would have to be waited for: then it is worth a look whether it can be made at all.
    pub(crate) fn is_kept_by_others(&self, dir: &Node) -> bool {
        dir.leases.has_others(crate::leases::Key::new(self.scope.session.number, self.scope.number))
    }

    /// To be called after a name was made or removed in a directory: tells its attributes, and whether the name may be kept.
    pub(crate) fn changed_names(&self, dir: &Arc<Node>) -> bool {
        let held = self.scope.hold(dir, Wish::Touch);
        let keeps = held.is_ok_and(|held| held.lease != Lease::None);
        self.scope.deal.note_names(keeps);
        if keeps && let Ok(stat) = self.tree().stat(dir) {
            self.scope.deal.note_after(self.show(&stat));
        }
        keeps
    }

    /// To be called before a directory is moved from one to another, after [`Permit::changing`]. If it `crosses` the border
    /// of somebody's grant, those on whose side it appears or vanishes forget all that they hold: what lies below it may be
    /// theirs no more.
    ///
    /// # Errors
    /// As [`Permit::changing`].
    pub(crate) fn moving(
        &self,
        ends: (&Arc<Node>, &Arc<Node>),
        crosses: bool,
        moved: &[&Arc<Node>],
    ) -> Checked<()> {
        moving(self.scope.engine, self.scope.deal, ends, crosses, moved)
    }

    /// To be called after a name went from one directory to another, whose attributes are told.
    pub(crate) fn moved_names(&self, from: &Arc<Node>, to: &Arc<Node>) {
        let here = from.id == to.id
            || self.scope.hold(from, Wish::Touch).is_ok_and(|held| held.lease != Lease::None);
        let there = self.changed_names(to);
        self.scope.deal.note_names(here && there);
    }
}

impl Permit<'_, OnHandle> {
    /// To be called before the locks of an open file are looked at: whose client answers for them itself must tell first.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn seeing_locks(&self) -> Checked<()> {
        self.scope.hold(&self.target().node, Wish::Touch).map(drop)
    }

    /// The same before a lock is taken. If nobody else has anything of the file the session is given a lease, under which its
    /// client may answer for the locks.
    ///
    /// # Errors
    /// As [`Permit::reading`].
    pub(crate) fn locking(&self) -> Checked<()> {
        self.scope.hold(&self.target().node, Wish::Lock).map(drop)
    }
}

/// As [`Permit::moving`], for whoever moves.
pub(crate) fn moving(
    engine: &Shared,
    deal: &Deal,
    (from, to): (&Arc<Node>, &Arc<Node>),
    crosses: bool,
    moved: &[&Arc<Node>],
) -> Checked<()> {
    if !crosses || !moved.iter().any(|node| node.is_dir()) {
        return Ok(());
    }
    let tree = &engine.tree;
    let differs = |root: &Node| tree.beneath(from, root) != tree.beneath(to, root);
    let concerned = |lessee: &Lessee| {
        let roots = lessee.grants.iter().filter_map(GrantState::present_root);
        let below = |root: &Node| moved.iter().any(|node| tree.beneath(root, node));
        lessee.takes() && roots.into_iter().any(|root| differs(&root) || below(&root))
    };
    let mut all = engine.lessees.all();
    all.retain(|lessee| concerned(lessee));
    deal.moving(all)
}
