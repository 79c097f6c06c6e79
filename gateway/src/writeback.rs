//! Large files go to the disk while they are still coming, so that the sync at their end has little left to wait for.
//!
//! Only what is appended to a file is begun early. Overwritten bytes wait for the kernel's own pace or a guest's sync, which brings
//! the undo log to the disk first.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::handles::Open;
use crate::sys;

/// Appended bytes of one open file after which it is begun to write them.
pub(crate) const PORTION: u64 = 8 << 20;
/// Files that wait for the thread. It is a hint: beyond, the kernel writes them when it likes.
const MOST: usize = 64;

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
        if open.appended(count)
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
