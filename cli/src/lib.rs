//! The command `contract`: what an administrator in the base domain, and a holder in an app guest, do with contracts.
//!
//! The library holds everything; the binary only hands over its arguments. [`admin::AdminClient`] is of use to other
//! programs too. One file per subcommand below [`command`], with its arguments and its body together.
//!
//! Results go to the standard output, everything else to the standard error. Secret keys are read from and written to
//! files of mode 0600 only; they never appear in arguments, the environment or output.

pub mod command;
mod narrowing;
mod output;
mod view;

// What the programs of the base domain share has a room of its own.
pub use strongroom_base::{Exit, Failure, admin};
pub(crate) use strongroom_base::{
    archive, base, contract_file, failure, files, issuing, keys, revoking, statement, sys,
};
