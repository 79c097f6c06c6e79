//! The recovery daemon of the base domain: alerts in, incidents run to the end.
//!
//! `source -> intake -> incident -> step -> {gateway, guest}`: sources hear of attacks, the intake finds whose guest it is
//! and whether its policy wants an incident, an incident runs its steps one after the other, each on record before it
//! acts. Incidents of different applications run at the same time, each on a thread of its own.
//!
//! INVARIANT: once the fence of an incident holds, only its step `reissue` gives the application a contract again;
//! whatever fails before leaves it fenced.

pub mod config;
mod control;
pub mod daemon;
mod enrol;
pub mod guest;
mod incident;
mod intake;
mod journal;
mod log;
mod notify;
mod plan;
mod policies;
pub mod run;
mod source;
mod step;

pub use daemon::{AbortAt, Daemon, Options};
pub use plan::plan;
