//! The admin door, for those who are no administrators; statements that the issuer did not make; deposits that would widen.

use strongroom_channel::{Address, ClientTls, Frame, Peer};
use strongroom_contracts::{Chain, ContractId, Rights, SecretKey, Subject, Terms, codec};
use strongroom_protocol::admin::{AdminAnswer, AdminFailure, AdminRequest};
use strongroom_protocol::codec::encode_header;
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Failure, FenceReason};
use strongroom_protocol::{ALPN_ADMIN, ALPN_NATIVE};

use crate::raw::{RawTls, Show, frame_bytes};
use crate::support::admin::{Admin, revocation};
use crate::support::attacker::BOTH;
use crate::support::gateway::{Gateway, grant};
use crate::support::{LONG, wait_for};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn world() -> (Gateway, SecretKey, Terms) {
    let (gateway, holder) = (Gateway::start(), key());
    let terms = gateway.terms(
        "mail",
        &holder.public(),
        &[
            grant("users/alice/Mail", "/Mail", Rights::READ_WRITE),
            grant("shared", "/shared", Rights::READ_ONLY),
        ],
    );
    (gateway, holder, terms)
}

#[test]
fn only_administrators_get_in() {
    let (gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &chain);
    // A holder, a stranger, and the issuer's own key, which serves for signing only.
    for stranger in [&holder, &key(), &gateway.issuer, &gateway.key] {
        for (request, data) in [
            (AdminRequest::Status, vec![]),
            (AdminRequest::Sessions { after: None }, vec![]),
            (AdminRequest::Deposit, chain.to_bytes().unwrap()),
            (AdminRequest::FenceLocally { application: terms.application.clone() }, vec![]),
        ] {
            if let Some(mut admin) = Admin::connect_as(&gateway, stranger, ALPN_ADMIN) {
                assert!(
                    admin
                        .ask(&request, &data)
                        .is_none_or(|(answer, _)| matches!(answer, AdminAnswer::Failed { .. })),
                    "{request:?} was answered"
                );
            }
        }
    }
    assert!(session.is_alive());
    gateway.wait_audit(&[("event", "refused"), ("key", &holder.public().to_string())]);
}

#[test]
fn each_door_speaks_its_own_protocol() {
    let (gateway, ..) = world();
    // The administrator's key with the native protocol's name at the admin door, and the reverse.
    let refused = |address, alpn: &[u8]| {
        let tls = ClientTls::new(&gateway.admin, Peer::Gateway(gateway.id()), alpn).unwrap();
        match tls.connect(&Address::Tcp(address), LONG) {
            Err(_) => true,
            Ok(mut channel) => {
                channel.receiver.set_timeout(Some(LONG)).unwrap();
                let mut header = vec![];
                encode_header(&AdminRequest::Status, &mut header).unwrap();
                let _ = channel.sender.send(&header, &[]);
                !matches!(channel.receiver.recv(&mut Frame::new()), Ok(true))
            }
        }
    };
    assert!(refused(gateway.admin_address, ALPN_NATIVE));
    assert!(refused(gateway.address, ALPN_ADMIN));
    assert!(!refused(gateway.admin_address, ALPN_ADMIN), "the administrator itself is let in");
}

