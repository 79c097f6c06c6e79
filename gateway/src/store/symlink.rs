//! Making a symlink: text, which the gateway never follows.

use rustix::fs::symlinkat;
use rustix::io::Errno;
use strongroom_protocol::attr::Credentials;
use strongroom_protocol::name::MAX_PATH;
use strongroom_protocol::reply::Outcome;

use super::make::make;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{InDir, Permit};

pub(crate) fn symlink(
    permit: &Permit<'_, InDir>,
    name: &[u8],
    target: &[u8],
    by: Credentials,
) -> Checked<Outcome> {
    if target.len() >= MAX_PATH {
        return Err(Refusal::errno(Errno::NAMETOOLONG));
    }
    if target.is_empty() || target.contains(&0) {
        return Err(Refusal::errno(Errno::NOENT));
    }
    make(permit, name, by, |parent| symlinkat(target, parent, name))
}
