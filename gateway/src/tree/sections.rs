//! Knowing when everything that began before now has ended, without slowing down what begins.
//!
//! Each operation runs inside a section. A change that other operations must notice (a file moved out of their grant, a
//! subtree that is counted from now on) is made visible first; then [`Sections::settle`] waits until every section that
//! may not have seen it has ended. The model is SRCU (McKenney, "Sleepable RCU", 2006).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

const SHARDS: usize = 16;

/// On a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// The running sections.
#[derive(Default)]
pub(crate) struct Sections {
    phase: AtomicUsize,
    running: [[Padded; SHARDS]; 2],
    settling: Mutex<()>,
}

/// A running section.
pub(crate) struct Section<'a> {
    counter: &'a AtomicU64,
}

fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    MINE.with(|mine| *mine)
}

impl Sections {
    /// Begins a section.
    pub(crate) fn enter(&self) -> Section<'_> {
        let phase = self.phase.load(Ordering::SeqCst) & 1;
        let counter = &self.running[phase][shard()].0;
        counter.fetch_add(1, Ordering::SeqCst);
        Section { counter }
    }

    /// Waits until every section that began before the call has ended. Must not be called inside one.
    pub(crate) fn settle(&self) {
        let _one = self.settling.lock();
        // Twice: a section may have read the phase before a former change of it and be counted only now.
        for _ in 0..2 {
            let old = self.phase.fetch_add(1, Ordering::SeqCst) & 1;
            for Padded(counter) in &self.running[old] {
                let mut patience = 0_u32;
                while counter.load(Ordering::SeqCst) != 0 {
                    patience += 1;
                    if patience < 64 {
                        std::thread::yield_now();
                    } else {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            }
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn settle_waits_for_sections_that_began_before() {
        let sections = Arc::new(Sections::default());
        let ended = Arc::new(AtomicBool::new(false));
        let (inside, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let worker = {
            let (sections, ended) = (Arc::clone(&sections), Arc::clone(&ended));
            std::thread::spawn(move || {
                let section = sections.enter();
                inside.0.send(()).unwrap();
                go.1.recv().unwrap();
                ended.store(true, Ordering::SeqCst);
                drop(section);
            })
        };
        inside.1.recv().unwrap();
        let settler = {
            let (sections, ended) = (Arc::clone(&sections), Arc::clone(&ended));
            std::thread::spawn(move || {
                sections.settle();
                ended.load(Ordering::SeqCst)
            })
        };
        go.0.send(()).unwrap();
        assert!(settler.join().unwrap());
        worker.join().unwrap();
        sections.settle();
    }
}
