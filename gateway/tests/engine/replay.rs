//! Exactly once: what an operation noted before a crash, and what is made of it afterwards.

use strongroom_contracts::{Grant, Rights};
use strongroom_gateway::engine::{Before, ClaimChange, Done, SessionBounds};
use strongroom_protocol::attr::{Handle, Node, OpenFlags};
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::reply::Outcome;

use crate::support::*;

struct Crash {
    world: World,
    guest: Guest,
    rights: Rights,
}

fn grants(rights: Rights) -> Vec<Grant> {
    vec![grant("a", "/a", rights)]
}

impl Crash {
    fn new(rights: Rights) -> Crash {
        let world = World::new();
        world.file("a/f", b"0123456789");
        world.file("a/g", b"g");
        world.dirs(&["a/d"]);
        let guest = world.guest(grants(rights));
        guest.root(0);
        Crash { world, guest, rights }
    }

    fn before(&self, op: &Op, data: &[u8]) -> Before {
        let admission = self.guest.turnstile.enter().unwrap();
        let before = self.guest.engine.before(&self.guest.session, &admission, op, data);
        assert_eq!(Before::from_bytes(before.to_bytes()), before);
        before
    }

    /// The process dies and comes back; the client resolves its nodes again.
    fn restart(&mut self) {
        // The birth of a file made just now must lie before the start of the new process, by the kernel's coarse clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        self.world.restart();
        self.guest = self.world.bounded(grants(self.rights), SessionBounds::default(), &[]);
        self.guest.root(0);
    }

    fn replayed(&self, before: Before, op: &Op, data: &[u8]) -> Option<Done> {
        let admission = self.guest.turnstile.enter().unwrap();
        self.guest.engine.replayed(&self.guest.session, &admission, before, op, data)
    }

    /// Runs `make`'s operation until just before (`ran`: just after) the effect, restarts, and asks.
    fn outcome(&mut self, ran: bool, data: &[u8], make: impl Fn(&Guest) -> Op) -> Option<Outcome> {
        let op = make(&self.guest);
        let before = self.before(&op, data);
        if ran {
            let outcome = self.guest.call(&op, data).0;
            assert!(!matches!(outcome, Outcome::Failed(_)), "{op:?}: {outcome:?}");
        }
        self.restart();
        let op = make(&self.guest);
        self.replayed(before, &op, data).map(|done| done.outcome)
    }
}

fn root(guest: &Guest) -> Node {
    guest.root(0)
}

/// Makes an operation of the nodes that a guest knows.
type Make = fn(&Guest) -> Op;

fn on_names() -> Vec<(&'static str, Make)> {
    vec![
        ("mkdir", |g| Op::Mkdir { parent: root(g), name: name("new"), mode: 0o755, by: BY }),
        ("mknod", |g| Op::Mknod { parent: root(g), name: name("new"), mode: 0o644, rdev: 0, by: BY }),
        ("symlink", |g| Op::Symlink { parent: root(g), name: name("new"), by: BY }),
        ("link", |g| Op::Link { node: g.node(0, "f"), parent: root(g), name: name("new") }),
        ("create", |g| Op::Create { parent: root(g), name: name("new"), mode: 0o644, flags: BOTH, by: BY }),
        ("unlink", |g| Op::Unlink { parent: root(g), name: name("g") }),
        ("rmdir", |g| Op::Rmdir { parent: root(g), name: name("d"), directory: Meant::Whichever }),
        ("rename", |g| Op::Rename {
            parent: root(g),
            name: name("g"),
            new_parent: g.node(0, "d"),
            new_name: name("moved"),
            mode: RenameMode::NoReplace,
            directory: Meant::Whichever,
        }),
        ("exchange", |g| Op::Rename {
            parent: root(g),
            name: name("g"),
            new_parent: root(g),
            new_name: name("d"),
            mode: RenameMode::Exchange,
            directory: Meant::Whichever,
        }),
    ]
}

#[test]
fn changes_of_names_run_once() {
    for (what, make) in on_names() {
        // "rename" and "link" name nodes that exist before and after alike.
        let mut crash = Crash::new(Rights::READ_WRITE);
        assert_eq!(crash.outcome(false, b"target", make), None, "{what} had not run");
        let mut crash = Crash::new(Rights::READ_WRITE);
        // A second name keeps the object reachable for the question.
        let outcome = crash.outcome(true, b"target", make).unwrap_or_else(|| panic!("{what} had run"));
        match what {
            "create" => {
                let (handle, entry) = created(outcome);
                assert_eq!(written(crash.guest.write(handle, 0, b"x")), (1, 1));
                assert_eq!(crash.guest.node(0, "new"), entry.node);
            }
            "unlink" | "rmdir" | "rename" | "exchange" => assert_eq!(outcome, Outcome::Done, "{what}"),
            _ => assert_eq!(entry(outcome).node, crash.guest.node(0, "new"), "{what}"),
        }
    }
}

