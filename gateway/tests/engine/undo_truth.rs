//! Two contracts change the same directory in turns, at random; one of them is undone. A model that knows who did what tells
//! beforehand what must be there afterwards, and which paths must be told as kept.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use strongroom_gateway::undo::{Filter, Verdict};
use strongroom_protocol::attr::OpenFlags;
use strongroom_protocol::op::RenameMode;
use strongroom_protocol::reply::Outcome;

use crate::support::*;
use crate::undo_support::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u16, u8, u16),
    Rewrite(usize, u8, u16),
    Create(usize, u8),
    Delete(usize),
    /// Over what has the name, or not.
    Rename(usize, usize, bool),
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    prop_oneof![
        5 => (name(), 0u16..6000, any::<u8>(), 1u16..3000).prop_map(|(n, o, b, l)| Step::Write(n, o, b, l)),
        3 => (name(), any::<u8>(), 1u16..6000).prop_map(|(n, b, l)| Step::Rewrite(n, b, l)),
        3 => (name(), any::<u8>()).prop_map(|(n, b)| Step::Create(n, b)),
        3 => name().prop_map(Step::Delete),
        4 => (name(), name(), any::<bool>()).prop_map(|(a, b, r)| Step::Rename(a, b, r)),
        2 => (1u8..15).prop_map(Step::Wait),
    ]
}

type Id = usize;
type Name = usize;

/// One thing that happened.
#[derive(Clone, Debug)]
enum Deed {
    Create(Id, Name),
    Delete(Id, Name),
    Rename(Id, Name, Name, Option<Id>),
    /// With what was there before.
    Change(Id, Vec<u8>),
}

/// What is where, and how that came.
#[derive(Default)]
struct Model {
    contents: Vec<Vec<u8>>,
    names: BTreeMap<Name, Id>,
    /// `true`: by the one that is undone.
    deeds: Vec<(bool, Deed)>,
}

impl Model {
    fn make(&mut self, name: Name, contents: Vec<u8>) -> Id {
        self.contents.push(contents);
        self.names.insert(name, self.contents.len() - 1);
        self.contents.len() - 1
    }

    /// Does a step on the real thing too, if it makes sense.
    fn perform(&mut self, guest: &Guest, undone: bool, step: &Step) {
        let opened_at = |name: Name, flags: OpenFlags| {
            let Outcome::Entry(entry) = guest.walk(0, NAMES[name]) else { panic!("{name} is not there") };
            opened(guest.open(entry.node, flags))
        };
        let at = |name: Name| (guest.root(0), NAMES[name]);
        let deed = match *step {
            Step::Write(name, offset, byte, length) => {
                let Some(id) = self.names.get(&name).copied() else { return };
                let handle = opened_at(name, WRITE);
                let bytes = vec![byte; usize::from(length)];
                written(guest.write(handle, u64::from(offset), &bytes));
                guest.release(handle);
                let contents = &mut self.contents[id];
                let before = contents.clone();
                let end = usize::from(offset) + bytes.len();
                contents.resize(contents.len().max(end), 0);
                contents[usize::from(offset)..end].copy_from_slice(&bytes);
                Deed::Change(id, before)
            }
            Step::Rewrite(name, byte, length) => {
                let Some(id) = self.names.get(&name).copied() else { return };
                let handle = opened_at(name, OpenFlags { truncate: true, ..WRITE });
                let bytes = vec![byte; usize::from(length)];
                written(guest.write(handle, 0, &bytes));
                guest.release(handle);
                Deed::Change(id, std::mem::replace(&mut self.contents[id], bytes))
            }
            Step::Create(name, byte) => {
                if self.names.contains_key(&name) {
                    return;
                }
                let (handle, _) = created(guest.create(guest.root(0), NAMES[name], BOTH));
                written(guest.write(handle, 0, &[byte; 500]));
                guest.release(handle);
                Deed::Create(self.make(name, vec![byte; 500]), name)
            }
            Step::Delete(name) => {
                let Some(id) = self.names.remove(&name) else { return };
                assert_eq!(guest.unlink(guest.root(0), NAMES[name]), Outcome::Done);
                Deed::Delete(id, name)
            }
            Step::Rename(from, to, replaces) => {
                let replaced = self.names.get(&to).copied();
                if from == to || !self.names.contains_key(&from) || (replaced.is_some() && !replaces) {
                    return;
                }
                let mode = if replaces { RenameMode::Replace } else { RenameMode::NoReplace };
                assert_eq!(guest.rename(at(from), at(to), mode), Outcome::Done);
                let Some(id) = self.names.remove(&from) else { return };
                self.names.insert(to, id);
                Deed::Rename(id, from, to, replaced)
            }
            Step::Wait(_) => return,
        };
        self.deeds.push((undone, deed));
    }
}

