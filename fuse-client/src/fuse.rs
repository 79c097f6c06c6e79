//! What the kernel asks, unpacked and handed to [`crate::fs`]; its answers, packed and sent back. Nothing else happens here.
//!
//! Entries and attributes are valid for as long as a lease may last, and for no time without: whatever another guest was told
//! is done must be seen here at once.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use strongroom_channel::Awake;
use strongroom_protocol::frame::MAX_DATA;

use crate::fs::{Attrs, Caller, Change, DirOut, Fs, LockRange, Opened, SeekFrom, Sink, Told};

const NO_TIME: Duration = Duration::ZERO;
/// Requests that the kernel may have under way in the background (read-ahead, write-back of mappings).
const MAX_BACKGROUND: u16 = 256;

/// Wanted of the kernel; each is left out where it is not offered. What `fuser` 0.18 lets one ask for without supporting it
/// (SETXATTR_EXT, HANDLE_KILLPRIV_V2, ALLOW_IDMAP, …) is not among them.
const WANTED: [InitFlags; 10] = [
    // Handles that append bypass the cache; mapping what they have open is still allowed.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_HANDLE_KILLPRIV,
];

/// The file system as `fuser` drives it.
pub struct Bridge {
    fs: Arc<Fs>,
    awake: Awake,
}

impl Bridge {
    /// A bridge to a file system.
    pub fn new(fs: Arc<Fs>, awake: Awake) -> Bridge {
        Bridge { fs, awake }
    }

    /// Who asks for something now.
    fn caller(&self, request: &Request) -> Caller {
        self.awake.request();
        Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
    }
}

fn entry_reply(reply: ReplyEntry) -> impl FnOnce(Result<Told, Errno>) + Send {
    move |result| match result {
        Ok(Told { attr, generation, attr_ttl, entry_ttl }) => {
            reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attr, Generation(generation));
        }
        Err(errno) => reply.error(errno),
    }
}

fn attr_reply(reply: ReplyAttr) -> impl FnOnce(Result<Attrs, Errno>) + Send {
    move |result| match result {
        Ok(Attrs { attr, ttl }) => reply.attr(&ttl, &attr),
        Err(errno) => reply.error(errno),
    }
}

fn empty_reply(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn data_reply(reply: ReplyData) -> impl FnOnce(Result<&[u8], Errno>) + Send {
    move |result| match result {
        Ok(data) => reply.data(data),
        Err(errno) => reply.error(errno),
    }
}

fn count_reply(reply: ReplyWrite) -> impl FnOnce(Result<u32, Errno>) + Send {
    move |result| match result {
        Ok(count) => reply.written(count),
        Err(errno) => reply.error(errno),
    }
}

/// The two-step protocol of xattr(7): the length if `size` is 0, the data if they fit.
fn xattr_reply(reply: ReplyXattr, size: u32) -> impl FnOnce(Result<&[u8], Errno>) + Send {
    move |result| match result {
        // At most 64 KiB.
        Ok(data) if size == 0 => reply.size(data.len() as u32),
        Ok(data) if data.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(data) => reply.data(data),
        Err(errno) => reply.error(errno),
    }
}

struct Plain(ReplyDirectory);

impl Sink for Plain {
    const PLUS: bool = false;

    fn add(&mut self, entry: &DirOut<'_>) -> bool {
        self.0.add(INodeNo(entry.number), entry.offset, entry.kind, OsStr::from_bytes(entry.name))
    }

    fn finish(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(errno) => self.0.error(errno),
        }
    }
}

struct Plus(ReplyDirectoryPlus);

impl Sink for Plus {
    const PLUS: bool = true;

    fn add(&mut self, entry: &DirOut<'_>) -> bool {
        // Inode number 0 tells the kernel that there is a name and nothing known about it.
        let unknown = Told {
            attr: FileAttr {
                ino: INodeNo(0),
                size: 0,
                blocks: 0,
                atime: SystemTime::UNIX_EPOCH,
                mtime: SystemTime::UNIX_EPOCH,
                ctime: SystemTime::UNIX_EPOCH,
                crtime: SystemTime::UNIX_EPOCH,
                kind: FileType::Directory,
                perm: 0,
                nlink: 0,
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 0,
                flags: 0,
            },
            generation: 0,
            attr_ttl: NO_TIME,
            entry_ttl: NO_TIME,
        };
        let told = entry.told.unwrap_or(unknown);
        let (name, ttl) = (OsStr::from_bytes(entry.name), told.attr_ttl.min(told.entry_ttl));
        self.0.add(INodeNo(entry.number), entry.offset, name, &ttl, &told.attr, Generation(told.generation))
    }

    fn finish(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(errno) => self.0.error(errno),
        }
    }
}

