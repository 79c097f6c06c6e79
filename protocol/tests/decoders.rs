//! Every decoder of the protocol is fed by hostile guests: arbitrary bytes are an error, never a panic or a large
//! allocation, and what is encoded comes back.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use proptest::collection::vec;
use proptest::prelude::*;
use strongroom_contracts::Rights;
use strongroom_protocol::admin::{AdminAnswer, AdminRequest, ContractInfo, SessionInfo};
use strongroom_protocol::attr::{
    Credentials, Handle, Lock, LockKind, Node, OpenFlags, SetAttr, SetTime, Time,
};
use strongroom_protocol::codec::{decode_header, decode_list, encode_header};
use strongroom_protocol::frame::{Lengths, MAX_DATA, MAX_HEADER};
use strongroom_protocol::hello::{Answer, GrantInfo, Hello};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Meant, Op, RenameMode, Request, Slot};
use strongroom_protocol::readdir::entries;
use strongroom_protocol::reply::{Failure, FromGateway, Outcome};

fn name() -> impl Strategy<Value = Name> {
    vec(any::<u8>().prop_filter("no slash, no NUL", |byte| !matches!(byte, 0 | b'/')), 1..=255)
        .prop_filter_map("no dots", |bytes| Name::new(&bytes).ok())
}

fn meant() -> impl Strategy<Value = Meant> {
    prop_oneof![Just(Meant::Whichever), Just(Meant::Nothing), any::<u64>().prop_map(Meant::Inode)]
}

fn node() -> impl Strategy<Value = Node> {
    (any::<u16>(), any::<u64>()).prop_map(|(grant, ino)| Node { grant, ino })
}

fn set_time() -> impl Strategy<Value = SetTime> {
    prop_oneof![
        Just(SetTime::Now),
        (any::<i64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| SetTime::At(Time { secs, nanos })),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let by = Credentials { uid: 1, gid: 2 };
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    prop_oneof![
        (node(), name()).prop_map(|(parent, name)| Op::Lookup { parent, name }),
        (any::<u16>(), any::<u64>()).prop_map(|(grant, ino)| Op::Resolve { grant, ino }),
        (node(), any::<Option<u64>>(), any::<Option<u32>>(), proptest::option::of(set_time())).prop_map(
            move |(node, handle, mode, mtime)| Op::Setattr {
                node,
                handle: handle.map(Handle),
                set: SetAttr { mode, mtime, ..SetAttr::default() },
                by
            }
        ),
        (node(), name(), any::<u32>()).prop_map(move |(parent, name, mode)| Op::Create {
            parent,
            name,
            mode,
            flags,
            by
        }),
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(handle, offset, length)| Op::Read {
            handle: Handle(handle),
            offset,
            length
        }),
        (node(), name(), meant()).prop_map(|(parent, name, directory)| Op::Rmdir { parent, name, directory }),
        (node(), name(), node(), name(), meant()).prop_map(
            |(parent, name, new_parent, new_name, directory)| {
                Op::Rename { parent, name, new_parent, new_name, mode: RenameMode::Exchange, directory }
            }
        ),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(handle, start, end, wait)| {
            let lock = Lock { owner: 3, pid: 4, start, end, kind: LockKind::Exclusive };
            Op::SetLock { handle: Handle(handle), lock, wait, reclaim: false }
        }),
        Just(Op::Bye),
        Just(Op::Reclaimed),
    ]
}

proptest! {
    #[test]
    fn arbitrary_headers_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        let _ = decode_header::<Request>(&bytes);
        let _ = decode_header::<FromGateway>(&bytes);
        let _ = decode_header::<Hello>(&bytes);
        let _ = decode_header::<Answer>(&bytes);
        let _ = decode_header::<AdminRequest>(&bytes);
        let _ = decode_header::<AdminAnswer>(&bytes);
        let _ = decode_list::<Vec<GrantInfo>>(&bytes);
        let _ = decode_list::<Vec<SessionInfo>>(&bytes);
        let _ = decode_list::<Vec<ContractInfo>>(&bytes);
        let _ = decode_list::<Vec<Node>>(&bytes);
        let _ = entries(&bytes).count();
    }

    #[test]
    fn requests_come_back_and_tolerate_nothing_else(id: u64, index: u16, sequence: u64, op in op()) {
        let request = Request { id, slot: Slot { index, sequence }, op };
        let mut bytes = vec![];
        encode_header(&request, &mut bytes).unwrap();
        prop_assert_eq!(&decode_header::<Request>(&bytes).unwrap(), &request);
        prop_assert!(decode_header::<Request>(&bytes[..bytes.len() - 1]).is_err());
        bytes.push(0);
        prop_assert!(decode_header::<Request>(&bytes).is_err());
    }

    #[test]
    fn replies_come_back(id: u64, count: u64, size: u64, bits in 0u8..128) {
        for outcome in [
            Outcome::Written { count, size },
            Outcome::Failed(Failure::Denied { missing: Rights::from_bits(bits).unwrap() }),
        ] {
            let reply = FromGateway::Reply { id, outcome };
            let mut bytes = vec![];
            encode_header(&reply, &mut bytes).unwrap();
            prop_assert_eq!(decode_header::<FromGateway>(&bytes).unwrap(), reply);
        }
    }

    #[test]
    fn prefixes_are_within_bounds_or_refused(prefix: [u8; 8]) {
        if let Ok(lengths) = Lengths::parse(prefix) {
            prop_assert!((1..=MAX_HEADER).contains(&lengths.header) && lengths.data <= MAX_DATA);
            prop_assert_eq!(lengths.prefix(), prefix);
        }
    }
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    // A list that announces 2^60 elements in 8 bytes.
    assert!(decode_list::<Vec<Node>>(&(1u64 << 60).to_le_bytes()).is_err());
    assert!(decode_header::<Vec<u8>>(&(1u64 << 60).to_le_bytes()).is_err());
}
