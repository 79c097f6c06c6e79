//! What all ways of making a new object but opening have in common.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use strongroom_protocol::attr::Credentials;
use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{InDir, Permit};
use crate::leases::Change;

/// Makes an object by `act` as the user that it shall belong to, and tells the session of it.
pub(super) fn make(
    permit: &Permit<'_, InDir>,
    name: &[u8],
    by: Credentials,
    act: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
) -> Checked<Outcome> {
    let (tree, dir) = (permit.tree(), permit.dir());
    let parent = tree.fd_of(dir)?;
    let limits = permit.limits()?;
    let change = tree.change(dir, None)?;
    if permit.is_kept_by_others(dir) && tree.stat_at(&parent, name).is_ok() {
        return Err(Refusal::errno(Errno::EXIST));
    }
    permit.changing(&[(dir, Change::Name(name))])?;
    let room = tree.meters_at(dir).reserve(&limits, 0, 1)?;
    let making = permit.undo().making(dir, &parent, name)?;
    {
        let _identity = permit.identity(by)?;
        act(&parent)?;
    }
    room.keep();
    let stat = tree.stat_at(&parent, name)?;
    if let Some(making) = making {
        making.made(&stat);
    }
    let node = tree.note(dir, name, &stat);
    permit.made(&node);
    drop(change);
    permit.changed_names(dir);
    Ok(Outcome::Entry(permit.tell_made(&node, &stat)))
}
