//! The real gateway process on the loopback interface, and clients that speak its protocols over real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod admin;
mod bounds;
mod configuration;
mod fencing;
mod layout;
mod leases;
mod pipelining;
mod restarts;
mod strict;
mod support;
mod terms;
mod welcome;
