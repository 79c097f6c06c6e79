//! Making a directory.

use rustix::fs::{Mode, mkdirat};
use strongroom_protocol::attr::Credentials;
use strongroom_protocol::reply::Outcome;

use super::make::make;
use crate::gate::refusal::Checked;
use crate::gate::{InDir, Permit};

pub(crate) fn mkdir(permit: &Permit<'_, InDir>, name: &[u8], mode: u32, by: Credentials) -> Checked<Outcome> {
    let mode = Mode::from_raw_mode(permit.mode(mode, true));
    make(permit, name, by, |parent| mkdirat(parent, name, mode))
}
