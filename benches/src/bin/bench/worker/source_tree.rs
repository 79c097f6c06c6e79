//! A made-up source tree: the same files in every run, of the sizes that source files have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::random::Random;
use super::stage::program;

/// Half of all files are smaller than this, bytes.
const MEDIAN_BYTES: f64 = 3500.0;
/// The logarithms of the sizes are spread by this much.
const DEVIATION: f64 = 1.3;
const MAX_BYTES: f64 = 131_072.0;
const FILES_PER_DIRECTORY: u64 = 12;

const WORDS: [&str; 32] = [
    "let", "mut", "self", "fn", "return", "match", "if", "else", "while", "for", "struct", "impl", "use",
    "the", "of", "and", "value", "buffer", "offset", "length", "error", "result", "name", "path", "index",
    "count", "{", "}", "(", ")", "=>", "//",
];

/// An archive of the tree, below the guest's own temporary directory; removed when dropped.
pub(super) struct Archive {
    directory: PathBuf,
}

impl Archive {
    pub(super) fn make(files: u64) -> Result<Self> {
        let archive =
            Self { directory: std::env::temp_dir().join(format!("bench-tree-{}", std::process::id())) };
        write_files(&archive.directory.join("tree"), files)?;
        program(
            Command::new("tar")
                .args([
                    "--create",
                    "--format=ustar",
                    "--sort=name",
                    "--mtime=@1700000000",
                    "--owner=0",
                    "--group=0",
                ])
                .arg("--file")
                .arg(archive.path())
                .arg("--directory")
                .arg(&archive.directory)
                .arg("tree"),
            &[0],
        )?;
        Ok(archive)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join("tree.tar")
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // The guest's files go with the guest.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn write_files(root: &Path, files: u64) -> Result<()> {
    let mut random = Random::new(5);
    let mut directory = root.to_owned();
    for number in 0..files {
        if number % FILES_PER_DIRECTORY == 0 {
            directory = nested(root, number / FILES_PER_DIRECTORY);
            fs::create_dir_all(&directory).context("cannot make the source tree")?;
        }
        let text = text(&mut random);
        fs::write(directory.join(format!("module_{number}.rs")), text)
            .context("cannot make the source tree")?;
    }
    Ok(())
}

/// Five directories at the top, up to three levels below each.
fn nested(root: &Path, number: u64) -> PathBuf {
    let mut path = root.join(format!("part{}", number % 5));
    let mut rest = number / 5;
    while rest > 0 {
        path.push(format!("unit{}", rest % 4));
        rest /= 4;
    }
    path
}

fn text(random: &mut Random) -> String {
    let bytes = (MEDIAN_BYTES.ln() + DEVIATION * random.normal()).exp().clamp(1.0, MAX_BYTES);
    let mut text = String::new();
    let mut column = 0;
    while (text.len() as f64) < bytes {
        #[allow(clippy::cast_possible_truncation, reason = "far below 2^32")]
        let word = WORDS.get(random.below(WORDS.len() as u64) as usize).copied().unwrap_or_default();
        text.push_str(word);
        // A number now and then, so that compression has something to do.
        if random.below(6) == 0 {
            text.push_str(&random.below(100_000).to_string());
        }
        column += word.len() + 1;
        text.push(if column > 70 { '\n' } else { ' ' });
        if column > 70 {
            column = 0;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn sizes_are_those_of_source_files() {
        let mut random = Random::new(5);
        let mut sizes: Vec<usize> = (0..500).map(|_| text(&mut random).len()).collect();
        sizes.sort_unstable();
        assert!((2000..6000).contains(&sizes[250]), "median {}", sizes[250]);
        assert!(sizes[0] < 600 && sizes[499] > 30_000, "from {} to {}", sizes[0], sizes[499]);
    }

    #[test]
    fn the_archive_holds_as_many_files_as_asked_for_and_goes_away() {
        let archive = Archive::make(30).unwrap();
        let listing = Command::new("tar").arg("tf").arg(archive.path()).output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        assert_eq!(listing.lines().filter(|name| name.ends_with(".rs")).count(), 30);
        let directory = archive.directory.clone();
        drop(archive);
        assert!(!directory.exists());
    }
}
