//! What the programs of the base domain share: the base directory, the archive of what was issued, issuing and revoking,
//! and the way to the gateway's admin door.
//!
//! `contract` and `strongroom-recovery` both issue and revoke; this room holds how, once. It parses no arguments and
//! prints nothing: a [`Failure`] carries what a person should be told.
//!
//! Secret keys are read from and written to files of mode 0600 only; they never appear in arguments, the environment or
//! output.

pub mod admin;
pub mod archive;
pub mod base;
pub mod contract_file;
pub mod control;
pub mod failure;
pub mod files;
pub mod incident;
pub mod issuing;
pub mod keys;
pub mod revoking;
pub mod secret;
pub mod statement;
pub mod sys;
pub mod text;
pub mod undo;

pub use base::Base;
pub use failure::{Exit, Failure};
