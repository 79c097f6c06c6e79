//! Exactly once, across a crash of the process: what an operation found before it ran, and whether it took effect.
//!
//! Only operations that must not run twice leave a note. What other sessions do between the crash and the replay can
//! hide an effect; each rule says what it goes by.

use rustix::fs::FileType;
use rustix::io::{Errno, pread};
use rustix::time::{ClockId, clock_gettime};
use strongroom_protocol::attr::Node;
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::Outcome;

use super::dispatch::{Answer, again};
use super::{Before, Done, ReplyBuf};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{Gate, InDir, OnHandle, Permit};
use crate::store;
use crate::tree::{Node as TreeNode, Stat, Tree};

/// Nothing was noted: run it again.
const NOTHING: u8 = 0;
/// `first`: the inode number behind the name, 0 if there was none; `second`: when, in the form of a generation.
const NAME: u8 = 1;
/// `first` and `second`: the inode numbers behind both names.
const NAMES: u8 = 2;
/// `first`: the size of the file.
const SIZE: u8 = 3;
/// `first`: whether the attribute was there.
const ATTRIBUTE: u8 = 4;

/// The present time in the form of a generation ([`Stat::generation`]), no later than that of what is made from now on.
pub(crate) fn now() -> u64 {
    at_present(ClockId::RealtimeCoarse)
}

/// The same, no earlier than that of what was made before: file systems may take finer times than those of the coarse clock (multigrain
/// timestamps, Linux 6.13).
pub(crate) fn just_now() -> u64 {
    at_present(ClockId::Realtime)
}

fn at_present(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.cast_unsigned() << 30 | now.tv_nsec.cast_unsigned()
}

fn number(found: Checked<Stat>) -> Checked<u64> {
    match found {
        Ok(stat) => Ok(stat.ino()),
        Err(refusal) if refusal.is(Errno::NOENT) => Ok(0),
        Err(other) => Err(other),
    }
}

fn at(tree: &Tree, dir: &std::sync::Arc<TreeNode>, name: &[u8]) -> Checked<u64> {
    number(tree.stat_at(&*tree.fd_of(dir)?, name))
}

pub(super) fn before(gate: &Gate<'_>, op: &Op, data: &[u8]) -> Before {
    // What is refused here is refused by the operation itself too.
    note(gate, op, data).unwrap_or_default()
}

fn note(gate: &Gate<'_>, op: &Op, data: &[u8]) -> Checked<Before> {
    let in_dir = |parent: &Node, name: &[u8]| {
        let permit = gate.entry(op, *parent)?;
        let first = at(permit.tree(), permit.dir(), name)?;
        Ok(Before { kind: NAME, first, second: now() })
    };
    match op {
        Op::Create { parent, name, .. }
        | Op::Mkdir { parent, name, .. }
        | Op::Mknod { parent, name, .. }
        | Op::Symlink { parent, name, .. }
        | Op::Unlink { parent, name }
        | Op::Rmdir { parent, name, .. } => in_dir(parent, name.as_bytes()),
        Op::Link { parent, name, .. } => {
            let permit = gate.entry(op, *parent)?;
            let first = at(permit.tree(), permit.dir(), name.as_bytes())?;
            Ok(Before { kind: NAME, first, second: now() })
        }
        Op::Rename { parent, name, new_parent, new_name, .. } => {
            let permit = gate.entries(op, *parent, *new_parent)?;
            let first = at(permit.tree(), permit.from(), name.as_bytes())?;
            let second = at(permit.tree(), permit.to(), new_name.as_bytes())?;
            Ok(Before { kind: NAMES, first, second })
        }
        Op::Write { handle, .. } if !data.is_empty() => {
            let permit = gate.handle(op, *handle)?;
            // With the right to change bytes, writing the same bytes to the same place again does no harm.
            if !permit.target().flags.append && permit.require(Deed::Change).is_ok() {
                return Ok(Before::default());
            }
            Ok(Before { kind: SIZE, first: Stat::of(permit.target().file()?)?.size(), second: 0 })
        }
        Op::Fallocate { handle, mode, .. } if moves_bytes(*mode) => {
            let permit = gate.handle(op, *handle)?;
            Ok(Before { kind: SIZE, first: Stat::of(permit.target().file()?)?.size(), second: 0 })
        }
        Op::Setxattr { node, name_length, flags } if *flags != 0 => {
            let name = data.get(..usize::from(*name_length)).ok_or(Refusal::MALFORMED)?;
            let there = has_attribute(gate, op, *node, name)?;
            Ok(Before { kind: ATTRIBUTE, first: u64::from(there), second: 0 })
        }
        Op::Removexattr { node } => {
            let there = has_attribute(gate, op, *node, data)?;
            Ok(Before { kind: ATTRIBUTE, first: u64::from(there), second: 0 })
        }
        _ => Ok(Before::default()),
    }
}

/// FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE.
fn moves_bytes(mode: u32) -> bool {
    mode & (0x08 | 0x20) != 0
}

fn has_attribute(gate: &Gate<'_>, op: &Op, node: Node, name: &[u8]) -> Checked<bool> {
    let permit = gate.node(op, node, None)?;
    match store::xattr::get(&permit, name, &mut ReplyBuf::new()) {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.is(Errno::NODATA) => Ok(false),
        Err(other) => Err(other),
    }
}

pub(super) fn replayed(gate: &Gate<'_>, before: Before, op: &Op, data: &[u8]) -> Option<Done> {
    if matches!(op, Op::Release { .. }) {
        // The handle ended with the process.
        return Some(Outcome::Done.into());
    }
    if before.kind == NOTHING {
        return None;
    }
    let answer = again(gate, &|| Err(Refusal::Recall), || {
        Ok(took_effect(gate, before, op, data)?.unwrap_or_else(run_again))
    });
    match answer {
        Ok(Answer { outcome: Some(outcome), claim, .. }) => Some(Done { claim, ..outcome.into() }),
        // Served again, the operation tells what is wrong itself.
        Ok(Answer { outcome: None, .. }) | Err(_) => None,
    }
}

fn run_again() -> Answer {
    Answer { outcome: None, claim: None, settle: false }
}

/// The answer if the operation took effect.
fn took_effect(gate: &Gate<'_>, before: Before, op: &Op, data: &[u8]) -> Checked<Option<Answer>> {
    match op {
        Op::Create { parent, name, flags, .. } => {
            let permit = gate.entry(op, *parent)?;
            if !appeared(gate, before, &permit, name.as_bytes(), Some(FileType::RegularFile))? {
                return Ok(None);
            }
            Ok(Some(store::create::created(&permit, name.as_bytes(), *flags)?.into()))
        }
        Op::Mkdir { parent, name, .. }
        | Op::Mknod { parent, name, .. }
        | Op::Symlink { parent, name, .. } => {
            let permit = gate.entry(op, *parent)?;
            let kind = match op {
                Op::Mkdir { .. } => Some(FileType::Directory),
                Op::Symlink { .. } => Some(FileType::Symlink),
                _ => None,
            };
            if !appeared(gate, before, &permit, name.as_bytes(), kind)? {
                return Ok(None);
            }
            Ok(Some(store::create::found_own(&permit, name.as_bytes())?.into()))
        }
        Op::Link { node, parent, name } => {
            let permit = gate.entry(op, *parent)?;
            let now = at(permit.tree(), permit.dir(), name.as_bytes())?;
            if before.first != 0 || now != node.ino || parent.grant != node.grant {
                return Ok(None);
            }
            let (node, stat) = permit.tree().lookup(permit.dir(), name.as_bytes())?;
            Ok(Some(Outcome::Entry(permit.tell(&node, &stat)).into()))
        }
        Op::Unlink { parent, name } | Op::Rmdir { parent, name, .. } => {
            let permit = gate.entry(op, *parent)?;
            let now = at(permit.tree(), permit.dir(), name.as_bytes())?;
            let meant = !matches!(op, Op::Rmdir { directory, .. } if !directory.is(before.first));
            Ok((meant && before.first != 0 && now != before.first).then(|| Outcome::Done.into()))
        }
        Op::Rename { parent, name, new_parent, new_name, mode, .. } => {
            let permit = gate.entries(op, *parent, *new_parent)?;
            let from = at(permit.tree(), permit.from(), name.as_bytes())?;
            let to = at(permit.tree(), permit.to(), new_name.as_bytes())?;
            let moved = before.first != 0 && before.first != before.second && to == before.first;
            let left = match mode {
                RenameMode::Exchange => from == before.second,
                RenameMode::Replace | RenameMode::NoReplace => from != before.first,
            };
            Ok((moved && left).then(|| Outcome::Done.into()))
        }
        Op::Write { handle, offset } => {
            let permit = gate.handle(op, *handle)?;
            let at = if permit.target().flags.append { None } else { Some(*offset) };
            Ok(was_appended(&permit, before.first, at, data)?.map(Answer::from))
        }
        Op::Fallocate { handle, .. } => {
            let permit = gate.handle(op, *handle)?;
            let size = Stat::of(permit.target().file()?)?.size();
            Ok((size != before.first).then(|| Outcome::Done.into()))
        }
        Op::Setxattr { node, name_length, .. } => {
            let name = data.get(..usize::from(*name_length)).ok_or(Refusal::MALFORMED)?;
            // Of the flags, only XATTR_CREATE makes a second run fail.
            let there = has_attribute(gate, op, *node, name)?;
            Ok((before.first == 0 && there).then(|| Outcome::Done.into()))
        }
        Op::Removexattr { node } => {
            let there = has_attribute(gate, op, *node, data)?;
            Ok((before.first == 1 && !there).then(|| Outcome::Done.into()))
        }
        _ => Ok(None),
    }
}

