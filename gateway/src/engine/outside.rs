//! What others than the gateway change below the data root (an administrator, a backup put back): noticed by fanotify(7), as
//! a best effort, so that leases may be long.
//!
//! It is noticed after it has happened, within some hundredths of a second; until then a guest may still see what it has
//! cached. The gateway's own changes are told apart by the process that made them. Where the kernel does not let the
//! gateway watch (it needs CAP_SYS_ADMIN), leases are short instead.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Shared;
use crate::leases::Change;
use crate::sys;
use crate::tree::{Node, Stat};

/// How long events gather before they are read, so that the gateway's own cost little.
const GATHER: Duration = Duration::from_millis(20);
/// How often it is looked whether the engine is still there.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const BUFFER: usize = 64 << 10;

/// Bytes of `struct fanotify_event_metadata`.
const METADATA: usize = 24;
/// `FAN_EVENT_INFO_TYPE_FID`, `FAN_EVENT_INFO_TYPE_DFID_NAME`, `FAN_EVENT_INFO_TYPE_DFID`.
const OBJECT: u8 = 1;
const ENTRY: u8 = 2;
const DIRECTORY: u8 = 3;

/// An event of another process.
#[derive(Debug, PartialEq, Eq, Default)]
struct Seen<'a> {
    mask: u64,
    /// Of the directory, and the name in it.
    entry: Option<(Handle<'a>, &'a [u8])>,
    /// Of the object itself.
    object: Option<Handle<'a>>,
}

/// A file handle (name_to_handle_at(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Handle<'a> {
    kind: i32,
    bytes: &'a [u8],
}

/// Watches for as long as the engine lives.
///
/// # Errors
/// Why it cannot: `EPERM` without CAP_SYS_ADMIN, others where the file system has no handles.
pub(super) fn watch(shared: &Arc<Shared>) -> Result<(), std::io::Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let root =
        shared.tree.open_node(shared.tree.root(), flags).map_err(|_| std::io::Error::from(Errno::IO))?.0;
    let events = sys::watch_file_system(root.as_fd())?;
    let engine = Arc::downgrade(shared);
    std::thread::Builder::new().name("outside".into()).spawn(move || run(&engine, &root, &events))?;
    Ok(())
}

fn run(engine: &Weak<Shared>, root: &OwnedFd, events: &OwnedFd) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut ready = [PollFd::new(events, PollFlags::IN)];
        let any = poll(&mut ready, Some(&LOOK)).is_ok_and(|count| count > 0);
        let Some(shared) = engine.upgrade() else { return };
        if !any {
            continue;
        }
        std::thread::sleep(GATHER);
        // Until what has gathered is read, not until there is nothing more: others may go on and on.
        while let Ok(length) = rustix::io::read(events, &mut buffer) {
            let mut strangers = HashSet::new();
            for seen in parse(buffer.get(..length).unwrap_or_default(), own) {
                tell(&shared, root, &seen, &mut strangers);
            }
            if length < BUFFER / 2 {
                break;
            }
        }
    }
}

/// `strangers`: objects that the gateway was found not to know, in the same batch of events.
fn tell<'a>(shared: &Shared, root: &OwnedFd, seen: &Seen<'a>, strangers: &mut HashSet<Handle<'a>>) {
    if seen.mask & libc::FAN_Q_OVERFLOW != 0 {
        // Whatever it was is unknown.
        shared.lessees.all().iter().for_each(|lessee| lessee.recall_everything());
        return;
    }
    let mut node = |handle: Handle<'a>| -> Option<Arc<Node>> {
        if strangers.contains(&handle) {
            return None;
        }
        let opened = sys::open_by_handle(root.as_fd(), handle.kind, handle.bytes);
        let known = opened.ok().and_then(|fd| shared.tree.known(&Stat::of(&fd).ok()?));
        if known.is_none() {
            strangers.insert(handle);
        }
        known
    };
    const NAMES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
    if seen.mask & NAMES != 0
        && let Some((dir, name)) = seen.entry
        && let Some(dir) = node(dir)
    {
        shared.changed_outside(&dir, Change::Name(name));
    }
    if let Some(node) = seen.object.and_then(node) {
        let data = seen.mask & libc::FAN_MODIFY != 0;
        shared.changed_outside(&node, Change::All { data, open: false });
    }
}

