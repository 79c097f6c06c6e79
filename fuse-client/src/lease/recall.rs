//! What is forgotten when the gateway says so, when a connection is lost, or for want of room.

use std::time::Instant;

use strongroom_protocol::attr::Node;
use strongroom_protocol::lease::{Lease, What};
use strongroom_protocol::name::Name;

use super::names::Names;
use super::table::{Cuts, OwnChange, Table};

/// What the kernel and open files must be told of, after something was forgotten.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Drop {
    /// The kernel may have attributes of these.
    pub attrs: Vec<Node>,
    /// The kernel may have these names, which will change.
    pub entries: Vec<(Node, Name)>,
    /// The kernel may have these names, which are not under a lease any more.
    pub doubted: Vec<(Node, Name)>,
    /// The same for the mount's names of grants, with the roots for which they stand.
    pub roots: Vec<(u16, Node)>,
    /// The kernel may have contents of these that will change.
    pub pages: Vec<Node>,
    /// The kernel may have names that are not listed here.
    pub all_entries: bool,
    /// The kernel must hear that these are longer.
    pub longer: Vec<(Node, u64)>,
    /// That these are shorter.
    pub shorter: Vec<Node>,
    /// What is open of these, unknown to the gateway, must be opened there.
    pub open: Vec<Node>,
    /// What was written to these and answered must be sent.
    pub write: Vec<Node>,
    /// Leases on these are over.
    pub over: Vec<Node>,
}

/// Told names of one directory that are taken back one by one; beyond, all names of the mount are.
const SINGLY: usize = 64;

impl Table {
    /// A recall has come.
    pub fn recall(&mut self, stamp: u64, node: Node, what: &What, now: Instant, drop: &mut Drop) {
        let (seq, mark) = (self.seq, self.mark());
        // It may be shorter by now, which the kernel hears only if it asks.
        let cut = matches!(what, What::Longer(_)) && self.was_cut(node, stamp, now);
        if let What::Shorter(_) = what {
            self.cuts.told(node, stamp);
        }
        let Some(held) = self.nodes.get_mut(&node) else {
            if !matches!(what, What::Longer(_) | What::Shorter(_)) {
                // An answer from before it may still come.
                self.floor = self.floor.max(stamp);
            }
            match what {
                What::Name(_) => {}
                What::All { data, .. } => {
                    drop.write.push(node);
                    drop.open.push(node);
                    drop.pages.extend(data.then_some(node));
                }
                What::Shared => drop.write.push(node),
                What::Longer(size) if !cut => drop.longer.push((node, *size)),
                What::Longer(_) | What::Shorter(_) => drop.shorter.push(node),
            }
            return;
        };
        match what {
            What::Name(name) => {
                held.void = held.void.max(stamp);
                held.attr = None;
                if std::mem::replace(&mut held.told, false) {
                    drop.attrs.push(node);
                }
                held.soil(mark);
                if held.names.as_mut().is_some_and(|names| names.unknow(name, seq)) {
                    drop.entries.push((node, name.clone()));
                    // The kernel has the directory locked, so that a single name cannot be taken back now.
                    drop.all_entries |= held.changing > 0;
                }
            }
            What::All { data, .. } => {
                held.over = held.over.max(stamp);
                held.void = held.void.max(stamp);
                held.alone = held.alone.max(stamp);
                if std::mem::replace(&mut held.told, false) {
                    drop.attrs.push(node);
                }
                take_names(held.names.as_deref(), node, drop);
                drop.roots.extend(self.roots.extract_if(|_, root| *root == node));
                // Without a lease the last name may go, now or later, without this being told.
                drop.open.push(node);
                // Nobody else reads what is not in the file yet. Whatever the lease is by now: what was answered under an exclusive one may
                // still be on its way, and an earlier recall be waiting for it.
                drop.write.push(node);
                if *data {
                    drop.pages.push(node);
                }
                let granted = held.granted;
                let lease = held.lease;
                held.end(*data, mark, now);
                if granted >= stamp {
                    // The answer that gave a new lease has overtaken this recall; what else it said is asked for again.
                    held.lease = lease;
                } else {
                    drop.over.push(node);
                    if held.changing == 0 && held.last.is_none() {
                        self.evict(node);
                    }
                }
            }
            What::Shared => {
                held.alone = held.alone.max(stamp);
                if held.lease == Lease::Exclusive {
                    held.lease = Lease::Shared;
                }
                drop.write.push(node);
            }
            What::Longer(size) => {
                // Under a lease it is known, whatever has happened since.
                let known = held.attr.as_ref().filter(|_| held.leased()).map(|kept| kept.attr.size);
                match known {
                    None if cut => drop.shorter.push(node),
                    known => drop.longer.push((node, known.unwrap_or(*size))),
                }
                if held.changing > 0 {
                    held.heard.note(stamp.saturating_sub(1), *size);
                }
            }
            What::Shorter(size) => {
                drop.shorter.push(node);
                if held.changing > 0 {
                    held.heard.note(stamp.saturating_sub(1), *size);
                }
            }
        }
    }