/// What must be there after the undo.
#[derive(Default)]
struct Truth {
    names: BTreeMap<Name, Id>,
    contents: Vec<Vec<u8>>,
    /// Old versions put beside: the name that they are called after, and the contents.
    beside: Vec<(Name, Vec<u8>)>,
    /// Names that must be told as kept.
    kept: BTreeSet<Name>,
    /// Made by the one that is undone. Where the other moved or changed one it stays, with whatever the first wrote last.
    made: BTreeSet<Id>,
    /// Made by the one that is undone, changed by the other.
    adopted: BTreeSet<Id>,
}

/// The rules of an undo, in their plainest form.
fn truth(model: &Model) -> Truth {
    let mut truth =
        Truth { names: model.names.clone(), contents: model.contents.clone(), ..Truth::default() };
    // What the other changed after the first change of the undone one.
    let mut touched = BTreeSet::new();
    let mut theirs = BTreeSet::new();
    let mut made = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for (undone, deed) in &model.deeds {
        match (undone, deed) {
            (true, Deed::Create(id, _)) => drop((touched.insert(*id), made.insert(*id))),
            (true, Deed::Change(id, _)) => drop(touched.insert(*id)),
            (false, Deed::Change(id, _)) if touched.contains(id) => drop(theirs.insert(*id)),
            (true, Deed::Delete(id, _) | Deed::Rename(_, _, _, Some(id))) => drop(gone.insert(*id)),
            _ => {}
        }
    }
    truth.made.clone_from(&made);
    truth.adopted = made.intersection(&theirs).copied().collect();
    // Made and taken away by the same, and nobody else's: of no concern.
    let passing = |id: &Id| made.contains(id) && gone.contains(id) && !theirs.contains(id);
    let mut oldest: BTreeMap<Id, Vec<u8>> = BTreeMap::new();
    for (undone, deed) in model.deeds.iter().rev() {
        if !undone {
            continue;
        }
        match deed {
            Deed::Create(id, name) if !passing(id) => match truth.names.get(name) {
                None => {}
                Some(now) if now == id && !theirs.contains(id) => drop(truth.names.remove(name)),
                Some(_) => drop(truth.kept.insert(*name)),
            },
            Deed::Delete(id, name) if !passing(id) => truth.bring_back(*id, *name),
            Deed::Rename(id, from, to, replaced) => {
                if !passing(id) {
                    truth.move_back(*id, *from, *to);
                }
                if let Some(old) = replaced.filter(|old| !passing(old)) {
                    truth.bring_back(old, *to);
                }
            }
            Deed::Change(id, before) if !passing(id) => {
                if theirs.contains(id) {
                    oldest.insert(*id, before.clone());
                } else {
                    truth.contents[*id] = before.clone();
                }
            }
            _ => {}
        }
    }
    for (id, before) in oldest {
        let Some(name) = truth.names.iter().find(|(_, now)| **now == id).map(|(name, _)| *name) else {
            continue;
        };
        truth.kept.insert(name);
        if !truth.adopted.contains(&id) {
            truth.beside.push((name, before));
        }
    }
    truth
}

impl Truth {
    fn bring_back(&mut self, id: Id, name: Name) {
        match self.names.get(&name) {
            None => drop(self.names.insert(name, id)),
            Some(now) if *now == id => {}
            Some(_) => {
                self.kept.insert(name);
                // Its contents may be taken back further; see `settled`.
                self.beside.push((name, vec![]));
                self.names.insert(BESIDE + self.beside.len(), id);
            }
        }
    }

    fn move_back(&mut self, id: Id, from: Name, to: Name) {
        if self.names.get(&from) == Some(&id) {
            return;
        }
        if self.names.get(&to) != Some(&id) {
            self.kept.insert(from);
            return;
        }
        self.names.remove(&to);
        if self.names.contains_key(&from) {
            self.kept.insert(from);
            self.beside.push((from, vec![]));
            self.names.insert(BESIDE + self.beside.len(), id);
        } else {
            self.names.insert(from, id);
        }
    }

