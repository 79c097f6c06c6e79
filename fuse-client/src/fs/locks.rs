//! Locks. flock(2) and fcntl(2) locks share the gateway's table, because `fuser` 0.18 does not tell which it is (as on NFS).

use std::sync::Arc;
use std::time::Instant;

use fuser::Errno;
use strongroom_protocol::attr::{Handle, Lock, LockKind, Node};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use super::{Caller, Fs, nothing};
use crate::errno::{Ended, errno};
use crate::lease::Heard;
use crate::state::{Here, OpenFile, State};
use crate::telling;
use crate::transport::{Answer, Call, Payload};

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

/// A request about locks that is under way at the gateway: until it is answered, those of the file are not kept here.
pub(super) struct Asking(Option<(Arc<State>, Node)>);

impl Asking {
    pub(super) fn of(state: &Arc<State>, node: Node) -> Asking {
        Asking(Some((state.clone(), node)))
    }

    /// It has ended for whoever asked; the gateway may still carry it out if nobody waits any more. Returns whether it was the only
    /// one all the time.
    pub(super) fn ended(mut self, result: &Result<Answer<'_>, Ended>) -> bool {
        match (self.0.take(), result) {
            (None, _) | (_, Err(Ended::Interrupted | Ended::Deadline)) => false,
            (Some((state, node)), _) => state.locks.lock().answered(node),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some((state, node)) = self.0.take() {
            state.locks.lock().answered(node);
        }
    }
}

type SetDone = Box<dyn FnOnce(Result<(), Errno>) + Send>;

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
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        let shown = move |found: Option<Lock>| match found {
            Some(lock) => LockRange::from_wire(lock),
            None => LockRange { kind: libc::F_UNLCK, ..range },
        };
        let here = self.state.locks.lock().query_here(open.node, &lock, self.locks_here(&open));
        match here {
            Ok(found) => return done(Ok(shown(found))),
            Err(Here::Tell) => {
                let fs = self.clone();
                return self.tell_locks(caller, open.node, true, move |told| match told {
                    Ok(()) => fs.getlk(caller, file, owner, range, done),
                    Err(errno) => done(Err(errno)),
                });
            }
            Err(_) => {}
        }
        let read = move |answer: Answer<'_>| match answer.outcome {
            Outcome::Locked(found) => Ok(shown(found)),
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
        match range.to_wire(owner) {
            Ok(lock) => self.set_lock(caller, file, lock, wait, Box::new(done)),
            Err(errno) => done(Err(errno)),
        }
    }

    fn set_lock(&self, caller: Caller, file: u64, lock: Lock, wait: bool, done: SetDone) {
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return done(Err(Errno::EBADF)) };
        let (node, may) = (open.node, self.locks_here(&open));
        let here = {
            let mut locks = self.state.locks.lock();
            if lock.kind == LockKind::Unlock && !locks.may_have(node, lock.owner) {
                drop(locks);
                return done(self.unbarred());
            }
            // Where the gateway is asked, closing tells it from here on, even if this caller is killed before the answer.
            locks.set_here((node, file), lock, wait, may)
        };
        match here {
            Here::Done => done(Ok(())),
            Here::Conflict => done(Err(Errno::EAGAIN)),
            Here::Gateway => self.set_at_gateway(caller, (file, node), lock, wait, done),
            Here::Tell => {
                let fs = self.clone();
                self.tell_locks(caller, node, false, move |told| match told {
                    Ok(()) => fs.set_lock(caller, file, lock, wait, done),
                    Err(errno) => done(Err(errno)),
                });
            }
        }
    }

    fn set_at_gateway(
        &self,
        caller: Caller,
        (file, node): (u64, Node),
        lock: Lock,
        wait: bool,
        done: SetDone,
    ) {
        let asking = Asking::of(&self.state, node);
        let wait = wait && lock.kind != LockKind::Unlock;
        let op = Op::SetLock { handle: Handle(file), lock, wait, reclaim: false };
        self.at_gateway(caller, file, done, move |fs, done| {
            let (carrier, asked, now) = (fs.carrier.clone(), fs.asked(), Instant::now());
            let answered = move |result: Result<Answer<'_>, Ended>| {
                let heard = match &result {
                    Ok(Answer { outcome: Outcome::Done, life, note, .. }) => {
                        fs.state.locks.lock().set(node, file, lock);
                        Some(Heard { asked, life: *life, note: *note })
                    }
                    _ => None,
                };
                let alone = asking.ended(&result);
                if let Some(heard) = heard.filter(|_| alone) {
                    let mut table = fs.state.leases.table();
                    // A recall takes the lease from the table first, and then asks what is kept.
                    if table.may_keep_locks(&heard, node) {
                        fs.state.locks.lock().keep(node, now);
                    }
                }
                done(result.map_err(errno).and_then(nothing));
            };
            carrier.submit(Call {
                op,
                data: Payload::default(),
                pid: caller.pid,
                done: Box::new(answered),
                keep: None,
            });
        });
    }

    /// Whether locks taken through an open file may be answered here, if those of the file are kept.
    fn locks_here(&self, open: &OpenFile) -> bool {
        open.at_gateway() && open.wire.lock().dead.is_none() && self.carrier.is_up()
    }

    /// Does `then` once the gateway knows the locks of a file. `last`: what `then` asks for does not show that it is to answer
    /// for them.
    pub(super) fn tell_locks(
        &self,
        caller: Caller,
        node: Node,
        last: bool,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        telling::tell(&self.submitter(), &self.state, (node, last), caller.pid, Box::new(then));
    }
}
