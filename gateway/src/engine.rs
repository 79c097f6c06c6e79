//! The engine: what carries out the operations of sessions on the data. Doors call it and nothing below it.
//!
//! # How a door uses it
//!
//! - [`Engine::open`] once. `Engine` is cheap to clone and shared by all threads.
//! - For each session: a [`Turnstile`] (kept by the session layer: `enter` before each request, `fence` and `drain` when
//!   the contract is void) and an [`EngineSession`]. After `fence` + `drain`: [`EngineSession::close`].
//! - For each request: `let admission = turnstile.enter()`, then [`Engine::serve_inline`] on the reader's thread and, if it
//!   says `None`, [`Engine::serve`] on a thread that may block. Keep the admission until the reply is on its way.
//!   Reply data are in the [`ReplyBuf`] if the outcome is `Outcome::Data`.
//! - [`Served::Later`]: the reply comes through the [`LockReply`] that was made by `call.later`, from another thread,
//!   when the lock is had, cancelled (`Op::CancelLock`: `EINTR`) or the session closed (`Fenced`).
//! - For slotted requests: write [`Engine::before`] into the slot ("executing"), `serve`, write the outcome ("done"). After
//!   a crash, a slot found "executing" whose request comes again: [`Engine::replayed`] first; `None` means: serve it.
//! - [`Done::claim`] tells of handles with the creator's rights: persist `Made` before the reply, forget on `Released`;
//!   give the surviving ones to [`EngineSession::new`] when a session is resumed by a new process.
//! - [`EngineSession::describe`] names the objects of an operation for audit lines (before `serve` for operations that
//!   make or remove names or handles).
//! - For sessions that take leases: [`EngineSession::answer_to`] before the first `Op::TakeLeases`,
//!   [`EngineSession::left_alone`] when the last connection is gone; [`Done::note`] goes with the outcome.
//! - `Op::Ping`, `Op::Bye`, `Op::Forget` and `Op::CancelLock` are served too (`Bye` does nothing here; the door closes
//!   the session). `Op::Forget` and `Op::Recalled` have no reply: do not send their outcome.

mod decoys;
mod dispatch;
mod outside;
mod replay;
mod types;
mod undoing;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use strongroom_contracts::chain::EffectiveGrant;
use strongroom_contracts::{Effective, OnVerdict};
use strongroom_protocol::attr;
use strongroom_protocol::hello::GrantInfo;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Failure, Outcome};

pub use crate::gate::{Admission, Turnstile};
pub(crate) use replay::now as born_now;
pub use types::*;

use self::dispatch::Step;
pub use crate::detect::Verdict;
use crate::detect::{Watch, Watches};
use crate::gate::Gate;
use crate::gate::grant::GrantState;
use crate::gate::refusal::Checked;
use crate::handles::Handles;
use crate::leases::{Change, Deal, Deed, Grace, Lessee, LesseeParts, Lessees, Mode, Waiting};
use crate::locks::Locks;
use crate::nodes::Nodes;
use crate::store;
use crate::tree::{Node, Tree};
use crate::undo::{Actor, Undo, UndoOptions};
use crate::writeback::Writeback;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What all parts of an engine share.
pub(crate) struct Shared {
    pub(crate) tree: Arc<Tree>,
    pub(crate) locks: Arc<Locks>,
    pub(crate) lessees: Lessees,
    pub(crate) grace: Grace,
    pub(crate) options: EngineOptions,
    /// The process may make files for others.
    pub(crate) privileged: bool,
    /// What changes are taken back with, if that is wanted.
    pub(crate) undo: Option<Arc<Undo>>,
    pub(crate) writeback: Writeback,
    /// When it was opened, in the form of a generation.
    pub(crate) started: u64,
    sessions: AtomicU64,
    watches: Watches,
    /// How long clients may keep what they have leases on, in milliseconds.
    pub(crate) keep_ms: AtomicU64,
}

