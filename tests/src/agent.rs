//! A program inside a guest that does what it is told on its standard input, one call at a time, and says what it sees.
//!
//! One line, one operation; one line, one answer. A process for each operation would take longer than most of what a cache
//! can get wrong lasts. The test calls [`look`] on the data root itself, to know what is true.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};

use crate::lab::sys;

/// Beyond this, an attribute's value or a list of names is none that a test makes.
const LARGEST: usize = 64 * 1024;
/// No test makes larger files.
const LARGEST_FILE: u64 = 16 << 20;

/// What is open and what is mapped, by the test's numbers.
#[derive(Default)]
struct Agent {
    open: HashMap<u32, File>,
    mapped: HashMap<u32, sys::Mapping>,
    /// The longest that an operation took since it was last asked for, in microseconds.
    slowest: u128,
}

/// Serves standard input until its end.
///
/// # Errors
/// When a line cannot be read, understood or answered.
pub fn run() -> anyhow::Result<()> {
    let mut agent = Agent::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let begun = Instant::now();
        let answer = agent.perform(&words)?;
        if words.first() != Some(&"slowest") {
            agent.slowest = agent.slowest.max(begun.elapsed().as_micros());
        }
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

impl Agent {
    fn perform(&mut self, words: &[&str]) -> anyhow::Result<String> {
        Ok(match words {
            ["look", path] => look(Path::new(path)),
            ["handle", slot] => self.open.get(&slot.parse()?).map_or_else(|| "closed".into(), look_at),
            ["read", slot] => self.open.get(&slot.parse()?).map_or_else(|| "closed".into(), contents),
            ["peek", slot] => {
                let pages = self.mapped.get(&slot.parse()?).map(sys::Mapping::pages).unwrap_or_default();
                sums(pages.iter().map(Vec::as_slice))
            }
            ["slowest"] => std::mem::take(&mut self.slowest).to_string(),
            _ => match self.change(words)? {
                Ok(()) => "done".into(),
                Err(error) => said(&error),
            },
        })
    }

    fn change(&mut self, words: &[&str]) -> anyhow::Result<io::Result<()>> {
        Ok(match words {
            ["create", path, size, seed] => create(path, size.parse()?, seed.parse()?),
            ["write", path, offset, size, seed] => {
                let file = OpenOptions::new().write(true).open(path);
                let (offset, bytes) = (offset.parse()?, bytes(size.parse()?, seed.parse()?));
                file.and_then(|file| file.write_all_at(&bytes, offset))
            }
            ["append", path, size, seed] => {
                let bytes = bytes(size.parse()?, seed.parse()?);
                OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(&bytes))
            }
            ["truncate", path, size] => {
                let size = size.parse()?;
                OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(size))
            }
            ["chmod", path, mode] => {
                rustix::fs::chmod(*path, u32::from_str_radix(mode, 8)?.into()).map_err(Into::into)
            }
            ["rename", from, to] => rename(from, to, RenameFlags::empty()),
            ["exchange", from, to] => rename(from, to, RenameFlags::EXCHANGE),
            ["unlink", path] => rustix::fs::unlink(*path).map_err(Into::into),
            ["rmdir", path] => rustix::fs::rmdir(*path).map_err(Into::into),
            ["mkdir", path] => rustix::fs::mkdir(*path, 0o755.into()).map_err(Into::into),
            ["link", from, to] => rustix::fs::link(*from, *to).map_err(Into::into),
            ["symlink", target, path] => rustix::fs::symlink(*target, *path).map_err(Into::into),
            ["utimens", path, secs, nanos] => {
                let time = Timespec { tv_sec: secs.parse()?, tv_nsec: nanos.parse()? };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, *path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
            }
            ["setxattr", path, name, value] => {
                rustix::fs::lsetxattr(*path, *name, value.as_bytes(), XattrFlags::empty()).map_err(Into::into)
            }
            ["removexattr", path, name] => rustix::fs::lremovexattr(*path, *name).map_err(Into::into),
            ["open", slot, path, how] => {
                let mut options = OpenOptions::new();
                options.read(true).write(*how != "r").append(*how == "a").custom_flags(libc::O_NOFOLLOW);
                let slot = slot.parse()?;
                options.open(path).map(|file| drop(self.open.insert(slot, file)))
            }
            ["map", slot] => {
                let slot = slot.parse()?;
                match self.open.get(&slot) {
                    Some(file) => {
                        sys::Mapping::of(file).map(|mapping| drop(self.mapped.insert(slot, mapping)))
                    }
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            }
            ["put", slot, offset, size, seed] => {
                let (offset, bytes) = (offset.parse()?, bytes(size.parse()?, seed.parse()?));
                match self.open.get(&slot.parse()?) {
                    Some(file) => file.write_all_at(&bytes, offset),
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            }
            ["cut", slot, size] => match self.open.get(&slot.parse()?) {
                Some(file) => file.set_len(size.parse()?),
                None => Err(io::ErrorKind::NotFound.into()),
            },
            ["close", slot] => {
                // What is mapped stays so without a descriptor, until another file is.
                self.open.remove(&slot.parse()?);
                Ok(())
            }
            other => anyhow::bail!("no such operation: {other:?}"),
        })
    }
}

fn create(path: &str, size: usize, seed: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(&bytes(size, seed))
}

fn rename(from: &str, to: &str, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
}

/// Bytes that tell their seed.
fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn said(error: &io::Error) -> String {
    format!("errno {}", error.raw_os_error().unwrap_or(0))
}

/// All that a program can find out about a path, but for what differs between file systems (device and inode number, owner,
/// blocks, time of access).
#[must_use]
pub fn look(path: &Path) -> String {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) => return said(&error),
    };
    let mut seen = attributes(&metadata);
    let kind = metadata.file_type();
    let inside = if kind.is_file() {
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).map(|file| contents(&file))
    } else if kind.is_dir() {
        names(path)
    } else {
        std::fs::read_link(path).map(|target| target.to_string_lossy().into_owned())
    };
    let inside = inside.unwrap_or_else(|error| said(&error));
    let _ = write!(seen, " {inside} {}", xattrs(path).unwrap_or_else(|error| said(&error)));
    seen
}

