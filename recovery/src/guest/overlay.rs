//! A qcow2 overlay on a clean base image: what a guest changes goes to the overlay, and a new overlay is a clean guest.

use std::path::Path;
use std::time::Duration;

use super::{Action, Job, absolute, argv, kept};

/// The program that makes overlays.
pub(super) const QEMU_IMG: &str = "qemu-img";
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn check(base: &Path, overlay: &Path) -> Result<(), String> {
    absolute("base", base)?;
    absolute("overlay", overlay)?;
    if base == overlay {
        return Err("overlay: it is the base image itself, which must stay clean".to_owned());
    }
    Ok(())
}

/// Keeps the dirty overlay and makes a new one.
pub(super) fn renew(job: &Job<'_>, base: &Path, overlay: &Path) -> [Action; 2] {
    let (base, shown) = (base.display().to_string(), overlay.display().to_string());
    [
        Action::Keep { from: overlay.to_owned(), to: kept(job, overlay) },
        Action::Run {
            argv: argv([QEMU_IMG, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &shown]),
            timeout: TIMEOUT,
            may_fail: false,
        },
    ]
}
