//! Giving a file another name.

use rustix::fs::{AtFlags, linkat, unlinkat};
use rustix::io::Errno;
use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{IntoDir, Permit};
use crate::leases::Change;

/// How often a source that is being renamed is looked for.
const ATTEMPTS: usize = 16;

pub(crate) fn link(permit: &Permit<'_, IntoDir>, name: &[u8]) -> Checked<Outcome> {
    let (tree, node, dir) = (permit.tree(), permit.node(), permit.dir());
    if node.is_dir() {
        return Err(Refusal::errno(Errno::PERM));
    }
    let to = tree.fd_of(dir)?;
    let limits = permit.limits()?;
    for _ in 0..ATTEMPTS {
        let Some((parent, source)) = node.any_link() else {
            return Err(if node.is_gone() { Refusal::errno(Errno::NOENT) } else { Refusal::STALE });
        };
        let from = tree.fd_of(&parent)?;
        let change = tree.change(&parent, Some(dir))?;
        if !node.has_link(&parent, source.as_bytes()) {
            continue;
        }
        let _size = node.size.lock();
        let before = tree.stat_at(&from, source.as_bytes())?;
        if !node.is(&before) {
            return Err(Refusal::STALE);
        }
        // A file is counted once wherever it has names, and each name is counted.
        let old = tree.meters_of(node, &before);
        let new = tree.meters_at(dir);
        old.ready()?;
        let names = new.reserve(&limits, 0, 1)?;
        let size = if before.kind() == rustix::fs::FileType::RegularFile { before.size() } else { 0 };
        let bytes = new.without(&old).reserve(&limits, size, 0)?;
        permit.changing(&[(dir, Change::Name(name)), (node, Change::All { data: false, open: false })])?;
        permit.undo().linking(node, dir, &to, name)?;
        linkat(&*from, source.as_bytes(), &*to, name, AtFlags::empty())?;
        permit.changed(node);
        let stat = tree.stat_at(&to, name)?;
        if !node.is(&stat) {
            // Somebody else than the gateway put another file there between the look and the call.
            unlinkat(&*to, name, AtFlags::empty())?;
            return Err(Refusal::STALE);
        }
        names.keep();
        bytes.keep();
        new.linked(node.ino, (tree.links(&before) == 1).then_some(&old));
        let noted = tree.note(dir, name, &stat);
        drop(change);
        permit.changed_names(dir);
        return Ok(Outcome::Entry(permit.tell(&noted, &stat)));
    }
    Err(Refusal::STALE)
}
