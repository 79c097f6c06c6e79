//! A drop-box takes things in and tells nothing.

use strongroom_contracts::Rights;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use crate::support::*;

fn world() -> (World, Guest) {
    let world = World::new();
    world.file("in/secret", b"their letter");
    world.file("in/sub/deep", b"x");
    let guest = world.guest(vec![grant("in", "/in", Rights::DROP_BOX)]);
    (world, guest)
}

#[test]
fn nothing_that_is_there_is_told() {
    let (_world, guest) = world();
    let root = guest.root(0);
    let missing = errno(libc::ENOENT);
    for text in ["secret", "sub", "none"] {
        assert_eq!(guest.lookup(root, text), missing);
        assert_eq!(guest.call(&Op::Resolve { grant: 0, ino: 0 }, text.as_bytes()).0, missing);
    }
    assert_eq!(guest.call(&Op::Resolve { grant: 0, ino: 0 }, b"sub/deep").0, missing);
    assert_eq!(guest.ask(&Op::Opendir { node: root }), denied("list"));
    assert_eq!(guest.ask(&Op::Statfs { node: root }), denied("list"));
    // The root is there to be used, and says neither how much it holds nor when that changed.
    let shown = attr(guest.getattr(root));
    let admission = guest.turnstile.enter().unwrap();
    assert_eq!(guest.session.grant_infos(&admission)[0].root, Some(shown));
    assert_eq!((shown.nlink, shown.size, shown.blocks), (2, 0, 0));
    assert_eq!((shown.mtime, shown.ctime), Default::default());
    entry(guest.mkdir(root, "mine"));
    assert_eq!(attr(guest.getattr(root)), shown);
}

#[test]
fn what_is_put_in_is_known_to_its_maker_only_and_not_read_back() {
    let (world, guest) = world();
    let root = guest.root(0);
    let (handle, file) = created(guest.create(root, "letter", WRITE));
    written(guest.write(handle, 0, b"dear sir"));
    assert_eq!(attr(guest.getattr(file.node)).size, 8);
    assert_eq!(guest.release(handle), Outcome::Done);
    assert_eq!(entry(guest.lookup(root, "letter")).attr.size, 8);
    assert_eq!(guest.open(file.node, READ), denied("read"));
    let handle = opened(guest.open(file.node, WRITE));
    assert_eq!(guest.read(handle, 0, 8), Err(denied("read")));
    assert_eq!(written(guest.write(handle, 8, b"!")), (1, 9));
    assert_eq!(guest.create(root, "both", BOTH), denied("read"));
    assert!(!world.path("in/both").exists());
    // A name that is taken cannot be taken again; more is not said.
    assert_eq!(guest.create(root, "secret", WRITE), errno(libc::EEXIST));
    assert_eq!(guest.mkdir(root, "secret"), errno(libc::EEXIST));
    let other = world.guest(vec![grant("in", "/in", Rights::DROP_BOX)]);
    assert_eq!(other.lookup(other.root(0), "letter"), errno(libc::ENOENT));
    // Not even if the file was replaced by another one under the same name.
    std::fs::remove_file(world.path("in/letter")).unwrap();
    std::fs::write(world.path("in/other"), b"theirs").unwrap();
    std::fs::rename(world.path("in/other"), world.path("in/letter")).unwrap();
    assert_eq!(guest.lookup(root, "letter"), errno(libc::ENOENT));
}
