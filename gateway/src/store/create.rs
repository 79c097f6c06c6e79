//! Creating and opening a file.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use strongroom_protocol::attr::{Credentials, Handle, OpenFlags};
use strongroom_protocol::reply::{Entry, Failure, Outcome};

use super::open::{access, normal, open_existing, open_file};
use crate::engine::{Claim, ClaimChange};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{InDir, Permit};
use crate::leases::Change;
use crate::tree::Stat;

/// How often a name is tried that is taken when it is to be made, and gone when it is to be opened.
const ATTEMPTS: usize = 64;

pub(crate) fn create(
    permit: &Permit<'_, InDir>,
    name: &[u8],
    mode: u32,
    flags: OpenFlags,
    by: Credentials,
) -> Checked<(Outcome, Option<ClaimChange>)> {
    let flags = normal(flags);
    for _ in 0..ATTEMPTS {
        match create_new(permit, name, mode, flags, by) {
            Ok((handle, entry)) => {
                let claim =
                    Claim { grant: entry.node.grant, ino: entry.attr.ino, generation: entry.attr.generation };
                return Ok((Outcome::Created(handle, entry), Some(ClaimChange::Made(claim))));
            }
            Err(refusal) if refusal.is(Errno::EXIST) && !flags.exclusive => {}
            Err(other) => return Err(other),
        }
        match open_found(permit, name, flags) {
            // Somebody took it away in between: that there is no such file is no answer to who would make it.
            Err(refusal) if refusal.is(Errno::NOENT) => {}
            Err(Refusal::Failed(Failure::Stale)) => {}
            found => return found.map(|(handle, entry)| (Outcome::Created(handle, entry), None)),
        }
    }
    Err(Refusal::errno(Errno::BUSY))
}

fn create_new(
    permit: &Permit<'_, InDir>,
    name: &[u8],
    mode: u32,
    flags: OpenFlags,
    by: Credentials,
) -> Checked<(Handle, Entry)> {
    permit.session().handles.room()?;
    let (tree, dir) = (permit.tree(), permit.dir());
    let parent = tree.fd_of(dir)?;
    let may_make = permit.require(Deed::Make);
    let may_read = if flags.read { permit.require(Deed::OpenToRead) } else { Ok(()) };
    let limits = permit.limits()?;
    let change = tree.change(dir, None)?;
    if may_make.is_err() || may_read.is_err() {
        // What is there is opened, if that is allowed; nothing is made.
        tree.stat_at(&parent, name).map_err(|refusal| {
            if refusal.is(Errno::NOENT) { may_make.and(may_read).err().unwrap_or(refusal) } else { refusal }
        })?;
        return Err(Refusal::errno(Errno::EXIST));
    }
    if permit.is_kept_by_others(dir) && tree.stat_at(&parent, name).is_ok() {
        return Err(Refusal::errno(Errno::EXIST));
    }
    permit.changing(&[(dir, Change::Name(name))])?;
    let room = tree.meters_at(dir).reserve(&limits, 0, 1)?;
    let making = permit.undo().making(dir, &parent, name)?;
    let create = access(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = {
        let _identity = permit.identity(by)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&*parent, name, create, Mode::from_raw_mode(permit.mode(mode, false) & 0o7777), resolve)?
    };
    room.keep();
    let stat = Stat::of(&file)?;
    if let Some(making) = making {
        making.made(&stat);
    }
    let node = tree.note(dir, name, &stat);
    // Still under the change: nobody can have taken the name away, so the count of handles is in time.
    let used = permit.opening(&node);
    permit.made(&node);
    drop(change);
    permit.changed_names(dir);
    if let Some(watch) = permit.watch() {
        watch.makes((node.ino, node.generation));
    }
    let entry = permit.tell_made(&node, &stat);
    let handle = permit.open(used, file, OpenFlags { write: true, ..flags }, true)?;
    Ok((handle, entry))
}

/// Opens what the name leads to already.
fn open_found(permit: &Permit<'_, InDir>, name: &[u8], flags: OpenFlags) -> Checked<(Handle, Entry)> {
    permit.reading_names(permit.dir())?;
    let (node, _) = permit.tree().lookup(permit.dir(), name)?;
    // Where names cannot be seen, one that is taken is all that is told.
    permit.may_see(Some(&node)).map_err(|_| Refusal::errno(Errno::EXIST))?;
    let (handle, stat) = open_existing(permit, &node, flags)?;
    Ok((handle, permit.tell(&node, &stat)))
}

/// A file that this operation made before the process died, opened again with the creator's rights.
pub(crate) fn created(
    permit: &Permit<'_, InDir>,
    name: &[u8],
    flags: OpenFlags,
) -> Checked<(Outcome, Option<ClaimChange>)> {
    let flags = OpenFlags { write: true, truncate: false, ..normal(flags) };
    permit.require(Deed::Make)?;
    if flags.read {
        permit.require(Deed::OpenToRead)?;
    }
    let (node, _) = permit.tree().lookup(permit.dir(), name)?;
    let (used, file, stat) = open_file(permit, &node, flags)?;
    let entry = permit.tell_made(&node, &stat);
    let handle = permit.open(used, file, flags, true)?;
    let claim = Claim { grant: entry.node.grant, ino: node.ino, generation: node.generation };
    Ok((Outcome::Created(handle, entry), Some(ClaimChange::Made(claim))))
}

/// An object that this operation made before the process died.
pub(crate) fn found_own(permit: &Permit<'_, InDir>, name: &[u8]) -> Checked<Outcome> {
    let (node, stat) = permit.tree().lookup(permit.dir(), name)?;
    Ok(Outcome::Entry(permit.tell_made(&node, &stat)))
}
