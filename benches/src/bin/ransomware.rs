//! Ransomware of eight styles over a large tree, in a lab: how many files it damages before it is cut, and whether all of them
//! come back.
//!
//! Each attack runs under an application of its own on the same files. With detection the gateway cuts it; without, it is
//! revoked from outside after some seconds. Then the application is undone, and every file is compared with a copy that no
//! guest can reach: name, bytes, mode, time of change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use strongroom_benches::statistics::percentile;
use strongroom_tests::attack::{self, Attack};
use strongroom_tests::lab::{Lab, LabName, Options as LabOptions};

/// Measure what ransomware does before it is cut, and whether undo brings everything back.
#[derive(Parser)]
struct Options {
    /// Files of the user
    #[arg(long, default_value_t = 10_000)]
    files: u64,
    /// Attacks of each style, at each pace
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Files per second of the fast attacks
    #[arg(long, default_value_t = 100.0)]
    fast: f64,
    /// Files per second of the slow attacks
    #[arg(long, default_value_t = 2.0)]
    slow: f64,
    /// Without detection: seconds after which the fast attack is revoked
    #[arg(long, default_value_t = 5)]
    revoke_after: u64,
    /// Where the files are, twice (about 0.4 GB each for 10,000)
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Draws files and the order of attack
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// xorshift64* (Vigna 2016).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(7))
            .flat_map(|_| self.next().to_le_bytes().into_iter().take(7))
            .take(length)
            .collect()
    }
}

/// A file as it would be on somebody's disk: mostly small, some large; texts, tables, documents, pictures, programs' data.
fn file(chance: &mut Chance, number: u64) -> (&'static str, Vec<u8>) {
    let size = match chance.below(100) {
        0..=54 => 300 + chance.below(8_000),
        55..=84 => 8_000 + chance.below(40_000),
        85..=97 => 48_000 + chance.below(150_000),
        _ => 200_000 + chance.below(500_000),
    } as usize;
    let repeat = |text: String| text.into_bytes().iter().copied().cycle().take(size).collect();
    let packed = |chance: &mut Chance, magic: &[u8]| [magic, &chance.bytes(size)].concat();
    match chance.below(8) {
        0 | 1 => (
            "txt",
            repeat(format!("Letter {number}. Dear reader, all is well here; more of it on page {size}. ")),
        ),
        2 => ("csv", repeat(format!("{number};17.5;Smith;2026-11-{:02};{size}\n", number % 28 + 1))),
        3 => ("jpg", packed(chance, b"\xff\xd8\xff\xe0\0\x10JFIF")),
        4 => ("docx", packed(chance, b"PK\x03\x04\x14\0\x06\0")),
        5 => ("pdf", packed(chance, b"%PDF-1.7\n")),
        6 => {
            ("eml", repeat(format!("From: a@example.org\nSubject: number {number}\n\nSee you at {size}.\n")))
        }
        _ => (
            "dat",
            (0..size as u32 / 4 + 1)
                .flat_map(|n| (n.wrapping_mul(number as u32 | 1) >> 3).to_le_bytes())
                .collect(),
        ),
    }
}

fn fill(root: &Path, files: u64, chance: &mut Chance) -> Result<u64> {
    let mut total = 0;
    for number in 0..files {
        let (extension, contents) = file(chance, number);
        let dir = root.join(format!("d{}/e{}", number % 23, number % 97 / 10));
        fs::create_dir_all(&dir)?;
        total += contents.len() as u64;
        fs::write(dir.join(format!("f{number}.{extension}")), contents)?;
    }
    Ok(total)
}

/// What is not as it was: files that are missing, new, or differ.
fn differences(kept: &Path, now: &Path) -> Result<Vec<String>> {
    let (kept, now) = (list(kept, kept)?, list(now, now)?);
    let mut found = vec![];
    for (name, path) in &kept {
        let Some(other) = now.get(name) else {
            found.push(format!("{name}: missing"));
            continue;
        };
        let (a, b) = (fs::metadata(path)?, fs::metadata(other)?);
        if (a.mode(), a.len(), a.mtime(), a.mtime_nsec()) != (b.mode(), b.len(), b.mtime(), b.mtime_nsec()) {
            found.push(format!("{name}: mode, size or time"));
        } else if fs::read(path)? != fs::read(other)? {
            found.push(format!("{name}: contents"));
        }
    }
    found.extend(now.keys().filter(|name| !kept.contains_key(*name)).map(|name| format!("{name}: new")));
    Ok(found)
}

