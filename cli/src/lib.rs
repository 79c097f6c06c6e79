//! The command `contract`: what an administrator in the base domain, and a holder in an app guest, do with contracts.
//!
//! The library holds everything; the binary only hands over its arguments. [`admin::AdminClient`] is of use to other
//! programs too. One file per subcommand below [`command`], with its arguments and its body together.
//!
//! Results go to the standard output, everything else to the standard error. Secret keys are read from and written to
//! files of mode 0600 only; they never appear in arguments, the environment or output.

pub mod admin;
mod archive;
mod base;
pub mod command;
mod contract_file;
mod failure;
mod files;
mod issuing;
mod keys;
mod narrowing;
mod output;
mod revoking;
mod statement;
mod view;

pub use failure::{Exit, Failure};
