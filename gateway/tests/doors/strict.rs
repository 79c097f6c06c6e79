//! `audit = "strict"`: no answer before its record is safe.

use strongroom_contracts::Audit;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::{World, key, name};

#[test]
fn every_operation_is_in_the_trail_when_it_is_answered() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.audit = Audit::Strict;
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let recorded = |op: &str, outcome: &str| {
        let session = client_session(&world);
        world.audit().iter().any(|line| {
            line["session"] == session && line["op"] == op && line["outcome"] == outcome && line["path"] != ""
        })
    };
    let (handle, _) = client.create(root, "f");
    assert!(recorded("create", "ok"));
    client.write(handle, 0, b"abc");
    assert!(recorded("write", "ok"));
    client.read(handle, 0, 3);
    assert!(recorded("read", "ok"));
    let list = Op::List { node: root, cookie: 0, max_bytes: 4096, plus: true, ahead: true };
    assert_eq!(client.call(list, &[]), Outcome::Data);
    assert!(recorded("list", "ok"));
    // Files that nobody has asked for are not read, so that the trail says what was.
    let ahead = Op::ReadFiles { grant: 0, longest: 100, max_bytes: 4096 };
    let refused = Outcome::Failed(Failure::Errno(95));
    assert_eq!(client.call(ahead, &root.ino.to_le_bytes()), refused);
    assert_eq!(
        client.call(Op::Unlink { parent: root, name: name("nothing") }, &[]),
        Outcome::Failed(Failure::Errno(2))
    );
    assert!(recorded("unlink", "errno 2"));
    let line = world.audited(&[("op", "create")]);
    assert_eq!(line["path"], "/Mail/f");
    assert_eq!(line["contract"], terms.id.to_string());
}

fn client_session(world: &World) -> String {
    let line = world.audited(&[("event", "open")]);
    line["session"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_is_done_while_the_trail_cannot_be_written() {
    let mut world = World::prepare("");
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    terms.audit = Audit::Strict;
    std::fs::create_dir(world.state()).unwrap();
    std::os::unix::fs::symlink("/dev/full", world.state().join("audit.jsonl")).unwrap();
    world.start();
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let mkdir =
        |file: &str| Op::Mkdir { parent: root, name: name(file), mode: 0o755, by: crate::support::ME };
    const EIO: u16 = 5;
    client.call(mkdir("first"), &[]);
    assert_eq!(client.call(mkdir("second"), &[]), Outcome::Failed(Failure::Errno(EIO)));
    assert!(!world.data().join("mail/second").exists());
    // Contracts that do not ask for it are served.
    let other = key();
    let mut client = world.client(&other, &world.contract(&other));
    let root = client.root();
    client.create(root, "served");
}
