//! Grants, numbered by mount path for as long as the mount lives; the numbers on the wire change with the contract.

use strongroom_contracts::{MountPath, Ownership, Rights};
use strongroom_protocol::attr::{Attr, Node};
use strongroom_protocol::hello::GrantInfo;

/// A grant, past or present.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Where it appears.
    pub mount: MountPath,
    /// Whose the files are.
    pub ownership: Ownership,
    /// What may be done, for information.
    pub rights: Rights,
    /// The longest that a file may become, in bytes.
    pub max_file_bytes: Option<u64>,
    /// The root as it was told at the welcome.
    pub root: Option<Attr>,
    /// The number on the wire; `None` if the contract in force does not have it.
    wire: Option<u16>,
}

/// All grants that this mount has seen.
#[derive(Debug, Default)]
pub struct Grants {
    list: Vec<Grant>,
}

/// Beyond this, new mount paths are not shown: the inode numbers of the mount have 15 bits for the grant.
const MAX_GRANTS: usize = 0x7ffe;

impl Grants {
    /// Takes over the grants of a session; a mount path keeps its number.
    pub(super) fn replace(&mut self, infos: Vec<GrantInfo>) {
        for grant in &mut self.list {
            grant.wire = None;
        }
        for (position, info) in infos.into_iter().enumerate() {
            let Ok(wire) = u16::try_from(position) else { return };
            let grant = Grant {
                mount: info.mount,
                ownership: info.ownership,
                rights: info.rights,
                max_file_bytes: info.max_file_bytes,
                root: info.root,
                wire: Some(wire),
            };
            if let Some(known) = self.list.iter_mut().find(|known| known.mount == grant.mount) {
                *known = grant;
            } else if self.list.len() < MAX_GRANTS {
                self.list.push(grant);
            }
        }
    }

    /// A grant of the contract in force.
    pub fn get(&self, number: u16) -> Option<&Grant> {
        self.list.get(usize::from(number)).filter(|grant| grant.wire.is_some())
    }

    /// The grants of the contract in force, with their numbers.
    pub fn active(&self) -> impl Iterator<Item = (u16, &Grant)> {
        // At most MAX_GRANTS.
        self.list
            .iter()
            .enumerate()
            .filter(|(_, grant)| grant.wire.is_some())
            .map(|(number, grant)| (number as u16, grant))
    }

    /// The number of a grant on the wire.
    pub fn wire(&self, number: u16) -> Option<u16> {
        self.list.get(usize::from(number))?.wire
    }

    /// A node of the wire in the client's terms.
    pub fn from_wire(&self, node: Node) -> Option<Node> {
        let (number, _) = self.active().find(|(_, grant)| grant.wire == Some(node.grant))?;
        Some(Node { grant: number, ino: node.ino })
    }

    /// A node in the terms of the wire; `None` if its grant is not in the contract in force.
    pub fn to_wire(&self, node: Node) -> Option<Node> {
        Some(Node { grant: self.wire(node.grant)?, ino: node.ino })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(mount: &str) -> GrantInfo {
        GrantInfo {
            mount: mount.parse().unwrap(),
            rights: Rights::READ_ONLY,
            ownership: Ownership::Single,
            max_file_bytes: None,
            root: None,
        }
    }

    #[test]
    fn a_mount_path_keeps_its_number_across_contracts() {
        let mut grants = Grants::default();
        grants.replace(vec![info("/a"), info("/b")]);
        let node = |grant| Node { grant, ino: 9 };
        assert_eq!(grants.to_wire(node(1)), Some(node(1)));
        grants.replace(vec![info("/c"), info("/b")]);
        assert_eq!(grants.to_wire(node(0)), None);
        assert_eq!(grants.to_wire(node(1)), Some(node(1)));
        assert_eq!(grants.to_wire(node(2)), Some(node(0)));
        assert_eq!(grants.active().map(|(number, _)| number).collect::<Vec<_>>(), [1, 2]);
        grants.replace(vec![info("/b"), info("/a")]);
        assert_eq!(grants.to_wire(node(0)), Some(node(1)));
        assert_eq!(grants.to_wire(node(1)), Some(node(0)));
    }
}
