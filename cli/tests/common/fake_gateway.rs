//! An admin door that does what a test wants, for what a real gateway does not do: lie, hang up, have a wrong clock.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strongroom_channel::{Frame, ServerTls, Socket};
use strongroom_contracts::{
    Application, Chain, FenceReceipt, PublicKey, SecretKey, SignedRevocation, Subject, codec,
};
use strongroom_protocol::ALPN_ADMIN;
use strongroom_protocol::admin::{
    AdminAnswer, AdminFailure, AdminRequest, ContractInfo, SessionInfo, Status,
};
use strongroom_protocol::codec::{decode_header, encode_header, encode_list};

/// How the gateway misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// It does not.
    #[default]
    Honest,
    /// Deposits are refused.
    RefuseDeposits,
    /// The connection ends instead of an answer to a deposit.
    HangUpOnDeposit,
    /// The connection ends instead of an answer to a revocation.
    HangUpOnRevoke,
    /// Revocations are refused.
    RefuseRevocations,
    /// Revocations are answered with a receipt signed by another key.
    ForgeReceipts,
    /// Revocations are answered with the receipt of another revocation.
    StaleReceipts,
    /// Every request is left unanswered and the connection closed.
    HangUp,
}

#[derive(Default)]
pub struct Seen {
    pub deposits: Vec<Chain>,
    pub revocations: Vec<SignedRevocation>,
    pub lowest: BTreeMap<Application, u64>,
    pub highest: BTreeMap<Application, u64>,
    pub sessions: Vec<SessionInfo>,
}

pub struct FakeGateway {
    listener: TcpListener,
    pub seen: Arc<Mutex<Seen>>,
    pub manner: Arc<Mutex<Manner>>,
    /// Seconds that its clock is ahead.
    pub ahead: Arc<Mutex<i64>>,
}

impl FakeGateway {
    /// Takes a free port; nobody is answered before [`FakeGateway::serve`].
    pub fn bind() -> FakeGateway {
        FakeGateway {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            seen: Arc::default(),
            manner: Arc::default(),
            ahead: Arc::default(),
        }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Serves with the keys of a base directory, until the process ends.
    pub fn serve(&self, base: &Path) {
        let key = std::fs::read_to_string(base.join("gateway/gateway.key")).unwrap();
        let issuer = std::fs::read_to_string(base.join("base/issuer.pub")).unwrap();
        let door = Door {
            key: SecretKey::from_file_text(&key).unwrap(),
            issuer: issuer.trim().parse().unwrap(),
            seen: self.seen.clone(),
            manner: self.manner.clone(),
            ahead: self.ahead.clone(),
        };
        let listener = self.listener.try_clone().unwrap();
        let tls = ServerTls::new(&door.key, &[ALPN_ADMIN]).unwrap();
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                if let Ok(mut channel) = tls.accept(Socket::Tcp(tcp.unwrap()), Duration::from_secs(20)) {
                    let mut frame = Frame::new();
                    while let Ok(true) = channel.receiver.recv(&mut frame) {
                        let Some((answer, data)) = door.answer(&frame) else { break };
                        let mut header = vec![];
                        encode_header(&answer, &mut header).unwrap();
                        if channel.sender.send(&header, &data).is_err() {
                            break;
                        }
                    }
                    channel.closer.close();
                }
            }
        });
    }

    pub fn manner(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }
}

struct Door {
    key: SecretKey,
    issuer: PublicKey,
    seen: Arc<Mutex<Seen>>,
    manner: Arc<Mutex<Manner>>,
    ahead: Arc<Mutex<i64>>,
}

