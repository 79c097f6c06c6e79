//! The tree: which objects lie where below the data root, as far as anybody has asked.
//!
//! All renames of guests go through here, so the places of nodes are right without asking the disk. What an
//! administrator moves behind the gateway's back is found by comparing a node's way from the root with the disk, at
//! most [`CONFIRM_MS`] ago, and never makes anything reachable but what lies below the data root: every descriptor is
//! opened beneath another one, without following links or crossing mounts.
//!
//! Locks, in this order: names of directories (by node id), size of a node, commit of a directory, shape, place.

mod changes;
pub(crate) mod hidden;
pub(crate) mod kept;
pub(crate) mod map;
pub(crate) mod node;
pub(crate) mod sections;
pub(crate) mod stat;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

pub(crate) use node::{Link, NameBuf, Node};
pub(crate) use sections::Sections;
pub(crate) use stat::Stat;

use crate::gate::refusal::{Checked, Refusal};
use crate::quota::Meter;
use map::NodeMap;

/// How long the place of a node is believed before it is compared with the disk again, in milliseconds.
const CONFIRM_MS: u64 = 1000;
/// The deepest chain of directories that is followed upwards.
const MAX_CLIMB: usize = 1 << 16;
/// How often an operation that met a concurrent rename looks again.
const ATTEMPTS: usize = 16;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What is known of the objects below the data root.
pub(crate) struct Tree {
    root: Arc<Node>,
    mount: (u64, u32, u32),
    map: Arc<NodeMap>,
    /// Rises whenever a directory is moved, or counted from now on.
    epoch: AtomicU64,
    /// Held for writing while links of moved nodes are exchanged, so that nobody climbs half-changed links.
    shape: RwLock<()>,
    pub(crate) sections: Sections,
    /// Directories with a cached descriptor, oldest first.
    cached: Mutex<VecDeque<Weak<Node>>>,
    most_cached: usize,
    /// Files without a name that somebody may still come for.
    pub(crate) kept: kept::Kept,
    /// Roots of live grants, by node id.
    roots: Mutex<HashMap<u64, (Arc<Node>, usize)>>,
    /// The subtrees that are counted, for as long as the process lives.
    meters: Mutex<Vec<Arc<Meter>>>,
    /// How many.
    metered: AtomicUsize,
    /// `/proc/self/fd`, for kernels without fchmodat2.
    descriptors: Option<OwnedFd>,
    /// The inode number of a directory that nobody can name; 0: none.
    hidden: AtomicU64,
    /// Names that nobody can see.
    pub(crate) vaulted: hidden::Vaulted,
    /// Look at the type before opening for real, by a descriptor that cannot wake a device.
    pub(crate) cautious: bool,
}

/// That a node is the root of a live grant; ends with this value.
pub(crate) struct RootClaim {
    tree: Weak<Tree>,
    pub(crate) node: Arc<Node>,
}

/// Milliseconds of a clock that only goes forward.
pub(crate) fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
}

