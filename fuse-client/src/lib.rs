//! The mount in an app guest: a FUSE file system that shows what a contract grants, and nothing else.
//!
//! It enforces nothing that matters: the gateway does. What it must do is keep applications from noticing that their files
//! are elsewhere: calls wait while the gateway is away and then go on, and end at once when the contract is void.
//!
//! [`fuse`] unpacks what the kernel asks and replies; [`fs`] knows what the answers are, and can be tested without a kernel;
//! [`transport`] carries requests; [`state`] is what both remember; [`lease`] is what of it may be used without asking again, and
//! [`kernel`] how the kernel is told when it may not; [`mount`] attaches and detaches.

mod asking;
pub mod attr;
mod behind;
pub mod cli;
pub mod contract;
pub mod errno;
pub mod fs;
pub mod fuse;
mod guard;
pub mod journal;
pub mod kernel;
pub mod lease;
pub mod mount;
pub mod opening;
pub mod options;
pub mod state;
mod sys;
pub mod telling;
pub mod transport;
pub mod tree;
