//! From operations to the gate and the store.

use std::sync::atomic::Ordering;

use rustix::io::Errno;
use strongroom_protocol::attr::{Handle, Node, OpenFlags};
use strongroom_protocol::codec;
use strongroom_protocol::files;
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::lease::LeaseTerms;
use strongroom_protocol::name::Name;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Failure, Outcome};

use super::{Call, ClaimChange, Done, EngineSession, ReplyBuf, Served};
use crate::gate::Gate;
use crate::gate::refusal::{Checked, Refusal};
use crate::leases::Waiting;
use crate::store;

/// How often an operation is begun anew because a subtree had to be counted first.
const ATTEMPTS: usize = 256;

/// What one attempt came to.
pub(super) struct Answer {
    /// `None`: it waits for a lock.
    pub(super) outcome: Option<Outcome>,
    pub(super) claim: Option<ClaimChange>,
    /// Others must have noticed the change before it is answered.
    pub(super) settle: bool,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Answer {
        Answer { outcome: Some(outcome), claim: None, settle: false }
    }
}

impl From<(Outcome, bool)> for Answer {
    fn from((outcome, settle): (Outcome, bool)) -> Answer {
        Answer { outcome: Some(outcome), claim: None, settle }
    }
}

impl From<(Outcome, Option<ClaimChange>)> for Answer {
    fn from((outcome, claim): (Outcome, Option<ClaimChange>)) -> Answer {
        Answer { outcome: Some(outcome), claim, settle: false }
    }
}

/// Whether an operation of this kind may be tried on a thread that must not wait.
pub(super) fn hardly_blocks(session: &EngineSession, op: &Op) -> bool {
    match op {
        // Closing the last handle of a file without names frees its blocks, which takes time.
        Op::Release { handle, .. } => session.handles.get(*handle).is_ok_and(|open| !open.node.is_gone()),
        Op::TakeLeases
        | Op::Recalled { .. }
        | Op::Lookup { .. }
        | Op::Getattr { .. }
        | Op::Measure { .. }
        | Op::Read { .. }
        | Op::Readdir { .. }
        | Op::Readlink { .. }
        | Op::Flush { .. }
        | Op::Forget
        | Op::Ping
        | Op::Bye
        | Op::Reclaimed
        | Op::GetLock { .. }
        | Op::SetLock { .. }
        | Op::CancelLock { .. } => true,
        _ => false,
    }
}

/// Carries out a request. `None`: it would block and may not.
pub(super) fn serve(gate: &Gate<'_>, call: Call<'_>, out: &mut ReplyBuf) -> Option<Served> {
    let settle = || {
        let waiting = gate.deal.ask(gate.engine, gate.admission.turnstile())?;
        if waiting.is_over() {
            return Ok(());
        }
        (call.waits)();
        waiting.sleep(gate.engine)
    };
    let answer = again(gate, &settle, || attempt(gate, call, out));
    if gate.deal.ended() {
        // It is done, whatever comes of this: who is fenced meanwhile is answered all the same.
        let _ = settle();
    }
    answered(gate, answer, out)
}

/// How far a request has come.
pub(super) enum Step {
    /// It is answered; `None`: it would block and may not.
    Answered(Option<Served>),
    /// Others are waited for; with the answer, if it is done but for that.
    Waits(Waiting, Option<Checked<Answer>>),
}

/// As [`serve`], but returns instead of waiting for others to let go. `done`: what came with [`Step::Waits`] before.
pub(super) fn serve_or_wait(
    gate: &Gate<'_>,
    call: Call<'_>,
    out: &mut ReplyBuf,
    done: Option<Checked<Answer>>,
) -> Step {
    let ask = || gate.deal.ask(gate.engine, gate.admission.turnstile());
    let answer = match done {
        Some(answer) => answer,
        None => match again(gate, &|| Err(Refusal::Recall), || attempt(gate, call, out)) {
            Err(Refusal::Recall) => match ask() {
                Ok(waiting) => return Step::Waits(waiting, None),
                Err(refusal) => Err(refusal),
            },
            answer => answer,
        },
    };
    if gate.deal.ended()
        && let Ok(waiting) = ask()
    {
        return Step::Waits(waiting, Some(answer));
    }
    Step::Answered(answered(gate, answer, out))
}

fn answered(gate: &Gate<'_>, answer: Checked<Answer>, out: &ReplyBuf) -> Option<Served> {
    let (outcome, claim) = match answer {
        Ok(Answer { outcome: None, .. }) => return Some(Served::Later),
        Ok(Answer { outcome: Some(outcome), claim, .. }) => (outcome, claim),
        Err(Refusal::Failed(failure)) => (Outcome::Failed(failure), None),
        Err(Refusal::Count(_) | Refusal::Recall | Refusal::WouldBlock) if gate.inline => return None,
        Err(Refusal::Count(_) | Refusal::Recall | Refusal::WouldBlock) => {
            (Done::failed(Errno::AGAIN).outcome, None)
        }
    };
    let has_data = matches!(outcome, Outcome::Data | Outcome::Opened(..));
    gate.session.count(&outcome, if has_data { out.data().len() } else { 0 });
    Some(Served::Done(Done { outcome, claim, note: gate.deal.note() }))
}