impl Shared {
    /// Somebody else than the gateway has changed a node: whoever keeps it is told, and not waited for.
    pub(crate) fn changed_outside(&self, node: &Arc<Node>, change: Change<'_>) {
        let resized = matches!(change, Change::All { data: true, .. }) && !node.is_dir();
        let size = if resized { self.tree.stat(node).ok().map(|stat| stat.size()) } else { None };
        for (session, needs) in change.all_concerned(node, size) {
            if let Some(lessee) = self.lessees.get(session) {
                lessee.inform(needs);
            }
        }
    }
}

/// A request that waits for other sessions to let go of leases. Its marks stay until it is dropped.
pub struct Parked {
    engine: Arc<Shared>,
    deal: Deal,
    waiting: Waiting,
    /// It is done, and others are to notice.
    done: Option<Checked<dispatch::Answer>>,
}

impl Parked {
    /// Whether all that was asked for has been answered, or lost.
    pub fn is_over(&self) -> bool {
        self.waiting.is_over()
    }

    /// Those who have not answered lose their leases: it has lasted too long.
    pub fn give_up(&self) {
        self.waiting.give_up(&self.engine);
    }
}

impl Shared {
    /// A number for a session, unique in the life of the process.
    pub(crate) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::SeqCst)
    }
}

/// An fsync(2) that was let in.
pub struct Syncing(store::fsync::Letin);

impl Syncing {
    /// Carries it out. It changes nothing that anybody could read.
    pub fn run(self) -> Outcome {
        self.0.run().unwrap_or_else(|refusal| Outcome::Failed(refusal.failure()))
    }
}

/// Carries out operations below one data root.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
}

/// What one session sees of an engine: known nodes, handles, own creations. The doors share it in an `Arc`.
pub struct EngineSession {
    engine: Arc<Shared>,
    /// Unique in the life of the process.
    pub(crate) number: u64,
    pub(crate) grants: Arc<[GrantState]>,
    pub(crate) lessee: Arc<Lessee>,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    pub(crate) claims: Mutex<HashSet<Claim>>,
    pub(crate) bounds: SessionBounds,
    /// What watches the application's changes.
    pub(crate) watch: Option<Arc<Watch>>,
    /// In whose name changes are kept.
    pub(crate) actor: Option<Actor>,
    operations: AtomicU64,
    denied: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

impl Engine {
    /// Opens the data root; nothing outside it is reachable afterwards. Sets the process' umask to 0.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn open(data_root: &Path, options: EngineOptions) -> Result<Engine, EngineError> {
        Engine::assemble(data_root, options, None)
    }

