//! Copying between open files without the data leaving the storage guest.

use rustix::fs::copy_file_range;
use rustix::io::Errno;
use strongroom_protocol::reply::Outcome;

use super::{sizes, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{OnHandles, Permit};
use crate::leases::Change;
use crate::tree::Stat;

/// The most that one request copies, so that none takes long.
const MAX_COPY: u64 = 8 << 20;

pub(crate) fn copy_range(
    permit: &Permit<'_, OnHandles>,
    from_offset: u64,
    to_offset: u64,
    length: u64,
) -> Checked<Outcome> {
    let (from, to) = (permit.source(), permit.target());
    if !from.flags.read || !to.flags.write || to.flags.append {
        return Err(Refusal::errno(Errno::BADF));
    }
    let length = length.min(MAX_COPY);
    let (source, target) = (from.file()?, to.file()?);
    permit.reading(&from.node)?;
    let count = {
        let _size = to.node.size.lock();
        let available = Stat::of(source)?.size().saturating_sub(from_offset).min(length);
        let stat = Stat::of(target)?;
        if available == 0 {
            return Ok(Outcome::Written { count: 0, size: stat.size() });
        }
        let end = to_offset.checked_add(available).ok_or_else(|| Refusal::errno(Errno::FBIG))?;
        permit.require(if to_offset < stat.size() { Deed::Change } else { Deed::Extend })?;
        permit.changing(&[(&to.node, Change::All { data: true, open: false })])?;
        let change = sizes::prepare(permit, &to.node, &stat, end)?;
        permit.undo().content(&to.node, target, &stat, to_offset, end)?;
        if let Some(watch) = permit.watch() {
            let coming = watching::sample(source, from_offset, available);
            watching::about(permit.tree(), &to.node, |about| {
                watch.writes(about, to_offset, &coming, stat.size());
            });
        }
        let (mut in_at, mut out_at) = (from_offset, to_offset);
        let mut count = 0;
        let mut error = None;
        while count < available {
            let rest = usize::try_from(available - count).unwrap_or(usize::MAX);
            match copy_file_range(source, Some(&mut in_at), target, Some(&mut out_at), rest) {
                Ok(0) => break,
                Ok(copied) => count += copied as u64,
                Err(Errno::INTR) => {}
                Err(other) => {
                    error = Some(other);
                    break;
                }
            }
        }
        change.done(if count == 0 { stat.size() } else { stat.size().max(to_offset + count) });
        match error {
            Some(error) if count == 0 => return Err(error.into()),
            _ => count,
        }
    };
    if to.flags.sync {
        permit.sync_undo()?;
        rustix::fs::fdatasync(target)?;
    }
    permit.session().wrote(count);
    permit.wrote(&to.node, target);
    Ok(Outcome::Written { count, size: Stat::of(target)?.size() })
}
