//! Random operations of two guests on the engine and on a file system in memory: the same answers, the same trees.

use std::collections::BTreeMap;

use proptest::prelude::*;
use strongroom_contracts::Rights;
use strongroom_protocol::attr::{Attr, Handle, Node, OpenFlags};
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::Outcome;

use crate::support::*;

type Id = usize;

#[derive(Clone, Debug)]
enum Object {
    File(Vec<u8>),
    Dir(BTreeMap<String, Id>),
    Symlink(Vec<u8>),
}

/// A file system in memory. Errors are errno(3) numbers.
struct Model {
    objects: Vec<Object>,
    /// Of directories, once they have no name any more.
    gone: Vec<bool>,
}

type Answer<T> = Result<T, i32>;

impl Model {
    fn new() -> Model {
        Model { objects: vec![Object::Dir(BTreeMap::new())], gone: vec![false] }
    }

    fn dir(&mut self, id: Id) -> Answer<&mut BTreeMap<String, Id>> {
        match &mut self.objects[id] {
            Object::Dir(entries) => Ok(entries),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn get(&mut self, dir: Id, name: &str) -> Answer<Id> {
        self.dir(dir)?.get(name).copied().ok_or(libc::ENOENT)
    }

    fn add(&mut self, dir: Id, name: &str, object: Object) -> Answer<Id> {
        if self.get(dir, name).is_ok() {
            return Err(libc::EEXIST);
        }
        let id = self.objects.len();
        self.objects.push(object);
        self.gone.push(false);
        self.dir(dir)?.insert(name.to_owned(), id);
        Ok(id)
    }

    fn links(&self, id: Id) -> usize {
        let names = |object: &Object| match object {
            Object::Dir(entries) => entries.values().filter(|other| **other == id).count(),
            _ => 0,
        };
        self.objects.iter().map(names).sum()
    }

    fn is_dir(&self, id: Id) -> bool {
        matches!(self.objects[id], Object::Dir(_))
    }

    fn is_empty(&self, id: Id) -> bool {
        matches!(&self.objects[id], Object::Dir(entries) if entries.is_empty())
    }

    fn below(&self, dir: Id, root: Id) -> bool {
        let Object::Dir(entries) = &self.objects[root] else { return false };
        dir == root || entries.values().any(|child| self.below(dir, *child))
    }

    fn link(&mut self, id: Id, dir: Id, name: &str) -> Answer<()> {
        if self.is_dir(id) {
            return Err(libc::EPERM);
        }
        if self.links(id) == 0 {
            return Err(libc::ENOENT);
        }
        if self.get(dir, name).is_ok() {
            return Err(libc::EEXIST);
        }
        self.dir(dir)?.insert(name.to_owned(), id);
        Ok(())
    }

    fn unlink(&mut self, dir: Id, name: &str) -> Answer<()> {
        let id = self.get(dir, name)?;
        if self.is_dir(id) {
            return Err(libc::EISDIR);
        }
        self.dir(dir)?.remove(name);
        Ok(())
    }

    fn rmdir(&mut self, dir: Id, name: &str) -> Answer<()> {
        let id = self.get(dir, name)?;
        if !self.is_dir(id) {
            return Err(libc::ENOTDIR);
        }
        if !self.is_empty(id) {
            return Err(libc::ENOTEMPTY);
        }
        self.dir(dir)?.remove(name);
        self.gone[id] = true;
        Ok(())
    }

    fn rename(&mut self, from: (Id, &str), to: (Id, &str), mode: RenameMode) -> Answer<()> {
        let source = self.get(from.0, from.1)?;
        let target = self.get(to.0, to.1).ok();
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err(libc::EEXIST);
        }
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(libc::ENOENT);
        }
        if self.is_dir(source) && self.below(to.0, source) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            if self.is_dir(target) && self.below(from.0, target) {
                return Err(if mode == RenameMode::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
            }
            if source == target {
                return Ok(());
            }
            if mode != RenameMode::Exchange {
                match (self.is_dir(source), self.is_dir(target)) {
                    (true, false) => return Err(libc::ENOTDIR),
                    (false, true) => return Err(libc::EISDIR),
                    (true, true) if !self.is_empty(target) => return Err(libc::ENOTEMPTY),
                    (true, true) => self.gone[target] = true,
                    (false, false) => {}
                }
            }
        }
        self.dir(from.0)?.remove(from.1);
        self.dir(to.0)?.insert(to.1.to_owned(), source);
        if let (RenameMode::Exchange, Some(target)) = (mode, target) {
            self.dir(from.0)?.insert(from.1.to_owned(), target);
        }
        Ok(())
    }

