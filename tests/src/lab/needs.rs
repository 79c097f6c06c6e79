//! What a lab needs of the machine, checked before anything is made, each lack named with its remedy.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Result, bail};

/// The programs under test, which every lab runs.
const PROGRAMS: [&str; 3] = ["contract", "strongroom-gateway", super::rootfs::MOUNT_PROGRAM];

/// How this user may make a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Privilege {
    Root,
    /// In a user namespace, as its root.
    UserNamespace,
}

/// Check all needs at once, so that one run names everything that is missing.
pub(super) fn check(programs: &Path, bare_of_programs: bool) -> Result<Privilege> {
    let mut missing = Vec::new();
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if !on_path(tool) {
            missing.push(format!("the program `{tool}` is missing: apt-get install {package}"));
        }
    }
    if !bare_of_programs {
        let absent: Vec<_> = PROGRAMS.iter().filter(|p| !programs.join(p).is_file()).copied().collect();
        if !absent.is_empty() {
            missing.push(format!(
                "`{}` has no {}: build with `make lab`, or set STRONGROOM_BIN_DIR",
                programs.display(),
                absent.join(", ")
            ));
        }
    }
    missing.extend(fuse_problem());
    let privilege = if rustix::process::geteuid().is_root() {
        Privilege::Root
    } else {
        missing.extend(user_namespace_problem());
        Privilege::UserNamespace
    };
    if missing.is_empty() {
        return Ok(privilege);
    }
    bail!("this machine cannot run a lab yet:\n  - {}", missing.join("\n  - "))
}

fn on_path(tool: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(tool).is_file())
}

fn fuse_problem() -> Option<String> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some("there is no /dev/fuse: as root, run `modprobe fuse` (in a container, pass the device in)".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(
            "/dev/fuse is closed to this user: as root, run `chmod 666 /dev/fuse` (Debian's usual mode), or run the lab as root"
                .to_owned(),
        ),
        Err(error) => Some(format!("/dev/fuse does not open: {error}")),
    }
}

fn user_namespace_problem() -> Option<String> {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let remedy = |key: &str, value: &str| {
        Some(format!(
            "ordinary users may not make user namespaces: as root, run `sysctl {key}={value}`, or run the lab as root"
        ))
    };
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return remedy("kernel.unprivileged_userns_clone", "1");
    }
    if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return remedy("user.max_user_namespaces", "10000");
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return remedy("kernel.apparmor_restrict_unprivileged_userns", "0");
    }
    None
}
