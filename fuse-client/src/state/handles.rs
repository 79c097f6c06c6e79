//! Open files and directories, and how to open them again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use fuser::Errno;
use parking_lot::Mutex;
use strongroom_protocol::attr::{Handle, Node, OpenFlags};
use strongroom_protocol::readdir::SPARE;

use crate::errno::Ended;
use crate::lease::Asked;
use crate::transport::Answer;

/// Where an open file stands with the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// The client's count of gateway processes and sessions; a handle of another one is unknown there.
    pub epoch: u64,
    /// The gateway's handle.
    pub handle: Handle,
    /// Why it could not be opened again.
    pub dead: Option<Errno>,
}

/// An open file or directory.
#[derive(Debug)]
pub struct OpenFile {
    /// What is open.
    pub node: Node,
    /// How.
    pub flags: OpenFlags,
    /// Whether it is a directory.
    pub directory: bool,
    /// Whether it was opened by creating, so that it may claim the rights of the creator.
    pub created: bool,
    /// Its handle at the gateway.
    pub wire: Mutex<Wire>,
    /// Entries that came with the last page of the directory and have not been asked for yet.
    pub listing: Mutex<Listing>,
    failure: Mutex<Option<Errno>>,
    closing: Mutex<bool>,
    stage: Mutex<Stage>,
}

/// What is done when a file is open at the gateway.
pub type Then = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// How far a file is with being open at the gateway.
enum Stage {
    /// The gateway does not know of it.
    Lazy,
    /// It has been asked; these wait for the answer.
    Asked(Vec<Then>),
    Open,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Lazy => "lazy",
            Stage::Asked(_) => "asked",
            Stage::Open => "open",
        })
    }
}

/// What is to be done about opening a file at the gateway.
pub enum Turn {
    /// It is open: go on.
    Open(Then),
    /// Somebody is opening it; it will be gone on with.
    Wait,
    /// Open it, then call [`OpenFile::settle`].
    First,
}

/// Bytes of entries asked for at a time; what the kernel has no room for yet is kept for its next request.
const PAGE: u32 = 64 * 1024;
/// Bytes of the first page with attributes: the kernel asks for them to begin with, and goes on only if somebody looks at them.
/// A directory with less than what is above [`SPARE`] is there with one page.
const FIRST_PAGE: u32 = SPARE as u32 + 6 * 1024;

/// A page of a directory in the form of the wire, from `cookie` on.
#[derive(Debug, Default)]
pub struct Listing {
    /// The cookie of the first byte.
    pub cookie: u64,
    /// Whether the attributes are in it.
    pub plus: bool,
    /// The entries not yet used.
    pub data: Vec<u8>,
    /// The listing from the start, as long as every page of it may be kept.
    pub survey: Option<Survey>,
    /// Behind the last entry, if that is known.
    pub end: Option<u64>,
    /// The page after it, asked for before the kernel did.
    pub coming: Option<Coming>,
    /// It has been listed from ([`crate::lease::Table::listing_begins`]).
    pub begun: bool,
    /// Bytes of the last page with attributes.
    size: u32,
    /// Pages asked for ahead so far.
    ahead: u64,
}

impl Listing {
    /// It is listed from the start again: what was there before does not count any more (rewinddir(3)).
    pub fn rewind(&mut self) {
        self.data.clear();
        self.give_up_coming();
    }

    /// Notes that a page without attributes is asked for ahead, unless one is on its way; returns its number.
    pub fn expect(&mut self, cookie: u64) -> Option<u64> {
        if self.coming.is_some() {
            return None;
        }
        self.ahead += 1;
        self.coming = Some(Coming { cookie, number: self.ahead, waiter: None });
        Some(self.ahead)
    }

    /// The page asked for ahead has come; `None` if it was given up.
    pub fn has_come(&mut self, number: u64) -> Option<Coming> {
        self.coming.take_if(|coming| coming.number == number)
    }

    /// Waits for the page asked for ahead, if it is this one; otherwise nobody will.
    pub fn join(&mut self, cookie: u64, plus: bool, waiter: Waiter) -> Result<(), Waiter> {
        match &mut self.coming {
            Some(coming) if coming.cookie == cookie && !plus && coming.waiter.is_none() => {
                coming.waiter = Some(waiter);
                Ok(())
            }
            _ => {
                self.give_up_coming();
                Err(waiter)
            }
        }
    }

    fn give_up_coming(&mut self) {
        // Who waits already goes on waiting.
        self.coming.take_if(|coming| coming.waiter.is_none());
    }

    /// How many bytes of entries to ask for.
    pub fn next_size(&mut self, plus: bool, cookie: u64) -> u32 {
        if !plus {
            return PAGE;
        }
        let former = if cookie == 0 { 0 } else { self.size };
        self.size = former.saturating_mul(2).clamp(FIRST_PAGE, PAGE);
        self.size
    }
}

