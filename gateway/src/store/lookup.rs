//! Finding a name in a directory.

use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::Checked;
use crate::gate::{InDir, Permit};

pub(crate) fn lookup(permit: &Permit<'_, InDir>, name: &[u8]) -> Checked<Outcome> {
    permit.reading_names(permit.dir())?;
    let find = || permit.tree().lookup(permit.dir(), name);
    let mut found = find();
    if let Ok((node, _)) = &found
        && permit.found(node)?
    {
        let first = node.id;
        found = find();
        if !matches!(&found, Ok((node, _)) if node.id == first) {
            permit.found_other();
        }
    }
    match found {
        Ok((node, stat)) => {
            permit.may_see(Some(&node))?;
            Ok(Outcome::Entry(permit.tell(&node, &stat)))
        }
        Err(refusal) => {
            // Whether it is missing is not told either.
            permit.may_see(None)?;
            Err(refusal)
        }
    }
}
