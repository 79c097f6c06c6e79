//! Looking at the past without changing it: old versions, the history of a path, what an application touched and who read
//! that since.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, ftruncate};
use rustix::io::Errno;

use super::Undo;
use super::carry::replace_all;
use super::place::Spot;
use super::plan::{Story, Told, UndoError};
use super::record::{At, Object, Saved, Sides, What};
use super::vault::{copy_all, write_at};
use crate::gate::refusal::{Checked, Refusal};
use crate::tree::{Node, Stat, Tree};

/// One thing that happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryItem {
    /// When, in microseconds since the Unix epoch.
    pub at_us: u64,
    /// By whom.
    pub application: String,
    /// Under which contract (or undo), if that is known.
    pub contract: Option<[u8; 16]>,
    /// What, in words.
    pub what: String,
    /// It can be taken back.
    pub kept: bool,
}

/// What an application did to a path, and who has read that.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BlastItem {
    /// From the data root.
    pub path: Vec<u8>,
    /// What, in words: `created`, `changed`, …
    pub what: Vec<String>,
    /// When last, in microseconds since the Unix epoch.
    pub last_us: u64,
    /// Who read it since, and when first.
    pub readers: Vec<(String, u64)>,
    /// Whose client asked for it ahead of its users, and when first: they may have read it, which nobody heard of.
    pub sent_ahead: Vec<(String, u64)>,
}

/// What stood in the way of an old version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Rewound {
    /// Bytes that were kept are forgotten.
    pub(super) forgotten: bool,
    /// Somebody without a window wrote too, of whom nothing is kept.
    pub(super) unkept: bool,
}

impl Undo {
    /// The content of a file as it was before the record `from` and all later ones, whosever; and whether nothing of
    /// what is needed for that is forgotten.
    pub(super) fn version(
        &self,
        tree: &Tree,
        story: &Story,
        node: &Arc<Node>,
        from: u64,
    ) -> Checked<(OwnedFd, Rewound)> {
        let (file, _) = tree.open_node(node, OFlags::RDONLY)?;
        let old = self.vault.temporary()?;
        {
            let _size = node.size.lock();
            replace_all(&file, &old)?;
        }
        let rewound = self.rewind(story, Object::of(node), from, &old)?;
        Ok((old, rewound))
    }

    fn rewind(&self, story: &Story, object: Object, from: u64, old: &OwnedFd) -> Checked<Rewound> {
        let mut rewound = Rewound::default();
        for told in story.all.iter().rev().take_while(|told| told.record.seq >= from) {
            let What::Changed { object: of, sides, before, saved } = &told.record.what else { continue };
            let seq = told.record.seq;
            if *of != object || !sides.has(Sides::CONTENT) || story.void.contains(&seq) {
                continue;
            }
            let kept = || match self.vault.open_kept(&told.application, seq, OFlags::RDONLY) {
                Err(Errno::NOENT) => Ok(None),
                other => other.map(Some),
            };
            match saved {
                Saved::Nothing => rewound.unkept |= told.record.window == 0,
                Saved::Bytes { offset, bytes } => write_at(old, bytes, *offset)?,
                Saved::Range { offset, length } => match kept()? {
                    Some(kept) => copy_all(&kept, 0, old, *offset, *length)?,
                    None => rewound.forgotten = true,
                },
                Saved::Clone => match kept()? {
                    Some(kept) => replace_all(&kept, old)?,
                    None => rewound.forgotten = true,
                },
            }
            if let Some(before) = before {
                ftruncate(old, before.size)?;
            }
        }
        Ok(rewound)
    }

    /// A file as it was at a time, in a file without a name; `false`: parts of it are forgotten.
    ///
    /// # Errors
    /// `ENOENT` if there was no file of this path, as far as the log reaches.
    pub(crate) fn file_at(
        &self,
        tree: &Tree,
        path: &[u8],
        at_us: u64,
    ) -> Result<(OwnedFd, bool), FileAtError> {
        let story = Story::read(self, at_us)?;
        let now = lookup_path(tree, path).ok().map(|node| Object::of(&node));
        let mut object = now;
        let named = |at: &At| story.places.path(tree, at) == path;
        for told in story.all.iter().rev().take_while(|told| told.record.seq > at_us) {
            if story.void.contains(&told.record.seq) {
                continue;
            }
            match &told.record.what {
                What::Making { at, .. } | What::Returned { at, .. } | What::Linked { at, .. }
                    if named(at) =>
                {
                    object = None;
                }
                What::Removed { object: old, at, .. } if named(at) => object = Some(*old),
                What::Renamed { object: moved, from, .. } if named(from) => object = Some(*moved),
                What::Renamed { to, replaced, .. } if named(to) => object = *replaced,
                What::Exchanged { one, from, .. } if named(from) => object = Some(*one),
                What::Exchanged { other, to, .. } if named(to) => object = Some(*other),
                _ => {}
            }
        }
        let object = object.ok_or(FileAtError::NotThere)?;
        let file = match story.places.find(tree, object) {
            Ok(node) if node.kind == FileType::RegularFile => tree.open_node(&node, OFlags::RDONLY)?.0,
            Ok(_) => return Err(FileAtError::NoFile),
            Err(_) => self.open_spot(&story, object)?,
        };
        let old = self.vault.temporary().map_err(Refusal::from)?;
        replace_all(&file, &old).map_err(Refusal::from)?;
        let rewound = self.rewind(&story, object, at_us.saturating_add(1), &old)?;
        Ok((old, rewound == Rewound::default()))
    }

