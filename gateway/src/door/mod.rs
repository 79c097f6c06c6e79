//! Doors: protocols by which guests and administrators reach the gateway. Each is a folder or file of its own and calls
//! the session layer; none reaches the engine past it.

pub mod admin;
pub mod listen;
pub mod native;
mod seats;
mod undo;
mod watch;
