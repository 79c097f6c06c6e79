//! The adversary: a guest that speaks the protocol itself and breaks every rule of section 2 of the design. What each
//! test holds is listed in `docs/threat-model.md`.
//!
//! Needs the program `strongroom-gateway` beside this one (`cargo build --workspace --bins`, or `make test`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]
#![allow(missing_docs, clippy::result_large_err, reason = "test code")]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod contracts;
mod fairness;
mod forge;
mod frames;
mod handles;
mod lies;
mod names;
mod races;
mod raw;
mod revocation;
mod rights;
mod special;
mod tls;
