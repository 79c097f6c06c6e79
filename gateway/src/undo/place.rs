//! Where the objects of the log are, by what the log tells and by what is on the disk.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::record::{At, Object, What};
use crate::gate::refusal::{Checked, Refusal};
use crate::tree::{Node, Tree};

/// Most names of one object that are remembered.
const MOST_SPOTS: usize = 16;
/// The deepest chain of directories that is followed for a path.
const MOST_DEPTH: usize = 128;
/// Directories that are held open.
const MOST_HELD: usize = 1024;
/// How often it is looked for one object: deeper or more often moved than that, it is not found.
const MOST_LOOKS: usize = 4096;

/// Where an object was last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// It had this name.
    At(At),
    /// It is in the vault, of this log, under this number.
    Kept(Arc<str>, u64),
}

/// Where objects were last, as the log tells it.
#[derive(Default)]
pub(super) struct Places {
    spots: HashMap<Object, Vec<Spot>>,
    /// The last name of each, for messages.
    names: HashMap<Object, At>,
    /// What attempts to make something have made.
    made: HashMap<u64, At>,
    /// Directories that were found: as long as they are held, they are open, and need not be looked for from the root.
    held: Mutex<HashMap<Object, Arc<Node>>>,
}

impl Places {
    /// Takes notice of a record; they come in their order.
    pub(super) fn follow(&mut self, application: &Arc<str>, seq: u64, what: &What) {
        match what {
            What::Place { object, at }
            | What::Linked { object, at }
            | What::Returned { object, at }
            | What::Beside { object, at, .. } => {
                self.add(*object, Spot::At(at.clone()));
            }
            What::Making { at, .. } => {
                self.made.insert(seq, at.clone());
            }
            What::Made { making, object } => {
                if let Some(at) = self.made.remove(making) {
                    self.add(*object, Spot::At(at));
                }
            }
            What::Removed { object, at, kept, .. } => {
                self.add(*object, Spot::At(at.clone()));
                if *kept {
                    self.add(*object, Spot::Kept(Arc::clone(application), seq));
                }
            }
            What::Renamed { object, from, to, replaced, kept, .. } => {
                if let Some(replaced) = replaced {
                    self.add(*replaced, Spot::At(to.clone()));
                    if *kept {
                        self.add(*replaced, Spot::Kept(Arc::clone(application), seq));
                    }
                }
                // The former name stays among the places: a record is written before its change, which a kill may have
                // prevented. Whoever looks there compares what is found.
                self.add(*object, Spot::At(from.clone()));
                self.add(*object, Spot::At(to.clone()));
            }
            What::Exchanged { one, from, other, to } => {
                self.add(*one, Spot::At(from.clone()));
                self.add(*other, Spot::At(to.clone()));
                self.add(*one, Spot::At(to.clone()));
                self.add(*other, Spot::At(from.clone()));
            }
            _ => {}
        }
    }

    /// Takes notice of an object that has a name now.
    pub(super) fn add(&mut self, object: Object, spot: Spot) {
        if let Spot::At(at) = &spot {
            self.names.insert(object, at.clone());
        }
        let spots = self.spots.entry(object).or_default();
        spots.retain(|other| *other != spot);
        if spots.len() >= MOST_SPOTS {
            spots.remove(0);
        }
        spots.push(spot);
    }

    /// Only for messages: what name an object would have.
    pub(super) fn pretend(&mut self, object: Object, at: &At) {
        self.names.insert(object, at.clone());
    }

    /// Takes notice of an object that has lost a name.
    pub(super) fn lose(&mut self, object: Object, at: &At) {
        if let Some(spots) = self.spots.get_mut(&object) {
            spots.retain(|spot| !matches!(spot, Spot::At(other) if other == at));
        }
        self.names.entry(object).or_insert_with(|| at.clone());
    }

    /// Where an object was, the latest first.
    pub(super) fn of(&self, object: Object) -> impl Iterator<Item = &Spot> {
        self.spots.get(&object).into_iter().flat_map(|spots| spots.iter().rev())
    }