/// A page without attributes that was asked for ahead.
pub struct Coming {
    /// Where it begins.
    pub cookie: u64,
    /// Which one it is: one that was given up may come later.
    pub number: u64,
    /// The kernel has asked for it meanwhile.
    pub waiter: Option<Waiter>,
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited_for = self.waiter.is_some();
        f.debug_struct("Coming").field("cookie", &self.cookie).field("waited_for", &waited_for).finish()
    }
}

/// Gets a page that came, and when it was asked for.
pub type Waiter = Box<dyn FnOnce(Asked, Result<Answer<'_>, Ended>) + Send>;

/// A listing from the start of which all names have been learnt so far.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    /// When its first page was asked for.
    pub asked: Asked,
    /// The stamp of the first page.
    pub stamp: u64,
    /// Where the next page must begin.
    pub next: u64,
}

impl OpenFile {
    /// A file just opened.
    pub fn new(
        node: Node,
        flags: OpenFlags,
        directory: bool,
        created: bool,
        epoch: u64,
        handle: Handle,
    ) -> OpenFile {
        OpenFile {
            node,
            // What is opened again must not be cut again, and exists.
            flags: OpenFlags { truncate: false, exclusive: false, ..flags },
            directory,
            created,
            wire: Mutex::new(Wire { epoch, handle, dead: None }),
            listing: Mutex::default(),
            failure: Mutex::default(),
            closing: Mutex::new(false),
            stage: Mutex::new(Stage::Open),
        }
    }

    /// A file of which the gateway is not told yet.
    pub fn lazy(node: Node, flags: OpenFlags, directory: bool) -> OpenFile {
        let stage = Mutex::new(Stage::Lazy);
        OpenFile { stage, ..OpenFile::new(node, flags, directory, false, 0, Handle(0)) }
    }

    /// Whether the gateway does not know of it.
    pub fn is_lazy(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Lazy)
    }

    /// Whether it is open at the gateway.
    pub fn at_gateway(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Open)
    }

    /// What is to be done so that `then` can be.
    pub fn turn(&self, then: Then) -> Turn {
        let mut stage = self.stage.lock();
        match &mut *stage {
            Stage::Open => Turn::Open(then),
            Stage::Asked(waiting) => {
                waiting.push(then);
                Turn::Wait
            }
            Stage::Lazy => {
                *stage = Stage::Asked(vec![then]);
                Turn::First
            }
        }
    }

    /// Takes it upon the caller to open the file; `false` if somebody else does or has.
    pub fn claim(&self) -> bool {
        let mut stage = self.stage.lock();
        let lazy = matches!(*stage, Stage::Lazy);
        if lazy {
            *stage = Stage::Asked(vec![]);
        }
        lazy
    }

    /// Opening was given up by whoever did it; returns those who still wait.
    pub fn give_back(&self) -> Vec<Then> {
        match std::mem::replace(&mut *self.stage.lock(), Stage::Lazy) {
            Stage::Asked(waiting) => waiting,
            Stage::Lazy | Stage::Open => vec![],
        }
    }

    /// The gateway has opened the file, or not; whoever waits goes on.
    pub fn settle(&self, opened: Result<Wire, Errno>) {
        let result = opened.map(|wire| *self.wire.lock() = wire);
        let before = {
            let next = if result.is_ok() { Stage::Open } else { Stage::Lazy };
            std::mem::replace(&mut *self.stage.lock(), next)
        };
        if let Stage::Asked(waiting) = before {
            waiting.into_iter().for_each(|then| then(result));
        }
    }

    /// Why something that was answered early could not be written, once.
    pub fn take_failure(&self) -> Option<Errno> {
        self.failure.lock().take()
    }

    /// It was closed without the gateway ever having known of it, by whoever has [`OpenFile::claim`]ed it: whoever has begun to wait
    /// for its opening meanwhile, or still comes to, has nothing to wait for.
    pub fn gone(&self) {
        let before = std::mem::replace(&mut *self.stage.lock(), Stage::Open);
        if let Stage::Asked(waiting) = before {
            waiting.into_iter().for_each(|then| then(Ok(())));
        }
    }

    /// Whether its release is under way.
    pub fn closing(&self) -> bool {
        *self.closing.lock()
    }
}

/// The open files of the mount, by the number that the kernel has.
#[derive(Debug, Default)]
pub struct Handles {
    open: HashMap<u64, Arc<OpenFile>>,
    by_node: HashMap<Node, Vec<u64>>,
    last: u64,
}

impl Handles {
    /// Notes an open file; returns its number.
    pub fn add(&mut self, file: OpenFile) -> u64 {
        self.last += 1;
        self.by_node.entry(file.node).or_default().push(self.last);
        self.open.insert(self.last, Arc::new(file));
        self.last
    }

