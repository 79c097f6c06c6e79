//! Accounting for changes of a file's size.

use std::sync::Arc;

use crate::gate::Permit;
use crate::gate::refusal::Checked;
use crate::leases::Deal;
use crate::quota::{MeterSet, Reservation};
use crate::tree::{Node, Stat};

/// Room taken for a change of size. The caller holds the node's size lock until it is done.
#[must_use]
pub(super) struct SizeChange<'a> {
    deal: &'a Deal,
    node: &'a Arc<Node>,
    meters: MeterSet,
    before: u64,
    reservation: Option<Reservation>,
}

/// Takes room for a file that is about to become `size` bytes long, at most.
///
/// # Errors
/// `Quota`; `EFBIG` if it grows beyond the grant's limit.
pub(super) fn prepare<'a, On>(
    permit: &'a Permit<'_, On>,
    node: &'a Arc<Node>,
    stat: &Stat,
    size: u64,
) -> Checked<SizeChange<'a>> {
    let before = stat.size();
    let growth = size.saturating_sub(before);
    if growth > 0 {
        permit.check_size(size)?;
    }
    let limits = permit.limits()?;
    let meters = permit.tree().meters_of(node, stat);
    let reservation = if meters.is_empty() { None } else { Some(meters.reserve(&limits, growth, 0)?) };
    Ok(SizeChange { deal: permit.deal(), node, meters, before, reservation })
}

impl SizeChange<'_> {
    /// Whether anybody counts this file.
    pub(super) fn is_counted(&self) -> bool {
        !self.meters.is_empty()
    }

    /// The change has happened; the file is `size` bytes long now.
    pub(super) fn done(self, size: u64) {
        self.deal.resized(self.node, self.before, size);
        if let Some(reservation) = self.reservation {
            reservation.keep_bytes(size.saturating_sub(self.before));
        }
        let less = self.before.saturating_sub(size);
        if less > 0 {
            self.meters.release(less, 0);
        }
    }
}
