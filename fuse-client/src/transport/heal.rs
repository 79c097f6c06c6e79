//! Asking again: the gateway does not know a node or a handle any more (it restarted, or its table was full), or it asks for
//! patience. Runs on reader threads, so nothing here sends or waits; requests are put in line, each with the next step as
//! its `done`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use strongroom_protocol::attr::{Handle, Node};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Failure, Outcome};

use super::call::{Answer, Call, Payload};
use super::pending::{Pending, Place};
use super::{Nudge, Shared, finish, translate};
use crate::errno::Ended;
use crate::state::{OpenFile, Wire};

/// How often a request is asked again before its failure is believed.
const MAX_TRIES: u8 = 4;
/// How long to wait while the gateway collects locks after a restart.
const GRACE_PAUSE: Duration = Duration::from_millis(200);
/// How long to wait for the event that explains a fence; usually a fraction of a millisecond passes.
const FENCE_PAUSE: Duration = Duration::from_millis(100);

impl Shared {
    /// A request failed: asks again where that is the answer to it.
    pub(super) fn failed(self: &Arc<Self>, mut pending: Pending, failure: Failure) {
        if pending.direct {
            return self.give_up(pending, Err(failure.into()));
        }
        match failure {
            Failure::Grace => {
                pending.place = Place::Later(Instant::now() + GRACE_PAUSE);
                self.enqueue(pending);
            }
            Failure::BadSlot => {
                self.settings
                    .journal
                    .note("the gateway lost count of the requests: beginning another session");
                self.give_up(pending, Err(Ended::Lost));
                // The keeper is gone only when the mount ends.
                let _ = self.nudge.send(Nudge::Broken);
            }
            // It was not carried out, and will be under the contract that took the other's place.
            Failure::Fenced if self.core.lock().superseded => {
                pending.sent = false;
                self.enqueue(pending);
            }
            // The answer has overtaken the event that says whether another contract takes this one's place; if the contract is
            // void, the event ends this too.
            Failure::Fenced if pending.tries < MAX_TRIES => {
                pending.tries += 1;
                pending.sent = false;
                pending.place = Place::Later(Instant::now() + FENCE_PAUSE);
                self.enqueue(pending);
            }
            // It is closed, one way or the other.
            Failure::BadHandle if matches!(pending.op, Op::Release { .. }) => {
                let note = strongroom_protocol::lease::Note::default();
                self.give_up(
                    pending,
                    Ok(Answer { outcome: Outcome::Done, data: &[], epoch: 0, note, life: 0 }),
                );
            }
            Failure::Stale | Failure::BadHandle if pending.tries < MAX_TRIES => {
                pending.tries += 1;
                let nodes = if failure == Failure::Stale { translate::nodes(&pending.op) } else { vec![] };
                // What is asked through a handle may be stale because its file was moved out of the grant.
                if failure == Failure::Stale && nodes.is_empty() {
                    return self.give_up(pending, Err(failure.into()));
                }
                let handles =
                    if failure == Failure::BadHandle { translate::handles(&pending.op) } else { vec![] };
                self.mend(pending, nodes, handles);
            }
            _ => self.give_up(pending, Err(failure.into())),
        }
    }

    /// Ends a request whose slot may still be its own.
    fn give_up(&self, mut pending: Pending, result: Result<Answer<'_>, Ended>) {
        self.core.lock().give_back(&mut pending);
        finish(pending, result);
    }

    /// Finds nodes and opens handles again, one after the other, then asks again.
    fn mend(self: &Arc<Self>, pending: Pending, mut nodes: Vec<Node>, mut handles: Vec<Handle>) {
        if let Some(node) = nodes.pop() {
            self.find_again(node, pending, move |shared, pending| shared.mend(pending, nodes, handles));
        } else if let Some(handle) = handles.pop() {
            let file = self.state.handles.lock().get(handle.0);
            match file {
                Some(file) => self.open_again(handle, file, pending, handles),
                None => self.give_up(pending, Err(Failure::BadHandle.into())),
            }
        } else {
            self.enqueue(pending);
        }
    }

    fn find_again(
        self: &Arc<Self>,
        node: Node,
        pending: Pending,
        then: impl FnOnce(&Arc<Shared>, Pending) + Send + 'static,
    ) {
        let Ok(path) = self.state.path(node) else {
            return self.give_up(pending, Err(Failure::Stale.into()));
        };
        let (shared, ending) = (self.clone(), self.clone());
        let op = Op::Resolve { grant: node.grant, ino: node.ino };
        let mut step = Pending::new(Call {
            op,
            data: path.into(),
            pid: pending.pid,
            done: Box::new(move |result| match result {
                Ok(_) => then(&shared, pending),
                Err(ended) => {
                    let ended = not_found(ended);
                    if ended == Ended::Failed(Failure::Stale) {
                        ending.state.lost_track(node);
                    }
                    ending.give_up(pending, Err(ended));
                }
            }),
            keep: None,
        });
        step.tries = MAX_TRIES;
        self.enqueue(step);
    }

    fn open_again(
        self: &Arc<Self>,
        handle: Handle,
        file: Arc<OpenFile>,
        pending: Pending,
        rest: Vec<Handle>,
    ) {
        self.find_again(file.node, pending, move |shared, pending| {
            let again = shared.clone();
            let op = reopen(&file, file.created);
            let mut step = Pending::new(Call {
                op,
                data: Payload::default(),
                pid: pending.pid,
                done: Box::new(move |result| match result {
                    Ok(Answer { outcome: Outcome::Opened(wire, _), epoch, .. }) => {
                        *file.wire.lock() = Wire { epoch, handle: wire, dead: None };
                        again.mend(pending, vec![], rest);
                    }
                    Ok(_) => again.give_up(pending, Err(Ended::Protocol)),
                    Err(ended) => {
                        again
                            .settings
                            .journal
                            .note(&format!("an open file could not be opened again: {ended:?}"));
                        file.wire.lock().dead = Some(crate::errno::errno(ended));
                        again.give_up(pending, Err(ended));
                    }
                }),
                keep: None,
            });
            step.tries = MAX_TRIES;
            let _ = handle;
            shared.enqueue(step);
        });
    }
}

/// The request that opens a file again.
pub(super) fn reopen(file: &OpenFile, created: bool) -> Op {
    Op::Reopen { node: file.node, flags: file.flags, created, directory: file.directory }
}

/// A path that leads nowhere any more means that the node is gone, which the kernel knows as ESTALE (and looks its path up
/// again).
fn not_found(ended: Ended) -> Ended {
    match ended {
        Ended::Failed(Failure::Errno(number))
            if [libc::ENOENT, libc::ENOTDIR].contains(&i32::from(number)) =>
        {
            Ended::Failed(Failure::Stale)
        }
        other => other,
    }
}
