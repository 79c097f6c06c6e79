//! Writing to a file.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, pwrite};
use strongroom_protocol::reply::Outcome;

use super::{sizes, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{OnHandle, Permit};
use crate::leases::Change;
use crate::tree::Stat;

pub(crate) fn write(permit: &Permit<'_, OnHandle>, offset: u64, data: &[u8]) -> Checked<Outcome> {
    let open = permit.target();
    if !open.flags.write {
        return Err(Refusal::errno(Errno::BADF));
    }
    let file = open.file()?;
    let (count, size, appends) = {
        // As the kernel does for buffered writes: one at a time. Sizes and ends are exact meanwhile.
        let _size = open.node.size.lock();
        let stat = Stat::of(file)?;
        let start = if open.flags.append { stat.size() } else { offset };
        let end = start.checked_add(data.len() as u64).ok_or_else(|| Refusal::errno(Errno::FBIG))?;
        if data.is_empty() {
            return Ok(Outcome::Written { count: 0, size: stat.size() });
        }
        permit.require(if start < stat.size() { Deed::Change } else { Deed::Extend })?;
        permit.changing(&[(&open.node, Change::All { data: true, open: false })])?;
        let change = sizes::prepare(permit, &open.node, &stat, end)?;
        permit.undo().content(&open.node, file, &stat, start, end)?;
        if let Some(watch) = permit.watch() {
            watching::about(permit.tree(), &open.node, |about| watch.writes(about, start, data, stat.size()));
        }
        let (count, error) = write_all(file, data, start);
        let size = stat.size().max(if count == 0 { 0 } else { start + count as u64 });
        change.done(size);
        match error {
            Some(error) if count == 0 => return Err(error.into()),
            _ => (count, size, start >= stat.size()),
        }
    };
    if appends {
        permit.appended(open, count as u64);
    }
    if open.flags.sync {
        permit.sync_undo()?;
        rustix::fs::fdatasync(file)?;
    }
    permit.session().wrote(count as u64);
    permit.wrote(&open.node, file);
    Ok(Outcome::Written { count: count as u64, size })
}

/// Writes all if possible; otherwise tells how much, and why not more.
fn write_all(file: &OwnedFd, data: &[u8], start: u64) -> (usize, Option<Errno>) {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match pwrite(file, rest, start + done as u64) {
            Ok(0) => return (done, Some(Errno::IO)),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}