/// Attempts something until no subtree has to be counted first and nobody has to let go of leases; then makes sure that
/// others have noticed. `settle` waits until they have let go.
pub(super) fn again(
    gate: &Gate<'_>,
    settle: &dyn Fn() -> Checked<()>,
    mut act: impl FnMut() -> Checked<Answer>,
) -> Checked<Answer> {
    let tree = &gate.engine.tree;
    for _ in 0..ATTEMPTS {
        gate.deal.begin();
        match act() {
            Err(Refusal::Count(meter)) if !gate.inline => {
                meter.ensure_counted(tree, &|| gate.admission.is_fenced())?;
            }
            Err(Refusal::Recall) if !gate.inline => settle()?,
            Err(refusal) if needs_room(&refusal) && tree.kept.let_go() => {}
            Ok(answer) => {
                if answer.settle {
                    tree.sections.settle();
                }
                return Ok(answer);
            }
            other => return other,
        }
    }
    Err(Refusal::errno(Errno::BUSY))
}

/// Whether room is missing on the disk, or for descriptors, that files without names may take.
fn needs_room(refusal: &Refusal) -> bool {
    refusal.is(Errno::NOSPC) || refusal.is(Errno::MFILE)
}

fn attempt(gate: &Gate<'_>, call: Call<'_>, out: &mut ReplyBuf) -> Checked<Answer> {
    out.clear();
    let Call { id, op, data, later, .. } = call;
    Ok(match op {
        Op::Lookup { parent, name } => {
            store::lookup::lookup(&gate.entry(op, *parent)?, name.as_bytes())?.into()
        }
        Op::Resolve { grant, ino } => store::resolve::resolve(&gate.grant(*grant)?, *ino, data)?.into(),
        Op::Forget => forget(gate, data)?.into(),
        Op::Getattr { node, handle } => store::getattr::getattr(&gate.node(op, *node, *handle)?)?.into(),
        Op::Measure { node, handle } => store::getattr::measure(&gate.node(op, *node, *handle)?)?.into(),
        Op::Setattr { node, handle, set, by: _ } => {
            store::setattr::setattr(&gate.node(op, *node, *handle)?, set)?.into()
        }
        Op::Readlink { node } => store::readlink::readlink(&gate.node(op, *node, None)?, out)?.into(),
        Op::Open { node, flags } => store::open::open(&gate.node(op, *node, None)?, *flags)?.into(),
        Op::Opendir { node } => store::opendir::opendir(&gate.node(op, *node, None)?)?.into(),
        Op::Create { parent, name, mode, flags, by } => {
            store::create::create(&gate.entry(op, *parent)?, name.as_bytes(), *mode, *flags, *by)?.into()
        }
        Op::Read { handle, offset, length } => {
            store::read::read(&gate.handle(op, *handle)?, *offset, *length, out)?.into()
        }
        Op::Write { handle, offset } => {
            store::write::write(&gate.handle(op, *handle)?, *offset, data)?.into()
        }
        Op::Flush { handle, lock_owner } => {
            store::release::flush(&gate.letting(*handle)?, *lock_owner).into()
        }
        Op::Fsync { handle, data_only } => {
            store::fsync::fsync(&gate.handle(op, *handle)?, *data_only)?.into()
        }
        Op::Release { handle, lock_owner } => {
            store::release::release(&gate.letting(*handle)?, *handle, *lock_owner)?.into()
        }
        Op::Reopen { node, directory: true, .. } => {
            let opendir = Op::Opendir { node: *node };
            store::opendir::opendir(&gate.node(&opendir, *node, None)?)?.into()
        }
        Op::Reopen { node, flags, created, directory: false } => {
            store::open::reopen(&gate.node(op, *node, None)?, *flags, *created)?.into()
        }
        Op::Readdir { handle, cookie, max_bytes, plus } => {
            store::readdir::readdir(&gate.handle(op, *handle)?, *cookie, *max_bytes, *plus, out)?.into()
        }
        Op::Mkdir { parent, name, mode, by } => {
            store::mkdir::mkdir(&gate.entry(op, *parent)?, name.as_bytes(), *mode, *by)?.into()
        }
        Op::Mknod { parent, name, mode, rdev, by } => {
            store::mknod::mknod(&gate.entry(op, *parent)?, name.as_bytes(), *mode, *rdev, *by)?.into()
        }
        Op::Symlink { parent, name, by } => {
            store::symlink::symlink(&gate.entry(op, *parent)?, name.as_bytes(), data, *by)?.into()
        }
        Op::Link { node, parent, name } => {
            store::link::link(&gate.naming(op, *node, *parent)?, name.as_bytes())?.into()
        }
        Op::Unlink { parent, name } => {
            store::unlink::unlink(&gate.entry(op, *parent)?, name.as_bytes())?.into()
        }
        Op::Rmdir { parent, name, directory } => {
            store::unlink::rmdir(&gate.entry(op, *parent)?, name.as_bytes(), *directory)?.into()
        }
        Op::Rename { parent, name, new_parent, new_name, mode, directory } => {
            let permit = gate.entries(op, *parent, *new_parent)?;
            store::rename::rename(&permit, name.as_bytes(), new_name.as_bytes(), *mode, *directory)?.into()
        }
        Op::Fallocate { handle, mode, offset, length } => {
            store::fallocate::fallocate(&gate.handle(op, *handle)?, *mode, *offset, *length)?.into()
        }
        Op::Seek { handle, offset, hole } => {
            store::seek::seek(&gate.handle(op, *handle)?, *offset, *hole)?.into()
        }
        Op::CopyRange { from, from_offset, to, to_offset, length } => {
            let permit = gate.handles(op, *from, *to)?;
            store::copy_range::copy_range(&permit, *from_offset, *to_offset, *length)?.into()
        }
        Op::Statfs { node } => store::statfs::statfs(&gate.node(op, *node, None)?)?.into(),
        Op::Getxattr { node } => store::xattr::get(&gate.node(op, *node, None)?, data, out)?.into(),
        Op::Listxattr { node } => store::xattr::list(&gate.node(op, *node, None)?, out)?.into(),
        Op::Setxattr { node, name_length, flags } => {
            store::xattr::set(&gate.node(op, *node, None)?, *name_length, *flags, data)?.into()
        }
        Op::Removexattr { node } => store::xattr::remove(&gate.node(op, *node, None)?, data)?.into(),
        Op::GetLock { handle, lock } => store::lock::get(&gate.handle(op, *handle)?, lock)?.into(),
        Op::SetLock { handle, lock, wait, reclaim } => {
            let wait = wait.then_some((id, later));
            let outcome = store::lock::set(&gate.handle(op, *handle)?, lock, wait, *reclaim)?;
            Answer { outcome, claim: None, settle: false }
        }
        Op::CancelLock { request } => {
            gate.engine.locks.cancel(gate.session.number, *request);
            Outcome::Done.into()
        }
        // The session sees to `Bye` and `Reclaimed`.
        Op::Ping | Op::Bye | Op::Reclaimed => Outcome::Done.into(),
        Op::TakeLeases => take_leases(gate).into(),
        Op::Recalled { id } => {
            // A recall that was sent on several connections may be answered more than once.
            gate.session.lessee.answered(*id);
            Outcome::Done.into()
        }
        Op::OpenRead { node, flags, offset, length } => {
            open_read(gate, op, *node, *flags, (*offset, *length), out)?.into()
        }
        Op::List { node, cookie, max_bytes, plus, ahead } => {
            let permit = gate.node(op, *node, None)?;
            store::readdir::list(&permit, (*cookie, *max_bytes), *plus, *ahead, out)?.into()
        }
        Op::ReadFiles { grant, longest, max_bytes } => {
            read_files(gate, op, *grant, (*longest, *max_bytes), data, out)?.into()
        }
    })
}