    fn open_spot(&self, story: &Story, object: Object) -> Result<OwnedFd, FileAtError> {
        for spot in story.places.of(object) {
            let Spot::Kept(application, seq) = spot else { continue };
            match self.vault.open_kept(application, *seq, OFlags::RDONLY) {
                Ok(file) => {
                    let stat = Stat::of(&file).map_err(Refusal::from)?;
                    if stat.kind() != FileType::RegularFile {
                        return Err(FileAtError::NoFile);
                    }
                    if Object::told(&stat) == object {
                        return Ok(file);
                    }
                }
                Err(Errno::NOENT) => {}
                Err(other) => return Err(Refusal::from(other).into()),
            }
        }
        Err(FileAtError::NotThere)
    }

    /// What happened to a path, and to what has it now, oldest first.
    pub(crate) fn history(&self, tree: &Tree, path: &[u8]) -> Result<Vec<HistoryItem>, UndoError> {
        let story = Story::read(self, 0)?;
        let mut objects: HashSet<Object> =
            lookup_path(tree, path).ok().map(|node| Object::of(&node)).into_iter().collect();
        let named = |at: &At| story.places.path(tree, at) == path;
        // Whatever had the name once.
        for told in &story.all {
            match &told.record.what {
                What::Making { at, .. } if named(at) => objects.extend(story.made.get(&told.record.seq)),
                What::Removed { object, at, .. } | What::Returned { object, at } if named(at) => {
                    objects.insert(*object);
                }
                What::Renamed { to, replaced: Some(object), .. } if named(to) => {
                    objects.insert(*object);
                }
                _ => {}
            }
        }
        let mut items = vec![];
        for told in story.all.iter().filter(|told| !story.void.contains(&told.record.seq)) {
            let Some(what) = describe(&story, tree, told, &objects, &named) else { continue };
            let item = HistoryItem {
                at_us: told.record.seq,
                application: told.application.to_string(),
                contract: told.ids.last().copied(),
                what,
                kept: told.record.window > 0,
            };
            let again = items.last().is_some_and(|last: &HistoryItem| {
                last.what == item.what
                    && last.contract == item.contract
                    && item.at_us.saturating_sub(last.at_us) < super::INTERVAL_US
            });
            if !again {
                items.push(item);
            }
        }
        Ok(items)
    }

