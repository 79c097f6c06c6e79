//! Files as this command reads and writes them: bounded reads of regular files, and writes that are there whole or not
//! at all.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Mode of files that hold secrets.
pub const SECRET: u32 = 0o600;
/// Mode of files that anyone may read.
pub const PUBLIC: u32 = 0o644;

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Keep,
    /// Replace it (`--force`, or a record of this command's own).
    Replace,
}

/// Opens a file for reading without being held up by a pipe, and insists on a regular file.
pub fn open(path: &Path, what: &str) -> Result<File, Failure> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    // The flags are small positive numbers.
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(|error| {
        let shown = path.display();
        match error.kind() {
            ErrorKind::NotFound => Failure::not_found(format!("{what} `{shown}` does not exist")),
            ErrorKind::PermissionDenied => {
                Failure::other(format!("{what} `{shown}` cannot be read: {error}"))
            }
            _ => Failure::bad(format!("{what} `{shown}` cannot be read: {error}")),
        }
    })?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        _ => Err(Failure::bad(format!("{what} `{}` is not a regular file", path.display()))),
    }
}

/// Reads the whole of a text of at most `most` bytes.
pub fn read_open(source: impl Read, path: &Path, what: &str, most: usize) -> Result<String, Failure> {
    let mut bytes = vec![];
    source
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::other(format!("{what} `{}` cannot be read: {error}", path.display())))?;
    if bytes.len() > most {
        let shown = path.display();
        return Err(Failure::bad(format!(
            "{what} `{shown}` is longer than {most} bytes: it is something else"
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::bad(format!("{what} `{}` is not text: it is something else", path.display())))
}

/// Reads a text file of at most `most` bytes.
pub fn read(path: &Path, what: &str, most: usize) -> Result<String, Failure> {
    read_open(open(path, what)?, path, what, most)
}

/// Refuses early what [`write`] would refuse late.
pub fn check_free(path: &Path, existing: Existing) -> Result<(), Failure> {
    let parent = parent(path);
    if !parent.is_dir() {
        return Err(Failure::not_found(format!("directory `{}` does not exist", parent.display()))
            .hint(format!("make it: mkdir -p {}", parent.display())));
    }
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {
            Err(Failure::bad(format!("`{}` is a directory; name a file", path.display())))
        }
        Ok(_) if existing == Existing::Keep => Err(exists(path)),
        _ => Ok(()),
    }
}

fn exists(path: &Path) -> Failure {
    Failure::bad(format!("`{}` exists already", path.display()))
        .hint("name another file, or replace this one with --force")
}

/// Writes a file with `mode`, whole or not at all, and on the disk before this returns.
pub fn write(path: &Path, contents: &str, mode: u32, existing: Existing) -> Result<(), Failure> {
    check_free(path, existing)?;
    let parent = parent(path);
    let attempt = || -> std::io::Result<()> {
        // The name is this process's own until it is renamed; it is removed if anything fails.
        let mut file = tempfile::Builder::new()
            .prefix(".strongroom-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(&parent)?;
        // Again, because the umask has its say on creation.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.write_all(contents.as_bytes())?;
        file.as_file().sync_all()?;
        match existing {
            Existing::Replace => file.persist(path).map_err(|error| error.error)?,
            Existing::Keep => file.persist_noclobber(path).map_err(|error| error.error)?,
        };
        sync_dir(&parent)
    };
    attempt().map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => exists(path),
        _ => Failure::other(format!("cannot write `{}`: {error}", path.display())),
    })
}

/// Puts a directory's names on the disk.
pub fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// The directory that holds `path`.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
