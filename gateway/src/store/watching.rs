//! What the detector is told of a change, and how it looks at what is there.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::pread;

use crate::detect::{About, SAMPLE};
use crate::tree::{Node, Tree};

/// What a copy would bring, as much of it as is looked at.
pub(super) fn sample(source: &OwnedFd, offset: u64, length: u64) -> Vec<u8> {
    let mut coming = vec![0; usize::try_from(length).map_or(SAMPLE, |length| length.min(SAMPLE))];
    let count = pread(source, &mut coming[..], offset).unwrap_or(0);
    coming.truncate(count);
    coming
}

/// Calls `tell` with a regular file that is about to be changed.
pub(super) fn about(tree: &Arc<Tree>, node: &Arc<Node>, tell: impl FnOnce(&About<'_>)) {
    if node.kind != FileType::RegularFile {
        return;
    }
    let read = |offset: u64, buffer: &mut [u8]| {
        // The guest's own descriptor may be for writing only. What cannot be read looks like nothing.
        let file = tree.open_node(node, OFlags::RDONLY);
        file.ok().and_then(|(file, _)| pread(&file, buffer, offset).ok()).unwrap_or(0)
    };
    let path = || String::from_utf8_lossy(&tree.path_below(node, tree.root())).into_owned();
    tell(&About { file: (node.ino, node.generation), read: &read, path: &path });
}