fn take_leases(gate: &Gate<'_>) -> Outcome {
    gate.session.lessee.begin();
    gate.engine.grace.back(gate.session.number);
    let recall = gate.engine.options.leases.recall;
    Outcome::Terms(LeaseTerms {
        keep_ms: gate.engine.keep_ms.load(Ordering::Relaxed),
        recall_ms: u32::try_from(recall.as_millis()).unwrap_or(u32::MAX),
        most: u32::try_from(gate.session.bounds.leases).unwrap_or(u32::MAX),
    })
}

fn open_read(
    gate: &Gate<'_>,
    op: &Op,
    node: Node,
    flags: OpenFlags,
    (offset, length): (u64, u32),
    out: &mut ReplyBuf,
) -> Checked<Outcome> {
    let opened = store::open::open(&gate.node(op, node, None)?, flags)?;
    let Outcome::Opened(handle, _) = &opened else { return Ok(opened) };
    let read = Op::Read { handle: *handle, offset, length };
    let read = gate.handle(&read, *handle).and_then(|permit| store::read::read(&permit, offset, length, out));
    if let Err(refusal) = read {
        // Nobody knows of the handle.
        crate::gate::close(gate.engine, gate.session, *handle)?;
        return Err(refusal);
    }
    Ok(opened)
}

