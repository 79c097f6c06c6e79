//! Who is welcome, who is not, and what the audit trail says of it.

use strongroom_contracts::{Attenuation, Chain, Rights, SecretKey, Subject, keys, terms::Narrowed};
use strongroom_protocol::codec;
use strongroom_protocol::hello::{Answer, Hello, RefusedCode};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Failure, FenceReason, Outcome};

use crate::support::{World, grant, key, now};

#[test]
fn a_session_is_welcomed_and_served() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    assert!(!client.welcome.resumed);
    assert_eq!(client.welcome.application, "mail");
    assert_eq!(client.grants.len(), 1);
    assert_eq!(client.grants[0].rights, Rights::READ_WRITE);
    let root = client.root();
    let (handle, entry) = client.create(root, "letter");
    assert_eq!(client.write(handle, 0, b"Dear Alice"), 10);
    assert_eq!(client.read(handle, 5, 100), b"Alice");
    assert_eq!(std::fs::read(world.data().join("mail/letter")).unwrap(), b"Dear Alice");
    assert_eq!(client.lookup(root, "letter").node, entry.node);
    // A second connection of the same session knows the same handle.
    let mut second = world.resume(&holder, client.welcome.session).unwrap();
    assert!(second.welcome.resumed);
    assert_eq!(second.read(handle, 0, 4), b"Dear");
    assert_eq!(client.call(Op::Bye, &[]), Outcome::Done);
    assert!(client.closed() && second.closed());
    let refused = world.resume(&holder, client.welcome.session).err().unwrap();
    assert_eq!(refused.code, RefusedCode::NoSession);
    world.audited(&[("event", "open"), ("application", "mail"), ("address", "127.0.0.1")]);
    world.audited(&[("event", "close"), ("session", &client.welcome.session.to_string())]);
}

#[test]
fn what_is_denied_is_told_and_recorded() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.grants = vec![grant("mail", "/Mail", Rights::READ_ONLY)];
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    for _ in 0..50 {
        let outcome = client.call(Op::Unlink { parent: root, name: crate::support::name("x") }, &[]);
        assert!(matches!(outcome, Outcome::Failed(Failure::Denied { .. })), "{outcome:?}");
    }
    let line = world.audited(&[("event", "denied"), ("op", "unlink"), ("outcome", "missing delete")]);
    assert_eq!(line["path"], "/Mail/x");
    assert_eq!(line["contract"], terms.id.to_string());
    crate::support::eventually("the rest is counted", || {
        world.audit().iter().filter(|line| line["op"] == "unlink").any(|line| line["count"] == 49)
    });
}

/// What a hello with some chain is refused for.
fn refused(world: &World, holder: &strongroom_contracts::SecretKey, chain: &[u8]) -> RefusedCode {
    let refused = world.hello(holder, chain).err().expect("it must be refused");
    assert!(!refused.text.is_empty() && refused.text.len() <= 512);
    let code = format!("{:?}", refused.code).to_lowercase();
    world.audited(&[("event", "refused"), ("outcome", &code), ("key", &holder.public().to_string())]);
    refused.code
}

#[test]
fn who_is_refused_and_why() {
    let world = World::new();
    let holder = key();
    let good = world.contract(&holder);
    assert!(world.hello(&holder, &good).is_ok());

    // Stolen: the right contract, another key.
    assert_eq!(refused(&world, &key(), &good), RefusedCode::Contract);
    // Forged: another issuer.
    let other = key();
    let mut terms = world.terms(&holder);
    terms.issuer = other.public().id();
    let forged = Chain::issue(&terms, &other).unwrap().to_bytes().unwrap();
    assert_eq!(refused(&world, &holder, &forged), RefusedCode::Contract);
    // Damaged, in every way that a flipped byte can damage it.
    for at in (0..good.len()).step_by(23) {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        assert_eq!(world.hello(&holder, &damaged).err().unwrap().code, RefusedCode::Contract, "byte {at}");
    }
    assert_eq!(refused(&world, &holder, &good[..good.len() - 1]), RefusedCode::Contract);
    // For another gateway.
    let mut terms = world.terms(&holder);
    terms.gateway = key().public().gateway_id();
    assert_eq!(refused(&world, &holder, &world.issue(&terms)), RefusedCode::Contract);
    // From another network, and from none.
    let mut terms = world.terms(&holder);
    terms.networks = Some(vec!["10.77.0.0/24".parse().unwrap()]);
    assert_eq!(refused(&world, &holder, &world.issue(&terms)), RefusedCode::Contract);

    // These fall back to the contract that is kept for the key, so they are shown with a key that has none.
    let (early, late, none) = (key(), key(), key());
    let mut terms = world.terms(&early);
    terms.not_before = now() + 600;
    assert_eq!(refused(&world, &early, &world.issue(&terms)), RefusedCode::NotYet);
    let mut terms = world.terms(&late);
    (terms.not_before, terms.expires) = (now() - 600, now() - 1);
    assert_eq!(refused(&world, &late, &world.issue(&terms)), RefusedCode::Expired);
    assert_eq!(refused(&world, &none, &[]), RefusedCode::NoContract);
    assert!(world.hello(&holder, &[]).is_ok(), "the kept one is handed to its holder");
}

