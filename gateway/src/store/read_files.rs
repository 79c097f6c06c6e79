//! Reading many small files at once.

use std::io::IoSliceMut;

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use strongroom_protocol::files::{OVERHEAD, push_head};

use crate::gate::refusal::{Checked, Refusal};
use crate::gate::rules::Deed;
use crate::gate::{OnNode, Permit};

/// The longest file that is worth it, in bytes, whatever the client says.
const LONGEST: u64 = 128 << 10;

/// Appends one file, if it is a regular one of at most `longest` bytes, fits and may be kept.
pub(crate) fn read_file(
    permit: &Permit<'_, OnNode>,
    position: u16,
    longest: u32,
    most: usize,
    bytes: &mut Vec<u8>,
) -> Checked<()> {
    let node = permit.node();
    if node.kind != FileType::RegularFile {
        return Ok(());
    }
    permit.require(Deed::OpenToRead)?;
    let (_, leased) = permit.found_one(node)?;
    if !leased {
        return Ok(());
    }
    // After the lease, so that whatever changes from now on is recalled.
    let (file, stat) = permit.tree().open_node(node, OFlags::RDONLY)?;
    let size = stat.size();
    if size > LONGEST.min(u64::from(longest)) || bytes.len() + OVERHEAD + size as usize > most {
        return Ok(());
    }
    permit.undo().sending_ahead(node);
    let begin = bytes.len();
    push_head(bytes, position, &permit.show(&stat), size as u32).map_err(|_| Refusal::errno(Errno::IO))?;
    let from = bytes.len();
    bytes.resize(from + size as usize, 0);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(from + filled..).filter(|rest| !rest.is_empty()) {
        match preadv2(&file, &mut [IoSliceMut::new(rest)], filled as u64, ReadWriteFlags::empty()) {
            Ok(count) if count > 0 => filled += count,
            Err(Errno::INTR) => {}
            // The session itself cuts it meanwhile, or it cannot be read: whoever reads it hears of that.
            Ok(_) | Err(_) => {
                bytes.truncate(begin);
                return Ok(());
            }
        }
    }
    Ok(())
}
