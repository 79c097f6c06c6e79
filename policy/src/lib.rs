//! Policy files: parse, check, explain, diff, ceilings, compile to contract terms.
//!
//! A policy is one TOML file for one application. It is the ceiling: no contract is issued that it does not allow. This
//! crate is pure: it takes names and texts of files, and neither reads files nor clocks.
//!
//! Invariants: one bad file disables its own application only; every mistake of a file is reported, with file, line and
//! column; [`Policy::terms`] never yields more than the policy says; [`diff`](fn@diff) compares what is permitted,
//! never text.

mod ceiling;
mod diff;
mod error;
mod explain;
mod place;
mod policy;
mod reader;
mod recovery;
mod set;
mod suggest;
pub mod units;

pub use ceiling::{CeilingError, Issue, MissingRights, Narrowing};
pub use diff::{Change, Direction, Verb, diff};
pub use error::PolicyError;
pub use explain::{Explanation, LimitLine, NoPolicy, RightAnswer, View, explain};
pub use place::{Place, Setting};
pub use policy::{DEFAULT_LIFETIME_SECS, Policy, PolicyGrant};
pub use recovery::{Recovery, Step, Trigger};
pub use set::{PolicySet, Source};
pub use suggest::closest;
