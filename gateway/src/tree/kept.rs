//! Files without a name that somebody may still come for.
//!
//! A program finds a file by its name and opens it in two steps, in the guest's kernel and then here; between them another
//! one may have replaced the file. On a local file system the first still gets the file that it found. So does it here: what
//! loses its last name to another file is held until no session knows it any more. It cannot come to a wrong file either, because the
//! number is not given to another one meanwhile. (What is only removed may as well not be found any more.)

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, openat2};

use super::{Node, RESOLVE, Stat};

/// Most files that are held, each with a descriptor; the oldest go first.
const MOST: usize = 1024;
/// The bytes on disk that they may take, which are on nobody's account.
const MOST_BYTES: u64 = 64 << 20;
/// A larger file is not held: whoever comes for it is told to look the name up again.
const LARGEST: u64 = 8 << 20;

/// Which are held.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    nodes: VecDeque<(Weak<Node>, u64)>,
    bytes: u64,
}

impl Ring {
    fn pop(&mut self) -> Option<Weak<Node>> {
        let (node, bytes) = self.nodes.pop_front()?;
        self.bytes -= bytes;
        Some(node)
    }
}

/// A descriptor of what is about to lose its last name; `None` if it is not to be held, or cannot be.
pub(crate) fn before(dir: &OwnedFd, name: &[u8], node: &Node, stat: &Stat) -> Option<OwnedFd> {
    if node.is_dir() || stat.blocks_bytes() > LARGEST {
        return None;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat2(dir, name, flags, Mode::empty(), RESOLVE).ok()?;
    Stat::of(&fd).is_ok_and(|stat| node.is(&stat)).then_some(fd)
}

impl Kept {
    /// Holds a node that has lost its last name, for as long as anybody knows it.
    pub(crate) fn hold(&self, node: &Arc<Node>, fd: OwnedFd, bytes: u64) {
        node.place.write().kept = Some(Arc::new(fd));
        let mut over = vec![];
        {
            let mut ring = self.0.lock();
            ring.nodes.push_back((Arc::downgrade(node), bytes));
            ring.bytes += bytes;
            while ring.nodes.len() > MOST || ring.bytes > MOST_BYTES {
                over.extend(ring.pop());
            }
        }
        over.iter().for_each(|node| _ = let_go(node));
    }

    /// Holds nothing any more, because the space is needed. Tells whether anything was held.
    pub(crate) fn let_go(&self) -> bool {
        let all = std::mem::take(&mut *self.0.lock()).nodes;
        all.iter().fold(false, |any, (node, _)| let_go(node) || any)
    }
}

fn let_go(node: &Weak<Node>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    // Closed without the lock: it may free blocks.
    let fd = node.place.write().kept.take();
    fd.is_some()
}
