//! Directories: opening and listing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo};
use strongroom_contracts::Right;
use strongroom_protocol::attr::{Handle, Node, OpenFlags};
use strongroom_protocol::op::Op;
use strongroom_protocol::readdir::{DirEntry, SPARE, entries};
use strongroom_protocol::reply::{Entry, Outcome};

use super::{Caller, Fs, Opened, Place, Told};
use crate::attr::entry_type;
use crate::errno::{Ended, errno};
use crate::lease::{Asked, Heard};
use crate::opening;
use crate::state::{Coming, OpenFile};
use crate::transport::{Answer, Call, Payload};
use crate::tree::Branch;

/// Where to go on after `.` and `..`, which the gateway does not send. Its cookies are positions of its file system, and
/// none of ext4, XFS, btrfs, tmpfs gives out these two.
const AFTER_DOT: u64 = 0x7fff_ffff_ffff_fff1;
const AFTER_DOTDOT: u64 = 0x7fff_ffff_ffff_fff2;

/// An entry as the kernel takes it.
pub struct DirOut<'a> {
    /// Inode number of the mount.
    pub number: u64,
    /// Where to go on after it.
    pub offset: u64,
    /// Type.
    pub kind: FileType,
    /// Name.
    pub name: &'a [u8],
    /// Attributes, for a listing with them.
    pub told: Option<Told>,
}

/// Takes entries, and then is finished once.
pub trait Sink: Send + 'static {
    /// Whether attributes are wanted.
    const PLUS: bool;
    /// Adds an entry; returns whether it was left out for want of room.
    fn add(&mut self, entry: &DirOut<'_>) -> bool;
    /// All that fits is there, or nothing can be listed.
    fn finish(self, result: Result<(), Errno>);
}

/// What became of a page.
enum Served {
    /// The kernel has enough.
    Full,
    /// The page was used up, to this cookie; whether anything came of it.
    Through { cookie: u64, any: bool },
}

