//! Plants decoys at the top of a session's grants, and finds those that lie there already.

use std::sync::Arc;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, fchown, fsync, futimens, openat2,
    unlinkat,
};
use rustix::io::{Errno, pread, pwrite};
use strongroom_contracts::Right;

use super::Shared;
use crate::detect::decoy::{Drawn, draw};
use crate::gate::grant::{GrantState, Root};
use crate::gate::refusal::{Checked, Refusal};
use crate::leases::Change;
use crate::tree::Stat;

/// Plants what is missing. A decoy that cannot be planted is left out: it protects nobody to refuse the session.
pub(super) fn plant(shared: &Arc<Shared>, grants: &[GrantState], number: u8) {
    let Some(secret) = &shared.options.decoys else { return };
    for grant in grants {
        let rights = grant.terms.rights;
        if !rights.has(Right::Write) && !rights.has(Right::Delete) {
            continue;
        }
        let Ok(root) = grant.root(&shared.tree) else { continue };
        for number in 0..number {
            let drawn = draw(secret, &grant.terms.data.to_string(), number);
            if let Ok(Some(stat)) = find_or_make(shared, &root, &drawn) {
                shared.watches.decoys.add((stat.ino(), stat.generation()));
            }
        }
    }
}

/// `None`: the name is taken by something else.
fn find_or_make(shared: &Arc<Shared>, root: &Root, drawn: &Drawn) -> Checked<Option<Stat>> {
    let tree = &shared.tree;
    let name = drawn.name.as_bytes();
    if let Ok((node, stat)) = tree.lookup(&root.node, name) {
        let is_file = stat.size() == drawn.contents.len() as u64;
        let mut found = vec![0; drawn.contents.len()];
        let same = is_file
            && tree.open_node(&node, OFlags::RDONLY).is_ok_and(|(file, _)| {
                pread(&file, &mut found[..], 0).is_ok_and(|count| count == drawn.contents.len())
            })
            && found == drawn.contents;
        return Ok(same.then_some(stat));
    }
    let parent = tree.fd_of(&root.node)?;
    let change = tree.change(&root.node, None)?;
    let meters = tree.meters_at(&root.node);
    // No limit is asked: an administrator planted it, not the application.
    let room = meters.reserve(&[], drawn.contents.len() as u64, 1)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&*parent, name, flags, Mode::from_raw_mode(0o644), resolve)?;
    let fill = || -> Result<Stat, Errno> {
        if pwrite(&file, &drawn.contents, 0)? != drawn.contents.len() {
            return Err(Errno::IO);
        }
        let (uid, gid) = root.owner;
        if shared.privileged {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let then = Timespec { tv_sec: now.tv_sec - drawn.age_secs, tv_nsec: 0 };
        futimens(&file, &Timestamps { last_access: then, last_modification: then })?;
        // Half a decoy would be taken for a file of the user's.
        fsync(&file)?;
        Stat::of(&file)
    };
    let stat = match fill() {
        Ok(stat) => stat,
        Err(errno) => {
            let _ = unlinkat(&*parent, name, AtFlags::empty());
            return Err(Refusal::errno(errno));
        }
    };
    room.keep();
    tree.note(&root.node, name, &stat);
    drop(change);
    shared.changed_outside(&root.node, Change::Name(name));
    Ok(Some(stat))
}
