//! Limits of a session: what one holder may take of the gateway.

use bincode::{Decode, Encode};

use crate::grant::tighter;

/// Limits on the use of one contract. `None` leaves the matter to the gateway's own bounds, which hold in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct SessionLimits {
    /// Bytes read in a second.
    pub read_rate: Option<u64>,
    /// Bytes written in a second.
    pub write_rate: Option<u64>,
    /// Operations of any kind in a second.
    pub op_rate: Option<u64>,
    /// Requests in flight.
    pub in_flight: Option<u32>,
    /// Open files and directories.
    pub open_handles: Option<u32>,
}

impl SessionLimits {
    /// The tighter of both in each member.
    #[must_use]
    pub fn meet(self, other: SessionLimits) -> SessionLimits {
        SessionLimits {
            read_rate: tighter(self.read_rate, other.read_rate),
            write_rate: tighter(self.write_rate, other.write_rate),
            op_rate: tighter(self.op_rate, other.op_rate),
            in_flight: tighter(self.in_flight, other.in_flight),
            open_handles: tighter(self.open_handles, other.open_handles),
        }
    }
}
