//! Paths that are swapped under the gateway's feet while they are walked: on the storage side, and by another session.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use strongroom_contracts::{Rights, SecretKey};
use strongroom_protocol::attr::{Node, OpenFlags};
use strongroom_protocol::op::{Meant, Op, RenameMode};

use crate::support::attacker::{Attacker, BOTH, CREDENTIALS, READ, Reply, named};
use crate::support::gateway::{Gateway, SECRET, grant};

const ROUNDS: usize = 2000;

fn session(gateway: &Gateway, application: &str) -> Attacker {
    let holder = SecretKey::generate().unwrap();
    let chain = gateway.contract(
        application,
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    );
    gateway.enter(&holder, &chain)
}

/// Walks `name`/secret in every way there is, and reads and writes what it finds. Returns how often it reached a file.
fn walk(session: &mut Attacker, name: &str, forbidden: &[u64]) -> usize {
    let root = session.root(0);
    let mut reached = 0;
    let mut handles = vec![];
    if let Reply::Ok(strongroom_protocol::reply::Outcome::Entry(entry), _) = session.lookup(root, name) {
        assert!(!forbidden.contains(&entry.node.ino), "a node outside was told");
        let found = session.lookup(entry.node, "secret");
        if found.is_ok() {
            let node = found.entry().node;
            assert!(!forbidden.contains(&node.ino), "a node outside was told");
            for flags in [READ, BOTH] {
                let opened = session.open(node, flags);
                if opened.is_ok() {
                    handles.push(opened.handle());
                }
            }
        }
        let created = session.create(entry.node, "secret", OpenFlags { write: true, ..READ });
        if created.is_ok() {
            handles.push(created.handle());
        }
        let _ =
            session.call(Op::Mkdir { parent: entry.node, name: named("made"), mode: 0o755, by: CREDENTIALS });
        let _ =
            session.call(Op::Rmdir { parent: entry.node, name: named("made"), directory: Meant::Whichever });
        if let Ok(entries) = session.list(entry.node) {
            assert!(entries.iter().all(|entry| !forbidden.contains(&entry.ino)), "a name outside was listed");
        }
    }
    let resolved =
        session.call_with(Op::Resolve { grant: 0, ino: forbidden[0] }, format!("{name}/secret").as_bytes());
    assert!(!resolved.is_ok(), "a path led outside");
    for handle in handles {
        if let Reply::Ok(_, data) = session.read(handle, 0, 4096) {
            assert_ne!(data, SECRET, "the secret was read");
            reached += 1;
        }
        let _ = session.write(handle, 0, b"inside");
        let _ = session.call(Op::Release { handle, lock_owner: None });
    }
    reached
}

#[test]
fn swapped_on_the_storage_side() {
    let gateway = Gateway::start();
    let base = gateway.data("users/alice/Documents");
    std::fs::create_dir(base.join("real")).unwrap();
    std::fs::write(base.join("real/secret"), b"inside").unwrap();
    std::os::unix::fs::symlink("../../bob", base.join("link")).unwrap();
    let before = gateway.snapshot("users/bob");
    let forbidden =
        ["users/bob/secret", "users/bob"].map(|path| std::fs::metadata(gateway.data(path)).unwrap().ino());
    let stop = AtomicBool::new(false);
    let reached = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = (base.join("real"), base.join("link"));
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &a,
                    rustix::fs::CWD,
                    &b,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        });
        let mut session = session(&gateway, "editor");
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut reached = 0;
            for round in 0..ROUNDS {
                reached += walk(&mut session, if round % 2 == 0 { "real" } else { "link" }, &forbidden);
                if round % 64 == 63 {
                    // Nodes are forgotten and found anew.
                    let root = session.root(0);
                    let _ = session.list(root);
                }
            }
            reached
        }));
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
        walked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(reached > 0, "the race was never run: no walk reached the file inside");
    assert_eq!(gateway.snapshot("users/bob"), before);
}

#[test]
fn a_whole_grant_swapped_on_the_storage_side() {
    let gateway = Gateway::start();
    let base = gateway.data("users/alice");
    std::fs::write(gateway.data("users/alice/Documents/secret"), b"inside").unwrap();
    std::os::unix::fs::symlink("../bob", base.join("link")).unwrap();
    let before = gateway.snapshot("users/bob");
    let secret = std::fs::metadata(gateway.data("users/bob/secret")).unwrap().ino();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = (base.join("Documents"), base.join("link"));
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &a,
                    rustix::fs::CWD,
                    &b,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        });
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..60 {
                let mut session = session(&gateway, "editor");
                let Some(root) = session.grants[0].root else { continue };
                let root = Node { grant: 0, ino: root.ino };
                for _ in 0..20 {
                    let found = session.lookup(root, "secret");
                    if found.is_ok() {
                        let entry = found.entry();
                        assert_ne!(entry.node.ino, secret);
                        let opened = session.open(entry.node, READ);
                        if opened.is_ok() {
                            let handle = opened.handle();
                            if let Reply::Ok(_, data) = session.read(handle, 0, 100) {
                                assert_ne!(data, SECRET);
                            }
                        }
                    }
                    let _ = session.create(root, "new", BOTH);
                }
                session.bye();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
        walked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(gateway.snapshot("users/bob"), before);
}

#[test]
fn swapped_by_another_session() {
    let gateway = Gateway::start();
    let base = gateway.data("users/alice/Documents");
    std::fs::create_dir(base.join("real")).unwrap();
    std::fs::write(base.join("real/secret"), b"inside").unwrap();
    let before = gateway.snapshot("users/bob");
    let forbidden =
        ["users/bob/secret", "users/bob"].map(|path| std::fs::metadata(gateway.data(path)).unwrap().ino());
    let mut other = session(&gateway, "viewer");
    let root = other.root(0);
    other.call_with(Op::Symlink { parent: root, name: named("link"), by: CREDENTIALS }, b"../../bob").entry();
    let stop = AtomicBool::new(false);
    let (reached, swaps) = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0;
            while !stop.load(Ordering::Relaxed) {
                let op = Op::Rename {
                    parent: root,
                    name: named("real"),
                    new_parent: root,
                    new_name: named("link"),
                    mode: RenameMode::Exchange,
                    directory: Meant::Whichever,
                };
                swaps += usize::from(other.call(op).is_ok());
            }
            swaps
        });
        let mut session = session(&gateway, "editor");
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..ROUNDS)
                .map(|round| walk(&mut session, if round % 2 == 0 { "real" } else { "link" }, &forbidden))
                .sum::<usize>()
        }));
        stop.store(true, Ordering::Relaxed);
        let swaps = swapper.join().unwrap();
        (walked.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), swaps)
    });
    assert!(reached > 0 && swaps > 0, "the race was never run: {reached} files reached, {swaps} swaps");
    assert_eq!(gateway.snapshot("users/bob"), before);
}
