//! How long an undo takes: ten thousand files are damaged through a mount, and `contract undo` brings them back.
//!
//! Each style of damage has a lab and files of its own, below a directory that says on which file system. Every file is
//! looked at afterwards: name, size, time and the part that makes it different from the others; every hundredth whole. The
//! files share most of their blocks where the file system makes clones, so that ten GiB need not be free.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use strongroom_tests::lab::{Lab, LabName, Options as LabOptions};

const POLICY: &str = r#"
application = "mail"
undo-space = "64 GiB"

[[grant]]
path = "files"
mount = "/files"
rights = "read-write"
undo = "7d"
"#;

/// Damages every file in the working directory; the first argument says how.
const ATTACK: &str = r#"
import os, sys
style, noise = sys.argv[1], bytes([0xa5]) * (1 << 20)
for name in sorted(os.listdir(".")):
    for file in sorted(os.listdir(name)):
        path = name + "/" + file
        if style == "delete":
            os.unlink(path)
        elif style == "rename":
            os.rename(path, path + ".locked")
        elif style == "replace":
            with open(path + ".new", "wb") as out:
                out.write(noise[:4096])
            os.rename(path + ".new", path)
        else:
            size = os.stat(path).st_size if style == "overwrite" else 4096
            with open(path, "r+b", buffering=0) as out:
                while size > 0:
                    size -= out.write(noise[:size])
os.sync()
"#;

/// Files in one directory.
const IN_ONE: u64 = 100;
/// What makes a file different from the others, at its beginning.
const HEAD: usize = 4096;
/// Every so many-th file is compared whole.
const WHOLE: u64 = 100;

/// What is done to the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Style {
    /// They are deleted.
    Delete,
    /// They get another name.
    Rename,
    /// A small new file takes the place of each.
    Replace,
    /// The first 4 KiB are overwritten.
    Head,
    /// They are overwritten from the beginning to the end.
    Overwrite,
}

/// Measure `contract undo` in a lab: many files, damaged in several ways.
#[derive(Parser)]
struct Options {
    /// An existing directory on the file system to be measured; what is made in it is removed again
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How many files
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    files: u64,
    /// How long each is, KiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(4..=1_048_576))]
    kib: u64,
    /// Only these
    #[arg(long, value_name = "STYLE,…", value_delimiter = ',')]
    styles: Vec<Style>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let styles = if options.styles.is_empty() { Style::value_variants() } else { &options.styles };
    let mut rows = vec![];
    for style in styles {
        rows.push(measure(&options, *style).with_context(|| format!("style {style:?}"))?);
    }
    if options.json {
        println!(
            "{}",
            serde_json::to_string_pretty(
                &json!({ "files": options.files, "kib": options.kib, "styles": rows })
            )?
        );
        return Ok(());
    }
    println!("{} files of {} KiB; seconds", options.files, options.kib);
    println!("{:<12} {:>8} {:>8} {:>16}", "", "damage", "undo", "undo log, MiB");
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:<12} {:>8.2} {:>8.2} {:>16.1}",
            row["style"].as_str().unwrap_or_default(),
            number("damage_s"),
            number("undo_s"),
            number("log_bytes") / f64::from(1 << 20)
        );
    }
    Ok(())
}

fn measure(options: &Options, style: Style) -> Result<Value> {
    let name = style.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let policy = tempfile::tempdir()?;
    fs::write(policy.path().join("mail.toml"), POLICY)?;
    let data = tempfile::tempdir_in(&options.data)?;
    fill(&data.path().join("files"), options)?;
    rustix::fs::sync();
    let lab = Lab::up(&LabOptions {
        policy: Some(policy.path().to_owned()),
        data: Some(data.path().to_owned()),
        ..LabOptions::named(LabName::unique("benchundo"))
    })?;
    let before = look(&data.path().join("files"))?;
    let begun = Instant::now();
    lab.app("mail", ["python3", "-c", ATTACK, &name]).cwd("/mnt/files").run()?;
    let damage = begun.elapsed();
    ensure!(look(&data.path().join("files"))? != before, "the damage did nothing");
    // As in an incident.
    lab.base(["contract", "revoke", "mail"]).run()?;
    let log_bytes = used(&data.path().join(".strongroom-undo/logs"))?;
    let begun = Instant::now();
    let told = lab.base(["contract", "--json", "undo", "mail", "--since", "1h"]).run()?;
    let undo = begun.elapsed();
    let told: Value = serde_json::from_str(&told)?;
    ensure!(told["kept"] == 0 && told["failed"] == 0 && told["expired"] == 0, "not all was restored");
    ensure!(look(&data.path().join("files"))? == before, "the files are not as they were");
    check(&data.path().join("files"), options)?;
    lab.down()?;
    Ok(json!({
        "style": name,
        "damage_s": damage.as_secs_f64(),
        "undo_s": undo.as_secs_f64(),
        "restored": told["restored"],
        "log_bytes": log_bytes,
    }))
}

fn path_of(root: &Path, number: u64) -> PathBuf {
    root.join(format!("d{:04}/f{number:06}.dat", number / IN_ONE))
}

/// What a file begins with.
fn head(number: u64) -> Vec<u8> {
    format!("file {number}; ").into_bytes().into_iter().cycle().take(HEAD).collect()
}

/// What a file goes on with.
fn body(options: &Options) -> Vec<u8> {
    (0..options.kib * 1024).map(|at| (at / 512 % 251) as u8).collect()
}

fn fill(root: &Path, options: &Options) -> Result<()> {
    let body = body(options);
    let mut first: Option<File> = None;
    for number in 0..options.files {
        let path = path_of(root, number);
        if number % IN_ONE == 0 {
            fs::create_dir_all(path.parent().context("no directory")?)?;
        }
        let file = File::create_new(&path)?;
        let cloned = first.as_ref().is_some_and(|first| rustix::fs::ioctl_ficlone(&file, first).is_ok());
        if !cloned {
            file.write_all_at(&body, 0)?;
        }
        file.write_all_at(&head(number), 0)?;
        if first.is_none() {
            first = Some(File::open(&path)?);
        }
    }
    Ok(())
}

/// Names, sizes and times.
fn look(root: &Path) -> Result<Vec<(PathBuf, u64, i64, i64)>> {
    let mut all = vec![];
    for dir in fs::read_dir(root)? {
        for file in fs::read_dir(dir?.path())? {
            let file = file?;
            let meta = file.metadata()?;
            all.push((file.path(), meta.len(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    all.sort();
    Ok(all)
}

fn check(root: &Path, options: &Options) -> Result<()> {
    let body = body(options);
    for number in 0..options.files {
        let path = path_of(root, number);
        let mut begin = vec![0; HEAD];
        File::open(&path)?.read_exact_at(&mut begin, 0)?;
        ensure!(begin == head(number), "`{}` has lost its contents", path.display());
        if number % WHOLE == 0 {
            let whole = fs::read(&path)?;
            ensure!(whole.get(HEAD..) == body.get(HEAD..), "`{}` has lost its contents", path.display());
        }
    }
    Ok(())
}

fn used(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        bytes += if path.is_dir() { used(&path)? } else { path.metadata()?.len() };
    }
    Ok(bytes)
}
