//! The reply cache of a session, in a file that survives the gateway's process.
//!
//! Each slot holds the last request that changed something and its answer; a request that comes again is answered from
//! there and not run again. What an operation found before it ran is written before it runs, so that a successor of a
//! killed process can tell whether it took effect. The file is written with pwrite(2) and never synced: it must survive
//! the process, not the machine, and a session ends with the machine's boot. A record lies within one page and is
//! written by one call, so that a kill never leaves half of it.
//!
//! The file: a header of 4096 bytes, the slots' records of 256 bytes, then the records of claims (handles with their
//! creator's rights) of 32 bytes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use strongroom_protocol::codec;
use strongroom_protocol::op::Slot;
use strongroom_protocol::reply::{Failure, Outcome};

use crate::engine::{Before, Claim, ClaimChange};

const MAGIC: &[u8; 8] = b"SRSLOTS1";
const HEADER: u64 = 4096;
const LOCKS_AT: u64 = 64;
const LEASES_AT: u64 = 65;
const RECORD: usize = 256;
const CLAIM: usize = 32;
/// Longest encoded outcome that a record holds; those of slotted requests have no data and are shorter.
const BODY: usize = RECORD - 11;

const EXECUTING: u8 = 1;
const DONE: u8 = 2;

/// A slot file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// The file failed.
    #[error("the session's file failed: {0}")]
    Io(#[from] std::io::Error),
    /// It is not a slot file of this version.
    #[error("the session's file is damaged or of another version")]
    Damaged,
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Begin<'a> {
    /// Run it, and tell the guard how it ended.
    Run(Running<'a>),
    /// It was running when the gateway's process died: find out whether it took effect.
    Interrupted(Before, Running<'a>),
    /// It was answered before: the same answer again.
    Replay(Outcome),
    /// The sequence number or the slot is wrong.
    Bad,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last request that was carried out or begun.
    sequence: u64,
    phase: Phase,
    running: bool,
}

#[derive(Debug, Default)]
enum Phase {
    /// Nothing was carried out in this slot yet, or its number was refused.
    #[default]
    Empty,
    Interrupted(Before),
    Done(Box<Outcome>),
}

/// The slots and claims of one session.
#[derive(Debug)]
pub struct Slots {
    file: File,
    slots: Vec<Mutex<Option<Box<State>>>>,
    /// Taken after a slot's lock by those who end a request, and before it by those who wait for one.
    ending: Mutex<()>,
    ended: Condvar,
    claims: Mutex<Claims>,
    locks_used: AtomicBool,
    leases_taken: AtomicBool,
}

#[derive(Debug, Default)]
struct Claims {
    at: HashMap<Claim, u64>,
    free: Vec<u64>,
    end: u64,
}

impl Slots {
    /// Makes the file of a new session.
    ///
    /// # Errors
    /// [`SlotsError::Io`].
    pub fn create(path: &Path, count: u16) -> Result<Slots, SlotsError> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let mut header = [0; 10];
        header[..8].copy_from_slice(MAGIC);
        header[8..].copy_from_slice(&count.to_le_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Slots::new(file, count, false))
    }

    /// Opens the file of a session of a former process.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn open(path: &Path) -> Result<Slots, SlotsError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut header = [0; 10];
        file.read_exact_at(&mut header, 0).map_err(|_| SlotsError::Damaged)?;
        let [magic @ .., low, high] = header;
        if magic != *MAGIC {
            return Err(SlotsError::Damaged);
        }
        let count = u16::from_le_bytes([low, high]);
        let mut locks = [0];
        let locks_used = read_at(&file, &mut locks, LOCKS_AT)? && locks == [1];
        let mut leases = [0];
        let leases_taken = read_at(&file, &mut leases, LEASES_AT)? && leases == [1];
        let slots = Slots::new(file, count, locks_used);
        slots.leases_taken.store(leases_taken, Ordering::Relaxed);
        for index in 0..count {
            let mut record = [0; RECORD];
            if !read_at(&slots.file, &mut record, record_at(index))? {
                break;
            }
            if let Some(place) = slots.slots.get(usize::from(index)) {
                *place.lock() = parse(&record)?.map(Box::new);
            }
        }
        slots.read_claims()?;
        Ok(slots)
    }

    fn new(file: File, count: u16, locks_used: bool) -> Slots {
        Slots {
            file,
            slots: (0..count).map(|_| Mutex::new(None)).collect(),
            ending: Mutex::new(()),
            ended: Condvar::new(),
            claims: Mutex::default(),
            locks_used: AtomicBool::new(locks_used),
            leases_taken: AtomicBool::new(false),
        }
    }

    /// How many slots there are.
    pub fn count(&self) -> u16 {
        // `create` and `open` take the count from a u16.
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    /// Begins a request. If the same request is running already (it came again on another connection), waits for its end.
    pub fn begin(&self, slot: Slot) -> Begin<'_> {
        if let Some(begun) = self.try_begin(slot) {
            return begun;
        }
        let mut ending = self.ending.lock();
        loop {
            if let Some(begun) = self.try_begin(slot) {
                return begun;
            }
            self.ended.wait(&mut ending);
        }
    }

    /// Begins a request; `None` if it is running already.
    fn try_begin(&self, slot: Slot) -> Option<Begin<'_>> {
        let Some(place) = self.slots.get(usize::from(slot.index)) else { return Some(Begin::Bad) };
        let mut guard = place.lock();
        let state = guard.get_or_insert_default();
        let last = state.sequence;
        if state.running {
            return (slot.sequence != last).then_some(Begin::Bad);
        }
        let running = || Running { slots: self, slot, ended: false };
        Some(match &state.phase {
            Phase::Done(outcome) if slot.sequence == last => Begin::Replay((**outcome).clone()),
            Phase::Interrupted(before) if slot.sequence == last => {
                let before = *before;
                state.running = true;
                Begin::Interrupted(before, running())
            }
            Phase::Empty if slot.sequence == last && last > 0 => {
                state.running = true;
                Begin::Run(running())
            }
            // An interrupted or refused request that the client no longer wants is passed over.
            _ if slot.sequence == last.wrapping_add(1) => {
                **state = State { sequence: slot.sequence, running: true, ..State::default() };
                Begin::Run(running())
            }
            _ => Begin::Bad,
        })
    }

    fn write(&self, slot: Slot, kind: u8, body: &[u8]) -> Result<(), SlotsError> {
        let mut record = [0; RECORD];
        record[0] = kind;
        record[1..9].copy_from_slice(&slot.sequence.to_le_bytes());
        // The body is at most BODY long.
        record[9..11].copy_from_slice(&(body.len() as u16).to_le_bytes());
        let Some(place) = record.get_mut(11..11 + body.len()) else { return Err(SlotsError::Damaged) };
        place.copy_from_slice(body);
        Ok(self.file.write_all_at(&record, record_at(slot.index))?)
    }

    /// Records a change in the claims.
    ///
    /// # Errors
    /// [`SlotsError::Io`].
    pub fn claim(&self, change: ClaimChange) -> Result<(), SlotsError> {
        let mut claims = self.claims.lock();
        let (index, record) = match change {
            ClaimChange::Made(claim) => {
                if claims.at.contains_key(&claim) {
                    return Ok(());
                }
                let index = claims.free.pop().unwrap_or(claims.end);
                claims.end = claims.end.max(index + 1);
                claims.at.insert(claim, index);
                let mut record = [0; CLAIM];
                record[0] = 1;
                record[1..3].copy_from_slice(&claim.grant.to_le_bytes());
                record[3..11].copy_from_slice(&claim.ino.to_le_bytes());
                record[11..19].copy_from_slice(&claim.generation.to_le_bytes());
                (index, record)
            }
            ClaimChange::Released(claim) => {
                let Some(index) = claims.at.remove(&claim) else { return Ok(()) };
                claims.free.push(index);
                (index, [0; CLAIM])
            }
        };
        Ok(self.file.write_all_at(&record, self.claim_at(index))?)
    }

    /// The claims on record.
    pub fn claims(&self) -> Vec<Claim> {
        self.claims.lock().at.keys().copied().collect()
    }

    /// Notes that the session has had a lock, so that a successor gives it time to reclaim it.
    ///
    /// # Errors
    /// [`SlotsError::Io`].
    pub fn note_lock(&self) -> Result<(), SlotsError> {
        if self.locks_used.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        Ok(self.file.write_all_at(&[1], LOCKS_AT)?)
    }

    /// Whether the session has had a lock.
    pub fn locks_used(&self) -> bool {
        self.locks_used.load(Ordering::Relaxed)
    }

    /// Notes that the session takes leases, so that a successor gives its client time to forget what it keeps.
    ///
    /// # Errors
    /// [`SlotsError::Io`].
    pub fn note_leases(&self) -> Result<(), SlotsError> {
        if self.leases_taken.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.file.write_all_at(&[1], LEASES_AT)?;
        self.leases_taken.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the session has taken leases.
    pub fn leases_taken(&self) -> bool {
        self.leases_taken.load(Ordering::Relaxed)
    }

    fn claim_at(&self, index: u64) -> u64 {
        HEADER + (self.slots.len() * RECORD) as u64 + index * CLAIM as u64
    }

    fn read_claims(&self) -> Result<(), SlotsError> {
        let mut claims = self.claims.lock();
        let mut record = [0; CLAIM];
        while read_at(&self.file, &mut record, self.claim_at(claims.end))? {
            let index = claims.end;
            claims.end += 1;
            let [kind, a, b, rest @ ..] = record;
            let number = |at: usize| {
                rest.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
            };
            if kind == 1 {
                let claim =
                    Claim { grant: u16::from_le_bytes([a, b]), ino: number(0), generation: number(8) };
                claims.at.insert(claim, index);
            } else {
                claims.free.push(index);
            }
        }
        Ok(())
    }
}

