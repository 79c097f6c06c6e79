//! The nodes that the kernel knows: how often it was told of them, and by what name they can be found again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use strongroom_protocol::attr::Node;
use strongroom_protocol::name::{MAX_PATH, Name};

use crate::asking::Called;

/// The bits of an inode number of the mount that hold the one of the storage guest.
const BITS: u32 = 48;
/// Marks numbers that were given out one by one, because the storage guest's does not fit in [`BITS`].
const WIDE: u64 = 1 << 63;

/// What is known of a node.
#[derive(Clone, Debug)]
pub struct Known {
    /// Tells apart files that had the number one after the other.
    pub generation: u64,
    lookups: u64,
    place: Option<(Node, Name)>,
    root: bool,
    /// Whether the kernel may keep its name, if it is a directory.
    kept: Kept,
    /// When that was last taken back.
    doubted: Option<Instant>,
}

/// How a name is taken back that may still be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It is not known to be a directory's: the name is forgotten.
    Forget,
    /// A directory's, in which somebody may be: it stays in the kernel's tree until it is looked up.
    Expire,
    /// The same, but an answer may be on its way that would make it valid again: only ending all names at once is not undone by
    /// that (`FUSE_NOTIFY_INC_EPOCH`).
    All,
}

/// Whether the kernel may keep the name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    No,
    /// It was told when it knew nothing of the directory. It puts such a name into its tree with the parent locked, and taking it back
    /// waits for that.
    First,
    /// It may have had the name in its tree already, and makes it valid again without a lock.
    Again,
}

/// A directory's name is not kept again before it has been left alone for this long: where names are taken back all the time, they would
/// all be ended each time.
const QUIET: Duration = Duration::from_secs(1);

/// Which node was last seen under a name. The names themselves are those of [`Known::place`]: a mount may know a million.
#[derive(Debug, Default)]
struct ByName {
    nodes: HashTable<Node>,
    state: RandomState,
}

impl ByName {
    fn get(&self, known: &HashMap<Node, Known>, parent: Node, name: &Name) -> Option<Node> {
        let hash = self.state.hash_one((parent, name));
        self.nodes.find(hash, |node| is_at(known, *node, parent, name)).copied()
    }

    /// Adds a node under the name by which it is known, if it has one, which nothing in here has.
    fn insert(&mut self, known: &HashMap<Node, Known>, node: Node) {
        let Some(place) = place_of(known, node) else { return };
        let state = &self.state;
        // Of those in here all have a name.
        let rehash = |node: &Node| place_of(known, *node).map_or(0, |place| state.hash_one(place));
        self.nodes.insert_unique(state.hash_one(place), node, rehash);
    }

    fn remove(&mut self, place: &(Node, Name), node: Node) {
        let hash = self.state.hash_one(place);
        if let Ok(entry) = self.nodes.find_entry(hash, |other| *other == node) {
            entry.remove();
        }
    }
}

fn place_of(known: &HashMap<Node, Known>, node: Node) -> Option<&(Node, Name)> {
    known.get(&node)?.place.as_ref()
}

fn is_at(known: &HashMap<Node, Known>, node: Node, parent: Node, name: &Name) -> bool {
    place_of(known, node).is_some_and(|(dir, as_name)| *dir == parent && as_name == name)
}

/// The nodes that the kernel knows.
#[derive(Debug, Default)]
pub struct Nodes {
    known: HashMap<Node, Known>,
    by_name: ByName,
    wide: HashMap<u64, Node>,
    wide_numbers: HashMap<Node, u64>,
    last_wide: u64,
    /// Numbers of files that are gone, which the kernel still knows so many times, while the storage guest has given theirs to others.
    stale: HashMap<u64, u64>,
    forgotten: Vec<Node>,
    /// Numbers of files that are taken for gone by an answer about an older one.
    overtaken: Vec<u64>,
}

impl Nodes {
    /// The inode number of the mount for a node.
    pub fn number(&mut self, node: Node) -> u64 {
        if let Some(number) = self.wide_numbers.get(&node) {
            return *number;
        }
        let plain = (u64::from(node.grant) + 1) << BITS | node.ino;
        if node.ino >> BITS == 0 && !self.stale.contains_key(&plain) {
            return plain;
        }
        self.last_wide += 1;
        let number = WIDE | self.last_wide;
        self.wide_numbers.insert(node, number);
        self.wide.insert(number, node);
        number
    }

