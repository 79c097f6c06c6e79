//! Leases: what a client may keep without asking again, and how it is told that it may not any more.
//!
//! A client that can answer recalls says so with [`crate::op::Op::TakeLeases`]. From then on its session may hold one lease
//! for each node and grant; replies come as [`crate::reply::FromGateway::Leased`] with a [`Note`]. Before a change that breaks
//! a lease is carried out for anyone else, the gateway sends [`crate::reply::Event::Recall`] and waits for
//! [`crate::op::Op::Recalled`], for at most [`LeaseTerms::recall_ms`]. A client that is late, or has no connection left, loses
//! all its leases ([`crate::reply::Event::LeasesLost`], or a new connection: leases end with the session's last connection).
//!
//! # Order
//! Replies and recalls may overtake each other on several connections. Each session has a clock that rises with every recall.
//! A note carries the clock's time from before the state was read ([`Note::stamp`]); a recall carries its own, higher time. So
//! a reply with a stamp below that of a recall of the same node tells what was there before, and is not kept.

use bincode::{Decode, Encode};

use crate::attr::{Attr, Node};
use crate::name::Name;

/// The most items in one recall.
pub const MAX_ITEMS: usize = 1024;

/// What a session holds on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub enum Lease {
    /// Nothing: whatever the reply says may be old as soon as it is read.
    #[default]
    None,
    /// What is read of the node may be kept: attributes, contents, extended attributes, the target of a symlink, the names in
    /// a directory and the absence of names.
    Shared,
    /// Nobody else holds anything. In addition, writes may be answered to the application before the gateway has them, as
    /// long as they have been sent before a recall is acknowledged.
    Exclusive,
}

/// What a reply says about leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Note {
    /// The session's clock from before the state was read. What a reply says of a node may be kept if no recall of that node
    /// with a time above this has come or comes.
    pub stamp: u64,
    /// What the session holds from now on the node that the reply is about: found, made, opened, read, listed or written.
    /// `None` takes nothing away; what this reply says is not to be kept.
    pub node: Lease,
    /// Whether what the reply says of names (present or absent) may be kept under the lease of their directory.
    pub names: bool,
    /// Attributes after a change, where the reply has no other: of the file that was written to, or of the directory in which
    /// a name was made or removed. Subject to the lease that the session holds there already.
    pub after: Option<Attr>,
}

/// What the gateway offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LeaseTerms {
    /// The longest that anything may be kept under a lease without asking again, in milliseconds. Short where the gateway cannot
    /// notice what an administrator changes behind its back.
    pub keep_ms: u64,
    /// How long a recall is waited for, in milliseconds.
    pub recall_ms: u32,
    /// The most leases that the session may hold; beyond, the least recently used are recalled.
    pub most: u32,
}

/// One thing to forget. A list of them is the data of [`crate::reply::Event::Recall`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Recalled {
    /// Of which node.
    pub node: Node,
    /// What.
    pub what: What,
}

/// What is to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum What {
    /// One name in a directory (present or absent), the listing and the directory's attributes. The lease stays.
    Name(Name),
    /// Everything: the lease is over.
    All {
        /// Contents may change too; otherwise pages may stay once a new lease is had.
        data: bool,
        /// The last name of the file may go: what is open without the gateway's knowledge must be opened there before the
        /// recall is acknowledged.
        open: bool,
    },
    /// An exclusive lease becomes a shared one: what has been answered and not sent must be sent and answered first.
    Shared,
    /// A file that the session has open has become longer, and so long; it has no lease. A kernel believes the size that it was told last
    /// for mappings and sendfile(2), whatever it asks for otherwise.
    Longer(u64),
    /// The same, and it has become shorter.
    Shorter(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_list, encode_list};

    #[test]
    fn a_full_recall_fits_in_a_frame() {
        let longest = Recalled {
            node: Node { grant: u16::MAX, ino: u64::MAX },
            what: What::Name(Name::new(&[b'x'; 255]).unwrap()),
        };
        let items = vec![longest; MAX_ITEMS];
        let bytes = encode_list(&items).unwrap();
        assert_eq!(decode_list::<Vec<Recalled>>(&bytes).unwrap(), items);
    }
}
