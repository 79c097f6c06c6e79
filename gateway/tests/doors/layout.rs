//! The bytes on the wire, as docs/protocol.md describes them.

use strongroom_protocol::attr::{Attr, Node, OpenFlags, Time};
use strongroom_protocol::codec;
use strongroom_protocol::frame::{Lengths, MAX_DATA, MAX_HEADER, PREFIX};
use strongroom_protocol::hello::{Answer, Hello, Refused, RefusedCode, SessionId};
use strongroom_protocol::lease::{Lease, Note};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::{Entry, Event, Failure, FenceReason, FromGateway, Outcome};

fn bytes<T: bincode::Encode>(value: &T) -> Vec<u8> {
    let mut out = vec![];
    codec::encode_header(value, &mut out).unwrap();
    out
}

/// The rows of the table with this title: offset, length, name.
fn table(title: &str) -> Vec<(usize, usize, String)> {
    let text = include_str!("../../../docs/protocol.md");
    let rest = text.split_once(&format!("### {title}\n")).unwrap_or_else(|| panic!("no table {title}")).1;
    rest.lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].parse().unwrap(), cells[1].parse().unwrap(), cells[2].to_owned())
        })
        .collect()
}

/// Checks that the documented fields cover the bytes without a gap, and hold these values.
fn check(title: &str, bytes: &[u8], values: &[&[u8]]) {
    let rows = table(title);
    let mut end = 0;
    for (offset, length, name) in &rows {
        assert_eq!(*offset, end, "{title}: {name} does not follow the field before it");
        end += length;
    }
    assert_eq!(end, bytes.len(), "{title}: {rows:?}");
    assert_eq!(rows.len(), values.len(), "{title}");
    for ((offset, length, name), value) in rows.iter().zip(values) {
        assert_eq!(&bytes[*offset..offset + length], *value, "{title}: {name}");
    }
}

#[test]
fn the_documented_bytes_are_those_on_the_wire() {
    assert_eq!((PREFIX, MAX_HEADER, MAX_DATA), (8, 4096, 1 << 20));
    let prefix = Lengths { header: 0x102, data: 0x30405 }.prefix();
    check("Frame prefix", &prefix, &[&[2, 1, 0, 0], &[5, 4, 3, 0]]);

    let hello = bytes(&Hello { version: 1, resume: Some(SessionId([7; 16])), wait: true });
    check("Hello (resuming)", &hello, &[&[1, 0], &[1], &[7; 16], &[1]]);
    assert_eq!(bytes(&Hello { version: 1, resume: None, wait: false }), [1, 0, 0, 0]);

    let op = Op::Lookup { parent: Node { grant: 3, ino: 9 }, name: Name::new(b"ab").unwrap() };
    let request = bytes(&Request { id: 5, slot: Slot { index: 2, sequence: 8 }, op });
    let long = |n: u64| n.to_le_bytes();
    check(
        "Request (lookup)",
        &request,
        &[&long(5), &[2, 0], &long(8), &[0; 4], &[3, 0], &long(9), &long(2), b"ab"],
    );

    let time = Time { secs: -2, nanos: 3 };
    let attr = Attr {
        ino: 1,
        generation: 2,
        mode: 3,
        nlink: 4,
        uid: 5,
        gid: 6,
        rdev: 7,
        blksize: 8,
        size: 9,
        blocks: 10,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    };
    let stamp = [&(-2i64).to_le_bytes()[..], &3u32.to_le_bytes()].concat();
    let word = |n: u32| n.to_le_bytes();
    check(
        "Attributes",
        &bytes(&attr),
        &[
            &long(1),
            &long(2),
            &word(3),
            &word(4),
            &word(5),
            &word(6),
            &word(7),
            &word(8),
            &long(9),
            &long(10),
            &stamp,
            &stamp,
            &stamp,
            &stamp,
        ],
    );
    let entry = Entry { node: Node { grant: 3, ino: 9 }, attr };
    let reply = bytes(&FromGateway::Reply { id: 5, outcome: Outcome::Entry(entry) });
    check("Reply (entry)", &reply, &[&word(0), &long(5), &word(1), &[3, 0], &long(9), &bytes(&attr)]);
    let failed = bytes(&FromGateway::Reply { id: 5, outcome: Outcome::Failed(Failure::Errno(2)) });
    check("Reply (failed)", &failed, &[&word(0), &long(5), &word(10), &word(0), &[2, 0]]);
    let event = bytes(&FromGateway::Event(Event::Fenced(FenceReason::Superseded)));
    check("Event (fenced)", &event, &[&word(1), &word(0), &word(2)]);
    let note = Note { stamp: 8, node: Lease::Exclusive, names: true, after: None };
    let leased = bytes(&FromGateway::Leased { id: 5, outcome: Outcome::Done, note });
    let fields: [&[u8]; 7] = [&word(2), &long(5), &word(0), &long(8), &word(2), &[1], &[0]];
    check("Reply (leased, done)", &leased, &fields);
    let event = bytes(&FromGateway::Event(Event::Recall { id: 5, stamp: 8 }));
    check("Event (recall)", &event, &[&word(1), &word(3), &long(5), &long(8)]);
    let lost = bytes(&FromGateway::Event(Event::LeasesLost { id: 5, stamp: 8 }));
    assert_eq!(lost[4..8], word(4));
    let refused = bytes(&Answer::Refused(Refused { code: RefusedCode::Busy, text: "no".into() }));
    check("Answer (refused)", &refused, &[&word(1), &word(6), &long(2), b"no"]);
}

