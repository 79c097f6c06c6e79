//! Counting a subtree from the disk.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, openat2};
use rustix::io::Errno;
use strongroom_protocol::reply::Failure;

use super::Usage;
use crate::gate::refusal::{Checked, Refusal};
use crate::tree::{Node, Stat, Tree};

/// The deepest nesting that is counted: each level takes a descriptor meanwhile.
const MAX_DEPTH: usize = 2048;
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

struct Level {
    fd: OwnedFd,
    subdirectories: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Sum {
    usage: Usage,
    shared: HashMap<u64, u32>,
    seen: HashSet<u64>,
}

/// What lies below a directory, and which files there have several names. `over`: asked for each name whether to give up.
///
/// # Errors
/// `Fenced` if it was given up; those of reading directories; `ELOOP` if they are nested too deep.
pub(super) fn count(
    tree: &Tree,
    root: &Arc<Node>,
    over: &dyn Fn() -> bool,
) -> Checked<(Usage, HashMap<u64, u32>)> {
    let (fd, _) = tree.open_node(root, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut sum = Sum::default();
    let mut levels = vec![read_level(tree, fd, &mut sum, over)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.subdirectories.pop() else {
            levels.pop();
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(&level.fd, &*name, flags, Mode::empty(), RESOLVE) {
            Ok(fd) if levels.len() < MAX_DEPTH => {
                let next = read_level(tree, fd, &mut sum, over)?;
                levels.push(next);
            }
            Ok(_) => return Err(Refusal::errno(Errno::LOOP)),
            // Another file system, or moved away by an administrator: not ours to count.
            Err(Errno::NOENT | Errno::XDEV | Errno::NOTDIR | Errno::LOOP) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok((sum.usage, sum.shared))
}

fn read_level(tree: &Tree, fd: OwnedFd, sum: &mut Sum, over: &dyn Fn() -> bool) -> Checked<Level> {
    let mut subdirectories = vec![];
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(&fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if over() {
            return Err(Failure::Fenced.into());
        }
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if tree.is_hidden(entry.ino()) {
            continue;
        }
        sum.usage.entries += 1;
        match entry.file_type() {
            FileType::Directory => subdirectories.push(name.to_vec()),
            FileType::RegularFile | FileType::Unknown => match Stat::at(&fd, name) {
                Ok(stat) if stat.kind() == FileType::Directory => subdirectories.push(name.to_vec()),
                Ok(stat) => sum.add(&stat, tree.links(&stat)),
                Err(Errno::NOENT) => sum.usage.entries -= 1,
                Err(other) => return Err(other.into()),
            },
            // Symlinks, fifos and the like with several names are rare, and have no size that counts.
            _ => {}
        }
    }
    Ok(Level { fd, subdirectories })
}

impl Sum {
    fn add(&mut self, stat: &Stat, links: u32) {
        if links > 1 {
            *self.shared.entry(stat.ino()).or_default() += 1;
        }
        if stat.kind() == FileType::RegularFile && (links <= 1 || self.seen.insert(stat.ino())) {
            self.usage.bytes += stat.size();
        }
    }
}