    fn file(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.objects[id] {
            Object::File(bytes) => bytes,
            other => panic!("no file: {other:?}"),
        }
    }

    fn write(&mut self, id: Id, offset: usize, data: &[u8]) {
        let bytes = self.file(id);
        if data.is_empty() {
            return;
        }
        bytes.resize(bytes.len().max(offset + data.len()), 0);
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Everything below a directory: paths with contents.
    fn tree(&self, dir: Id, path: &str, out: &mut BTreeMap<String, String>) {
        let Object::Dir(entries) = &self.objects[dir] else { return };
        for (name, id) in entries {
            let path = format!("{path}/{name}");
            let shown = match &self.objects[*id] {
                Object::File(bytes) => format!("{} names, {bytes:?}", self.links(*id)),
                Object::Symlink(target) => format!("-> {}", target.escape_ascii()),
                Object::Dir(_) => "directory".to_owned(),
            };
            out.insert(path.clone(), shown);
            self.tree(*id, &path, out);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Lookup(usize, u8),
    Mkdir(usize, u8),
    Create(usize, u8, bool, bool),
    Symlink(usize, u8),
    Link(usize, usize, u8),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename(usize, u8, usize, u8, u8),
    Open(usize, bool),
    Write(usize, u16, u8, u8),
    Read(usize, u16, u8),
    Truncate(usize, u16),
    Release(usize),
    Forget(usize),
    List(usize),
    /// The administrator's `sync` of minds: nodes are resolved anew by path.
    Refresh,
}

fn step() -> impl Strategy<Value = Step> {
    let (n, name) = (|| 0..64_usize, || 0..5_u8);
    prop_oneof![
        3 => (n(), name()).prop_map(|(a, b)| Step::Lookup(a, b)),
        3 => (n(), name()).prop_map(|(a, b)| Step::Mkdir(a, b)),
        4 => (n(), name(), any::<bool>(), any::<bool>()).prop_map(|(a, b, x, t)| Step::Create(a, b, x, t)),
        1 => (n(), name()).prop_map(|(a, b)| Step::Symlink(a, b)),
        3 => (n(), n(), name()).prop_map(|(a, b, c)| Step::Link(a, b, c)),
        2 => (n(), name()).prop_map(|(a, b)| Step::Unlink(a, b)),
        2 => (n(), name()).prop_map(|(a, b)| Step::Rmdir(a, b)),
        6 => (n(), name(), n(), name(), 0..3_u8).prop_map(|(a, b, c, d, m)| Step::Rename(a, b, c, d, m)),
        2 => (n(), any::<bool>()).prop_map(|(a, t)| Step::Open(a, t)),
        4 => (n(), 0..3000_u16, any::<u8>(), any::<u8>()).prop_map(|(a, o, l, b)| Step::Write(a, o, l, b)),
        2 => (n(), 0..3000_u16, any::<u8>()).prop_map(|(a, o, l)| Step::Read(a, o, l)),
        1 => (n(), 0..3000_u16).prop_map(|(a, s)| Step::Truncate(a, s)),
        1 => n().prop_map(Step::Release),
        1 => n().prop_map(Step::Forget),
        1 => n().prop_map(Step::List),
        1 => Just(Step::Refresh),
    ]
}

/// What one guest holds, with the model's idea of it.
struct Side {
    guest: Guest,
    nodes: Vec<(Node, Id)>,
    handles: Vec<(Handle, Id)>,
}

impl Side {
    fn learn(&mut self, node: Node, id: Id) {
        // A number may come back for another object; then it stands for that one.
        self.nodes.retain(|(known, _)| *known != node);
        self.nodes.push((node, id));
    }

    fn node(&self, n: usize) -> (Node, Id) {
        self.nodes[n % self.nodes.len()]
    }

    fn handle(&self, n: usize) -> Option<(Handle, Id)> {
        (!self.handles.is_empty()).then(|| self.handles[n % self.handles.len()])
    }
}

struct Both {
    model: Model,
    sides: [Side; 2],
}

fn number(outcome: &Outcome) -> Result<(), i32> {
    match outcome {
        Outcome::Failed(strongroom_protocol::reply::Failure::Errno(number)) => Err(i32::from(*number)),
        Outcome::Failed(other) => panic!("unexpected: {other:?}"),
        _ => Ok(()),
    }
}

fn text(n: u8) -> String {
    format!("n{n}")
}

impl Both {
    /// Runs a step on both and compares the answers.
    fn run(&mut self, who: usize, step: &Step) {
        let Both { model, sides } = self;
        let side = &mut sides[who];
        match *step {
            Step::Lookup(d, n) => {
                let (dir, id) = side.node(d);
                if model.gone[id] {
                    return;
                }
                let outcome = side.guest.lookup(dir, &text(n));
                let found = model.get(id, &text(n));
                assert_eq!(number(&outcome), found.map(|_| ()));
                if let Ok(found) = found {
                    let entry = entry(outcome);
                    check(model, found, &entry.attr);
                    side.learn(entry.node, found);
                }
            }
            Step::Mkdir(d, n) | Step::Symlink(d, n) => {
                let (dir, id) = side.node(d);
                if model.gone[id] {
                    return;
                }
                let (outcome, object) = match step {
                    Step::Mkdir(..) => (side.guest.mkdir(dir, &text(n)), Object::Dir(BTreeMap::new())),
                    _ => (side.guest.symlink(dir, &text(n), b"to"), Object::Symlink(b"to".to_vec())),
                };
                let made = model.add(id, &text(n), object);
                assert_eq!(number(&outcome), made.map(|_| ()));
                if let Ok(made) = made {
                    side.learn(entry(outcome).node, made);
                }
            }
            Step::Create(d, n, exclusive, truncate) => {
                let (dir, id) = side.node(d);
                if model.gone[id] || side.handles.len() > 20 {
                    return;
                }
                let flags = OpenFlags { exclusive, truncate, ..BOTH };
                let outcome = side.guest.create(dir, &text(n), flags);
                let made = match model.get(id, &text(n)) {
                    Ok(found) if !exclusive => match &mut model.objects[found] {
                        Object::File(bytes) => {
                            if truncate {
                                bytes.clear();
                            }
                            Ok(found)
                        }
                        Object::Dir(_) => Err(libc::EISDIR),
                        Object::Symlink(_) => Err(libc::ELOOP),
                    },
                    _ => model.add(id, &text(n), Object::File(vec![])),
                };
                assert_eq!(number(&outcome), made.map(|_| ()));
                if let Ok(made) = made {
                    let (handle, entry) = created(outcome);
                    check(model, made, &entry.attr);
                    side.learn(entry.node, made);
                    side.handles.push((handle, made));
                }
            }
            Step::Link(f, d, n) => {
                let ((node, file), (dir, id)) = (side.node(f), side.node(d));
                if model.gone[id] || !model.is_dir(id) {
                    return;
                }
                let outcome = side.guest.link(node, dir, &text(n));
                assert_eq!(number(&outcome), model.link(file, id, &text(n)));
                if let Outcome::Entry(entry) = outcome {
                    assert_eq!(entry.node, node);
                    check(model, file, &entry.attr);
                }
            }
            Step::Unlink(d, n) | Step::Rmdir(d, n) => {
                let (dir, id) = side.node(d);
                if model.gone[id] {
                    return;
                }
                let (outcome, expected) = match step {
                    Step::Unlink(..) => (side.guest.unlink(dir, &text(n)), model.unlink(id, &text(n))),
                    _ => (side.guest.rmdir(dir, &text(n)), model.rmdir(id, &text(n))),
                };
                assert_eq!(number(&outcome), expected);
            }
            Step::Rename(d, n, e, m, mode) => {
                let ((from, a), (to, b)) = (side.node(d), side.node(e));
                if model.gone[a] || model.gone[b] || !model.is_dir(a) || !model.is_dir(b) {
                    return;
                }
                let mode =
                    [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][usize::from(mode)];
                let outcome = side.guest.rename((from, &text(n)), (to, &text(m)), mode);
                assert_eq!(number(&outcome), model.rename((a, &text(n)), (b, &text(m)), mode));
            }
            Step::Open(f, truncate) => {
                let (node, id) = side.node(f);
                if side.handles.len() > 20 || model.links(id) == 0 && id != 0 {
                    return;
                }
                let outcome = side.guest.open(node, OpenFlags { truncate, ..BOTH });
                let expected = match &mut model.objects[id] {
                    Object::File(bytes) => {
                        if truncate {
                            bytes.clear();
                        }
                        Ok(())
                    }
                    Object::Dir(_) => Err(libc::EISDIR),
                    Object::Symlink(_) => Err(libc::ELOOP),
                };
                assert_eq!(number(&outcome), expected);
                if expected.is_ok() {
                    side.handles.push((opened(outcome), id));
                }
            }
            Step::Write(h, offset, length, byte) => {
                let Some((handle, id)) = side.handle(h) else { return };
                let data = vec![byte; length.into()];
                let outcome = side.guest.write(handle, offset.into(), &data);
                model.write(id, offset.into(), &data);
                assert_eq!(written(outcome), (length.into(), model.file(id).len() as u64));
            }
            Step::Read(h, offset, length) => {
                let Some((handle, id)) = side.handle(h) else { return };
                let read = side.guest.read(handle, offset.into(), length.into()).unwrap();
                let bytes = model.file(id);
                let start = usize::from(offset).min(bytes.len());
                let end = (start + usize::from(length)).min(bytes.len());
                assert_eq!(read, bytes[start..end]);
            }
            Step::Truncate(f, size) => {
                let (node, id) = side.node(f);
                if model.links(id) == 0 || !matches!(model.objects[id], Object::File(_)) {
                    return;
                }
                let after = attr(side.guest.truncate(node, size.into()));
                model.file(id).resize(size.into(), 0);
                check(model, id, &after);
            }
            Step::Release(h) => {
                if let Some((handle, _)) = side.handle(h) {
                    assert_eq!(side.guest.release(handle), Outcome::Done);
                    side.handles.retain(|(other, _)| *other != handle);
                }
            }
            Step::Forget(n) => {
                let (node, id) = side.node(n);
                if id != 0 {
                    let list = strongroom_protocol::codec::encode_list(&vec![node]).unwrap();
                    side.guest.call(&Op::Forget, &list);
                    side.nodes.retain(|(other, _)| *other != node);
                }
            }
            Step::List(d) => {
                let (dir, id) = side.node(d);
                if model.gone[id] || !model.is_dir(id) {
                    return;
                }
                let entries = model.dir(id).unwrap().clone();
                let names: Vec<String> = entries.keys().cloned().collect();
                let plus = id % 2 == 0;
                assert_eq!(side.guest.names(dir, 1000, plus), names);
                // With attributes, the guest was told of the nodes.
                for (name, id) in entries.iter().filter(|_| plus) {
                    side.learn(entry(side.guest.lookup(dir, name)).node, *id);
                }
            }
            Step::Refresh => {
                // What has a name is found by it, under the number that it has always had.
                let mut tree = BTreeMap::new();
                model.tree(0, "", &mut tree);
                for path in tree.keys() {
                    let path = path.trim_start_matches('/');
                    let resolve = Op::Resolve { grant: 0, ino: 0 };
                    let found = entry(side.guest.call(&resolve, path.as_bytes()).0);
                    let mut id = 0;
                    path.split('/').for_each(|part| id = model.get(id, part).unwrap());
                    check(model, id, &found.attr);
                    side.learn(found.node, id);
                }
            }
        }
    }
}

fn check(model: &Model, id: Id, attr: &Attr) {
    match &model.objects[id] {
        Object::File(bytes) => {
            assert_eq!((attr.size, attr.nlink as usize), (bytes.len() as u64, model.links(id)));
            assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFREG);
        }
        Object::Dir(_) => assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFDIR),
        Object::Symlink(_) => assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFLNK),
    }
}

