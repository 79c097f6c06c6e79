//! Telling the gateway of locks for which the client has answered itself, before anybody else is answered: at a recall, before
//! leases are taken again, and when they have not been looked at for a while.

use std::sync::Arc;
use std::vec;

use fuser::Errno;
use strongroom_protocol::attr::{Handle, Lock, LockKind, Node};
use strongroom_protocol::op::Op;

use crate::errno::Ended;
use crate::opening::Submit;
use crate::state::{HeldLock, OpenFile, State, Telling, Then};
use crate::transport::{Answer, Call, Payload};

/// Asked for plainly, this ends that the client answers for the locks of a file: nobody has it.
const NO_LOCK: Lock =
    Lock { owner: u64::MAX, pid: 0, start: u64::MAX, end: u64::MAX, kind: LockKind::Unlock };

struct Teller {
    submit: Submit,
    state: Arc<State>,
    node: Node,
    /// Nothing that comes after it tells the gateway that this is all.
    last: bool,
}

/// Does `then` once the gateway knows all locks of a file and answers for them. `last`: tells it so; what `then` asks for does
/// otherwise.
pub fn tell(submit: &Submit, state: &Arc<State>, (node, last): (Node, bool), pid: u32, then: Then) {
    let steps = state.locks.lock().tell(node, pid, then);
    match steps {
        Telling::Nothing(then) => then(Ok(())),
        Telling::Joined => {}
        Telling::Begin(steps) => {
            let teller = Teller { submit: submit.clone(), state: state.clone(), node, last };
            teller.go_on(steps.into_iter());
        }
    }
}

/// The same for several files, one after the other.
pub fn tell_all(
    submit: &Submit,
    state: &Arc<State>,
    mut nodes: Vec<Node>,
    last: bool,
    then: impl FnOnce() + Send + 'static,
) {
    let Some(node) = nodes.pop() else { return then() };
    let (next, states) = (submit.clone(), state.clone());
    let go_on = Box::new(move |_| tell_all(&next, &states, nodes, last, then));
    tell(submit, state, (node, last), 0, go_on);
}

impl Teller {
    fn go_on(self, mut steps: vec::IntoIter<HeldLock>) {
        while let Some(step) = steps.next() {
            // With the last handle its locks are gone.
            let Some(file) = self.handle(step) else { continue };
            let op = Op::SetLock { handle: Handle(file), lock: step.lock, wait: false, reclaim: true };
            return self.submit.clone()(self.call(op, move |teller, result| match result {
                Ok(()) => teller.go_on(steps),
                Err(Ended::Failed(_)) => {
                    teller.lose(step);
                    teller.go_on(steps);
                }
                // The session is over, and all locks with it; or it is being restored, with all locks.
                Err(_) => teller.end(),
            }));
        }
        match self.handle(HeldLock { file: 0, lock: NO_LOCK }).filter(|_| self.last) {
            Some(file) => {
                let op = Op::SetLock { handle: Handle(file), lock: NO_LOCK, wait: false, reclaim: false };
                self.submit.clone()(self.call(op, |teller, _| teller.end()));
            }
            None => self.end(),
        }
    }

    fn call(self, op: Op, then: impl FnOnce(Teller, Result<(), Ended>) + Send + 'static) -> Call {
        let done = Box::new(move |result: Result<Answer<'_>, Ended>| then(self, result.map(drop)));
        Call { op, data: Payload::default(), pid: 0, done, keep: None }
    }

    /// The open file through which a lock was taken or, if that is closed, any that is open at the gateway. The one that is being
    /// closed gives locks up if there is no other.
    fn handle(&self, HeldLock { file, lock }: HeldLock) -> Option<u64> {
        let handles = self.state.handles.lock();
        let (there, closing) = match handles.get(file).filter(|open| open.at_gateway()) {
            Some(open) if open.closing() => (None, Some(file).filter(|_| lock.kind == LockKind::Unlock)),
            Some(_) => (Some(file), None),
            None => (None, None),
        };
        there.or_else(|| handles.of_node(self.node, OpenFile::at_gateway)).or(closing)
    }

    /// The application was told that it has a lock, and the gateway will not have it: what is open fails from now on.
    fn lose(&self, step: HeldLock) {
        if step.lock.kind == LockKind::Unlock {
            return;
        }
        self.state.locks.lock().drop_through(step.file);
        if let Some(open) = self.state.handles.lock().get(step.file) {
            open.wire.lock().dead = Some(Errno::EIO);
        }
    }

    fn end(self) {
        let waiting = self.state.locks.lock().told(self.node);
        waiting.into_iter().for_each(|then| then(Ok(())));
    }
}
