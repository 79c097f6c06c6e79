//! The log of one application: segments of records, appended before the changes that they are about.
//!
//! A segment is a file of a header and records. A record reaches the kernel in one write before its change does, so that
//! no kill of the process parts them; [`Log::sync`] brings pre-images to the disk before a guest's fsync is answered, and
//! soon in any case. A record that was cut off by a crash of the machine is cut away when the log is opened.
//!
//! The header of 64 bytes: magic (8 bytes), number of the first record, of the last, bytes kept in the vault, longest
//! window in seconds (u64 each). The last four are 0 until the segment is closed.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, fdatasync, ftruncate, openat, unlinkat};
use rustix::io::Errno;

use super::record::{self, Record, What};
use super::vault::{self, Vault, write_at};

const MAGIC: &[u8; 8] = b"SRUNDO01";
const HEADER: u64 = 64;
/// A segment is closed when it is this long,
const MOST_BYTES: u64 = 8 << 20;
/// or this part of the window old, in these bounds (seconds): what is forgotten is whole segments.
const WINDOW_PARTS: u64 = 16;
const AGE_BOUNDS: (u64, u64) = (60, 3600);

/// Records that lag behind are written at the latest when they are this many bytes.
const MOST_PENDING: usize = 64 * 1024;

/// Tells segments of all logs apart in the life of the process.
static SEGMENTS: AtomicU32 = AtomicU32::new(1);

/// Who writes to a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    /// The application, or the name of the undo itself.
    pub(crate) application: String,
    /// The contract's numbers, outermost first.
    pub(crate) ids: Vec<[u8; 16]>,
    pub(crate) generation: u64,
}

/// The log of one application.
pub(crate) struct Log {
    pub(crate) application: String,
    dir: OwnedFd,
    state: Mutex<State>,
    /// Bytes of segments and of what they keep in the vault.
    used: AtomicU64,
    /// Most of them; 0: the gateway's own bound.
    pub(crate) budget: AtomicU64,
    /// 1: the oldest is forgotten when they are used up.
    pub(crate) forgets: AtomicU8,
    unsynced: AtomicBool,
    pending: AtomicBool,
    /// The number of the present segment.
    segment: AtomicU32,
    /// The number of the last record that was forgotten.
    pub(crate) forgotten: AtomicU64,
    /// What the former process left.
    former: Mutex<Former>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    closed: VecDeque<Closed>,
    buffer: Vec<u8>,
    /// Records that may lag behind their change.
    pending: Vec<u8>,
    unsynced: Vec<u64>,
}

struct Open {
    file: OwnedFd,
    first: u64,
    length: u64,
    kept: u64,
    window: u64,
    last: u64,
    contracts: HashMap<u32, u32>,
}

/// Segments that a process did not close before it ended.
#[derive(Default)]
struct Former {
    segments: Vec<Closed>,
    /// What it replaced there.
    replacing: Vec<Record>,
}

/// A segment that is complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed {
    pub(crate) first: u64,
    pub(crate) last: u64,
    length: u64,
    kept: u64,
    window: u64,
}

impl Log {
    /// Opens the log of an application, and makes it if there is none.
    ///
    /// # Errors
    /// Those of the vault's file system.
    pub(crate) fn open(vault: &Vault, application: &str) -> Result<Log, Errno> {
        let dir = vault.log_dir(application)?;
        let mut closed = VecDeque::new();
        let mut used = 0;
        let mut former = Former::default();
        for (name, _) in vault::list(&dir)? {
            let Some(first) = number(&name) else { continue };
            match recover(&dir, first, &mut former)? {
                Some(segment) => {
                    used += segment.length + segment.kept;
                    closed.push_back(segment);
                }
                // Nothing whole in it.
                None => unlinkat(&dir, &*name, AtFlags::empty())?,
            }
        }
        let forgotten = vault.read(&format!("logs/{application}/forgotten")).unwrap_or_default();
        let forgotten = String::from_utf8_lossy(&forgotten).trim().parse().unwrap_or(0);
        Ok(Log {
            application: application.to_owned(),
            dir,
            state: Mutex::new(State { closed, ..State::default() }),
            used: AtomicU64::new(used),
            budget: AtomicU64::new(0),
            forgets: AtomicU8::new(0),
            unsynced: AtomicBool::new(false),
            pending: AtomicBool::new(false),
            segment: AtomicU32::new(SEGMENTS.fetch_add(1, Ordering::Relaxed)),
            forgotten: AtomicU64::new(forgotten),
            former: Mutex::new(former),
        })
    }

