//! What may be kept of the gateway's answers, and until when.
//!
//! [`Table`] is pure: it is told of requests, answers, recalls and the time, and says what still holds. The simulation of
//! the lease protocol drives the same code. [`Leases`] is the table of a running mount, with the kernel's caches beside it.
//!
//! # Rules
//! What an answer says of a node is kept if
//! - the answer itself says that the session held a lease there when the state was read ([`strongroom_protocol::lease`]),
//! - no recall of the node with a later stamp has come, in whatever order the two arrived,
//! - no change of the node by this guest was under way at any time between the question and the answer, and
//! - less time has passed since the question than the gateway's terms allow.
//!
//! The kernel is told that something may be cached only while the gate is held ([`Leases::gate`]); a recall first changes the
//! table, then waits until the gate was free once, then takes back what the kernel was told. So nothing that was looked up
//! before the recall is told after it.

mod change;
mod contents;
mod live;
mod names;
mod recall;
mod table;
#[cfg(test)]
mod tests;

pub use change::Underway;
pub use live::{Gate, Leases};
pub use recall::Drop;
pub use table::{Asked, Found, Heard, OwnChange, Table};