/// What is in an open file, without asking for anything else.
#[must_use]
pub fn look_inside(file: &File) -> String {
    contents(file)
}

/// The same, with attributes but for extended ones.
#[must_use]
pub fn look_at(file: &File) -> String {
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let listed = match metadata.nlink() {
                0 => "removed".into(),
                _ => names(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
                    .unwrap_or_else(|error| said(&error)),
            };
            format!("{} {listed}", attributes(&metadata))
        }
        Ok(metadata) => format!("{} {}", attributes(&metadata), contents(file)),
        Err(error) => said(&error),
    }
}

fn attributes(metadata: &std::fs::Metadata) -> String {
    format!(
        "{:o} {}x {}b m{}.{:09} c{}.{:09}",
        metadata.mode(),
        metadata.nlink(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

/// What a mapping of the beginning of an open file must show, page by page; zeros behind its end, and nothing behind its last page.
///
/// # Errors
/// When it cannot be read.
pub fn look_at_pages(file: &File) -> io::Result<String> {
    let pages = file.metadata()?.len().div_ceil(sys::Mapping::PAGE as u64) as usize;
    let mut bytes = vec![0; sys::Mapping::LENGTH.min(pages * sys::Mapping::PAGE)];
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], at as u64)? {
            0 => break,
            count => at += count,
        }
    }
    Ok(sums(bytes.chunks(sys::Mapping::PAGE)))
}

/// One number for each page.
fn sums<'a>(pages: impl Iterator<Item = &'a [u8]>) -> String {
    pages
        .map(|page| format!("{:016x} ", page.iter().fold(FNV, fnv)))
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// FNV-1a.
const FNV: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, byte: &u8) -> u64 {
    (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
}

fn contents(file: &File) -> String {
    let mut buffer = vec![0; 64 * 1024];
    let mut hash = FNV;
    let mut at = 0;
    while at < LARGEST_FILE {
        match file.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(count) => {
                at += count as u64;
                hash = buffer[..count].iter().fold(hash, fnv);
            }
            Err(error) => return said(&error),
        }
    }
    format!("{at}:{hash:016x}")
}

fn names(path: &Path) -> io::Result<String> {
    let mut names = vec![];
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let kind = if kind.is_dir() {
            'd'
        } else if kind.is_symlink() {
            'l'
        } else {
            'f'
        };
        names.push(format!("{}:{kind}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(format!("[{}]", names.join(",")))
}

fn xattrs(path: &Path) -> io::Result<String> {
    if path.symlink_metadata()?.is_symlink() {
        // Symlinks have none (xattr(7)).
        return Ok("{}".into());
    }
    let mut list = vec![0; LARGEST];
    let length = rustix::fs::llistxattr(path, &mut list)?;
    let mut seen = vec![];
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !name.to_bytes().starts_with(b"user.") {
            continue;
        }
        let mut value = vec![0; LARGEST];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        seen.push(format!("{}={}", name.to_string_lossy(), String::from_utf8_lossy(&value[..length])));
    }
    seen.sort();
    Ok(format!("{{{}}}", seen.join(",")))
}
