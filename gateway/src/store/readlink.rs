//! The target of a symlink.

use rustix::fs::{FileType, OFlags, readlinkat_raw};
use rustix::io::Errno;
use strongroom_protocol::name::MAX_PATH;
use strongroom_protocol::reply::Outcome;

use crate::engine::ReplyBuf;
use crate::gate::refusal::{Checked, Refusal};
use crate::gate::{OnNode, Permit};

pub(crate) fn readlink(permit: &Permit<'_, OnNode>, out: &mut ReplyBuf) -> Checked<Outcome> {
    if permit.node().kind != FileType::Symlink {
        return Err(Refusal::errno(Errno::INVAL));
    }
    permit.reading(permit.node())?;
    let (fd, _) = permit.tree().open_node(permit.node(), OFlags::PATH)?;
    let space = out.space(MAX_PATH);
    let length = readlinkat_raw(&fd, c"", &mut *space)?;
    out.set_length(length);
    Ok(Outcome::Data)
}
