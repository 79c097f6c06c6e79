//! What the mount remembers: grants, nodes the kernel knows, open files, locks. Everything needed to go on after the gateway
//! restarted or a new contract came. In the client's own terms: node and handle numbers here mean nothing on the wire until
//! [`Grants::to_wire`] and [`OpenFile`] have translated them.
//!
//! Lock order: each table has its own lock, and none is held while another is taken.

mod grants;
mod handles;
mod locks;
mod nodes;

use fuser::{Errno, Notifier};
use parking_lot::{Mutex, RwLock};
use std::sync::OnceLock;
use strongroom_protocol::attr::Node;
use strongroom_protocol::hello::GrantInfo;

use crate::tree::Tree;

pub use grants::{Grant, Grants};
pub use handles::{Handles, OpenFile, Wire};
pub use locks::{HeldLock, Locks};
pub use nodes::{Known, Nodes};

/// The tables of one mount.
#[derive(Default)]
pub struct State {
    /// The grants of the contract in force, and their numbers on the wire.
    pub grants: RwLock<Grants>,
    /// The directories above the grants.
    pub tree: RwLock<Tree>,
    /// Nodes that the kernel knows.
    pub nodes: Mutex<Nodes>,
    /// Open files and directories.
    pub handles: Mutex<Handles>,
    /// Locks that processes of this guest hold.
    pub locks: Mutex<Locks>,
    notifier: OnceLock<Notifier>,
}

impl State {
    /// Takes over the grants of a session.
    pub fn welcome(&self, list: Vec<GrantInfo>) {
        let mut grants = self.grants.write();
        grants.replace(list);
        self.tree.write().replace(grants.active().map(|(number, grant)| (number, &grant.mount)));
    }

    /// The path of a node below its grant's root, components separated by `/`.
    ///
    /// # Errors
    /// `ESTALE` if it has no name that is known any more.
    pub fn path(&self, node: Node) -> Result<Vec<u8>, Errno> {
        self.nodes.lock().path(node).ok_or(Errno::ESTALE)
    }

    /// Where notices to the kernel go; set once, when the mount is there.
    pub fn set_notifier(&self, notifier: Notifier) {
        // A second mount of the same state does not happen.
        let _ = self.notifier.set(notifier);
    }

    /// Makes the kernel forget what it has cached of every node: attributes, pages (of open and mapped files too).
    /// Must not run on a thread that answers requests: the kernel may have to wait for answers first.
    pub fn drop_caches(&self) {
        let Some(notifier) = self.notifier.get() else { return };
        let known = self.nodes.lock().numbers();
        for number in known {
            // The kernel may have forgotten it meanwhile, or the mount may be gone.
            let _ = notifier.inval_inode(fuser::INodeNo(number), 0, -1);
        }
    }
}