    /// What an application touched since a time, and who has read since what it wrote.
    pub(crate) fn blast(
        &self,
        tree: &Tree,
        application: &str,
        since_us: u64,
    ) -> Result<Vec<BlastItem>, UndoError> {
        if !self.logs.read().contains_key(application) {
            return Err(UndoError::Unknown(application.to_owned()));
        }
        let story = Story::read(self, since_us)?;
        let mut items: BTreeMap<Vec<u8>, BlastItem> = BTreeMap::new();
        let mut paths: HashMap<Object, Vec<u8>> = HashMap::new();
        let mut note = |path: Vec<u8>, what: &str, seq: u64| {
            let item =
                items.entry(path.clone()).or_insert_with(|| BlastItem { path, ..BlastItem::default() });
            if !item.what.iter().any(|other| other == what) {
                item.what.push(what.to_owned());
            }
            item.last_us = item.last_us.max(seq);
        };
        let own = |told: &&Told| {
            *told.application == *application
                && told.record.seq >= since_us
                && !story.void.contains(&told.record.seq)
        };
        for told in story.all.iter().filter(own) {
            let seq = told.record.seq;
            let path = |at: &At| story.places.path(tree, at);
            match &told.record.what {
                What::Making { at, .. } | What::Linked { at, .. } => note(path(at), "created", seq),
                What::Removed { at, .. } => note(path(at), "deleted", seq),
                What::Renamed { from, to, replaced, .. } => {
                    note(path(from), "renamed", seq);
                    note(path(to), if replaced.is_some() { "replaced" } else { "created" }, seq);
                }
                What::Exchanged { from, to, .. } => {
                    [from, to].into_iter().for_each(|at| note(path(at), "renamed", seq))
                }
                What::Changed { object, sides, .. } if *sides != Sides::ENTRIES => {
                    let path = story.places.object_path(tree, *object).unwrap_or_default();
                    note(path, if sides.has(Sides::CONTENT) { "written" } else { "attributes" }, seq);
                }
                What::Xattr { object, .. } => {
                    note(story.places.object_path(tree, *object).unwrap_or_default(), "attributes", seq);
                }
                _ => {}
            }
        }
        for told in &story.all {
            let (object, written_by, ahead) = match &told.record.what {
                What::Read { object, written_by } => (object, written_by, false),
                What::Sent { object, written_by } => (object, written_by, true),
                _ => continue,
            };
            if written_by != application || told.record.seq < since_us {
                continue;
            }
            let path = paths
                .entry(*object)
                .or_insert_with(|| story.places.object_path(tree, *object).unwrap_or_default());
            let item = items.entry(path.clone()).or_insert_with(|| BlastItem {
                path: path.clone(),
                what: vec!["written".into()],
                ..BlastItem::default()
            });
            let list = if ahead { &mut item.sent_ahead } else { &mut item.readers };
            if !list.iter().any(|(reader, _)| **reader == *told.application) {
                list.push((told.application.to_string(), told.record.seq));
            }
        }
        for BlastItem { readers, sent_ahead, .. } in items.values_mut() {
            // Whoever has read it for certain need not be told as one who may have.
            sent_ahead.retain(|(name, _)| !readers.iter().any(|(reader, _)| reader == name));
        }
        Ok(items.into_values().collect())
    }
}

/// Why an old version cannot be shown.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FileAtError {
    /// There was none.
    #[error("no file had this path at that time, as far as the undo log reaches")]
    NotThere,
    /// It is something else.
    #[error("this path was no regular file at that time")]
    NoFile,
    /// The log.
    #[error(transparent)]
    Log(#[from] UndoError),
    /// The disk.
    #[error("it cannot be read: {0}")]
    Io(String),
}

impl From<Refusal> for FileAtError {
    fn from(refusal: Refusal) -> FileAtError {
        FileAtError::Io(format!("{:?}", refusal.failure()).to_lowercase())
    }
}

fn lookup_path(tree: &Tree, path: &[u8]) -> Checked<Arc<Node>> {
    let mut at = Arc::clone(tree.root());
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        if matches!(name, b"." | b"..") {
            return Err(Refusal::errno(Errno::NOENT));
        }
        at = tree.lookup(&at, name)?.0;
    }
    Ok(at)
}

fn describe(
    story: &Story,
    tree: &Tree,
    told: &Told,
    objects: &HashSet<Object>,
    named: &impl Fn(&At) -> bool,
) -> Option<String> {
    let path = |at: &At| String::from_utf8_lossy(&story.places.path(tree, at)).into_owned();
    Some(match &told.record.what {
        What::Making { at, .. } if named(at) => "created".into(),
        What::Returned { at, .. } if named(at) => "brought back".into(),
        What::Linked { object, at } if named(at) || objects.contains(object) => {
            format!("linked as {}", path(at))
        }
        What::Removed { at, .. } if named(at) => "deleted".into(),
        What::Renamed { object, from, to, .. } if named(from) || named(to) || objects.contains(object) => {
            format!("renamed from {} to {}", path(from), path(to))
        }
        What::Exchanged { from, to, .. } if named(from) || named(to) => {
            format!("exchanged {} and {}", path(from), path(to))
        }
        // Of one interval, the first record tells all.
        What::Changed { object, before: None, .. } if told.record.window > 0 && objects.contains(object) => {
            return None;
        }
        What::Changed { object, sides, before, .. }
            if objects.contains(object) && *sides != Sides::ENTRIES =>
        {
            let was = before.map(|before| format!(" ({} bytes before)", before.size)).unwrap_or_default();
            if sides.has(Sides::CONTENT) { format!("written{was}") } else { "attributes changed".into() }
        }
        What::Xattr { object, name, .. } if objects.contains(object) => {
            format!("attribute {} changed", String::from_utf8_lossy(name))
        }
        What::Read { object, written_by } if objects.contains(object) => {
            format!("read after {written_by} wrote it")
        }
        What::Sent { object, written_by } if objects.contains(object) => {
            format!("sent ahead after {written_by} wrote it")
        }
        _ => return None,
    })
}
