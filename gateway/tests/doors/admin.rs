//! The admin door.

use std::collections::BTreeSet;

use strongroom_channel::{Address, ClientTls, Frame, Peer};
use strongroom_protocol::ALPN_ADMIN;
use strongroom_protocol::admin::{AdminAnswer, AdminFailure, AdminRequest, ContractInfo, SessionInfo};
use strongroom_protocol::codec;

use crate::support::{Admin, HANG, World, app, eventually, key};

#[test]
fn status_sessions_and_contracts() {
    let world = World::new();
    let (holder, other) = (key(), key());
    let mut client = world.client(&holder, &world.contract(&holder));
    let root = client.root();
    let (handle, _) = client.create(root, "f");
    client.write(handle, 0, b"12345");
    client.read(handle, 0, 3);
    let mut terms = world.terms(&other);
    terms.application = app("editor");
    let mut admin = world.admin();
    admin.deposit(&world.issue(&terms));
    let AdminAnswer::Status(status) = admin.ask(&AdminRequest::Status, &[]).0 else { panic!("no status") };
    assert_eq!(status.gateway, world.id());
    assert_eq!((status.sessions, status.contracts, status.revocations), (1, 2, 0));
    assert!(status.now >= status.started && status.boot == client.welcome.boot);

    let (answer, data) = admin.ask(&AdminRequest::Sessions { after: None }, &[]);
    assert_eq!(answer, AdminAnswer::Sessions { next: None });
    let list: Vec<SessionInfo> = codec::decode_list(&data).unwrap();
    let [info] = &list[..] else { panic!("{list:?}") };
    assert_eq!(
        (info.session, info.application.clone(), info.holder),
        (client.welcome.session, app("mail"), holder.public())
    );
    assert_eq!(info.addresses, ["127.0.0.1"]);
    assert_eq!((info.handles, info.bytes_written, info.bytes_read), (1, 5, 3));
    assert!(info.operations >= 3);

    let statement = world.revocation(strongroom_contracts::Subject::Contract(terms.id));
    admin.revoke(&statement);
    let (answer, data) = admin.ask(&AdminRequest::Contracts { after: None }, &[]);
    assert_eq!(answer, AdminAnswer::Contracts { next: None });
    let list: Vec<ContractInfo> = codec::decode_list(&data).unwrap();
    let mut seen: Vec<_> =
        list.iter().map(|info| (info.application.as_str(), info.void, info.last_used > 0)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("editor", true, false), ("mail", false, true)]);
}

#[test]
fn long_lists_come_in_pages() {
    let world = World::new();
    let mut admin = world.admin();
    let holders: BTreeSet<_> = (0..1100)
        .map(|_| {
            let holder = key();
            admin.deposit(&world.contract(&holder));
            holder.public()
        })
        .collect();
    let (mut seen, mut after, mut pages) = (vec![], None, 0);
    loop {
        let (answer, data) = admin.ask(&AdminRequest::Contracts { after }, &[]);
        let AdminAnswer::Contracts { next } = answer else { panic!("{answer:?}") };
        let page: Vec<ContractInfo> = codec::decode_list(&data).unwrap();
        seen.extend(page.iter().map(|info| info.holder));
        pages += 1;
        match next {
            None => break,
            some => after = some,
        }
    }
    assert!(pages > 2, "{pages}");
    assert!(seen.iter().eq(&holders), "each once, in order");

    let holder = key();
    let chain = world.contract(&holder);
    let clients: Vec<_> = (0..3).map(|_| world.client(&holder, &chain)).collect();
    let mut ids: Vec<_> = clients.iter().map(|client| client.welcome.session).collect();
    ids.sort_unstable();
    for (n, after) in [None].into_iter().chain(ids.iter().copied().map(Some)).enumerate() {
        let (answer, data) = admin.ask(&AdminRequest::Sessions { after }, &[]);
        assert_eq!(answer, AdminAnswer::Sessions { next: None });
        let page: Vec<SessionInfo> = codec::decode_list(&data).unwrap();
        assert!(page.iter().map(|info| info.session).eq(ids[n..].iter().copied()));
    }
}