    /// The same for a file whose attributes have come. If its number was another file's, which is gone but which the kernel knows, it
    /// gets a number of its own: a kernel that sees one number for two files breaks what is open of the former (EIO).
    pub fn number_of(&mut self, node: Node, generation: u64) -> u64 {
        let former =
            self.known.get(&node).filter(|known| known.generation != generation && known.lookups > 0);
        if let Some((lookups, later)) = former.map(|known| (known.lookups, known.generation > generation)) {
            let number = self.number(node);
            self.overtaken.extend(later.then_some(number));
            self.drop_number(number, node);
            self.stale.insert(number, lookups);
            self.unname(node);
            self.known.remove(&node);
        }
        self.number(node)
    }

    fn drop_number(&mut self, number: u64, node: Node) {
        if number & WIDE != 0 {
            self.wide.remove(&number);
            self.wide_numbers.remove(&node);
        }
    }

    /// The node of an inode number of the mount; `None` for the skeleton's.
    pub fn node(&self, number: u64) -> Option<Node> {
        if number & WIDE != 0 || self.stale.contains_key(&number) {
            return self.wide.get(&number).copied();
        }
        let grant = (number >> BITS).checked_sub(1)?;
        Some(Node { grant: u16::try_from(grant).ok()?, ino: number & ((1 << BITS) - 1) })
    }

    /// Notes that the kernel is told of the root of a grant; returns its inode number.
    pub fn tell_root(&mut self, node: Node, generation: u64) -> u64 {
        self.tell(node, generation, None)
    }

    /// Notes that the kernel is told of a node by this name; returns its inode number.
    pub fn tell_named(&mut self, node: Node, generation: u64, parent: Node, name: Name) -> u64 {
        self.tell(node, generation, Some((parent, name)))
    }

    fn tell(&mut self, node: Node, generation: u64, place: Option<(Node, Name)>) -> u64 {
        let root = place.is_none();
        let number = self.number_of(node, generation);
        let new = Known { generation, lookups: 0, place: None, root, kept: Kept::No, doubted: None };
        let known = self.known.entry(node).or_insert(new);
        known.generation = generation;
        known.lookups += 1;
        known.root |= root;
        if let Some(place) = place
            && known.place.as_ref() != Some(&place)
        {
            self.place(node, place);
        }
        number
    }

    /// The name of a node stands for nothing.
    fn unname(&mut self, node: Node) {
        if let Some(place) = self.known.get_mut(&node).and_then(|known| known.place.take()) {
            self.by_name.remove(&place, node);
        }
    }

