//! A client of the gateway's admin door: one request, one answer, in turn, over an authenticated channel.

use std::time::Duration;

use strongroom_channel::{Channel, ChannelError, ClientTls, Frame, Peer};
use strongroom_contracts::{
    Application, Chain, PublicKey, SecretKey, SignedReceipt, SignedRevocation, codec,
};
use strongroom_protocol::ALPN_ADMIN;
use strongroom_protocol::admin::{
    AdminAnswer, AdminFailure, AdminRequest, Alert, AuditPlace, ContractInfo, SessionInfo, Status,
};
use strongroom_protocol::codec::{CodecError, decode_header, decode_list, encode_header};

pub use strongroom_channel::Address;

/// What went wrong at the admin door.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody answered, somebody else did, or the connection broke.
    #[error("the gateway at {address} cannot be reached: {source}")]
    Unreachable {
        /// Where it should be.
        address: Address,
        /// What happened.
        source: ChannelError,
    },
    /// The connection was made and ended without an answer: the door does not know our key.
    #[error("the gateway at {address} closed the connection without an answer")]
    NotAnswered {
        /// Where.
        address: Address,
    },
    /// The gateway refused.
    #[error("the gateway refused: {0}")]
    Refused(String),
    /// The gateway does not know it.
    #[error("the gateway says: {0}")]
    NotFound(String),
    /// The gateway could not.
    #[error("the gateway failed: {0}")]
    Failed(String),
    /// The answer makes no sense: another version, or not a gateway.
    #[error("the gateway at {address} gave an answer that this program does not understand: {what}")]
    Answer {
        /// Where.
        address: Address,
        /// What was wrong with it.
        what: String,
    },
}

/// What the gateway says about generations of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Generations {
    /// Contracts below are void.
    pub lowest: u64,
    /// The highest that the gateway accepted; 0 if none.
    pub highest: u64,
}

/// What a fence did, as the gateway's answer tells; the receipt is its signed form.
#[derive(Clone, Debug)]
pub struct Fenced {
    /// Sessions that were cut.
    pub sessions: u32,
    /// Microseconds from the receipt of the request until it held.
    pub took_us: u64,
    /// The receipt; not verified here. `None` after a local fence.
    pub receipt: Option<SignedReceipt>,
}

/// How far the alerts of a gateway have been read; the default: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlertPlace {
    /// The gateway's process.
    pub boot: u64,
    /// The last alert read.
    pub number: u64,
}

/// Alerts of the gateway.
#[derive(Clone, Debug)]
pub struct Alerts {
    /// Oldest first.
    pub list: Vec<Alert>,
    /// To go on from.
    pub place: AlertPlace,
    /// Alerts that the gateway does not keep any more.
    pub missed: u64,
}

/// A connection to the admin door.
pub struct AdminClient {
    address: Address,
    channel: Channel,
    frame: Frame,
    /// Whether the door has answered before, and so knows us.
    answered: bool,
    /// Set by a failure after which answers could be taken for those to other requests.
    broken: bool,
}

impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdminClient({})", self.address)
    }
}

impl AdminClient {
    /// Connects to the gateway that has the key `gateway`, as the administrator that has the key `admin`.
    ///
    /// `timeout` bounds the connection, the handshake and the wait for each answer.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`] if nobody or somebody else answers.
    pub fn connect(
        address: &Address,
        gateway: &PublicKey,
        admin: &SecretKey,
        timeout: Duration,
    ) -> Result<AdminClient, AdminError> {
        let unreachable = |source| AdminError::Unreachable { address: address.clone(), source };
        let tls = ClientTls::new(admin, Peer::Key(*gateway), ALPN_ADMIN).map_err(unreachable)?;
        let channel = tls.connect(address, timeout).map_err(unreachable)?;
        channel.sender.set_timeout(Some(timeout)).map_err(unreachable)?;
        channel.receiver.set_timeout(Some(timeout)).map_err(unreachable)?;
        Ok(AdminClient {
            address: address.clone(),
            channel,
            frame: Frame::new(),
            answered: false,
            broken: false,
        })
    }

