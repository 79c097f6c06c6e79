//! Contracts that are forged, stolen, stale, spliced, or meant for somebody else.

use std::net::IpAddr;

use strongroom_contracts::chain::MAX_DEPTH;
use strongroom_contracts::keys::{self, Domain};
use strongroom_contracts::terms::{Narrowed, VERSION};
use strongroom_contracts::{
    Attenuation, Chain, ContractId, PublicKey, Rights, SecretKey, SessionLimits, Subject, Terms,
};
use strongroom_protocol::admin::{AdminAnswer, AdminFailure};
use strongroom_protocol::hello::{Hello, RefusedCode};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Failure;

use crate::forge::{OpenBlock, OpenChain};
use crate::support::attacker::{BOTH, Greeting, READ, plain_hello};
use crate::support::gateway::{Gateway, grant, now};
use crate::support::wait_for;

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn narrowed(data: &str, mount: &str, rights: Rights) -> Narrowed {
    Narrowed {
        data: data.parse().unwrap(),
        mount: mount.parse().unwrap(),
        rights,
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
    }
}

fn attenuation(holder: &PublicKey, grants: Vec<Narrowed>) -> Attenuation {
    Attenuation {
        version: VERSION,
        id: ContractId::from_bytes(keys::random().unwrap()),
        parent: [0; 32],
        holder: *holder,
        not_before: now() - 60,
        expires: now() + 3600,
        grants,
        limits: SessionLimits::default(),
        networks: None,
    }
}

/// A gateway, a holder, and good terms on alice's documents.
fn world() -> (Gateway, SecretKey, Terms) {
    let (gateway, holder) = (Gateway::start(), key());
    let terms = gateway.terms(
        "mail",
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    );
    (gateway, holder, terms)
}

#[track_caller]
fn refused(gateway: &Gateway, holder: &SecretKey, chain: &[u8], code: RefusedCode) {
    let refusal = gateway.greet(holder, chain).refused();
    assert_eq!(refusal.code, code, "{}", refusal.text);
    gateway.wait_audit(&[("event", "refused"), ("key", &holder.public().to_string())]);
}

#[test]
fn the_good_contract_is_good() {
    // Otherwise the refusals below would prove nothing.
    let (gateway, holder, terms) = world();
    let mut session = gateway.enter(&holder, &Chain::issue(&terms, &gateway.issuer).unwrap());
    let report = session.find(0, "report");
    let handle = session.open(report, READ).handle();
    assert_eq!(session.read(handle, 0, 100).data(), b"a report\n");
    gateway.wait_audit(&[("event", "open"), ("application", "mail")]);
}

#[test]
fn forged_by_an_unknown_issuer() {
    let (gateway, holder, mut terms) = world();
    let forger = key();
    refused(
        &gateway,
        &holder,
        &Chain::issue(&terms, &forger).unwrap().to_bytes().unwrap(),
        RefusedCode::Contract,
    );
    terms.issuer = forger.public().id();
    refused(
        &gateway,
        &holder,
        &Chain::issue(&terms, &forger).unwrap().to_bytes().unwrap(),
        RefusedCode::Contract,
    );
}

#[test]
fn every_flipped_byte_is_refused() {
    let (gateway, holder, terms) = world();
    let good = Chain::issue(&terms, &gateway.issuer).unwrap().to_bytes().unwrap();
    // One byte in each stretch: every member of the terms, and the signature.
    for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let refusal = gateway.greet(&holder, &bad).refused();
        assert_eq!(refusal.code, RefusedCode::Contract, "byte {at}: {}", refusal.text);
    }
}

#[test]
fn signed_for_another_purpose() {
    let (gateway, holder, terms) = world();
    for domain in [Domain::Attenuation, Domain::Revocation, Domain::Receipt] {
        let block = OpenBlock::signed(&terms, &gateway.issuer, domain);
        refused(&gateway, &holder, &OpenChain { blocks: vec![block] }.to_bytes(), RefusedCode::Contract);
    }
}

#[test]
fn truncated_and_lengthened() {
    let (gateway, holder, terms) = world();
    let good = Chain::issue(&terms, &gateway.issuer).unwrap().to_bytes().unwrap();
    for length in [1, 7, 8, 9, good.len() / 2, good.len() - 1] {
        refused(&gateway, &holder, &good[..length], RefusedCode::Contract);
    }
    refused(&gateway, &holder, &[&good[..], b"\0"].concat(), RefusedCode::Contract);
    refused(&gateway, &holder, &[&good[..], &good[..]].concat(), RefusedCode::Contract);
    refused(&gateway, &holder, &vec![0xff; 1 << 20], RefusedCode::Contract);
    refused(&gateway, &holder, &OpenChain { blocks: vec![] }.to_bytes(), RefusedCode::Contract);
    // A length that promises 2^60 blocks.
    refused(&gateway, &holder, &(1u64 << 60).to_le_bytes(), RefusedCode::Contract);
}

