//! The table from operations to rights. Nothing else in the gateway knows which right allows what.
//!
//! Some operations turn out to need more once it is known what they would do (replace a file, change bytes rather than
//! add some); those are [`Deed`]s, which the store names and the gate decides.

use strongroom_contracts::{Right, Rights};
use strongroom_protocol::op::Op;

/// The rights that something needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// None beyond knowing the node or having the handle.
    Nothing,
    /// All of these.
    All(Rights),
    /// One of these.
    AnyOf(Rights),
}

/// Who is let through without the rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unless {
    /// Nobody.
    Never,
    /// Who made the object in this session.
    Own,
    /// Who has the handle open that created the file.
    Creator,
}

/// What an operation would do, as far as the operation itself does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Open for reading.
    OpenToRead,
    /// Open an existing file for writing.
    OpenToWrite,
    /// Make a new object.
    Make,
    /// Add bytes at the end, or beyond it.
    Extend,
    /// Change bytes that are there, or cut them off.
    Change,
    /// Change mode, owner or times.
    SetAttributes,
    /// Set times to the present.
    Touch,
}

const LIST: Rights = Rights::only(Right::List);
const READ: Rights = Rights::only(Right::Read);
const CREATE: Rights = Rights::only(Right::Create);
const WRITE: Rights = Rights::only(Right::Write);
const DELETE: Rights = Rights::only(Right::Delete);
const ATTR: Rights = Rights::only(Right::Attr);

const fn set(bits: u8) -> Rights {
    match Rights::from_bits(bits) {
        Some(rights) => rights,
        None => Rights::READ_WRITE,
    }
}

const APPEND_OR_WRITE: Rights = set(Rights::only(Right::Append).bits() | WRITE.bits());
const APPEND_OR_WRITE_OR_ATTR: Rights = set(APPEND_OR_WRITE.bits() | ATTR.bits());
const DELETE_AND_CREATE: Rights = set(DELETE.bits() | CREATE.bits());

/// What an operation needs on arrival.
#[rustfmt::skip]
pub(crate) const fn on_arrival(op: &Op) -> (Needs, Unless) {
    use Needs::{All, AnyOf, Nothing};
    use Unless::{Creator, Never, Own};
    match op {
        // names and attributes
        Op::Lookup { .. }      => (All(LIST), Own),
        Op::Resolve { .. }     => (All(LIST), Own),
        Op::Getattr { .. }     => (All(LIST), Own),
        Op::Measure { .. }     => (All(LIST), Own),
        Op::Opendir { .. }     => (All(LIST), Never),
        Op::Readdir { .. }     => (All(LIST), Never),
        Op::List { .. }        => (All(LIST), Never),
        Op::Statfs { .. }      => (All(LIST), Never),
        // contents
        Op::Read { .. }        => (All(READ), Never),
        Op::ReadFiles { .. }   => (All(READ), Never),
        Op::Readlink { .. }    => (All(READ), Never),
        Op::Seek { .. }        => (All(READ), Never),
        Op::Getxattr { .. }    => (All(READ), Never),
        Op::Listxattr { .. }   => (All(READ), Never),
        Op::Write { .. }       => (AnyOf(APPEND_OR_WRITE), Creator), // and a deed
        Op::Fallocate { .. }   => (AnyOf(APPEND_OR_WRITE), Creator), // and a deed
        Op::CopyRange { .. }   => (All(READ), Never),                // and a deed at the target
        // new objects
        Op::Mkdir { .. }       => (All(CREATE), Never),
        Op::Mknod { .. }       => (All(CREATE), Never),
        Op::Symlink { .. }     => (All(CREATE), Never),
        Op::Link { .. }        => (All(CREATE), Never),
        // names taken away
        Op::Unlink { .. }      => (All(DELETE), Never),
        Op::Rmdir { .. }       => (All(DELETE), Never),
        Op::Rename { .. }      => (All(DELETE_AND_CREATE), Never),
        // attributes
        Op::Setxattr { .. }    => (All(ATTR), Never),
        Op::Removexattr { .. } => (All(ATTR), Never),
        // decided by deeds alone
        Op::Setattr { .. } | Op::Open { .. } | Op::Create { .. } | Op::Reopen { .. }
        | Op::OpenRead { .. } => (Nothing, Never),
        // on what is open already, or on nothing
        Op::Flush { .. } | Op::Fsync { .. } | Op::Release { .. } | Op::GetLock { .. } | Op::SetLock { .. }
        | Op::CancelLock { .. } | Op::Forget | Op::Ping | Op::Bye | Op::Reclaimed | Op::TakeLeases | Op::Recalled { .. } => {
            (Nothing, Never)
        }
    }
}

/// What a deed needs.
#[rustfmt::skip]
pub(crate) const fn for_deed(deed: Deed) -> (Needs, Unless) {
    use Needs::{All, AnyOf};
    use Unless::{Creator, Never};
    match deed {
        Deed::OpenToRead    => (All(READ), Never),
        Deed::OpenToWrite   => (AnyOf(APPEND_OR_WRITE), Never),
        Deed::Make          => (All(CREATE), Never),
        Deed::Extend        => (AnyOf(APPEND_OR_WRITE), Creator),
        Deed::Change        => (All(WRITE), Creator),
        Deed::SetAttributes => (All(ATTR), Creator),
        Deed::Touch         => (AnyOf(APPEND_OR_WRITE_OR_ATTR), Creator),
    }
}

/// The rights that are missing; `None` if none is. Of several that would do, the least is named.
pub(crate) fn missing(needs: Needs, held: Rights) -> Option<Rights> {
    let missing = match needs {
        Needs::Nothing => Rights::NONE,
        Needs::All(all) => all.without(held),
        Needs::AnyOf(any) if any.meet(held).is_empty() => any.iter().take(1).collect(),
        Needs::AnyOf(_) => Rights::NONE,
    };
    (!missing.is_empty()).then_some(missing)
}