/// Whether a name that led to nothing leads to something that was made between the note and the start of this process:
/// what somebody else made since then is not taken for the session's own.
fn appeared(
    gate: &Gate<'_>,
    before: Before,
    permit: &Permit<'_, InDir>,
    name: &[u8],
    kind: Option<FileType>,
) -> Checked<bool> {
    if before.first != 0 {
        return Ok(false);
    }
    let fd = permit.tree().fd_of(permit.dir())?;
    let stat = match permit.tree().stat_at(&fd, name) {
        Err(refusal) if refusal.is(Errno::NOENT) => return Ok(false),
        other => other?,
    };
    let born = stat.generation();
    let in_time = born == 0 || (before.second..=gate.engine.started).contains(&born);
    Ok(in_time && kind.is_none_or(|kind| kind == stat.kind()))
}

/// Whether the bytes are in the file: at `offset`, or (appended) anywhere behind its former end.
fn was_appended(
    permit: &Permit<'_, OnHandle>,
    size_before: u64,
    offset: Option<u64>,
    data: &[u8],
) -> Checked<Option<Outcome>> {
    // An access of the gateway's own: the handle need not be open for reading.
    let open = permit.target();
    let (file, stat) = permit.tree().open_node(&open.node, rustix::fs::OFlags::RDONLY)?;
    let length = data.len() as u64;
    let written = || Some(Outcome::Written { count: length, size: stat.size() });
    let (start, end) = match offset {
        Some(offset) if offset < size_before => return Ok(None),
        Some(offset) => (offset, offset.saturating_add(length).min(stat.size())),
        None => (size_before, stat.size()),
    };
    // Others may have appended since; more than this is not searched.
    let most = length.saturating_add(16 << 20);
    let mut found = vec![0; usize::try_from(end.saturating_sub(start).min(most)).unwrap_or(0)];
    let mut filled = 0;
    while let Some(rest) = found.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match pread(&file, rest, start + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    found.truncate(filled);
    let first = data.first();
    let starts = found.iter().enumerate().filter(|(_, byte)| Some(*byte) == first).map(|(n, _)| n);
    let there = starts.take(1 << 16).any(|n| found.get(n..).is_some_and(|rest| rest.starts_with(data)));
    Ok(if there { written() } else { None })
}