#[test]
fn a_creation_that_ran_gives_back_the_creators_handle_and_nobody_elses() {
    let make =
        |g: &Guest| Op::Create { parent: root(g), name: name("new"), mode: 0o644, flags: WRITE, by: BY };
    let mut crash = Crash::new(Rights::APPEND_ONLY);
    let before = crash.before(&make(&crash.guest), b"");
    created(crash.guest.ask(&make(&crash.guest)));
    crash.restart();
    let done = crash.replayed(before, &make(&crash.guest), b"").unwrap();
    let (handle, entry) = created(done.outcome);
    let Some(ClaimChange::Made(claim)) = done.claim else { panic!("no claim") };
    assert_eq!(claim.ino, entry.attr.ino);
    written(crash.guest.write(handle, 0, b"0123"));
    assert_eq!(written(crash.guest.write(handle, 0, b"abc")), (3, 4));

    // Somebody else makes it after the restart: it is not taken for the session's own.
    let mut crash = Crash::new(Rights::APPEND_ONLY);
    let before = crash.before(&make(&crash.guest), b"");
    crash.restart();
    std::thread::sleep(std::time::Duration::from_millis(20));
    crash.world.file("a/new", b"theirs");
    assert!(crash.replayed(before, &make(&crash.guest), b"").is_none());
    // It was there all along: nothing had happened either.
    let before = crash.before(&make(&crash.guest), b"");
    assert!(crash.replayed(before, &make(&crash.guest), b"").is_none());
}

#[test]
fn appended_bytes_are_looked_for() {
    let append = OpenFlags { append: true, ..READ };
    let write = |handle: Handle| Op::Write { handle, offset: 0 };
    let open = |crash: &Crash| opened(crash.guest.open(crash.guest.node(0, "f"), append));
    for theirs in [&b""[..], b"somebody else's"] {
        for ran in [false, true] {
            let mut crash = Crash::new(Rights::APPEND_ONLY);
            let op = write(open(&crash));
            let before = crash.before(&op, b"mine");
            std::fs::write(crash.world.path("a/f"), [b"0123456789", theirs].concat()).unwrap();
            if ran {
                written(crash.guest.call(&op, b"mine").0);
            }
            crash.restart();
            let done = crash.replayed(before, &write(open(&crash)), b"mine");
            match done {
                Some(done) => assert_eq!((written(done.outcome).0, ran), (4, true)),
                None => assert!(!ran),
            }
        }
    }
    // At an offset, under append-only: run again, the file's own end would be in the way.
    let mut crash = Crash::new(Rights::APPEND_ONLY);
    let at_end = |crash: &Crash| Op::Write {
        handle: opened(crash.guest.open(crash.guest.node(0, "f"), WRITE)),
        offset: 10,
    };
    let op = at_end(&crash);
    let before = crash.before(&op, b"xyz");
    written(crash.guest.call(&op, b"xyz").0);
    crash.restart();
    let op = at_end(&crash);
    assert_eq!(written(crash.replayed(before, &op, b"xyz").unwrap().outcome), (3, 13));
    assert!(crash.replayed(before, &op, b"other").is_none());
    // With the right to change bytes there is nothing to decide.
    let crash = Crash::new(Rights::READ_WRITE);
    let op = at_end(&crash);
    assert_eq!(crash.before(&op, b"xyz"), Before::default());
}

#[test]
fn bytes_are_moved_once_and_attributes_set_once() {
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        for ran in [false, true] {
            let mut crash = Crash::new(Rights::READ_WRITE);
            crash.world.file("a/f", &[1; 3 * 4096]);
            let outcome = crash.outcome(ran, b"", |g| Op::Fallocate {
                handle: opened(g.open(g.node(0, "f"), BOTH)),
                mode: mode as u32,
                offset: 4096,
                length: 4096,
            });
            assert_eq!(outcome, ran.then_some(Outcome::Done));
        }
    }
    for ran in [false, true] {
        let mut crash = Crash::new(Rights::READ_WRITE);
        let set = |g: &Guest| Op::Setxattr {
            node: g.node(0, "f"),
            name_length: 6,
            flags: libc::XATTR_CREATE as u32,
        };
        assert_eq!(crash.outcome(ran, b"user.a1", set), ran.then_some(Outcome::Done));
        let remove = |g: &Guest| Op::Removexattr { node: g.node(0, "f") };
        if ran {
            assert_eq!(crash.outcome(true, b"user.a", remove), Some(Outcome::Done));
        } else {
            assert_eq!(crash.outcome(false, b"user.a", remove), None);
        }
    }
}

#[test]
fn releasing_a_handle_of_the_former_process_is_done() {
    let crash = Crash::new(Rights::READ_WRITE);
    let op = Op::Release { handle: Handle(77), lock_owner: None };
    let done = crash.replayed(Before::default(), &op, b"").unwrap();
    assert_eq!(done.outcome, Outcome::Done);
    assert!(crash.replayed(Before::default(), &Op::Ping, b"").is_none());
}
