//! When leases are taken, which must be said on each connection. With the first one after all were lost, the gateway ends what there
//! was under the former leases, and no other guest waits for this one any more: so it comes last, on whatever connections there are by then.

use strongroom_channel::Sender;
use strongroom_protocol::codec;
use strongroom_protocol::op::{Op, Request};

use super::TAKING;
use super::knock::KnockError;

/// The connections that wait until leases may be taken.
#[derive(Default)]
pub(super) struct Taking {
    /// Counts the times that there was no connection.
    number: u64,
    /// `None`: there is nothing to wait for.
    waiting: Option<Vec<Sender>>,
}

impl Taking {
    /// The only connection begins, and something must be done before leases are taken; returns the number for [`Taking::over`].
    pub(super) fn begin(&mut self, sender: Sender) -> u64 {
        self.number += 1;
        self.waiting = Some(vec![sender]);
        self.number
    }

    /// The only connection begins, and nothing need be done before.
    pub(super) fn none(&mut self) {
        self.number += 1;
        self.waiting = None;
    }

    /// A further connection begins. Returns whether it has to wait.
    pub(super) fn further(&mut self, sender: &Sender) -> bool {
        self.waiting.as_mut().map(|waiting| waiting.push(sender.clone())).is_some()
    }

    /// What had to be done before is done; returns the connections that waited for it.
    pub(super) fn over(&mut self, number: u64) -> Vec<Sender> {
        if number == self.number { self.waiting.take().unwrap_or_default() } else { vec![] }
    }
}

/// Asks for leases on a connection.
///
/// # Errors
/// [`KnockError`] if it cannot be sent.
pub(super) fn take_leases(sender: &Sender) -> Result<(), KnockError> {
    let request = Request { id: TAKING, slot: Default::default(), op: Op::TakeLeases };
    let mut header = vec![];
    codec::encode_header(&request, &mut header).map_err(|error| KnockError::Answer(error.to_string()))?;
    Ok(sender.send(&header, &[])?)
}
