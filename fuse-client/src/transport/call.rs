//! What the file system hands to the transport: a request in the client's own terms, and what to do with the answer.

use std::sync::Arc;

use parking_lot::Mutex;
use strongroom_protocol::lease::Note;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use crate::errno::Ended;
use crate::lease::Underway;

/// An answer; its data are borrowed from the connection's buffer.
pub struct Answer<'a> {
    /// The outcome; a failure only for a name that does not exist, where that may be kept.
    pub outcome: Outcome,
    /// The frame's data.
    pub data: &'a [u8],
    /// To which count of gateway processes and sessions a handle in the outcome belongs.
    pub epoch: u64,
    /// What it says about leases.
    pub note: Note,
    /// To which life of the lease table the connection belongs by which it came.
    pub life: u64,
}

/// What is done with the answer, once, on whatever thread has it.
pub type Done = Box<dyn FnOnce(Result<Answer<'_>, Ended>) + Send>;

/// A request.
pub struct Call {
    /// What is asked. Nodes and handles are the client's own; the transport translates them whenever it sends.
    pub op: Op,
    /// The frame's data; kept until the answer, in case they must be sent again.
    pub data: Payload,
    /// The thread that waits, as the client's process namespace numbers it; 0: none.
    pub pid: u32,
    /// What is done with the answer.
    pub done: Done,
    /// Kept until the gateway has answered or the request is lost, even if whoever asked has been answered before.
    pub keep: Option<Arc<Underway>>,
}

/// Carries requests to the gateway.
pub trait Carrier: Send + Sync + 'static {
    /// Sends a request now or as soon as possible, and returns at once; `done` is called exactly once.
    fn submit(&self, call: Call);

    /// Whether requests are carried at once.
    fn is_up(&self) -> bool;

    /// Why no request would be carried at present, if so.
    fn barred(&self) -> Option<Ended>;
}

/// Data of a request, shared between the thread that sends them and the table that may send them again.
#[derive(Clone, Default)]
pub struct Payload(Option<Arc<Buffer>>);

struct Buffer(Vec<u8>);

/// Large buffers are used again: fresh ones cost page faults on every write.
static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
const POOL_MAX: usize = 32;
const POOL_FROM: usize = 32 * 1024;

impl Payload {
    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Payload {
        if bytes.is_empty() {
            return Payload(None);
        }
        let mut buffer =
            if bytes.len() >= POOL_FROM { POOL.lock().pop().unwrap_or_default() } else { Vec::new() };
        buffer.clear();
        buffer.extend_from_slice(bytes);
        Payload(Some(Arc::new(Buffer(buffer))))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |buffer| &buffer.0)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        if bytes.is_empty() { Payload(None) } else { Payload(Some(Arc::new(Buffer(bytes)))) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() >= POOL_FROM {
            let mut pool = POOL.lock();
            if pool.len() < POOL_MAX {
                pool.push(std::mem::take(&mut self.0));
            }
        }
    }
}
