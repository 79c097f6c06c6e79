//! The TLS state of one connection, on the unbuffered interface of `rustls`: records are decrypted out of, and encrypted
//! into, buffers of ours. Does no I/O.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

use crate::error::ChannelError;

/// The longest plaintext of a record (RFC 8446, 5.1).
const RECORD: usize = 1 << 14;
/// More than a record adds to its plaintext: header 5, content type 1, tag 16.
const RECORD_OVERHEAD: usize = 32;

/// Either end.
pub(crate) enum Tls {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What one step of processing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Plaintext was handed out, or something is to be sent: step again.
    Again,
    /// The handshake needs more bytes from the peer.
    Handshaking,
    /// Established; more bytes are needed to receive more.
    Established,
    /// The peer has closed.
    Closed,
}

impl Tls {
    /// Processes received bytes up to the next event. Plaintext goes to `sink`; what has to be sent, to `control`.
    /// Returns also, error or not, the number of bytes at the front of `incoming` that are used up.
    pub(crate) fn receive(
        &mut self,
        incoming: &mut [u8],
        sink: &mut dyn FnMut(&[u8]),
        control: &mut Vec<u8>,
    ) -> (usize, Result<Step, ChannelError>) {
        match self {
            Tls::Client(tls) => step(tls.process_tls_records(incoming), sink, control),
            Tls::Server(tls) => step(tls.process_tls_records(incoming), sink, control),
        }
    }

    /// Appends `plain`, encrypted, to `out`.
    pub(crate) fn encrypt(&mut self, plain: &[u8], out: &mut Outgoing) -> Result<(), ChannelError> {
        loop {
            let mut control = vec![];
            let (written, step) = match self {
                Tls::Client(tls) => encrypt_step(tls.process_tls_records(&mut []), plain, out, &mut control)?,
                Tls::Server(tls) => encrypt_step(tls.process_tls_records(&mut []), plain, out, &mut control)?,
            };
            out.append(&control);
            match (written, step) {
                (true, _) => return Ok(()),
                (false, Step::Again) => {}
                (false, _) => return Err(ChannelError::Closed),
            }
        }
    }

    pub(crate) fn peer_key_der(&self) -> Option<&[u8]> {
        let presented = match self {
            Tls::Client(tls) => tls.peer_certificates(),
            Tls::Server(tls) => tls.peer_certificates(),
        };
        presented.and_then(|list| list.first()).map(AsRef::as_ref)
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Tls::Client(tls) => tls.alpn_protocol(),
            Tls::Server(tls) => tls.alpn_protocol(),
        }
    }
}

/// Encrypted bytes on their way out. The buffer keeps its length, so that it is filled with zeros once only.
#[derive(Default)]
pub(crate) struct Outgoing {
    buffer: Vec<u8>,
    filled: usize,
    /// An empty buffer for plaintext, to be used again.
    pub(crate) spare: Vec<u8>,
}

impl Outgoing {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let needed = self.filled + bytes;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        &mut self.buffer[self.filled..]
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    sink: &mut dyn FnMut(&[u8]),
    control: &mut Vec<u8>,
) -> (usize, Result<Step, ChannelError>) {
    let mut used = status.discard;
    let step =
        status.state.map_err(ChannelError::from).and_then(|state| handle(state, &mut used, sink, control));
    (used, step)
}

fn handle<Data>(
    state: ConnectionState<'_, '_, Data>,
    used: &mut usize,
    sink: &mut dyn FnMut(&[u8]),
    control: &mut Vec<u8>,
) -> Result<Step, ChannelError> {
    match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                *used += record.discard;
                sink(record.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let start = control.len();
            let written = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => {
                    control.resize(start + size.required_size, 0);
                    data.encode(&mut control[start..]).map_err(internal)?
                }
                other => other.map_err(internal)?,
            };
            control.truncate(start + written);
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Handshaking),
        ConnectionState::WriteTraffic(_) => Ok(Step::Established),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        other => Err(internal(format!("unexpected state {other:?}"))),
    }
}

fn encrypt_step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &[u8],
    out: &mut Outgoing,
    control: &mut Vec<u8>,
) -> Result<(bool, Step), ChannelError> {
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            let bound = plain.len() + (plain.len() / RECORD + 1) * RECORD_OVERHEAD;
            let written = traffic.encrypt(plain, out.room(bound)).map_err(internal)?;
            out.filled += written;
            Ok((true, Step::Established))
        }
        // The receiving half takes all plaintext out while it holds the lock, so that none can come up here.
        state => handle(state, &mut 0, &mut |_| {}, control).map(|step| (false, step)),
    }
}

fn internal(error: impl std::fmt::Display) -> ChannelError {
    ChannelError::Tls(rustls::Error::General(error.to_string()))
}
