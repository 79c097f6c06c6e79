//! Reading a file.

use std::io::IoSliceMut;

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::reply::Outcome;

use crate::engine::ReplyBuf;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnHandle, Permit};
use crate::tree::Stat;

pub(crate) fn read(
    permit: &Permit<'_, OnHandle>,
    offset: u64,
    length: u32,
    out: &mut ReplyBuf,
) -> Checked<Outcome> {
    let open = permit.target();
    if !open.flags.read {
        return Err(Refusal::errno(Errno::BADF));
    }
    if open.node.is_dir() {
        return Err(Refusal::errno(Errno::ISDIR));
    }
    if i64::try_from(offset).is_err() {
        return Err(Refusal::errno(Errno::INVAL));
    }
    permit.reading_contents(&open.node)?;
    permit.undo().reading(&open.node);
    let file = open.file()?;
    let length = (length as usize).min(MAX_DATA);
    let flags = if permit.inline() { ReadWriteFlags::NOWAIT } else { ReadWriteFlags::empty() };
    let space = out.space(length);
    let mut filled = 0;
    while filled < length {
        let rest = &mut space[filled..];
        match preadv2(file, &mut [IoSliceMut::new(rest)], offset.saturating_add(filled as u64), flags) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) if permit.inline() => return Err(Refusal::WouldBlock),
            Err(other) => return Err(other.into()),
        }
        // At the end of the file: no further call to find out.
        if filled < length && Stat::of(file)?.size() <= offset.saturating_add(filled as u64) {
            break;
        }
    }
    out.set_length(filled);
    Ok(Outcome::Data)
}