/// The tree on disk in the form of [`Model::tree`].
fn on_disk(dir: &std::path::Path, path: &str, out: &mut BTreeMap<String, String>) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{path}/{}", entry.file_name().to_str().unwrap());
        let meta = entry.metadata().unwrap();
        let shown = if meta.is_dir() {
            on_disk(&entry.path(), &path, out);
            "directory".to_owned()
        } else if meta.is_symlink() {
            let target = std::fs::read_link(entry.path()).unwrap();
            format!("-> {}", target.as_os_str().as_bytes().escape_ascii())
        } else {
            format!("{} names, {:?}", meta.nlink(), std::fs::read(entry.path()).unwrap())
        };
        out.insert(path, shown);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_guests_see_what_a_plain_file_system_would_show(
        steps in prop::collection::vec((0..2_usize, step()), 1..120)
    ) {
        let world = World::new();
        world.dirs(&["a"]);
        let sides = [(), ()].map(|()| {
            let guest = world.guest(vec![grant("a", "/a", Rights::READ_WRITE)]);
            let root = guest.root(0);
            Side { guest, nodes: vec![(root, 0)], handles: vec![] }
        });
        let mut both = Both { model: Model::new(), sides };
        for (who, step) in &steps {
            both.run(*who, step);
        }
        let (mut expected, mut found) = (BTreeMap::new(), BTreeMap::new());
        both.model.tree(0, "", &mut expected);
        on_disk(&world.path("a"), "", &mut found);
        prop_assert_eq!(expected, found);
    }
}
