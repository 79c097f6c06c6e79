//! User extended attributes. Others mean something to the kernel of the storage guest and are neither told nor set.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;
use strongroom_protocol::reply::Outcome;

use crate::engine::ReplyBuf;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnNode, Permit};
use crate::leases::Change;

const PREFIX: &[u8] = b"user.";
/// The longest value and the longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`, limits.h).
const MAX_VALUE: usize = 65_536;
const MAX_NAME: usize = 255;

/// Contents stay.
const CHANGED: Change<'static> = Change::All { data: false, open: false };

fn check_name(name: &[u8]) -> Checked<()> {
    if name.is_empty() || name.contains(&0) {
        Err(Refusal::MALFORMED)
    } else if name.len() > MAX_NAME {
        Err(Refusal::errno(Errno::RANGE))
    } else if !name.starts_with(PREFIX) {
        Err(Refusal::errno(Errno::OPNOTSUPP))
    } else if name.len() == PREFIX.len() {
        Err(Refusal::errno(Errno::INVAL))
    } else {
        Ok(())
    }
}

/// Only regular files and directories have user attributes (xattr(7)).
fn has_attributes(permit: &Permit<'_, OnNode>) -> bool {
    matches!(permit.node().kind, FileType::RegularFile | FileType::Directory)
}

fn with_file<T>(permit: &Permit<'_, OnNode>, act: impl FnOnce(&OwnedFd) -> Checked<T>) -> Checked<T> {
    match permit.handle() {
        Some(open) => act(open.file()?),
        None => act(&permit.tree().open_node(permit.node(), OFlags::RDONLY)?.0),
    }
}

pub(crate) fn get(permit: &Permit<'_, OnNode>, name: &[u8], out: &mut ReplyBuf) -> Checked<Outcome> {
    check_name(name)?;
    if !has_attributes(permit) {
        return Err(Refusal::errno(Errno::NODATA));
    }
    permit.reading(permit.node())?;
    let space = out.space(MAX_VALUE);
    let length = with_file(permit, |file| Ok(fgetxattr(file, name, &mut *space)?))?;
    out.set_length(length);
    Ok(Outcome::Data)
}

pub(crate) fn list(permit: &Permit<'_, OnNode>, out: &mut ReplyBuf) -> Checked<Outcome> {
    out.clear();
    if !has_attributes(permit) {
        return Ok(Outcome::Data);
    }
    permit.reading(permit.node())?;
    let mut all = vec![0; MAX_VALUE];
    let length = with_file(permit, |file| match flistxattr(file, &mut *all) {
        Err(Errno::OPNOTSUPP) => Ok(0),
        other => Ok(other?),
    })?;
    let names = all.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == 0);
    let bytes = out.collect();
    names.filter(|name| name.starts_with(PREFIX)).for_each(|name| bytes.extend_from_slice(name));
    let length = bytes.len();
    out.set_length(length);
    Ok(Outcome::Data)
}

pub(crate) fn set(
    permit: &Permit<'_, OnNode>,
    name_length: u16,
    flags: u32,
    data: &[u8],
) -> Checked<Outcome> {
    let (name, value) = data.split_at_checked(usize::from(name_length)).ok_or(Refusal::MALFORMED)?;
    check_name(name)?;
    if !has_attributes(permit) {
        return Err(Refusal::errno(Errno::PERM));
    }
    if value.len() > MAX_VALUE {
        return Err(Refusal::errno(Errno::TOOBIG));
    }
    let flags = XattrFlags::from_bits(flags)
        .filter(|flags| (XattrFlags::CREATE | XattrFlags::REPLACE).contains(*flags))
        .ok_or_else(|| Refusal::errno(Errno::INVAL))?;
    with_file(permit, |file| {
        let _size = permit.node().size.lock();
        permit.changing(&[(permit.node(), CHANGED)])?;
        permit.undo().xattr(permit.node(), file, name)?;
        Ok(fsetxattr(file, name, value, flags)?)
    })?;
    Ok(Outcome::Done)
}

pub(crate) fn remove(permit: &Permit<'_, OnNode>, name: &[u8]) -> Checked<Outcome> {
    check_name(name)?;
    if !has_attributes(permit) {
        return Err(Refusal::errno(Errno::PERM));
    }
    with_file(permit, |file| {
        let _size = permit.node().size.lock();
        permit.changing(&[(permit.node(), CHANGED)])?;
        permit.undo().xattr(permit.node(), file, name)?;
        Ok(fremovexattr(file, name)?)
    })?;
    Ok(Outcome::Done)
}