    /// The same with an undo log.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn with_undo(
        data_root: &Path,
        options: EngineOptions,
        undo: &UndoOptions,
    ) -> Result<Engine, EngineError> {
        Engine::assemble(data_root, options, Some(undo))
    }

    fn assemble(
        data_root: &Path,
        options: EngineOptions,
        undo: Option<&UndoOptions>,
    ) -> Result<Engine, EngineError> {
        let cautious = options.special_files == SpecialFiles::Store;
        let tree = Tree::open(data_root, options.directory_fds, cautious).map_err(|errno| match errno {
            Errno::NOSYS => EngineError::Kernel,
            other => EngineError::Root { path: data_root.to_owned(), reason: other.into() },
        })?;
        crate::sys::clear_umask();
        let undo = match undo {
            None => None,
            Some(undo) => Some(Arc::new(
                Undo::open(&tree, data_root, undo)
                    .map_err(|errno| EngineError::undo(undo.vault.as_deref().unwrap_or(data_root), errno))?,
            )),
        };
        let shared = Shared {
            tree,
            locks: Arc::default(),
            lessees: Lessees::default(),
            grace: Grace::default(),
            options,
            undo,
            writeback: Writeback::start(),
            privileged: rustix::process::geteuid().is_root(),
            started: replay::just_now(),
            sessions: AtomicU64::new(1),
            keep_ms: AtomicU64::new(millis(options.leases.keep)),
            watches: Watches::default(),
        };
        Ok(Engine { shared: Arc::new(shared) })
    }

    /// Watches what others than the gateway change below the data root, so that leases may be kept for `keep`.
    ///
    /// # Errors
    /// Why it cannot; leases are kept as before then.
    pub fn watch_outside(&self, keep: Duration) -> Result<(), std::io::Error> {
        outside::watch(&self.shared)?;
        self.shared.keep_ms.store(millis(keep), Ordering::SeqCst);
        Ok(())
    }

    /// Carries out a request; may block on the disk.
    pub fn serve(
        &self,
        session: &EngineSession,
        admission: &Admission,
        call: Call<'_>,
        out: &mut ReplyBuf,
    ) -> Served {
        let deal = Deal::new(&session.lessee, Mode::Client);
        dispatch::serve(&self.gate(session, admission, false, &deal), call, out)
            .unwrap_or(Served::Done(Done::failed(Errno::IO)))
    }

    /// The same, but returns where [`Engine::serve`] would wait for other sessions to let go of leases. `parked`: what
    /// it returned for this request before.
    ///
    /// # Errors
    /// What is waited for; to be handed in again when it is over.
    pub fn serve_or_park(
        &self,
        session: &EngineSession,
        admission: &Admission,
        call: Call<'_>,
        out: &mut ReplyBuf,
        parked: Option<Box<Parked>>,
    ) -> Result<Served, Box<Parked>> {
        let (deal, done) = match parked {
            Some(parked) => (parked.deal, parked.done),
            None => (Deal::new(&session.lessee, Mode::Client), None),
        };
        let step = dispatch::serve_or_wait(&self.gate(session, admission, false, &deal), call, out, done);
        match step {
            Step::Answered(served) => Ok(served.unwrap_or(Served::Done(Done::failed(Errno::IO)))),
            Step::Waits(waiting, done) => {
                Err(Box::new(Parked { engine: Arc::clone(&self.shared), deal, waiting, done }))
            }
        }
    }

    /// Carries out a request if it is of a kind that hardly blocks and the data are in memory; `None`: not done, use
    /// [`Engine::serve`].
    pub fn serve_inline(
        &self,
        session: &EngineSession,
        admission: &Admission,
        call: Call<'_>,
        out: &mut ReplyBuf,
    ) -> Option<Served> {
        if !dispatch::hardly_blocks(session, call.op) {
            return None;
        }
        let deal = Deal::new(&session.lessee, Mode::Client);
        dispatch::serve(&self.gate(session, admission, true, &deal), call, out)
    }

    /// Lets an fsync(2) in, which then runs without its admission: a fence need not wait for the disk.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn begin_fsync(
        &self,
        session: &EngineSession,
        admission: &Admission,
        handle: attr::Handle,
        data_only: bool,
    ) -> Result<Syncing, Failure> {
        let op = Op::Fsync { handle, data_only };
        let deal = Deal::new(&session.lessee, Mode::Silent);
        let permit = self.gate(session, admission, false, &deal).handle(&op, handle);
        let begun = permit.map(|permit| Syncing(store::fsync::begin(&permit, data_only)));
        let begun = begun.map_err(|refusal| refusal.failure());
        session.count(&begun.as_ref().err().map_or(Outcome::Done, |failure| Outcome::Failed(*failure)), 0);
        begun
    }

    /// What to note before a slotted operation runs. Cheap for operations that can simply run again.
    pub fn before(&self, session: &EngineSession, admission: &Admission, op: &Op, data: &[u8]) -> Before {
        let deal = Deal::new(&session.lessee, Mode::Silent);
        replay::before(&self.gate(session, admission, false, &deal), op, data)
    }

    /// Decides whether an operation that was being carried out when the process died took effect, and answers it if so.
    /// Nodes of `op` must have been resolved again by the client; unknown ones answer `Stale` as usual.
    pub fn replayed(
        &self,
        session: &EngineSession,
        admission: &Admission,
        before: Before,
        op: &Op,
        data: &[u8],
    ) -> Option<Done> {
        let deal = Deal::new(&session.lessee, Mode::Silent);
        replay::replayed(&self.gate(session, admission, false, &deal), before, op, data)
    }

    /// While on, only locks that are reclaimed are given (after a restart); others fail with `Grace`.
    pub fn set_lock_grace(&self, on: bool) {
        self.shared.locks.set_grace(on);
    }

    /// After a restart: sessions whose clients had leases of the former process. Until they take leases again or end, or
    /// the time of a recall has passed, what they might keep is not changed.
    pub fn begin_lease_grace<'s>(&self, sessions: impl Iterator<Item = &'s EngineSession>) {
        let missing = sessions.map(|session| session.number).collect();
        self.shared.grace.begin(missing, Instant::now() + self.shared.options.leases.recall);
    }

    /// After [`Engine::begin_lease_grace`]: waits until those are back who might keep what the former process has changed, unless the session
    /// itself is not. `waits` is called if there is anything to wait for.
    pub fn await_the_missing(&self, session: &EngineSession, admission: &Admission, waits: &dyn Fn()) {
        let deal = Deal::new(&session.lessee, Mode::Client);
        if deal.in_time(&self.shared.grace, Deed::ChangeContents).is_ok() {
            return;
        }
        if let Ok(waiting) = deal.ask(&self.shared, admission.turnstile())
            && !waiting.is_over()
        {
            waits();
            // Who is fenced meanwhile is answered all the same: it is done.
            let _ = waiting.sleep(&self.shared);
        }
    }

    fn gate<'a>(
        &'a self,
        session: &'a EngineSession,
        admission: &'a Admission,
        inline: bool,
        deal: &'a Deal,
    ) -> Gate<'a> {
        Gate { engine: &self.shared, session, admission, inline, deal }
    }
}