    /// For how long the kernel, which has been told of this directory, may keep its name, if that could be `ttl`.
    pub fn keep_name(&mut self, node: Node, ttl: Duration, now: Instant) -> Duration {
        let Some(known) = self.known.get_mut(&node).filter(|_| !ttl.is_zero()) else { return ttl };
        if known.doubted.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
            return Duration::ZERO;
        }
        let first = known.kept == Kept::No && known.lookups <= 1 && known.doubted.is_none();
        known.kept = if first { Kept::First } else { Kept::Again };
        ttl
    }

    /// The name of a node is not under a lease any more.
    pub fn doubt(&mut self, node: Node, now: Instant) -> Doubt {
        let Some(known) = self.known.get_mut(&node) else { return Doubt::Forget };
        let doubt = match known.kept {
            Kept::No if known.doubted.is_none() => return Doubt::Forget,
            Kept::No | Kept::First => Doubt::Expire,
            Kept::Again => Doubt::All,
        };
        (known.kept, known.doubted) = (Kept::No, Some(now));
        doubt
    }

    /// The directory in which a node was last seen; `None` for the root of a grant.
    pub fn parent(&self, node: Node) -> Option<Node> {
        Some(self.known.get(&node)?.place.as_ref()?.0)
    }

    /// Whether the kernel knows a node.
    pub fn knows(&self, node: Node) -> bool {
        self.known.contains_key(&node)
    }

    /// What the kernel calls a node, if it knows it.
    pub fn called(&mut self, node: Node) -> Option<Called> {
        let generation = self.known.get(&node)?.generation;
        Some(Called { number: self.number(node), generation })
    }

    /// The node that was last seen under a name.
    pub fn named(&self, parent: Node, name: &Name) -> Option<Node> {
        self.by_name.get(&self.known, parent, name)
    }

    /// What is known of a node.
    pub fn get(&self, node: Node) -> Option<&Known> {
        self.known.get(&node)
    }

    /// Takes back `lookups` tellings; a node of which none are left is forgotten.
    pub fn forget(&mut self, number: u64, lookups: u64) {
        if let Some(left) = self.stale.get_mut(&number) {
            *left = left.saturating_sub(lookups);
            if *left == 0 {
                self.stale.remove(&number);
            }
            return;
        }
        let Some(node) = self.node(number) else { return };
        let Some(known) = self.known.get_mut(&node) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 {
            self.unname(node);
            self.known.remove(&node);
            self.drop_number(number, node);
            self.forgotten.push(node);
        }
    }

    /// Notes a node that the gateway knows and the kernel does not, so that the gateway is told to forget it.
    pub fn never_told(&mut self, node: Node) {
        self.forgotten.push(node);
    }

    /// Nodes that the gateway need not know any more, and that have not become known again meanwhile.
    pub fn take_forgotten(&mut self) -> Vec<Node> {
        let mut forgotten = std::mem::take(&mut self.forgotten);
        forgotten.retain(|node| !self.known.contains_key(node));
        forgotten
    }

    /// Numbers of files that are taken for gone because an answer has spoken of an older file that had theirs: unless a clock was put back, that answer
    /// has been overtaken, and they are there. The kernel may have been told that it may keep what it knows of them, and nobody will
    /// take that back under these numbers.
    pub fn take_overtaken(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.overtaken)
    }

    /// How many wait in [`Nodes::take_forgotten`].
    pub fn forgotten(&self) -> usize {
        self.forgotten.len()
    }

    /// A name was removed.
    pub fn removed(&mut self, parent: Node, name: &Name) {
        if let Some(node) = self.named(parent, name) {
            self.unname(node);
        }
    }

    /// A name was changed, or two were exchanged.
    pub fn renamed(&mut self, from: (Node, Name), to: (Node, Name), exchange: bool) {
        let moved = self.named(from.0, &from.1);
        let replaced = self.named(to.0, &to.1);
        moved.into_iter().chain(replaced).for_each(|node| self.unname(node));
        if let Some(node) = replaced.filter(|_| exchange) {
            self.place(node, from);
        }
        if let Some(node) = moved {
            self.place(node, to);
        }
    }

    /// A node has this name from now on, and whatever had it does not.
    fn place(&mut self, node: Node, place: (Node, Name)) {
        self.unname(node);
        if let Some(former) = self.named(place.0, &place.1) {
            self.unname(former);
        }
        if let Some(known) = self.known.get_mut(&node) {
            known.place = Some(place);
        }
        self.by_name.insert(&self.known, node);
    }

    /// The path of a node below the root of its grant; `None` if no name of it is known.
    pub fn path(&self, node: Node) -> Option<Vec<u8>> {
        let way = self.way(node);
        let top = way.last().map_or(node, |(parent, _)| *parent);
        self.known.get(&top).filter(|known| known.root)?;
        let components: Vec<&[u8]> = way.iter().rev().map(|(_, name)| name.as_bytes()).collect();
        Some(components.join(&b'/'))
    }

    /// The names on the way to a node from the root of its grant, as far as they are known, its own first.
    pub fn way(&self, node: Node) -> Vec<(Node, Name)> {
        let mut way = vec![];
        let mut length = 0;
        let mut at = node;
        let place = |at| self.known.get(&at).filter(|known| !known.root)?.place.as_ref();
        while let Some((parent, name)) = place(at) {
            length += name.as_bytes().len() + 1;
            // Also the end of a circle, which two renames by others at the same time may leave here.
            if length > MAX_PATH {
                break;
            }
            way.push((*parent, name.clone()));
            at = *parent;
        }
        way
    }

    /// The inode numbers of all nodes.
    pub fn numbers(&mut self) -> Vec<u64> {
        let nodes: Vec<Node> = self.known.keys().copied().collect();
        nodes.into_iter().map(|node| self.number(node)).collect()
    }

    /// How many nodes the kernel knows.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether the kernel knows none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ino: u64) -> Node {
        Node { grant: 2, ino }
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn path(nodes: &Nodes, ino: u64) -> Option<String> {
        nodes.path(node(ino)).map(|path| String::from_utf8(path).unwrap())
    }

    /// `/` is 1, `/d` is 2, `/d/f` is 3.
    fn small() -> Nodes {
        let mut nodes = Nodes::default();
        nodes.tell_root(node(1), 0);
        nodes.tell_named(node(2), 0, node(1), name("d"));
        nodes.tell_named(node(3), 0, node(2), name("f"));
        nodes
    }

    #[test]
    fn the_way_to_a_node_and_nothing_else() {
        let nodes = small();
        assert_eq!(nodes.way(node(3)), [(node(2), name("f")), (node(1), name("d"))]);
        assert_eq!(nodes.way(node(1)), []);
        assert_eq!(nodes.way(node(9)), []);
    }

    #[test]
    fn the_name_of_a_directory_stays_in_the_tree() {
        let mut nodes = small();
        let (start, long) = (Instant::now(), Duration::from_secs(60));
        assert_eq!(nodes.doubt(node(3), start), Doubt::Forget, "not known to be one");
        assert_eq!(nodes.keep_name(node(2), long, start), long);
        assert_eq!(nodes.doubt(node(2), start), Doubt::Expire);
        // Not kept while it is taken back again and again, so that there is nothing that an answer on its way could bring back.
        let mut now = start;
        for _ in 0..3 {
            assert_eq!(nodes.doubt(node(2), now), Doubt::Expire);
            now += QUIET / 2;
            assert_eq!(nodes.keep_name(node(2), long, now), Duration::ZERO);
        }
        now += QUIET;
        assert_eq!(nodes.keep_name(node(2), Duration::ZERO, now), Duration::ZERO);
        assert_eq!(nodes.doubt(node(2), now), Doubt::Expire, "the kernel was told that it may not keep it");
        now += QUIET;
        assert_eq!(nodes.keep_name(node(2), long, now), long);
        assert_eq!(
            nodes.doubt(node(2), now + long),
            Doubt::All,
            "it may have been in the tree, and valid again at any time"
        );
        assert_eq!(nodes.doubt(node(2), now + long), Doubt::Expire);
    }

    #[test]
    fn a_name_that_was_told_twice_may_be_made_valid_again_by_an_answer_on_its_way() {
        let mut nodes = small();
        let (now, long) = (Instant::now(), Duration::from_secs(60));
        nodes.keep_name(node(2), long, now);
        nodes.keep_name(node(2), long, now);
        assert_eq!(nodes.doubt(node(2), now), Doubt::All);
    }

    #[test]
    fn numbers_come_back() {
        let mut nodes = Nodes::default();
        let wide = [
            Node { grant: 0, ino: 1 << 48 },
            Node { grant: 1, ino: 1 << 48 },
            Node { grant: 0, ino: u64::MAX },
        ];
        let plain =
            [Node { grant: 0, ino: 2 }, Node { grant: 1, ino: 2 }, Node { grant: 63, ino: (1 << 48) - 1 }];
        let all: Vec<Node> = plain.into_iter().chain(wide).collect();
        let numbers: Vec<u64> = all.iter().map(|node| nodes.tell_root(*node, 1)).collect();
        for (node, number) in all.iter().zip(&numbers) {
            assert_eq!(nodes.node(*number), Some(*node));
            assert_eq!(nodes.number(*node), *number);
            assert!(*number >= 1 << 48, "{number} would be the skeleton's");
        }
        assert_eq!(nodes.node(1), None);
        assert_eq!(nodes.node(77), None);
        nodes.forget(numbers[5], 1);
        assert_eq!(nodes.node(numbers[5]), None);
    }

    #[test]
    fn a_number_that_is_given_out_again_is_another_one_while_the_former_file_is_known() {
        let mut nodes = small();
        let old = nodes.tell_named(node(3), 0, node(2), name("f"));
        assert_eq!(nodes.number_of(node(3), 0), old);
        let new = nodes.tell_named(node(3), 7, node(2), name("g"));
        assert_ne!(new, old);
        assert_eq!((nodes.node(old), nodes.node(new)), (None, Some(node(3))), "what is gone is nobody's");
        assert_eq!((nodes.number(node(3)), nodes.number_of(node(3), 7)), (new, new));
        assert_eq!(path(&nodes, 3).as_deref(), Some("d/g"));
        assert_eq!(nodes.take_overtaken(), [0; 0]);
        let newer = nodes.tell_named(node(3), 8, node(2), name("h"));
        assert!(newer != new && newer != old);
        assert_eq!(nodes.node(new), None);
        // The former ones are known once and twice; nothing is left of them then.
        nodes.forget(new, 1);
        nodes.forget(old, 1);
        assert_eq!(nodes.node(old), None);
        nodes.forget(old, 1);
        assert!(nodes.stale.is_empty());
        assert_eq!(nodes.node(newer), Some(node(3)));
        nodes.forget(newer, 1);
        assert!(nodes.wide.is_empty() && nodes.wide_numbers.is_empty());
        assert_eq!(nodes.tell_named(node(3), 9, node(2), name("f")), old, "nobody knows another by it");
    }

    #[test]
    fn a_file_that_an_old_answer_takes_for_gone_is_told_of() {
        let mut nodes = small();
        let new = nodes.tell_named(node(3), 7, node(2), name("f"));
        assert_eq!(nodes.take_overtaken(), [0; 0]);
        let old = nodes.tell_named(node(3), 5, node(2), name("f"));
        assert_eq!(
            (nodes.take_overtaken(), nodes.node(new), nodes.node(old)),
            (vec![new], None, Some(node(3)))
        );
        nodes.tell_named(node(3), 7, node(2), name("f"));
        assert_eq!(nodes.take_overtaken(), [0; 0]);
    }

    #[test]
    fn paths_follow_renames() {
        let mut nodes = small();
        assert_eq!(path(&nodes, 1).as_deref(), Some(""));
        assert_eq!(path(&nodes, 3).as_deref(), Some("d/f"));
        nodes.renamed((node(1), name("d")), (node(1), name("e")), false);
        assert_eq!(path(&nodes, 3).as_deref(), Some("e/f"));
        nodes.tell_named(node(4), 0, node(1), name("g"));
        nodes.renamed((node(1), name("g")), (node(2), name("f")), true);
        assert_eq!(path(&nodes, 4).as_deref(), Some("e/f"));
        assert_eq!(path(&nodes, 3).as_deref(), Some("g"));
        nodes.renamed((node(2), name("f")), (node(1), name("g")), false);
        assert_eq!(path(&nodes, 4).as_deref(), Some("g"));
        assert_eq!(path(&nodes, 3), None, "replaced");
    }

    #[test]
    fn a_name_stands_for_what_was_told_last() {
        let mut nodes = small();
        nodes.tell_named(node(4), 0, node(2), name("f"));
        assert_eq!((path(&nodes, 3), nodes.named(node(2), &name("f"))), (None, Some(node(4))));
        nodes.tell_named(node(3), 0, node(2), name("f"));
        assert_eq!((path(&nodes, 4), nodes.named(node(2), &name("f"))), (None, Some(node(3))));
        assert_eq!(nodes.by_name.nodes.len(), 2);
    }

    #[test]
    fn removed_names_are_no_paths() {
        let mut nodes = small();
        nodes.tell_named(node(3), 0, node(1), name("second"));
        nodes.removed(node(2), &name("f"));
        assert_eq!(path(&nodes, 3).as_deref(), Some("second"));
        nodes.removed(node(1), &name("second"));
        assert_eq!(path(&nodes, 3), None);
    }

    #[test]
    fn a_node_is_forgotten_when_every_telling_is_taken_back() {
        let mut nodes = small();
        let number = nodes.tell_named(node(3), 0, node(2), name("f"));
        nodes.forget(number, 1);
        assert!(nodes.get(node(3)).is_some());
        nodes.forget(number, 1);
        assert!(nodes.get(node(3)).is_none());
        assert_eq!(nodes.forgotten(), 1);
        nodes.tell_named(node(3), 0, node(2), name("f"));
        assert_eq!(nodes.take_forgotten(), [], "it is known again");
        nodes.forget(number, 9);
        assert_eq!(nodes.take_forgotten(), [node(3)]);
        assert_eq!(nodes.by_name.nodes.len(), 1);
    }

    #[test]
    fn a_circle_of_parents_has_no_path() {
        let mut nodes = Nodes::default();
        nodes.tell_named(node(2), 0, node(3), name("a"));
        nodes.tell_named(node(3), 0, node(2), name("b"));
        assert_eq!(nodes.path(node(2)), None);
    }
}
