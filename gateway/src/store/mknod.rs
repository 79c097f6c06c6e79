//! Making an empty file, a fifo, a socket or (where they are kept as metadata) a device node.

use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::Errno;
use strongroom_protocol::attr::Credentials;
use strongroom_protocol::reply::Outcome;

use super::make::make;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{InDir, Permit};
use crate::tree::stat::device;

pub(crate) fn mknod(
    permit: &Permit<'_, InDir>,
    name: &[u8],
    mode: u32,
    rdev: u32,
    by: Credentials,
) -> Checked<Outcome> {
    let (kind, rdev) = match FileType::from_raw_mode(mode) {
        // A mode without a type means a regular file (mknod(2)).
        FileType::RegularFile => (FileType::RegularFile, 0),
        _ if mode & libc::S_IFMT == 0 => (FileType::RegularFile, 0),
        kind @ (FileType::Fifo | FileType::Socket) => (kind, 0),
        kind @ (FileType::CharacterDevice | FileType::BlockDevice) if permit.keeps_special() => {
            (kind, device(rdev))
        }
        FileType::CharacterDevice | FileType::BlockDevice => return Err(Refusal::errno(Errno::PERM)),
        _ => return Err(Refusal::errno(Errno::INVAL)),
    };
    let mode = Mode::from_raw_mode(permit.mode(mode, false));
    make(permit, name, by, |parent| mknodat(parent, name, kind, mode, rdev))
}