    /// An open file.
    pub fn get(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.open.get(&number).cloned()
    }

    /// Marks a file as being released: it serves no other request any more.
    pub fn close(&mut self, number: u64) -> Option<Arc<OpenFile>> {
        let file = self.open.get(&number)?.clone();
        *file.closing.lock() = true;
        self.unlist(file.node, number);
        Some(file)
    }

    fn unlist(&mut self, node: Node, number: u64) {
        if let Some(list) = self.by_node.get_mut(&node) {
            list.retain(|other| *other != number);
            if list.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// Forgets a file that was released.
    pub fn remove(&mut self, number: u64) {
        if let Some(file) = self.open.remove(&number) {
            self.unlist(file.node, number);
        }
    }

    /// An open file of the node that suits, if there is one.
    pub fn of_node(&self, node: Node, suits: impl Fn(&OpenFile) -> bool) -> Option<u64> {
        let list = self.by_node.get(&node)?;
        list.iter().copied().find(|number| {
            self.open.get(number).is_some_and(|file| file.wire.lock().dead.is_none() && suits(file))
        })
    }

    /// What was written to a node and answered early could not be written: all that have it open to write are told, once each.
    pub fn failed(&self, node: Node, errno: Errno) {
        self.files_of(node)
            .filter(|file| file.flags.write)
            .for_each(|file| *file.failure.lock() = Some(errno));
    }

    /// Whether a node is open.
    pub fn has(&self, node: Node) -> bool {
        self.by_node.contains_key(&node)
    }

    /// Whether a node is open that is no directory: what is mapped is.
    pub fn has_file(&self, node: Node) -> bool {
        self.files_of(node).any(|file| !file.directory)
    }

    fn files_of(&self, node: Node) -> impl Iterator<Item = &Arc<OpenFile>> {
        self.by_node.get(&node).into_iter().flatten().filter_map(|number| self.open.get(number))
    }

    /// All nodes that are open and no directories.
    pub fn files(&self) -> Vec<Node> {
        self.by_node.keys().copied().filter(|node| self.has_file(*node)).collect()
    }

    /// The files of such nodes that are not open at the gateway yet.
    pub fn lazy(&self, which: &dyn Fn(Node) -> bool) -> Vec<Arc<OpenFile>> {
        let open = self.open.values().filter(|file| which(file.node) && !file.at_gateway());
        open.cloned().collect()
    }

    /// The files of one node that are not open at the gateway yet.
    pub fn lazy_of(&self, node: Node) -> bool {
        self.files_of(node).any(|file| !file.at_gateway())
    }

    /// All open files, in the order in which they were opened.
    pub fn all(&self) -> Vec<(u64, Arc<OpenFile>)> {
        let mut all: Vec<_> = self.open.iter().map(|(number, file)| (*number, file.clone())).collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64, write: bool) -> OpenFile {
        let flags = OpenFlags { read: true, write, truncate: true, exclusive: true, ..OpenFlags::default() };
        OpenFile::new(Node { grant: 0, ino }, flags, false, write, 1, Handle(ino))
    }

    #[test]
    fn what_is_opened_again_is_not_cut_again() {
        let file = file(1, true);
        assert!(!file.flags.truncate && !file.flags.exclusive && file.flags.write);
    }

    #[test]
    fn files_are_found_by_node_until_they_close_or_die() {
        let mut handles = Handles::default();
        let node = Node { grant: 0, ino: 5 };
        let reader = handles.add(file(5, false));
        let writer = handles.add(file(5, true));
        assert_eq!(handles.of_node(node, |file| file.created), Some(writer));
        assert_eq!(handles.of_node(node, |_| true), Some(reader));
        handles.get(reader).unwrap().wire.lock().dead = Some(Errno::EIO);
        assert_eq!(handles.of_node(node, |_| true), Some(writer));
        assert!(handles.close(writer).unwrap().closing());
        assert_eq!(handles.of_node(node, |_| true), None);
        assert!(handles.get(writer).is_some(), "until it is released");
        handles.remove(writer);
        handles.remove(reader);
        assert!(handles.is_empty() && handles.by_node.is_empty());
    }

    #[test]
    fn whoever_waits_for_the_opening_of_what_is_closed_goes_on() {
        let file = OpenFile::lazy(Node { grant: 0, ino: 1 }, OpenFlags::default(), true);
        let told = Arc::new(Mutex::new(0));
        let wait = || {
            let told = told.clone();
            file.turn(Box::new(move |result| *told.lock() += u32::from(result.is_ok())))
        };
        assert!(file.claim(), "by its closing");
        assert!(matches!(wait(), Turn::Wait), "before its name is removed");
        assert_eq!(*told.lock(), 0);
        file.gone();
        assert_eq!(*told.lock(), 1);
        assert!(matches!(wait(), Turn::Open(_)), "nobody opens it any more");
    }
}
