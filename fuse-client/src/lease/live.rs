//! The table of a running mount, and the gate between it and the kernel.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use strongroom_protocol::attr::{Attr, Node};
use strongroom_protocol::name::Name;

use super::table::{OwnChange, Table};
use crate::kernel::Kernel;

/// Held while the kernel is told something that it may keep, from before the table is asked until the reply is written.
pub type Gate<'a> = RwLockReadGuard<'a, ()>;

/// What a running mount may keep.
#[derive(Default)]
pub struct Leases {
    table: Mutex<Table>,
    gate: RwLock<()>,
    kernel: OnceLock<Arc<Kernel>>,
}

impl Leases {
    /// The table.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Keeps recalls from being acted upon until the reply that is being made is written. Hold it briefly; nothing may be
    /// sent to the gateway meanwhile.
    pub fn gate(&self) -> Gate<'_> {
        // A reply may lead to another one on the same thread.
        self.gate.read_recursive()
    }

    /// Waits until every reply that was being made has been written.
    pub fn settle(&self) {
        drop(self.gate.write());
    }

    /// Sets the kernel side, once the mount is there.
    pub fn set_kernel(&self, kernel: Kernel) {
        // A second mount of the same state does not happen.
        let _ = self.kernel.set(Arc::new(kernel));
    }

    /// The kernel side; none before the mount is there.
    pub fn kernel(&self) -> Option<&Arc<Kernel>> {
        self.kernel.get()
    }

    /// Whether the kernel can be made to forget names, so that it may be told of them.
    pub fn entries_can_end(&self) -> bool {
        self.kernel().is_some_and(|kernel| kernel.epochs())
    }

    /// For how long the kernel may keep these attributes of a node that it knows.
    pub fn attr_ttl(&self, node: Node, attr: &Attr) -> Duration {
        if self.kernel().is_none() {
            return Duration::ZERO;
        }
        self.table().tell_attr(node, attr, Instant::now())
    }

    /// For how long the kernel may keep what a name stands for.
    pub fn entry_ttl(&self, dir: Node, name: &Name, to: Option<Node>) -> Duration {
        if !self.entries_can_end() {
            return Duration::ZERO;
        }
        self.table().tell_name(dir, name, to, Instant::now())
    }

    /// Begins a change by this guest.
    pub fn begin(&self, nodes: &[Node]) -> OwnChange {
        self.table().begin(nodes, Instant::now())
    }
}
