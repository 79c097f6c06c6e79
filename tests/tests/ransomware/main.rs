//! Ransomware of eight styles in one guest: it is fenced after a few files, and all of them come back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::fs;
use std::io::Write;
use std::path::Path;

use strongroom_tests::lab::{Lab, Options};

const ATTACK: &str = include_str!("attack.py");
const STYLES: [&str; 8] = [
    "overwrite",
    "overwrite-rename",
    "copy-delete",
    "replace",
    "truncate",
    "mapped",
    "intermittent",
    "delete",
];
/// Files of the user, for each style.
const FILES: usize = 120;

/// Letters, tables and pictures, between one and sixty KiB.
fn fill(dir: &Path) {
    let mut state = 7_u64;
    let mut even = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    };
    for number in 0..FILES {
        let size = 1024 + number * 509 % 60_000;
        let (name, contents) = match number % 4 {
            0 => ("txt", format!("Letter {number}. Dear reader, all is well here. ").into_bytes()),
            1 => ("csv", format!("{number};17.5;Smith;2026-11-0{}\n", number % 9 + 1).into_bytes()),
            2 => ("jpg", [b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec(), even(size)].concat()),
            _ => ("docx", [b"PK\x03\x04\x14\0\x06\0".to_vec(), even(size)].concat()),
        };
        let contents: Vec<u8> = contents.iter().copied().cycle().take(size).collect();
        let place = dir.join(format!("d{}", number % 6));
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(format!("f{number}.{name}")), contents).unwrap();
    }
}

fn names_and_sums(root: &Path) -> String {
    let look = "find . -type f -exec sha256sum {} + | sort -k 2";
    let output = std::process::Command::new("sh").args(["-c", look]).current_dir(root).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_style_is_cut_and_taken_back() {
    let (data, policy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for style in STYLES {
        fill(&data.path().join(style));
        let text = format!(
            "application = \"{style}\"\nlifetime = \"8h\"\n\n[[grant]]\npath = \"{style}\"\nmount = \"/work\"\nrights = \"read-write\"\n\
             undo = \"7d\"\n\n[detection]\nverdict = \"fence\"\n"
        );
        fs::write(policy.path().join(format!("{style}.toml")), text).unwrap();
    }
    let options = Options {
        policy: Some(policy.path().to_owned()),
        data: Some(data.path().to_owned()),
        ..Options::for_test("ransomware")
    };
    let lab = Lab::up(&options).unwrap();
    let status = lab.status().unwrap();
    assert!(status.guests.iter().all(|guest| guest.problem.is_none()), "{status:?}");
    for style in STYLES {
        let root = data.path().join(style);
        let before = names_and_sums(&root);
        let said = attack(&lab, style, &before);
        println!("{style}: {said}");
        let files: usize = said.split(' ').next().unwrap().parse().unwrap();
        assert!(said.contains("Permission denied"), "{style}: {said}");
        // The one that was under way is not counted by the attacker.
        assert!(files < 25, "{style}: {said}");
        let told =
            lab.base(["bash", "-c", &format!("contract undo {style} --since 30m --json")]).run().unwrap();
        assert!(told.contains("\"failed\": 0") && told.contains("\"expired\": 0"), "{style}: {told}");
        assert_eq!(names_and_sums(&root), before, "{style}");
        let audit = lab
            .storage([
                "sh",
                "-c",
                &format!("grep -h '\"ransomware\"' /var/lib/strongroom/audit.jsonl | grep {style}"),
            ])
            .run()
            .unwrap();
        assert!(audit.contains("the last: "), "{style}: {audit}");
    }
}

/// What the attack says at its end.
fn attack(lab: &Lab, style: &str, files: &str) -> String {
    let names: String =
        files.lines().filter_map(|line| line.split_once("  ")).map(|(_, name)| format!("{name}\n")).collect();
    let mut child = lab
        .app(style, ["/usr/bin/python3", "-c", ATTACK, style, "100"])
        .cwd("/mnt/work")
        .into_command()
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
