//! Finding the next data or hole.

use rustix::fs::{SeekFrom, seek as system_seek};
use rustix::io::Errno;
use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnHandle, Permit};

pub(crate) fn seek(permit: &Permit<'_, OnHandle>, offset: u64, hole: bool) -> Checked<Outcome> {
    let open = permit.target();
    if open.node.is_dir() {
        // The position of an open directory is the gateway's.
        return Err(Refusal::errno(Errno::ISDIR));
    }
    if i64::try_from(offset).is_err() {
        return Err(Refusal::errno(Errno::NXIO));
    }
    permit.reading(&open.node)?;
    // The descriptor's position is of no use otherwise: reads and writes bring theirs.
    let whence = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
    Ok(Outcome::Offset(system_seek(open.file()?, whence)?))
}
