//! An authenticated stream of frames between two guests, for blocking threads.
//!
//! TLS 1.3 with raw public keys at both ends (RFC 8446, RFC 7250) on `rustls` and `ring`; no certificates, no resumption,
//! no early data. Owns sockets and TLS state, knows frames' lengths, and nothing of what is in them.
//!
//! A connection has two halves: any number of threads may send, one receives. A frame is encrypted and handed to the
//! kernel by the thread that sends it, and decrypted by the thread that receives it: there is no thread in between.

mod awake;
mod error;
mod handshake;
mod memory;
mod socket;
mod stream;
mod tls;
mod verifier;

pub use awake::Awake;
pub use error::ChannelError;
pub use handshake::{ClientTls, Peer, ServerTls};
pub use memory::one_arena;
pub use socket::{Address, Socket};
pub use stream::{Channel, Closer, Frame, Receiver, Sender};