#[test]
fn the_documented_numbers_of_operations_and_failures_are_right() {
    let node = Node { grant: 0, ino: 0 };
    let handle = strongroom_protocol::attr::Handle(0);
    let first = |value: &[u8]| u32::from_le_bytes(value[..4].try_into().unwrap());
    let text = include_str!("../../../docs/protocol.md");
    for (op, number) in [
        (Op::Lookup { parent: node, name: Name::new(b"n").unwrap() }, 0),
        (Op::Getattr { node, handle: None }, 3),
        (Op::Read { handle, offset: 0, length: 0 }, 9),
        (Op::Write { handle, offset: 0 }, 10),
        (Op::Ping, 34),
        (Op::Bye, 35),
        (Op::Reclaimed, 36),
        (Op::TakeLeases, 37),
        (Op::Recalled { id: 0 }, 38),
        (Op::OpenRead { node, flags: OpenFlags::default(), offset: 0, length: 0 }, 39),
        (Op::List { node, cookie: 0, max_bytes: 0, plus: true, ahead: true }, 40),
        (Op::ReadFiles { grant: 0, longest: 0, max_bytes: 0 }, 41),
        (Op::Measure { node, handle: None }, 42),
    ] {
        assert_eq!(first(&bytes(&op)), number, "{}", op.name());
        assert!(
            text.contains(&format!("{number} {}", op.name())),
            "{number} {} is not documented",
            op.name()
        );
    }
    for (failure, number, name) in [
        (Failure::Errno(0), 0, "Errno"),
        (Failure::Denied { missing: strongroom_contracts::Rights::NONE }, 1, "Denied"),
        (Failure::Fenced, 2, "Fenced"),
        (Failure::Quota, 3, "Quota"),
        (Failure::CrossGrant, 4, "CrossGrant"),
        (Failure::Stale, 5, "Stale"),
        (Failure::BadHandle, 6, "BadHandle"),
        (Failure::TooMany, 7, "TooMany"),
        (Failure::Grace, 8, "Grace"),
        (Failure::BadSlot, 9, "BadSlot"),
        (Failure::Malformed, 10, "Malformed"),
    ] {
        assert_eq!(first(&bytes(&failure)), number, "{name}");
        assert!(text.contains(&format!("| {number} `{name}`")), "{name} is not documented");
    }
}
