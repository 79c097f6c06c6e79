//! Opening a file that exists.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, ftruncate};
use rustix::io::Errno;
use strongroom_protocol::attr::{Handle, OpenFlags};
use strongroom_protocol::reply::Outcome;

use super::{sizes, watching};
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{OnNode, Permit};
use crate::handles::Use;
use crate::leases::Change;
use crate::tree::{Node, Stat};

/// The access mode of a descriptor. Appending and synchronous writing are done by each write.
pub(super) fn access(flags: OpenFlags) -> OFlags {
    match (flags.read, flags.write || flags.append) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (_, false) => OFlags::RDONLY,
    }
}

/// The flags with what they imply spelt out.
pub(super) fn normal(flags: OpenFlags) -> OpenFlags {
    OpenFlags { write: flags.write || flags.append, ..flags }
}

pub(crate) fn open(permit: &Permit<'_, OnNode>, flags: OpenFlags) -> Checked<Outcome> {
    let flags = normal(flags);
    let (handle, stat) = open_existing(permit, permit.node(), flags)?;
    Ok(Outcome::Opened(handle, permit.show(&stat)))
}

/// Opens a regular file that exists, and cuts it if asked to.
pub(super) fn open_existing<On>(
    permit: &Permit<'_, On>,
    node: &Arc<Node>,
    flags: OpenFlags,
) -> Checked<(Handle, Stat)> {
    // Reading is what is asked if nothing is.
    if flags.read || !flags.write {
        permit.require(Deed::OpenToRead)?;
    }
    if flags.write {
        permit.require(Deed::OpenToWrite)?;
    }
    if flags.write {
        permit.writing(node)?;
    } else {
        permit.reading(node)?;
    }
    let (used, file, mut stat) = open_file(permit, node, flags)?;
    if flags.truncate && flags.write {
        stat = cut(permit, node, &file)?;
    }
    let handle = permit.open(used, file, OpenFlags { read: flags.read || !flags.write, ..flags }, false)?;
    Ok((handle, stat))
}

pub(super) fn open_file<On>(
    permit: &Permit<'_, On>,
    node: &Arc<Node>,
    flags: OpenFlags,
) -> Checked<(Use, OwnedFd, Stat)> {
    match node.kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Refusal::errno(Errno::ISDIR)),
        FileType::Symlink => return Err(Refusal::errno(Errno::LOOP)),
        // Fifos, sockets and devices are the guest kernel's to open.
        _ => return Err(Refusal::errno(Errno::NXIO)),
    }
    permit.session().handles.room()?;
    let used = permit.opening(node);
    let (file, stat) = permit.tree().open_node(node, access(flags))?;
    Ok((used, file, stat))
}

/// O_TRUNC.
fn cut<On>(permit: &Permit<'_, On>, node: &Arc<Node>, file: &OwnedFd) -> Checked<Stat> {
    let _size = node.size.lock();
    let stat = Stat::of(file)?;
    if stat.size() > 0 {
        permit.require(Deed::Change)?;
    }
    permit.changing(&[(node, Change::All { data: true, open: false })])?;
    let change = sizes::prepare(permit, node, &stat, 0)?;
    permit.undo().resize(node, file, &stat, 0)?;
    if let Some(watch) = permit.watch().filter(|_| stat.size() > 0) {
        watching::about(permit.tree(), node, |about| watch.empties(about));
    }
    ftruncate(file, 0)?;
    change.done(0);
    Ok(Stat::of(file)?)
}

/// Opens again after the gateway restarted; never cuts.
pub(crate) fn reopen(permit: &Permit<'_, OnNode>, flags: OpenFlags, created: bool) -> Checked<Outcome> {
    let flags = OpenFlags { truncate: false, ..normal(flags) };
    if !created {
        let (handle, stat) = open_existing(permit, permit.node(), flags)?;
        return Ok(Outcome::Opened(handle, permit.show(&stat)));
    }
    if !permit.has_claim(permit.node()) {
        return Err(Refusal::BAD_HANDLE);
    }
    if flags.read {
        permit.require(Deed::OpenToRead)?;
    }
    let (used, file, stat) = open_file(permit, permit.node(), flags)?;
    let handle = permit.open(used, file, flags, true)?;
    Ok(Outcome::Opened(handle, permit.show(&stat)))
}