/// A request that runs in its slot. If it is dropped untold, the request counts as not run.
#[derive(Debug)]
pub struct Running<'a> {
    slots: &'a Slots,
    slot: Slot,
    ended: bool,
}

impl Running<'_> {
    /// Writes down what the operation found, before it runs.
    ///
    /// # Errors
    /// [`SlotsError::Io`]; the operation must not run then.
    pub fn executing(&self, before: Before) -> Result<(), SlotsError> {
        if before == Before::default() {
            // It can simply run again; there is nothing to know.
            return Ok(());
        }
        self.slots.write(self.slot, EXECUTING, &before.to_bytes())
    }

    /// Writes down the answer, before it is sent. Refusals that ask the client to do something first and come again do
    /// not use the number up.
    ///
    /// # Errors
    /// [`SlotsError`]; the answer stands in memory.
    pub fn done(mut self, outcome: &Outcome) -> Result<(), SlotsError> {
        if comes_again(outcome) {
            return Ok(());
        }
        self.end(Some(outcome));
        let mut body = Vec::with_capacity(BODY);
        codec::encode_header(outcome, &mut body).map_err(|_| SlotsError::Damaged)?;
        self.slots.write(self.slot, DONE, &body)
    }

    fn end(&mut self, outcome: Option<&Outcome>) {
        self.ended = true;
        if let Some(place) = self.slots.slots.get(usize::from(self.slot.index)) {
            let mut guard = place.lock();
            let state = guard.get_or_insert_default();
            state.running = false;
            if let Some(outcome) = outcome {
                state.phase = Phase::Done(Box::new(outcome.clone()));
            }
        }
        drop(self.slots.ending.lock());
        self.slots.ended.notify_all();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(None);
        }
    }
}

