//! Asking ahead: directories are listed, and small files read, before anybody asks for each of them. What comes is kept as any
//! other answer is, under leases; nothing waits for it.

use strongroom_contracts::Right;
use strongroom_protocol::attr::Node;
use strongroom_protocol::files::files;
use strongroom_protocol::lease::Lease;
use strongroom_protocol::op::Op;
use strongroom_protocol::readdir::{DirEntry, entries};
use strongroom_protocol::reply::{Failure, Outcome};

use super::Fs;
use super::directory::is_last;
use crate::errno::Ended;
use crate::lease::Heard;
use crate::state::{Batch, FileHint, LONGEST, Survey, ToList};
use crate::transport::{Answer, Call, Payload};

/// Bytes of entries asked for at a time.
const PAGE: u32 = 64 * 1024;
/// `d_type` of a directory.
const DT_DIR: u8 = 4;

impl Fs {
    /// A name had to be asked for.
    pub(super) fn missed(&self, dir: Node) {
        if !self.state.leases.table().leased(dir) || !self.may(dir, Right::List) {
            return;
        }
        let turn = self.state.ahead.lock().missed(dir);
        if let Some(turn) = turn {
            self.list_ahead(turn);
        }
    }

    /// A name was known.
    pub(super) fn found_known(&self, dir: Node) {
        let turn = self.state.ahead.lock().found(dir);
        if let Some(turn) = turn {
            self.list_ahead(turn);
        }
    }

    fn list_ahead(&self, turn: ToList) {
        let (fs, asked) = (self.clone(), self.asked());
        let ToList { dir, cookie } = turn;
        let done = move |result: Result<Answer<'_>, Ended>| {
            match result {
                Ok(Answer { outcome: Outcome::Data, data, life, note, .. }) => {
                    fs.listed_ahead(turn, data, &Heard { asked, life, note });
                }
                _ => fs.state.ahead.lock().came(dir, 0, None, &[]),
            }
            loop {
                // Not locked while something is asked.
                let next = fs.state.ahead.lock().next_turn();
                let Some(next) = next else { break };
                fs.list_ahead(next);
            }
        };
        let op = Op::List { node: dir, cookie, max_bytes: PAGE, plus: true, ahead: true };
        self.carrier.submit(Call { op, data: Payload::default(), pid: 0, done: Box::new(done), keep: None });
    }

    fn listed_ahead(&self, ToList { dir, cookie }: ToList, data: &[u8], heard: &Heard) {
        let page: Vec<DirEntry> = entries(data).map_while(Result::ok).collect();
        self.learn_entries(dir, cookie == 0, &page, heard);
        let survey = self.state.ahead.lock().survey(dir);
        let last = data.is_empty() || is_last(data.len(), PAGE);
        let survey = self.surveyed(dir, survey, (cookie, last), &page, heard);
        let goes_on = !last && self.state.leases.table().has_room(page.len());
        let next = page.last().filter(|_| goes_on).map(|last| (last.cookie, survey));
        let below: Vec<Node> = page
            .iter()
            .filter(|entry| entry.kind == DT_DIR && entry.leased)
            .map(|entry| Node { grant: dir.grant, ino: entry.ino })
            .collect();
        // A page is at most 1 MiB.
        self.state.ahead.lock().came(dir, page.len() as u32, next, &below);
    }

    /// Learns of the names and nodes in a page of a directory.
    pub(super) fn learn_entries(&self, dir: Node, first: bool, page: &[DirEntry], heard: &Heard) {
        let files = page.iter().filter(|entry| entry.leased).filter_map(|entry| {
            let attr = entry.attr.filter(|attr| attr.mode & libc::S_IFMT == libc::S_IFREG)?;
            Some(FileHint { name: entry.name.clone(), ino: entry.ino, size: attr.size })
        });
        self.state.reading.lock().listed(dir, first, files);
        let nodes = self.state.nodes.lock();
        let mut table = self.state.leases.table();
        for entry in page {
            let node = Node { grant: dir.grant, ino: entry.ino };
            if let Some(attr) = entry.attr.as_ref().filter(|_| entry.leased) {
                table.learn(heard, node, Lease::Shared, attr, !nodes.knows(node));
            }
            table.learn_name(heard, dir, &entry.name, Some(node));
        }
    }

    /// A page from `cookie` on was learnt. Returns the listing from the start so far, if all of it may be kept; after the last page
    /// it is known that there are no other names.
    pub(super) fn surveyed(
        &self,
        dir: Node,
        survey: Option<Survey>,
        (cookie, last): (u64, bool),
        page: &[DirEntry],
        heard: &Heard,
    ) -> Option<Survey> {
        let survey = match survey {
            _ if cookie == 0 => Some(Survey { asked: heard.asked, stamp: heard.note.stamp, next: 0 }),
            survey => survey.filter(|survey| survey.next == cookie),
        };
        let survey = survey.filter(|_| heard.note.names)?;
        if last {
            let heard = Heard { asked: survey.asked, ..*heard };
            self.state.leases.table().learn_all(&heard, dir, survey.stamp);
            return None;
        }
        page.last().map(|last| Survey { next: last.cookie, ..survey })
    }
}

/// Reading ahead.
impl Fs {
    /// A file that was not read ahead is read.
    pub(super) fn read_missed(&self, node: Node) {
        let dir = self.state.nodes.lock().parent(node);
        let batch = dir.and_then(|dir| self.state.reading.lock().missed(dir, node.ino));
        if let Some(batch) = batch {
            self.read_ahead(batch);
        }
    }

    /// A file that was read ahead is read.
    pub(super) fn read_found(&self, node: Node) {
        let dir = self.state.nodes.lock().parent(node);
        let batch = dir.and_then(|dir| self.state.reading.lock().found(dir, node.ino));
        if let Some(batch) = batch {
            self.read_ahead(batch);
        }
    }

    fn read_ahead(&self, batch: Batch) {
        let (fs, asked) = (self.clone(), self.asked());
        let Batch { dir, files: numbers, bytes } = batch;
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let done = move |result: Result<Answer<'_>, Ended>| {
            match result {
                Ok(Answer { outcome: Outcome::Data, data, life, note, .. }) => {
                    fs.learn_files(dir, &numbers, data, &Heard { asked, life, note });
                }
                Err(Ended::Failed(Failure::Errno(errno))) if i32::from(errno) == libc::EOPNOTSUPP => {
                    return fs.state.reading.lock().give_up();
                }
                _ => {}
            }
            fs.state.reading.lock().came(dir);
        };
        let op = Op::ReadFiles { grant: dir.grant, longest: LONGEST as u32, max_bytes: bytes };
        self.carrier.submit(Call { op, data: data.into(), pid: 0, done: Box::new(done), keep: None });
    }

    fn learn_files(&self, dir: Node, numbers: &[u64], data: &[u8], heard: &Heard) {
        for file in files(data).map_while(Result::ok) {
            let Some(number) = numbers.get(usize::from(file.position)) else { continue };
            let node = Node { grant: dir.grant, ino: *number };
            let fresh = !self.state.nodes.lock().knows(node);
            // Not locked for long at a time: others read meanwhile.
            self.state.leases.table().learn_contents(heard, node, &file.attr, file.contents, fresh);
        }
    }
}
