//! What one operation does with leases.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use strongroom_protocol::attr::Attr;
use strongroom_protocol::lease::{Lease, Note, What};
use strongroom_protocol::reply::Failure;

use super::Lessees;
use super::grace::{Deed, Grace};
use super::lessee::{Lessee, Need};
use super::node::{Change, Key, Wish, covers};
use super::wait::Wait;
use crate::engine::Shared;
use crate::gate::Turnstile;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::turnstile::Rung;
use crate::tree::Node;

/// How often an operation waits for others; more means that names are exchanged beneath it all the time.
const MOST_ROUNDS: u32 = 16;

/// What an operation has to do with leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing: it looks for the gateway's own purposes, and neither gets leases nor waits for others'.
    Silent,
    /// It is a client's.
    Client,
}

/// What an operation holds after [`Deal::hold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The lease.
    pub(crate) lease: Lease,
    /// It was given only now, or after the operation had begun: what was read before may be old.
    pub(crate) fresh: bool,
}

impl Held {
    const NOTHING: Held = Held { lease: Lease::None, fresh: false };
}

struct Mark {
    node: Arc<Node>,
    grant: u16,
    /// It is being changed; otherwise read.
    changes: bool,
    /// Its contents are.
    data: bool,
    /// It has become longer or shorter, and so long: the largest and the last size that is to be told.
    resized: Resized,
}

/// What becomes of a file's size in one operation.
#[derive(Clone, Copy, Default)]
struct Resized {
    longer: Option<u64>,
    shorter: Option<u64>,
}

impl Resized {
    /// What those are told who have it open.
    fn told(self) -> impl Iterator<Item = What> {
        self.longer.map(What::Longer).into_iter().chain(self.shorter.map(What::Shorter))
    }
}

/// Something that a holder has answered.
struct Asked {
    key: Key,
    node: u64,
    what: What,
}

/// The leases side of one operation, over all its attempts. Marks end with it.
pub(crate) struct Deal {
    lessee: Option<Arc<Lessee>>,
    stamp: Cell<u64>,
    since: Cell<u64>,
    marks: RefCell<Vec<Mark>>,
    needs: RefCell<Vec<Need>>,
    asked: RefCell<Vec<Asked>>,
    barred: RefCell<Vec<Arc<Lessee>>>,
    note: RefCell<Note>,
    rounds: Cell<u32>,
    /// It has to wait for the grace after a start.
    early: Cell<bool>,
}

impl Deal {
    pub(crate) fn new(lessee: &Arc<Lessee>, mode: Mode) -> Deal {
        Deal {
            lessee: (mode == Mode::Client).then(|| Arc::clone(lessee)),
            stamp: Cell::new(0),
            since: Cell::new(0),
            marks: RefCell::default(),
            needs: RefCell::default(),
            asked: RefCell::default(),
            barred: RefCell::default(),
            note: RefCell::default(),
            rounds: Cell::new(0),
            early: Cell::new(false),
        }
    }

    /// An attempt begins.
    pub(crate) fn begin(&self) {
        let Some(lessee) = &self.lessee else { return };
        let (stamp, since) = lessee.now();
        self.stamp.set(stamp);
        self.since.set(since);
        self.note.replace(Note::default());
        self.needs.borrow_mut().clear();
    }

    /// Refuses an operation that comes too early after a start of the process.
    ///
    /// # Errors
    /// [`Refusal::Recall`].
    pub(crate) fn in_time(&self, grace: &Grace, deed: Deed) -> Checked<()> {
        let Some(lessee) = &self.lessee else { return Ok(()) };
        if !grace.holds_up(lessee.number, deed) {
            return Ok(());
        }
        self.early.set(true);
        Err(Refusal::Recall)
    }

    /// What the client is told.
    pub(crate) fn note(&self) -> Note {
        Note { stamp: self.stamp.get(), ..*self.note.borrow() }
    }