impl EngineSession {
    /// The empty tables of a session under a contract. `claims`: what a former process recorded for the same session.
    pub fn new(
        engine: &Engine,
        contract: &Effective,
        bounds: SessionBounds,
        claims: &[Claim],
    ) -> EngineSession {
        let number = engine.shared.next_session();
        // Handles of a former process are told apart by the clock; it only matters to clients that mix them up.
        let serial = crate::tree::coarse_ms() as u32;
        let grants: Arc<[GrantState]> = contract.grants.iter().cloned().map(GrantState::new).collect();
        let lessees = &engine.shared.lessees;
        let lessee = Lessee::new(LesseeParts {
            number,
            grants: Arc::clone(&grants),
            most: bounds.leases,
            recall: engine.shared.options.leases.recall,
            offences: lessees.offences(contract.ids.first().copied().unwrap_or(contract.id())),
            locks: Arc::clone(&engine.shared.locks),
        });
        lessees.add(&lessee);
        let detection = contract.detection;
        if detection.decoys > 0 && detection.verdict != OnVerdict::Off {
            decoys::plant(&engine.shared, &grants, detection.decoys);
        }
        EngineSession {
            engine: Arc::clone(&engine.shared),
            number,
            grants,
            lessee,
            nodes: Nodes::new(bounds.nodes),
            handles: Handles::new(bounds.handles, serial),
            claims: Mutex::new(claims.iter().copied().collect()),
            bounds,
            watch: engine.shared.watches.of(&contract.application, contract.detection),
            actor: engine.shared.undo.as_ref().map(|undo| undo.actor(contract)),
            operations: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Goes on under a renewed contract whose grants are equal. Returns false, and changes nothing, if they are not.
    pub fn rebind(&self, contract: &Effective) -> bool {
        let own = self.grants.iter().map(|grant| &grant.terms);
        own.eq(contract.grants.iter())
    }

    /// The grants as the client needs to know them.
    pub fn grant_infos(&self, admission: &Admission) -> Vec<GrantInfo> {
        let deal = Deal::new(&self.lessee, Mode::Silent);
        let gate = Gate { engine: &self.engine, session: self, admission, inline: false, deal: &deal };
        let info = |(number, grant): (usize, &GrantState)| {
            let EffectiveGrant { mount, rights, ownership, max_file_bytes, .. } = &grant.terms;
            // Contracts have at most a few hundred grants.
            let permit = gate.grant(number as u16);
            let root = permit.and_then(|permit| store::resolve::resolve(&permit, 0, b""));
            let root = match root {
                Ok(Outcome::Entry(entry)) => Some(entry.attr),
                _ => None,
            };
            GrantInfo {
                mount: mount.clone(),
                rights: *rights,
                ownership: *ownership,
                max_file_bytes: *max_file_bytes,
                root,
            }
        };
        self.grants.iter().enumerate().map(info).collect()
    }

    /// How the session's client is told of recalls. Only the first call counts.
    pub fn answer_to(&self, teller: Arc<dyn Teller>) {
        self.lessee.set_teller(teller);
    }

    /// The client has answered a recall (also served as an operation). `false`: none of this number is unanswered.
    pub fn recalled(&self, id: u64) -> bool {
        self.lessee.answered(id)
    }

    /// The session has no connection any more, so that no recall reaches its client. It is given the time of a recall to notice: that
    /// the connection was closed at its end does not say that its kernel has forgotten anything yet.
    pub fn left_alone(&self) {
        self.lessee.leave_alone();
    }

    /// A connection of several is gone: what was recalled on it is recalled on the others.
    pub fn lost_a_link(&self) {
        self.lessee.repeat();
    }

    /// The paths that an operation is about, as seen in the mount, for audit lines.
    pub fn describe(&self, op: &Op) -> String {
        dispatch::describe(self, op)
    }

    /// The path of a node as seen in the mount.
    pub(crate) fn path_of(&self, grant: u16, node: &Arc<Node>, name: Option<&[u8]>) -> String {
        let Some(state) = self.grants.get(usize::from(grant)) else { return String::from("?") };
        let mut path = state.terms.mount.as_str().as_bytes().to_vec();
        let below = match state.root(&self.engine.tree) {
            Ok(root) => self.engine.tree.path_below(node, &root.node),
            Err(_) => b"?".to_vec(),
        };
        for part in [Some(&below[..]), name].into_iter().flatten().filter(|part| !part.is_empty()) {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        String::from_utf8_lossy(&path).into_owned()
    }

    /// The node of a wire node, without checking where it lies: for audit lines only.
    pub(crate) fn known_node(&self, key: attr::Node) -> Option<Arc<Node>> {
        self.nodes.get(key).map(|known| known.node)
    }

    /// What was found out about the application's changes since it was last asked, if that is much.
    pub fn take_verdict(&self) -> Option<Verdict> {
        self.watch.as_ref()?.take_verdict()
    }

    /// Numbers for `contract sessions`.
    pub fn counters(&self) -> Counters {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Counters {
            handles: small(self.handles.len()),
            nodes: small(self.nodes.len()),
            locks: small(self.engine.locks.count(self.number)),
            leases: small(self.lessee.len()),
            operations: self.operations.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            bytes_read: self.read.load(Ordering::Relaxed),
            bytes_written: self.written.load(Ordering::Relaxed),
        }
    }

    /// Closes all handles, releases all locks, answers all waiting locks with `Fenced`, forgets all nodes. To be called
    /// when the session's turnstile is fenced and drained. Nothing works through the session afterwards.
    pub fn close(&self) -> Closed {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let handles = self.handles.close();
        let (locks, waiting) = self.engine.locks.release_session(self.number);
        self.lessee.end();
        self.engine.lessees.remove(self.number);
        self.engine.grace.back(self.number);
        self.nodes.clear();
        self.claims.lock().clear();
        self.grants.iter().for_each(GrantState::close);
        Closed { handles: small(handles), locks: small(locks), waiting: small(waiting) }
    }

    /// Counts bytes written.
    pub(crate) fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, outcome: &Outcome, data: usize) {
        match outcome {
            Outcome::Failed(Failure::Denied { .. }) => {
                self.denied.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                self.operations.fetch_add(1, Ordering::Relaxed);
                self.read.fetch_add(data as u64, Ordering::Relaxed);
            }
        }
    }
}
