//! The drawing of the house, held against the code: which crate may know which, and what the pure crates do not do.
//!
//! DESIGN.md, section 4. A new crate or a new arrow must be drawn here first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml_edit::DocumentMut;

/// Each crate, and the crates of the house that it may depend on.
const ARROWS: [(&str, &[&str]); 11] = [
    ("contracts", &[]),
    ("policy", &["contracts"]),
    ("protocol", &["contracts"]),
    ("channel", &["contracts", "protocol"]),
    ("gateway", &["contracts", "protocol", "channel"]),
    ("fuse-client", &["contracts", "protocol", "channel"]),
    ("base", &["contracts", "policy", "protocol", "channel"]),
    ("recovery", &["contracts", "policy", "protocol", "channel", "base"]),
    ("cli", &["contracts", "policy", "protocol", "channel", "base"]),
    ("tests", &[]),
    ("benches", &["contracts", "protocol", "channel", "gateway", "tests"]),
];

/// Crates without I/O, clock or threads.
const PURE: [&str; 3] = ["contracts", "policy", "protocol"];

/// What a pure crate's own code never names.
const IMPURE: [&str; 11] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "std::env",
    "SystemTime::now",
    "Instant::now",
    "println!",
    "std::io::std",
];

/// Dependencies that would bring I/O, clocks or threads into a pure crate.
const IMPURE_CRATES: [&str; 6] = ["rustix", "libc", "socket2", "tokio", "tempfile", "redb"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(dir: &Path) -> DocumentMut {
    fs::read_to_string(dir.join("Cargo.toml")).unwrap().parse().unwrap()
}

/// What a crate is built from; what only its tests use may come from anywhere.
fn dependencies(dir: &Path) -> BTreeSet<String> {
    let manifest = manifest(dir);
    ["dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(section)?.as_table_like())
        .flat_map(|table| table.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>())
        .collect()
}

/// The Rust files of a crate's `src`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.join("src")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// A crate's code, file by file, without comments and tests. A test module stands at the end of its file.
fn code_of(name: &str) -> Vec<(PathBuf, String)> {
    let dir = top().join(name);
    sources(&dir)
        .into_iter()
        .map(|file| (file.strip_prefix(&dir).unwrap().to_owned(), fs::read_to_string(&file).unwrap()))
        .filter(|(file, _)| !is_tests(file))
        .map(|(file, text)| {
            let code = text
                .lines()
                .take_while(|line| !line.starts_with("#[cfg(test)]"))
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(|line| format!("{line}\n"))
                .collect();
            (file, code)
        })
        .collect()
}

/// Whether a file, given by its path inside its crate, holds only tests.
fn is_tests(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem == "tests")
        || file.components().any(|c| c.as_os_str() == "tests")
}

#[test]
fn every_crate_is_drawn() {
    let workspace = manifest(&top());
    let members: BTreeSet<String> = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member.as_str().unwrap().to_owned())
        .collect();
    let drawn: BTreeSet<String> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(members, drawn, "the members of the workspace and the crates drawn in this test differ");
}

#[test]
fn arrows_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for (name, may) in &allowed {
        for dependency in dependencies(&top().join(name)) {
            if let Some(other) = dependency.strip_prefix("strongroom-") {
                assert!(
                    may.contains(&other),
                    "`{name}` depends on `{other}`: that arrow is not in the drawing"
                );
            }
        }
    }
}

#[test]
fn pure_crates_do_no_io() {
    for name in PURE {
        let impure: Vec<_> = dependencies(&top().join(name))
            .into_iter()
            .filter(|dependency| IMPURE_CRATES.contains(&dependency.as_str()))
            .collect();
        assert!(impure.is_empty(), "`{name}` is pure, but depends on {impure:?}");
        for (file, code) in code_of(name) {
            for word in IMPURE {
                assert!(!code.contains(word), "`{name}` is pure, but {} uses {word}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_code_and_cryptography_have_one_place_per_crate() {
    for (name, _) in ARROWS {
        let code = code_of(name);
        let with = |word: &str| -> Vec<_> {
            code.iter().filter(|(_, text)| text.contains(word)).map(|(file, _)| file.clone()).collect()
        };
        let permits = with("allow(unsafe_code");
        assert!(permits.len() <= 1, "`{name}` allows unsafe code in more than one file: {permits:?}");
        let ring = with("use ring::");
        assert!(ring.len() <= 1, "`{name}` imports ring in more than one file: {ring:?}");
    }
}
