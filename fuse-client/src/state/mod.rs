//! What the mount remembers: grants, nodes the kernel knows, open files, locks. Everything needed to go on after the gateway
//! restarted or a new contract came. In the client's own terms: node and handle numbers here mean nothing on the wire until
//! [`Grants::to_wire`] and [`OpenFile`] have translated them.
//!
//! Lock order: each table has its own lock, and none is held while another is taken; but those of [`Behind`] and of the locks are
//! taken under that of the leases.

mod ahead;
mod grants;
mod handles;
mod locks;
mod nodes;
mod reading;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::{Mutex, RwLock};
use strongroom_protocol::attr::Node;
use strongroom_protocol::hello::GrantInfo;

use crate::behind::Behind;
use crate::kernel::{Kernel, Latch};
use crate::lease::{Drop, Leases};
use crate::tree::Tree;

pub use ahead::{Ahead, ToList};
pub use grants::{Grant, Grants};
pub use handles::{Coming, Handles, OpenFile, Survey, Then, Turn, Wire};
pub use locks::{Closing, HeldLock, Here, Locks, Telling};
pub use nodes::{Doubt, Known, Nodes};
pub use reading::{Batch, FileHint, LONGEST, Reading};

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
    /// What may be kept without asking again.
    pub leases: Leases,
    /// What is asked for before anybody does.
    pub ahead: Mutex<Ahead>,
    /// Small files that are read before anybody does.
    pub reading: Mutex<Reading>,
    /// Writes that were answered before the gateway has them.
    pub behind: Behind,
    /// Files of which a change of attributes was answered just now: see [`State::settles`].
    settling: Mutex<VecDeque<(Instant, Node)>>,
}

impl State {
    /// Takes over the grants of a session.
    pub fn welcome(&self, list: Vec<GrantInfo>) {
        let mut grants = self.grants.write();
        grants.replace(list);
        self.behind.forget_room();
        self.tree.write().replace(grants.active().map(|(number, grant)| (number, &grant.mount)));
    }

    /// The path of a node below its grant's root, components separated by `/`.
    ///
    /// # Errors
    /// `ESTALE` if it has no name that is known any more.
    pub fn path(&self, node: Node) -> Result<Vec<u8>, Errno> {
        self.nodes.lock().path(node).ok_or(Errno::ESTALE)
    }

    /// The gateway does not find a node where it was thought to be (somebody has changed the storage guest's files without it, and it is
    /// yet to hear of that): no name on the way is believed, so that the kernel, which looks them up again, finds what is there.
    pub fn lost_track(&self, node: Node) {
        let way = self.nodes.lock().way(node);
        let mut table = self.leases.table();
        table.forget_root(node.grant);
        way.iter().for_each(|(dir, name)| table.changed_name(None, *dir, name, None));
    }

    /// Sets where notices to the kernel go; once, when the mount is there.
    pub fn set_kernel(&self, kernel: Kernel) {
        self.leases.set_kernel(kernel);
    }

    /// Makes the kernel forget what it has cached of every node: attributes, pages (of open and mapped files too).
    /// Must not run on a thread that answers requests: the kernel may have to wait for answers first.
    pub fn drop_caches(&self) {
        let Some(kernel) = self.leases.kernel() else { return };
        kernel.forget_entries();
        let known = self.nodes.lock().numbers();
        for number in known {
            // The kernel may have forgotten it meanwhile, or the mount may be gone.
            kernel.forget_pages(number);
        }
    }

    /// Makes the kernel forget what is not under a lease any more. Attributes are gone when this returns, and so are names;
    /// contents are, unless the kernel is busy with them: they are checked before they are used again
    /// ([`crate::lease::Table::soiled`]).
    pub fn take_back(&self, drop: &Drop) {
        self.take_back_within(drop, Duration::ZERO);
    }

