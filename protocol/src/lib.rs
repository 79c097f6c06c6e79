//! Frames between client and gateway, and between administrator and gateway: types, codec, limits, version.
//!
//! Pure: no I/O, no clock, no threads. A frame is `header length (u32 LE) | data length (u32 LE) | header | data`: the
//! header is a small `bincode` structure, the data are raw bytes and never pass through `bincode`.
//! Every decoder here is fed by hostile guests: lengths are bounded before anything is allocated.

pub mod admin;
pub mod attr;
pub mod codec;
pub mod enrol;
pub mod files;
pub mod frame;
pub mod hello;
pub mod lease;
pub mod name;
pub mod op;
pub mod readdir;
pub mod reply;

/// ALPN of the native door (RFC 7301).
pub const ALPN_NATIVE: &[u8] = b"strongroom/1";
/// ALPN of the admin door.
pub const ALPN_ADMIN: &[u8] = b"strongroom-admin/1";
/// ALPN of enrolment, in the base domain.
pub const ALPN_ENROL: &[u8] = b"strongroom-enrol/1";
/// The version of the protocol that [`hello::Hello`] carries.
pub const VERSION: u16 = 1;