impl Fs {
    /// Opens a directory.
    pub fn opendir(
        &self,
        caller: Caller,
        number: u64,
        done: impl FnOnce(Result<Opened, Errno>) + Send + 'static,
    ) {
        let node = match self.place(number) {
            // Nothing of the skeleton is open at the gateway.
            Place::Skeleton(_) => {
                let opened = Opened { file: 0, flags: FopenFlags::empty() };
                return done(self.unbarred().map(|()| opened));
            }
            Place::Granted(node) => node,
        };
        if self.may(node, Right::List) {
            let _gate = self.state.leases.gate();
            let kept = self.keep_listing(node);
            let flags = OpenFlags { read: true, ..OpenFlags::default() };
            if let Some(file) = self.open_lazily(node, flags, libc::S_IFDIR) {
                return done(Ok(Opened { file, flags: kept }));
            }
        }
        let (fs, asked) = (self.clone(), self.asked());
        let read = move |answer: Answer<'_>| match answer.outcome {
            Outcome::Opened(handle, attr) => {
                let heard = Heard { asked, life: answer.life, note: answer.note };
                fs.state.leases.table().learn(&heard, node, heard.note.node, &attr, false);
                let kept = fs.keep_listing(node);
                let flags = OpenFlags { read: true, ..OpenFlags::default() };
                let file = OpenFile::new(node, flags, true, false, answer.epoch, handle);
                Ok(Opened { file: fs.state.handles.lock().add(file), flags: kept })
            }
            _ => Err(errno(Ended::Protocol)),
        };
        self.ask(caller, Op::Opendir { node }, Payload::default(), read, done);
    }

    /// How the kernel may cache the listing of a directory that is being opened.
    fn keep_listing(&self, node: Node) -> FopenFlags {
        let soiled = self.scrub_needed(node);
        let table = self.state.leases.table();
        if !table.leased(node) {
            FopenFlags::empty()
        } else if !soiled && table.clean(node, Instant::now()) {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_CACHE_DIR
        }
    }

    /// Closes a directory.
    pub fn releasedir(
        &self,
        caller: Caller,
        file: u64,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        if file == 0 {
            return done(Ok(()));
        }
        let open = self.state.handles.lock().get(file);
        if let Some(open) = open
            && std::mem::take(&mut open.listing.lock().begun)
        {
            self.state.leases.table().listing_ends(open.node);
        }
        self.release(caller, file, None, done);
    }

    /// Brings a directory to stable storage.
    pub fn fsyncdir(&self, caller: Caller, file: u64, done: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        if file == 0 { done(Ok(())) } else { self.fsync(caller, file, false, done) }
    }

    /// Lists a directory from `offset` on.
    pub fn readdir<S: Sink>(&self, caller: Caller, number: u64, file: u64, offset: u64, mut sink: S) {
        let node = match self.place(number) {
            Place::Skeleton(directory) => {
                let listed = self.unbarred().map(|()| self.list_skeleton(directory, offset, &mut sink));
                return sink.finish(listed);
            }
            Place::Granted(node) => node,
        };
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return sink.finish(Err(Errno::EBADF)) };
        if !std::mem::replace(&mut open.listing.lock().begun, true) {
            self.state.leases.table().listing_begins(node);
        }
        let cookie = match offset {
            0 => {
                self.add_dots(number, self.parent_number(node), 0, &mut sink);
                0
            }
            AFTER_DOT => {
                self.add_dots(number, self.parent_number(node), 1, &mut sink);
                0
            }
            AFTER_DOTDOT => 0,
            cookie => cookie,
        };
        if offset == 0 {
            open.listing.lock().rewind();
        }
        let kept = take_kept(&open, cookie, S::PLUS);
        if kept.is_empty() {
            if offset != 0 && open.listing.lock().end == Some(cookie) {
                return sink.finish(Ok(()));
            }
            if open.is_lazy() {
                return self.next_page(caller, file, node, cookie, sink, offset == 0);
            }
            let fs = self.clone();
            let next = move |result: Result<(), Errno>| match result {
                Ok(()) => fs.next_page(caller, file, node, cookie, sink, offset == 0),
                Err(errno) => sink.finish(Err(errno)),
            };
            return opening::ensure(&self.submitter(), &open, caller.pid, next);
        }
        let gate = self.state.leases.gate();
        match self.serve(&open, node, cookie, &kept, &mut sink) {
            Served::Through { cookie, any: false } => {
                drop(gate);
                self.next_page(caller, file, node, cookie, sink, false);
            }
            Served::Full | Served::Through { .. } => sink.finish(Ok(())),
        }
    }

    fn next_page<S: Sink>(
        &self,
        caller: Caller,
        file: u64,
        node: Node,
        cookie: u64,
        mut sink: S,
        dots: bool,
    ) {
        let open = self.state.handles.lock().get(file);
        let Some(open) = open else { return sink.finish(Err(Errno::EBADF)) };
        let (fs, opened) = (self.clone(), open.clone());
        let max_bytes = open.listing.lock().next_size(S::PLUS, cookie);
        let answered = move |asked: Asked, result: Result<Answer<'_>, Ended>| {
            let (data, heard) = match page_of(asked, result) {
                Ok(page) => page,
                Err(errno) => return sink.finish(Err(errno)),
            };
            let page = Page::read(&open, (cookie, max_bytes), data);
            // What the kernel is told of nodes rests on what is known of them. Bare names do not, and go first.
            if S::PLUS {
                fs.learn_page(&open, &page, &heard);
            }
            let gate = fs.state.leases.gate();
            let unserved = match fs.serve(&open, node, cookie, data, &mut sink) {
                // All of them vanished meanwhile; an empty answer would mean the end.
                Served::Through { cookie, any: false } if !data.is_empty() && !dots => Some((cookie, sink)),
                Served::Through { cookie: next, .. } => {
                    if S::PLUS && cookie == 0 && !page.last {
                        fs.ask_page_ahead(&open, next);
                    }
                    sink.finish(Ok(()));
                    None
                }
                Served::Full => {
                    sink.finish(Ok(()));
                    None
                }
            };
            drop(gate);
            if !S::PLUS {
                fs.learn_page(&open, &page, &heard);
            }
            if let Some((cookie, sink)) = unserved {
                fs.next_page(caller, file, node, cookie, sink, false);
            }
        };
        let joined = opened.listing.lock().join(cookie, S::PLUS, Box::new(answered));
        let Err(answered) = joined else { return };
        let op = if opened.is_lazy() {
            Op::List { node, cookie, max_bytes, plus: S::PLUS, ahead: false }
        } else {
            Op::Readdir { handle: Handle(file), cookie, max_bytes, plus: S::PLUS }
        };
        let asked = self.asked();
        let done = Box::new(move |result: Result<Answer<'_>, Ended>| answered(asked, result));
        let call = Call { op, data: Payload::default(), pid: caller.pid, done, keep: None };
        if !S::PLUS {
            return self.carrier.submit(call);
        }
        // The attributes in it must not be from before what was answered already.
        let carrier = self.carrier.clone();
        self.state.behind.wait_for_all(Box::new(move || carrier.submit(call)));
    }

    /// Asks for the names from `cookie` on, which the kernel will ask for next unless somebody looks at those it has.
    fn ask_page_ahead(&self, open: &Arc<OpenFile>, cookie: u64) {
        if !open.is_lazy() {
            return;
        }
        let (number, max_bytes) = {
            let mut listing = open.listing.lock();
            let Some(number) = listing.expect(cookie) else { return };
            (number, listing.next_size(false, cookie))
        };
        let (fs, opened, asked) = (self.clone(), open.clone(), self.asked());
        let done = move |result: Result<Answer<'_>, Ended>| {
            let coming = opened.listing.lock().has_come(number);
            match coming {
                Some(Coming { waiter: Some(waiter), .. }) => waiter(asked, result),
                Some(Coming { waiter: None, .. }) => {
                    let Ok((data, heard)) = page_of(asked, result) else { return };
                    let page = Page::read(&opened, (cookie, max_bytes), data);
                    {
                        let mut kept = opened.listing.lock();
                        (kept.cookie, kept.plus, kept.data) = (cookie, false, data.to_vec());
                    }
                    fs.learn_page(&opened, &page, &heard);
                }
                // The kernel has asked for something else.
                None => {}
            }
        };
        let op = Op::List { node: open.node, cookie, max_bytes, plus: false, ahead: true };
        self.carrier.submit(Call { op, data: Payload::default(), pid: 0, done: Box::new(done), keep: None });
    }

    /// A page of a directory tells of names, of nodes, and at the end that there are no others.
    fn learn_page(&self, open: &OpenFile, page: &Page, heard: &Heard) {
        self.learn_entries(open.node, page.cookie == 0, &page.entries, heard);
        let survey = open.listing.lock().survey.take();
        let survey = self.surveyed(open.node, survey, (page.cookie, page.last), &page.entries, heard);
        open.listing.lock().survey = survey;
    }

    /// Adds the entries of a page; keeps what does not fit.
    fn serve<S: Sink>(&self, open: &OpenFile, node: Node, from: u64, data: &[u8], sink: &mut S) -> Served {
        let mut page = entries(data);
        let mut cookie = from;
        let mut any = false;
        loop {
            let rest = page.remaining();
            let entry = match page.next() {
                Some(Ok(entry)) => entry,
                // Damaged: what came before it counts, and the next request starts after that.
                Some(Err(_)) | None => return Served::Through { cookie, any },
            };
            let (next, added) = (entry.cookie, self.add_entry(node, entry, sink));
            match added {
                Some(true) => any = true,
                Some(false) => {
                    let mut kept = open.listing.lock();
                    kept.cookie = cookie;
                    kept.plus = S::PLUS;
                    kept.data = rest.to_vec();
                    return Served::Full;
                }
                None => {}
            }
            cookie = next;
        }
    }

    /// Whether the entry was added; `None` if it is not to be shown.
    fn add_entry<S: Sink>(&self, parent: Node, entry: DirEntry, sink: &mut S) -> Option<bool> {
        let node = Node { grant: parent.grant, ino: entry.ino };
        let number = self.state.nodes.lock().number(node);
        let mut out = DirOut {
            number,
            offset: entry.cookie,
            kind: entry_type(entry.kind).unwrap_or(FileType::RegularFile),
            name: entry.name.as_bytes(),
            told: None,
        };
        let mut fresh = true;
        if S::PLUS {
            // Without attributes: it vanished meanwhile. (fuser 0.18 cannot list it without.)
            let seen = entry.attr?;
            // The page may be older than what is known by now.
            let known = self.state.leases.table().attr(node, Instant::now());
            // And what is known may be of another file that had the number.
            let known = known.filter(|known| known.generation == seen.generation);
            fresh = !self.state.nodes.lock().knows(node);
            let attr = known.unwrap_or(seen);
            let mut told = self.found(parent, &entry.name, node, &attr).ok()?;
            // fuser 0.18 has one time for both here.
            let both = if known.is_some() { told.attr_ttl.min(told.entry_ttl) } else { Duration::ZERO };
            (told.attr_ttl, told.entry_ttl) = (both, both);
            out.number = told.attr.ino.0;
            out.told = Some(told);
        }
        if sink.add(&out) {
            return Some(false);
        }
        if let Some(told) = out.told {
            self.state.nodes.lock().tell_named(node, told.generation, parent, entry.name);
            if fresh {
                self.state.leases.table().fresh(node);
            }
        }
        Some(true)
    }

    fn parent_number(&self, node: Node) -> u64 {
        let mut nodes = self.state.nodes.lock();
        let parent = nodes.parent(node);
        parent.map_or(crate::tree::ROOT, |parent| nodes.number(parent))
    }

    fn add_dots<S: Sink>(&self, number: u64, parent: u64, from: usize, sink: &mut S) {
        let dots = [(number, AFTER_DOT, &b"."[..]), (parent, AFTER_DOTDOT, &b".."[..])];
        for (number, offset, name) in dots.into_iter().skip(from) {
            // The kernel takes neither for something it was told of.
            let told = Some(Told {
                attr: FileAttr { ino: INodeNo(number), ..self.skeleton_attr(number) },
                generation: 0,
                attr_ttl: Duration::ZERO,
                entry_ttl: Duration::ZERO,
            });
            if sink.add(&DirOut { number, offset, kind: FileType::Directory, name, told }) {
                return;
            }
        }
    }

    fn list_skeleton<S: Sink>(&self, directory: u64, offset: u64, sink: &mut S) {
        let (parent, children) = {
            let tree = self.state.tree.read();
            (tree.parent(directory), tree.entries(directory))
        };
        let dots =
            [(b".".to_vec(), Branch::Directory(directory)), (b"..".to_vec(), Branch::Directory(parent))];
        let all = dots.into_iter().chain(children).enumerate();
        for (position, (name, branch)) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let offset = position as u64 + 1;
            let root = match branch {
                Branch::Directory(_) => None,
                Branch::Grant(grant) => self.root_entry(grant),
            };
            let (number, told) = match (branch, &root) {
                (Branch::Directory(number), _) => {
                    (number, Some(Told { attr_ttl: Duration::ZERO, ..self.skeleton_told(number) }))
                }
                (Branch::Grant(_), Some((node, entry))) => {
                    let attr = self.shown_attr(*node, &entry.attr).ok();
                    let number = self.state.nodes.lock().number(*node);
                    let told = |attr| Told {
                        attr,
                        generation: entry.attr.generation,
                        attr_ttl: Duration::ZERO,
                        entry_ttl: Duration::ZERO,
                    };
                    (number, attr.map(told))
                }
                (Branch::Grant(_), None) => (0, None),
            };
            if sink.add(&DirOut { number, offset, kind: FileType::Directory, name: &name, told }) {
                return;
            }
            if S::PLUS
                && let Some((node, entry)) = root
            {
                self.state.nodes.lock().tell_root(node, entry.attr.generation);
            }
        }
    }

    /// The root of a grant as it was told at the welcome; its attributes are only shown for as long as a listing takes.
    fn root_entry(&self, grant: u16) -> Option<(Node, Entry)> {
        let attr = self.state.grants.read().get(grant)?.root?;
        let node = Node { grant, ino: attr.ino };
        Some((node, Entry { node, attr }))
    }
}