    /// The same for somebody who waits: contents that are being read are gone as well, which are from before otherwise.
    pub fn take_back_for_others(&self, drop: &Drop) {
        self.take_back_within(drop, READ_MAX);
    }

    fn take_back_within(&self, drop: &Drop, readings: Duration) {
        self.leases.settle();
        let Some(kernel) = self.leases.kernel() else { return };
        if drop.all_entries {
            kernel.forget_entries();
        }
        let number = |node: Node| self.nodes.lock().number(node);
        let mut unmade: Vec<(Node, u64)> = vec![];
        for node in &drop.attrs {
            let number = number(*node);
            if !kernel.forget_attr(number) {
                unmade.push((*node, number));
            }
        }
        self.forget_once_made(kernel, unmade);
        let entries = if drop.all_entries { vec![] } else { self.entries_to_take_back(kernel, drop) };
        let pages: Vec<u64> = {
            let mut nodes = self.nodes.lock();
            drop.pages
                .iter()
                .filter(|node| nodes.knows(**node))
                .copied()
                .collect::<Vec<_>>()
                .into_iter()
                .map(|node| nodes.number(node))
                .collect()
        };
        let (gone, clean) = (Latch::new(entries.len()), Latch::new(pages.len()));
        let begun = Latch::new(pages.len());
        let late = Arc::new(AtomicBool::new(false));
        for (parent, name, stays) in entries {
            let (on, gone, late) = (kernel.clone(), gone.clone(), late.clone());
            kernel.aside_for_names(move || {
                match stays {
                    _ if late.load(Ordering::Relaxed) => {}
                    true => on.doubt_entry(parent, &name),
                    false => on.forget_entry(parent, &name),
                }
                gone.done();
            });
        }
        for number in pages {
            let (on, clean, begun) = (kernel.clone(), clean.clone(), begun.clone());
            kernel.aside(move || {
                begun.done();
                on.forget_pages(number);
                clean.done();
            });
        }
        let told = Latch::new(drop.longer.len());
        let mut settled = Duration::ZERO;
        let in_time = Arc::new(AtomicBool::new(true));
        for (node, size) in &drop.longer {
            let (number, size, told) = (number(*node), *size, told.clone());
            let on = kernel.clone();
            let unsettled = self.unsettled(*node);
            settled = settled.max(unsettled);
            let has_pages = drop.pages.contains(node);
            let in_time = in_time.clone();
            kernel.aside(move || {
                if has_pages {
                    // Before, as their last one ends where the file has ended. Otherwise not: a question for attributes may be under way, the answer to
                    // which the kernel then does not believe, and which alone would tell it that the file is shorter than it was before.
                    on.forget_pages(number);
                }
                on.lengthen_for(number, size, unsettled, &in_time);
                told.done();
            });
        }
        let asked = Latch::new(drop.shorter.len());
        for node in &drop.shorter {
            let asked = asked.clone();
            settled = settled.max(self.begin_asking(kernel, *node, move || asked.done()));
        }
        if !gone.wait(KERNEL_MAX) {
            // A change of the directory by this guest is under way, and may be waiting for somebody who waits for this.
            kernel.forget_entries();
            // All names are looked up again; what has not begun to wait for a directory need not.
            late.store(true, Ordering::Relaxed);
        }
        // For mappings; reading asks for attributes first.
        if !clean.wait(KERNEL_MAX) {
            // The kernel believes no attributes that it asks for before a notice comes and gets after it: none may come later.
            begun.wait(BEGUN_MAX);
            // What is being read is answered, whoever waits for this. What is being written may be waiting for somebody who does.
            if !drop.pages.iter().any(|node| self.is_changing(*node)) {
                clean.wait(readings);
            }
        }
        if !told.wait(settled + KERNEL_MAX) {
            // Pages of it may be being read, or written by somebody who waits for this.
            let changing = drop.longer.iter().any(|(node, _)| self.is_changing(*node));
            if changing || !told.wait(readings) {
                self.lengthen_at_once(kernel, &drop.longer);
            }
            in_time.store(false, Ordering::Relaxed);
        }
        // The kernel hears before it waits for pages.
        if !asked.wait(settled + KERNEL_MAX) && !drop.shorter.iter().any(|node| self.is_changing(*node)) {
            asked.wait(readings);
        }
    }