impl Door {
    fn answer(&self, frame: &Frame) -> Option<(AdminAnswer, Vec<u8>)> {
        let manner = *self.manner.lock().unwrap();
        if manner == Manner::HangUp {
            return None;
        }
        let mut seen = self.seen.lock().unwrap();
        let refused = |text: &str| {
            Some((AdminAnswer::Failed { kind: AdminFailure::Refused, text: text.to_owned() }, vec![]))
        };
        match decode_header::<AdminRequest>(frame.header()).unwrap() {
            AdminRequest::Status => Some((AdminAnswer::Status(self.status()), vec![])),
            AdminRequest::Generation { application } => {
                let lowest = seen.lowest.get(&application).copied().unwrap_or(1);
                let highest = seen.highest.get(&application).copied().unwrap_or(0);
                Some((AdminAnswer::Generation { lowest, highest }, vec![]))
            }
            AdminRequest::Deposit if manner == Manner::RefuseDeposits => refused("not today"),
            AdminRequest::Deposit if manner == Manner::HangUpOnDeposit => None,
            AdminRequest::Deposit => {
                let chain = Chain::from_bytes(frame.data()).unwrap();
                let effective = chain.verify_signed(&self.issuer).unwrap();
                let lowest = seen.lowest.get(&effective.application).copied().unwrap_or(1);
                if effective.generation < lowest {
                    return refused("the generation is void");
                }
                let highest = seen.highest.entry(effective.application.clone()).or_default();
                *highest = effective.generation.max(*highest);
                seen.deposits.push(chain);
                Some((AdminAnswer::Deposited { contract: effective.id(), renewed: 1 }, vec![]))
            }
            AdminRequest::Revoke if manner == Manner::HangUpOnRevoke => None,
            AdminRequest::Revoke if manner == Manner::RefuseRevocations => refused("another audience"),
            AdminRequest::Revoke => {
                let signed: SignedRevocation = codec::decode(frame.data()).unwrap();
                let says = signed.verify(&self.issuer, &self.key.public().gateway_id()).unwrap();
                if let Subject::Application { application, below_generation } = &says.subject {
                    seen.lowest.insert(application.clone(), *below_generation);
                }
                let data = self.receipt(&signed, says.subject, manner);
                seen.revocations.push(signed);
                Some((AdminAnswer::Fenced { sessions: 1, took_us: 1500 }, data))
            }
            AdminRequest::Sessions { .. } => {
                Some((AdminAnswer::Sessions { next: None }, encode_list(&seen.sessions).unwrap()))
            }
            AdminRequest::Contracts { .. } => {
                let list: Vec<ContractInfo> =
                    seen.deposits.iter().map(|chain| self.info(chain, &seen)).collect();
                Some((AdminAnswer::Contracts { next: None }, encode_list(&list).unwrap()))
            }
            AdminRequest::FenceLocally { .. }
            | AdminRequest::Alerts { .. }
            | AdminRequest::AuditLines { .. }
            | AdminRequest::Undo(_)
            | AdminRequest::UndoProgress { .. }
            | AdminRequest::Blast { .. }
            | AdminRequest::History { .. }
            | AdminRequest::FileAt { .. } => refused("no"),
        }
    }

    fn info(&self, chain: &Chain, seen: &Seen) -> ContractInfo {
        let effective = chain.verify_signed(&self.issuer).unwrap();
        let lowest = seen.lowest.get(&effective.application).copied().unwrap_or(1);
        ContractInfo {
            contract: effective.id(),
            application: effective.application.clone(),
            generation: effective.generation,
            holder: effective.holder,
            expires: effective.expires,
            void: effective.generation < lowest,
            last_used: 0,
        }
    }

    fn receipt(&self, signed: &SignedRevocation, subject: Subject, manner: Manner) -> Vec<u8> {
        let digest = if manner == Manner::StaleReceipts { [7; 32] } else { signed.digest() };
        let receipt = FenceReceipt {
            version: 1,
            gateway: self.key.public().gateway_id(),
            revocation: digest,
            subject,
            generation: 1,
            sessions: 1,
            last_operation: 4711,
            drained: 8,
            handles_closed: 3,
            fenced_at_us: 1_700_000_000_000_000,
            took_us: 1500,
        };
        let other = SecretKey::generate().unwrap();
        let key = if manner == Manner::ForgeReceipts { &other } else { &self.key };
        codec::encode(&receipt.sign(key).unwrap()).unwrap()
    }

    fn status(&self) -> Status {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Status {
            gateway: self.key.public().gateway_id(),
            version: "test".into(),
            boot: 1,
            now: now.saturating_add_signed(*self.ahead.lock().unwrap()),
            started: now,
            sessions: 0,
            contracts: 0,
            revocations: 0,
        }
    }
}