#[test]
fn terms_that_the_issuer_could_not_mean() {
    let (gateway, holder, terms) = world();
    let bad = [
        Terms { version: VERSION + 1, ..terms.clone() },
        Terms { generation: 0, ..terms.clone() },
        Terms { grants: vec![], ..terms.clone() },
        Terms { networks: Some(vec![]), ..terms.clone() },
        Terms { not_before: terms.expires, ..terms.clone() },
        Terms {
            grants: vec![grant("shared", "/a", Rights::READ_ONLY), grant("users", "/a/b", Rights::READ_ONLY)],
            ..terms.clone()
        },
        Terms { grants: vec![grant("shared", "/a", Rights::NONE)], ..terms },
    ];
    for terms in bad {
        let block = OpenBlock::signed(&terms, &gateway.issuer, Domain::Contract);
        refused(&gateway, &holder, &OpenChain { blocks: vec![block] }.to_bytes(), RefusedCode::Contract);
    }
}

#[test]
fn stolen() {
    let (gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let thief = key();
    refused(&gateway, &thief, &chain.to_bytes().unwrap(), RefusedCode::Contract);
    // Nor while its owner uses it, nor by joining the owner's session.
    let owner = gateway.enter(&holder, &chain);
    refused(&gateway, &thief, &chain.to_bytes().unwrap(), RefusedCode::Contract);
    for bytes in [vec![], chain.to_bytes().unwrap()] {
        let hello = Hello { resume: Some(owner.welcome.session), ..plain_hello() };
        match gateway.dial(&thief).hello(hello, &bytes) {
            Greeting::Refused(refusal) => {
                assert!(
                    matches!(
                        refusal.code,
                        RefusedCode::NoSession | RefusedCode::Contract | RefusedCode::NoContract
                    ),
                    "{refusal:?}"
                );
            }
            Greeting::Welcome(_) => panic!("a thief was let into the session"),
            Greeting::Gone => panic!("no answer"),
        }
    }
}

#[test]
fn nobody_without_a_contract() {
    let (gateway, ..) = world();
    refused(&gateway, &key(), &[], RefusedCode::NoContract);
    // Waiting is for known holders only.
    let hello = Hello { wait: true, ..plain_hello() };
    assert_eq!(gateway.dial(&key()).hello(hello, &[]).refused().code, RefusedCode::NoContract);
}

#[test]
fn a_kept_contract_is_handed_to_its_holder_only() {
    let (gateway, holder, terms) = world();
    let answer = gateway.admin().deposit(&Chain::issue(&terms, &gateway.issuer).unwrap());
    assert!(matches!(answer, AdminAnswer::Deposited { .. }), "{answer:?}");
    assert_eq!(gateway.greet(&holder, &[]).welcome().welcome.contract, terms.id);
    refused(&gateway, &key(), &[], RefusedCode::NoContract);
}

#[test]
fn expired_and_not_yet_valid() {
    let (gateway, holder, mut terms) = world();
    (terms.not_before, terms.expires) = (now() - 7200, now() - 1);
    refused(
        &gateway,
        &holder,
        &Chain::issue(&terms, &gateway.issuer).unwrap().to_bytes().unwrap(),
        RefusedCode::Expired,
    );
    (terms.not_before, terms.expires) = (now() + 3600, now() + 7200);
    refused(
        &gateway,
        &holder,
        &Chain::issue(&terms, &gateway.issuer).unwrap().to_bytes().unwrap(),
        RefusedCode::NotYet,
    );
}

#[test]
fn a_contract_that_expires_takes_its_session_with_it() {
    let (gateway, holder, mut terms) = world();
    terms.expires = now() + 2;
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &chain);
    let root = session.root(0);
    let handle = session.create(root, "mine", BOTH).handle();
    wait_for("the end of the term", || (!session.write(handle, 0, b"x").is_ok()).then_some(()));
    assert!(now() >= terms.expires, "it ended early");
    let before = gateway.snapshot("users/alice");
    for _ in 0..10 {
        assert!(matches!(session.write(handle, 0, b"late").refused(), None | Some(Failure::Fenced)));
    }
    assert_eq!(gateway.snapshot("users/alice"), before);
    refused(&gateway, &holder, &chain.to_bytes().unwrap(), RefusedCode::Expired);
}