impl Filesystem for Bridge {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // Done without where the kernel is older.
            let _ = config.add_capabilities(flag);
        }
        // Both are within fuser's bounds. Pages follow from the size of a write (1 MiB).
        let _ = config.set_max_write(MAX_DATA as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.fs.lookup(self.caller(request), parent.0, name.as_bytes(), entry_reply(reply));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.fs.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, file: Option<FileHandle>, reply: ReplyAttr) {
        self.fs.getattr(self.caller(request), ino.0, file.map(|file| file.0), attr_reply(reply));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        file: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size, atime, mtime };
        self.fs.setattr(self.caller(request), ino.0, file.map(|file| file.0), change, attr_reply(reply));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.fs.readlink(self.caller(request), ino.0, data_reply(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.fs.mknod(self.caller(request), (parent.0, name.as_bytes()), mode, rdev, entry_reply(reply));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.fs.mkdir(self.caller(request), parent.0, name.as_bytes(), mode, entry_reply(reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs.unlink(self.caller(request), parent.0, name.as_bytes(), empty_reply(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs.rmdir(self.caller(request), parent.0, name.as_bytes(), empty_reply(reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.fs.symlink(self.caller(request), parent.0, name.as_bytes(), target, entry_reply(reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()));
        self.fs.rename(self.caller(request), from, to, flags, empty_reply(reply));
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.fs.link(self.caller(request), ino.0, parent.0, name.as_bytes(), entry_reply(reply));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.fs.open(self.caller(request), ino.0, flags.0, move |result| match result {
            Ok(Opened { file, flags }) => reply.opened(FileHandle(file), flags),
            Err(errno) => reply.error(errno),
        });
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.fs.read(self.caller(request), file.0, offset, size, data_reply(reply));
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.fs.write(self.caller(request), file.0, offset, data, count_reply(reply));
    }

    fn flush(&self, request: &Request, _ino: INodeNo, file: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.fs.flush(self.caller(request), file.0, owner.0, empty_reply(reply));
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        _flags: OpenFlags,
        owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(self.caller(request), file.0, owner.map(|owner| owner.0), empty_reply(reply));
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, file: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.fs.fsync(self.caller(request), file.0, data_only, empty_reply(reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.fs.opendir(self.caller(request), ino.0, move |result| match result {
            Ok(Opened { file, flags }) => reply.opened(FileHandle(file), flags),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(&self, request: &Request, ino: INodeNo, file: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.fs.readdir(self.caller(request), ino.0, file.0, offset, Plain(reply));
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        file: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.fs.readdir(self.caller(request), ino.0, file.0, offset, Plus(reply));
    }

    fn releasedir(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(self.caller(request), file.0, empty_reply(reply));
    }

    fn fsyncdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.fsyncdir(self.caller(request), file.0, empty_reply(reply));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.fs.statfs(self.caller(request), ino.0, move |result| match result {
            Ok(space) => reply.statfs(
                space.blocks,
                space.free,
                space.free,
                space.files,
                space.files_free,
                space.block_size,
                space.name_max,
                space.block_size,
            ),
            Err(errno) => reply.error(errno),
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.fs.setxattr(self.caller(request), ino.0, (name.as_bytes(), value), flags, empty_reply(reply));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.fs.getxattr(self.caller(request), ino.0, name.as_bytes(), xattr_reply(reply, size));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.fs.listxattr(self.caller(request), ino.0, xattr_reply(reply, size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs.removexattr(self.caller(request), ino.0, name.as_bytes(), empty_reply(reply));
    }

    fn access(&self, _: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The mount has `default_permissions`: the kernel checks modes, and the gateway rights. It does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let place = (parent.0, name.as_bytes());
        self.fs.create(self.caller(request), place, mode, flags, move |result| match result {
            Ok((told, opened)) => reply.created(
                // One time for the name and for the attributes, which must not be kept.
                &NO_TIME,
                &told.attr,
                Generation(told.generation),
                FileHandle(opened.file),
                opened.flags,
            ),
            Err(errno) => reply.error(errno),
        });
    }

    fn getlk(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let range = LockRange { start, end, kind, pid };
        self.fs.getlk(self.caller(request), file.0, owner.0, range, move |result| match result {
            Ok(found) => reply.locked(found.start, found.end, found.kind, found.pid),
            Err(errno) => reply.error(errno),
        });
    }

    fn setlk(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let range = LockRange { start, end, kind, pid };
        self.fs.setlk(self.caller(request), file.0, owner.0, range, sleep, empty_reply(reply));
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.fs.fallocate(self.caller(request), file.0, (offset, length), mode, empty_reply(reply));
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        file: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data,
            libc::SEEK_HOLE => SeekFrom::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        self.fs.seek(self.caller(request), file.0, offset, from, move |result| match result {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _from_ino: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to_ino: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((from.0, from_offset), (to.0, to_offset));
        self.fs.copy(self.caller(request), from, to, length, count_reply(reply));
    }
}
