//! The daemon in the storage guest: doors, sessions, one gate, one store.
//!
//! `door (native) -> session -> gate -> store`: the gate decides by returning a `Permit`, a value that only it can make,
//! and every function of the store takes one.

pub mod alerts;
pub mod audit;
pub mod clock;
pub mod config;
mod detect;
pub mod door;
pub mod engine;
pub mod fence;
mod former;
pub mod gate;
pub mod gateway;
mod handles;
mod leases;
pub mod ledger;
mod locks;
mod nodes;
mod quota;
pub mod session;
pub mod slots;
mod store;
mod sys;
pub mod threads;
pub mod trail;
mod tree;
pub mod undo;
mod undoing;
mod writeback;
