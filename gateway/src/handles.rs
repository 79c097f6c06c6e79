//! The open files and directories of one session.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, RwLock};
use strongroom_protocol::attr::{Handle, OpenFlags};
use strongroom_protocol::reply::Failure;

use crate::gate::refusal::{Checked, Refusal};
use crate::leases::Key;
use crate::tree::{Node, Stat};
use crate::writeback::Portions;

/// That a node is open, or about to be: while this lives, its bytes stay charged even without a name.
pub(crate) struct Use {
    node: Arc<Node>,
    /// Whose kernel must hear of it if the file becomes longer or shorter.
    opener: Option<Key>,
    /// Set once it is open.
    file: Option<OwnedFd>,
}

impl Use {
    /// To be made before the file is opened.
    pub(crate) fn of_file(node: &Arc<Node>, opener: Key) -> Use {
        node.opened();
        node.leases.opened(opener);
        Use { node: Arc::clone(node), opener: Some(opener), file: None }
    }

    /// To be made before the directory is opened.
    pub(crate) fn of_directory(node: &Arc<Node>) -> Use {
        node.opened();
        Use { node: Arc::clone(node), opener: None, file: None }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(opener) = self.opener {
            self.node.leases.closed(opener);
        }
        let size = self
            .file
            .as_ref()
            .filter(|_| self.node.is_gone())
            .and_then(|file| Stat::of(file).ok())
            .map(|stat| stat.size());
        if let Some((meters, size)) = self.node.closed(size) {
            meters.release(size, 0);
        }
    }
}

/// An open file or directory.
pub(crate) struct Open {
    pub(crate) node: Arc<Node>,
    pub(crate) grant: u16,
    pub(crate) flags: OpenFlags,
    /// It created the file, and may write it.
    pub(crate) created: bool,
    /// The state of the tree in which the node was found inside the grant.
    pub(crate) seen: AtomicU64,
    /// Where reading of the directory stands; held while entries are read.
    pub(crate) position: Mutex<u64>,
    /// What was appended through it.
    pub(crate) appended: Portions,
    used: Use,
}

impl Open {
    pub(crate) fn new(
        mut used: Use,
        file: OwnedFd,
        grant: u16,
        flags: OpenFlags,
        created: bool,
        seen: u64,
    ) -> Open {
        used.file = Some(file);
        Open {
            node: Arc::clone(&used.node),
            grant,
            flags,
            created,
            seen: AtomicU64::new(seen),
            position: Mutex::new(0),
            appended: Portions::default(),
            used,
        }
    }

    /// The descriptor.
    pub(crate) fn file(&self) -> Checked<&OwnedFd> {
        // INVARIANT: set by `new`, never taken.
        self.used.file.as_ref().ok_or(Refusal::BAD_HANDLE)
    }
}

struct Slot {
    serial: u32,
    open: Option<Arc<Open>>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Handles of each node, by node id.
    by_node: HashMap<u64, Vec<Handle>>,
    serial: u32,
    open: usize,
    closed: bool,
}

/// The handles of one session.
pub(crate) struct Handles {
    table: RwLock<Table>,
    most: usize,
}

/// A handle that was taken out.
pub(crate) struct Released {
    pub(crate) open: Arc<Open>,
    /// It had the creator's rights, and no other handle of the node has.
    pub(crate) last_claim: bool,
}

impl Handles {
    /// An empty table. `serial`: a number that a former process has hardly used for the session, so that an old handle
    /// is not taken for a new one.
    pub(crate) fn new(most: usize, serial: u32) -> Handles {
        Handles { table: RwLock::new(Table { serial, ..Table::default() }), most }
    }

    /// Whether there is room for another handle.
    pub(crate) fn room(&self) -> Checked<()> {
        if self.table.read().open < self.most { Ok(()) } else { Err(Failure::TooMany.into()) }
    }

