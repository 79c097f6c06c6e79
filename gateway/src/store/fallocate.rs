//! Allocating, punching, zeroing, collapsing, inserting (fallocate(2)).

use rustix::fs::{FallocateFlags, fallocate as system_fallocate};
use rustix::io::Errno;
use strongroom_protocol::reply::Outcome;

use super::{sizes, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{OnHandle, Permit};
use crate::leases::Change;
use crate::tree::Stat;

const KNOWN: FallocateFlags = FallocateFlags::KEEP_SIZE
    .union(FallocateFlags::PUNCH_HOLE)
    .union(FallocateFlags::ZERO_RANGE)
    .union(FallocateFlags::COLLAPSE_RANGE)
    .union(FallocateFlags::INSERT_RANGE);

pub(crate) fn fallocate(
    permit: &Permit<'_, OnHandle>,
    mode: u32,
    offset: u64,
    length: u64,
) -> Checked<Outcome> {
    let open = permit.target();
    if !open.flags.write {
        return Err(Refusal::errno(Errno::BADF));
    }
    let mode = FallocateFlags::from_bits(mode)
        .filter(|mode| KNOWN.contains(*mode))
        .ok_or_else(|| Refusal::errno(Errno::OPNOTSUPP))?;
    let end = offset
        .checked_add(length)
        .filter(|end| i64::try_from(*end).is_ok())
        .ok_or_else(|| Refusal::errno(Errno::FBIG))?;
    let file = open.file()?;
    let _size = open.node.size.lock();
    let stat = Stat::of(file)?;
    let allocates = FallocateFlags::KEEP_SIZE.contains(mode);
    permit.require(if allocates && offset >= stat.size() { Deed::Extend } else { Deed::Change })?;
    let keeps = mode.contains(FallocateFlags::KEEP_SIZE);
    let most = if mode.contains(FallocateFlags::INSERT_RANGE) {
        stat.size().saturating_add(length)
    } else if mode.contains(FallocateFlags::COLLAPSE_RANGE) || keeps {
        stat.size()
    } else {
        stat.size().max(end)
    };
    let change = sizes::prepare(permit, &open.node, &stat, most)?;
    let reserves_beyond = keeps && !mode.contains(FallocateFlags::PUNCH_HOLE) && end > stat.size();
    if reserves_beyond {
        permit.check_size(end)?;
        if change.is_counted() {
            // Room beyond the end is in no file's size: it would not be counted.
            return Err(Refusal::errno(Errno::OPNOTSUPP));
        }
    }
    permit.changing(&[(&open.node, Change::All { data: true, open: false })])?;
    let shifts = mode.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE);
    let changes = shifts || mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
    let changed = if changes { offset } else { end }..if shifts { u64::MAX } else { end };
    permit.undo().content(&open.node, file, &stat, changed.start, changed.end)?;
    let destroys = changes && !mode.contains(FallocateFlags::INSERT_RANGE);
    if let Some(watch) = permit.watch().filter(|_| destroys && stat.size() > 0 && length >= stat.size() / 2) {
        watching::about(permit.tree(), &open.node, |about| watch.empties(about));
    }
    let result = system_fallocate(file, mode, offset, length);
    // Also after a failure: the file may have grown on the way.
    change.done(Stat::of(file)?.size());
    result?;
    permit.wrote(&open.node, file);
    Ok(Outcome::Done)
}