    /// What locks a file's pages keeps the kernel from forgetting them, and not from hearing how long it is: it hears before it waits for the last page.
    fn lengthen_at_once(&self, kernel: &Arc<Kernel>, files: &[(Node, u64)]) {
        let told = Latch::new(files.len());
        let in_time = Arc::new(AtomicBool::new(true));
        for (node, size) in files {
            let number = self.nodes.lock().number(*node);
            let (on, size, told, in_time) = (kernel.clone(), *size, told.clone(), in_time.clone());
            kernel.aside(move || {
                on.lengthen_for(number, size, Duration::ZERO, &in_time);
                told.done();
            });
        }
        told.wait(READ_MAX);
        in_time.store(false, Ordering::Relaxed);
    }

    /// A change of a file's attributes is about to be answered. The kernel believes the size in that answer whatever it was told, and whenever
    /// the thread that asked for it comes to it.
    pub fn settles(&self, node: Node) {
        let now = Instant::now();
        let mut settling = self.settling.lock();
        while settling.len() >= MOST_SETTLING
            || settling.front().is_some_and(|(since, _)| now.duration_since(*since) > SETTLING)
        {
            settling.pop_front();
        }
        settling.push_back((now, node));
    }

    /// For how long the kernel may still forget what it is told of a file's size.
    fn unsettled(&self, node: Node) -> Duration {
        let settling = self.settling.lock();
        let last = settling.iter().rev().find(|(_, other)| *other == node);
        last.map_or(Duration::ZERO, |(since, _)| SETTLING.saturating_sub(since.elapsed()))
    }

    /// Has the kernel hear that a file may be longer than it believes, and then does something. What locks the last page may be waiting for
    /// that: the kernel has heard before it waits for the page.
    pub fn lengthen(&self, node: Node, size: u64, then: impl FnOnce() + Send + 'static) {
        let Some(kernel) = self.leases.kernel() else { return then() };
        let (on, number) = (kernel.clone(), self.nodes.lock().number(node));
        let (told, in_time) = (Latch::new(1), Arc::new(AtomicBool::new(true)));
        let (tells, still) = (told.clone(), in_time.clone());
        let unsettled = self.unsettled(node);
        kernel.aside(move || {
            on.lengthen_for(number, size, unsettled, &still);
            tells.done();
        });
        kernel.aside_to_wait(move || {
            told.wait(unsettled + READ_MAX);
            in_time.store(false, Ordering::Relaxed);
            then();
        });
    }

    /// Has the kernel hear how long a file is, whether longer or shorter than it believes, and then does something.
    pub fn tell_size(self: &Arc<Self>, node: Node, size: u64, then: impl FnOnce() + Send + 'static) {
        let state = self.clone();
        self.lengthen(node, size, move || state.ask_size(node, then));
    }

    /// Has the kernel ask how long a file is, if it knows it; `then` is done at once otherwise. Returns for how long it may still forget the answer.
    fn begin_asking(&self, kernel: &Kernel, node: Node, then: impl FnOnce() + Send + 'static) -> Duration {
        let (called, unsettled) = (self.nodes.lock().called(node), self.unsettled(node));
        match called {
            Some(file) => kernel.ask_size(file, unsettled, then),
            None => then(),
        }
        unsettled
    }

    fn ask_size(&self, node: Node, then: impl FnOnce() + Send + 'static) {
        let Some(kernel) = self.leases.kernel() else { return then() };
        let asked = Latch::new(1);
        let tells = asked.clone();
        let unsettled = self.begin_asking(kernel, node, move || tells.done());
        kernel.aside_to_wait(move || {
            asked.wait(unsettled + READ_MAX);
            then();
        });
    }

