//! The gate: the only place that decides.

pub mod turnstile;

pub use turnstile::{Admission, Turnstile};
