//! Renaming, replacing, exchanging.

use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags, renameat_with};
use rustix::io::Errno;
use strongroom_protocol::op::{Meant, RenameMode};
use strongroom_protocol::reply::Outcome;

use super::unlink::Vanishing;
use super::{Reach, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{InDirs, Permit};
use crate::leases::Change;
use crate::quota::{Limit, MeterSet, Reservation};
use crate::tree::{Node, Stat};

/// How often a directory that is being changed is tried.
const ATTEMPTS: usize = 1024;

/// Also tells whether others must have noticed before it is answered. `directory`: the one that may be replaced; another one is left
/// alone (`STALE`).
pub(crate) fn rename(
    permit: &Permit<'_, InDirs>,
    name: &[u8],
    new_name: &[u8],
    mode: RenameMode,
    directory: Meant,
) -> Checked<(Outcome, bool)> {
    for _ in 0..ATTEMPTS {
        match rename_in(permit, (permit.from(), name), (permit.to(), new_name), mode, directory) {
            Err(Refusal::WouldBlock) => std::thread::yield_now(),
            other => return other,
        }
    }
    Err(Refusal::errno(Errno::BUSY))
}

/// `WouldBlock`: somebody changes the directory that would be replaced; look again.
pub(crate) fn rename_in(
    reach: &impl Reach,
    (from, name): (&Arc<Node>, &[u8]),
    (to, new_name): (&Arc<Node>, &[u8]),
    mode: RenameMode,
    directory: Meant,
) -> Checked<(Outcome, bool)> {
    let tree = reach.tree();
    let (from_fd, to_fd) = (tree.fd_of(from)?, tree.fd_of(to)?);
    let limits = reach.limits()?;
    let change = tree.change(from, Some(to))?;
    let (old_meters, new_meters) = (tree.meters_at(from), tree.meters_at(to));
    old_meters.ready()?;
    new_meters.ready()?;
    let stat = tree.stat_at(&from_fd, name)?;
    let target = match tree.stat_at(&to_fd, new_name) {
        Ok(target) => Some(target),
        Err(refusal) if refusal.is(Errno::NOENT) => None,
        Err(other) => return Err(other),
    };
    let node = tree.note(from, name, &stat);
    let target = target.map(|stat| (tree.note(to, new_name, &stat), stat));
    let flags = match mode {
        RenameMode::Replace => RenameFlags::empty(),
        RenameMode::NoReplace => RenameFlags::NOREPLACE,
        RenameMode::Exchange => RenameFlags::EXCHANGE,
    };
    let undo = reach.undo();
    let plain = || Ok::<_, Refusal>(renameat_with(&*from_fd, name, &*to_fd, new_name, flags)?);
    let act = |target: Option<(&Node, &Stat)>| {
        undo.rename((from, &from_fd, name), (to, &to_fd, new_name), &node, target, flags)
    };
    let same_object = target.as_ref().is_some_and(|(other, _)| other.id == node.id);
    let refused = match mode {
        RenameMode::NoReplace => target.is_some(),
        RenameMode::Exchange => target.is_none(),
        RenameMode::Replace => false,
    };
    if same_object || refused {
        // Two names of one file stay as they are (rename(2)); otherwise the kernel says why not.
        plain()?;
        return Ok((Outcome::Done, false));
    }
    let across = !old_meters.same(&new_meters);
    if across && (node.is_dir() || mode == RenameMode::Exchange) {
        // What lies below would have to be counted first; project quotas of file systems answer the same.
        return Err(Refusal::errno(Errno::XDEV));
    }
    let crosses = tree.crosses(&node, from, to)
        || target
            .as_ref()
            .is_some_and(|(other, _)| mode == RenameMode::Exchange && tree.crosses(other, to, from));
    let mine = Change::All { data: false, open: false };
    let names = [(from, Change::Name(name)), (to, Change::Name(new_name)), (&node, mine)];
    if mode == RenameMode::Exchange {
        let (other, stat) = target.as_ref().ok_or_else(|| Refusal::errno(Errno::NOENT))?;
        reach.changing(&[&names[..], &[(other, mine)]].concat())?;
        reach.moving((from, to), crosses, &[&node, other])?;
        if let Some(watch) = reach.watch() {
            watching::about(tree, &node, |one| {
                watching::about(tree, other, |other| {
                    watch.replaces(one, other);
                    watch.replaces(other, one);
                });
            });
        }
        act(Some((other, stat)))?;
        tree.moved(&node, (from, name), (to, new_name));
        tree.moved(other, (to, new_name), (from, name));
        drop(change);
        reach.moved_names(from, to);
        return Ok((Outcome::Done, crosses));
    }
    if let Some((other, stat)) = &target
        && other.is_dir()
        && node.is_dir()
        && !directory.is(stat.ino())
    {
        return Err(Refusal::STALE);
    }
    // A directory that is replaced and kept: nothing may appear in it any more.
    let replaced_dir = target.as_ref().map(|(other, _)| other).filter(|other| other.is_dir() && undo.keeps());
    let _emptied = match replaced_dir.filter(|other| other.id != from.id && other.id != to.id) {
        Some(other) => {
            tree.fd_of(other)?;
            Some(tree.try_change(other)?.ok_or(Refusal::WouldBlock)?)
        }
        None => None,
    };
    let mut vanishing =
        target.as_ref().map(|(_, stat)| Vanishing::look(tree, to, new_name, stat, new_meters.clone()));
    // In the order of node ids, as everywhere.
    let replaced = vanishing.as_ref().map(|vanishing| Arc::clone(&vanishing.node));
    let _sizes = lock_sizes(&node, replaced.as_deref());
    let stat = tree.stat_at(&from_fd, name)?;
    let target = match &target {
        Some(_) => Some(tree.stat_at(&to_fd, new_name)?),
        None => None,
    };
    if let (Some(vanishing), Some(stat)) = (&mut vanishing, &target) {
        vanishing.links = tree.links(stat);
    }
    let moving = across
        .then(|| Moving::prepare(&stat, tree.links(&stat), &old_meters, &new_meters, &limits))
        .transpose()?;
    match &vanishing {
        Some(vanishing) => {
            let open = vanishing.links <= 1 || vanishing.node.is_dir();
            let victim = (&vanishing.node, Change::All { data: false, open });
            reach.changing(&[&names[..], &[victim]].concat())?;
        }
        None => reach.changing(&names)?,
    }
    reach.moving((from, to), crosses, &[&node])?;
    if let Some(watch) = reach.watch() {
        watching::about(tree, &node, |about| {
            watch.renames(about, name, new_name);
            if let Some(victim) = &replaced {
                watching::about(tree, victim, |victim| watch.replaces(about, victim));
            }
        });
    }
    let held = vanishing
        .as_ref()
        .zip(target.as_ref())
        .and_then(|(vanishing, target)| vanishing.hold(&to_fd, new_name, target));
    act(replaced.as_deref().zip(target.as_ref()))?;
    if let (Some(vanishing), Some(target)) = (&vanishing, &target) {
        vanishing.vanished(tree, (to, new_name), target, held);
    }
    tree.moved(&node, (from, name), (to, new_name));
    if let Some(moving) = moving {
        moving.done(&stat);
    }
    drop(change);
    reach.moved_names(from, to);
    Ok((Outcome::Done, crosses))
}

fn lock_sizes<'a>(
    one: &'a Node,
    other: Option<&'a Node>,
) -> (parking_lot::MutexGuard<'a, ()>, Option<parking_lot::MutexGuard<'a, ()>>) {
    match other.filter(|other| other.id != one.id) {
        None => (one.size.lock(), None),
        Some(other) if other.id < one.id => {
            let first = other.size.lock();
            (first, Some(one.size.lock()))
        }
        Some(other) => {
            let first = one.size.lock();
            (first, Some(other.size.lock()))
        }
    }
}

