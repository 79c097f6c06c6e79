//! A guest's root: a tmpfs with the host's programs read-only, and everything else the guest's own.
//!
//! The list is of what a guest sees, not of what it must not: the data root, the keys of other guests and the files of
//! the person who runs the lab are absent because nothing names them.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};

use super::plan::{GuestPlan, Plan};
use super::sys;

/// Programs and libraries, taken from the host read-only.
pub(super) const SYSTEM: [&str; 9] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "nix"];

/// The mount's program, as the build names it.
pub(super) const MOUNT_PROGRAM: &str = "mount-strongroom";

/// The guest's own directories, empty at first.
const OWN: [(&str, u32); 9] = [
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/cache", 0o755),
    ("run", 0o755),
    ("root", 0o700),
    ("home", 0o755),
    ("mnt", 0o755),
];

/// Character devices: name, major and minor number.
const DEVICES: [(&str, u32, u32); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
];

/// What of the host's `/etc` a guest does not get: secrets, and Strongroom's own keys if the host has any.
const ETC_LEFT_OUT: [&str; 7] =
    ["strongroom", "shadow", "shadow-", "gshadow", "gshadow-", "ssl/private", "ssh"];

/// Larger files in `/etc` are databases that no guest here needs.
const ETC_FILE_LIMIT: u64 = 1 << 20;

/// Build the root of `guest` and make it this process's.
pub(super) fn enter_new_root(plan: &Plan, guest: &GuestPlan) -> Result<()> {
    let root = plan.place.root_mount_point();
    let root = root.as_path();
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("cannot make the mounts private")?;
    mount("tmpfs", root, "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .with_context(|| format!("cannot mount a tmpfs on `{}`", root.display()))?;
    for (dir, mode) in OWN {
        make_dir(&root.join(dir), mode)?;
    }
    for dir in SYSTEM {
        take_system_dir(root, dir)?;
    }
    install_mount_helper(root, &plan.programs)?;
    copy_etc(Path::new("/etc"), &root.join("etc"), Path::new(""))?;
    name_guest(root, guest)?;
    for share in &plan.shares {
        bind(share, &inside(root, share), true)?;
    }
    for own in &guest.binds {
        bind(&own.from, &inside(root, &own.to), false)?;
    }
    make_kernel_mounts(root)?;
    make_devices(plan, root)?;
    switch_root(root)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make `{}`", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of `{}`", path.display()))
}

fn take_system_dir(root: &Path, dir: &str) -> Result<()> {
    let host = Path::new("/").join(dir);
    let Ok(found) = fs::symlink_metadata(&host) else { return Ok(()) };
    if found.is_symlink() {
        let target = fs::read_link(&host)?;
        return symlink(&target, root.join(dir)).with_context(|| format!("cannot link `{}`", host.display()));
    }
    bind(&host, &root.join(dir), true)
}

/// Put `mount.strongroom` where mount(8) looks for it. The build calls it `mount-strongroom`: rustc allows no dot.
fn install_mount_helper(root: &Path, programs: &Path) -> Result<()> {
    let sbin = root.join("sbin");
    if !fs::symlink_metadata(&sbin).is_ok_and(|found| found.is_symlink()) {
        return Ok(());
    }
    // Debian's /sbin is a link to /usr/sbin, which is the host's: a directory of links instead can have one more.
    fs::remove_file(&sbin)?;
    make_dir(&sbin, 0o755)?;
    for entry in fs::read_dir("/usr/sbin").context("cannot list /usr/sbin")? {
        let name = entry?.file_name();
        symlink(Path::new("/usr/sbin").join(&name), sbin.join(&name))?;
    }
    let helper = sbin.join("mount.strongroom");
    let _ = fs::remove_file(&helper);
    symlink(programs.join(MOUNT_PROGRAM), &helper).context("cannot install mount.strongroom in the guest")
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let shown = || format!("cannot show `{}` to the guest", from.display());
    fs::create_dir_all(to).with_context(shown)?;
    mount_bind_recursive(from, to).with_context(shown)?;
    if read_only {
        sys::make_tree_read_only(&CString::new(to.as_os_str().as_bytes())?).with_context(shown)?;
    }
    Ok(())
}

