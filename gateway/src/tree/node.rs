//! A node: what the gateway knows of one object on disk.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::fs::FileType;

use super::map::NodeMap;
use super::stat::Stat;
use crate::leases::NodeLeases;
use crate::quota::{Meter, MeterSet};

/// The longest name of a directory entry.
const NAME_MAX: usize = 255;

/// A name on the stack, so that no lock is held and nothing allocated around a system call.
#[derive(Clone, Copy)]
pub(crate) struct NameBuf {
    length: u8,
    bytes: [u8; NAME_MAX],
}

impl NameBuf {
    /// A copy of a name; longer ones are cut, which makes them names of nothing.
    pub(crate) fn new(name: &[u8]) -> NameBuf {
        let mut bytes = [0; NAME_MAX];
        let length = name.len().min(NAME_MAX);
        bytes[..length].copy_from_slice(&name[..length]);
        // At most 255.
        NameBuf { length: length as u8, bytes }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// One name of an object.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: Box<[u8]>,
}

impl Link {
    pub(crate) fn is(&self, parent: &Node, name: &[u8]) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

/// Where an object is.
#[derive(Default)]
pub(crate) struct Place {
    /// The names that the gateway knows of; one for a directory, none for the data root. If `gone`: the last one that
    /// it had.
    pub(crate) links: Vec<Link>,
    /// It has no name any more; it lives on through handles.
    pub(crate) gone: bool,
    /// While it is gone: a descriptor for those who found it by its name before ([`super::kept`]).
    pub(crate) kept: Option<Arc<OwnedFd>>,
    /// While it is gone and open: what its bytes are still charged to, and how many when last looked at.
    pub(crate) orphan: Option<(MeterSet, u64)>,
}

/// An object on disk. There is at most one `Node` for an object at any time, shared by all sessions.
pub(crate) struct Node {
    /// Unique in the life of the process.
    pub(crate) id: u64,
    pub(crate) ino: u64,
    pub(crate) generation: u64,
    pub(crate) kind: FileType,
    pub(crate) place: RwLock<Place>,
    /// Rises whenever a name of it is taken away or moved.
    pub(crate) moves: AtomicU64,
    /// Held while a decision depends on the size or the number of links, until the change is done.
    pub(crate) size: Mutex<()>,
    /// Who may keep what of it.
    pub(crate) leases: NodeLeases,
    /// Open handles.
    opens: AtomicU32,
    /// When its place was last compared with the disk, in milliseconds of the coarse clock.
    pub(super) confirmed: AtomicU64,
    dir: Option<Box<Dir>>,
    pub(super) map: Weak<NodeMap>,
}

/// What only directories have.
pub(crate) struct Dir {
    pub(super) fd: RwLock<Option<Arc<OwnedFd>>>,
    pub(super) fd_used: AtomicBool,
    /// Held by operations that change names in the directory.
    pub(super) names: Mutex<()>,
    /// Odd while names change.
    pub(super) version: AtomicU64,
    /// Held while a name that was looked up is noted, or `version` changes.
    pub(super) commit: Mutex<()>,
    /// Live grants of which it is the root.
    pub(super) roots: AtomicU32,
    /// Counts what lies below, if a quota asks for that.
    pub(crate) meter: OnceLock<Arc<Meter>>,
    /// The meters of this directory and all above, with the epoch of the answer.
    pub(super) meters: RwLock<Option<(u64, MeterSet)>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Node {
    pub(super) fn new(
        ino: u64,
        generation: u64,
        kind: FileType,
        link: Option<Link>,
        map: Weak<NodeMap>,
    ) -> Node {
        let dir = (kind == FileType::Directory).then(|| {
            Box::new(Dir {
                fd: RwLock::default(),
                fd_used: AtomicBool::new(false),
                names: Mutex::default(),
                version: AtomicU64::new(0),
                commit: Mutex::default(),
                roots: AtomicU32::new(0),
                meter: OnceLock::new(),
                meters: RwLock::default(),
            })
        });
        Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            ino,
            generation,
            kind,
            place: RwLock::new(Place { links: link.into_iter().collect(), ..Place::default() }),
            moves: AtomicU64::new(0),
            size: Mutex::default(),
            leases: NodeLeases::default(),
            opens: AtomicU32::new(0),
            confirmed: AtomicU64::new(0),
            dir,
            map,
        }
    }

