//! A bounded set of threads that run whatever must not wait for others.
//!
//! A thread that has finished waits a while for more to do, the last one in front, so that its buffers and stack are warm.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strongroom_channel::Frame;

use crate::engine::ReplyBuf;

/// How long an idle thread waits for something to do.
const LINGER: Duration = Duration::from_secs(5);
/// Virtual; what is not touched costs nothing.
const STACK: usize = 1 << 20;

/// The memory that a thread brings along; reused from request to request.
#[derive(Default)]
pub struct Buffers {
    /// The request.
    pub frame: Frame,
    /// The reply's data.
    pub out: ReplyBuf,
    /// The reply's header.
    pub header: Vec<u8>,
}

impl Buffers {
    /// Gives memory back that a quiet connection does not need.
    pub fn shrink(&mut self) {
        *self = Buffers::default();
    }
}

/// Something to do.
pub type Job = Box<dyn FnOnce(&mut Buffers) + Send>;

#[derive(Default)]
struct State {
    idle: Vec<Arc<Seat>>,
    running: usize,
}

#[derive(Default)]
struct Seat {
    job: Mutex<Option<Job>>,
    called: Condvar,
}

/// The set of threads.
#[derive(Clone)]
pub struct Threads {
    state: Arc<Mutex<State>>,
    most: usize,
}

impl Threads {
    /// At most this many at a time.
    pub fn new(most: usize) -> Threads {
        Threads { state: Arc::default(), most }
    }

    /// Runs a job on an idle or new thread.
    ///
    /// # Errors
    /// Gives the job back if there are too many already, or the system gives no more.
    pub fn run(&self, job: Job) -> Result<(), Job> {
        let mut state = self.state.lock();
        if let Some(seat) = state.idle.pop() {
            drop(state);
            *seat.job.lock() = Some(job);
            seat.called.notify_one();
            return Ok(());
        }
        if state.running >= self.most {
            return Err(job);
        }
        state.running += 1;
        drop(state);
        let seat = Arc::new(Seat { job: Mutex::new(Some(job)), called: Condvar::new() });
        let (own, threads) = (seat.clone(), self.clone());
        let spawned = std::thread::Builder::new()
            .name("worker".into())
            .stack_size(STACK)
            .spawn(move || threads.work(&own));
        match spawned {
            Ok(_) => Ok(()),
            Err(_) => {
                self.state.lock().running -= 1;
                let job = seat.job.lock().take();
                job.map_or(Ok(()), Err)
            }
        }
    }

    /// Threads at present.
    pub fn count(&self) -> usize {
        self.state.lock().running
    }

    fn work(&self, seat: &Arc<Seat>) {
        let mut buffers = Buffers::default();
        while let Some(job) = self.next(seat) {
            // A job that panics has broken its own connection, whose guards have closed it; the thread goes on.
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&mut buffers)));
            if ran.is_err() {
                buffers.shrink();
            }
            self.state.lock().idle.push(seat.clone());
        }
    }

    fn next(&self, seat: &Arc<Seat>) -> Option<Job> {
        let mut job = seat.job.lock();
        if job.is_none() {
            seat.called.wait_for(&mut job, LINGER);
        }
        if job.is_some() {
            return job.take();
        }
        drop(job);
        let mut state = self.state.lock();
        match state.idle.iter().position(|other| Arc::ptr_eq(other, seat)) {
            Some(place) => {
                state.idle.remove(place);
                state.running -= 1;
                None
            }
            // Called at the last moment: the job is there, or is about to be.
            None => {
                drop(state);
                let mut job = seat.job.lock();
                while job.is_none() {
                    seat.called.wait(&mut job);
                }
                job.take()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_and_the_bound_holds() {
        let threads = Threads::new(2);
        let (done, finished) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..2 {
            let (done, held) = (done.clone(), held.clone());
            let job: Job = Box::new(move |_| {
                let _ = held.lock().recv();
                done.send(()).unwrap();
            });
            assert!(threads.run(job).is_ok());
        }
        assert!(threads.run(Box::new(|_| {})).is_err());
        drop(hold);
        finished.recv().unwrap();
        finished.recv().unwrap();
        for n in 0..1000 {
            let done = done.clone();
            let mut job: Job = Box::new(move |_| done.send(()).unwrap());
            while let Err(back) = threads.run(job) {
                job = back;
                std::thread::yield_now();
            }
            if n % 7 == 0 {
                let _ = threads.run(Box::new(|_| panic!("a job that fails")));
            }
            finished.recv().unwrap();
        }
        assert!(threads.count() <= 2);
    }
}
