//! Writes that the application was told are done before the gateway has them: nothing of them is lost when the gateway is killed, a
//! full quota is told by the write, and the end of a contract by whatever comes next.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use strongroom_tests::lab::{Lab, Options, StopHow};

/// Writes a block at a time without closing: one for each line that it reads, until an error or the end.
const WRITER: &str = r#"
import os, sys
file = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
number = 0
print("ready", flush=True)
for line in sys.stdin:
    try:
        for _ in range(int(line)):
            block = number.to_bytes(8, "little") * 8192
            while block:
                block = block[os.write(file, block):]
            number += 1
    except OSError as error:
        print("write:", error.strerror, number, flush=True)
        break
    print(number, flush=True)
for name, last in (("fsync", os.fsync), ("close", os.close)):
    try:
        last(file)
        print(name, "done", flush=True)
    except OSError as error:
        print(name, error.strerror, flush=True)
"#;
const BLOCK: u64 = 64 * 1024;

fn lab(name: &str, more: &str) -> Lab {
    let policy = tempfile::tempdir().unwrap();
    for app in ["one", "two"] {
        let text = format!(
            "application = \"{app}\"\nlifetime = \"8h\"\n\n[[grant]]\npath = \"shared\"\nmount = \"/work\"\nrights = \"read-write\"\n{more}"
        );
        fs::write(policy.path().join(format!("{app}.toml")), text).unwrap();
    }
    let lab =
        Lab::up(&Options { policy: Some(policy.path().to_owned()), ..Options::for_test(name) }).unwrap();
    let status = lab.status().unwrap();
    assert!(status.guests.iter().all(|guest| guest.problem.is_none()), "{status:?}");
    lab
}

struct Writer {
    process: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(lab: &Lab) -> Writer {
        let command = lab.app("one", ["/usr/bin/python3", "-c", WRITER]).cwd("/mnt/work");
        let mut process =
            command.into_command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let mut writer = Writer { process, said };
        assert_eq!(writer.hear(), "ready");
        writer
    }

    fn tell(&mut self, blocks: u64) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{blocks}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// All that it says after the last block.
    fn end(mut self) -> String {
        drop(self.process.stdin.take());
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        self.process.wait().unwrap();
        rest
    }
}

/// Whether all blocks are there, each with its number.
fn whole(bytes: &[u8], blocks: u64) -> bool {
    bytes.len() as u64 == blocks * BLOCK
        && bytes
            .chunks_exact(8)
            .enumerate()
            .all(|(at, number)| u64::from_le_bytes(number.try_into().unwrap()) == at as u64 * 8 / BLOCK)
}

#[test]
fn what_was_written_is_seen_at_once_by_the_other_and_outlives_the_gateway() {
    let lab = lab("behind", "");
    let path = lab.data().join("shared/file");
    let mut writer = Writer::start(&lab);
    let mut blocks = 0;
    for round in 0..6 {
        writer.tell(150);
        blocks += 150;
        if round % 2 == 1 {
            // In the midst of it.
            lab.stop_gateway(StopHow::Kill).unwrap();
            lab.start_gateway().unwrap();
        }
        assert_eq!(writer.hear(), blocks.to_string());
        // The other guest sees what this one was told is written, though the file is open and not synced.
        let seen = lab.app("two", ["cat", "/mnt/work/file"]).output().unwrap();
        assert!(
            seen.status.success() && whole(&seen.stdout, blocks),
            "round {round}: {} bytes",
            seen.stdout.len()
        );
        assert!(whole(&fs::read(&path).unwrap(), blocks), "round {round}");
    }
    assert_eq!(writer.end(), "fsync done\nclose done\n");
}

#[test]
fn a_full_quota_is_told_by_the_write_and_the_end_of_a_contract_by_what_comes_next() {
    let lab = lab("behindfull", "quota = \"100 MiB\"\n");
    let mut writer = Writer::start(&lab);
    writer.tell(10_000);
    let said = writer.hear();
    assert!(said.starts_with("write: Disk quota exceeded"), "{said}");
    let written: u64 = said.rsplit(' ').next().unwrap().parse().unwrap();
    // All that it was told is there, and it was not told too early.
    let bytes = fs::read(lab.data().join("shared/file")).unwrap();
    let blocks = bytes.len() as u64 / BLOCK;
    assert!(blocks >= written && whole(&bytes[..(written * BLOCK) as usize], written), "{written}, {blocks}");
    assert_eq!(writer.end(), "fsync done\nclose done\n");

    lab.app("two", ["rm", "/mnt/work/file"]).run().unwrap();
    let mut writer = Writer::start(&lab);
    writer.tell(50);
    assert_eq!(writer.hear(), "50");
    writer.tell(1_000_000);
    lab.base(["contract", "revoke", "one"]).run().unwrap();
    let said = writer.hear();
    assert!(said.starts_with("write: Permission denied"), "{said}");
    assert_eq!(writer.end(), "fsync Permission denied\nclose Permission denied\n");
}