/// A page of a directory as it came.
struct Page {
    cookie: u64,
    entries: Vec<DirEntry>,
    last: bool,
}

impl Page {
    /// Reads a page that begins at the cookie; notes where the directory ends, if it does here.
    fn read(open: &OpenFile, (cookie, max_bytes): (u64, u32), data: &[u8]) -> Page {
        let entries: Vec<DirEntry> = entries(data).map_while(Result::ok).collect();
        let next = entries.last().map_or(cookie, |last| last.cookie);
        let last = data.is_empty() || is_last(data.len(), max_bytes);
        open.listing.lock().end = last.then_some(next);
        Page { cookie, entries, last }
    }
}

fn page_of<'a>(asked: Asked, result: Result<Answer<'a>, Ended>) -> Result<(&'a [u8], Heard), Errno> {
    match result {
        Ok(Answer { outcome: Outcome::Data, data, life, note, .. }) => {
            Ok((data, Heard { asked, life, note }))
        }
        Ok(_) => Err(errno(Ended::Protocol)),
        Err(ended) => Err(errno(ended)),
    }
}

/// Whether a page is the last one of its directory.
pub(super) fn is_last(length: usize, asked_for: u32) -> bool {
    length + SPARE <= asked_for as usize
}

fn take_kept(open: &OpenFile, cookie: u64, plus: bool) -> Vec<u8> {
    let mut kept = open.listing.lock();
    if kept.cookie == cookie && kept.plus == plus { std::mem::take(&mut kept.data) } else { vec![] }
}