    /// What the former process replaced in the segment that it did not close; once.
    pub(crate) fn take_replacing(&self) -> Vec<Record> {
        std::mem::take(&mut self.former.lock().replacing)
    }

    /// Closes the segments that the former process did not close: nothing needs to be mended by them any more.
    pub(crate) fn close_former(&self) -> Result<(), Errno> {
        for closed in std::mem::take(&mut self.former.lock().segments) {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&self.dir, name(closed.first), flags, Mode::empty())?;
            write_summary(&file, &closed)?;
        }
        Ok(())
    }

    /// The number of the present segment, in which places are to be told.
    pub(crate) fn segment(&self) -> u32 {
        self.segment.load(Ordering::Acquire)
    }

    /// Bytes taken.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that a clone in the vault takes when the original is overwritten.
    pub(crate) fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(open) = &mut self.state.lock().open {
            open.kept += bytes;
        }
    }

    /// The number of the newest record, 0 if there is none.
    pub(crate) fn newest(&self) -> u64 {
        let state = self.state.lock();
        let open = state.open.as_ref().map(|open| open.last);
        open.or(state.closed.back().map(|segment| segment.last)).unwrap_or(0)
    }

    /// Writes records, in one call of the kernel; those that lagged behind before them.
    ///
    /// # Errors
    /// Those of write(2). Nothing may be changed then.
    pub(crate) fn append(
        &self,
        number: u32,
        writer: &Writer,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        let result = self.write(state, &mut buffer, number, writer, records);
        state.buffer = buffer;
        result
    }

    fn write(
        &self,
        state: &mut State,
        buffer: &mut Vec<u8>,
        number: u32,
        writer: &Writer,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), Errno> {
        let mut records = records.into_iter().peekable();
        let Some(first) = records.peek().map(|record| record.seq) else { return Ok(()) };
        if state.open.as_ref().is_some_and(|open| open.is_full(first)) {
            self.close(state)?;
        }
        let open = match &mut state.open {
            Some(open) => open,
            none => none.insert(self.begin(first)?),
        };
        buffer.append(&mut state.pending);
        let contract = open.contract(number, writer, first, buffer);
        let (mut cost, mut window, mut last) = (0, 0, first);
        let mut unsynced = false;
        for mut record in records {
            record.contract = contract;
            put(&record, buffer)?;
            cost += record.cost;
            window = window.max(record.window);
            last = last.max(record.seq);
            match &record.what {
                What::Changed { saved: record::Saved::Range { .. } | record::Saved::Clone, .. } => {
                    unsynced = true;
                    state.unsynced.push(record.seq);
                }
                What::Changed { saved: record::Saved::Bytes { .. }, .. } | What::Xattr { .. } => {
                    unsynced = true
                }
                _ => {}
            }
        }
        if let Err(error) = write_at(&open.file, buffer, open.length) {
            // Contracts may not have been told; they are told anew.
            open.contracts.clear();
            return Err(error);
        }
        open.length += buffer.len() as u64;
        open.kept += cost;
        open.window = open.window.max(window);
        open.last = open.last.max(last);
        self.used.fetch_add(buffer.len() as u64 + cost, Ordering::Relaxed);
        self.pending.store(false, Ordering::Release);
        if unsynced {
            self.unsynced.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Adds a record that may be lost in a crash: it only completes one that was written.
    pub(crate) fn later(&self, number: u32, writer: &Writer, mut record: Record) {
        let mut state = self.state.lock();
        let State { open: Some(open), pending, .. } = &mut *state else { return };
        record.contract = open.contract(number, writer, record.seq, pending);
        // It has no bytes that could make it too long.
        let _ = put(&record, pending);
        self.pending.store(true, Ordering::Release);
        if pending.len() > MOST_PENDING {
            // What fails here fails again at the next record.
            let _ = self.flush_to(&mut state);
        }
    }

    /// Writes what lags behind.
    pub(crate) fn flush(&self) -> Result<(), Errno> {
        if !self.pending.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        self.flush_to(state)
    }

    fn flush_to(&self, state: &mut State) -> Result<(), Errno> {
        let Some(open) = &mut state.open else { return Ok(()) };
        write_at(&open.file, &state.pending, open.length)?;
        open.length += state.pending.len() as u64;
        self.used.fetch_add(state.pending.len() as u64, Ordering::Relaxed);
        state.pending.clear();
        self.pending.store(false, Ordering::Release);
        Ok(())
    }

    /// What was just written must be on the disk before a guest is told that its data are there.
    pub(crate) fn must_sync(&self) {
        self.unsynced.store(true, Ordering::Release);
    }

    /// Brings pre-images and their records to the disk if there are any that are not there.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub(crate) fn sync(&self, vault: &Vault) -> Result<(), Errno> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let synced = self.sync_now(vault);
        if synced.is_err() {
            self.unsynced.store(true, Ordering::Release);
        }
        synced
    }

    fn sync_now(&self, vault: &Vault) -> Result<(), Errno> {
        let (file, files) = {
            let mut state = self.state.lock();
            let file =
                state.open.as_ref().map(|open| rustix::io::fcntl_dupfd_cloexec(&open.file, 0)).transpose()?;
            (file, std::mem::take(&mut state.unsynced))
        };
        let synced =
            vault.sync(&self.application, &files).and_then(|()| file.as_ref().map_or(Ok(()), fdatasync));
        if synced.is_err() {
            self.state.lock().unsynced.extend(files);
        }
        synced
    }

    fn begin(&self, first: u64) -> Result<Open, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, name(first), flags, Mode::RUSR | Mode::WUSR)?;
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&first.to_le_bytes());
        write_at(&file, &header, 0)?;
        self.used.fetch_add(HEADER, Ordering::Relaxed);
        Ok(Open { file, first, length: HEADER, kept: 0, window: 0, last: first, contracts: HashMap::new() })
    }

    fn close(&self, state: &mut State) -> Result<(), Errno> {
        self.flush_to(state)?;
        let Some(open) = state.open.take() else { return Ok(()) };
        let closed = Closed {
            first: open.first,
            last: open.last,
            length: open.length,
            kept: open.kept,
            window: open.window,
        };
        write_summary(&open.file, &closed)?;
        if self.unsynced.load(Ordering::Acquire) {
            // Nobody looks at it later.
            fdatasync(&open.file)?;
        }
        state.closed.push_back(closed);
        self.segment.store(SEGMENTS.fetch_add(1, Ordering::Relaxed), Ordering::Release);
        Ok(())
    }

    /// Closes the present segment, so that it can be forgotten.
    /// Tells whether there was one.
    pub(crate) fn rotate(&self) -> Result<bool, Errno> {
        let mut state = self.state.lock();
        let open = state.open.is_some();
        self.close(&mut state)?;
        Ok(open)
    }

    /// Closes the present segment if it is old.
    pub(crate) fn rotate_old(&self, now_us: u64) -> Result<(), Errno> {
        let mut state = self.state.lock();
        match &state.open {
            Some(open) if open.is_full(now_us) => self.close(&mut state),
            _ => Ok(()),
        }
    }

    /// The oldest complete segment that keeps something which (unless `anyway`) nobody can take back any more.
    pub(crate) fn overripe(&self, now_us: u64, anyway: bool) -> Option<Closed> {
        let state = self.state.lock();
        let over = |one: &&Closed| one.last.saturating_add(one.window.saturating_mul(1_000_000)) < now_us;
        state.closed.iter().find(|one| one.window > 0 && (anyway || over(one))).copied()
    }

    /// The oldest segment, if it keeps nothing and (unless `anyway`) is older than this.
    pub(crate) fn oldest(&self, before_us: u64, anyway: bool) -> Option<Closed> {
        let state = self.state.lock();
        let oldest = *state.closed.front()?;
        (oldest.window == 0 && (anyway || oldest.last < before_us)).then_some(oldest)
    }

    /// Notes that what a segment keeps is about to be destroyed.
    ///
    /// # Errors
    /// Those of the vault's file system.
    pub(crate) fn begin_forgetting(&self, vault: &Vault, segment: &Closed) -> Result<(), Errno> {
        vault.write(&self.forgetting(), name(segment.first).as_bytes())
    }

    fn forgetting(&self) -> String {
        format!("logs/{}/forgetting", self.application)
    }

    /// The segment that was being forgotten when the process ended, if there is one.
    pub(crate) fn half_forgotten(&self, vault: &Vault) -> Option<Closed> {
        let first = number(&vault.read(&self.forgetting()).ok()?)?;
        self.state.lock().closed.iter().find(|one| one.first == first && one.window > 0).copied()
    }

    /// Writes a segment anew, without what could take its changes back: it goes on telling what happened. What it kept
    /// in the vault is destroyed already.
    pub(crate) fn strip(&self, vault: &Vault, segment: &Closed, records: Vec<Record>) -> Result<(), Errno> {
        // Said first: a crash in between leaves records whose bytes are gone, which is what it says.
        let forgotten = format!("{}\n", segment.last);
        vault.write(&format!("logs/{}/forgotten", self.application), forgotten.as_bytes())?;
        self.forgotten.fetch_max(segment.last, Ordering::Relaxed);
        let mut bytes = vec![0; HEADER as usize];
        bytes[..8].copy_from_slice(MAGIC);
        for (n, number) in [segment.first, segment.last, 0, 0].into_iter().enumerate() {
            bytes[8 + n * 8..16 + n * 8].copy_from_slice(&number.to_le_bytes());
        }
        for record in records {
            put(&record.stripped(), &mut bytes)?;
        }
        let path = format!("logs/{}/{}", self.application, name(segment.first));
        vault.write(&path, &bytes)?;
        vault.remove(&self.forgetting())?;
        let mut state = self.state.lock();
        if let Some(old) = state.closed.iter_mut().find(|old| old.first == segment.first) {
            let less = (old.length + old.kept).saturating_sub(bytes.len() as u64);
            *old = Closed { length: bytes.len() as u64, kept: 0, window: 0, ..*old };
            self.used.fetch_sub(less.min(self.used()), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The records of a segment.
    pub(crate) fn read(&self, first: u64) -> Result<Vec<Record>, Errno> {
        read_segment(&self.dir, first).map(|(records, _)| records)
    }

    /// Forgets the oldest segment, which keeps nothing any more.
    pub(crate) fn forget(&self, segment: &Closed) -> Result<(), Errno> {
        match unlinkat(&self.dir, name(segment.first), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(other) => return Err(other),
        }
        let mut state = self.state.lock();
        if state.closed.front().is_some_and(|front| front.first == segment.first) {
            state.closed.pop_front();
            let less = segment.length + segment.kept;
            self.used.fetch_sub(less.min(self.used()), Ordering::Relaxed);
        }
        Ok(())
    }

    /// All records from a number on, oldest first; what lags behind is written before.
    ///
    /// # Errors
    /// Those of reading the segments.
    ///
    /// The second part tells segments apart.
    pub(crate) fn since(&self, since: u64) -> Result<Vec<(Record, Option<u32>)>, Errno> {
        self.flush()?;
        let segments: Vec<u64> = {
            let state = self.state.lock();
            let closed =
                state.closed.iter().filter(|segment| segment.last >= since).map(|segment| segment.first);
            closed.chain(state.open.as_ref().map(|open| open.first)).collect()
        };
        let mut all = vec![];
        for (n, first) in segments.iter().enumerate() {
            match self.read(*first) {
                Ok(records) => {
                    let n = u32::try_from(n).ok();
                    all.extend(records.into_iter().map(|record| (record, n)));
                }
                // Forgotten meanwhile.
                Err(Errno::NOENT) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(all)
    }
}

impl Open {
    /// The index of a contract in the segment, told there if it was not yet.
    fn contract(&mut self, number: u32, writer: &Writer, seq: u64, out: &mut Vec<u8>) -> u32 {
        let index = self.contracts.len() as u32;
        *self.contracts.entry(number).or_insert_with(|| {
            let what = What::Contract { index, ids: writer.ids.clone(), generation: writer.generation };
            // A handful of numbers, never too long.
            let _ = put(&Record { seq, contract: index, window: 0, cost: 0, what }, out);
            index
        })
    }

    fn is_full(&self, now_us: u64) -> bool {
        let age = (self.window / WINDOW_PARTS).clamp(AGE_BOUNDS.0, AGE_BOUNDS.1).saturating_mul(1_000_000);
        self.length >= MOST_BYTES || now_us.saturating_sub(self.first) > age
    }
}

fn put(record: &Record, out: &mut Vec<u8>) -> Result<(), Errno> {
    record::encode(record, out).map_err(|_| Errno::TOOBIG)
}

fn name(first: u64) -> String {
    format!("{first:016x}")
}

fn number(name: &[u8]) -> Option<u64> {
    let name = std::str::from_utf8(name).ok().filter(|name| name.len() == 16)?;
    u64::from_str_radix(name, 16).ok()
}

fn write_summary(file: &OwnedFd, closed: &Closed) -> Result<(), Errno> {
    let mut bytes = vec![];
    for number in [closed.last, closed.kept, closed.window] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    write_at(file, &bytes, 16)
}

/// The whole records of a segment, and how long they are with the header.
fn read_segment(dir: &OwnedFd, first: u64) -> Result<(Vec<Record>, u64), Errno> {
    let file = openat(dir, name(first), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let size = rustix::fs::fstat(&file)?.st_size;
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0).min(4 * MOST_BYTES as usize)];
    let mut length = 0;
    while let Some(space) = bytes.get_mut(length..).filter(|space| !space.is_empty()) {
        match rustix::io::pread(&file, space, length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    let mut at = HEADER as usize;
    let mut records = vec![];
    while let Some((record, used)) = bytes.get(at..length).and_then(record::decode) {
        records.push(record);
        at += used;
    }
    Ok((records, at as u64))
}

/// Takes a segment of a former process: cuts off what is not whole. `None`: it is empty. What was not closed is noted.
fn recover(dir: &OwnedFd, first: u64, former: &mut Former) -> Result<Option<Closed>, Errno> {
    let file = openat(dir, name(first), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut header = [0; HEADER as usize];
    let count = rustix::io::pread(&file, &mut header, 0)?;
    let field = |n: usize| {
        let bytes = header.get(n * 8..n * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    if count < HEADER as usize || header.get(..8) != Some(MAGIC) {
        return Ok(None);
    }
    let length = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
    if field(2) != 0 {
        return Ok(Some(Closed { first, last: field(2), length, kept: field(3), window: field(4) }));
    }
    let (records, whole) = read_segment(dir, first)?;
    let Some(last) = records.iter().map(|record| record.seq).max() else { return Ok(None) };
    if whole < length {
        ftruncate(&file, whole)?;
    }
    let kept = records.iter().map(|record| record.cost).sum();
    let window = records.iter().map(|record| record.window).max().unwrap_or(0);
    let closed = Closed { first, last, length: whole, kept, window };
    former.segments.push(closed);
    let replaces = |what: &What| matches!(what, What::Renamed { replaced: Some(_), kept: true, .. });
    former.replacing.extend(records.into_iter().filter(|record| replaces(&record.what)));
    Ok(Some(closed))
}
