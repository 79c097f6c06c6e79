//! What an undo acts by: an administrator's word, in the place of a contract's permit. Whoever holds leases must let go before
//! something is changed, as for any guest's change.

use std::cell::RefCell;
use std::sync::Arc;

use rustix::io::Errno;

use super::runs::RunId;
use super::{Actor, Capture, OWN_NAME, Undo, Writer};
use crate::engine::Shared;
use crate::gate::Turnstile;
use crate::gate::refusal::{Checked, Refusal};
use crate::leases::{Change, Deal, Deed, Lessee, LesseeParts, Mode};
use crate::quota::Limit;
use crate::store::Reach;
use crate::tree::{Node, Tree};

/// How often a step is tried that met somebody else's change under way.
const ATTEMPTS: usize = 1024;

/// What an undo acts by: no permit of a contract, but an administrator's word.
pub(super) struct Authority<'a> {
    engine: &'a Shared,
    pub(super) undo: &'a Undo,
    pub(super) tree: &'a Arc<Tree>,
    pub(super) actor: Actor,
    window: u64,
    /// Holds no leases itself; whoever holds some must let go before something is changed.
    lessee: Arc<Lessee>,
    turnstile: Arc<Turnstile>,
    /// That of the change under way.
    deal: RefCell<Deal>,
}

impl Reach for Authority<'_> {
    fn tree(&self) -> &Arc<Tree> {
        self.tree
    }

    fn undo(&self) -> Capture<'_> {
        Capture::new(Some(self.undo), Some(&self.actor), self.tree, self.window)
    }

    /// Nobody's quota keeps what was there from coming back.
    fn watch(&self) -> Option<&crate::detect::Watch> {
        None
    }

    fn limits(&self) -> Checked<Arc<[Limit]>> {
        Ok(Arc::new([]))
    }

    fn changing(&self, changes: &[(&Arc<Node>, Change<'_>)]) -> Checked<()> {
        let deal = self.deal.borrow();
        deal.in_time(&self.engine.grace, Deed::Change)?;
        deal.changing(0, changes)
    }

    fn moving(&self, ends: (&Arc<Node>, &Arc<Node>), crosses: bool, moved: &[&Arc<Node>]) -> Checked<()> {
        crate::gate::lease::moving(self.engine, &self.deal.borrow(), ends, crosses, moved)
    }

    fn changed_names(&self, _: &Arc<Node>) {}

    fn moved_names(&self, _: &Arc<Node>, _: &Arc<Node>) {}
}

impl<'a> Authority<'a> {
    pub(super) fn new(engine: &'a Shared, undo: &'a Undo, run: RunId) -> Authority<'a> {
        let writer = Writer { application: OWN_NAME.to_owned(), ids: vec![*run.as_bytes()], generation: 0 };
        let lessee = Lessee::new(LesseeParts {
            number: engine.next_session(),
            grants: Arc::new([]),
            most: 1,
            recall: engine.options.leases.recall,
            offences: Arc::default(),
            locks: Arc::clone(&engine.locks),
        });
        Authority {
            engine,
            undo,
            tree: &undo.tree,
            actor: undo.act(writer, undo.space, true),
            window: undo.longest_window.load(std::sync::atomic::Ordering::Relaxed),
            deal: RefCell::new(Deal::new(&lessee, Mode::Client)),
            lessee,
            turnstile: Turnstile::new(),
        }
    }

    /// A file that is being changed may have another size.
    pub(super) fn resized(&self, node: &Arc<Node>, before: u64, size: u64) {
        self.deal.borrow().resized(node, before, size);
    }

    /// Does something until nothing must be counted or waited for first, and nobody holds what it changes.
    pub(super) fn again<T>(&self, mut act: impl FnMut() -> Checked<T>) -> Checked<T> {
        let result = self.attempts(&mut act);
        if self.deal.borrow().ended()
            && let Ok(waiting) = self.deal.borrow().ask(self.engine, &self.turnstile)
        {
            // It is done, and nobody fences this one.
            let _ = waiting.sleep(self.engine);
        }
        // Its marks end here: others may be given leases again.
        self.deal.replace(Deal::new(&self.lessee, Mode::Client));
        result
    }

    fn attempts<T>(&self, act: &mut impl FnMut() -> Checked<T>) -> Checked<T> {
        for _ in 0..ATTEMPTS {
            self.deal.borrow().begin();
            match act() {
                Err(Refusal::Count(meter)) => meter.ensure_counted(self.tree, &|| false)?,
                Err(Refusal::WouldBlock) => std::thread::yield_now(),
                Err(Refusal::Recall) => {
                    self.deal.borrow().ask(self.engine, &self.turnstile)?.sleep(self.engine)?;
                }
                other => return other,
            }
        }
        Err(Refusal::errno(Errno::BUSY))
    }
}
