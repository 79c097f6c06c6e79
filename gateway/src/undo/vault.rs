//! The vault: a directory on the file system of the data, in which deleted and replaced objects are kept, and the bytes
//! that were overwritten. No contract can name it: the tree refuses it by its identity, wherever it lies.
//!
//! `kept/APPLICATION/xx/NUMBER` are objects and pre-images, by the number of their record; a `+` behind the number marks
//! an object that has other names outside. `logs/APPLICATION/NUMBER` are the segments of logs, `runs/` the undos.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, copy_file_range, fdatasync, fsync, ioctl_ficlone,
    linkat, mkdirat, openat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use crate::tree::Stat;

/// The name of the vault inside the data root, where the configuration does not say another place.
pub(crate) const DEFAULT_NAME: &str = ".strongroom-undo";
const FORMAT: &[u8] = b"strongroom undo 1\n";
/// More unsynced files than this are brought to the disk by one syncfs(2).
const MOST_SINGLE_SYNCS: usize = 32;

/// The vault.
pub(crate) struct Vault {
    dir: OwnedFd,
    /// What tells the directory itself.
    pub(crate) ino: u64,
    /// The file system makes clones of files (FICLONE).
    pub(crate) clones: bool,
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Vault {
    /// Opens the vault, and makes it if it is missing.
    ///
    /// # Errors
    /// `EXDEV` if it is not on the file system (and mount) of the data; `EINVAL` if the directory holds something else;
    /// those of open(2) and mkdir(2).
    pub(crate) fn open(path: &Path, mount: (u64, u32, u32)) -> Result<Vault, Errno> {
        match mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let dir = openat(CWD, path, DIR, Mode::empty())?;
        let stat = Stat::of(&dir)?;
        if stat.mount() != mount {
            return Err(Errno::XDEV);
        }
        rustix::fs::fchmod(&dir, Mode::RWXU)?;
        check_format(&dir)?;
        for part in ["kept", "logs", "runs", "tmp"] {
            make_dir(&dir, part.as_bytes())?;
        }
        let mut vault = Vault { ino: stat.ino(), clones: false, dir };
        vault.empty_tmp()?;
        vault.clones = vault.probe_clones()?;
        Ok(vault)
    }

    fn probe_clones(&self) -> Result<bool, Errno> {
        let one = self.temporary()?;
        rustix::io::write(&one, b"x")?;
        let other = self.temporary()?;
        Ok(ioctl_ficlone(&other, &one).is_ok())
    }

    fn empty_tmp(&self) -> Result<(), Errno> {
        for (name, _) in list(&self.sub("tmp")?)? {
            unlinkat(&self.dir, [b"tmp/", &*name].concat(), AtFlags::empty())?;
        }
        Ok(())
    }

    /// A file without a name.
    pub(crate) fn temporary(&self) -> Result<OwnedFd, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        openat(&self.dir, c"tmp", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode)
    }

    /// One of the directories in the vault.
    pub(crate) fn sub(&self, path: &str) -> Result<OwnedFd, Errno> {
        openat(&self.dir, path, DIR, Mode::empty())
    }

    /// Makes sure that there is a directory for a log, and opens it.
    pub(crate) fn log_dir(&self, application: &str) -> Result<OwnedFd, Errno> {
        make_dir(&self.dir, format!("logs/{application}").as_bytes())?;
        make_dir(&self.dir, format!("kept/{application}").as_bytes())?;
        self.sub(&format!("logs/{application}"))
    }

    fn path(application: &str, seq: u64, many: bool) -> String {
        format!("kept/{application}/{:02x}/{seq:016x}{}", seq & 0xff, if many { "+" } else { "" })
    }

    /// Does something with a path, and once more if its directory had to be made first.
    fn placing<T>(
        &self,
        application: &str,
        seq: u64,
        act: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match act() {
            Err(Errno::NOENT) => {
                make_dir(&self.dir, format!("kept/{application}/{:02x}", seq & 0xff).as_bytes())?;
                act()
            }
            other => other,
        }
    }

