//! Making one connection: TCP, TLS, hello.

use std::time::Duration;

use strongroom_channel::{Address, Channel, ChannelError, ClientTls, Closer, Frame};
use strongroom_protocol::codec;
use strongroom_protocol::hello::{Answer, GrantInfo, Hello, Refused, SessionId, Welcome};

/// How long connecting may take, and each of the handshake and the answer.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// The gateway keeps a waiting connection for 60 s; beyond this it has died without a word.
const PARKED: Duration = Duration::from_secs(75);

/// What came of knocking at the gateway's door.
pub(super) enum Knock {
    /// Come in.
    Welcome(Box<Welcome>, Vec<GrantInfo>, Box<Channel>),
    /// Stay out.
    Refused(Refused),
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// The connection failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The gateway closed the connection without an answer.
    #[error("the gateway closed the connection without an answer")]
    Silent,
    /// The answer makes no sense.
    #[error("the gateway's answer cannot be understood: {0}")]
    Answer(String),
}

/// Connects and says hello; `meet` gets what closes the connection while the answer is awaited.
pub(super) fn knock(
    tls: &ClientTls,
    gateway: &Address,
    resume: Option<SessionId>,
    wait: bool,
    chain: &[u8],
    meet: &dyn Fn(Option<Closer>),
) -> Result<Knock, KnockError> {
    let channel = tls.connect(gateway, CONNECT)?;
    meet(Some(channel.closer.clone()));
    let answer = hello(channel, Hello { version: strongroom_protocol::VERSION, resume, wait }, chain);
    meet(None);
    answer
}

fn hello(mut channel: Channel, hello: Hello, chain: &[u8]) -> Result<Knock, KnockError> {
    let mut header = vec![];
    let malformed = |error: codec::CodecError| KnockError::Answer(error.to_string());
    codec::encode_header(&hello, &mut header).map_err(malformed)?;
    channel.sender.send(&header, chain)?;
    channel.receiver.set_timeout(Some(if hello.wait { PARKED } else { CONNECT }))?;
    let mut frame = Frame::new();
    if !channel.receiver.recv(&mut frame)? {
        return Err(KnockError::Silent);
    }
    channel.receiver.set_timeout(None)?;
    match codec::decode_header(frame.header()).map_err(malformed)? {
        Answer::Welcome(welcome) => {
            let grants = codec::decode_list(frame.data()).map_err(malformed)?;
            Ok(Knock::Welcome(Box::new(welcome), grants, Box::new(channel)))
        }
        Answer::Refused(refused) => Ok(Knock::Refused(refused)),
    }
}
