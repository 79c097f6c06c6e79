//! Attributes of a node.

use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::Checked;
use crate::gate::{OnNode, Permit};
use crate::tree::Stat;

pub(crate) fn getattr(permit: &Permit<'_, OnNode>) -> Checked<Outcome> {
    permit.reading(permit.node())?;
    Ok(Outcome::Attr(permit.show(&stat(permit)?)))
}

/// As they are, whoever is about to change them or may have done so early.
pub(crate) fn measure(permit: &Permit<'_, OnNode>) -> Checked<Outcome> {
    Ok(Outcome::Attr(permit.show(&stat(permit)?)))
}

/// Through an open handle if there is one, which is surer and needs no name.
pub(crate) fn stat(permit: &Permit<'_, OnNode>) -> Checked<Stat> {
    match permit.handle() {
        Some(open) => Ok(Stat::of(open.file()?)?),
        None => permit.tree().stat(permit.node()),
    }
}
