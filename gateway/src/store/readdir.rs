//! Reading a directory, with attributes if wanted.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::name::Name;
use strongroom_protocol::readdir::{DirEntry, OVERHEAD, SPARE, push};
use strongroom_protocol::reply::Outcome;

use crate::engine::ReplyBuf;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnHandle, OnNode, Permit};
use crate::tree::{Node, Stat};

const BATCH: usize = 16 << 10;
/// The least bytes that an entry without attributes takes; bounds how many fit.
const LEAST: usize = 24;

pub(crate) fn readdir(
    permit: &Permit<'_, OnHandle>,
    cookie: u64,
    max_bytes: u32,
    plus: bool,
    out: &mut ReplyBuf,
) -> Checked<Outcome> {
    let open = permit.target();
    begin(permit, &open.node, cookie)?;
    let asked = Asked { dir: &open.node, file: open.file()?, cookie, max_bytes, plus, ahead: false };
    page(permit, &asked, &mut open.position.lock(), out)
}

/// The same of a directory that is not open.
pub(crate) fn list(
    permit: &Permit<'_, OnNode>,
    (cookie, max_bytes): (u64, u32),
    plus: bool,
    ahead: bool,
    out: &mut ReplyBuf,
) -> Checked<Outcome> {
    let dir = permit.node();
    begin(permit, dir, cookie)?;
    let (file, _) = permit.tree().open_node(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let asked = Asked { dir, file: &file, cookie, max_bytes, plus, ahead };
    page(permit, &asked, &mut 0, out)
}

/// What is asked of a directory.
struct Asked<'a> {
    dir: &'a Arc<Node>,
    file: &'a OwnedFd,
    cookie: u64,
    max_bytes: u32,
    plus: bool,
    /// Nobody waits for it, so that nobody else is to be troubled.
    ahead: bool,
}

fn begin<On>(permit: &Permit<'_, On>, dir: &Arc<Node>, cookie: u64) -> Checked<()> {
    if !dir.is_dir() {
        return Err(Refusal::errno(Errno::NOTDIR));
    }
    if i64::try_from(cookie).is_err() {
        return Err(Refusal::errno(Errno::INVAL));
    }
    permit.reading(dir)?;
    permit.reading_names(dir)
}

/// One page; `position` is where the descriptor stands, and will stand.
fn page<On>(
    permit: &Permit<'_, On>,
    asked: &Asked<'_>,
    position: &mut u64,
    out: &mut ReplyBuf,
) -> Checked<Outcome> {
    let &Asked { file, cookie, plus, .. } = asked;
    let most = (asked.max_bytes as usize).min(MAX_DATA);
    if *position != cookie {
        seek(file, SeekFrom::Start(cookie))?;
        *position = cookie;
    }
    let bytes = out.collect();
    let mut buffer = [MaybeUninit::uninit(); BATCH];
    // Not more than may fit, so that little is read twice.
    let batch = (most / least(plus) * 32).clamp(1024, BATCH);
    let mut entries = RawDir::new(file, buffer.get_mut(..batch).unwrap_or_default());
    let mut next = cookie;
    let mut full = false;
    let mut recall = false;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let after = entry.next_entry_cookie();
        if !matches!(name, b"." | b"..") {
            let needed = least(plus) + name.len();
            if bytes.len() + needed > most {
                full = true;
                break;
            }
            match describe(permit, asked, &entry, name) {
                Ok(Some(entry)) => push(bytes, &entry).map_err(|_| Refusal::errno(Errno::IO))?,
                Ok(None) => {}
                // All that stands in the way of this page is asked for at once.
                Err(Refusal::Recall) => recall = true,
                Err(other) => return Err(other),
            }
        }
        next = after;
        if entries.is_buffer_empty() && !bytes.is_empty() && bytes.len() + SPARE > most {
            // Enough for one page, which does not look like the last one; the descriptor stands just behind.
            break;
        }
    }
    let unread = !entries.is_buffer_empty();
    // A descriptor that has read further than was told is put back by the next call.
    *position = if full || unread { u64::MAX } else { next };
    if recall {
        *position = u64::MAX;
        return Err(Refusal::Recall);
    }
    if full && bytes.is_empty() {
        return Err(Refusal::errno(Errno::INVAL));
    }
    let length = bytes.len();
    out.set_length(length);
    Ok(Outcome::Data)
}

/// The least bytes that an entry takes in the answer.
fn least(plus: bool) -> usize {
    if plus { OVERHEAD } else { LEAST }
}

/// `None` if the entry vanished meanwhile or is not ours.
fn describe<On>(
    permit: &Permit<'_, On>,
    &Asked { dir, file, plus, ahead, .. }: &Asked<'_>,
    entry: &rustix::fs::RawDirEntry<'_>,
    name: &[u8],
) -> Checked<Option<DirEntry>> {
    if permit.tree().is_hidden(entry.ino()) {
        return Ok(None);
    }
    let Ok(checked) = Name::new(name) else { return Ok(None) };
    let cookie = entry.next_entry_cookie();
    if !plus {
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            match Stat::at(file, name) {
                Ok(stat) => kind = stat.kind(),
                Err(_) => return Ok(None),
            }
        }
        let kind = (kind.as_raw_mode() >> 12) as u8;
        return Ok(Some(DirEntry {
            ino: entry.ino(),
            cookie,
            kind,
            name: checked,
            attr: None,
            leased: false,
        }));
    }
    match permit.tree().lookup_in(dir, file, name) {
        Ok((node, mut stat)) => {
            let kind = (stat.kind().as_raw_mode() >> 12) as u8;
            let (old, mut leased) = match permit.found_one(&node) {
                Err(Refusal::Recall) if ahead => {
                    let ino = stat.ino();
                    return Ok(Some(DirEntry {
                        ino,
                        cookie,
                        kind,
                        name: checked,
                        attr: None,
                        leased: false,
                    }));
                }
                other => other?,
            };
            if old {
                match Stat::at(file, name) {
                    Ok(again) if node.is(&again) => stat = again,
                    // Exchanged or removed meanwhile.
                    _ => leased = false,
                }
            }
            let told = permit.tell(&node, &stat);
            let attr = Some(told.attr);
            Ok(Some(DirEntry { ino: stat.ino(), cookie, kind, name: checked, attr, leased }))
        }
        Err(refusal) if refusal.is(Errno::NOENT) || refusal.is(Errno::XDEV) => Ok(None),
        Err(other) => Err(other),
    }
}
