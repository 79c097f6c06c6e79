//! One file that two guests read and write at random, each operation in one of three ways (buffered, O_DIRECT, mapped), compared
//! with a copy in memory: fsx over two guests.
//!
//! `ONE_FILE_SEED` and `ONE_FILE_STEPS` choose another run; a failure names its seed.
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
use ring::digest::{SHA256, digest};

/// One line, one operation; one line, one answer.
const PROGRAM: &str = r#"
import hashlib, mmap, os, struct, sys

def opened(flags):
    return os.open("file", os.O_RDWR | os.O_CREAT | flags, 0o644)

files = {"buffered": opened(0), "direct": opened(os.O_DIRECT), "mapped": opened(0)}
kept = None

def pattern(seed, length):
    return (struct.pack("<Q", seed) * (length // 8 + 1))[:length]

def seen(data):
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"

def view(offset, length):
    global kept
    size = os.fstat(files["mapped"]).st_size
    if kept is None or len(kept) != size:
        # The mapping of before stays for as long as the file has its size: what others write must show in it.
        kept = mmap.mmap(files["mapped"], size) if size else None
    return kept

def write(how, offset, data):
    if how == "mapped":
        view(offset, len(data))[offset:offset + len(data)] = data
        kept.flush()
    else:
        buffer = mmap.mmap(-1, len(data))
        buffer[:] = data
        written = os.pwritev(files[how], [buffer], offset)
        assert written == len(data), written

def read(how, offset, length):
    if how == "mapped":
        mapping = view(offset, length)
        return b"" if mapping is None else bytes(mapping[offset:offset + length])
    buffer = mmap.mmap(-1, length)
    count = os.preadv(files[how], [buffer], offset)
    return buffer[:count]

for line in sys.stdin:
    what, how, offset, length, seed = line.split()
    offset, length, seed = int(offset), int(length), int(seed)
    try:
        if what == "write":
            write(how, offset, pattern(seed, length))
            answer = "done"
        elif what == "read":
            answer = seen(read(how, offset, length))
        elif what == "size":
            file = files[how]
            answer = f"{os.fstat(file).st_size} {os.lseek(file, 0, os.SEEK_END)}"
        elif what == "cut":
            os.ftruncate(files[how], length)
            answer = "done"
        elif what == "sync":
            os.fsync(files[how])
            answer = "done"
        elif what == "again":
            os.close(files[how])
            files[how] = opened(os.O_DIRECT if how == "direct" else 0)
            if how == "mapped":
                kept = None
            answer = "done"
    except OSError as error:
        answer = f"{what}: {error.strerror}"
    print(answer, flush=True)
"#;
const WAYS: [&str; 3] = ["buffered", "direct", "mapped"];
const LONGEST: u64 = 1 << 20;
const MOST: u64 = 128 << 10;
/// What O_DIRECT wants offsets and lengths to be multiples of.
const ALIGNED: u64 = 4096;

fn seen(bytes: &[u8]) -> String {
    let sum: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {sum}", bytes.len())
}

fn run(purpose: &str, seed: u64, steps: u64) {
    println!("one file: seed {seed}, {steps} steps");
    let lab = lab(purpose);
    let mut guests = APPS.map(|app| Guest::start(&lab, app, &["/usr/bin/python3", "-c", PROGRAM]));
    let mut dice = Dice::new(seed);
    let mut model: Vec<u8> = vec![];
    let mut history: Vec<String> = vec![];
    for step in 1..=steps {
        let guest = dice.roll(2) as usize;
        let way = dice.roll(3) as usize;
        let size = model.len() as u64;
        let unit = if WAYS[way] == "direct" { ALIGNED } else { 1 };
        let mut offset = dice.roll(LONGEST - MOST) / unit * unit;
        let mut length = (dice.roll(MOST) / unit + 1) * unit;
        let mut what = match dice.roll(20) {
            0..8 => "read",
            8..15 => "write",
            15 | 16 => "size",
            17 => "cut",
            18 => "sync",
            _ => "again",
        };
        // A mapping does not make a file longer.
        if WAYS[way] == "mapped" && matches!(what, "read" | "write") {
            if size == 0 {
                what = "size";
            } else {
                offset = dice.roll(size);
                length = length.min(size - offset);
            }
        }
        if what == "cut" {
            length = dice.roll(LONGEST);
        }
        let line = format!("{what} {} {offset} {length} {step}", WAYS[way]);
        history.push(format!("{} {line}", APPS[guest]));
        let answer = guests[guest].ask(&line);
        let (from, to) = (offset as usize, (offset + length) as usize);
        let wanted = match what {
            "write" => {
                if model.len() < to {
                    model.resize(to, 0);
                }
                let pattern = step.to_le_bytes();
                for (at, byte) in model[from..to].iter_mut().enumerate() {
                    *byte = pattern[at % 8];
                }
                "done".to_owned()
            }
            "read" => seen(&model[from.min(model.len())..to.min(model.len())]),
            "size" => format!("{0} {0}", model.len()),
            "cut" => {
                model.resize(length as usize, 0);
                "done".to_owned()
            }
            _ => "done".to_owned(),
        };
        let last = history.len().saturating_sub(15);
        assert_eq!(
            answer,
            wanted,
            "seed {seed}, step {step}, the last of which:\n{}",
            history[last..].join("\n")
        );
    }
    let synced =
        guests.iter_mut().map(|guest| guest.ask("sync buffered 0 0 0")).all(|answer| answer == "done");
    assert!(synced);
    assert!(
        fs::read(lab.data().join("shared/file")).unwrap() == model,
        "seed {seed}: what is in the data root"
    );
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn two_guests_read_what_either_wrote_in_whatever_way() {
    run("onefile", number("ONE_FILE_SEED", 1), number("ONE_FILE_STEPS", 3000));
}

#[test]
#[ignore = "long: make soak"]
fn two_guests_read_what_either_wrote_in_whatever_way_for_long() {
    for seed in 1..=10 {
        run("onefilelong", number("ONE_FILE_SEED", 0) + seed, number("ONE_FILE_STEPS", 100_000));
    }
}