    /// The directory's part; `None` if it is none.
    pub(crate) fn dir(&self) -> Option<&Dir> {
        self.dir.as_deref()
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.dir.is_some()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.place.read().gone
    }

    /// Whether these are the attributes of this object, and not of another one that has its number by now.
    pub(crate) fn is(&self, stat: &Stat) -> bool {
        (stat.ino(), stat.generation()) == (self.ino, self.generation)
    }

    /// Whether the gateway knows it under this name.
    pub(crate) fn has_link(&self, parent: &Node, name: &[u8]) -> bool {
        let place = self.place.read();
        !place.gone && place.links.iter().any(|link| link.is(parent, name))
    }

    /// What it is reached by though it is gone; `None` if it has a name, or is not held.
    pub(super) fn kept(&self) -> Option<Arc<OwnedFd>> {
        let place = self.place.read();
        place.kept.as_ref().filter(|_| place.gone).map(Arc::clone)
    }

    /// One of its names; `None` for the data root, and for what is gone or lost.
    pub(crate) fn any_link(&self) -> Option<(Arc<Node>, NameBuf)> {
        let place = self.place.read();
        let link = place.links.first().filter(|_| !place.gone)?;
        Some((Arc::clone(&link.parent), NameBuf::new(&link.name)))
    }

    /// Those of its names that the gateway knows, at most `most`.
    pub(crate) fn known_links(&self, most: usize) -> Vec<(Arc<Node>, NameBuf)> {
        let place = self.place.read();
        let links = place.links.iter().filter(|_| !place.gone).take(most);
        links.map(|link| (Arc::clone(&link.parent), NameBuf::new(&link.name))).collect()
    }

    /// Whether somebody has it open.
    pub(crate) fn is_open(&self) -> bool {
        self.opens.load(Ordering::SeqCst) > 0
    }

    /// The descriptor of a directory, if one is kept.
    pub(crate) fn dir_fd(&self) -> Option<Arc<OwnedFd>> {
        self.dir()?.fd.read().clone()
    }

    /// Counts a handle that is about to be opened.
    pub(crate) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a handle that is about to be closed, with the present size if the object has no name any more; returns
    /// what is charged if it was the last.
    pub(crate) fn closed(&self, size: Option<u64>) -> Option<(MeterSet, u64)> {
        if let Some(size) = size
            && let Some(orphan) = &mut self.place.write().orphan
        {
            orphan.1 = size;
        }
        if self.opens.fetch_sub(1, Ordering::SeqCst) == 1 { self.place.write().orphan.take() } else { None }
    }

    /// Settles what becomes of the bytes of an object that has just lost its last name: charged until it is closed, or
    /// given back now.
    pub(crate) fn orphaned(&self, meters: &MeterSet, size: u64) {
        if meters.is_empty() {
            return;
        }
        {
            let mut place = self.place.write();
            if self.opens.load(Ordering::SeqCst) > 0 {
                place.orphan = Some((meters.clone(), size));
                return;
            }
        }
        meters.release(size, 0);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(map) = self.map.upgrade() {
            map.forget(self);
        }
        // Parents whose last reference this is are taken apart in a loop: a chain of directories may be deeper than the
        // stack.
        let mut links = std::mem::take(&mut self.place.get_mut().links);
        while let Some(link) = links.pop() {
            if let Some(mut parent) = Arc::into_inner(link.parent) {
                links.append(&mut parent.place.get_mut().links);
            }
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}, {:?})", self.ino, self.kind)
    }
}