    /// Sends a request and waits for its answer. A [`AdminAnswer::Failed`] comes back as an error.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn request(
        &mut self,
        request: &AdminRequest,
        data: &[u8],
    ) -> Result<(AdminAnswer, Vec<u8>), AdminError> {
        if self.broken {
            return Err(self.unreachable(ChannelError::Closed));
        }
        let mut header = vec![];
        encode_header(request, &mut header).map_err(|error| self.answer(error.to_string()))?;
        self.broken = true;
        // A door that does not know our key says so before it is asked, and closes: what it said counts, even if the request
        // cannot be sent any more.
        let sent = self.channel.sender.send(&header, data);
        let received = self.channel.receiver.recv(&mut self.frame);
        match (sent, received) {
            (_, Ok(true)) => {}
            (Err(ChannelError::TimedOut), _) | (_, Err(ChannelError::TimedOut)) => {
                return Err(self.unreachable(ChannelError::TimedOut));
            }
            // A server that refuses our key in the handshake is noticed only now (RFC 8446, 4.4.2).
            _ if !self.answered => return Err(AdminError::NotAnswered { address: self.address.clone() }),
            (Err(source), _) | (_, Err(source)) => return Err(self.unreachable(source)),
            (Ok(()), Ok(false)) => return Err(self.unreachable(ChannelError::Closed)),
        }
        self.answered = true;
        self.broken = false;
        let answer = decode_header(self.frame.header()).map_err(|error| self.answer(error.to_string()))?;
        match answer {
            AdminAnswer::Failed { kind: AdminFailure::Refused, text } => Err(AdminError::Refused(text)),
            AdminAnswer::Failed { kind: AdminFailure::NotFound, text } => Err(AdminError::NotFound(text)),
            AdminAnswer::Failed { kind: AdminFailure::Failed, text } => Err(AdminError::Failed(text)),
            answer => Ok((answer, self.frame.take_data())),
        }
    }

    /// How the gateway is.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn status(&mut self) -> Result<Status, AdminError> {
        match self.request(&AdminRequest::Status, &[])? {
            (AdminAnswer::Status(status), _) => Ok(status),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Generations of an application.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn generations(&mut self, application: &Application) -> Result<Generations, AdminError> {
        match self.request(&AdminRequest::Generation { application: application.clone() }, &[])? {
            (AdminAnswer::Generation { lowest, highest }, _) => Ok(Generations { lowest, highest }),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Hands a contract to the gateway, which keeps it for its holder. Returns how many live sessions it renewed.
    ///
    /// # Errors
    /// Any [`AdminError`]; [`AdminError::Refused`] if the contract is not valid there.
    pub fn deposit(&mut self, chain: &Chain) -> Result<u32, AdminError> {
        let bytes = chain.to_bytes().map_err(|error| self.answer(error.to_string()))?;
        match self.request(&AdminRequest::Deposit, &bytes)? {
            (AdminAnswer::Deposited { renewed, .. }, _) => Ok(renewed),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Has a revocation carried out; returns when the fence holds.
    ///
    /// # Errors
    /// Any [`AdminError`]; after each of them nothing is known to be fenced.
    pub fn revoke(&mut self, revocation: &SignedRevocation) -> Result<Fenced, AdminError> {
        let bytes = codec::encode(revocation).map_err(|error| self.answer(error.to_string()))?;
        match self.request(&AdminRequest::Revoke, &bytes)? {
            (AdminAnswer::Fenced { sessions, took_us }, data) => {
                let receipt = codec::decode(&data).map_err(|error| self.answer(error.to_string()))?;
                Ok(Fenced { sessions, took_us, receipt: Some(receipt) })
            }
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Fences all sessions of an application without a statement of the issuer; lasts until the next deposit.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn fence_locally(&mut self, application: &Application) -> Result<Fenced, AdminError> {
        match self.request(&AdminRequest::FenceLocally { application: application.clone() }, &[])? {
            (AdminAnswer::Fenced { sessions, took_us }, _) => Ok(Fenced { sessions, took_us, receipt: None }),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Live sessions.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn sessions(&mut self) -> Result<Vec<SessionInfo>, AdminError> {
        self.pages(
            |after| AdminRequest::Sessions { after },
            |answer| match answer {
                AdminAnswer::Sessions { next } => Some(*next),
                _ => None,
            },
            decode_list,
        )
    }

    /// Contracts that the gateway keeps.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn contracts(&mut self) -> Result<Vec<ContractInfo>, AdminError> {
        self.pages(
            |after| AdminRequest::Contracts { after },
            |answer| match answer {
                AdminAnswer::Contracts { next } => Some(*next),
                _ => None,
            },
            decode_list,
        )
    }

    /// A whole list, page by page. `next` of an answer: where the following page begins; `None` if it answers something else.
    fn pages<T, At: Ord + Copy>(
        &mut self,
        request: impl Fn(Option<At>) -> AdminRequest,
        next: impl Fn(&AdminAnswer) -> Option<Option<At>>,
        decode: impl Fn(&[u8]) -> Result<Vec<T>, CodecError>,
    ) -> Result<Vec<T>, AdminError> {
        let mut all: Vec<T> = vec![];
        let mut after = None;
        loop {
            let (answer, data) = self.request(&request(after), &[])?;
            let next = next(&answer).ok_or_else(|| self.unexpected(&answer))?;
            all.append(&mut decode(&data).map_err(|error| self.answer(error.to_string()))?);
            after = self.following(after, next)?;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Where the next page begins. Each begins after the one before, so that a list has an end.
    fn following<T: Ord>(&self, after: Option<T>, next: Option<T>) -> Result<Option<T>, AdminError> {
        if next.is_some() && next <= after {
            return Err(self.answer("a list that goes in circles".to_owned()));
        }
        Ok(next)
    }

    /// Alerts after those read; waits for at most `wait` until there is one, which must be less than the time-out.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn alerts(&mut self, place: AlertPlace, wait: Duration) -> Result<Alerts, AdminError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = AdminRequest::Alerts { boot: place.boot, after: place.number, wait_ms };
        match self.request(&request, &[])? {
            (AdminAnswer::Alerts { boot, missed, .. }, data) => {
                let list: Vec<Alert> = decode_list(&data).map_err(|error| self.answer(error.to_string()))?;
                let unread = if boot == place.boot { place.number } else { 0 };
                let number = list.last().map_or(unread, |alert| alert.number);
                Ok(Alerts { list, place: AlertPlace { boot, number }, missed })
            }
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// A page of the audit trail about an application; with it where the next page begins, if there may be one.
    ///
    /// # Errors
    /// Any [`AdminError`].
    pub fn audit_lines(
        &mut self,
        application: &Application,
        since_us: u64,
        from: AuditPlace,
    ) -> Result<(Vec<u8>, Option<AuditPlace>), AdminError> {
        let application = application.clone();
        match self.request(&AdminRequest::AuditLines { application, since_us, from }, &[])? {
            (AdminAnswer::AuditLines { next, more }, data) => Ok((data, more.then_some(next))),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    fn unreachable(&self, source: ChannelError) -> AdminError {
        AdminError::Unreachable { address: self.address.clone(), source }
    }

    pub(crate) fn answer(&self, what: String) -> AdminError {
        AdminError::Answer { address: self.address.clone(), what }
    }

    pub(crate) fn unexpected(&self, answer: &AdminAnswer) -> AdminError {
        self.answer(format!("{answer:?}"))
    }
}
