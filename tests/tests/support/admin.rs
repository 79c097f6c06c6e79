//! The admin door, spoken to directly.

use strongroom_channel::{Address, Channel, ClientTls, Frame, Peer};
use strongroom_contracts::revocation::VERSION;
use strongroom_contracts::{
    Chain, ContractId, FenceReceipt, Revocation, SecretKey, SignedReceipt, SignedRevocation, Subject, codec,
};
use strongroom_protocol::ALPN_ADMIN;
use strongroom_protocol::admin::{AdminAnswer, AdminRequest, SessionInfo, Status};
use strongroom_protocol::codec::{decode_header, decode_list, encode_header};

use super::LONG;
use super::gateway::{Gateway, now};

pub struct Admin {
    channel: Channel,
    frame: Frame,
}

impl Admin {
    /// With the administrator's key; `None` if nobody answers (yet).
    pub fn connect(gateway: &Gateway) -> Option<Admin> {
        Admin::connect_as(gateway, &gateway.admin, ALPN_ADMIN)
    }

    pub fn connect_as(gateway: &Gateway, key: &SecretKey, alpn: &[u8]) -> Option<Admin> {
        let tls = ClientTls::new(key, Peer::Gateway(gateway.id()), alpn).unwrap();
        let channel = tls.connect(&Address::Tcp(gateway.admin_address), LONG).ok()?;
        channel.receiver.set_timeout(Some(LONG)).unwrap();
        Some(Admin { channel, frame: Frame::new() })
    }

    /// One request, one answer; `None` if the door closed.
    pub fn ask(&mut self, request: &AdminRequest, data: &[u8]) -> Option<(AdminAnswer, Vec<u8>)> {
        let mut header = vec![];
        encode_header(request, &mut header).unwrap();
        self.channel.sender.send(&header, data).ok()?;
        if !self.channel.receiver.recv(&mut self.frame).ok()? {
            return None;
        }
        Some((decode_header(self.frame.header()).unwrap(), self.frame.take_data()))
    }

    pub fn status(&mut self) -> Option<Status> {
        match self.ask(&AdminRequest::Status, &[])? {
            (AdminAnswer::Status(status), _) => Some(status),
            _ => None,
        }
    }

    pub fn deposit(&mut self, chain: &Chain) -> AdminAnswer {
        self.ask(&AdminRequest::Deposit, &chain.to_bytes().unwrap()).expect("an answer to a deposit").0
    }

    pub fn sessions(&mut self) -> Vec<SessionInfo> {
        let (answer, data) = self.ask(&AdminRequest::Sessions { after: None }, &[]).expect("an answer");
        assert_eq!(answer, AdminAnswer::Sessions { next: None });
        decode_list(&data).unwrap()
    }

    /// Revokes and verifies the receipt.
    pub fn revoke(&mut self, gateway: &Gateway, subject: Subject) -> FenceReceipt {
        let statement = revocation(gateway, subject).sign(&gateway.issuer).unwrap();
        self.revoke_signed(gateway, &statement)
    }

    pub fn revoke_signed(&mut self, gateway: &Gateway, statement: &SignedRevocation) -> FenceReceipt {
        let bytes = codec::encode(statement).unwrap();
        let (answer, data) = self.ask(&AdminRequest::Revoke, &bytes).expect("an answer to a revocation");
        let AdminAnswer::Fenced { sessions, .. } = answer else { panic!("not fenced: {answer:?}") };
        let receipt: SignedReceipt = codec::decode(&data).unwrap();
        let receipt = receipt.verify(&gateway.key.public()).expect("the gateway's signature");
        assert_eq!(receipt.revocation, statement.digest(), "the receipt is for this revocation");
        assert_eq!(receipt.sessions, sessions);
        receipt
    }

    pub fn revoke_contract(&mut self, gateway: &Gateway, id: ContractId) -> FenceReceipt {
        self.revoke(gateway, Subject::Contract(id))
    }
}

pub fn revocation(gateway: &Gateway, subject: Subject) -> Revocation {
    Revocation {
        version: VERSION,
        issuer: gateway.issuer.public().id(),
        gateway: gateway.id(),
        subject,
        issued_at: now(),
        why: "a test".into(),
    }
}
