//! The term of a session: renewed in place, superseded, expired, awaited.

use strongroom_contracts::{Rights, Subject};
use strongroom_protocol::admin::{AdminAnswer, AdminRequest};
use strongroom_protocol::hello::RefusedCode;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Failure, FenceReason, Outcome};

use crate::support::{HANG, World, app, eventually, grant, key, now};

#[test]
fn renewed_in_place_with_open_handles() {
    let mut world = World::new();
    let holder = key();
    world.contract(&holder);
    let terms = world.terms(&holder);
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let (handle, _) = client.create(root, "open");
    let mut newer = world.terms(&holder);
    newer.expires = terms.expires + 3600;
    let newer_chain = world.issue(&newer);
    assert_eq!(world.admin().deposit(&newer_chain), 1);
    assert_eq!(client.event(), Event::Renewed { expires: newer.expires });
    assert_eq!(client.write(handle, 0, b"goes on"), 7);
    assert_eq!(world.admin().deposit(&newer_chain), 0, "again: nothing to renew");
    // The session follows the newer contract: revoking the old one does not concern it, also after a restart.
    world.restart();
    assert_eq!(world.admin().revoke(&world.revocation(Subject::Contract(terms.id))).sessions, 0);
    let resumed = world.resume(&holder, client.welcome.session).unwrap();
    assert_eq!((resumed.welcome.contract, resumed.welcome.expires), (newer.id, newer.expires));
    // An older deposit does not take the term back, and is not handed out.
    assert_eq!(world.admin().revoke(&world.revocation(Subject::Contract(newer.id))).sessions, 1);
}

#[test]
fn a_file_put_in_place_renews_as_well() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let mut newer = world.terms(&holder);
    newer.expires += 999;
    let again =
        world.connect(&holder).hello(Some(client.welcome.session), false, &world.issue(&newer)).unwrap();
    assert_eq!(again.welcome.contract, newer.id);
    assert_eq!(client.event(), Event::Renewed { expires: newer.expires });
}

#[test]
fn other_grants_supersede() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let mut narrower = world.terms(&holder);
    narrower.not_before += 1;
    narrower.grants = vec![grant("mail", "/Mail", Rights::READ_ONLY)];
    assert_eq!(world.admin().deposit(&world.issue(&narrower)), 0);
    assert_eq!(client.event(), Event::Fenced(FenceReason::Superseded));
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Failed(Failure::Fenced));
    let refused = world.resume(&holder, client.welcome.session).err().unwrap();
    assert_eq!(refused.code, RefusedCode::NoSession);
    let client = world.client(&holder, &[]);
    assert_eq!(client.grants[0].rights, Rights::READ_ONLY);
}

#[test]
fn a_higher_generation_supersedes_the_whole_application() {
    let world = World::new();
    let (holder, other) = (key(), key());
    let mut client = world.client(&holder, &world.contract(&holder));
    let mut reissued = world.terms(&other);
    reissued.generation = 5;
    world.admin().deposit(&world.issue(&reissued));
    assert_eq!(client.event(), Event::Fenced(FenceReason::Superseded));
    assert!(client.closed(), "the connection is closed once the client had time to hear why");
    let asked = world.admin().ask(&AdminRequest::Generation { application: app("mail") }, &[]).0;
    assert_eq!(asked, AdminAnswer::Generation { lowest: 5, highest: 5 });
    let late = world.admin().ask(&AdminRequest::Deposit, &world.contract(&holder)).0;
    assert!(matches!(late, AdminAnswer::Failed { .. }), "{late:?}");
}

#[test]
fn a_contract_ends_with_its_time() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.expires = now() + 2;
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    client.create(root, "f");
    assert_eq!(client.event(), Event::Fenced(FenceReason::Expired));
    assert!(now() >= terms.expires);
    assert_eq!(client.call(Op::Ping, &[]), Outcome::Failed(Failure::Fenced));
    assert_eq!(world.hello(&holder, &[]).err().unwrap().code, RefusedCode::Expired);
}

#[test]
fn a_waiting_hello_gets_the_reissued_contract() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let void = Subject::Application { application: app("mail"), below_generation: 2 };
    world.admin().revoke(&world.revocation(void));
    assert_eq!(client.event(), Event::Fenced(FenceReason::Revoked));

    // One place for each key: of two that wait, the newer one has it.
    let connections = [world.connect(&holder), world.connect(&holder)];
    let (told, answers) = std::sync::mpsc::channel();
    for connection in connections {
        let told = told.clone();
        connection.send_hello(None, true, &world.contract(&holder));
        std::thread::spawn(move || drop(told.send(connection.answer())));
    }
    assert_eq!(answers.recv_timeout(HANG).unwrap().err().unwrap().code, RefusedCode::Busy);
    let mut reissued = world.terms(&holder);
    reissued.generation = 2;
    world.admin().deposit(&world.issue(&reissued));
    let mut client = answers.recv_timeout(HANG).unwrap().unwrap();
    assert_eq!(client.welcome.generation, 2);
    let root = client.root();
    client.create(root, "on we go");
}

#[test]
fn only_known_keys_may_wait() {
    let world = World::new();
    let stranger = key();
    let refused = world.connect(&stranger).hello(None, true, &[]).err().unwrap();
    assert_eq!(refused.code, RefusedCode::NoContract);
}

#[test]
fn the_operators_fence_lasts_until_the_next_deposit() {
    let mut world = World::new();
    let holder = key();
    let chain = world.contract(&holder);
    let mut client = world.client(&holder, &chain);
    let fence = AdminRequest::FenceLocally { application: app("mail") };
    let (answer, data) = world.admin().ask(&fence, &[]);
    assert!(matches!(answer, AdminAnswer::Fenced { sessions: 1, .. }) && data.is_empty(), "{answer:?}");
    assert_eq!(client.event(), Event::Fenced(FenceReason::Revoked));
    assert_eq!(world.hello(&holder, &chain).err().unwrap().code, RefusedCode::Revoked);
    world.restart();
    assert_eq!(world.hello(&holder, &chain).err().unwrap().code, RefusedCode::Revoked);
    world.admin().deposit(&chain);
    assert!(world.hello(&holder, &chain).is_ok());
}

#[test]
fn a_session_without_connections_ends_after_its_grace() {
    let world = World::with_limits("session-grace = \"300ms\"");
    let holder = key();
    let client = world.client(&holder, &world.contract(&holder));
    let session = client.welcome.session;
    drop(client);
    world.audited(&[("event", "close"), ("session", &session.to_string())]);
    assert_eq!(world.resume(&holder, session).err().unwrap().code, RefusedCode::NoSession);
    eventually("its file is gone", || {
        std::fs::read_dir(world.state().join("sessions")).unwrap().count() == 0
    });
}

#[test]
fn clients_hear_that_the_gateway_stops_and_go_on_afterwards() {
    let mut world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let root = client.root();
    client.create(root, "f");
    assert_eq!(world.stop(), Some(0));
    assert_eq!(client.event(), Event::Stopping);
    assert!(client.closed());
    world.start();
    let resumed = world.resume(&holder, client.welcome.session).unwrap();
    assert!(resumed.welcome.resumed);
    assert_ne!(resumed.welcome.boot, client.welcome.boot);
    world.audited(&[("event", "stop")]);
}