impl Tree {
    /// Opens the data root.
    ///
    /// # Errors
    /// Those of open(2) and openat2(2).
    pub(crate) fn open(path: &Path, most_cached: usize, cautious: bool) -> Result<Arc<Tree>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())?;
        // Fails now rather than later if the kernel has no openat2.
        openat2(&fd, c".", flags, Mode::empty(), RESOLVE)?;
        let stat = Stat::of(&fd)?;
        let map = Arc::new(NodeMap::default());
        let (root, _) = map.get_or_insert(stat.ino(), stat.generation(), || {
            let link = None;
            Arc::new(Node::new(
                stat.ino(),
                stat.generation(),
                FileType::Directory,
                link,
                Arc::downgrade(&map),
            ))
        });
        if let Some(dir) = root.dir() {
            *dir.fd.write() = Some(Arc::new(fd));
        }
        let descriptors = openat(CWD, c"/proc/self/fd", flags, Mode::empty()).ok();
        Ok(Arc::new(Tree {
            root,
            mount: stat.mount(),
            map,
            epoch: AtomicU64::new(0),
            shape: RwLock::default(),
            sections: Sections::default(),
            cached: Mutex::default(),
            most_cached: most_cached.max(16),
            kept: kept::Kept::default(),
            roots: Mutex::default(),
            meters: Mutex::default(),
            metered: AtomicUsize::new(0),
            descriptors,
            hidden: AtomicU64::new(0),
            vaulted: hidden::Vaulted::default(),
            cautious,
        }))
    }

    /// The present state of directories: two equal answers mean that none was moved in between.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// The data root.
    pub(crate) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The node of an object if anybody knows it.
    pub(crate) fn known(&self, stat: &Stat) -> Option<Arc<Node>> {
        self.map.get(stat.ino(), stat.generation())
    }

    /// The node of an object by its number if anybody knows it.
    pub(crate) fn known_object(&self, ino: u64, generation: u64) -> Option<Arc<Node>> {
        self.map.get(ino, generation)
    }

    /// The node of an object that has no name, or a new one that nobody else knows.
    pub(crate) fn known_or_detached(&self, stat: &Stat) -> Arc<Node> {
        let new = || Arc::new(Node::new(stat.ino(), stat.generation(), stat.kind(), None, Weak::new()));
        self.known(stat).unwrap_or_else(new)
    }

    fn on_our_mount(&self, stat: Stat) -> Checked<Stat> {
        if self.is_hidden(stat.ino()) {
            // No object of any contract: not even that it is not there is told.
            return Err(Refusal::errno(Errno::ACCESS));
        }
        if stat.mount() == self.mount { Ok(stat) } else { Err(Refusal::errno(Errno::XDEV)) }
    }

    /// Hides a directory on the mount of the data from everybody.
    pub(crate) fn hide(&self, ino: u64) {
        self.hidden.store(ino, Ordering::SeqCst);
    }

    /// Whether an object on the mount of the data is hidden.
    pub(crate) fn is_hidden(&self, ino: u64) -> bool {
        ino != 0 && self.hidden.load(Ordering::Relaxed) == ino
    }

    /// The names of an object that can be seen.
    pub(crate) fn links(&self, stat: &Stat) -> u32 {
        stat.nlink().saturating_sub(self.vaulted.count(stat.ino()))
    }

    /// The mount of the data, as [`Stat::mount`] tells it.
    pub(crate) fn mount(&self) -> (u64, u32, u32) {
        self.mount
    }

    /// Opens what a descriptor refers to once more, whatever its names are by now.
    pub(crate) fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> Checked<OwnedFd> {
        let list = self.descriptors.as_ref().ok_or_else(|| Refusal::errno(Errno::NOSYS))?;
        let calm = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(openat(list, descriptor_name(fd), flags | calm, Mode::empty())?)
    }

    /// Attributes of the object called `name` in a directory.
    pub(crate) fn stat_at(&self, dir: &OwnedFd, name: &[u8]) -> Checked<Stat> {
        self.on_our_mount(Stat::at(dir, name)?)
    }

    /// The descriptor of a directory, good for reaching what it holds.
    pub(crate) fn fd_of(&self, node: &Arc<Node>) -> Checked<Arc<OwnedFd>> {
        if let Some(fd) = cached_fd(node) {
            return Ok(fd);
        }
        if !node.is_dir() {
            return Err(Refusal::errno(Errno::NOTDIR));
        }
        for _ in 0..ATTEMPTS {
            match self.open_down_to(node) {
                Err(Refusal::WouldBlock) => {}
                other => return other,
            }
        }
        Err(Refusal::STALE)
    }

    /// Opens the directories from the nearest open one down. `WouldBlock`: names changed meanwhile, look again.
    fn open_down_to(&self, node: &Arc<Node>) -> Checked<Arc<OwnedFd>> {
        let mut way = vec![];
        let mut at = Arc::clone(node);
        let mut fd = loop {
            if let Some(fd) = cached_fd(&at) {
                break fd;
            }
            if way.len() >= MAX_CLIMB {
                return Err(Refusal::errno(Errno::NAMETOOLONG));
            }
            let Some((parent, name)) = at.any_link() else {
                return Err(Refusal::STALE);
            };
            way.push((std::mem::replace(&mut at, Arc::clone(&parent)), parent, name));
        };
        while let Some((node, parent, name)) = way.pop() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat2(&fd, name.as_bytes(), flags, Mode::empty(), RESOLVE);
            let same = match &opened {
                Ok(new) => {
                    let stat = Stat::of(new)?;
                    node.is(&stat)
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => false,
                Err(other) => return Err((*other).into()),
            };
            let (Ok(new), true) = (opened, same) else {
                // Wait for a rename that is going on there, if one is.
                if let Some(dir) = parent.dir() {
                    drop(dir.names.lock());
                }
                let moved = node
                    .any_link()
                    .is_none_or(|(now, n)| now.id != parent.id || n.as_bytes() != name.as_bytes());
                return Err(if moved { Refusal::WouldBlock } else { Refusal::STALE });
            };
            fd = Arc::new(new);
            self.keep_fd(&node, &fd);
        }
        Ok(fd)
    }

    fn keep_fd(&self, node: &Arc<Node>, fd: &Arc<OwnedFd>) {
        let Some(dir) = node.dir() else { return };
        if dir.fd.write().replace(Arc::clone(fd)).is_some() {
            return;
        }
        let mut cached = self.cached.lock();
        cached.push_back(Arc::downgrade(node));
        // Each may have been used since it was last looked at, but not for ever.
        let mut chances = 2 * cached.len();
        while cached.len() > self.most_cached && chances > 0 {
            chances -= 1;
            let Some(oldest) = cached.pop_front() else { break };
            let Some(node) = oldest.upgrade() else { continue };
            let Some(dir) = node.dir() else { continue };
            if dir.fd_used.swap(false, Ordering::Relaxed) {
                cached.push_back(oldest);
            } else {
                *dir.fd.write() = None;
            }
        }
    }

    /// Finds a name in a directory and notes it.
    pub(crate) fn lookup(&self, parent: &Arc<Node>, name: &[u8]) -> Checked<(Arc<Node>, Stat)> {
        let fd = self.fd_of(parent)?;
        self.lookup_in(parent, &fd, name)
    }

    /// The same with the directory's descriptor at hand.
    pub(crate) fn lookup_in(
        &self,
        parent: &Arc<Node>,
        fd: &OwnedFd,
        name: &[u8],
    ) -> Checked<(Arc<Node>, Stat)> {
        let dir = parent.dir().ok_or_else(|| Refusal::errno(Errno::NOTDIR))?;
        for _ in 0..3 {
            let version = dir.version.load(Ordering::SeqCst);
            let stat = self.stat_at(fd, name)?;
            // What is noted already needs no waiting for a change that is going on.
            let known = self.known(&stat).filter(|node| node.has_link(parent, name));
            if let Some(node) = known {
                return Ok((node, stat));
            }
            if version & 1 == 1 {
                break;
            }
            let _commit = dir.commit.lock();
            if dir.version.load(Ordering::SeqCst) == version {
                return Ok((self.note(parent, name, &stat), stat));
            }
        }
        let _names = dir.names.lock();
        let stat = self.stat_at(fd, name)?;
        Ok((self.note(parent, name, &stat), stat))
    }

    /// Finds a node by its path from the data root, which consists of directories only.
    pub(crate) fn resolve<'p>(&self, path: impl Iterator<Item = &'p str>) -> Checked<(Arc<Node>, Stat)> {
        let mut at = Arc::clone(&self.root);
        let mut stat = Stat::of(&*self.fd_of(&at)?)?;
        for component in path {
            (at, stat) = self.lookup(&at, component.as_bytes())?;
            if !at.is_dir() {
                return Err(Refusal::errno(Errno::NOTDIR));
            }
        }
        Ok((at, stat))
    }

    /// Attributes of a node by one of its names, or by its descriptor if it is a directory that has one.
    pub(crate) fn stat(&self, node: &Arc<Node>) -> Checked<Stat> {
        if let Some(fd) = cached_fd(node).or_else(|| node.kept()) {
            return Ok(Stat::of(&*fd)?);
        }
        self.by_name(node, |dir, name| {
            let stat = self.stat_at(dir, name)?;
            Ok((stat, stat))
        })
        .map(|(stat, _)| stat)
    }

    /// Opens a node. Only regular files and directories are opened for more than O_PATH.
    pub(crate) fn open_node(&self, node: &Arc<Node>, flags: OFlags) -> Checked<(OwnedFd, Stat)> {
        let real = !flags.contains(OFlags::PATH);
        if real && !matches!(node.kind, FileType::RegularFile | FileType::Directory) {
            return Err(Refusal::errno(match node.kind {
                FileType::Symlink => Errno::LOOP,
                _ => Errno::NXIO,
            }));
        }
        // openat2 refuses O_PATH together with what only matters to a real opening.
        let calm = if real { OFlags::NONBLOCK | OFlags::NOCTTY } else { OFlags::empty() };
        let careful = flags | calm | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if node.is_dir() {
            let fd = self.fd_of(node)?;
            let opened = openat2(&*fd, c".", careful, Mode::empty(), RESOLVE)?;
            let stat = Stat::of(&opened)?;
            return Ok((opened, stat));
        }
        if let Some(kept) = node.kept() {
            return self.open_kept(&kept, flags);
        }
        if real && self.cautious {
            // What is there might be a device by now, which wakes up when opened.
            let (fd, _) = self.open_node(node, OFlags::PATH)?;
            let list = self.descriptors.as_ref().ok_or_else(|| Refusal::errno(Errno::NOSYS))?;
            let opened =
                openat(list, descriptor_name(&fd), careful.difference(OFlags::NOFOLLOW), Mode::empty())?;
            let stat = Stat::of(&opened)?;
            return Ok((opened, stat));
        }
        let (opened, stat) = self.by_name(node, |dir, name| {
            let opened = openat2(dir, name, careful, Mode::empty(), RESOLVE)?;
            let stat = Stat::of(&opened)?;
            Ok((opened, stat))
        })?;
        Ok((opened, stat))
    }

    /// Opens what has no name any more. For writing the name is to be looked up again: what is written here would be lost.
    fn open_kept(&self, kept: &OwnedFd, flags: OFlags) -> Checked<(OwnedFd, Stat)> {
        let opened = match flags {
            OFlags::PATH => kept
                .try_clone()
                .map_err(|error| Refusal::errno(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?,
            _ if flags.intersects(OFlags::WRONLY | OFlags::RDWR) => return Err(Refusal::STALE),
            _ => self.reopen(kept, flags)?,
        };
        let stat = Stat::of(&opened)?;
        Ok((opened, stat))
    }

    /// Does something with one of a node's names, and again if the name was moved meanwhile. `act` tells the attributes
    /// of what it met, which must be the node.
    fn by_name<T>(
        &self,
        node: &Arc<Node>,
        act: impl Fn(&OwnedFd, &[u8]) -> Checked<(T, Stat)>,
    ) -> Checked<(T, Stat)> {
        for _ in 0..ATTEMPTS {
            let moves = node.moves.load(Ordering::SeqCst);
            let Some((parent, name)) = node.any_link() else {
                return Err(Refusal::STALE);
            };
            let acted = self.fd_of(&parent).and_then(|fd| act(&fd, name.as_bytes()));
            match acted {
                Ok((done, stat)) if node.is(&stat) => {
                    return Ok((done, stat));
                }
                Ok(_) => {}
                Err(refusal) if refusal.is(Errno::NOENT) || refusal.is(Errno::LOOP) => {}
                Err(refusal) if refusal.is(Errno::NOTDIR) || refusal.is(Errno::NXIO) => {}
                Err(other) => return Err(other),
            }
            // A rename is going on, or somebody else than the gateway changed the name.
            if let Some(dir) = parent.dir() {
                drop(dir.names.lock());
            }
            if node.moves.load(Ordering::SeqCst) == moves && !self.still_there(node, &parent, &name) {
                continue;
            }
        }
        Err(Refusal::STALE)
    }

    /// Sets the permission bits of what an O_PATH descriptor refers to.
    pub(crate) fn chmod(&self, fd: &OwnedFd, mode: u32) -> Checked<()> {
        match crate::sys::chmod_fd(std::os::fd::AsFd::as_fd(fd), mode) {
            Err(Errno::NOSYS) => {
                let list = self.descriptors.as_ref().ok_or_else(|| Refusal::errno(Errno::NOSYS))?;
                let mode = Mode::from_raw_mode(mode & 0o7777);
                Ok(rustix::fs::chmodat(list, descriptor_name(fd), mode, AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// Whether `node` is `root` or lies below it.
    pub(crate) fn beneath(&self, node: &Node, root: &Node) -> bool {
        if node.id == root.id {
            return true;
        }
        let _shape = self.shape.read();
        let place = node.place.read();
        place.links.iter().any(|link| climb(&link.parent).any(|at| at.id == root.id))
    }

    /// Whether a node is called by this path from the data root.
    pub(crate) fn is_at(&self, node: &Arc<Node>, mut path: Vec<&str>) -> bool {
        let _shape = self.shape.read();
        let mut at = Arc::clone(node);
        while let Some(component) = path.pop() {
            let Some((parent, name)) = at.any_link() else { return false };
            if name.as_bytes() != component.as_bytes() {
                return false;
            }
            at = parent;
        }
        at.id == self.root.id
    }

    /// The path of a node below another one, for audit lines; empty if it is not below.
    pub(crate) fn path_below(&self, node: &Arc<Node>, root: &Node) -> Vec<u8> {
        let mut parts: Vec<Vec<u8>> = vec![];
        let mut length = 0;
        let mut at = Arc::clone(node);
        while at.id != root.id && length < 4096 {
            let link = at.place.read().links.first().cloned();
            let Some(link) = link else { break };
            length += link.name.len() + 1;
            parts.push(link.name.to_vec());
            at = link.parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// Registers the root of a live grant.
    pub(crate) fn claim_root(self: &Arc<Self>, node: &Arc<Node>) -> RootClaim {
        let mut roots = self.roots.lock();
        roots.entry(node.id).or_insert_with(|| (Arc::clone(node), 0)).1 += 1;
        if let Some(dir) = node.dir() {
            dir.roots.fetch_add(1, Ordering::SeqCst);
        }
        RootClaim { tree: Arc::downgrade(self), node: Arc::clone(node) }
    }

    /// Compares a node's way from the root with the disk if that was not done lately. What is not where it should be is
    /// taken out of the tree, so that a look at its place fails afterwards.
    pub(crate) fn confirm(&self, node: &Arc<Node>) {
        let now = coarse_ms();
        let confirmed = node.confirmed.load(Ordering::Relaxed);
        if now.saturating_sub(confirmed) < CONFIRM_MS {
            return;
        }
        let mut way = vec![];
        let mut at = Arc::clone(node);
        let mut stamp = now;
        while at.id != self.root.id && way.len() < MAX_CLIMB {
            let confirmed = at.confirmed.load(Ordering::Relaxed);
            if now.saturating_sub(confirmed) < CONFIRM_MS / 2 {
                stamp = confirmed;
                break;
            }
            let links: Vec<Link> = {
                let place = at.place.read();
                if place.gone { vec![] } else { place.links.iter().take(8).cloned().collect() }
            };
            let Some(first) = links.first() else { break };
            let parent = Arc::clone(&first.parent);
            way.push((std::mem::replace(&mut at, parent), links));
        }
        while let Some((node, links)) = way.pop() {
            for link in links {
                let name = NameBuf::new(&link.name);
                let same = self
                    .fd_of(&link.parent)
                    .and_then(|fd| self.stat_at(&fd, name.as_bytes()))
                    .is_ok_and(|stat| node.is(&stat));
                if !same {
                    self.still_there(&node, &link.parent, &name);
                }
            }
            node.confirmed.store(stamp, Ordering::Relaxed);
        }
    }

    /// Looks again, undisturbed by renames, whether a name leads to a node; takes the name out of the tree if not.
    fn still_there(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &NameBuf) -> bool {
        let Some(dir) = parent.dir() else { return false };
        let Ok(fd) = self.fd_of(parent) else {
            self.lose(node, parent, name.as_bytes());
            return false;
        };
        let _names = dir.names.lock();
        if !node.has_link(parent, name.as_bytes()) {
            return false;
        }
        let there = match self.stat_at(&fd, name.as_bytes()) {
            Ok(stat) => node.is(&stat),
            Err(refusal) => !refusal.is(Errno::NOENT) && !refusal.is(Errno::XDEV),
        };
        if !there {
            self.lose(node, parent, name.as_bytes());
        }
        there
    }
}

impl Drop for RootClaim {
    fn drop(&mut self) {
        let Some(tree) = self.tree.upgrade() else { return };
        if let Some(dir) = self.node.dir() {
            dir.roots.fetch_sub(1, Ordering::SeqCst);
        }
        let mut roots = tree.roots.lock();
        if let Some((_, count)) = roots.get_mut(&self.node.id) {
            *count -= 1;
            if *count == 0 {
                roots.remove(&self.node.id);
            }
        }
    }
}

fn cached_fd(node: &Node) -> Option<Arc<OwnedFd>> {
    let dir = node.dir()?;
    let fd = dir.fd.read().clone()?;
    if !dir.fd_used.load(Ordering::Relaxed) {
        dir.fd_used.store(true, Ordering::Relaxed);
    }
    Some(fd)
}

fn descriptor_name(fd: &OwnedFd) -> String {
    std::os::fd::AsRawFd::as_raw_fd(fd).to_string()
}

/// The directory itself and all above it.
fn climb(dir: &Arc<Node>) -> impl Iterator<Item = Arc<Node>> {
    let next = |at: &Arc<Node>| at.place.read().links.first().map(|link| Arc::clone(&link.parent));
    std::iter::successors(Some(Arc::clone(dir)), next).take(MAX_CLIMB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_live_as_long_as_they_are_needed_and_descriptors_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: usize| dir.path().join(format!("d{n}/sub"));
        (0..50).for_each(|n| std::fs::create_dir_all(path(n)).unwrap());
        let tree = Tree::open(dir.path(), 16, false).unwrap();
        let find = |n: usize| {
            let (parent, _) = tree.lookup(&tree.root, format!("d{n}").as_bytes()).unwrap();
            tree.lookup(&parent, b"sub").unwrap().0
        };
        let subs: Vec<_> = (0..50).map(find).collect();
        assert_eq!(tree.map.len(), 1 + 2 * 50);
        let open = |node: &Arc<Node>| node.dir().unwrap().fd.read().is_some();
        let parents = || subs.iter().map(|sub| sub.any_link().unwrap().0);
        assert!(parents().filter(open).count() <= 16);
        // A descriptor that was closed is opened again when needed.
        subs.iter().for_each(|sub| assert_eq!(Stat::of(&*tree.fd_of(sub).unwrap()).unwrap().ino(), sub.ino));
        assert!(subs.iter().filter(|sub| open(sub)).count() + parents().filter(open).count() <= 16);
        // The same object is the same node, and its parent stays while it is known.
        assert!(Arc::ptr_eq(&find(7), &subs[7]));
        drop(subs);
        assert_eq!(tree.map.len(), 1);
    }

    #[test]
    fn a_mount_inside_the_data_root_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), 16, false).unwrap();
        // Another file system, as `Stat` tells it: of a name that resolves through no link and lies elsewhere.
        let elsewhere = Stat::at(rustix::fs::CWD, b"/proc").unwrap();
        assert!(tree.on_our_mount(elsewhere).is_err_and(|refusal| refusal.is(Errno::XDEV)));
        assert!(tree.on_our_mount(Stat::of(&*tree.fd_of(&tree.root).unwrap()).unwrap()).is_ok());
    }
}
