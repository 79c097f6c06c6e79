//! The daemon in the storage guest: doors, sessions, one gate, one store.
//!
//! `door (native) -> session -> gate -> store`: the gate decides by returning a `Permit`, a value that only it can make,
//! and every function of the store takes one.

pub mod engine;
pub mod gate;
