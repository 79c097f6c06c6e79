//! Writes answered before the gateway has them ([`crate::behind`]), and what has to wait for them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Errno;
use strongroom_contracts::Right;
use strongroom_protocol::attr::{Handle, Node, SetAttr};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use super::{Attrs, Caller, Fs};
use crate::behind::{Begun, Setting, WHOLE};
use crate::errno::{Ended, errno};
use crate::lease::Underway;
use crate::state::OpenFile;
use crate::transport::{Answer, Call, Payload};

/// Nobody waits for it.
pub(super) const NOBODY: Caller = Caller { uid: 0, gid: 0, pid: 0 };

impl Fs {
    /// Does `then` once nothing that was answered early is under way of a file; with an error if the caller may wait no longer.
    pub(super) fn settled(
        &self,
        caller: Caller,
        node: Node,
        then: impl FnOnce(&Fs, Result<(), Errno>) + Send + 'static,
    ) {
        if !self.state.behind.busy(node) {
            return then(self, Ok(()));
        }
        let fs = self.clone();
        self.state.behind.wait(node, caller.pid, Box::new(move |result| then(&fs, result)));
    }

    /// Begins a write that may be answered early; `None` if it must not be.
    pub(super) fn begin_behind(&self, open: &OpenFile, offset: u64, length: usize) -> Option<Arc<Underway>> {
        let end = offset.checked_add(length as u64)?;
        let plain = open.flags.write && !open.flags.append && !open.flags.sync && length > 0;
        if !plain || !open.at_gateway() || open.wire.lock().dead.is_some() || !self.carrier.is_up() {
            return None;
        }
        let node = open.node;
        let allowed = self.state.grants.read().get(node.grant).is_some_and(|grant| {
            grant.rights.has(Right::Write) && grant.max_file_bytes.is_none_or(|most| end <= most)
        });
        if !allowed || !self.state.leases.table().is_exclusive(node) {
            return None;
        }
        let spent = self.state.behind.spend(node.grant, length as u64, Instant::now());
        if spent.ask {
            self.ask_room(node);
        }
        if !spent.may {
            return None;
        }
        // A recall first takes the lease from the table, then looks for what is under way. Nothing is learnt of the file from here
        // on until the write has ended.
        let mut table = self.state.leases.table();
        let now = Instant::now();
        let attr = table.attr(node, now);
        if !table.is_exclusive(node) || !self.state.behind.begin(node, &(offset..end), attr) {
            return None;
        }
        let change = table.begin_early(node, now);
        drop(table);
        Some(Underway::early(&self.state, change))
    }

    /// Writes, and answers as soon as the bounds allow.
    pub(super) fn write_behind(
        &self,
        (file, open): (u64, Arc<OpenFile>),
        offset: u64,
        data: Payload,
        underway: Arc<Underway>,
        done: impl FnOnce(Result<u32, Errno>) + Send + 'static,
    ) {
        let length = data.bytes().len();
        // No more than a frame holds.
        self.state.behind.answer(Box::new(move || done(Ok(length as u32))));
        self.send_behind((file, open), offset, data, underway);
    }

