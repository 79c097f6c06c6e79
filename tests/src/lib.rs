//! The lab: whole Strongroom installations on one machine, for tests, benchmarks and people who want to see it work.
//!
//! Everything in it is real: real daemons, real TLS over a virtual network, real FUSE mounts. Only the machines are
//! not: each guest is a set of Linux namespaces. See [`lab`].

pub mod agent;
pub mod attack;
pub mod lab;
