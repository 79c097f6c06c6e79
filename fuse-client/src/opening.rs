//! Files that are open here and not at the gateway yet: opening for reading what is under a lease costs no message. The gateway
//! learns of it with the first read, or when the lease or the last name is about to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuser::Errno;
use parking_lot::Mutex;
use strongroom_protocol::attr::{Handle, Node};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use crate::errno::{Ended, errno};
use crate::state::{OpenFile, State, Then, Turn, Wire};
use crate::transport::{Answer, Call, Payload};

/// How a request is sent.
pub type Submit = Arc<dyn Fn(Call) + Send + Sync>;

/// Does `then` once a file is open at the gateway, at once if it is already; with an error if it cannot be opened there.
pub fn ensure(
    submit: &Submit,
    open: &Arc<OpenFile>,
    pid: u32,
    then: impl FnOnce(Result<(), Errno>) + Send + 'static,
) {
    match open.turn(Box::new(then)) {
        Turn::Open(then) => then(Ok(())),
        Turn::Wait => {}
        Turn::First => {
            let op = if open.directory {
                Op::Opendir { node: open.node }
            } else {
                Op::Open { node: open.node, flags: open.flags }
            };
            let (open, again) = (open.clone(), submit.clone());
            let done = Box::new(move |result: Result<Answer<'_>, Ended>| {
                if let Err(ended @ (Ended::Interrupted | Ended::Deadline)) = result {
                    // This concerns the one who asked first; others may wait on.
                    let mut waiting = open.give_back().into_iter();
                    if let Some(first) = waiting.next() {
                        first(Err(errno(ended)));
                    }
                    return go_on(&again, &open, waiting);
                }
                open.settle(opened(result).map(|(wire, _)| wire));
            });
            submit(Call { op, data: Payload::default(), pid, done, keep: None });
        }
    }
}

/// Those who waited for somebody else's opening, which was given up, have it done for themselves.
pub fn go_on(submit: &Submit, open: &Arc<OpenFile>, waiting: impl Iterator<Item = Then>) {
    for then in waiting {
        ensure(submit, open, 0, then);
    }
}

/// The handle in an answer, and the size of what was opened.
pub fn opened(result: Result<Answer<'_>, Ended>) -> Result<(Wire, u64), Errno> {
    match result {
        Ok(Answer { outcome: Outcome::Opened(handle, attr), epoch, .. }) => {
            Ok((Wire { epoch, handle, dead: None }, attr.size))
        }
        Ok(_) => Err(errno(Ended::Protocol)),
        Err(ended) => Err(errno(ended)),
    }
}

/// Does `then` once all that is open is open at the gateway, and the kernel has heard how long each file is: without a connection nobody
/// was told.
pub fn tell_sizes(submit: &Submit, state: &Arc<State>, then: impl FnOnce() + Send + 'static) {
    let (next, known) = (submit.clone(), state.clone());
    ensure_all(submit, state, &|_| true, move || {
        let files = known.handles.lock().files();
        if files.is_empty() {
            return then();
        }
        let left = Arc::new((AtomicUsize::new(files.len()), Mutex::new(Some(then))));
        for node in files {
            let (state, left) = (known.clone(), left.clone());
            let ended = move || {
                if left.0.fetch_sub(1, Ordering::AcqRel) == 1
                    && let Some(then) = left.1.lock().take()
                {
                    then();
                }
            };
            let handle = state.handles.lock().of_node(node, OpenFile::at_gateway).map(Handle);
            let done = Box::new(move |result: Result<Answer<'_>, Ended>| match result {
                Ok(Answer { outcome: Outcome::Attr(attr), .. }) => state.tell_size(node, attr.size, ended),
                // It was closed meanwhile, or is gone.
                _ => ended(),
            });
            next(Call {
                op: Op::Getattr { node, handle },
                data: Payload::default(),
                pid: 0,
                done,
                keep: None,
            });
        }
    });
}

/// Does `then` once all that is open of these nodes is open at the gateway, or cannot be.
pub fn ensure_all(
    submit: &Submit,
    state: &State,
    which: &dyn Fn(Node) -> bool,
    then: impl FnOnce() + Send + 'static,
) {
    let lazy = state.handles.lock().lazy(which);
    if lazy.is_empty() {
        return then();
    }
    let left = AtomicUsize::new(lazy.len());
    let last = Arc::new((left, Mutex::new(Some(then))));
    for open in lazy {
        let last = last.clone();
        ensure(submit, &open, 0, move |_| {
            if last.0.fetch_sub(1, Ordering::AcqRel) == 1
                && let Some(then) = last.1.lock().take()
            {
                then();
            }
        });
    }
}