#[test]
fn the_void_is_refused_and_stays_so() {
    let mut world = World::new();
    let (a, b, c) = (key(), key(), key());
    world.contract(&a);
    let terms = world.terms(&a);
    let revoked = world.issue(&terms);
    world.admin().revoke(&world.revocation(Subject::Contract(terms.id)));
    assert_eq!(refused(&world, &a, &revoked), RefusedCode::Revoked);

    let mut old = world.terms(&b);
    old.application = crate::support::app("editor");
    let old = (world.issue(&old), old);
    assert!(world.hello(&b, &old.0).is_ok());
    // A higher generation, wherever it is first seen, voids lower ones.
    let mut newer = world.terms(&c);
    (newer.application, newer.generation) = (crate::support::app("editor"), 2);
    assert!(world.hello(&c, &world.issue(&newer)).is_ok());
    assert_eq!(refused(&world, &b, &old.0), RefusedCode::Revoked);
    let below = Subject::Application { application: crate::support::app("editor"), below_generation: 9 };
    world.admin().revoke(&world.revocation(below));
    assert_eq!(refused(&world, &c, &world.issue(&newer)), RefusedCode::Revoked);

    world.restart();
    assert_eq!(refused(&world, &a, &revoked), RefusedCode::Revoked);
    assert_eq!(refused(&world, &b, &old.0), RefusedCode::Revoked);
    assert_eq!(refused(&world, &c, &world.issue(&newer)), RefusedCode::Revoked);
}

/// A contract that its holder makes for another key.
fn lend(first: &[u8], holder: &SecretKey, to: &SecretKey, rights: Rights, expires: u64) -> Vec<u8> {
    let block = Attenuation {
        version: strongroom_contracts::terms::VERSION,
        id: strongroom_contracts::ContractId::from_bytes(keys::random().unwrap()),
        parent: [0; 32],
        holder: to.public(),
        not_before: 0,
        expires,
        grants: vec![Narrowed {
            data: "mail".parse().unwrap(),
            mount: "/Mail".parse().unwrap(),
            rights,
            quota_bytes: None,
            quota_files: None,
            max_file_bytes: None,
        }],
        limits: strongroom_contracts::SessionLimits::default(),
        networks: None,
    };
    Chain::from_bytes(first).unwrap().attenuate(block, holder).unwrap().to_bytes().unwrap()
}

#[test]
fn an_attenuated_contract_is_kept_for_its_holder() {
    let mut world = World::new();
    let (holder, lent, stranger) = (key(), key(), key());
    let first = world.contract(&holder);
    let narrow = lend(&first, &holder, &lent, Rights::READ_ONLY, now() + 600);
    assert_eq!(refused(&world, &lent, &[]), RefusedCode::NoContract);
    world.client(&lent, &narrow);
    assert_eq!(world.client(&lent, &[]).grants[0].rights, Rights::READ_ONLY);
    // The one that is presented is meant, whichever is kept.
    let wide = lend(&first, &holder, &lent, Rights::READ_WRITE, now() + 900);
    assert_eq!(world.client(&lent, &wide).grants[0].rights, Rights::READ_WRITE);
    assert_eq!(world.client(&lent, &narrow).grants[0].rights, Rights::READ_ONLY);
    assert_eq!(world.client(&lent, &[]).grants[0].rights, Rights::READ_WRITE);
    world.restart();
    assert_eq!(world.client(&lent, &[]).grants[0].rights, Rights::READ_WRITE);
    // What the issuer signed for a key stays.
    world.client(&holder, &first);
    let back = lend(&first, &holder, &holder, Rights::READ_ONLY, now() + 900);
    world.client(&holder, &back);
    assert_eq!(world.client(&holder, &[]).grants[0].rights, Rights::READ_WRITE);
    assert_eq!(refused(&world, &stranger, &narrow), RefusedCode::Contract);
    assert_eq!(refused(&world, &stranger, &[]), RefusedCode::NoContract);
    // Void with what it was made from.
    let id = Chain::from_bytes(&first).unwrap().claimed_terms().unwrap().id;
    world.admin().revoke(&world.revocation(Subject::Contract(id)));
    assert_eq!(refused(&world, &lent, &[]), RefusedCode::Revoked);
}