/// The events of others than process `own`.
fn parse(mut bytes: &[u8], own: i32) -> Vec<Seen<'_>> {
    let mut all = vec![];
    while let Some((event, rest)) = split(bytes, 0, METADATA) {
        bytes = rest;
        let number =
            |at: usize| event.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        let mask = event.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        let (Some(mask), Some(pid)) = (mask, number(20)) else { break };
        if pid == own && mask & libc::FAN_Q_OVERFLOW == 0 {
            continue;
        }
        let mut seen = Seen { mask, ..Seen::default() };
        let mut records = event.get(METADATA..).unwrap_or_default();
        while let Some((kind, body, rest)) = record(records) {
            records = rest;
            match (kind, handle(body)) {
                (OBJECT, Some((handle, _))) => seen.object = Some(handle),
                (ENTRY, Some((handle, name))) => seen.entry = Some((handle, until_nul(name))),
                (DIRECTORY, Some((handle, _))) => seen.object = Some(handle),
                _ => {}
            }
        }
        all.push(seen);
    }
    all
}

/// Splits off what begins with its own length as 4 bytes at `at`.
fn split(bytes: &[u8], at: usize, least: usize) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
    if length < least { None } else { bytes.split_at_checked(length) }
}

/// `struct fanotify_event_info_header`, what follows it, and the next records.
fn record(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?));
    if length < 4 {
        return None;
    }
    let (this, rest) = bytes.split_at_checked(length)?;
    Some((*this.first()?, this.get(4..)?, rest))
}

/// The file system's number (8 bytes), a handle, and what follows.
fn handle(body: &[u8]) -> Option<(Handle<'_>, &[u8])> {
    let length = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?) as usize;
    let kind = i32::from_ne_bytes(body.get(12..16)?.try_into().ok()?);
    let (bytes, rest) = body.get(16..)?.split_at_checked(length)?;
    Some((Handle { kind, bytes }, rest))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pid: i32, mask: u64, records: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
        let mut infos = vec![];
        for (kind, handle, name) in records {
            let length = 4 + 8 + 8 + handle.len() + name.len();
            infos.extend([*kind, 0]);
            infos.extend((length as u16).to_ne_bytes());
            infos.extend([7; 8]);
            infos.extend((handle.len() as u32).to_ne_bytes());
            infos.extend(1_i32.to_ne_bytes());
            infos.extend(*handle);
            infos.extend(*name);
        }
        let mut all = ((METADATA + infos.len()) as u32).to_ne_bytes().to_vec();
        all.extend([3, 0, 24, 0]);
        all.extend(mask.to_ne_bytes());
        all.extend((-1_i32).to_ne_bytes());
        all.extend(pid.to_ne_bytes());
        all.extend(infos);
        all
    }

    #[test]
    fn events_of_others_are_read_and_damaged_ones_end_it() {
        let first = event(5, libc::FAN_CREATE, &[(ENTRY, b"dir.", b"name\0\0\0"), (OBJECT, b"file", b"")]);
        let own = event(9, libc::FAN_MODIFY, &[(OBJECT, b"file", b"")]);
        let last = event(0, libc::FAN_ATTRIB, &[(77, b"?", b""), (OBJECT, b"file", b"")]);
        let all = [&first[..], &own, &last].concat();
        let file = Handle { kind: 1, bytes: b"file" };
        let dir = Handle { kind: 1, bytes: b"dir." };
        let seen = parse(&all, 9);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0], Seen { mask: libc::FAN_CREATE, entry: Some((dir, b"name")), object: Some(file) });
        assert_eq!(seen[1], Seen { mask: libc::FAN_ATTRIB, entry: None, object: Some(file) });
        for length in 0..all.len() {
            assert!(parse(&all[..length], 9).len() <= 2);
        }
        assert!(parse(&[0; 64], 9).is_empty());
    }
}