    /// Tells what is held on the node that the reply is about.
    pub(crate) fn note_node(&self, lease: Lease) {
        self.note.borrow_mut().node = lease;
    }

    /// Tells whether names may be kept.
    pub(crate) fn note_names(&self, names: bool) {
        self.note.borrow_mut().names = names;
    }

    /// Tells attributes after a change.
    pub(crate) fn note_after(&self, after: Attr) {
        self.note.borrow_mut().after = Some(after);
    }

    /// To be called before a node is read: makes sure that nobody knows of the node what the gateway does not, and
    /// registers the session as one that keeps what it reads. `may`: its contract lets it see the node.
    ///
    /// # Errors
    /// [`Refusal::Recall`].
    pub(crate) fn hold(&self, node: &Arc<Node>, grant: u16, wish: Wish, may: bool) -> Checked<Held> {
        let Some(lessee) = &self.lessee else { return Ok(Held::NOTHING) };
        let key = Key::new(lessee.number, grant);
        let takes = may && lessee.may_keep();
        {
            let mut state = node.leases.lock();
            if let Some(other) = state.exclusive_other(key) {
                let other = other.key;
                if !self.was_asked(other, node, &What::Shared) {
                    if !self.is_marked(node, false) {
                        state.begin_sharing();
                        let mark = Mark {
                            node: Arc::clone(node),
                            grant,
                            changes: false,
                            data: false,
                            resized: Resized::default(),
                        };
                        self.marks.borrow_mut().push(mark);
                    }
                    self.needs.borrow_mut().push(Need::of_lease(other, node, What::Shared));
                    return Err(Refusal::Recall);
                }
                return Ok(Held::NOTHING);
            }
            if !takes || state.changed_by_others(key) {
                return Ok(Held::NOTHING);
            }
            let upgrade = !node.is_dir() && state.may_be_exclusive(key, wish);
            if let Some(holder) = state.get(key) {
                if holder.going {
                    return Ok(Held::NOTHING);
                }
                (holder.used, holder.told) = (true, 0);
                let fresh = holder.since > self.since.get();
                let mut lease = holder.lease();
                // Not while it is being made a shared one for somebody who has stopped waiting for that.
                if upgrade && lease == Lease::Shared && state.make_exclusive(lessee.next()) {
                    lease = Lease::Exclusive;
                }
                return Ok(Held { lease, fresh });
            }
        }
        if wish == Wish::Touch {
            return Ok(Held::NOTHING);
        }
        let wish = if node.is_dir() { Wish::Read } else { wish };
        Ok(Held { lease: lessee.give(node, key, wish), fresh: true })
    }

    /// To be called before contents of a node are read, or after they were written, if the reply gives no lease: the client's kernel
    /// keeps them all the same, and must hear of changes.
    pub(crate) fn strays(&self, node: &Node, grant: u16, lessees: &Lessees) {
        let Some(lessee) = &self.lessee else { return };
        // Also before it says that it takes leases: what it reads on a new connection may come before that.
        let many = node.leases.lock().add_stray(Key::new(lessee.number, grant));
        if let Some(mut gone) = many {
            gone.retain(|stray| lessees.get(stray.session()).is_none());
            gone.sort_unstable();
            node.leases.lock().remove_strays(&gone);
        }
    }

    /// To be called when the operation has had its effect, and before it is answered. Others may be given leases from now on.
    /// `true`: contents went without a lease to somebody who may have read them before the change, and must be asked to let go
    /// ([`Deal::ask`]), or somebody has a file open that is longer or shorter now, and must be told.
    pub(crate) fn ended(&self) -> bool {
        let Some(lessee) = &self.lessee else { return false };
        let mut needs = self.needs.borrow_mut();
        needs.clear();
        for mark in self.marks.borrow_mut().extract_if(.., |mark| mark.changes) {
            let mut state = mark.node.leases.lock();
            state.end_change();
            if mark.data {
                // The kernel of the one who changes knows.
                let strays = state.take_strays(Key::new(lessee.number, mark.grant));
                needs.extend(strays.into_iter().map(|key| Need::of_stray(key, &mark.node)));
            }
            for what in mark.resized.told() {
                let openers = state.other_openers(Key::new(lessee.number, mark.grant));
                needs.extend(openers.map(|key| Need::of_opener(key, &mark.node, what.clone())));
            }
        }
        self.rounds.set(0);
        !needs.is_empty()
    }