    /// Moves an object into the vault. `many`: it has other names.
    pub(crate) fn take(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        application: &str,
        seq: u64,
        many: bool,
    ) -> Result<(), Errno> {
        let path = Vault::path(application, seq, many);
        self.placing(application, seq, || renameat_with(dir, name, &self.dir, &*path, RenameFlags::NOREPLACE))
    }

    /// Gives a file a name in the vault too.
    pub(crate) fn link(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        application: &str,
        seq: u64,
        many: bool,
    ) -> Result<(), Errno> {
        let path = Vault::path(application, seq, many);
        self.placing(application, seq, || linkat(dir, name, &self.dir, &*path, AtFlags::empty()))
    }

    /// Does something with the path of what is kept under a number.
    fn kept<T>(
        &self,
        application: &str,
        seq: u64,
        act: impl Fn(&str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match act(&Vault::path(application, seq, false)) {
            Err(Errno::NOENT) => act(&Vault::path(application, seq, true)),
            other => other,
        }
    }

    /// Gives a kept object a name outside again; it leaves the vault.
    pub(crate) fn restore(
        &self,
        application: &str,
        seq: u64,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<(), Errno> {
        self.kept(application, seq, |path| renameat_with(&self.dir, path, dir, name, RenameFlags::NOREPLACE))
    }

    /// The attributes of what is kept under a number.
    pub(crate) fn stat(&self, application: &str, seq: u64) -> Result<Stat, Errno> {
        self.kept(application, seq, |path| Stat::at(&self.dir, path.as_bytes()))
    }

    /// Whether what is kept under a number is marked as having other names.
    pub(crate) fn is_marked(&self, application: &str, seq: u64) -> Result<bool, Errno> {
        match Stat::at(&self.dir, Vault::path(application, seq, true).as_bytes()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Opens what is kept under a number.
    pub(crate) fn open_kept(&self, application: &str, seq: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let flags = if flags.contains(OFlags::PATH) { flags - OFlags::NONBLOCK } else { flags };
        self.kept(application, seq, |path| openat(&self.dir, path, flags, Mode::empty()))
    }

    /// Saves bytes of a file under a number.
    pub(crate) fn save_range(
        &self,
        file: &OwnedFd,
        application: &str,
        seq: u64,
        (offset, length): (u64, u64),
    ) -> Result<(), Errno> {
        let target = self.create(application, seq)?;
        copy_all(file, offset, &target, 0, length)
    }

    /// Saves a whole file under a number, as a clone that shares its blocks.
    pub(crate) fn save_clone(&self, file: &OwnedFd, application: &str, seq: u64) -> Result<(), Errno> {
        let target = self.create(application, seq)?;
        ioctl_ficlone(&target, file)
    }

    fn create(&self, application: &str, seq: u64) -> Result<OwnedFd, Errno> {
        let path = Vault::path(application, seq, false);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.placing(application, seq, || openat(&self.dir, &*path, flags, Mode::RUSR | Mode::WUSR))
    }

    /// Destroys what is kept under a number. Returns its inode number; `None` if there was nothing.
    pub(crate) fn destroy(&self, application: &str, seq: u64) -> Result<Option<u64>, Errno> {
        for many in [false, true] {
            let path = Vault::path(application, seq, many);
            let ino = Stat::at(&self.dir, path.as_bytes()).ok().map(|stat| stat.ino());
            match unlinkat(&self.dir, &*path, AtFlags::empty()) {
                Ok(()) => return Ok(ino),
                Err(Errno::ISDIR | Errno::PERM) => {
                    self.destroy_tree(&path)?;
                    return Ok(None);
                }
                Err(Errno::NOENT) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }

    /// Kept directories are empty, unless somebody else than the gateway put something there.
    fn destroy_tree(&self, path: &str) -> Result<(), Errno> {
        match unlinkat(&self.dir, path, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                // Not ours to destroy: an administrator may find it here.
                let name = format!("tmp/found-{}", path.replace('/', "-"));
                renameat_with(&self.dir, path, &self.dir, &*name, RenameFlags::NOREPLACE)
            }
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Objects that have names outside, by inode number, each as often as it is kept. The applications that have logs.
    pub(crate) fn shared(&self) -> Result<(Vec<u64>, Vec<String>), Errno> {
        let kept = self.sub("kept")?;
        let (mut shared, mut applications) = (vec![], vec![]);
        for (application, _) in list(&kept)? {
            let shards = openat(&kept, &*application, DIR, Mode::empty())?;
            for (shard, kind) in list(&shards)? {
                if kind != FileType::Directory {
                    continue;
                }
                let shard = openat(&shards, &*shard, DIR, Mode::empty())?;
                for (name, _) in list(&shard)? {
                    if name.ends_with(b"+") {
                        shared.push(Stat::at(&shard, &name)?.ino());
                    }
                }
            }
            applications.push(String::from_utf8_lossy(&application).into_owned());
        }
        Ok((shared, applications))
    }

    /// Brings pre-images to the disk.
    pub(crate) fn sync(&self, application: &str, files: &[u64]) -> Result<(), Errno> {
        if files.len() > MOST_SINGLE_SYNCS {
            return rustix::fs::syncfs(&self.dir);
        }
        for seq in files {
            match self.open_kept(application, *seq, OFlags::RDONLY) {
                Ok(file) => fsync(&file)?,
                // Restored or forgotten meanwhile.
                Err(Errno::NOENT) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Brings everything on the file system to the disk.
    pub(crate) fn sync_all(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(&self.dir)
    }

    /// Writes a small file as a whole: beside, synced, then put in place.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let beside = format!("tmp/{}", path.replace('/', "-"));
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.dir, &*beside, flags, Mode::RUSR | Mode::WUSR)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = rustix::io::write(&file, rest)?;
            rest = rest.get(count..).unwrap_or_default();
        }
        fdatasync(&file)?;
        renameat_with(&self.dir, &*beside, &self.dir, path, RenameFlags::empty())?;
        fsync(&self.dir)
    }

    /// Reads a small file, at most 1 MiB of it.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let file =
            openat(&self.dir, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = vec![0; 1 << 20];
        let mut length = 0;
        while let Some(space) = bytes.get_mut(length..).filter(|space| !space.is_empty()) {
            match rustix::io::read(&file, space)? {
                0 => break,
                count => length += count,
            }
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Removes a file of the vault.
    pub(crate) fn remove(&self, path: &str) -> Result<(), Errno> {
        match unlinkat(&self.dir, path, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// Copies bytes from one file to another, in the kernel where it can.
pub(crate) fn copy_all(
    from: &OwnedFd,
    mut at: u64,
    to: &OwnedFd,
    mut to_at: u64,
    length: u64,
) -> Result<(), Errno> {
    let end = at.saturating_add(length);
    let mut buffer = vec![];
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(64 << 20);
        match copy_file_range(from, Some(&mut at), to, Some(&mut to_at), most) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these files: byte by byte.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                buffer.resize(1 << 20, 0);
                let most = most.min(buffer.len());
                let count = rustix::io::pread(from, buffer.get_mut(..most).unwrap_or_default(), at)?;
                if count == 0 {
                    return Ok(());
                }
                write_at(to, buffer.get(..count).unwrap_or_default(), to_at)?;
                at += count as u64;
                to_at += count as u64;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Writes all bytes at an offset.
pub(crate) fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// The names in a directory, sorted.
pub(crate) fn list(dir: &OwnedFd) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut names = vec![];
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

fn make_dir(dir: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
    match mkdirat(dir, std::ffi::OsStr::from_bytes(path), Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Refuses a directory that is neither empty nor a vault of this version.
fn check_format(dir: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(dir, c"format", flags, Mode::empty()) {
        Ok(file) => {
            let mut bytes = [0; 64];
            let count = rustix::io::read(&file, &mut bytes)?;
            if bytes.get(..count) == Some(FORMAT) { Ok(()) } else { Err(Errno::INVAL) }
        }
        Err(Errno::NOENT) if list(dir)?.iter().all(|(name, _)| name == b"tmp-format") => {
            let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(dir, c"tmp-format", flags, Mode::RUSR | Mode::WUSR)?;
            rustix::io::write(&file, FORMAT)?;
            fsync(&file)?;
            rustix::fs::renameat(dir, c"tmp-format", dir, c"format")
        }
        Err(Errno::NOENT) => Err(Errno::INVAL),
        Err(other) => Err(other),
    }
}