/// Whether the client is to resolve, reopen or wait, and send the same request with the same number again.
pub fn comes_again(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(Failure::Stale | Failure::BadHandle | Failure::Grace | Failure::Fenced))
}

fn record_at(index: u16) -> u64 {
    HEADER + u64::from(index) * RECORD as u64
}

/// Reads all of `out`; false if the file ends before.
fn read_at(file: &File, out: &mut [u8], at: u64) -> Result<bool, SlotsError> {
    match file.read_exact_at(out, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn parse(record: &[u8; RECORD]) -> Result<Option<State>, SlotsError> {
    let [kind, a, b, c, d, e, f, g, h, low, high, body @ ..] = record;
    let sequence = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
    let length = usize::from(u16::from_le_bytes([*low, *high]));
    let body = body.get(..length).ok_or(SlotsError::Damaged)?;
    let phase = match *kind {
        0 => return Ok(None),
        EXECUTING => {
            let bytes = body.try_into().map_err(|_| SlotsError::Damaged)?;
            Phase::Interrupted(Before::from_bytes(bytes))
        }
        DONE => Phase::Done(Box::new(codec::decode_header(body).map_err(|_| SlotsError::Damaged)?)),
        _ => return Err(SlotsError::Damaged),
    };
    Ok(Some(State { sequence, phase, ..State::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(sequence: u64) -> Slot {
        Slot { index: 3, sequence }
    }

    fn run(slots: &Slots, sequence: u64) -> Running<'_> {
        match slots.begin(slot(sequence)) {
            Begin::Run(running) => running,
            other => panic!("{other:?}"),
        }
    }

    fn written(count: u64) -> Outcome {
        Outcome::Written { count, size: count }
    }

    fn before() -> Before {
        let mut bytes = [7; Before::BYTES];
        bytes[0] = 1;
        Before::from_bytes(bytes)
    }

    #[test]
    fn a_request_runs_once_also_across_processes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let slots = Slots::create(&path, 8).unwrap();
        let running = run(&slots, 1);
        running.executing(before()).unwrap();
        running.done(&written(1)).unwrap();
        assert!(matches!(slots.begin(slot(1)), Begin::Replay(Outcome::Written { count: 1, .. })));
        for wrong in [0, 3, u64::MAX] {
            assert!(matches!(slots.begin(slot(wrong)), Begin::Bad), "{wrong}");
        }
        assert!(matches!(slots.begin(Slot { index: 8, sequence: 1 }), Begin::Bad));
        run(&slots, 2).executing(before()).unwrap();
        drop(slots);

        let slots = Slots::open(&path).unwrap();
        assert_eq!(slots.count(), 8);
        let Begin::Interrupted(found, running) = slots.begin(slot(2)) else { panic!("not interrupted") };
        assert_eq!(found, before());
        // Stale: the number is not used up, and what was found is not forgotten.
        running.done(&Outcome::Failed(Failure::Stale)).unwrap();
        let Begin::Interrupted(_, running) = slots.begin(slot(2)) else { panic!("forgotten") };
        running.done(&Outcome::Done).unwrap();
        drop(slots);

        let slots = Slots::open(&path).unwrap();
        assert!(matches!(slots.begin(slot(2)), Begin::Replay(Outcome::Done)));
        run(&slots, 3).done(&written(3)).unwrap();
    }

    #[test]
    fn a_refused_number_may_come_again_or_be_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::create(&dir.path().join("slots"), 8).unwrap();
        run(&slots, 1).done(&Outcome::Failed(Failure::BadHandle)).unwrap();
        run(&slots, 1).done(&Outcome::Failed(Failure::BadHandle)).unwrap();
        run(&slots, 2).done(&Outcome::Done).unwrap();
        assert!(matches!(slots.begin(slot(1)), Begin::Bad));
    }

    #[test]
    fn the_same_request_twice_at_once_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::create(&dir.path().join("slots"), 8).unwrap();
        let first = run(&slots, 1);
        // The next number while the last one runs is against the rule.
        assert!(matches!(slots.begin(slot(2)), Begin::Bad));
        std::thread::scope(|scope| {
            let second = scope.spawn(|| match slots.begin(slot(1)) {
                Begin::Replay(outcome) => outcome,
                other => panic!("{other:?}"),
            });
            first.done(&written(9)).unwrap();
            assert_eq!(second.join().unwrap(), written(9));
        });
    }

    #[test]
    fn claims_and_locks_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let slots = Slots::create(&path, 2).unwrap();
        let claim = |ino| Claim { grant: 1, ino, generation: ino + 1 };
        for ino in 1..=3 {
            slots.claim(ClaimChange::Made(claim(ino))).unwrap();
        }
        slots.claim(ClaimChange::Made(claim(1))).unwrap();
        slots.claim(ClaimChange::Released(claim(2))).unwrap();
        slots.claim(ClaimChange::Released(claim(99))).unwrap();
        slots.claim(ClaimChange::Made(claim(4))).unwrap();
        assert!(!slots.locks_used());
        slots.note_lock().unwrap();
        drop(slots);
        let slots = Slots::open(&path).unwrap();
        let mut claims = slots.claims();
        claims.sort_by_key(|claim| claim.ino);
        assert_eq!(claims, [claim(1), claim(3), claim(4)]);
        assert!(slots.locks_used());
        let length = slots.file.metadata().unwrap().len();
        assert_eq!(length, HEADER + 2 * RECORD as u64 + 3 * CLAIM as u64, "places are used again");
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        std::fs::write(&path, b"SRSLOTS9\x01\0").unwrap();
        assert!(matches!(Slots::open(&path), Err(SlotsError::Damaged)));
        std::fs::write(&path, b"SR").unwrap();
        assert!(matches!(Slots::open(&path), Err(SlotsError::Damaged)));
        drop(Slots::create(&dir.path().join("other"), 1).unwrap());
        let file = OpenOptions::new().write(true).open(dir.path().join("other")).unwrap();
        file.write_all_at(&[9; RECORD], HEADER).unwrap();
        assert!(matches!(Slots::open(&dir.path().join("other")), Err(SlotsError::Damaged)));
    }
}