/// A file that goes from some meters to others.
struct Moving {
    left: MeterSet,
    entered: MeterSet,
    links: u32,
    bytes: Reservation,
    names: Reservation,
}

impl Moving {
    fn prepare(stat: &Stat, links: u32, old: &MeterSet, new: &MeterSet, limits: &[Limit]) -> Checked<Moving> {
        let (left, entered) = (old.without(new), new.without(old));
        let size = if stat.kind() == FileType::RegularFile { stat.size() } else { 0 };
        let names = entered.reserve(limits, 0, 1)?;
        let fresh: MeterSet = if links > 1 {
            // Counted already where it has another name.
            entered.iter().filter(|meter| !meter.has_shared(stat.ino())).cloned().collect()
        } else {
            entered.clone()
        };
        let bytes = fresh.reserve(limits, size, 0)?;
        Ok(Moving { left, entered, links, bytes, names })
    }

    fn done(self, stat: &Stat) {
        let size = if stat.kind() == FileType::RegularFile { stat.size() } else { 0 };
        self.names.keep();
        self.bytes.keep();
        self.left.release(0, 1);
        if self.links > 1 {
            self.entered.linked(stat.ino(), None);
            self.left.unlinked(stat.ino()).release(size, 0);
        } else {
            self.left.release(size, 0);
        }
    }
}