    /// All leases of the session are over; answers from before `stamp` give none any more.
    pub fn lost(&mut self, stamp: u64, now: Instant) -> Drop {
        self.floor = self.floor.max(stamp);
        let mut drop = Drop { all_entries: true, ..Drop::default() };
        self.roots.clear();
        let nodes: Vec<Node> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.recall(stamp, node, &What::All { data: true, open: false }, now, &mut drop);
        }
        drop.pages.clear();
        drop
    }

    /// The session has no connection any more: all leases are over, and answers that still come by its old ones count
    /// for nothing. Changes under way end in a table that knows nothing, and of what they concern nothing is believed that
    /// was asked before their end.
    pub fn end_life(&mut self) -> Drop {
        let mut drop = Drop { all_entries: true, ..Drop::default() };
        self.roots.clear();
        self.life += 1;
        self.floor = 0;
        self.cuts = Cuts::new_life();
        self.changed_floor = self.seq;
        for (node, held) in self.nodes.drain() {
            if held.told {
                drop.attrs.push(node);
            }
        }
        drop
    }

    /// A change of this guest ends of which it is not known what it did: what it concerned is forgotten.
    pub fn abandon(&mut self, change: &OwnChange, now: Instant) -> Drop {
        self.end(change);
        self.distrust();
        let mut drop = Drop { all_entries: true, ..Drop::default() };
        for node in &change.nodes {
            let mark = self.mark();
            let Some(held) = self.nodes.get_mut(node) else { continue };
            if std::mem::replace(&mut held.told, false) {
                drop.attrs.push(*node);
            }
            let lease = held.lease;
            held.end(true, mark, now);
            held.lease = lease;
        }
        drop
    }

    fn evict(&mut self, node: Node) {
        if let Some(held) = self.nodes.remove(&node) {
            self.floor = self.floor.max(held.void).max(held.alone);
            self.changed_floor = self.changed_floor.max(held.changed);
        }
    }

    /// Makes room: drops what has not been used since the last time. What the kernel has of it must be taken back before
    /// any recall that comes later is acknowledged.
    pub fn sweep(&mut self) -> Drop {
        let mut drop = Drop::default();
        if self.nodes.len() <= self.most.max(1) {
            return drop;
        }
        let mut gone = vec![];
        for (node, held) in &mut self.nodes {
            let used = std::mem::replace(&mut held.used, false);
            if !used && held.changing == 0 {
                gone.push(*node);
            }
        }
        for node in gone {
            if let Some(held) = self.nodes.get(&node) {
                if held.told {
                    drop.attrs.push(node);
                }
                drop.all_entries |= held.names.as_ref().is_some_and(|names| names.told().next().is_some());
            }
            drop.roots.extend(self.roots.extract_if(|_, root| *root == node));
            self.evict(node);
        }
        drop
    }
}

fn take_names(names: Option<&Names>, node: Node, drop: &mut Drop) {
    let Some(names) = names else { return };
    let told: Vec<_> = names.told().take(SINGLY + 1).cloned().collect();
    if told.len() > SINGLY {
        drop.all_entries = true;
    } else {
        drop.doubted.extend(told.into_iter().map(|name| (node, name)));
    }
}
