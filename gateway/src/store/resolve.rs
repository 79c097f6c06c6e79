//! Finding a node again by its path from the root of its grant, after the gateway restarted or forgot it.

use std::sync::Arc;

use rustix::io::Errno;
use strongroom_protocol::name::{MAX_PATH, Name};
use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnGrant, Permit};

pub(crate) fn resolve(permit: &Permit<'_, OnGrant>, ino: u64, path: &[u8]) -> Checked<Outcome> {
    if path.len() > MAX_PATH {
        return Err(Refusal::MALFORMED);
    }
    let tree = permit.tree();
    let mut node = Arc::clone(permit.root()?);
    let mut stat = tree.stat(&node)?;
    for component in path.split(|byte| *byte == b'/').filter(|_| !path.is_empty()) {
        let name = Name::new(component).map_err(|_| Refusal::MALFORMED)?;
        let found = tree.lookup(&node, name.as_bytes());
        if found.is_err() {
            permit.may_see(None)?;
        }
        (node, stat) = found?;
    }
    if !path.is_empty() {
        permit.may_see(Some(&node))?;
    }
    // 0: whatever is there.
    if ino != 0 && stat.ino() != ino {
        return Err(Refusal::STALE);
    }
    if path.is_empty() && !node.is_dir() {
        return Err(Refusal::errno(Errno::NOTDIR));
    }
    if permit.found(&node)? {
        stat = tree.stat(&node)?;
    }
    Ok(Outcome::Entry(permit.tell(&node, &stat)))
}
