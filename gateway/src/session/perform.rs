//! One request of a session, from its arrival to its answer, whatever the door.

use std::sync::{Arc, Weak};

use strongroom_contracts::OnVerdict;
use strongroom_protocol::admin::AlertKind;
use strongroom_protocol::attr::LockKind;
use strongroom_protocol::lease::Note;
use strongroom_protocol::op::{Op, Request};
use strongroom_protocol::reply::{Event, Failure, Outcome};

use crate::audit::Record;
use crate::engine::{Admission, Call, Done, LockReply, ReplyBuf, Served, Syncing, Teller, Verdict};
use crate::gateway::Gateway;
use crate::session::Session;
use crate::session::rates::Cost;
use crate::slots::{Begin, Running};
use crate::threads::Threads;

const EPERM: u16 = 1;
const EIO: u16 = 5;
const EACCES: u16 = 13;
const EOPNOTSUPP: u16 = 95;

/// What a request may need of its door.
#[derive(Clone, Copy)]
pub struct Hooks<'a> {
    /// Makes the reply of a lock that must wait.
    pub later: &'a dyn Fn() -> LockReply,
    /// The request is about to wait for other sessions to let go of leases: the connection must be read on meanwhile.
    pub waits: &'a dyn Fn(),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub outcome: Outcome,
    /// What the client may keep of it.
    pub note: Note,
}

impl From<Outcome> for Answer {
    /// Nothing may be kept of it.
    fn from(outcome: Outcome) -> Answer {
        Answer { outcome, note: Note::default() }
    }
}

/// How the client of a session is told of recalls.
struct ToldByLinks {
    session: Weak<Session>,
    threads: Threads,
}

impl Teller for ToldByLinks {
    fn tell(&self, event: Event, data: Vec<u8>, everywhere: bool) {
        let Some(session) = self.session.upgrade() else { return };
        let most = if everywhere { usize::MAX } else { 1 };
        for link in session.links().into_iter().take(most) {
            let (event, data) = (event.clone(), data.clone());
            // Sending waits for a client that does not read. Without a thread it is told again, or loses its leases.
            let _ = self.threads.run(Box::new(move |_| link.tell_data(&event, &data)));
        }
    }
}

impl Gateway {
    /// Carries out a request. `None`: the answer comes through `later`, or there is none ([`Op::Forget`],
    /// [`Op::Recalled`]).
    ///
    /// The answer may be sent as soon as this returns: by then the audit record that the contract asks for is safe, and
    /// nothing of the request can reach the data any more.
    pub fn perform(
        self: &Arc<Self>,
        session: &Arc<Session>,
        request: &Request,
        data: &[u8],
        out: &mut ReplyBuf,
        hooks: Hooks<'_>,
    ) -> Option<Answer> {
        out.clear();
        if session.strict && matches!(request.op, Op::ReadFiles { .. }) {
            // Each file that is read has a record of its own there, and none that nobody asked for.
            return Some(Outcome::Failed(Failure::Errno(EOPNOTSUPP)).into());
        }
        let path = session.strict.then(|| session.engine.describe(&request.op));
        let finish = |path, outcome| Some(self.finish(session, &request.op, path, outcome).into());
        let fenced = |path| finish(path, Outcome::Failed(Failure::Fenced));
        let rates = session.rates();
        if !rates.is_free() && !rates.take(cost(&request.op, data), |time| session.pause(time)) {
            return fenced(path);
        }
        if session.strict && !self.audit.healthy() {
            // Probed by a record, so that the trail's recovery is noticed.
            let probe =
                Record { text: Some("the audit trail failed before".into()), ..session.record("probe") };
            if self.audit.strict(probe).is_err() {
                return Some(Outcome::Failed(Failure::Errno(EIO)).into());
            }
        }
        let Some(admission) = session.enter(self.clock.now()) else {
            return fenced(path);
        };
        let strict_later = || self.strict_later(session, &request.op, path.clone(), (hooks.later)());
        let call = Call {
            id: request.id,
            op: &request.op,
            data,
            later: if session.strict { &strict_later } else { hooks.later },
            waits: hooks.waits,
        };
        if let (Op::Fsync { handle, data_only }, true) = (&request.op, data.is_empty()) {
            let begun = self.engine.begin_fsync(&session.engine, &admission, *handle, *data_only);
            drop(admission);
            let outcome = begun.map_or_else(Outcome::Failed, Syncing::run);
            return finish(path, outcome);
        }
        if matches!(request.op, Op::TakeLeases) && !self.prepare_leases(session) {
            return finish(path, Outcome::Failed(Failure::Errno(EIO)));
        }
        let served = if request.op.needs_slot() {
            self.slotted(session, &admission, request, call, out)
        } else {
            self.serve(session, &admission, call, out)
        };
        // The operation has had its last effect. What follows may wait (for the disk of the audit trail), and a fence
        // need not wait for that.
        drop(admission);
        if let Some(verdict) = session.engine.take_verdict() {
            self.judged(session, verdict);
        }
        let Served::Done(done) = served else { return None };
        if let (Op::SetLock { lock, .. }, Outcome::Done) = (&request.op, &done.outcome)
            && lock.kind != LockKind::Unlock
            && session.slots.note_lock().is_err()
        {
            self.audit.count(Record { text: Some("cannot note a lock".into()), ..session.record("lost") });
        }
        if let (Op::Reclaimed, Outcome::Done) = (&request.op, &done.outcome) {
            self.reclaimed(&[session.id]);
        }
        let outcome = match done.outcome {
            // What was read before a fence need not be handed out after it.
            Outcome::Data | Outcome::Opened(..) if session.turnstile.is_fenced() => {
                out.clear();
                Outcome::Failed(Failure::Fenced)
            }
            outcome => outcome,
        };
        if matches!(request.op, Op::Forget | Op::Recalled { .. }) {
            return None;
        }
        let outcome = self.finish(session, &request.op, path, outcome);
        Some(Answer { outcome, note: done.note })
    }

