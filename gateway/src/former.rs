//! What a former process still has while it ends: a start waits for it a little. A process that was killed keeps its lock on
//! the state until its last thread is gone, and lets go of its sockets later still.

use std::time::{Duration, Instant};

/// How long it is waited for, and how often it is looked.
const MAX: Duration = Duration::from_secs(3);
pub(crate) const PACE: Duration = Duration::from_millis(5);

/// Does something, and again for a while as long as it fails because the former process is in the way.
///
/// # Errors
/// The last one of `act`.
pub(crate) fn outwait<T, E>(
    in_the_way: impl Fn(&E) -> bool,
    mut act: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let until = Instant::now() + MAX;
    loop {
        match act() {
            Err(error) if in_the_way(&error) && Instant::now() < until => std::thread::sleep(PACE),
            done => return done,
        }
    }
}
