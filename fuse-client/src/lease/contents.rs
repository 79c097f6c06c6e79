//! Contents of small files that came ahead of their reading, until the kernel reads them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use strongroom_protocol::attr::Node;

use super::table::Asked;

/// Bytes kept at most. What came first goes first.
const MOST_BYTES: usize = 8 << 20;
/// Files kept at most; they may be empty.
const MOST_FILES: usize = 4096;

/// The contents of one file. Counted for as long as they are there.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) bytes: Arc<[u8]>,
    pub(super) until: Instant,
    pub(super) asked: Asked,
    number: u64,
    total: Arc<AtomicUsize>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// What is kept in all, and in which order it came.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    total: Arc<AtomicUsize>,
    order: VecDeque<(Node, u64)>,
    last: u64,
}

impl Shelf {
    pub(super) fn make(&mut self, node: Node, bytes: &[u8], until: Instant, asked: Asked) -> Contents {
        self.last += 1;
        self.order.push_back((node, self.last));
        self.total.fetch_add(bytes.len(), Ordering::Relaxed);
        Contents { bytes: bytes.into(), until, asked, number: self.last, total: self.total.clone() }
    }

    /// What must go to make room: the contents of this node with this number, if they are still there.
    pub(super) fn too_many(&mut self) -> Option<(Node, u64)> {
        let full = self.order.len() > MOST_FILES || self.total.load(Ordering::Relaxed) > MOST_BYTES;
        if full { self.order.pop_front() } else { None }
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }
}

impl Contents {
    pub(super) fn is(&self, number: u64) -> bool {
        self.number == number
    }
}
