//! Large files go to the disk while they are still coming, so that the sync at their end has little left to wait for.
//!
//! Only what is appended to a file is begun early. Overwritten bytes wait for the kernel's own pace or a guest's sync, which brings
//! the undo log to the disk first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::handles::Open;
use crate::sys;

/// Appended bytes of one open file after which it is begun to write them.
const PORTION: u64 = 8 << 20;
/// Files that wait for the thread. It is a hint: beyond, the kernel writes them when it likes.
const MOST: usize = 64;

/// Counts what is appended to one open file.
#[derive(Debug, Default)]
pub(crate) struct Portions(AtomicU64);

impl Portions {
    /// Whether another portion is complete.
    fn add(&self, count: u64) -> bool {
        let before = self.0.fetch_add(count, Ordering::Relaxed);
        before / PORTION != before.wrapping_add(count) / PORTION
    }
}

/// Whom to tell of what was appended.
pub(crate) struct Writeback {
    files: Option<SyncSender<Arc<Open>>>,
}

impl Writeback {
    /// Starts the thread; it ends with this value. Without a thread nothing is begun early.
    pub(crate) fn start() -> Writeback {
        let (files, told) = sync_channel(MOST);
        let thread = std::thread::Builder::new().name("writeback".into()).spawn(move || run(&told));
        Writeback { files: thread.is_ok().then_some(files) }
    }

    /// Bytes were appended through an open file.
    pub(crate) fn appended(&self, open: &Arc<Open>, count: u64) {
        if open.appended.add(count)
            && let Some(files) = &self.files
        {
            // Full: see `MOST`.
            let _ = files.try_send(Arc::clone(open));
        }
    }
}

fn run(told: &Receiver<Arc<Open>>) {
    while let Ok(open) = told.recv() {
        if let Ok(file) = open.file() {
            // A failure is remembered by the kernel and told to the next sync.
            let _ = sys::begin_writeback(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_portion_is_told_once() {
        let portions = Portions::default();
        let mib = 1 << 20;
        let told: Vec<u64> = (1..=24).filter(|_| portions.add(mib)).collect();
        assert_eq!(told, [8, 16, 24]);
        assert!(!portions.add(PORTION - 1) && portions.add(1));
        assert!(portions.add(3 * PORTION));
    }

    #[test]
    fn the_pages_of_a_file_can_be_begun_and_its_thread_ends() {
        let file = std::os::fd::OwnedFd::from(tempfile::tempfile().unwrap());
        rustix::io::pwrite(&file, &[1; 4096], 0).unwrap();
        sys::begin_writeback(&file).unwrap();
        let Writeback { files } = Writeback::start();
        let files = files.expect("a thread");
        let (tell, told) = sync_channel::<Arc<Open>>(1);
        let thread = std::thread::spawn(move || run(&told));
        drop((tell, files));
        thread.join().unwrap();
    }
}
