//! Locks. flock(2) and fcntl(2) locks share the gateway's table, because `fuser` 0.18 does not tell which it is (as on NFS).

use fuser::Errno;
use strongroom_protocol::attr::{Handle, Lock, LockKind};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use super::{Caller, Fs};
use crate::errno::{Ended, errno};
use crate::transport::{Answer, Payload};

/// The kernel's "to the end of the file": OFFSET_MAX.
const TO_THE_END: u64 = i64::MAX as u64;

/// A lock as the kernel gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// The process to show in F_GETLK.
    pub pid: u32,
}

impl LockRange {
    fn to_wire(self, owner: u64) -> Result<Lock, Errno> {
        let kind = match self.kind {
            libc::F_RDLCK => LockKind::Shared,
            libc::F_WRLCK => LockKind::Exclusive,
            libc::F_UNLCK => LockKind::Unlock,
            _ => return Err(Errno::EINVAL),
        };
        if self.start > self.end {
            return Err(Errno::EINVAL);
        }
        let end = if self.end >= TO_THE_END { u64::MAX } else { self.end };
        Ok(Lock { owner, pid: self.pid, start: self.start, end, kind })
    }

    fn from_wire(lock: Lock) -> LockRange {
        let kind = match lock.kind {
            LockKind::Shared => libc::F_RDLCK,
            LockKind::Exclusive => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        };
        LockRange { start: lock.start, end: lock.end.min(TO_THE_END), kind, pid: lock.pid }
    }
}

impl Fs {
    /// The lock that stands in the way of this one (F_GETLK); of kind F_UNLCK if none does.
    pub fn getlk(
        &self,
        caller: Caller,
        file: u64,
        owner: u64,
        range: LockRange,
        done: impl FnOnce(Result<LockRange, Errno>) + Send + 'static,
    ) {
        let lock = match range.to_wire(owner) {
            Ok(lock) => lock,
            Err(errno) => return done(Err(errno)),
        };
        let read = move |answer: Answer<'_>| match answer.outcome {
            Outcome::Locked(Some(lock)) => Ok(LockRange::from_wire(lock)),
            Outcome::Locked(None) => Ok(LockRange { kind: libc::F_UNLCK, ..range }),
            _ => Err(errno(Ended::Protocol)),
        };
        self.at_gateway(caller, file, done, move |fs, done| {
            fs.ask(caller, Op::GetLock { handle: Handle(file), lock }, Payload::default(), read, done);
        });
    }

    /// Sets or releases a lock; with `wait`, waits until it can be had.
    pub fn setlk(
        &self,
        caller: Caller,
        file: u64,
        owner: u64,
        range: LockRange,
        wait: bool,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let lock = match range.to_wire(owner) {
            Ok(lock) => lock,
            Err(errno) => return done(Err(errno)),
        };
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        let node = open.node;
        if lock.kind != LockKind::Unlock {
            // From here on, closing tells the gateway, even if this caller is killed before the answer.
            self.state.locks.lock().asked(node, owner);
        } else if !self.state.locks.lock().may_have(node, owner) {
            return done(self.unbarred());
        }
        let fs = self.clone();
        let wait = wait && lock.kind != LockKind::Unlock;
        let op = Op::SetLock { handle: Handle(file), lock, wait, reclaim: false };
        self.at_gateway(caller, file, done, move |through, done| {
            through.ask_done(caller, op, Payload::default(), move |result| {
                if result.is_ok() {
                    fs.state.locks.lock().set(node, file, lock);
                }
                done(result);
            });
        });
    }
}