#[test]
fn only_listed_keys_and_only_the_issuers_contracts() {
    let world = World::new();
    let mut stranger = Admin::connect(&world, &key());
    let (answer, _) = stranger.answer();
    assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
    world.audited(&[("event", "refused"), ("outcome", "admin")]);
    let mut admin = world.admin();
    let mut refused = |chain: &[u8]| {
        let answer = admin.ask(&AdminRequest::Deposit, chain).0;
        assert!(matches!(answer, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }), "{answer:?}");
    };
    refused(b"");
    refused(&World::prepare("").contract(&key()));
    let mut old = world.terms(&key());
    (old.not_before, old.expires) = (1, 2);
    refused(&world.issue(&old));
    // The holder key of a contract is no administrator's, at either door.
    let holder = key();
    let client = world.client(&holder, &world.contract(&holder));
    let mut guest = Admin::connect(&world, &holder);
    assert!(matches!(guest.answer().0, AdminAnswer::Failed { .. }));
    drop(client);
}

#[test]
fn a_unix_socket_serves_as_well() {
    let mut world = World::prepare("");
    let path = world.dir.path().join("admin.sock");
    world.admin_socket = Some(path.clone());
    for _ in 0..2 {
        world.start();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(world.admin_address, Some(Address::Unix(path.clone())));
        let mut admin = world.admin();
        assert!(matches!(admin.ask(&AdminRequest::Status, &[]).0, AdminAnswer::Status(_)));
        // A socket that a killed process leaves behind is no hindrance.
        world.kill();
    }
    world.start();
    assert_eq!(world.stop(), Some(0));
    eventually("the socket is gone", || !path.exists());
}

#[test]
fn the_doors_do_not_speak_each_others_protocol() {
    let world = World::new();
    let tls = ClientTls::new(&world.admin, Peer::Gateway(world.id()), ALPN_ADMIN).unwrap();
    let refused = match tls.connect(world.address.as_ref().unwrap(), HANG) {
        Err(_) => true,
        Ok(mut channel) => !matches!(channel.receiver.recv(&mut Frame::new()), Ok(true)),
    };
    assert!(refused);
}

#[test]
fn nonsense_is_answered_and_the_next_request_too() {
    let world = World::new();
    let mut admin = world.admin();
    admin.send_raw(&[0xff; 40]);
    assert!(matches!(admin.answer().0, AdminAnswer::Failed { kind: AdminFailure::Refused, .. }));
    assert!(matches!(admin.ask(&AdminRequest::Status, &[]).0, AdminAnswer::Status(_)));
}

/// Threads of the gateway that serve an administrator.
fn served(world: &World) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", world.pid())).unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).filter(|name| name.trim_end() == "admin").count()
}

/// As many administrators as the door seats, all waiting for an alert that nobody raises.
fn full_house(world: &World) -> Vec<Admin> {
    let waiting = |_| {
        let mut admin = world.admin();
        assert!(matches!(admin.ask(&AdminRequest::Status, &[]).0, AdminAnswer::Status(_)));
        admin.send(&AdminRequest::Alerts { boot: 0, after: 0, wait_ms: 60_000 });
        admin
    };
    (0..32).map(waiting).collect()
}

#[test]
fn who_waits_for_alerts_keeps_no_revocation_out() {
    let world = World::new();
    let holder = key();
    let client = world.client(&holder, &world.contract(&holder));
    let mut waiting = full_house(&world);
    let mut admin = world.admin();
    admin.revoke(&world.revocation(strongroom_contracts::Subject::Application {
        application: app("mail"),
        below_generation: 2,
    }));
    drop(client);
    // The one that had waited longest was given up for it; the others have heard of the revocation, or wait on.
    waiting.remove(0).ends();
    assert!(matches!(admin.ask(&AdminRequest::Status, &[]).0, AdminAnswer::Status(_)));
}

#[test]
fn a_killed_administrator_leaves_its_seat() {
    let world = World::new();
    for _ in 0..2 {
        let waiting = full_house(&world);
        assert!(served(&world) >= waiting.len());
        drop(waiting);
        eventually("nobody is served any more", || served(&world) == 0);
    }
}

#[test]
fn strangers_keep_no_administrator_out() {
    let world = World::new();
    let Some(Address::Tcp(address)) = &world.admin_address else { panic!("no TCP") };
    let silent: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    // From another address: theirs has no seat left for now.
    let mut admin = Admin::connect_from(&world, &world.admin, "127.0.0.2".parse().unwrap());
    assert!(matches!(admin.ask(&AdminRequest::Status, &[]).0, AdminAnswer::Status(_)));
    drop(silent);
}
