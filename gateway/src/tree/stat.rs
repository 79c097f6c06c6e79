//! Attributes as the kernel tells them.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, statx};
use rustix::io::Errno;
use strongroom_protocol::attr::{Attr, Time};

/// The attributes of one object (statx(2)).
#[derive(Clone, Copy)]
pub(crate) struct Stat(Statx);

fn mask() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

impl Stat {
    /// Of the object called `name` in a directory; a symlink is not followed.
    pub(crate) fn at(dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
        statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, mask()).map(Stat)
    }

    /// Of the object that a descriptor refers to.
    pub(crate) fn of(fd: impl AsFd) -> Result<Stat, Errno> {
        statx(fd, c"", AtFlags::EMPTY_PATH, mask()).map(Stat)
    }

    pub(crate) fn ino(&self) -> u64 {
        self.0.stx_ino
    }

    /// Tells apart objects that had the same inode number one after the other: made from the birth time, 0 if the file
    /// system does not keep one.
    pub(crate) fn generation(&self) -> u64 {
        if self.0.stx_mask & StatxFlags::BTIME.bits() == 0 {
            return 0;
        }
        // Nanoseconds take 30 bits.
        self.0.stx_btime.tv_sec.cast_unsigned() << 30 | u64::from(self.0.stx_btime.tv_nsec)
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode())
    }

    pub(crate) fn mode(&self) -> u32 {
        u32::from(self.0.stx_mode)
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.stx_size
    }

    pub(crate) fn nlink(&self) -> u32 {
        self.0.stx_nlink
    }

    /// Bytes that it takes on the disk.
    pub(crate) fn blocks_bytes(&self) -> u64 {
        self.0.stx_blocks.saturating_mul(512)
    }

    pub(crate) fn owner(&self) -> (u32, u32) {
        (self.0.stx_uid, self.0.stx_gid)
    }

    /// The mount that the object is on: its number, where the kernel tells it (Linux 5.8), and its device.
    pub(crate) fn mount(&self) -> (u64, u32, u32) {
        let told = self.0.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        (if told { self.0.stx_mnt_id } else { 0 }, self.0.stx_dev_major, self.0.stx_dev_minor)
    }

    /// As they travel, owner and all.
    pub(crate) fn attr(&self) -> Attr {
        let stat = &self.0;
        Attr {
            ino: stat.stx_ino,
            generation: self.generation(),
            mode: self.mode(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            // The form of the FUSE protocol and of old Linux headers: 12 bits major, 20 bits minor.
            rdev: stat.stx_rdev_major << 8 | stat.stx_rdev_minor & 0xff | (stat.stx_rdev_minor & !0xff) << 12,
            blksize: stat.stx_blksize,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: time(stat.stx_atime),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            btime: time(stat.stx_btime),
        }
    }
}

fn time(stamp: StatxTimestamp) -> Time {
    Time { secs: stamp.tv_sec, nanos: stamp.tv_nsec }
}

/// A device number from the form in which it travels.
pub(crate) fn device(rdev: u32) -> u64 {
    rustix::fs::makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}
