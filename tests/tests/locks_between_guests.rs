//! Locks of two guests on the same file, most of which the clients answer themselves: each answer compared with a naive model, a
//! counter and a database that must not lose a step, and what becomes of locks when a program or the gateway is killed.
//!
//! `LOCKS_SEED` and `LOCKS_STEPS` choose another run; a failure names its seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

#[path = "support/pair.rs"]
mod pair;

use std::fs;

use pair::{APPS, Dice, Guest, lab};
use strongroom_tests::lab::{Lab, StopHow};

/// One line, one operation; one line, one answer. Open file description locks have one owner for each of the open files, the
/// others one for all.
const PROGRAM: &str = r#"
import errno, fcntl, os, sqlite3, struct, sys

OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
KINDS = {"shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
WHOLE = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
files = [os.open("file", os.O_RDWR | os.O_CREAT, 0o644) for _ in range(3)]

def record(kind, start, length):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)

def count(times):
    counter = os.open("counter", os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(times):
        fcntl.lockf(counter, fcntl.LOCK_EX, 8, 0)
        number = int.from_bytes(os.pread(counter, 8, 0), "little")
        os.pwrite(counter, (number + 1).to_bytes(8, "little"), 0)
        fcntl.lockf(counter, fcntl.LOCK_UN, 8, 0)

def transact(times):
    # By its whole path: SQLite asks for the working directory otherwise, which has no name for a moment now and then while another guest
    # changes names in it (ADR 10), and that is not what is tried here.
    db = sqlite3.connect("/mnt/work/db", timeout=120, isolation_level=None)
    db.execute("create table if not exists c (who integer primary key, n integer)")
    db.execute("insert or ignore into c values (0, 0)")
    for _ in range(times):
        db.execute("begin immediate")
        db.execute("update c set n = n + 1")
        db.execute("commit")

print("ready", flush=True)
for line in sys.stdin:
    what, *rest = line.split()
    try:
        if what in ("try", "wait"):
            file, kind, start, length = int(rest[0]), KINDS[rest[1]], int(rest[2]), int(rest[3])
            how = OFD_SETLK if what == "try" else OFD_SETLKW
            fcntl.fcntl(files[file], how, record(kind, start, length))
            answer = "done"
        elif what == "ask":
            file, kind, start, length = int(rest[0]), KINDS[rest[1]], int(rest[2]), int(rest[3])
            found = fcntl.fcntl(files[file], OFD_GETLK, record(kind, start, length))
            answer = "free" if struct.unpack("hhqqi4x", found)[0] == fcntl.F_UNLCK else "taken"
        elif what == "posix":
            kind, start, length = KINDS[rest[0]], int(rest[1]), int(rest[2])
            fcntl.fcntl(files[0], fcntl.F_SETLK, record(kind, start, length))
            answer = "done"
        elif what == "flock":
            fcntl.flock(files[int(rest[0])], WHOLE[rest[1]] | fcntl.LOCK_NB)
            answer = "done"
        elif what == "write":
            os.pwrite(files[0], b"x", 100)
            answer = "done"
        elif what == "reopen":
            # The kernel does not wait for what closing sets free.
            fcntl.fcntl(files[int(rest[0])], OFD_SETLK, record(fcntl.F_UNLCK, 0, 0))
            os.close(files[int(rest[0])])
            files[int(rest[0])] = os.open("file", os.O_RDWR)
            answer = "done"
        elif what == "count":
            count(int(rest[0]))
            answer = "done"
        elif what == "transact":
            transact(int(rest[0]))
            answer = "done"
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(answer, flush=True)
"#;

fn start(lab: &Lab, app: &str) -> Guest {
    let mut guest = Guest::start(lab, app, &["/usr/bin/python3", "-c", PROGRAM]);
    assert_eq!(guest.hear(), "ready");
    guest
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

const BYTES: usize = 12;
const OWNERS: usize = 6;

/// For each byte, how each owner holds it: 0 not, 1 shared, 2 exclusively.
#[derive(Default)]
struct Model([[u8; OWNERS]; BYTES]);

impl Model {
    fn free(&self, owner: usize, kind: u8, range: std::ops::Range<usize>) -> bool {
        self.0[range].iter().all(|byte| {
            let others = byte.iter().enumerate().filter(|(other, _)| *other != owner);
            others.into_iter().all(|(_, held)| *held == 0 || (*held == 1 && kind == 1))
        })
    }

    fn set(&mut self, owner: usize, kind: u8, range: std::ops::Range<usize>) -> bool {
        let free = kind == 0 || self.free(owner, kind, range.clone());
        if free {
            self.0[range].iter_mut().for_each(|byte| byte[owner] = kind);
        }
        free
    }
}

#[test]
fn every_answer_is_that_of_one_table() {
    let (seed, steps) = (number("LOCKS_SEED", 1), number("LOCKS_STEPS", 1500));
    let lab = lab("locks");
    let mut guests = APPS.map(|app| start(&lab, app));
    let (mut dice, mut model) = (Dice::new(seed), Model::default());
    let mut who = 0;
    for step in 0..steps {
        // Often enough in one guest that its client has the file alone.
        if dice.roll(8) == 0 {
            who = dice.roll(2) as usize;
        }
        let file = dice.roll(3) as usize;
        let owner = who * 3 + file;
        let (start, kind) = (dice.roll(BYTES as u64) as usize, dice.roll(3) as u8);
        let length = 1 + dice.roll((BYTES - start) as u64) as usize;
        let (range, named) = (start..start + length, ["none", "shared", "exclusive"][usize::from(kind)]);
        let (line, expected) = match dice.roll(20) {
            0 => ("write".to_owned(), "done"),
            1 => {
                model.set(owner, 0, 0..BYTES);
                (format!("reopen {file}"), "done")
            }
            2 | 3 if kind > 0 => {
                let free = model.free(owner, kind, range);
                (format!("ask {file} {named} {start} {length}"), if free { "free" } else { "taken" })
            }
            _ => {
                let set = model.set(owner, kind, range);
                (format!("try {file} {named} {start} {length}"), if set { "done" } else { "EAGAIN" })
            }
        };
        let answer = guests[who].ask(&line);
        assert_eq!(answer, expected, "seed {seed}, step {step}, guest {who}: {line}");
    }
}

#[test]
fn no_step_of_a_counter_or_of_a_database_is_lost() {
    let lab = lab("counting");
    let each = number("LOCKS_COUNTED", 1000);
    let mut guests: Vec<Guest> = APPS.iter().cycle().take(4).map(|app| start(&lab, app)).collect();
    guests.iter_mut().for_each(|guest| guest.tell(&format!("count {each}")));
    assert!(guests.iter_mut().all(|guest| guest.hear() == "done"));
    let counter = fs::read(lab.data().join("shared/counter")).unwrap();
    assert_eq!(u64::from_le_bytes(counter.try_into().unwrap()), 4 * each);

    let times = each / 10;
    assert_eq!(guests[0].ask("transact 1"), "done");
    guests.iter_mut().for_each(|guest| guest.tell(&format!("transact {times}")));
    assert!(guests.iter_mut().all(|guest| guest.hear() == "done"));
    let look = "import sqlite3; db = sqlite3.connect('/mnt/work/db'); \
                print(db.execute('select n from c').fetchone()[0], db.execute('pragma integrity_check').fetchone()[0])";
    let seen = lab.app("two", ["/usr/bin/python3", "-c", look]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), format!("{} ok", 4 * times + 1));
}

#[test]
fn locks_outlive_the_gateway_and_not_their_holder() {
    let lab = lab("holders");
    let (mut one, mut two) = (start(&lab, "one"), start(&lab, "two"));
    for round in 0..3 {
        assert_eq!(one.ask("write"), "done");
        // The first is told by the gateway that it may answer for the others itself.
        assert_eq!(one.ask("try 0 shared 0 1"), "done");
        assert_eq!(one.ask("try 0 exclusive 4 2"), "done");
        assert_eq!(one.ask("try 1 shared 0 1"), "done");
        assert_eq!(one.ask("try 0 none 0 1"), "done");
        if round > 0 {
            lab.stop_gateway(StopHow::Kill).unwrap();
            lab.start_gateway().unwrap();
        }
        if round == 2 {
            assert_eq!(one.ask("try 2 exclusive 8 1"), "done");
        }
        assert_eq!(two.ask("try 0 exclusive 5 1"), "EAGAIN", "round {round}");
        assert_eq!(two.ask("try 0 exclusive 0 1"), "EAGAIN", "round {round}");
        assert_eq!(two.ask("try 0 shared 0 1"), "done", "round {round}");
        assert_eq!(two.ask("try 0 none 0 0"), "done");
        two.tell("wait 0 exclusive 0 10");
        for file in 0..3 {
            assert_eq!(one.ask(&format!("try {file} none 0 0")), "done");
        }
        assert_eq!(two.hear(), "done", "round {round}");
        assert_eq!(one.ask("try 1 shared 2 2"), "EAGAIN", "round {round}");
        assert_eq!(two.ask("try 0 none 0 0"), "done");
    }
    // Of the other kinds as well, and with the process all are gone.
    assert_eq!(one.ask("write"), "done");
    assert_eq!(one.ask("posix exclusive 20 5"), "done");
    assert_eq!(one.ask("posix exclusive 30 5"), "done");
    assert_eq!(two.ask("try 0 shared 22 1"), "EAGAIN");
    assert_eq!(two.ask("try 0 shared 30 1"), "EAGAIN");
    assert_eq!(one.ask("posix none 0 0"), "done");
    assert_eq!(one.ask("write"), "done");
    assert_eq!(one.ask("flock 1 shared"), "done");
    assert_eq!(one.ask("flock 1 exclusive"), "done");
    assert_eq!(two.ask("flock 1 shared"), "EAGAIN");
    two.tell("wait 2 exclusive 0 0");
    one.kill();
    assert_eq!(two.hear(), "done");
}

/// What the guest's client answers for itself from now on: bytes 4 and 5 are locked, the file is not looked at by anybody else.
fn keep_locks(one: &mut Guest) {
    assert_eq!(one.ask("write"), "done");
    for line in ["try 0 exclusive 0 1", "try 0 exclusive 4 2", "try 0 none 0 1"] {
        assert_eq!(one.ask(line), "done", "{line}");
    }
}

fn with_gateway_limits(purpose: &str, limits: &str) -> Lab {
    let lab = lab(purpose);
    lab.stop_gateway(StopHow::Clean).unwrap();
    let config = lab.etc("storage").join("gateway.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(!text.contains("[limits]"), "{text}");
    fs::write(&config, format!("{text}\n[limits]\n{limits}\n")).unwrap();
    lab.start_gateway().unwrap();
    lab
}

/// Kills the mount's client as nothing else could, and returns when it is gone.
fn kill_client(lab: &Lab, app: &str) {
    lab.app(app, ["pkill", "-KILL", "-x", "mount-strongroo"]).cwd("/").run().unwrap();
    while lab.app(app, ["stat", "/mnt/work"]).cwd("/").output().unwrap().status.success() {}
}

#[test]
fn what_a_killed_client_kept_is_others_when_its_session_is_over() {
    let lab = lab("keptkilled");
    let (mut one, mut two) = (start(&lab, "one"), start(&lab, "two"));
    keep_locks(&mut one);
    kill_client(&lab, "one");
    // It may come back, and what it had not told may be a lock.
    assert_eq!(two.ask("try 0 exclusive 4 1"), "EAGAIN");
    assert_eq!(two.ask("try 0 shared 0 1"), "EAGAIN");
    assert_eq!(two.ask("ask 0 shared 4 1"), "taken");
    two.tell("wait 0 exclusive 4 1");
    lab.base(["contract", "revoke", "one"]).run().unwrap();
    assert_eq!(two.hear(), "done");
    assert_eq!(two.ask("try 0 exclusive 0 0"), "done");
    one.kill();
}

#[test]
fn a_session_without_its_client_ends_by_itself_and_what_was_kept_with_it() {
    let lab = with_gateway_limits("keptalone", "session-grace = \"1s\"");
    let (mut one, mut two) = (start(&lab, "one"), start(&lab, "two"));
    keep_locks(&mut one);
    kill_client(&lab, "one");
    two.tell("wait 0 exclusive 4 1");
    assert_eq!(two.hear(), "done");
    one.kill();
}

#[test]
fn a_guest_without_network_keeps_its_locks_and_tells_of_them_when_it_is_back() {
    let lab = lab("keptcut");
    let (mut one, mut two) = (start(&lab, "one"), start(&lab, "two"));
    keep_locks(&mut one);
    let network = |state| lab.app("one", ["ip", "link", "set", "eth0", state]).cwd("/").run().unwrap();
    network("down");
    // Of the byte that is free nobody can tell.
    assert_eq!(two.ask("try 0 exclusive 0 1"), "EAGAIN");
    assert_eq!(two.ask("try 0 exclusive 4 1"), "EAGAIN");
    two.tell("wait 0 exclusive 0 1");
    network("up");
    assert_eq!(two.hear(), "done");
    assert_eq!(two.ask("try 0 shared 4 1"), "EAGAIN");
    // The holder has never lost it.
    two.tell("wait 0 exclusive 4 2");
    assert_eq!(one.ask("try 1 shared 5 1"), "EAGAIN");
    assert_eq!(one.ask("try 0 none 4 2"), "done");
    assert_eq!(two.hear(), "done");
}
