//! The skeleton of the mount: the root and the directories on the way to the grants. Read-only, made from the mount paths
//! alone, the same for every user. What lies below a grant's mount path is not its business.

use std::collections::{BTreeMap, HashMap};

use strongroom_contracts::MountPath;

/// The inode number of the root of the mount (fuse(4)).
pub const ROOT: u64 = 1;

/// What a name in the skeleton stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// A directory of the skeleton, by inode number.
    Directory(u64),
    /// The root of a grant, by the grant's number.
    Grant(u16),
}

#[derive(Debug, Default)]
struct Directory {
    parent: u64,
    children: BTreeMap<Vec<u8>, Branch>,
}

/// The skeleton. Inode numbers of its directories stay the same when the grants change, so that who sits in one goes on.
#[derive(Debug)]
pub struct Tree {
    numbers: HashMap<String, u64>,
    directories: HashMap<u64, Directory>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Directory { parent: ROOT, ..Directory::default() };
        Tree { numbers: HashMap::from([(String::new(), ROOT)]), directories: HashMap::from([(ROOT, root)]) }
    }
}

impl Tree {
    /// Takes these grants in place of the former ones. Mount paths do not contain each other (the contract sees to it);
    /// should two do so, the one that comes later is not shown.
    pub fn replace<'a>(&mut self, grants: impl Iterator<Item = (u16, &'a MountPath)>) {
        self.directories.clear();
        self.directories.insert(ROOT, Directory { parent: ROOT, ..Directory::default() });
        for (grant, mount) in grants {
            self.insert(grant, mount);
        }
    }

    fn insert(&mut self, grant: u16, mount: &MountPath) {
        let mut at = ROOT;
        let mut path = String::new();
        let mut components = mount.components().peekable();
        while let Some(component) = components.next() {
            path = format!("{path}/{component}");
            let free = 2 + self.numbers.len() as u64;
            let wanted = if components.peek().is_none() {
                Branch::Grant(grant)
            } else {
                Branch::Directory(*self.numbers.entry(path.clone()).or_insert(free))
            };
            let Some(directory) = self.directories.get_mut(&at) else { return };
            let found = *directory.children.entry(component.as_bytes().to_vec()).or_insert(wanted);
            match (found, wanted) {
                (Branch::Directory(next), Branch::Directory(_)) => {
                    self.directories.entry(next).or_insert(Directory { parent: at, ..Directory::default() });
                    at = next;
                }
                _ => return,
            }
        }
    }

    /// What `name` stands for in the directory; `None` if there is no such name, or no such directory any more.
    pub fn child(&self, directory: u64, name: &[u8]) -> Option<Branch> {
        self.directories.get(&directory)?.children.get(name).copied()
    }

    /// The directory and the name in it that stand for a grant.
    pub fn place(&self, grant: u16) -> Option<(u64, &[u8])> {
        let all = self
            .directories
            .iter()
            .flat_map(|(number, found)| found.children.iter().map(move |c| (number, c)));
        let mut found = all.filter(|(_, (_, branch))| **branch == Branch::Grant(grant));
        found.next().map(|(number, (name, _))| (*number, name.as_slice()))
    }

    /// Whether there is such a directory now.
    pub fn has(&self, directory: u64) -> bool {
        self.directories.contains_key(&directory)
    }

    /// The directory above; the root's is the root.
    pub fn parent(&self, directory: u64) -> u64 {
        self.directories.get(&directory).map_or(ROOT, |found| found.parent)
    }

    /// How many directories it holds, for the number of links.
    pub fn subdirectories(&self, directory: u64) -> u32 {
        self.directories.get(&directory).map_or(0, |found| found.children.len() as u32)
    }

    /// Names and what they stand for, in the order of the names.
    pub fn entries(&self, directory: u64) -> Vec<(Vec<u8>, Branch)> {
        self.directories
            .get(&directory)
            .map(|found| found.children.iter().map(|(name, branch)| (name.clone(), *branch)).collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::default();
        fill(&mut tree, paths);
        tree
    }

    fn fill(tree: &mut Tree, paths: &[&str]) {
        let paths: Vec<MountPath> = paths.iter().map(|path| path.parse().unwrap()).collect();
        tree.replace(paths.iter().enumerate().map(|(n, path)| (n as u16, path)));
    }

    #[test]
    fn the_root_shows_the_grants_and_nothing_else() {
        let tree = tree(&["/Mail", "/home/alice/Photos", "/home/alice/Music", "/home/bob"]);
        let names: Vec<_> = tree.entries(ROOT).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [b"Mail".to_vec(), b"home".to_vec()]);
        assert_eq!(tree.child(ROOT, b"Mail"), Some(Branch::Grant(0)));
        assert_eq!(tree.child(ROOT, b"mail"), None);
        assert_eq!(tree.place(0), Some((ROOT, &b"Mail"[..])));
        let Some(Branch::Directory(home)) = tree.child(ROOT, b"home") else { panic!("no /home") };
        assert_eq!(tree.child(home, b"bob"), Some(Branch::Grant(3)));
        let Some(Branch::Directory(alice)) = tree.child(home, b"alice") else { panic!("no /home/alice") };
        assert_eq!(tree.parent(alice), home);
        assert_eq!(tree.parent(home), ROOT);
        assert_eq!(tree.subdirectories(alice), 2);
    }

    #[test]
    fn numbers_stay_when_grants_change() {
        let mut tree = tree(&["/a/b/c", "/x"]);
        let Some(Branch::Directory(a)) = tree.child(ROOT, b"a") else { panic!("no /a") };
        fill(&mut tree, &["/z/y"]);
        assert!(!tree.has(a));
        assert_eq!(tree.child(a, b"b"), None);
        fill(&mut tree, &["/q/r", "/a/n"]);
        assert_eq!(tree.child(ROOT, b"a"), Some(Branch::Directory(a)));
        assert_eq!(tree.child(a, b"b"), None);
        assert_eq!(tree.child(a, b"n"), Some(Branch::Grant(1)));
    }

    #[test]
    fn overlapping_paths_do_not_confuse() {
        let tree = tree(&["/a", "/a/b"]);
        assert_eq!(tree.child(ROOT, b"a"), Some(Branch::Grant(0)));
        assert_eq!(tree.entries(ROOT).len(), 1);
    }
}