    /// Everything by its name, what is beside by the name that it is called after.
    fn settled(&self) -> Vec<(String, bool, Option<Vec<u8>>)> {
        let mut all = vec![];
        for (name, id) in &self.names {
            let contents =
                (!self.made.contains(id) || self.adopted.contains(id)).then(|| self.contents[*id].clone());
            match self.beside.get(name.wrapping_sub(BESIDE + 1)) {
                Some((after, _)) => all.push((NAMES[*after].to_owned(), true, contents)),
                None => all.push((NAMES[*name].to_owned(), false, contents)),
            }
        }
        let versions = self.beside.iter().enumerate();
        for (_, (name, contents)) in versions.filter(|(n, _)| !self.names.contains_key(&(BESIDE + n + 1))) {
            let after = self.beside.get(name.wrapping_sub(BESIDE + 1)).map_or(*name, |(after, _)| *after);
            all.push((NAMES[after].to_owned(), true, Some(contents.clone())));
        }
        all
    }
}

/// Names from here on are beside.
const BESIDE: usize = 1000;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_writers_in_turns(steps in prop::collection::vec((any::<bool>(), step()), 1..40)) {
        as_it_must_be(&steps)?;
    }
}

/// What two did in turns, and what a chance found once.
#[test]
fn what_another_took_over_and_moved_is_told() {
    use Step::{Create, Rename, Rewrite};
    let steps = [
        (true, Create(3, 0)),
        (true, Rewrite(3, 0, 1)),
        (false, Rewrite(3, 0, 1)),
        (false, Rename(3, 0, true)),
    ];
    as_it_must_be(&steps).unwrap();
}

fn as_it_must_be(steps: &[(bool, Step)]) -> Result<(), TestCaseError> {
    let world = Vaulted::new();
    let mut model = Model::default();
    for (name, text) in NAMES.iter().enumerate().take(3) {
        let bytes = vec![b'0' + name as u8; 2500];
        world.file(&format!("users/{text}"), &bytes);
        model.make(name, bytes);
    }
    let since = world.now();
    let (mail, office) = (world.guest("mail", 1, WINDOW), world.guest("office", 2, WINDOW));
    for (undone, step) in steps {
        if let Step::Wait(secs) = step {
            world.clock.forward(u64::from(*secs));
        } else {
            model.perform(if *undone { &mail } else { &office }, *undone, step);
        }
    }
    let truth = truth(&model);
    let filter = Filter { application: "mail".into(), since_us: since, ..all() };
    if world.engine.begin_undo(filter.clone(), true).is_err() {
        prop_assert!(model.deeds.iter().all(|(undone, _)| !undone));
        return Ok(());
    }
    let (_, items) = world.undo_by(filter, false);
    prop_assert!(items.iter().all(|item| item.verdict < Verdict::Failed), "{items:?}");

    let mut found = vec![];
    for entry in std::fs::read_dir(world.path("users")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let (after, beside) = match name.split_once(" (before mail ") {
            Some((after, _)) => (after.to_owned(), true),
            None => (name, false),
        };
        found.push((after, beside, std::fs::read(entry.path()).unwrap()));
    }
    let wanted = truth.settled();
    for (name, beside, contents) in wanted.iter().filter(|one| one.2.is_some()) {
        let at =
            found.iter().position(|one| (&one.0, &one.1, Some(&one.2)) == (name, beside, contents.as_ref()));
        prop_assert!(at.is_some(), "{name} {beside} is not in {found:?}; {items:?}");
        at.map(|at| found.swap_remove(at));
    }
    for (name, beside, _) in wanted.iter().filter(|one| one.2.is_none()) {
        let at = found.iter().position(|one| (&one.0, &one.1) == (name, beside));
        prop_assert!(at.is_some(), "{name} {beside} is not in {found:?}; {items:?}");
        at.map(|at| found.swap_remove(at));
    }
    // A version of its own may be beside what the undone one made and the other changed.
    prop_assert!(
        found.is_empty() || !truth.adopted.is_empty() && found.iter().all(|one| one.1),
        "{found:?}; {items:?}"
    );
    // What must be told as kept is.
    for name in &truth.kept {
        let path = match truth.beside.get(name.wrapping_sub(BESIDE + 1)) {
            // By the name that it got.
            Some(_) => continue,
            None => format!("users/{}", NAMES[*name]),
        };
        let told = items.iter().any(|item| item.path == path.as_bytes() && item.verdict == Verdict::Kept);
        prop_assert!(told, "{path} is not told as kept: {items:?}");
    }
    Ok(())
}
