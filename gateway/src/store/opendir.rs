//! Opening a directory for reading.

use rustix::fs::OFlags;
use rustix::io::Errno;
use strongroom_protocol::attr::OpenFlags;
use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnNode, Permit};
use crate::handles::Use;

pub(crate) fn opendir(permit: &Permit<'_, OnNode>) -> Checked<Outcome> {
    if !permit.node().is_dir() {
        return Err(Refusal::errno(Errno::NOTDIR));
    }
    permit.session().handles.room()?;
    permit.reading(permit.node())?;
    let used = Use::of_directory(permit.node());
    let (file, stat) = permit.tree().open_node(permit.node(), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let handle = permit.open(used, file, flags, false)?;
    Ok(Outcome::Opened(handle, permit.show(&stat)))
}