#[test]
fn replayed_after_its_revocation() {
    let (mut gateway, holder, terms) = world();
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    gateway.enter(&holder, &chain);
    gateway.admin().revoke_contract(&gateway, terms.id);
    refused(&gateway, &holder, &chain.to_bytes().unwrap(), RefusedCode::Revoked);
    // Nor by deposit, nor after a crash.
    let answer = gateway.admin().deposit(&chain);
    assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
    gateway.restart();
    refused(&gateway, &holder, &chain.to_bytes().unwrap(), RefusedCode::Revoked);
}

#[test]
fn an_older_generation_after_a_reissue() {
    let (mut gateway, holder, terms) = world();
    let old = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &old);
    let statement = Subject::Application { application: terms.application.clone(), below_generation: 2 };
    gateway.admin().revoke(&gateway, statement);
    assert!(matches!(session.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
    refused(&gateway, &holder, &old.to_bytes().unwrap(), RefusedCode::Revoked);
    gateway.restart();
    refused(&gateway, &holder, &old.to_bytes().unwrap(), RefusedCode::Revoked);
    // Revoking "below 1" later brings nothing back.
    let statement = Subject::Application { application: terms.application.clone(), below_generation: 1 };
    gateway.admin().revoke(&gateway, statement);
    refused(&gateway, &holder, &old.to_bytes().unwrap(), RefusedCode::Revoked);

    // Once the reissued one is kept, the old bytes get what the new contract grants, and nothing else.
    let newer = Terms {
        generation: 2,
        id: ContractId::from_bytes([2; 16]),
        grants: vec![grant("shared", "/shared", Rights::READ_ONLY)],
        ..terms
    };
    let new = Chain::issue(&newer, &gateway.issuer).unwrap();
    let answer = gateway.admin().deposit(&new);
    assert!(matches!(answer, AdminAnswer::Deposited { .. }), "{answer:?}");
    for chain in [&old, &new] {
        let session = gateway.enter(&holder, chain);
        assert_eq!((session.welcome.generation, session.welcome.contract), (2, newer.id));
        assert_eq!(session.grants.len(), 1);
        assert_eq!(session.grants[0].mount.as_str(), "/shared");
    }
    let answer = gateway.admin().deposit(&old);
    assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
}

#[test]
fn a_newer_generation_voids_older_ones_by_being_used() {
    let (mut gateway, holder, terms) = world();
    let old = Chain::issue(&terms, &gateway.issuer).unwrap();
    let mut session = gateway.enter(&holder, &old);
    let other = key();
    let newer = Terms { generation: 2, id: ContractId::from_bytes([2; 16]), holder: other.public(), ..terms };
    gateway.enter(&other, &Chain::issue(&newer, &gateway.issuer).unwrap());
    assert!(matches!(session.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
    refused(&gateway, &holder, &old.to_bytes().unwrap(), RefusedCode::Revoked);
    gateway.restart();
    refused(&gateway, &holder, &old.to_bytes().unwrap(), RefusedCode::Revoked);
}

#[test]
fn for_another_gateway() {
    let (gateway, holder, mut terms) = world();
    terms.gateway = key().public().gateway_id();
    refused(
        &gateway,
        &holder,
        &Chain::issue(&terms, &gateway.issuer).unwrap().to_bytes().unwrap(),
        RefusedCode::Contract,
    );
}

#[test]
fn from_another_address() {
    let (gateway, holder, mut terms) = world();
    terms.networks = Some(vec!["127.0.0.2/32".parse().unwrap()]);
    let chain = Chain::issue(&terms, &gateway.issuer).unwrap().to_bytes().unwrap();
    let from = |ip: &str| {
        let source: IpAddr = ip.parse().unwrap();
        gateway.dial_from(&holder, Some(source)).unwrap()
    };
    let mut inside = from("127.0.0.2").hello(plain_hello(), &chain).welcome();
    assert_eq!(from("127.0.0.3").hello(plain_hello(), &chain).refused().code, RefusedCode::Contract);
    gateway.wait_audit(&[("event", "refused"), ("address", "127.0.0.3")]);
    // Nor may a second connection of the session come from there.
    let hello = Hello { resume: Some(inside.welcome.session), ..plain_hello() };
    for bytes in [&[][..], &chain[..]] {
        assert_eq!(from("127.0.0.3").hello(hello, bytes).refused().code, RefusedCode::Contract);
    }
    assert!(inside.is_alive());
}

#[test]
fn reordered_and_spliced_chains() {
    let (gateway, holder, terms) = world();
    let (second, third) = (key(), key());
    let kept = || vec![narrowed("users/alice/Documents", "/Documents", Rights::READ_ONLY)];
    let root = Chain::issue(&terms, &gateway.issuer).unwrap();
    let one = root.attenuate(attenuation(&second.public(), kept()), &holder).unwrap();
    let two = one.attenuate(attenuation(&third.public(), kept()), &second).unwrap();
    gateway.enter(&third, &two);

    let blocks = OpenChain::of(&two).blocks;
    let [a, b, c] = [&blocks[0], &blocks[1], &blocks[2]];
    for order in
        [vec![a, c], vec![a, c, b], vec![b, c], vec![c], vec![b, a, c], vec![a, b, b, c], vec![a, a, b, c]]
    {
        let spliced = OpenChain { blocks: order.into_iter().cloned().collect() };
        refused(&gateway, &third, &spliced.to_bytes(), RefusedCode::Contract);
    }
    // The narrowing of one contract put under another of the same holder, which grants more.
    let other = Terms {
        id: ContractId::from_bytes([9; 16]),
        grants: vec![grant("shared", "/shared", Rights::READ_WRITE)],
        ..terms
    };
    let other = OpenChain::of(&Chain::issue(&other, &gateway.issuer).unwrap()).blocks;
    let spliced = OpenChain { blocks: vec![other[0].clone(), b.clone(), c.clone()] };
    refused(&gateway, &third, &spliced.to_bytes(), RefusedCode::Contract);
    // The holder of the last block cannot leave the narrowing out: the first block is another's.
    refused(&gateway, &third, &root.to_bytes().unwrap(), RefusedCode::Contract);
}

#[test]
fn chains_that_are_too_deep() {
    let (gateway, holder, terms) = world();
    let kept = || vec![narrowed("users/alice/Documents", "/Documents", Rights::READ_ONLY)];
    let mut chain = Chain::issue(&terms, &gateway.issuer).unwrap();
    let holder_key = holder.public();
    for _ in 0..MAX_DEPTH {
        chain = chain.attenuate(attenuation(&holder_key, kept()), &holder).unwrap();
    }
    gateway.enter(&holder, &chain);
    assert!(chain.attenuate(attenuation(&holder_key, kept()), &holder).is_err());
    // One deeper, rightly signed and rightly linked: a block names its parent only, so that a shorter chain with the
    // same last block makes the right successor.
    let mut open = OpenChain::of(&chain);
    let ends = OpenChain { blocks: vec![open.blocks[0].clone(), open.blocks[MAX_DEPTH].clone()] };
    let ends = Chain::from_bytes(&ends.to_bytes()).unwrap();
    let longer = ends.attenuate(attenuation(&holder_key, kept()), &holder).unwrap();
    open.blocks.push(OpenChain::of(&longer).blocks.remove(2));
    refused(&gateway, &holder, &open.to_bytes(), RefusedCode::Contract);
}

#[test]
fn attenuated_by_the_wrong_key() {
    let (gateway, _, terms) = world();
    let thief = key();
    let root = Chain::issue(&terms, &gateway.issuer).unwrap();
    let kept = vec![narrowed("users/alice/Documents", "/Documents", Rights::READ_WRITE)];
    for signer in [&thief, &gateway.admin, &gateway.issuer] {
        let chain = root.attenuate(attenuation(&thief.public(), kept.clone()), signer).unwrap();
        refused(&gateway, &thief, &chain.to_bytes().unwrap(), RefusedCode::Contract);
    }
}

#[test]
fn an_attenuation_never_widens() {
    let (gateway, holder, mut terms) = world();
    terms.expires = now() + 600;
    terms.grants = vec![grant("users/alice/Documents", "/Documents", Rights::READ_ONLY)];
    terms.grants[0].quota_bytes = Some(100);
    terms.networks = Some(vec!["127.0.0.2/32".parse().unwrap()]);
    let root = Chain::issue(&terms, &gateway.issuer).unwrap();
    let second = key();
    let source = Some("127.0.0.2".parse().unwrap());
    let wide = |grants| Attenuation {
        expires: now() + 86_400,
        networks: Some(vec!["127.0.0.0/8".parse().unwrap()]),
        ..attenuation(&second.public(), grants)
    };

    // More rights, time and networks than there were: what there was stays.
    let kept = vec![narrowed("users/alice/Documents", "/Documents", Rights::READ_WRITE)];
    let chain = root.attenuate(wide(kept.clone()), &holder).unwrap().to_bytes().unwrap();
    let mut session = gateway.dial_from(&second, source).unwrap().hello(plain_hello(), &chain).welcome();
    assert_eq!(session.welcome.expires, terms.expires);
    assert_eq!(session.grants[0].rights, Rights::READ_ONLY);
    let top = session.root(0);
    assert!(matches!(session.create(top, "new", BOTH).failure(), Failure::Denied { .. }));
    assert!(!gateway.data("users/alice/Documents/new").exists());
    let elsewhere = gateway.dial_from(&second, Some("127.0.0.3".parse().unwrap())).unwrap();
    assert_eq!(elsewhere.hello(plain_hello(), &chain).refused().code, RefusedCode::Contract);

    // Another path, a path above, a path beside with the same beginning: nothing is left.
    for data in ["users/bob", "users/alice", "users", "users/alice/Documents2", "shared"] {
        let kept = vec![narrowed(data, "/Documents", Rights::READ_WRITE)];
        let chain = root.attenuate(wide(kept), &holder).unwrap().to_bytes().unwrap();
        match gateway.dial_from(&second, source).unwrap().hello(plain_hello(), &chain) {
            Greeting::Refused(refusal) => assert_eq!(refusal.code, RefusedCode::Contract),
            // The meet may keep the deeper path where the mount paths agree; never more than there was.
            Greeting::Welcome(session) => {
                assert!(data == "users/alice" || data == "users", "{data}");
                let seen = gateway.data("users/alice/Documents");
                let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(seen).unwrap());
                assert!(session.grants.iter().all(|grant| grant.root.is_none_or(|root| root.ino == ino)));
                assert!(session.grants.iter().all(|grant| grant.rights == Rights::READ_ONLY));
            }
            Greeting::Gone => panic!("no answer"),
        }
    }
}

#[test]
fn an_attenuated_quota_never_widens() {
    let (gateway, holder, mut terms) = world();
    terms.grants[0].quota_bytes = Some(100);
    terms.grants[0].max_file_bytes = Some(64);
    let second = key();
    let mut kept = narrowed("users/alice/Documents", "/Documents", Rights::READ_WRITE);
    (kept.quota_bytes, kept.max_file_bytes) = (Some(1 << 40), Some(1 << 40));
    let chain = Chain::issue(&terms, &gateway.issuer)
        .unwrap()
        .attenuate(attenuation(&second.public(), vec![kept]), &holder)
        .unwrap();
    let mut session = gateway.enter(&second, &chain);
    let root = session.root(0);
    let first = session.create(root, "first", BOTH).handle();
    assert_eq!(session.write(first, 0, &[1; 65]).errno(), libc::EFBIG);
    assert_eq!(session.write(first, 64, b"x").errno(), libc::EFBIG);
    session.write(first, 0, &[1; 64]).ok();
    // "a report" has 9 bytes: 73 of 100 are used.
    let second = session.create(root, "second", BOTH).handle();
    assert_eq!(session.write(second, 0, &[2; 28]).failure(), Failure::Quota);
    assert_eq!(session.write(second, 27, &[2; 1]).failure(), Failure::Quota);
    session.write(second, 0, &[2; 27]).ok();
    assert_eq!(std::fs::metadata(gateway.data("users/alice/Documents/second")).unwrap().len(), 27);
}

#[test]
fn a_revoked_parent_voids_its_children() {
    let (mut gateway, holder, terms) = world();
    let (second, third) = (key(), key());
    let kept = || vec![narrowed("users/alice/Documents", "/Documents", Rights::READ_ONLY)];
    let root = Chain::issue(&terms, &gateway.issuer).unwrap();
    let middle = attenuation(&second.public(), kept());
    let middle_id = middle.id;
    let one = root.attenuate(middle, &holder).unwrap();
    let two = one.attenuate(attenuation(&third.public(), kept()), &second).unwrap();
    let mut parent = gateway.enter(&holder, &root);
    let mut child = gateway.enter(&third, &two);

    let receipt = gateway.admin().revoke_contract(&gateway, middle_id);
    assert_eq!(receipt.sessions, 1);
    assert!(matches!(child.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
    assert!(parent.is_alive(), "the block above the revoked one stays valid");
    refused(&gateway, &second, &one.to_bytes().unwrap(), RefusedCode::Revoked);
    refused(&gateway, &third, &two.to_bytes().unwrap(), RefusedCode::Revoked);

    gateway.admin().revoke_contract(&gateway, terms.id);
    assert!(matches!(parent.call(Op::Ping).refused(), None | Some(Failure::Fenced)));
    gateway.restart();
    let fresh = root.attenuate(attenuation(&third.public(), kept()), &holder).unwrap();
    for (key, chain) in [(&holder, &root), (&third, &fresh)] {
        refused(&gateway, key, &chain.to_bytes().unwrap(), RefusedCode::Revoked);
    }
}