    /// Adds a handle.
    ///
    /// # Errors
    /// `TooMany` at the bound, `Fenced` if the session was closed.
    pub(crate) fn add(&self, open: Open) -> Checked<Handle> {
        let node = open.node.id;
        let open = Arc::new(open);
        let mut table = self.table.write();
        if table.closed {
            return Err(Failure::Fenced.into());
        }
        if table.open >= self.most {
            return Err(Failure::TooMany.into());
        }
        table.serial = table.serial.wrapping_add(1);
        let slot = Slot { serial: table.serial, open: Some(open) };
        let handle = |serial: u32, index: u32| Handle(u64::from(serial) << 32 | u64::from(index));
        let handle = match table.free.pop() {
            Some(index) => {
                let handle = handle(slot.serial, index);
                if let Some(place) = table.slots.get_mut(index as usize) {
                    *place = slot;
                }
                handle
            }
            None => {
                let index = u32::try_from(table.slots.len()).map_err(|_| Refusal::from(Failure::TooMany))?;
                let handle = handle(slot.serial, index);
                table.slots.push(slot);
                handle
            }
        };
        table.open += 1;
        table.by_node.entry(node).or_default().push(handle);
        Ok(handle)
    }

    /// Looks a handle up.
    pub(crate) fn get(&self, handle: Handle) -> Checked<Arc<Open>> {
        self.table.read().get(handle).cloned().ok_or(Refusal::BAD_HANDLE)
    }

    /// Any handle of a node, one with the creator's rights before others.
    pub(crate) fn of_node(&self, node: &Node) -> Option<Arc<Open>> {
        let table = self.table.read();
        let opens =
            || table.by_node.get(&node.id).into_iter().flatten().filter_map(|handle| table.get(*handle));
        opens().find(|open| open.created).or_else(|| opens().next()).cloned()
    }

    /// Any handle of a node that may write.
    pub(crate) fn writer_of(&self, node: &Node) -> Option<Arc<Open>> {
        let table = self.table.read();
        let mut opens =
            table.by_node.get(&node.id).into_iter().flatten().filter_map(|handle| table.get(*handle));
        opens.find(|open| open.flags.write).cloned()
    }

    /// Does something while the session has this handle.
    pub(crate) fn while_open<T>(&self, handle: Handle, act: impl FnOnce() -> T) -> Checked<T> {
        let table = self.table.read();
        table.get(handle).ok_or(Refusal::BAD_HANDLE)?;
        Ok(act())
    }

    /// Takes a handle out; it closes when the last operation on it ends. `no_more` is called if it was the session's last of the node,
    /// before there can be another.
    pub(crate) fn remove(&self, handle: Handle, no_more: impl FnOnce(&Node)) -> Checked<Released> {
        let mut table = self.table.write();
        let index = (handle.0 & u64::from(u32::MAX)) as usize;
        let open = table.get(handle).cloned().ok_or(Refusal::BAD_HANDLE)?;
        if let Some(slot) = table.slots.get_mut(index) {
            slot.open = None;
        }
        // It came from an index that fits.
        table.free.push(index as u32);
        table.open -= 1;
        let mut rest = table.by_node.remove(&open.node.id).unwrap_or_default();
        rest.retain(|other| *other != handle);
        let last = rest.is_empty();
        let others = rest.iter().filter_map(|other| table.get(*other)).any(|other| other.created);
        let last_claim = open.created && !others;
        if last {
            no_more(&open.node);
        } else {
            table.by_node.insert(open.node.id, rest);
        }
        Ok(Released { open, last_claim })
    }

    /// Closes all, and lets none be opened any more. Returns how many there were.
    pub(crate) fn close(&self) -> usize {
        let old = {
            let mut table = self.table.write();
            std::mem::replace(&mut *table, Table { closed: true, ..Table::default() })
        };
        old.open
    }

    /// Number of open handles.
    pub(crate) fn len(&self) -> usize {
        self.table.read().open
    }
}

impl Table {
    fn get(&self, handle: Handle) -> Option<&Arc<Open>> {
        let slot = self.slots.get((handle.0 & u64::from(u32::MAX)) as usize)?;
        slot.open.as_ref().filter(|_| u64::from(slot.serial) == handle.0 >> 32)
    }
}
