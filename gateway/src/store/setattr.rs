//! Changing attributes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, Uid, chownat, ftruncate, utimensat};
use rustix::io::Errno;
use strongroom_contracts::Ownership;
use strongroom_protocol::attr::{SetAttr, SetTime};
use strongroom_protocol::reply::Outcome;

use super::{getattr, sizes, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{OnNode, Permit};
use crate::handles::Open;
use crate::leases::Change;
use crate::tree::Stat;
use crate::undo::Sides;

/// What the attributes are set on.
enum Target {
    /// What the session has open.
    Open(Arc<Open>),
    /// An O_PATH descriptor.
    Path(OwnedFd),
}

impl Target {
    fn fd(&self) -> Checked<&OwnedFd> {
        match self {
            Target::Open(open) => open.file(),
            Target::Path(fd) => Ok(fd),
        }
    }
}

pub(crate) fn setattr(permit: &Permit<'_, OnNode>, set: &SetAttr) -> Checked<Outcome> {
    let owner = owner(permit, set)?;
    check_rights(permit, set, owner)?;
    if *set == SetAttr::default() {
        permit.may_see_attributes()?;
        return getattr::getattr(permit);
    }
    let target = match permit.handle() {
        Some(open) => Target::Open(Arc::clone(open)),
        None => Target::Path(permit.tree().open_node(permit.node(), OFlags::PATH)?.0),
    };
    let fd = target.fd()?;
    permit.changing(&[(permit.node(), Change::All { data: set.size.is_some(), open: false })])?;
    if let Some(size) = set.size {
        resize(permit, size)?;
    }
    // Changes of one object are kept in their order.
    let _size = permit.node().size.lock();
    let modes = if owner.is_some() || set.mode.is_some() { Sides::MODE } else { Sides::default() };
    let times = if set.atime.is_some() || set.mtime.is_some() { Sides::TIMES } else { Sides::default() };
    if modes.with(times) != Sides::default() {
        permit.undo().attributes(permit.node(), modes.with(times), || Ok(Stat::of(fd)?))?;
    }
    if let Some((uid, gid)) = owner {
        chownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
    }
    if let Some(mode) = set.mode {
        if permit.node().kind == FileType::Symlink {
            return Err(Refusal::errno(Errno::OPNOTSUPP));
        }
        permit.tree().chmod(fd, permit.mode(mode, permit.node().is_dir()))?;
    }
    if set.atime.is_some() || set.mtime.is_some() {
        let times = Timestamps { last_access: timespec(set.atime)?, last_modification: timespec(set.mtime)? };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    permit.changed(permit.node());
    Ok(Outcome::Attr(permit.show(&Stat::of(fd)?)))
}

/// Everything is decided before anything is done. How much a change of size needs is known only when the size is.
fn check_rights(
    permit: &Permit<'_, OnNode>,
    set: &SetAttr,
    owner: Option<(Option<u32>, Option<u32>)>,
) -> Checked<()> {
    let explicit = |time: Option<SetTime>| matches!(time, Some(SetTime::At(_)));
    if set.mode.is_some() || owner.is_some() || explicit(set.atime) || explicit(set.mtime) {
        permit.require(Deed::SetAttributes)?;
    } else if set.atime.is_some() || set.mtime.is_some() {
        permit.require(Deed::Touch)?;
    }
    if set.size.is_some() {
        permit.require(Deed::Extend)?;
    }
    Ok(())
}

/// The owner to set; under `single` ownership only the one that is shown may be "set".
fn owner(permit: &Permit<'_, OnNode>, set: &SetAttr) -> Checked<Option<(Option<u32>, Option<u32>)>> {
    if set.uid.is_none() && set.gid.is_none() {
        return Ok(None);
    }
    match permit.ownership() {
        Ownership::Preserve => Ok(Some((set.uid, set.gid))),
        Ownership::Single if set.uid.unwrap_or(0) == 0 && set.gid.unwrap_or(0) == 0 => Ok(None),
        Ownership::Single => Err(Refusal::errno(Errno::PERM)),
    }
}

fn resize(permit: &Permit<'_, OnNode>, size: u64) -> Checked<()> {
    let node = permit.node();
    match node.kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Refusal::errno(Errno::ISDIR)),
        _ => return Err(Refusal::errno(Errno::INVAL)),
    }
    let writer = permit.session().handles.writer_of(node).filter(|open| open.grant == permit.grant());
    let opened;
    let file = match &writer {
        Some(open) => open.file()?,
        None => {
            opened = permit.tree().open_node(node, OFlags::WRONLY)?.0;
            &opened
        }
    };
    let _size = node.size.lock();
    let stat = Stat::of(file)?;
    permit.require(if size < stat.size() { Deed::Change } else { Deed::Extend })?;
    let change = sizes::prepare(permit, node, &stat, size)?;
    permit.undo().resize(node, file, &stat, size)?;
    if let Some(watch) = permit.watch().filter(|_| size < stat.size() / 2) {
        watching::about(permit.tree(), node, |about| watch.empties(about));
    }
    ftruncate(file, size)?;
    change.done(size);
    Ok(())
}

fn timespec(time: Option<SetTime>) -> Checked<Timespec> {
    Ok(match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::At(time)) if time.nanos < 1_000_000_000 => {
            Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() }
        }
        Some(SetTime::At(_)) => return Err(Refusal::MALFORMED),
    })
}