/// The guest's own copy of `/etc`, which it may change: a link to the host's would show the host's secrets.
fn copy_etc(from: &Path, to: &Path, relative: &Path) -> Result<()> {
    make_dir(to, 0o755)?;
    // What this user cannot read, the guest does not need.
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.flatten() {
        let relative = relative.join(entry.file_name());
        if ETC_LEFT_OUT.iter().any(|name| relative == Path::new(name)) {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(found) = fs::symlink_metadata(&source) else { continue };
        if found.is_dir() {
            copy_etc(&source, &target, &relative)?;
        } else if found.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if found.is_file() && found.len() <= ETC_FILE_LIMIT {
            match fs::copy(&source, &target) {
                Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {
                    return Err(error).with_context(|| format!("cannot copy `{}`", source.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn name_guest(root: &Path, guest: &GuestPlan) -> Result<()> {
    rustix::system::sethostname(guest.name.as_bytes()).context("cannot set the guest's host name")?;
    let write = |name: &str, text: String| {
        let path = root.join("etc").join(name);
        // A link here would lead out of the guest's own files.
        let _ = fs::remove_file(&path);
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
    };
    write("hostname", format!("{}\n", guest.name))?;
    write(
        "hosts",
        format!("127.0.0.1 localhost {}\n{} storage\n", guest.name, super::network::GATEWAY_HOST),
    )?;
    write("resolv.conf", "# This guest has no way out of the lab.\n".to_owned())?;
    let _ = fs::remove_file(root.join("etc/mtab"));
    symlink("/proc/self/mounts", root.join("etc/mtab")).context("cannot link /etc/mtab")
}

fn make_kernel_mounts(root: &Path) -> Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for dir in ["proc", "sys", "dev"] {
        make_dir(&root.join(dir), 0o755)?;
    }
    mount("proc", root.join("proc"), "proc", quiet, None).context(
        "cannot mount /proc (a container that masks its own /proc forbids it: run the lab outside, or with an unmasked /proc)",
    )?;
    mount("sysfs", root.join("sys"), "sysfs", quiet, None).context("cannot mount /sys")?;
    mount("tmpfs", root.join("dev"), "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0755")
        .context("cannot mount /dev")
}

fn make_devices(plan: &Plan, root: &Path) -> Result<()> {
    let dev = root.join("dev");
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        if plan.user_namespace {
            // No user namespace may make devices: show the host's.
            fs::write(&path, "")?;
            mount_bind_recursive(Path::new("/dev").join(name), &path)
                .with_context(|| format!("cannot show /dev/{name} to the guest"))?;
        } else {
            rustix::fs::mknodat(
                CWD,
                &path,
                FileType::CharacterDevice,
                Mode::empty(),
                rustix::fs::makedev(major, minor),
            )
            .with_context(|| format!("cannot make the guest's /dev/{name}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        }
    }
    if plan.awake {
        show_latency_device(&dev)?;
    }
    make_dir(&dev.join("pts"), 0o755)?;
    mount(
        "devpts",
        dev.join("pts"),
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=620",
    )
    .context("cannot mount /dev/pts")?;
    make_dir(&dev.join("shm"), 0o1777)?;
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

/// What a guest of its own kernel has for its root, and Strongroom uses if it is there. Its number differs from boot to boot.
fn show_latency_device(dev: &Path) -> Result<()> {
    let host = Path::new("/dev/cpu_dma_latency");
    if fs::File::options().write(true).open(host).is_err() {
        return Ok(());
    }
    let path = dev.join("cpu_dma_latency");
    fs::write(&path, "")?;
    mount_bind_recursive(host, &path).with_context(|| format!("cannot show {} to the guest", host.display()))
}

fn switch_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    // Both roots on the same place, then the upper one, the host's, goes: pivot_root(2), "pivot_root(".", ".")".
    rustix::process::pivot_root(".", ".").context("cannot change the guest's root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the host's root")?;
    std::env::set_current_dir("/").context("cannot enter the guest's root")
}
