//! Ransomware of eight styles in one guest: it is fenced after a few files, and all of them come back, whatever is killed meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

mod decoys;
mod house;
mod kills;

use std::fs;
use std::path::Path;

use strongroom_tests::attack::{Attack, styles};
use strongroom_tests::lab::{Lab, Options};

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
    let styles = styles().unwrap();
    for style in &styles {
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
    for style in &styles {
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
fn attack(lab: &Lab, style: &str, sums: &str) -> String {
    Attack::begin(lab, style, "/mnt/work", style, 100.0, names(sums)).unwrap().said().unwrap()
}

fn names(sums: &str) -> impl Iterator<Item = &str> {
    sums.lines().filter_map(|line| line.split_once("  ")).map(|(_, name)| name)
}
