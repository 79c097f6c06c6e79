//! What the integration tests that run a real gateway on the loopback interface share: a [`gateway::Gateway`] with data,
//! keys and contracts of its own, and an [`attacker::Attacker`] that speaks the protocol without our client's manners.
//! Everything made is removed again, also when a test fails.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]
#![allow(missing_docs, clippy::result_large_err, reason = "test code")]

pub mod admin;
pub mod attacker;
pub mod gateway;

use std::time::{Duration, Instant};

/// A guard against hanging for ever, never a measure of success.
pub const LONG: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something.
///
/// # Panics
/// If that takes longer than [`LONG`].
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
