//! What a kernel has of a file that is mapped, or about to be sent, it uses without asking anybody. It must be as true as what is read:
//! nothing in these tests asks for attributes or reads with read(2), which would put right what was wrong.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pair::{APPS, Dice, Guest};
use strongroom_tests::lab::{Lab, StopHow};

/// One line, one operation; one line, one answer. `spin` has processes look at the mapping all the time, so that pages are read while
/// they are changed.
const GUEST: &str = r#"
import mmap, os, struct, sys, time
PAGES = 8
file = os.open("file", os.O_RDWR)
mapping = mmap.mmap(file, PAGES * mmap.PAGESIZE)
inlet = os.pipe()
children = []
for line in sys.stdin:
    what, *words = line.split()
    numbers = [int(word) for word in words]
    answer = "done"
    if what == "put":
        os.pwrite(file, struct.pack("<Q", numbers[1]), numbers[0])
    elif what == "see":
        answer = struct.unpack_from("<Q", mapping, numbers[0])[0]
    elif what == "send":
        sent = os.sendfile(inlet[1], file, numbers[0], 8)
        answer = struct.unpack("<Q", os.read(inlet[0], sent))[0]
    elif what == "chmod":
        os.fchmod(file, 0o600 + numbers[0] % 2 * 0o44)
    elif what == "spin":
        for _ in range(numbers[0]):
            children.append(os.fork())
            if children[-1] == 0:
                while True:
                    for page in range(PAGES):
                        mapping[page * mmap.PAGESIZE]
                    time.sleep(0.00002)
    print(answer, flush=True)
for child in children:
    os.kill(child, 9)
"#;
const PAGES: u64 = 8;
const PAGE: u64 = 4096;

fn begin(purpose: &str) -> (Lab, [Guest; 2]) {
    pair::with_file(purpose, &[0; (PAGES * PAGE) as usize], GUEST)
}

/// Changes a place by one guest, and looks at it by the other in both ways.
fn put_and_look(guests: &mut [Guest; 2], by: usize, place: u64, value: u64) {
    assert_eq!(guests[by].ask(&format!("put {place} {value}")), "done");
    for how in ["see", "send"] {
        let seen = guests[1 - by].ask(&format!("{how} {place}"));
        assert_eq!(seen, value.to_string(), "{how} by {} of what {} put at {place}", APPS[1 - by], APPS[by]);
    }
}

#[test]
fn what_is_mapped_is_true_though_it_is_read_while_it_changes() {
    let (lab, mut guests) = begin("mappings");
    let mut dice = Dice::new(1);
    for spinning in [0, 1, 3] {
        assert_eq!(guests[1].ask(&format!("spin {spinning}")), "done");
        for value in 1..=300 {
            put_and_look(&mut guests, 0, dice.roll(PAGES) * PAGE, value);
        }
    }
    drop(guests);
    lab.down().unwrap();
}

#[test]
fn what_is_mapped_is_true_whoever_of_two_changes_it() {
    let (lab, mut guests) = begin("mappings-both");
    let mut dice = Dice::new(2);
    for guest in &mut guests {
        assert_eq!(guest.ask("spin 1"), "done");
    }
    for value in 1..=500 {
        put_and_look(&mut guests, dice.roll(2) as usize, dice.roll(PAGES) * PAGE, value);
    }
    drop(guests);
    lab.down().unwrap();
}

/// A change of the mode ends the lease and leaves the contents as they are; the next change of those is nobody's to tell.
#[test]
fn what_is_mapped_is_true_after_its_lease_has_ended() {
    let (lab, mut guests) = begin("mappings-ended");
    for value in 1..=50 {
        for how in ["see", "send"] {
            assert_eq!(guests[1].ask(&format!("{how} 0")), (value - 1).to_string());
        }
        assert_eq!(guests[0].ask(&format!("chmod {value}")), "done");
        put_and_look(&mut guests, 0, 0, value);
    }
    drop(guests);
    lab.down().unwrap();
}

/// With the connections all leases end, and what is changed from then on is nobody's to tell either.
#[test]
fn what_is_mapped_is_true_after_the_connections_were_cut() {
    let (lab, mut guests) = begin("mappings-cut");
    let connections = || lab.app(APPS[1], ["ss", "-Htn"]).run().unwrap();
    for value in 1..=30 {
        for guest in &mut guests {
            assert_eq!(guest.ask("see 0"), (value - 1).to_string());
        }
        let before = connections();
        pair::cut_off(&lab, APPS[1]);
        put_and_look(&mut guests, 0, 0, value);
        assert_ne!(before, connections(), "connections are not cut by `ss -K` here");
    }
    drop(guests);
    lab.down().unwrap();
}

#[test]
fn what_is_mapped_is_true_after_the_gateway_was_killed() {
    let (lab, mut guests) = begin("mappings-killed");
    for value in 1..=10 {
        for guest in &mut guests {
            assert_eq!(guest.ask("see 0"), (value - 1).to_string());
        }
        pair::replace_gateway(&lab);
        put_and_look(&mut guests, (value % 2) as usize, 0, value);
    }
    drop(guests);
    lab.down().unwrap();
}

/// Who is slow to notice that the connections are gone is waited for as for an answer to a recall.
#[test]
fn what_is_mapped_is_true_though_its_client_notices_late() {
    let (lab, mut guests) = begin("mappings-late");
    lab.stop_gateway(StopHow::Clean).unwrap();
    let config = lab.etc("storage").join("gateway.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[leases]\nrecall = \"60s\"\n")).unwrap();
    lab.start_gateway().unwrap();
    let client =
        |signal| lab.app(APPS[1], ["pkill", signal, "-x", "mount-strongroo"]).cwd("/").run().unwrap();
    for value in 1..=6 {
        for guest in &mut guests {
            assert_eq!(guest.ask("see 0"), (value - 1).to_string());
        }
        client("-STOP");
        if value % 2 == 0 {
            pair::replace_gateway(&lab);
        } else {
            pair::cut_off(&lab, APPS[1]);
        }
        let [one, two] = &mut guests;
        let (done, put) = mpsc::channel();
        let early = thread::scope(|scope| {
            scope.spawn(move || done.send(one.ask(&format!("put 0 {value}"))).unwrap());
            // For a gateway that does not wait for it this is long.
            let early = put.recv_timeout(Duration::from_millis(300)).ok().map(|_| two.ask("see 0"));
            client("-CONT");
            early
        });
        assert!(early.is_none_or(|seen| seen == value.to_string()), "changed before {} could know", APPS[1]);
        for how in ["see", "send"] {
            assert_eq!(guests[1].ask(&format!("{how} 0")), value.to_string());
        }
    }
    drop(guests);
    lab.down().unwrap();
}