    /// A recall was answered. Not a request: nothing that limits requests may hold it up, as others wait for it.
    pub fn recalled(&self, session: &Session, id: u64) {
        if !session.engine.recalled(id) && !session.rates().is_free() {
            // One that nobody asked for.
            session.rates().take(Cost::default(), |time| session.pause(time));
        }
    }

    /// Makes sure that the session can be told of recalls, also by a successor of this process.
    fn prepare_leases(&self, session: &Arc<Session>) -> bool {
        let teller = ToldByLinks { session: Arc::downgrade(session), threads: self.threads.clone() };
        session.engine.answer_to(Arc::new(teller));
        let noted = session.slots.note_leases();
        if let Err(error) = &noted {
            let text = format!("no leases for the session: {error}");
            self.audit.count(Record { text: Some(text), ..session.record("lost") });
        }
        noted.is_ok()
    }

    /// Acts on what was found out about an application's changes.
    fn judged(self: &Arc<Self>, session: &Arc<Session>, verdict: Verdict) {
        let fences = session.contract().effective.detection.verdict == OnVerdict::Fence;
        if fences {
            // Nothing more is let in; the rest of the fence waits for what is inside, and this may be inside.
            session.fence();
        }
        self.alert(session, AlertKind::Ransomware, verdict.evidence, verdict.files);
        if !fences {
            return;
        }
        let (gateway, application) = (self.clone(), session.application.clone());
        let fence = move || {
            if let Err(error) = gateway.fence_locally(&application) {
                let text = format!("the fence of {application} is not durable: {error}");
                gateway.audit.note(Record { event: "lost", text: Some(text), ..Record::default() });
            }
        };
        let fence = Arc::new(fence);
        let own = Arc::clone(&fence);
        if self.threads.run(Box::new(move |_| own())).is_err() {
            fence();
        }
    }

    /// Records what the contract and the outcome ask for. `path`: what it is about, under `audit = "strict"`.
    fn finish(&self, session: &Session, op: &Op, path: Option<String>, outcome: Outcome) -> Outcome {
        match path {
            Some(path) => self.recorded(session, op, path, outcome),
            None => self.denied(session, op, outcome),
        }
    }

    fn serve(&self, session: &Session, admission: &Admission, call: Call<'_>, out: &mut ReplyBuf) -> Served {
        if !call.data.is_empty() && !call.op.takes_data() {
            return failed(Failure::Malformed);
        }
        self.engine.serve(&session.engine, admission, call, out)
    }

    fn slotted(
        &self,
        session: &Session,
        admission: &Admission,
        request: &Request,
        call: Call<'_>,
        out: &mut ReplyBuf,
    ) -> Served {
        let (running, before) = match session.slots.begin(request.slot) {
            Begin::Bad => return failed(Failure::BadSlot),
            Begin::Replay(outcome) => {
                // The process that did it may have died before it told others.
                self.engine.await_the_missing(&session.engine, admission, call.waits);
                return Served::Done(outcome.into());
            }
            Begin::Run(running) => (running, None),
            Begin::Interrupted(before, running) => (running, Some(before)),
        };
        let replayed = before.and_then(|before| {
            self.engine.replayed(&session.engine, admission, before, &request.op, call.data)
        });
        let done = match replayed {
            Some(done) => {
                self.engine.await_the_missing(&session.engine, admission, call.waits);
                done
            }
            None => {
                // An operation that comes again after a crash keeps what was found before its first run.
                let noted = match before {
                    Some(_) => Ok(()),
                    None => running.executing(self.engine.before(
                        &session.engine,
                        admission,
                        &request.op,
                        call.data,
                    )),
                };
                if noted.is_err() {
                    return failed(Failure::Errno(EIO));
                }
                match self.serve(session, admission, call, out) {
                    Served::Done(done) => done,
                    // Only locks wait, and they have no slot.
                    Served::Later => return Served::Later,
                }
            }
        };
        self.settle(session, running, done)
    }

