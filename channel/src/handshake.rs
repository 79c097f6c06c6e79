//! Making a connection: configuration of both ends, and the handshake.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::ring::{default_provider, sign::any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use strongroom_contracts::{GatewayId, PublicKey, SecretKey};

use crate::error::ChannelError;
use crate::socket::{Address, Socket};
use crate::stream::Channel;
use crate::tls::{Step, Tls};
use crate::verifier::{AnyHolder, OneGateway};

/// The longest handshake message flight that is taken, in bytes; raw public keys keep them below one KiB.
const MAX_HANDSHAKE: usize = 64 * 1024;

/// Whom a client expects.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    /// The gateway with this id.
    Gateway(GatewayId),
    /// The gateway with this key.
    Key(PublicKey),
}

/// AES-128-GCM first: the fastest where the processor has the instructions, as the machines that run guests do.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    }
}

fn certified(key: &SecretKey) -> Result<Arc<CertifiedKey>, ChannelError> {
    let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(key.to_pkcs8()))?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(key.public().to_spki())], signer)))
}

/// The server's end: takes connections.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// A server with this key that speaks these protocols (ALPN, RFC 7301).
    ///
    /// # Errors
    /// [`ChannelError::Tls`] if the key cannot be used.
    pub fn new(key: &SecretKey, alpn: &[&[u8]]) -> Result<ServerTls, ChannelError> {
        let provider = provider();
        let verifier = AnyHolder { algorithms: provider.signature_verification_algorithms };
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(key)?)));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // Resumption would skip the proof of the holder key.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(ServerTls { config: Arc::new(config) })
    }

    /// Completes the handshake on an accepted socket, within `timeout` in all.
    ///
    /// # Errors
    /// [`ChannelError`]; the socket is closed then.
    pub fn accept(&self, socket: Socket, timeout: Duration) -> Result<Channel, ChannelError> {
        let tls = Tls::Server(UnbufferedServerConnection::new(self.config.clone())?);
        handshake(tls, socket, timeout)
    }
}

/// The client's end: makes connections to one gateway.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    expected: GatewayId,
    refused: Arc<Mutex<Option<GatewayId>>>,
}

impl ClientTls {
    /// A client with this key, for one gateway and one protocol.
    ///
    /// # Errors
    /// [`ChannelError::Tls`] if the key cannot be used.
    pub fn new(key: &SecretKey, peer: Peer, alpn: &[u8]) -> Result<ClientTls, ChannelError> {
        let expected = match peer {
            Peer::Gateway(id) => id,
            Peer::Key(key) => key.gateway_id(),
        };
        let refused = Arc::new(Mutex::new(None));
        let provider = provider();
        let verifier = OneGateway {
            expected,
            refused: refused.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(key)?)));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(ClientTls { config: Arc::new(config), expected, refused })
    }

    /// Connects and completes the handshake, within `timeout` each.
    ///
    /// A server that refuses our key is noticed only on the first receive (RFC 8446, 4.4.2: the client finishes first).
    ///
    /// # Errors
    /// [`ChannelError::Io`] if nobody answers, [`ChannelError::WrongPeer`] if somebody else does.
    pub fn connect(&self, address: &Address, timeout: Duration) -> Result<Channel, ChannelError> {
        let socket = address.connect(timeout).map_err(|error| ChannelError::Io {
            doing: format!("cannot connect to {address}"),
            source: error,
        })?;
        self.handshake(socket, timeout)
    }

    /// Completes the handshake on a connected socket, within `timeout` in all.
    ///
    /// # Errors
    /// [`ChannelError`]; the socket is closed then.
    pub fn handshake(&self, socket: Socket, timeout: Duration) -> Result<Channel, ChannelError> {
        // The name is not sent and not checked: the key is the identity.
        let name = ServerName::try_from("strongroom.invalid")
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let tls = Tls::Client(UnbufferedClientConnection::new(self.config.clone(), name)?);
        handshake(tls, socket, timeout).map_err(|error| {
            let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (refused, error) {
                (Some(found), ChannelError::Tls(_)) => {
                    ChannelError::WrongPeer { expected: self.expected, found }
                }
                (_, error) => error,
            }
        })
    }
}

fn handshake(mut tls: Tls, socket: Socket, timeout: Duration) -> Result<Channel, ChannelError> {
    let failed = |error| ChannelError::io("the connection failed during the handshake", error);
    let deadline = Instant::now() + timeout;
    socket.prepare().map_err(failed)?;
    socket.set_write_timeout(Some(timeout)).map_err(failed)?;
    let mut received = vec![];
    // The peer's first frames may come together with the end of its handshake.
    let mut early = vec![];
    loop {
        let mut control = vec![];
        let (used, step) =
            tls.receive(&mut received, &mut |plain| early.extend_from_slice(plain), &mut control);
        received.drain(..used);
        // No alert is sent after an error: the unbuffered TLS state must not be stepped again then. The peer sees the end.
        let step = step?;
        (&socket).write_all(&control).map_err(failed)?;
        match step {
            Step::Again => {}
            Step::Established => break,
            Step::Closed => return Err(ChannelError::Closed),
            Step::Handshaking => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || received.len() > MAX_HANDSHAKE {
                    return Err(ChannelError::TimedOut);
                }
                socket.set_read_timeout(Some(left)).map_err(failed)?;
                let mut chunk = [0; 4096];
                match (&socket).read(&mut chunk).map_err(failed)? {
                    0 => return Err(ChannelError::Closed),
                    count => received.extend_from_slice(&chunk[..count]),
                }
            }
        }
    }
    socket.set_read_timeout(None).map_err(failed)?;
    socket.set_write_timeout(None).map_err(failed)?;
    let peer = PublicKey::from_spki(tls.peer_key_der().ok_or(ChannelError::Closed)?)?;
    let alpn =
        tls.alpn().map(<[u8]>::to_vec).ok_or_else(|| ChannelError::Protocol("a known protocol".into()))?;
    Ok(Channel::new(tls, socket, received, early, peer, alpn))
}
