//! What can go wrong on a connection.

use strongroom_contracts::{GatewayId, KeyError};
use strongroom_protocol::frame::FrameError;

/// A connection that could not be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, such as `cannot connect to 10.77.0.1:7070`.
        doing: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The handshake or a record was refused.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer sent a frame that is out of bounds.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The connection was closed, by the peer or by [`crate::Closer`].
    #[error("the connection was closed")]
    Closed,
    /// Nothing came, or nothing could be sent, within the time set.
    #[error("timed out")]
    TimedOut,
    /// The server is not the expected gateway.
    #[error("the server is {found}, not the expected gateway {expected}")]
    WrongPeer {
        /// Who was expected.
        expected: GatewayId,
        /// Who answered.
        found: GatewayId,
    },
    /// The peer spoke neither protocol that was offered.
    #[error("the peer does not speak {0}")]
    Protocol(String),
    /// The peer's raw public key, or our own, cannot be used.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// A header or data longer than a frame may have.
    #[error("a frame of {header} header bytes and {data} data bytes cannot be sent")]
    TooLong {
        /// Bytes of the header.
        header: usize,
        /// Bytes of data.
        data: usize,
    },
}

impl ChannelError {
    pub(crate) fn io(doing: impl Into<String>, source: std::io::Error) -> ChannelError {
        match source.kind() {
            // A socket time-out is reported as either, depending on the call (socket(7), SO_RCVTIMEO).
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => ChannelError::TimedOut,
            _ => ChannelError::Io { doing: doing.into(), source },
        }
    }

    /// Whether the connection is simply gone, as opposed to misused.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, ChannelError::Io { .. } | ChannelError::Closed | ChannelError::TimedOut)
    }
}