    /// A name that an object had last.
    pub(super) fn name_of(&self, object: Object) -> Option<&At> {
        self.names.get(&object)
    }

    /// The path of a directory below the data root, as far as it is known.
    pub(super) fn dir_path(&self, tree: &Tree, dir: Object) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = vec![];
        let mut at = dir;
        let mut way = vec![];
        while at != Object::of(tree.root()) {
            // Records of changes that a kill prevented can make circles.
            let new = parts.len() < MOST_DEPTH && !way.contains(&at);
            way.push(at);
            let Some(place) = self.name_of(at).filter(|_| new) else {
                parts.push(b"?");
                break;
            };
            parts.push(&place.name);
            at = place.dir;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// The path of a name.
    pub(super) fn path(&self, tree: &Tree, at: &At) -> Vec<u8> {
        let mut path = self.dir_path(tree, at.dir);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&at.name);
        path
    }

    /// The path that an object had last.
    pub(super) fn object_path(&self, tree: &Tree, object: Object) -> Option<Vec<u8>> {
        if object == Object::of(tree.root()) {
            return Some(vec![]);
        }
        self.name_of(object).map(|at| self.path(tree, at))
    }

    /// The node of an object that has a name on the disk.
    ///
    /// # Errors
    /// `Stale` if it is not found; those of looking.
    pub(super) fn find(&self, tree: &Tree, object: Object) -> Checked<Arc<Node>> {
        let found = at_once(tree, object).or_else(|| self.search(tree, object)).ok_or(Refusal::STALE)?;
        if found.is_dir() {
            let mut held = self.held.lock();
            if held.len() >= MOST_HELD {
                held.clear();
            }
            held.insert(object, Arc::clone(&found));
        }
        Ok(found)
    }

    /// Looks for an object from above: what was moved to and fro has many places, in circles too, and each of them is
    /// looked at once.
    fn search(&self, tree: &Tree, object: Object) -> Option<Arc<Node>> {
        let mut found: HashMap<Object, Arc<Node>> = HashMap::new();
        // Names to look at in directories that are not found yet, and in those that are.
        let mut waiting: HashMap<Object, Vec<(Object, &[u8])>> = HashMap::new();
        let mut ready: VecDeque<(Arc<Node>, Object, &[u8])> = VecDeque::new();
        let mut asked = HashSet::from([object]);
        let mut asking = VecDeque::from([object]);
        for _ in 0..MOST_LOOKS {
            if let Some((dir, child, name)) = ready.pop_front() {
                if found.contains_key(&child) {
                    continue;
                }
                let Some(node) = is_named(tree, &dir, name, child) else { continue };
                if child == object {
                    return Some(node);
                }
                let names = waiting.remove(&child).unwrap_or_default();
                ready.extend(names.into_iter().map(|(child, name)| (Arc::clone(&node), child, name)));
                found.insert(child, node);
                continue;
            }
            let next = asking.pop_front()?;
            if found.contains_key(&next) {
                continue;
            }
            for spot in self.of(next) {
                let Spot::At(at) = spot else { continue };
                let dir = found.get(&at.dir).cloned().or_else(|| at_once(tree, at.dir));
                if let Some(dir) = dir {
                    ready.push_back((dir, next, &at.name));
                    continue;
                }
                waiting.entry(at.dir).or_default().push((next, &at.name));
                if asked.insert(at.dir) {
                    asking.push_back(at.dir);
                }
            }
        }
        None
    }
}

/// What the gateway knows is newer than what the log tells.
fn at_once(tree: &Tree, object: Object) -> Option<Arc<Node>> {
    if object == Object::of(tree.root()) {
        return Some(Arc::clone(tree.root()));
    }
    let node = tree.known_object(object.ino, object.generation)?;
    let (parent, name) = node.any_link()?;
    is_named(tree, &parent, name.as_bytes(), object)
}

fn is_named(tree: &Tree, dir: &Arc<Node>, name: &[u8], object: Object) -> Option<Arc<Node>> {
    let (found, _) = tree.lookup(dir, name).ok()?;
    (Object::of(&found) == object).then_some(found)
}
