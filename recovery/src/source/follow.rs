//! Following a file of lines that others write and rotate: by renaming and a new file, by copying and truncating, with
//! lines cut in the middle. Where it was left is kept, so that what was written while this daemon was away is read too.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use strongroom_base::files::{self, Existing, SECRET, parent};

use super::{Lines, Sensor};
use crate::journal::make_dir;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How long a file that was renamed is still read: its writer goes on until it is told.
const FORMER: Duration = Duration::from_secs(30);
/// How often the place is kept.
const KEEP: Duration = Duration::from_secs(1);
/// Bytes before the place that are compared, to notice a file that was truncated and has grown again.
const BEFORE: usize = 32;
const CHUNK: usize = 65_536;

/// One file, and how far it was read.
struct Tail {
    file: File,
    inode: u64,
    offset: u64,
    before: Vec<u8>,
    lines: Lines,
}

/// Where a file was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    inode: u64,
    offset: u64,
}

impl Tail {
    fn open(path: &Path, offset: Option<u64>) -> std::io::Result<Tail> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let offset = offset.unwrap_or(meta.len());
        file.seek(SeekFrom::Start(offset))?;
        let mut tail = Tail { inode: meta.ino(), file, offset, before: vec![], lines: Lines::default() };
        tail.remember()?;
        Ok(tail)
    }

    fn remember(&mut self) -> std::io::Result<()> {
        let length = BEFORE.min(usize::try_from(self.offset).unwrap_or(BEFORE));
        self.before.resize(length, 0);
        self.file.read_exact_at(&mut self.before, self.offset - length as u64)
    }

    /// Whether what lies before the place is not what was read there.
    fn was_truncated(&self, length: u64) -> bool {
        if length < self.offset {
            return true;
        }
        let mut now = vec![0; self.before.len()];
        let read = self.file.read_exact_at(&mut now, self.offset - self.before.len() as u64);
        read.is_err() || now != self.before
    }

    /// Reads what was added; whether there was anything.
    fn read(&mut self, line: &mut dyn FnMut(Option<&[u8]>)) -> std::io::Result<bool> {
        let length = self.file.metadata()?.len();
        if length == self.offset {
            return Ok(false);
        }
        if self.was_truncated(length) {
            self.offset = 0;
            self.lines = Lines::default();
        }
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut buffer = vec![0; CHUNK];
        let mut any = false;
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            any = true;
            self.offset += count as u64;
            self.lines.take(buffer.get(..count).unwrap_or_default(), &mut *line);
        }
        self.remember()?;
        Ok(any)
    }

    /// The place before the part of a line that has come.
    fn place(&self) -> Place {
        Place { inode: self.inode, offset: self.offset.saturating_sub(self.lines.part.len() as u64) }
    }
}

struct Follower {
    path: PathBuf,
    current: Option<Tail>,
    former: Option<(Tail, Instant)>,
    /// Whether the file was there before, so that a new one is read from its beginning.
    known: bool,
}

impl Follower {
    /// Begins where it was left; without that, at the end of what is there.
    fn new(path: &Path, left: Option<Place>) -> std::io::Result<Follower> {
        let mut follower =
            Follower { path: path.to_owned(), current: None, former: None, known: left.is_some() };
        match left {
            Some(left) => follower.resume(left)?,
            None => {
                follower.look(&mut |_| {})?;
            }
        }
        Ok(follower)
    }

    fn resume(&mut self, left: Place) -> std::io::Result<()> {
        let inode_of = |path: &Path| std::fs::metadata(path).map(|meta| (meta.ino(), meta.len())).ok();
        match inode_of(&self.path) {
            Some((inode, length)) if inode == left.inode => {
                let offset = if left.offset <= length { left.offset } else { 0 };
                self.current = Some(Tail::open(&self.path, Some(offset))?);
            }
            _ => {
                // Rotated while nobody looked: its rest is in the file with another name, unless that was compressed.
                let entries = std::fs::read_dir(parent(&self.path)).into_iter().flatten().flatten();
                let mut paths = entries.map(|entry| entry.path());
                let old = paths.find(|path| inode_of(path).is_some_and(|(inode, _)| inode == left.inode));
                if let Some(old) = old {
                    self.former = Tail::open(&old, Some(left.offset)).ok().map(|tail| (tail, Instant::now()));
                }
            }
        }
        Ok(())
    }