#[test]
fn a_session_goes_on_under_the_contract_that_it_is_resumed_with() {
    let world = World::new();
    let (holder, lent) = (key(), key());
    let mut terms = world.terms(&holder);
    let old = world.issue(&terms);
    terms.id = strongroom_contracts::ContractId::from_bytes(keys::random().unwrap());
    terms.expires += 600;
    let new = world.issue(&terms);
    let soon = |rights, secs| lend(&old, &holder, &lent, rights, now() + secs);
    let cases = [
        (&holder, old.clone(), new.clone(), Some(terms.expires)),
        (&lent, soon(Rights::READ_ONLY, 300), soon(Rights::READ_ONLY, 600), Some(now() + 600)),
        // Other grants are another session.
        (&lent, soon(Rights::READ_ONLY, 300), soon(Rights::READ_WRITE, 600), None),
    ];
    for (key, before, after, expires) in cases {
        let mut client = world.client(key, &before);
        let resumed = world.connect(key).hello(Some(client.welcome.session), false, &after);
        match expires {
            Some(expires) => {
                let told = resumed.unwrap().welcome.expires;
                assert!(told.abs_diff(expires) < 60, "{told} {expires}");
                assert!(matches!(client.event(), Event::Renewed { expires } if expires == told));
                assert_eq!(client.call(Op::Ping, &[]), Outcome::Done);
                // The older one, and one of another key, change nothing.
                let again = world.connect(key).hello(Some(client.welcome.session), false, &before).unwrap();
                assert_eq!(again.welcome.expires, told);
            }
            None => {
                assert_eq!(resumed.err().unwrap().code, RefusedCode::NoSession);
                assert_eq!(client.event(), Event::Fenced(FenceReason::Superseded));
            }
        }
    }
}

#[test]
fn an_attenuated_contract_ends_with_any_of_its_blocks() {
    let world = World::new();
    let (holder, lent) = (key(), key());
    let first = world.contract(&holder);
    let chain = lend(&first, &holder, &lent, Rights::READ_ONLY, now() + 600);
    assert_eq!(refused(&world, &holder, &chain), RefusedCode::Contract);
    let mut client = world.client(&lent, &chain);
    assert_eq!(client.grants[0].rights, Rights::READ_ONLY);
    let id = Chain::from_bytes(&first).unwrap().claimed_terms().unwrap().id;
    let receipt = world.admin().revoke(&world.revocation(Subject::Contract(id)));
    assert_eq!(receipt.sessions, 1);
    assert!(matches!(client.call(Op::Ping, &[]), Outcome::Failed(Failure::Fenced)));
    assert_eq!(refused(&world, &lent, &chain), RefusedCode::Revoked);
}

#[test]
fn other_versions_and_other_first_frames_are_refused() {
    let world = World::new();
    let holder = key();
    let answer = |header: &[u8]| {
        let mut connection = world.connect(&holder);
        connection.channel.sender.send(header, &[]).unwrap();
        assert!(connection.channel.receiver.recv(&mut connection.frame).unwrap());
        match codec::decode_header::<Answer>(connection.frame.header()).unwrap() {
            Answer::Refused(refused) => refused.code,
            Answer::Welcome(_) => panic!("welcome"),
        }
    };
    let mut header = vec![];
    codec::encode_header(&Hello { version: 2, resume: None, wait: false }, &mut header).unwrap();
    assert_eq!(answer(&header), RefusedCode::Version);
    header.push(0);
    assert_eq!(answer(&header), RefusedCode::Contract);
    assert_eq!(answer(&[0xff; 4096]), RefusedCode::Contract);
    world.audited(&[("event", "violation"), ("outcome", "handshake")]);
}

#[test]
fn a_session_belongs_to_its_key() {
    let world = World::new();
    let (holder, thief) = (key(), key());
    let client = world.client(&holder, &world.contract(&holder));
    let own = world.contract(&thief);
    let refused = world.connect(&thief).hello(Some(client.welcome.session), false, &own).err().unwrap();
    assert_eq!(refused.code, RefusedCode::NoSession);
}
