//! TLS to the native door without our channel: any key or none, any protocol name, any bytes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ResolvesClientCert};
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    version::TLS13,
};
use strongroom_contracts::{PublicKey, SecretKey};

use crate::support::LONG;

/// What the client shows of itself.
pub enum Show<'a> {
    /// A raw public key that it owns.
    Own(&'a SecretKey),
    /// A raw public key of somebody else, with signatures by its own.
    Stolen(PublicKey, &'a SecretKey),
    /// An X.509 certificate instead of a raw key.
    Certificate(Vec<u8>, &'a SecretKey),
    /// Nothing.
    Nothing,
}

pub struct RawTls {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// Takes any server: whom the adversary talks to is its own affair.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Shows one certificate, whatever is asked for.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(shown: Vec<u8>, signer: &SecretKey) -> Arc<CertifiedKey> {
    let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(signer.to_pkcs8())).unwrap();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(shown)], signer))
}

impl RawTls {
    /// Connects and completes the handshake as far as the client can tell.
    pub fn connect(address: SocketAddr, show: Show<'_>, alpn: &[&[u8]]) -> io::Result<RawTls> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let mut config = match show {
            Show::Own(key) => builder.with_client_cert_resolver(Arc::new(
                AlwaysResolvesClientRawPublicKeys::new(certified(key.public().to_spki(), key)),
            )),
            Show::Stolen(public, key) => builder.with_client_cert_resolver(Arc::new(
                AlwaysResolvesClientRawPublicKeys::new(certified(public.to_spki(), key)),
            )),
            Show::Certificate(der, key) => {
                builder.with_client_cert_resolver(Arc::new(Always(certified(der, key))))
            }
            Show::Nothing => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.enable_sni = false;
        let name = ServerName::try_from("strongroom.invalid").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(LONG))?;
        socket.set_write_timeout(Some(LONG))?;
        socket.set_nodelay(true)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(RawTls { stream })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads one frame's header and data; `None` at the end, however it comes.
    pub fn frame(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut prefix = [0; 8];
        self.read(&mut prefix)?;
        let [a, b, c, d, e, f, g, h] = prefix;
        let mut header = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
        let mut data = vec![0; u32::from_le_bytes([e, f, g, h]) as usize];
        self.read(&mut header)?;
        self.read(&mut data)?;
        Some((header, data))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error) => {
                let stuck = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                assert!(!stuck, "neither an answer nor the end of the connection");
                None
            }
        }
    }

    /// Whether the gateway ends the connection without a further frame.
    pub fn ends(&mut self) -> bool {
        self.frame().is_none()
    }
}

/// A frame's bytes, of any lengths.
pub fn frame_bytes(header: &[u8], data: &[u8]) -> Vec<u8> {
    let lengths = [(header.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    [&lengths[..], header, data].concat()
}