fn list(root: &Path, dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(list(root, &path)?);
        } else {
            let name = path.strip_prefix(root).context("a path outside")?.to_string_lossy().into_owned();
            all.insert(name, path);
        }
    }
    Ok(all)
}

struct Outcome {
    damaged: usize,
    undo: Duration,
}

struct House<'a> {
    lab: Lab,
    kept: &'a Path,
    data: &'a Path,
    names: Vec<String>,
}

impl House<'_> {
    fn attack(
        &self,
        app: &str,
        style: &str,
        rate: f64,
        cut_after: Option<Duration>,
        chance: &mut Chance,
    ) -> Result<Outcome> {
        let mut names = self.names.clone();
        for at in (1..names.len()).rev() {
            names.swap(at, chance.below(at as u64 + 1) as usize);
        }
        let attack =
            Attack::begin(&self.lab, app, "/mnt/files", style, rate, names.iter().map(String::as_str))?;
        if let Some(time) = cut_after {
            std::thread::sleep(time);
            self.lab.base(["contract", "revoke", app, "--why", "benchmark"]).run()?;
        }
        let said = attack.said()?;
        ensure!(said.contains("Permission denied"), "{app}: the attack was not cut: {said}");
        // What was let in before the fence is done when a second fence is.
        self.lab.base(["contract", "revoke", app, "--why", "benchmark"]).run()?;
        // Files of the user only: what the attack adds beside them is not damage.
        let damaged =
            differences(self.kept, self.data)?.iter().filter(|what| !what.ends_with(": new")).count();
        let began = Instant::now();
        self.lab.base(["contract", "undo", app, "--since", "1h", "--json"]).run()?;
        let undo = began.elapsed();
        let lost = differences(self.kept, self.data)?;
        ensure!(
            lost.is_empty(),
            "{app}: {} files are not as they were: {:?}",
            lost.len(),
            lost.iter().take(5).collect::<Vec<_>>()
        );
        Ok(Outcome { damaged, undo })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.files > 100 && options.rounds > 0, "--files is more than 100, --rounds at least 1");
    let scratch = match &options.scratch {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let (kept, data) = (scratch.path().join("kept"), scratch.path().join("data"));
    let mut chance = Chance(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let total = fill(&kept, options.files, &mut chance)?;
    fs::create_dir(&data)?;
    let files = data.join("files");
    ensure!(Command::new("cp").arg("-a").arg(&kept).arg(&files).status()?.success(), "cp failed");
    let names: Vec<String> = list(&kept, &kept)?.into_keys().collect();
    println!("{} files, {} MiB", names.len(), total >> 20);

    let policy = tempfile::tempdir()?;
    let styles = attack::styles()?;
    let mut runs = vec![];
    for (pace, rate, verdict) in
        [("fast", options.fast, "fence"), ("slow", options.slow, "fence"), ("off", options.fast, "off")]
    {
        for round in 0..options.rounds {
            for style in &styles {
                let app = format!("{style}-{pace}{round}");
                fs::write(
                    policy.path().join(format!("{app}.toml")),
                    format!(
                        "application = \"{app}\"\n\n[[grant]]\npath = \"files\"\nmount = \"/files\"\nrights = \"read-write\"\n\
                         undo = \"7d\"\n\n[detection]\nverdict = \"{verdict}\"\n"
                    ),
                )?;
                runs.push((app, style, pace, rate));
            }
        }
    }
    let lab = Lab::up(&LabOptions {
        policy: Some(policy.path().to_owned()),
        data: Some(data.clone()),
        ..LabOptions::named(LabName::unique("benchransom"))
    })?;
    let house = House { lab, kept: &kept, data: &files, names };
    let mut damaged: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    println!("{:<28} {:>16} {:>10}", "attack", "damaged at cut", "undo, s");
    for (app, style, pace, rate) in runs {
        let cut = (pace == "off").then(|| Duration::from_secs(options.revoke_after));
        let outcome = house.attack(&app, style, rate, cut, &mut chance)?;
        println!("{app:<28} {:>16} {:>10.2}", outcome.damaged, outcome.undo.as_secs_f64());
        damaged.entry(pace).or_default().push(outcome.damaged as f64);
    }
    house.lab.down()?;
    println!("\n{:<28} {:>8} {:>8} {:>8}", "files damaged at the cut", "p50", "p95", "max");
    for (pace, samples) in damaged {
        let at = |share| percentile(&samples, share).unwrap_or(f64::NAN);
        println!("{pace:<28} {:>8} {:>8} {:>8}", at(0.5), at(0.95), at(1.0));
    }
    println!("files lost for good: 0 (otherwise this would have ended with an error)");
    Ok(())
}