    /// A file that is being changed has another size.
    pub(crate) fn resized(&self, node: &Arc<Node>, before: u64, size: u64) {
        let mut marks = self.marks.borrow_mut();
        for mark in marks.iter_mut().filter(|mark| mark.changes && Arc::ptr_eq(&mark.node, node)) {
            if size > before {
                mark.resized.longer = mark.resized.longer.max(Some(size));
            } else if size < before {
                mark.resized.shorter = Some(size);
            }
        }
    }

    /// Does something with the locks of a file; it is told whether the session's client may answer for them itself from now
    /// on. That does not change meanwhile.
    pub(crate) fn with_locks<T>(&self, node: &Node, grant: u16, act: impl FnOnce(bool) -> T) -> T {
        let Some(lessee) = &self.lessee else { return act(false) };
        let mut state = node.leases.lock();
        let may = lessee.may_keep() && state.may_keep_locks(Key::new(lessee.number, grant));
        act(may)
    }

    /// To be called before a change is applied, with all that it concerns: from now until the end of the operation nobody
    /// else is given leases on the nodes, and whoever holds one must let go first.
    ///
    /// # Errors
    /// [`Refusal::Recall`].
    pub(crate) fn changing(&self, grant: u16, changes: &[(&Arc<Node>, Change<'_>)]) -> Checked<()> {
        let Some(lessee) = &self.lessee else { return Ok(()) };
        let key = Key::new(lessee.number, grant);
        for (node, change) in changes {
            let mut state = node.leases.lock();
            let data = matches!(change, Change::All { data: true, .. });
            if self.is_marked(node, true) {
                let mut marks = self.marks.borrow_mut();
                let ours = marks.iter_mut().filter(|mark| mark.changes && Arc::ptr_eq(&mark.node, node));
                ours.for_each(|mark| mark.data |= data);
            } else {
                state.begin_change(key);
                let node = Arc::clone(node);
                self.marks.borrow_mut().push(Mark {
                    node,
                    grant,
                    changes: true,
                    data,
                    resized: Resized::default(),
                });
            }
            state.for_others(key, |holder| {
                if self.was_asked(holder.key, node, &change.what()) {
                    return;
                }
                let need = Need::of_lease(holder.key, node, holder.is_told(change));
                self.needs.borrow_mut().push(need);
            });
        }
        if self.needs.borrow().is_empty() { Ok(()) } else { Err(Refusal::Recall) }
    }

    /// The same for a change after which what some sessions hold may lie outside their grants: they forget everything.
    ///
    /// # Errors
    /// [`Refusal::Recall`].
    pub(crate) fn moving(&self, lessees: Vec<Arc<Lessee>>) -> Checked<()> {
        if self.lessee.is_none() {
            return Ok(());
        }
        for lessee in lessees {
            let known = self.barred.borrow().iter().any(|other| Arc::ptr_eq(other, &lessee));
            if !known {
                lessee.bar();
                self.needs.borrow_mut().append(&mut lessee.everything());
                self.barred.borrow_mut().push(lessee);
            }
        }
        if self.needs.borrow().is_empty() { Ok(()) } else { Err(Refusal::Recall) }
    }

    fn is_marked(&self, node: &Arc<Node>, changes: bool) -> bool {
        self.marks.borrow().iter().any(|mark| mark.changes == changes && Arc::ptr_eq(&mark.node, node))
    }

    fn was_asked(&self, key: Key, node: &Node, what: &What) -> bool {
        let same = |asked: &Asked| asked.key == key && asked.node == node.id && covers(&asked.what, what);
        self.asked.borrow().iter().any(same)
    }

    /// Recalls what stands in the way. To be called with no lock held; what is returned is to be waited for.
    ///
    /// # Errors
    /// `EBUSY` if others always get in the way.
    pub(crate) fn ask(&self, engine: &Shared, turnstile: &Arc<Turnstile>) -> Checked<Waiting> {
        self.rounds.set(self.rounds.get() + 1);
        if self.rounds.get() > MOST_ROUNDS {
            return Err(Refusal::errno(rustix::io::Errno::BUSY));
        }
        let mut needs = self.needs.take();
        needs.sort_by_key(|need| need.key);
        self.asked.borrow_mut().extend(needs.iter().map(|need| Asked {
            key: need.key,
            node: need.node.id,
            what: need.what.clone(),
        }));
        let wait = Wait::new(turnstile);
        let mut holders: Vec<(Instant, Arc<Lessee>)> = vec![];
        let mut needs = needs.into_iter().peekable();
        while let Some(first) = needs.next() {
            let session = first.key.session();
            let mut own = vec![first];
            while let Some(next) = needs.next_if(|need| need.key.session() == session) {
                own.push(next);
            }
            // One that is not there any more is over, and so are its leases.
            if let Some(lessee) = engine.lessees.get(session)
                && let Some(until) = lessee.recall(own, &wait)
            {
                holders.push((until, lessee));
            }
        }
        let session = self.lessee.as_ref().map_or(0, |lessee| lessee.number);
        let grace = if self.early.take() { engine.grace.join(session, &wait) } else { None };
        wait.done();
        Ok(Waiting { wait, holders, grace })
    }
}

/// Answers that are waited for.
pub(crate) struct Waiting {
    wait: Arc<Wait>,
    /// From whom, and until when.
    holders: Vec<(Instant, Arc<Lessee>)>,
    /// The end of the grace after a start, if that is waited for.
    grace: Option<Instant>,
}

impl Waiting {
    pub(crate) fn is_over(&self) -> bool {
        self.wait.is_over()
    }

    /// Waits for as long as those who are asked have time; then they lose their leases.
    ///
    /// # Errors
    /// `Fenced` if the own session was fenced meanwhile.
    pub(crate) fn sleep(&self, engine: &Shared) -> Checked<()> {
        if let Some(until) = self.grace
            && self.is_late(until)?
        {
            engine.grace.end();
        }
        let Some(last) = self.holders.iter().map(|(until, _)| *until).max() else { return Ok(()) };
        let now = Instant::now();
        // An answer that has not come after half the time may have been asked for on a connection that is broken.
        if self.is_late(now + last.saturating_duration_since(now) / 2)? {
            self.late().for_each(|lessee| lessee.repeat());
            if self.is_late(last)? {
                self.give_up(engine);
            }
        }
        Ok(())
    }

    fn is_late(&self, until: Instant) -> Checked<bool> {
        match self.wait.sleep(until) {
            Rung::Fenced => Err(Failure::Fenced.into()),
            Rung::Over => Ok(false),
            Rung::Late => Ok(true),
        }
    }

    /// Those who have not answered lose their leases.
    pub(crate) fn give_up(&self, engine: &Shared) {
        if self.grace.is_some() {
            engine.grace.end();
        }
        self.late().for_each(|lessee| lessee.take_away());
    }

    fn late(&self) -> impl Iterator<Item = &Arc<Lessee>> {
        self.holders.iter().map(|(_, lessee)| lessee).filter(|lessee| lessee.is_late(&self.wait))
    }
}

impl Drop for Deal {
    fn drop(&mut self) {
        for mark in self.marks.get_mut().drain(..) {
            let mut state = mark.node.leases.lock();
            if mark.changes { state.end_change() } else { state.end_sharing() }
        }
        self.barred.get_mut().drain(..).for_each(|lessee| lessee.unbar());
    }
}
