//! Where a lab lives on the host: its name, its two directories, and the lock that orders `up` and `down`.
//!
//! - the *run* directory holds the record of a running lab: `/run/strongroom-lab/NAME` for root,
//!   `$XDG_RUNTIME_DIR/strongroom-lab/NAME` otherwise;
//! - the *disk* directory holds what guests write: `/var/tmp/strongroom-lab-UID/NAME`. It is on a disk because `/run` is
//!   usually a tmpfs: too small for user data, and before Linux 6.6 without user xattrs.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The name of a lab: 1 to 40 lower-case letters, digits and dashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LabName(String);

impl LabName {
    /// A name that no other lab of this machine has: for tests, which may run at the same time.
    #[must_use]
    pub fn unique(purpose: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let purpose: String =
            purpose.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit()).take(20).collect();
        Self(format!("t-{purpose}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LabName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl FromStr for LabName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > 40 || text.starts_with('-') || !text.chars().all(good) {
            return Err(format!(
                "`{text}` cannot name a lab: use 1 to 40 lower-case letters, digits and dashes, not starting with a dash"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directories of one lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) name: LabName,
    pub(super) run: PathBuf,
    pub(super) disk: PathBuf,
}

impl Place {
    pub(super) fn of(name: &LabName) -> Result<Self> {
        Ok(Self {
            name: name.clone(),
            run: run_base()?.join(name.as_str()),
            disk: disk_base().join(name.as_str()),
        })
    }

    pub(super) fn record(&self) -> PathBuf {
        self.run.join("lab.json")
    }

    pub(super) fn plan(&self) -> PathBuf {
        self.run.join("plan.json")
    }

    pub(super) fn keeper_log(&self) -> PathBuf {
        self.run.join("keeper.log")
    }

    /// An empty directory on which guests build their roots, each in its own mount namespace.
    pub(super) fn root_mount_point(&self) -> PathBuf {
        self.run.join("root")
    }

    /// What the guest `name` owns on the disk: `strongroom/` (its `/etc/strongroom`) and `log/`.
    pub(super) fn guest_disk(&self, name: &str) -> PathBuf {
        self.disk.join("guests").join(name)
    }

    pub(super) fn make(&self) -> Result<()> {
        make_private(&self.run)?;
        make_private(&self.root_mount_point())?;
        make_owned_base(&disk_base())?;
        make_private(&self.disk)
    }

    /// Remove both directories, and the directories above them when this was the last lab.
    pub(super) fn remove(&self) -> Result<()> {
        remove_tree(&self.disk)?;
        remove_tree(&self.run)?;
        for base in [self.disk.parent(), self.run.parent()].into_iter().flatten() {
            // Other labs may be there: only an empty directory goes.
            let _ = fs::remove_dir(base);
        }
        Ok(())
    }
}

/// Every lab name with a directory on this machine, running or left over.
pub(super) fn known_names() -> Result<Vec<LabName>> {
    let mut names = Vec::new();
    for base in [run_base()?, disk_base()] {
        let entries = match fs::read_dir(&base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot list `{}`", base.display())),
        };
        for entry in entries {
            if let Some(name) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
                names.push(name);
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Held while a lab is claimed or cleared away, so that two commands cannot do either at once.
pub(super) struct Lock {
    _directory: OwnedFd,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Taking the lock made the directory; it stays only while there is a lab in it.
        if let Ok(base) = run_base() {
            let _ = fs::remove_dir(base);
        }
    }
}

impl Lock {
    pub(super) fn take() -> Result<Self> {
        let base = run_base()?;
        loop {
            make_owned_base(&base)?;
            let directory = match rustix::fs::open(
                &base,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(directory) => directory,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot open `{}`", base.display())),
            };
            rustix::fs::flock(&directory, FlockOperation::LockExclusive)
                .with_context(|| format!("cannot lock `{}`", base.display()))?;
            // The last `down` may have removed the directory between the open and the lock.
            let held = rustix::fs::fstat(&directory)?;
            match fs::metadata(&base) {
                Ok(now) if now.ino() == held.st_ino && now.dev() == held.st_dev => {
                    return Ok(Self { _directory: directory });
                }
                _ => {}
            }
        }
    }
}

fn run_base() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/run/strongroom-lab"));
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => Ok(PathBuf::from(dir).join("strongroom-lab")),
        _ => Ok(PathBuf::from(format!("/tmp/strongroom-lab-run-{}", rustix::process::geteuid().as_raw()))),
    }
}

fn disk_base() -> PathBuf {
    PathBuf::from(format!("/var/tmp/strongroom-lab-{}", rustix::process::geteuid().as_raw()))
}

fn make_private(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory `{}`", path.display()))
}

/// Make a directory with a guessable name, and refuse one that somebody else put there.
fn make_owned_base(path: &Path) -> Result<()> {
    make_private(path)?;
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot look at `{}`", path.display()))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        bail!("`{}` belongs to somebody else or is not a directory: remove it and try again", path.display());
    }
    Ok(())
}

/// Remove a tree even where directories in it forbid their owner to look inside, as test programs leave them.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let done = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path);
            fs::remove_dir_all(path)
        }
        done => done,
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn open_up(path: &Path) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["default", "a", "t-1", "0"] {
            assert!(good.parse::<LabName>().is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "-x", "a.b", "a b", &"x".repeat(41)] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn unique_names_are_names_and_differ() {
        let (a, b) = (LabName::unique("some Purpose/../x"), LabName::unique("some Purpose/../x"));
        assert_ne!(a, b);
        assert!(a.as_str().parse::<LabName>().is_ok());
    }

    #[test]
    fn closed_directories_do_not_stop_removal() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&dir.path().join("a")).unwrap();
        assert!(!dir.path().join("a").exists());
        remove_tree(&dir.path().join("a")).unwrap();
    }
}