    /// Looks once; whether anything was read.
    fn look(&mut self, line: &mut dyn FnMut(Option<&[u8]>)) -> std::io::Result<bool> {
        let mut any = false;
        if let Some((former, since)) = &mut self.former {
            any |= former.read(line)?;
            if since.elapsed() > FORMER {
                self.former = None;
            }
        }
        let there = match std::fs::metadata(&self.path) {
            Ok(meta) => Some(meta.ino()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(current) = &mut self.current {
            any |= current.read(line)?;
            if there.is_some_and(|inode| inode != current.inode) {
                self.former = self.current.take().map(|tail| (tail, Instant::now()));
            }
        }
        if self.current.is_none() && there.is_some() {
            let start = self.known.then_some(0);
            self.current = Some(Tail::open(&self.path, start)?);
        }
        // A file that is not there yet is new when it comes.
        self.known = true;
        if let Some(current) = &mut self.current {
            any |= current.read(line)?;
        }
        Ok(any)
    }

    fn place(&self) -> Option<Place> {
        self.current.as_ref().map(Tail::place)
    }
}

/// A file that is followed, and where its place is kept.
pub(super) struct Followed {
    follower: Follower,
    kept: PathBuf,
    left: Option<Place>,
}

/// Opens a file where it was left, or at its end: what is written from now on is not missed.
pub(super) fn open(sensor: &Sensor, path: &Path) -> Followed {
    let kept = place_file(sensor, path);
    let left = std::fs::read_to_string(&kept).ok().and_then(|text| serde_json::from_str(&text).ok());
    let follower = Follower::new(path, left).unwrap_or_else(|error| {
        sensor.daemon.noise.say("a file of alerts cannot be read", || format!("{}: {error}", path.display()));
        Follower { path: path.to_owned(), current: None, former: None, known: true }
    });
    Followed { follower, kept, left }
}

/// Follows a file for as long as the daemon runs.
pub(super) fn follow(sensor: &Sensor, followed: Followed) {
    let Followed { mut follower, kept, left } = followed;
    let daemon = &sensor.daemon;
    let (mut last, mut when) = (left, Instant::now());
    while !daemon.is_stopping() {
        let looked =
            follower.look(&mut |line| line.map_or_else(|| sensor.too_long(), |line| sensor.line(line)));
        if let Err(error) = looked {
            let path = follower.path.display().to_string();
            daemon.noise.say("a file of alerts cannot be read", || format!("{path}: {error}"));
            follower.current = None;
            daemon.pause(KEEP);
        }
        let place = follower.place();
        if place != last && when.elapsed() > KEEP {
            keep_place(sensor, &kept, place);
            (last, when) = (place, Instant::now());
        }
        daemon.pause(LOOK);
    }
    keep_place(sensor, &kept, follower.place());
}

/// One file for each followed file, named after it.
fn place_file(sensor: &Sensor, path: &Path) -> PathBuf {
    let plain = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => char::from(byte).to_string(),
        other => format!("_{other:02x}"),
    };
    let name: String = path.as_os_str().as_encoded_bytes().iter().map(|byte| plain(*byte)).collect();
    let end = name.len().saturating_sub(200);
    sensor
        .daemon
        .base
        .recovery_dir()
        .join("sources")
        .join(format!("{}.json", name.get(end..).unwrap_or(&name)))
}

fn keep_place(sensor: &Sensor, kept: &Path, place: Option<Place>) {
    let Some(text) = place.and_then(|place| serde_json::to_string(&place).ok()) else { return };
    let written = make_dir(&parent(kept)).map_err(|error| error.to_string()).and_then(|()| {
        files::write(kept, &text, SECRET, Existing::Replace).map_err(|error| error.to_string())
    });
    if let Err(error) = written {
        sensor.daemon.noise.say("a place in a file of alerts cannot be kept", || error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    struct Rig {
        dir: tempfile::TempDir,
        follower: Follower,
    }

    impl Rig {
        fn new(text: &str) -> Rig {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("eve.json");
            std::fs::write(&path, text).unwrap();
            let mut rig = Rig { follower: Follower::new(&path, None).unwrap(), dir };
            assert!(rig.look().is_empty(), "what was there before is not read");
            rig
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("eve.json")
        }

        fn append(&self, text: &str) {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn look(&mut self) -> Vec<String> {
            let mut found = vec![];
            let mut line =
                |line: Option<&[u8]>| found.push(String::from_utf8(line.unwrap().to_vec()).unwrap());
            self.follower.look(&mut line).unwrap();
            found
        }
    }

    #[test]
    fn lines_are_read_as_they_come_and_once() {
        let mut rig = Rig::new("old\n");
        rig.append("one\ntw");
        assert_eq!(rig.look(), ["one"]);
        assert!(rig.look().is_empty());
        rig.append("o\nthree\n");
        assert_eq!(rig.look(), ["two", "three"]);
    }

    #[test]
    fn renamed_and_made_anew() {
        let mut rig = Rig::new("");
        rig.append("one\npart of ");
        assert_eq!(rig.look(), ["one"]);
        let old = rig.dir.path().join("eve.json.1");
        std::fs::rename(rig.path(), &old).unwrap();
        assert!(rig.look().is_empty());
        rig.append("three\n");
        // Its writer has not been told yet.
        OpenOptions::new().append(true).open(&old).unwrap().write_all(b"two\n").unwrap();
        let mut found = rig.look();
        found.extend(rig.look());
        assert_eq!(found, ["part of two", "three"]);
        rig.append("four\n");
        OpenOptions::new().append(true).open(&old).unwrap().write_all(b"late\n").unwrap();
        let mut found = rig.look();
        found.sort();
        assert_eq!(found, ["four", "late"]);
    }

    #[test]
    fn copied_and_truncated() {
        let mut rig = Rig::new("");
        rig.append("one\ntwo\n");
        assert_eq!(rig.look(), ["one", "two"]);
        std::fs::write(rig.path(), "a\n").unwrap();
        assert_eq!(rig.look(), ["a"]);
        // Grown past the place before anyone looked.
        std::fs::write(rig.path(), "first\nsecond\nthird\n").unwrap();
        assert_eq!(rig.look(), ["first", "second", "third"]);
        std::fs::write(rig.path(), "").unwrap();
        assert!(rig.look().is_empty());
        rig.append("again\n");
        assert_eq!(rig.look(), ["again"]);
    }

    #[test]
    fn a_file_that_comes_later_is_read_from_its_beginning() {
        let mut rig = Rig::new("");
        std::fs::remove_file(rig.path()).unwrap();
        assert!(rig.look().is_empty());
        rig.append("new\n");
        assert_eq!(rig.look(), ["new"]);
    }

    #[test]
    fn what_was_written_while_away_is_read() {
        let mut rig = Rig::new("");
        rig.append("one\ntw");
        rig.look();
        let left = rig.follower.place();
        rig.append("o\n");
        rig.follower = Follower::new(&rig.path(), left).unwrap();
        assert_eq!(rig.look(), ["two"]);
        let left = rig.follower.place();
        rig.append("three\n");
        std::fs::rename(rig.path(), rig.dir.path().join("eve.json-20261122")).unwrap();
        rig.append("four\n");
        rig.follower = Follower::new(&rig.path(), left).unwrap();
        assert_eq!(rig.look(), ["three", "four"], "rotated while away");
    }
}
