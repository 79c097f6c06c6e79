//! What is replaced all the time is there all the time: editors, mail programs and deployments write a new file and rename it over the
//! old one, and count on it that others find either the one or the other, whole. Between finding a file by its name and opening
//! it, it may have lost that name, to a program in the same guest or in another one.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use pair::{APPS, Guest};
use strongroom_tests::lab::Lab;

/// `write N` replaces a file and a symlink N times; `look WAY N` looks until it finds the last, and tells how often it has looked, or
/// what was wrong.
const GUEST: &str = r#"
import os, sys
LINES = 400
def write(n):
    with open(".new", "w") as file: file.write(f"{n}\n" * LINES)
    os.setxattr(".new", "user.n", str(n).encode())
    os.rename(".new", "file")
    os.symlink(f"target {n}", ".link")
    os.rename(".link", "link")
def contents():
    with open("file") as file: lines = file.read().split()
    if len(lines) != LINES or len(set(lines)) != 1: raise ValueError(f"{len(lines)} lines, of {set(lines)}")
    return int(lines[0])
def attributes():
    if os.stat("file").st_size < 2 * LINES: raise ValueError("too short")
    return int(os.getxattr("file", "user.n"))
WAYS = {"contents": contents, "attributes": attributes, "link": lambda: int(os.readlink("link").split()[1])}
for line in sys.stdin:
    what, *rest = line.split()
    try:
        if what == "write":
            for n in range(1, int(rest[0]) + 1): write(n)
            print("written", flush=True)
        else:
            way, last, found, looks = WAYS[rest[0]], int(rest[1]), 0, 0
            while found < last:
                now = way()
                if now < found: raise ValueError(f"{now} after {found}")
                found, looks = now, looks + 1
            print(looks, flush=True)
    except Exception as error:
        print(f"{what} {rest}: {error!r}", flush=True)
"#;

const WAYS: [&str; 3] = ["contents", "attributes", "link"];

/// All that look, in these guests, while the first one replaces.
fn replaced(lab: &Lab, looking: &[&str], times: u32) {
    let start = |app: &str| Guest::start(lab, app, &["/usr/bin/python3", "-c", GUEST]);
    let mut writer = start(APPS[0]);
    assert_eq!(writer.ask("write 1"), "written");
    let mut readers: Vec<Guest> = looking.iter().flat_map(|app| WAYS.map(|_| *app)).map(start).collect();
    for (reader, way) in readers.iter_mut().zip(WAYS.iter().cycle()) {
        reader.tell(&format!("look {way} {times}"));
    }
    assert_eq!(writer.ask(&format!("write {times}")), "written");
    for reader in &mut readers {
        let told = reader.hear();
        assert!(told.parse::<u64>().is_ok(), "{told}");
        reader.kill();
    }
    writer.kill();
}

#[test]
fn what_is_replaced_in_the_same_guest_is_always_there() {
    let lab = pair::lab("replaced");
    replaced(&lab, &APPS[..1], 1500);
    lab.down().unwrap();
}

#[test]
fn what_another_guest_replaces_is_always_there() {
    let lab = pair::lab("exchanged");
    replaced(&lab, &APPS, 500);
    lab.down().unwrap();
}
