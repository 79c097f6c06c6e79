//! The engine on real directories, driven by operations as a door hands them in, under contracts from real signed chains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(clippy::result_large_err, reason = "answers are compared whole")]

mod appending;
mod basics;
mod decoys;
mod drop_box;
mod escapes;
mod leases;
mod locks;
mod locks_kept;
mod model;
mod quotas;
mod replay;
mod rights;
mod support;
mod undo;
mod undo_halves;
mod undo_random;
mod undo_support;
mod undo_truth;
