//! Notices to the kernel: what it has cached and may not use any more (fuse(4), `FUSE_NOTIFY_*` of `linux/fuse.h`).
//!
//! Written to the device directly: `fuser` 0.18 has no notice that ends all entries at once.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::asking::{Asker, Called};
use crate::sys;

/// `enum fuse_notify_code`.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const STORE: i32 = 4;
/// `FUSE_EXPIRE_ONLY` (Linux 6.2).
const EXPIRE_ONLY: u32 = 1;
/// Linux 6.16.
const INC_EPOCH: i32 = 8;
/// `struct fuse_out_header`.
const HEADER: usize = 16;

/// The mount as its server can speak to it.
pub struct Kernel {
    device: OwnedFd,
    epochs: bool,
    /// Has the kernel ask; none if it is not known where the mount is.
    asker: Option<Asker>,
    /// For what waits for directories.
    names: Arc<Workers>,
    /// For what waits for pages.
    pages: Arc<Workers>,
    /// For what waits for those who wait, for a limited time.
    waiters: Arc<Workers>,
}

impl Kernel {
    /// Takes a descriptor of the device that serves the mount, and finds out what the kernel understands.
    pub fn new(device: OwnedFd, asker: Option<Asker>) -> Kernel {
        let mut kernel = Kernel {
            device,
            epochs: false,
            asker,
            names: Arc::default(),
            pages: Arc::default(),
            waiters: Arc::default(),
        };
        kernel.epochs = kernel.notify(INC_EPOCH, &[]);
        kernel
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> bool {
        let header = header(code, parts.iter().map(|part| part.len()).sum());
        let mut slices = vec![IoSlice::new(&header)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        rustix::io::writev(&self.device, &slices).is_ok()
    }

    /// Whether all entries can be ended at once, so that they may be given out at all.
    pub fn epochs(&self) -> bool {
        self.epochs
    }

    /// Every name is looked up again before it is used. Never blocks.
    pub fn forget_entries(&self) {
        if self.epochs {
            self.notify(INC_EPOCH, &[]);
        }
    }

    /// The attributes of an inode are asked for again; replies under way are not believed. Never blocks. Returns whether the
    /// kernel knows the inode.
    pub fn forget_attr(&self, number: u64) -> bool {
        self.inval_inode(number, -1, 0)
    }

    /// The pages of an inode are read again. Waits for those that are being read or written, so that it must not run on a
    /// thread that answers requests.
    pub fn forget_pages(&self, number: u64) {
        self.inval_inode(number, 0, 0);
    }

    /// The kernel has to believe that a file is at least so long. It does so by itself only where it asks for attributes, which it does not
    /// for mappings, for sendfile(2) and for copy_file_range(2). Waits for the last page if that is being read or written, after it
    /// has believed it; must not run on a thread that answers requests.
    ///
    /// There is no notice for that alone, but one that stores bytes in the page cache (`fuse_notify_store` of the kernel), which first makes the
    /// file long enough for them. No byte is stored, as nobody here can say which one would be right by then.
    pub fn lengthen(&self, number: u64, size: u64) {
        let Some(last) = size.checked_sub(1) else { return };
        // `struct fuse_notify_store_out`: of which inode, where, and how many bytes follow.
        let store: [&[u8]; 4] =
            [&number.to_ne_bytes(), &last.to_ne_bytes(), &1_u32.to_ne_bytes(), &0_u32.to_ne_bytes()];
        let store = store.concat();
        let notice = [&header(STORE, store.len() + 1), store.as_slice()].concat();
        sys::write_unreadable(&self.device, &notice);
    }

    /// The same, and once more after a time in which the kernel may forget it again; but not when it is not `in_time` any more: the file may be
    /// shorter by then.
    pub fn lengthen_for(&self, number: u64, size: u64, time: Duration, in_time: &AtomicBool) {
        if in_time.load(Ordering::Relaxed) {
            self.lengthen(number, size);
        }
        if !time.is_zero() {
            std::thread::sleep(time);
            if in_time.load(Ordering::Relaxed) {
                self.lengthen(number, size);
            }
        }
    }

    /// Does `then` once the kernel has asked how long a file is, which is how it hears that it is shorter; at once if it cannot be made to.
    /// `time`: as for [`Kernel::lengthen_for`].
    pub fn ask_size(&self, file: Called, time: Duration, then: impl FnOnce() + Send + 'static) {
        match &self.asker {
            Some(asker) => asker.ask(file, time, then),
            None => then(),
        }
    }

    fn inval_inode(&self, number: u64, offset: i64, length: i64) -> bool {
        self.notify(INVAL_INODE, &[&number.to_ne_bytes(), &offset.to_ne_bytes(), &length.to_ne_bytes()])
    }

    /// A name is looked up again. Waits for changes of the directory by this guest that are under way.
    ///
    /// The kernel takes it out of its tree at once: if it is a directory's that somebody is in, getcwd(2) fails until somebody looks
    /// the path up.
    pub fn forget_entry(&self, parent: u64, name: &[u8]) {
        self.inval_entry(parent, name, 0);
    }

    /// The same, but the name stays where it is until looking it up shows that it stands for something else. Must not be used if the
    /// answer to a looking up may not have reached the kernel's tree yet: the kernel would believe it.
    pub fn doubt_entry(&self, parent: u64, name: &[u8]) {
        self.inval_entry(parent, name, EXPIRE_ONLY);
    }

    fn inval_entry(&self, parent: u64, name: &[u8], flags: u32) {
        let length = (name.len() as u32).to_ne_bytes();
        self.notify(INVAL_ENTRY, &[&parent.to_ne_bytes(), &length, &flags.to_ne_bytes(), name, &[0]]);
    }

    /// Does something that may have to wait for a directory that this guest is changing or listing, on another thread. Those who
    /// have the directory wait for answers of this program, so that no answer may wait for this.
    pub fn aside_for_names(&self, work: impl FnOnce() + Send + 'static) {
        self.names.clone().take(Box::new(work));
    }

    /// Does something on another thread that waits for those who wait, for a limited time.
    pub fn aside_to_wait(&self, work: impl FnOnce() + Send + 'static) {
        self.waiters.clone().take(Box::new(work));
    }

    /// Does something that may have to wait for pages that are being read or written, on another thread. May answer.
    pub fn aside(&self, work: impl FnOnce() + Send + 'static) {
        self.pages.clone().take(Box::new(work));
    }
}

/// What a notice begins with (`struct fuse_out_header`, of no request). `length`: of what follows, at most a name and 40 bytes.
fn header(code: i32, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&((HEADER + length) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&code.to_ne_bytes());
    header
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads for what may have to wait for locks of the kernel. As many as wait at the same time, up to a bound.
#[derive(Default)]
struct Workers {
    state: Mutex<Line>,
    more: Condvar,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Work>,
    idle: usize,
    threads: usize,
}

const MOST_WORKERS: usize = 32;
/// A worker that has had nothing to do for so long ends.
const LINGER: Duration = Duration::from_secs(30);

impl Workers {
    fn take(self: Arc<Self>, work: Work) {
        let mut line = self.state.lock();
        line.waiting.push_back(work);
        if line.idle >= line.waiting.len() || line.threads >= MOST_WORKERS {
            drop(line);
            self.more.notify_one();
            return;
        }
        line.threads += 1;
        drop(line);
        let workers = self.clone();
        let started = std::thread::Builder::new().name("kernel".into()).spawn(move || workers.run());
        if started.is_err() {
            self.state.lock().threads -= 1;
            // Better late than never: whoever is there already does it.
            self.more.notify_one();
        }
    }

    fn run(&self) {
        let mut line = self.state.lock();
        loop {
            if let Some(work) = line.waiting.pop_front() {
                drop(line);
                work();
                line = self.state.lock();
                continue;
            }
            line.idle += 1;
            let timed_out = self.more.wait_for(&mut line, LINGER).timed_out();
            line.idle -= 1;
            if timed_out && line.waiting.is_empty() {
                line.threads -= 1;
                return;
            }
        }
    }
}

/// Counts work that is waited for, up to a limit.
#[derive(Clone)]
pub struct Latch(Arc<(Mutex<usize>, Condvar)>);

impl Latch {
    /// A latch that opens after so many [`Latch::done`].
    pub fn new(count: usize) -> Latch {
        Latch(Arc::new((Mutex::new(count), Condvar::new())))
    }

    /// One piece is done.
    pub fn done(&self) {
        let mut left = self.0.0.lock();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.0.1.notify_all();
        }
    }

    /// Waits until all is done; returns whether it was, within the limit.
    pub fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut left = self.0.0.lock();
        while *left > 0 {
            if self.0.1.wait_until(&mut left, until).timed_out() {
                return *left == 0;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_waits_does_not_keep_others_from_working() {
        let workers = Arc::new(Workers::default());
        let (hold, both) = (Latch::new(1), Latch::new(2));
        for _ in 0..2 {
            let (hold, both) = (hold.clone(), both.clone());
            workers.clone().take(Box::new(move || {
                hold.wait(Duration::from_secs(60));
                both.done();
            }));
        }
        let third = Latch::new(1);
        let tell = third.clone();
        workers.clone().take(Box::new(move || tell.done()));
        assert!(third.wait(Duration::from_secs(60)));
        assert!(!both.wait(Duration::ZERO));
        hold.done();
        assert!(both.wait(Duration::from_secs(60)));
    }

    #[test]
    fn no_answer_waits_for_directories() {
        use std::io::{Read, Write};
        use std::os::unix::net::UnixStream;

        // A device that takes nothing more, as the kernel's does while the directory of a name is locked.
        let (mut kernel_end, device) = UnixStream::pair().unwrap();
        let kernel = Arc::new(Kernel::new(device.try_clone().unwrap().into(), None));
        device.set_nonblocking(true).unwrap();
        while (&device).write(&[0; 4096]).is_ok() {}
        device.set_nonblocking(false).unwrap();
        let names = Latch::new(2 * MOST_WORKERS);
        for _ in 0..2 * MOST_WORKERS {
            let (on, names) = (kernel.clone(), names.clone());
            kernel.aside_for_names(move || {
                on.forget_entry(1, b"name");
                names.done();
            });
        }
        let answered = Latch::new(1);
        let answer = answered.clone();
        kernel.aside(move || answer.done());
        assert!(answered.wait(Duration::from_secs(60)));
        assert!(!names.wait(Duration::ZERO));
        std::thread::spawn(move || while kernel_end.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {});
        assert!(names.wait(Duration::from_secs(60)));
    }
}