    /// Makes claim and answer survive the process, in this order.
    fn settle(&self, session: &Session, running: Running<'_>, done: Done) -> Served {
        let claimed = done.claim.map_or(Ok(()), |change| session.slots.claim(change));
        if claimed.and_then(|()| running.done(&done.outcome)).is_err() {
            // The operation is done, and a replay within this process is answered from memory.
            let text = "the session's file cannot be written: its requests would not survive a restart";
            self.audit.count(Record { text: Some(text.into()), ..session.record("lost") });
        }
        Served::Done(done)
    }

    /// Records a denial; passes the outcome on.
    fn denied(&self, session: &Session, op: &Op, outcome: Outcome) -> Outcome {
        let Outcome::Failed(failure) = &outcome else { return outcome };
        let Some((event, text)) = denial(failure) else { return outcome };
        self.judge_failure(session, failure, || format!("{} {}", op.name(), session.engine.describe(op)));
        self.audit.count(Record {
            op: Some(op.name()),
            path: Some(session.engine.describe(op)).filter(|path| !path.is_empty()),
            outcome: Some(text),
            ..session.record(event)
        });
        outcome
    }

    /// Records an operation under `audit = "strict"`; the outcome is replaced if it cannot be recorded.
    fn recorded(&self, session: &Session, op: &Op, path: String, outcome: Outcome) -> Outcome {
        let (event, text) = match &outcome {
            Outcome::Failed(failure) => {
                self.judge_failure(session, failure, || format!("{} {path}", op.name()));
                denial(failure).unwrap_or_else(|| ("operation", failure_name(failure)))
            }
            _ => ("operation", "ok".to_owned()),
        };
        let record = Record {
            op: Some(op.name()),
            path: Some(path).filter(|path| !path.is_empty()),
            outcome: Some(text),
            ..session.record(event)
        };
        match self.audit.strict(record) {
            Ok(()) => outcome,
            Err(_) => Outcome::Failed(Failure::Errno(EIO)),
        }
    }

    /// The reply of a lock that waits, with its record before it.
    fn strict_later(
        self: &Arc<Self>,
        session: &Arc<Session>,
        op: &Op,
        path: Option<String>,
        reply: LockReply,
    ) -> LockReply {
        let (gateway, session, op) = (self.clone(), session.clone(), op.clone());
        Box::new(move |outcome| reply(gateway.recorded(&session, &op, path.unwrap_or_default(), outcome)))
    }
}

fn failed(failure: Failure) -> Served {
    Served::Done(Outcome::Failed(failure).into())
}

/// What a request takes of the holder's rates.
fn cost(op: &Op, data: &[u8]) -> Cost {
    match op {
        Op::Read { length, .. } => Cost { read: u64::from(*length), write: 0 },
        Op::Readdir { max_bytes, .. } => Cost { read: u64::from(*max_bytes), write: 0 },
        Op::OpenRead { length, .. } => Cost { read: u64::from(*length), write: 0 },
        Op::List { max_bytes, .. } | Op::ReadFiles { max_bytes, .. } => {
            Cost { read: u64::from(*max_bytes), write: 0 }
        }
        Op::CopyRange { length, .. } => Cost { read: *length, write: *length },
        _ => Cost { read: 0, write: data.len() as u64 },
    }
}

/// The event and outcome of an audit line, for a failure that is one of authority or of protocol.
fn denial(failure: &Failure) -> Option<(&'static str, String)> {
    let event = match failure {
        Failure::BadSlot | Failure::Malformed => "violation",
        Failure::Denied { .. }
        | Failure::CrossGrant
        | Failure::Fenced
        | Failure::Stale
        | Failure::BadHandle
        | Failure::Quota
        | Failure::TooMany
        | Failure::Errno(EPERM | EACCES) => "denied",
        Failure::Errno(_) | Failure::Grace => return None,
    };
    Some((event, failure_name(failure)))
}

fn failure_name(failure: &Failure) -> String {
    match failure {
        Failure::Errno(number) => format!("errno {number}"),
        Failure::Denied { missing } => format!("missing {missing}"),
        Failure::Fenced => "fenced".into(),
        Failure::Quota => "quota".into(),
        Failure::CrossGrant => "cross-grant".into(),
        Failure::Stale => "unknown node".into(),
        Failure::BadHandle => "unknown handle".into(),
        Failure::TooMany => "too many".into(),
        Failure::Grace => "grace".into(),
        Failure::BadSlot => "bad slot".into(),
        Failure::Malformed => "malformed".into(),
    }
}