    fn is_changing(&self, node: Node) -> bool {
        self.behind.busy(node) || self.leases.table().is_changing(node)
    }

    /// The kernel uses pages of a file that is open without asking, for mappings and for sendfile(2). So where a lease ends, they
    /// go, also if nobody is about to change them: of later changes this guest is not told. Adds them to what is to be forgotten.
    pub fn give_up_pages(&self, drop: &mut Drop) {
        let handles = self.handles.lock();
        drop.pages.extend(drop.open.iter().copied().filter(|node| handles.has_file(*node)));
        drop.pages.sort_unstable();
        drop.pages.dedup();
    }

    /// The same where all leases end.
    pub fn give_up_all_pages(&self, drop: &mut Drop) {
        drop.pages = self.handles.lock().files();
    }
}

impl State {
    /// The names that the kernel is to be told of one by one: by directory, and whether they stay until they are looked up. It has been
    /// told if all are to be looked up.
    fn entries_to_take_back(&self, kernel: &Kernel, drop: &Drop) -> Vec<(u64, Vec<u8>, bool)> {
        let mut list = vec![];
        {
            let tree = self.tree.read();
            let places = drop.roots.iter().filter_map(|(grant, _)| tree.place(*grant));
            list.extend(places.map(|(directory, name)| (directory, name.to_vec(), true)));
        }
        let now = Instant::now();
        let mut nodes = self.nodes.lock();
        // What the kernel believes too long of a root is noticed at the gateway: where another one has taken its place, the former lies
        // outside the grant (ESTALE), and the kernel looks its name up again.
        drop.roots.iter().for_each(|(_, root)| _ = nodes.doubt(*root, now));
        let mut all = false;
        for (parent, name) in &drop.entries {
            list.push((nodes.number(*parent), name.as_bytes().to_vec(), false));
        }
        for (parent, name) in &drop.doubted {
            let doubt = nodes.named(*parent, name).map_or(Doubt::Forget, |node| nodes.doubt(node, now));
            all |= doubt == Doubt::All;
            list.push((nodes.number(*parent), name.as_bytes().to_vec(), doubt == Doubt::Expire));
        }
        if all {
            // None is taken out of the tree before it is looked up, and then it is found at once.
            kernel.forget_entries();
            list.clear();
        }
        list
    }

    /// The kernel was told attributes of these and has no such inodes: either it has not come to making them yet, and would keep
    /// what it was told, or it has forgotten them and has yet to say so. Both are over in microseconds.
    fn forget_once_made(&self, kernel: &Kernel, mut unmade: Vec<(Node, u64)>) {
        let until = Instant::now() + MAKING_MAX;
        loop {
            unmade.retain(|(node, number)| self.nodes.lock().knows(*node) && !kernel.forget_attr(*number));
            if unmade.is_empty() {
                return;
            }
            if Instant::now() >= until {
                // With its name looked up again, the attributes come anew.
                return kernel.forget_entries();
            }
            std::thread::sleep(MAKING_PAUSE);
        }
    }
}

/// How long the thread that has changed attributes may take to come to the answer.
const SETTLING: Duration = Duration::from_millis(20);
const MOST_SETTLING: usize = 4096;
/// How long a recall waits for inodes that the kernel is about to make. Nothing that makes one waits for a recall.
const MAKING_MAX: Duration = Duration::from_millis(100);
const MAKING_PAUSE: Duration = Duration::from_micros(50);
/// How long a recall waits for locks of the kernel.
const KERNEL_MAX: Duration = Duration::from_millis(3);
/// How long it waits for pages that are being read. With the times above less than a gateway waits for a recall.
const READ_MAX: Duration = Duration::from_millis(250);
/// How long it waits for threads to be given a processor.
const BEGUN_MAX: Duration = Duration::from_millis(500);
