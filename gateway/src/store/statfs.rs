//! Space and files: of the quota where there is one.

use rustix::fs::fstatvfs;
use strongroom_protocol::reply::{Outcome, Statfs};

use crate::gate::refusal::Checked;
use crate::gate::{OnNode, Permit};

pub(crate) fn statfs(permit: &Permit<'_, OnNode>) -> Checked<Outcome> {
    let disk = fstatvfs(&*permit.tree().fd_of(permit.root()?)?)?;
    let block_size = u32::try_from(disk.f_frsize).unwrap_or(4096).max(1);
    let block = u64::from(block_size);
    let mut told = Statfs {
        block_size,
        blocks: disk.f_blocks,
        free: disk.f_bavail,
        files: disk.f_files,
        files_free: disk.f_favail,
        name_max: 255,
    };
    // Of several quotas, each number is that of the tightest; the disk shows only where it is fuller than that.
    for limit in permit.limits()?.iter() {
        let usage = limit.meter.usage();
        if let Some(bytes) = limit.bytes {
            told.blocks = told.blocks.min(bytes / block);
            told.free = told.free.min(bytes.saturating_sub(usage.bytes) / block);
        }
        if let Some(files) = limit.files {
            // File systems without a fixed number of inodes say 0.
            told.files = if told.files == 0 { files } else { told.files.min(files) };
            let free = files.saturating_sub(usage.entries);
            told.files_free = if disk.f_files == 0 { free } else { told.files_free.min(free) };
        }
    }
    Ok(Outcome::Statfs(told))
}