fn read_files(
    gate: &Gate<'_>,
    op: &Op,
    grant: u16,
    (longest, max_bytes): (u32, u32),
    data: &[u8],
    out: &mut ReplyBuf,
) -> Checked<Outcome> {
    let (numbers, rest) = data.as_chunks::<8>();
    if !rest.is_empty() || numbers.len() > files::MOST {
        return Err(Refusal::MALFORMED);
    }
    let most = (max_bytes as usize).min(MAX_DATA);
    let bytes = out.collect();
    let mut known = numbers.is_empty();
    for (position, number) in (0..).zip(numbers) {
        if gate.admission.is_fenced() {
            return Err(Failure::Fenced.into());
        }
        let node = Node { grant, ino: u64::from_le_bytes(*number) };
        let permit = match gate.node(op, node, None) {
            Err(Refusal::Failed(Failure::Stale)) => continue,
            other => other?,
        };
        known = true;
        match store::read_files::read_file(&permit, position, longest, most, bytes) {
            Ok(()) => {}
            Err(Refusal::Failed(denied @ Failure::Denied { .. })) => return Err(denied.into()),
            // Somebody else would have to let go first, or it is not there any more. Whoever reads it hears of that.
            Err(_) => {}
        }
    }
    if !known {
        return Err(Refusal::STALE);
    }
    let length = bytes.len();
    out.set_length(length);
    Ok(Outcome::Data)
}

fn forget(gate: &Gate<'_>, data: &[u8]) -> Checked<Outcome> {
    let nodes: Vec<Node> = codec::decode_list(data).map_err(|_| Refusal::Failed(Failure::Malformed))?;
    for node in nodes {
        if let Some(known) = gate.session.nodes.get(node) {
            gate.session.lessee.forget(&known.node, node.grant);
        }
        gate.session.nodes.forget(node);
    }
    Ok(Outcome::Done)
}

pub(super) fn describe(session: &EngineSession, op: &Op) -> String {
    let node = |key: Node, name: Option<&Name>| match session.known_node(key) {
        Some(node) => session.path_of(key.grant, &node, name.map(Name::as_bytes)),
        None => format!("node {} of grant {}", key.ino, key.grant),
    };
    let handle = |handle: Handle| match session.handles.get(handle) {
        Ok(open) => session.path_of(open.grant, &open.node, None),
        Err(_) => format!("handle {}", handle.0),
    };
    match op {
        Op::Lookup { parent, name }
        | Op::Create { parent, name, .. }
        | Op::Mkdir { parent, name, .. }
        | Op::Mknod { parent, name, .. }
        | Op::Symlink { parent, name, .. }
        | Op::Unlink { parent, name }
        | Op::Rmdir { parent, name, .. } => node(*parent, Some(name)),
        Op::Rename { parent, name, new_parent, new_name, .. } => {
            format!("{} -> {}", node(*parent, Some(name)), node(*new_parent, Some(new_name)))
        }
        Op::Link { node: source, parent, name } => {
            format!("{} -> {}", node(*source, None), node(*parent, Some(name)))
        }
        Op::CopyRange { from, to, .. } => format!("{} -> {}", handle(*from), handle(*to)),
        Op::Getattr { node: key, .. }
        | Op::Measure { node: key, .. }
        | Op::Setattr { node: key, .. }
        | Op::Readlink { node: key }
        | Op::Open { node: key, .. }
        | Op::Opendir { node: key }
        | Op::Reopen { node: key, .. }
        | Op::Statfs { node: key }
        | Op::Getxattr { node: key }
        | Op::Listxattr { node: key }
        | Op::Setxattr { node: key, .. }
        | Op::Removexattr { node: key }
        | Op::OpenRead { node: key, .. }
        | Op::List { node: key, .. } => node(*key, None),
        Op::Read { handle: open, .. }
        | Op::Write { handle: open, .. }
        | Op::Flush { handle: open, .. }
        | Op::Fsync { handle: open, .. }
        | Op::Release { handle: open, .. }
        | Op::Readdir { handle: open, .. }
        | Op::Fallocate { handle: open, .. }
        | Op::Seek { handle: open, .. }
        | Op::GetLock { handle: open, .. }
        | Op::SetLock { handle: open, .. } => handle(*open),
        Op::Resolve { grant, .. } | Op::ReadFiles { grant, .. } => {
            let mount = session.grants.get(usize::from(*grant)).map(|grant| grant.terms.mount.to_string());
            mount.unwrap_or_default()
        }
        Op::Forget
        | Op::CancelLock { .. }
        | Op::Ping
        | Op::Bye
        | Op::Reclaimed
        | Op::TakeLeases
        | Op::Recalled { .. } => String::new(),
    }
}
