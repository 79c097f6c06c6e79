//! A grant of a session, bound to what is on disk.

use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::FileType;
use strongroom_contracts::chain::EffectiveGrant;

use super::refusal::{Checked, Refusal};
use crate::quota::Limit;
use crate::tree::{Node, RootClaim, Tree};

/// A grant and its root at present.
pub(crate) struct GrantState {
    pub(crate) terms: EffectiveGrant,
    root: RwLock<Option<Rooted>>,
    limits: RwLock<Option<(u64, Arc<[Limit]>)>>,
}

struct Rooted {
    claim: RootClaim,
    epoch: u64,
    owner: (u32, u32),
}

/// The root of a grant.
pub(crate) struct Root {
    pub(crate) node: Arc<Node>,
    /// Who owns it on disk.
    pub(crate) owner: (u32, u32),
}

impl GrantState {
    pub(crate) fn new(terms: EffectiveGrant) -> GrantState {
        GrantState { terms, root: RwLock::default(), limits: RwLock::default() }
    }

    /// The directory (or file) that the grant's path leads to at present.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    pub(crate) fn root(&self, tree: &Arc<Tree>) -> Checked<Root> {
        if let Some(rooted) = &*self.root.read() {
            tree.confirm(&rooted.claim.node);
            if rooted.epoch == tree.epoch() {
                return Ok(Root { node: Arc::clone(&rooted.claim.node), owner: rooted.owner });
            }
        }
        let epoch = tree.epoch();
        let path = || self.terms.data.components();
        let mut root = self.root.write();
        if let Some(rooted) = &mut *root
            && tree.is_at(&rooted.claim.node, path().collect())
        {
            rooted.epoch = epoch;
            return Ok(Root { node: Arc::clone(&rooted.claim.node), owner: rooted.owner });
        }
        let old = root.take();
        drop(root);
        drop(old);
        let (node, stat) = tree.resolve(path())?;
        if stat.kind() != FileType::Directory {
            return Err(Refusal::errno(rustix::io::Errno::NOTDIR));
        }
        let owner = stat.owner();
        let rooted = Rooted { claim: tree.claim_root(&node), epoch, owner };
        let former = self.root.write().replace(rooted);
        drop(former);
        Ok(Root { node, owner })
    }

    /// The root as it was last found.
    pub(crate) fn present_root(&self) -> Option<Arc<Node>> {
        self.root.read().as_ref().map(|rooted| Arc::clone(&rooted.claim.node))
    }

    /// The limits on what the grant may hold, ready to be charged.
    ///
    /// # Errors
    /// [`Refusal::Count`] if a subtree is still to be counted; that of finding it.
    pub(crate) fn limits(&self, tree: &Tree) -> Checked<Arc<[Limit]>> {
        let epoch = tree.epoch();
        if let Some((at, limits)) = &*self.limits.read()
            && *at == epoch
        {
            return Ok(Arc::clone(limits));
        }
        let mut limits = vec![];
        for quota in &self.terms.quotas {
            let (node, _) = tree.resolve(quota.path.components())?;
            let meter = tree.attach_meter(&node).ok_or(Refusal::STALE)?;
            if !meter.is_counted() {
                return Err(Refusal::Count(meter));
            }
            limits.push(Limit { meter, bytes: quota.bytes, files: quota.files });
        }
        let limits: Arc<[Limit]> = limits.into();
        *self.limits.write() = Some((epoch, Arc::clone(&limits)));
        Ok(limits)
    }

    /// Lets go of what is on disk.
    pub(crate) fn close(&self) {
        let old = (self.root.write().take(), self.limits.write().take());
        drop(old);
    }
}
