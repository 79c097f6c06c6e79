//! Between attributes on the wire and those of the kernel.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use strongroom_contracts::Ownership;
use strongroom_protocol::attr::{Attr, SetTime, Time};

/// Whom the files of `single` grants appear to belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The kernel's form of a file type; `None` if the mode has none.
pub fn file_type(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

/// The kernel's form of `d_type` (readdir(3)).
pub fn entry_type(kind: u8) -> Option<FileType> {
    file_type(u32::from(kind) << 12)
}

/// The kernel's form of attributes, under the inode number of the mount.
pub fn to_kernel(attr: &Attr, ino: u64, ownership: Ownership, shown: Owner) -> Option<FileAttr> {
    let (uid, gid) = match ownership {
        Ownership::Single => (shown.uid, shown.gid),
        Ownership::Preserve => (attr.uid, attr.gid),
    };
    Some(FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: to_system(attr.btime),
        kind: file_type(attr.mode)?,
        // 12 bits.
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid,
        gid,
        rdev: attr.rdev,
        blksize: preferred_block(attr),
        flags: 0,
    })
}

/// Programs size their buffers by it (stat(2), st_blksize), and each read or write travels.
const BLOCK: u32 = 128 * 1024;

fn preferred_block(attr: &Attr) -> u32 {
    if attr.mode & libc::S_IFMT == libc::S_IFREG { attr.blksize.max(BLOCK) } else { attr.blksize }
}

fn to_system(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time to set, as fuser gives it.
pub fn from_kernel(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_system(time)),
    }
}

/// fuser 0.18 (time.rs) turns the kernel's (seconds < 0, nanoseconds) into `epoch - (|seconds| + nanoseconds)`, which is
/// another time; but it loses nothing, so the same rule the other way round gives back what the application set.
fn from_system(time: SystemTime) -> Time {
    let signed = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { secs: signed(after.as_secs()), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { secs: -signed(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 does on the way in.
    fn fuser_in(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new((-secs) as u64, nanos)
        }
    }

    #[test]
    fn times_before_1970_survive_fuser() {
        for (secs, nanos) in [(-1, 500_000_000), (-1, 0), (0, 1), (-86_400, 999_999_999), (1_700_000_000, 3)]
        {
            assert_eq!(from_system(fuser_in(secs, nanos)), Time { secs, nanos });
        }
    }

    #[test]
    fn times_are_shown_as_they_are() {
        let time = to_system(Time { secs: -2, nanos: 800_000_000 });
        assert_eq!(time, UNIX_EPOCH - Duration::from_millis(1200));
        assert_eq!(to_system(Time { secs: i64::MIN, nanos: 0 }), UNIX_EPOCH - Duration::from_secs(1 << 63));
    }

    #[test]
    fn ownership_decides_who_is_shown() {
        let attr = Attr {
            ino: 5,
            generation: 1,
            mode: libc::S_IFREG | 0o4755,
            nlink: 1,
            uid: 7,
            gid: 8,
            rdev: 0,
            blksize: 4096,
            size: 1,
            blocks: 8,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
        };
        let shown = Owner { uid: 1000, gid: 100 };
        let single = to_kernel(&attr, 99, Ownership::Single, shown).unwrap();
        assert_eq!((single.uid, single.gid, single.ino.0, single.perm), (1000, 100, 99, 0o4755));
        let preserve = to_kernel(&attr, 99, Ownership::Preserve, shown).unwrap();
        assert_eq!((preserve.uid, preserve.gid), (7, 8));
        assert!(to_kernel(&Attr { mode: 0o644, ..attr }, 99, Ownership::Single, shown).is_none());
    }
}