#[test]
fn administrators_requests_mean_nothing_at_the_native_door() {
    let (gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    for request in [
        AdminRequest::Status,
        AdminRequest::Deposit,
        AdminRequest::Sessions { after: None },
        AdminRequest::FenceLocally { application: terms.application.clone() },
    ] {
        let mut header = vec![];
        encode_header(&request, &mut header).unwrap();
        // In a session, and with the administrator's key in the place of a hello.
        let mut session = gateway.enter(&holder, &chain);
        session.call_raw(&header, &chain.to_bytes().unwrap()).refused();
        let dialled = gateway.dial(&gateway.admin);
        let _ = dialled.channel.sender.send(&header, &[]);
        assert!(!matches!(dialled.answer(), crate::support::attacker::Greeting::Welcome(_)));
    }
    assert!(gateway.enter(&holder, &chain).is_alive());
}

#[test]
fn malformed_requests_at_the_admin_door() {
    let (mut gateway, ..) = world();
    let frames = [
        frame_bytes(&[9, 0, 0, 0], &[]),
        frame_bytes(&[0], &[]),
        frame_bytes(&[0; 4096], &[0; 100]),
        frame_bytes(&[1, 0, 0, 0], &vec![0xff; MAX_DATA]),
        frame_bytes(&[2, 0, 0, 0], b"no revocation"),
        frame_bytes(&[2, 0, 0, 0], &[]),
        [4097u32.to_le_bytes(), 0u32.to_le_bytes()].concat(),
        [4u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat(),
        vec![0; 8],
    ];
    for frame in &frames {
        let mut tls =
            RawTls::connect(gateway.admin_address, Show::Own(&gateway.admin), &[ALPN_ADMIN]).unwrap();
        tls.send(frame).unwrap();
        if let Some((header, _)) = tls.frame() {
            let answer: AdminAnswer = strongroom_protocol::codec::decode_header(&header).unwrap();
            assert!(matches!(answer, AdminAnswer::Failed { .. }), "{answer:?}");
        }
    }
    assert!(gateway.is_running() && gateway.admin().status().is_some());
}

#[test]
fn revocations_that_the_issuer_did_not_sign() {
    let (gateway, holder, terms) = world();
    let mut session = gateway.enter(&holder, &Chain::issue(&terms, &gateway.issuer).unwrap());
    let good = revocation(&gateway, Subject::Contract(terms.id));
    let mut named_otherwise = good.clone();
    let forger = key();
    named_otherwise.issuer = forger.public().id();
    let elsewhere = strongroom_contracts::Revocation { gateway: key().public().gateway_id(), ..good.clone() };
    let right = codec::encode(&good.sign(&gateway.issuer).unwrap()).unwrap();
    let mut flipped = right.clone();
    flipped[20] ^= 1;
    let as_attenuation =
        crate::forge::OpenBlock::signed(&good, &gateway.issuer, strongroom_contracts::keys::Domain::Contract);
    for bytes in [
        codec::encode(&named_otherwise.sign(&forger).unwrap()).unwrap(),
        codec::encode(&elsewhere.sign(&gateway.issuer).unwrap()).unwrap(),
        flipped,
        right[..right.len() - 1].to_vec(),
        [&right[..], b"\0"].concat(),
        codec::encode(&as_attenuation).unwrap(),
        vec![],
    ] {
        let (answer, _) = gateway.admin().ask(&AdminRequest::Revoke, &bytes).expect("an answer");
        assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
        assert!(session.is_alive(), "a revocation that nobody signed has cut a session");
    }
}

#[test]
fn deposits_that_are_not_good_change_nothing() {
    let (gateway, holder, terms) = world();
    let good = Chain::issue(&terms, &gateway.issuer).unwrap();
    gateway.admin().deposit(&good);
    let mut session = gateway.enter(&holder, &good);
    let newer = Terms { generation: 2, id: ContractId::from_bytes([5; 16]), ..terms.clone() };
    let forged = Chain::issue(&Terms { issuer: key().public().id(), ..newer.clone() }, &key()).unwrap();
    let elsewhere =
        Chain::issue(&Terms { gateway: key().public().gateway_id(), ..newer.clone() }, &gateway.issuer)
            .unwrap();
    let expired = Chain::issue(&Terms { not_before: 1, expires: 2, ..newer }, &gateway.issuer).unwrap();
    for chain in [&forged, &elsewhere, &expired] {
        let answer = gateway.admin().deposit(chain);
        assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
    }
    assert!(session.is_alive());
    assert_eq!(gateway.greet(&holder, &[]).welcome().welcome.contract, terms.id);
}

#[test]
fn a_renewal_with_other_grants_ends_the_session_instead_of_changing_it() {
    let (gateway, holder, terms) = world();
    let first = Chain::issue(&terms, &gateway.issuer).unwrap();
    gateway.admin().deposit(&first);
    let mut session = gateway.enter(&holder, &first);
    let root = session.root(0);
    let handle = session.create(root, "open", BOTH).handle();

    // Equal in all but time: it goes on.
    let longer = Terms { id: ContractId::from_bytes([1; 16]), expires: terms.expires + 600, ..terms.clone() };
    let answer = gateway.admin().deposit(&Chain::issue(&longer, &gateway.issuer).unwrap());
    assert!(matches!(answer, AdminAnswer::Deposited { renewed: 1, .. }), "{answer:?}");
    session.write(handle, 0, b"still").ok();
    wait_for("the news of the renewal", || {
        session.call(Op::Ping).ok();
        session.events.contains(&Event::Renewed { expires: longer.expires }).then_some(())
    });

    // Narrower in one place, wider in another: neither reaches the live session.
    let other = Terms {
        id: ContractId::from_bytes([2; 16]),
        not_before: terms.not_before + 1,
        grants: vec![
            grant("users/alice/Mail", "/Mail", Rights::READ_ONLY),
            grant("shared", "/shared", Rights::READ_WRITE),
        ],
        ..terms.clone()
    };
    gateway.admin().deposit(&Chain::issue(&other, &gateway.issuer).unwrap());
    assert!(matches!(session.write(handle, 0, b"later").refused(), None | Some(Failure::Fenced)));
    while session.receive().is_some() {}
    assert!(session.events.contains(&Event::Fenced(FenceReason::Superseded)), "{:?}", session.events);
    assert_eq!(std::fs::read(gateway.data("users/alice/Mail/open")).unwrap(), b"still");
    // The new one says what it says.
    let mut session = gateway.greet(&holder, &[]).welcome();
    let (mail, shared) = (session.root(0), session.root(1));
    session.create(mail, "new", BOTH).failure();
    session.create(shared, "new", BOTH).handle();
}

#[test]
fn a_deposit_for_one_holder_is_none_for_another() {
    let (gateway, holder, terms) = world();
    let other = key();
    let first = Chain::issue(&terms, &gateway.issuer).unwrap();
    gateway.admin().deposit(&first);
    let mut session = gateway.enter(&holder, &first);
    let theirs = Terms {
        holder: other.public(),
        id: ContractId::from_bytes([8; 16]),
        grants: vec![grant("users/bob", "/bob", Rights::READ_WRITE)],
        application: "bobs".parse().unwrap(),
        ..terms
    };
    gateway.admin().deposit(&Chain::issue(&theirs, &gateway.issuer).unwrap());
    assert!(session.is_alive());
    assert_eq!(gateway.greet(&holder, &[]).welcome().grants.len(), 2);
    assert_eq!(gateway.greet(&other, &[]).welcome().grants[0].mount.as_str(), "/bob");
}