    fn send_behind(
        &self,
        (file, open): (u64, Arc<OpenFile>),
        offset: u64,
        data: Payload,
        underway: Arc<Underway>,
    ) {
        let (fs, keep) = (self.clone(), Some(underway.clone()));
        let (node, length) = (open.node, data.bytes().len());
        let answered = move |result: Result<Answer<'_>, Ended>| {
            {
                let _gate = fs.state.leases.gate();
                if let Some(change) = underway.ended_by(&result) {
                    fs.ended_plainly(&change, result.as_ref().ok(), node);
                }
            }
            let failed = match result.map(|answer| answer.outcome) {
                Ok(Outcome::Written { count, .. }) if count == length as u64 => None,
                // It was told the whole; what is missing is for want of room.
                Ok(Outcome::Written { .. }) => Some(Errno::ENOSPC),
                Ok(_) => Some(errno(Ended::Protocol)),
                Err(ended) => Some(errno(ended)),
            };
            if let Some(errno) = failed {
                fs.state.handles.lock().failed(node, errno);
                fs.forget_unwritten(node);
            }
            fs.end_behind(node, &(offset..offset + length as u64));
        };
        let op = Op::Write { handle: Handle(file), offset };
        self.carrier.submit(Call { op, data, pid: NOBODY.pid, done: Box::new(answered), keep });
    }

    /// Something of a file has ended; what comes next is sent.
    fn end_behind(&self, node: Node, range: &Range<u64>) {
        if let Some(Begun { setting, change }) = self.state.behind.end(node, range) {
            let change = self.state.leases.table().sent(change, Instant::now());
            self.send_setting(node, Begun { setting, change });
        }
    }

    /// Changes mode and times of a file that is open here to write, and answers as soon as the bounds allow; gives `done` back if that
    /// must not be. Whoever has it open is told of a failure, as of that of a write.
    pub(super) fn set_behind<Done: FnOnce(Result<Attrs, Errno>) + Send + 'static>(
        &self,
        node: Node,
        setting: Setting,
        done: Done,
    ) -> Result<(), Done> {
        let SetAttr { mode, uid, gid, size, atime, mtime } = setting.set;
        let plain = uid.or(gid).is_none() && size.is_none() && mode.is_none_or(|mode| mode & !0o777 == 0);
        let told = |file: &OpenFile| file.flags.write && file.at_gateway();
        let open = || self.state.handles.lock().of_node(node, told).is_some();
        if !plain || !self.may(node, Right::Attr) || !self.carrier.is_up() || !open() {
            return Err(done);
        }
        let (attr, next) = {
            // As for writes.
            let mut table = self.state.leases.table();
            if !table.is_exclusive(node) {
                return Err(done);
            }
            if mode.is_none() && atime.is_none() && mtime.is_none() {
                // Nothing changes.
                let Some(attr) = self.state.behind.foretold(node) else { return Err(done) };
                (attr, None)
            } else {
                let now = Instant::now();
                let known = table.attr(node, now);
                let begin = || table.begin_early(node, now);
                let Some(set) = self.state.behind.set(node, known, setting, begin) else { return Err(done) };
                set
            }
        };
        self.state.settles(node);
        // The kernel may not keep it: the gateway's clock has not spoken.
        let told = self.shown_attr(node, &attr).map(|attr| Attrs { attr, ttl: Duration::ZERO });
        self.state.behind.answer(Box::new(move || done(told)));
        if let Some(begun) = next {
            self.send_setting(node, begun);
        }
        Ok(())
    }

    fn send_setting(&self, node: Node, Begun { setting, change }: Begun) {
        let underway = Underway::early(&self.state, change);
        let (fs, keep) = (self.clone(), Some(underway.clone()));
        let Setting { set, handle, by } = setting;
        let answered = move |result: Result<Answer<'_>, Ended>| {
            {
                let _gate = fs.state.leases.gate();
                if let Some(change) = underway.ended_by(&result) {
                    let answer = result.as_ref().ok();
                    let (mut table, heard, sole) = fs.ended(&change, answer, None);
                    if let (Some(Answer { outcome: Outcome::Attr(attr), .. }), Some(heard)) = (answer, heard)
                        && sole.contains(&node)
                    {
                        table.learn(&heard, node, heard.note.node, attr, false);
                    }
                }
            }
            let failed = match result.map(|answer| answer.outcome) {
                Ok(Outcome::Attr(_)) => None,
                Ok(_) => Some(errno(Ended::Protocol)),
                Err(ended) => Some(errno(ended)),
            };
            if let Some(errno) = failed {
                fs.state.handles.lock().failed(node, errno);
            }
            fs.end_behind(node, &WHOLE);
        };
        let op = Op::Setattr { node, handle, set, by };
        let data = Payload::default();
        self.carrier.submit(Call { op, data, pid: NOBODY.pid, done: Box::new(answered), keep });
    }

    /// The kernel keeps what was to be written as the file's contents.
    fn forget_unwritten(&self, node: Node) {
        let Some(kernel) = self.state.leases.kernel().cloned() else { return };
        let number = self.state.nodes.lock().number(node);
        kernel.clone().aside(move || kernel.forget_pages(number));
    }

    fn ask_room(&self, node: Node) {
        let (asked, fs) = (Instant::now(), self.clone());
        self.ask_statfs(NOBODY, node, move |statfs| {
            if let Ok(statfs) = statfs {
                let free = statfs.free.saturating_mul(u64::from(statfs.block_size));
                fs.state.behind.learn_room(node.grant, free, asked);
            }
        });
    }
}
