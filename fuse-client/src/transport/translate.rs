//! From the client's terms to those of the wire, and what a request speaks of.

use strongroom_protocol::attr::{Handle, Node};
use strongroom_protocol::op::Op;

/// A node or handle within a request.
pub(super) enum Part<'a> {
    Node(&'a mut Node),
    Handle(&'a mut Handle),
}

/// Shows every node and handle of a request to `look`.
pub(super) fn visit<E>(op: &mut Op, look: &mut dyn FnMut(Part<'_>) -> Result<(), E>) -> Result<(), E> {
    match op {
        Op::Lookup { parent: node, .. }
        | Op::Readlink { node }
        | Op::Open { node, .. }
        | Op::OpenRead { node, .. }
        | Op::Opendir { node }
        | Op::List { node, .. }
        | Op::Create { parent: node, .. }
        | Op::Reopen { node, .. }
        | Op::Mkdir { parent: node, .. }
        | Op::Mknod { parent: node, .. }
        | Op::Symlink { parent: node, .. }
        | Op::Unlink { parent: node, .. }
        | Op::Rmdir { parent: node, .. }
        | Op::Statfs { node }
        | Op::Getxattr { node }
        | Op::Listxattr { node }
        | Op::Setxattr { node, .. }
        | Op::Removexattr { node } => look(Part::Node(node)),
        Op::Link { node: first, parent: second, .. }
        | Op::Rename { parent: first, new_parent: second, .. } => {
            look(Part::Node(first))?;
            look(Part::Node(second))
        }
        Op::Getattr { node, handle } | Op::Measure { node, handle } | Op::Setattr { node, handle, .. } => {
            look(Part::Node(node))?;
            handle.as_mut().map_or(Ok(()), |handle| look(Part::Handle(handle)))
        }
        Op::Resolve { grant, ino } => {
            let mut node = Node { grant: *grant, ino: *ino };
            look(Part::Node(&mut node))?;
            (*grant, *ino) = (node.grant, node.ino);
            Ok(())
        }
        Op::ReadFiles { grant, .. } => {
            let mut node = Node { grant: *grant, ino: 0 };
            look(Part::Node(&mut node))?;
            *grant = node.grant;
            Ok(())
        }
        Op::Read { handle, .. }
        | Op::Write { handle, .. }
        | Op::Flush { handle, .. }
        | Op::Fsync { handle, .. }
        | Op::Release { handle, .. }
        | Op::Readdir { handle, .. }
        | Op::Fallocate { handle, .. }
        | Op::Seek { handle, .. }
        | Op::GetLock { handle, .. }
        | Op::SetLock { handle, .. } => look(Part::Handle(handle)),
        Op::CopyRange { from, to, .. } => {
            look(Part::Handle(from))?;
            look(Part::Handle(to))
        }
        Op::Forget
        | Op::CancelLock { .. }
        | Op::Ping
        | Op::Bye
        | Op::Reclaimed
        | Op::TakeLeases
        | Op::Recalled { .. } => Ok(()),
    }
}

/// The nodes that a request speaks of.
pub(super) fn nodes(op: &Op) -> Vec<Node> {
    let mut found = vec![];
    let collected = visit(&mut op.clone(), &mut |part| {
        if let Part::Node(node) = part {
            found.push(*node);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(()) = collected;
    found
}

/// The handles that a request speaks of.
pub(super) fn handles(op: &Op) -> Vec<Handle> {
    let mut found = vec![];
    let collected = visit(&mut op.clone(), &mut |part| {
        if let Part::Handle(handle) = part {
            found.push(*handle);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(()) = collected;
    found
}

/// Whether carrying a request out twice is the same as once, so that it may be sent again to a session that does not
/// know whether the one before carried it out. `appends` tells whether a handle writes at the end only.
pub(super) fn repeatable(op: &Op, appends: &dyn Fn(Handle) -> bool) -> bool {
    match op {
        Op::Create { flags, .. } => !flags.exclusive,
        Op::Write { handle, .. } => !appends(*handle),
        // Collapsing or inserting a range moves what follows each time (fallocate(2)).
        Op::Fallocate { mode, .. } => {
            mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) as u32 == 0
        }
        Op::Setxattr { flags, .. } => *flags == 0,
        Op::CopyRange { to, .. } => !appends(*to),
        Op::Mkdir { .. }
        | Op::Mknod { .. }
        | Op::Symlink { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Removexattr { .. } => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_protocol::attr::SetAttr;
    use strongroom_protocol::name::Name;
    use strongroom_protocol::op::{Meant, RenameMode};

    fn node(ino: u64) -> Node {
        Node { grant: 1, ino }
    }

    #[test]
    fn every_node_and_handle_is_seen_and_changed() {
        let name = Name::new(b"a").unwrap();
        let rename = Op::Rename {
            parent: node(1),
            name: name.clone(),
            new_parent: node(2),
            new_name: name,
            mode: RenameMode::Replace,
            directory: Meant::Whichever,
        };
        assert_eq!(nodes(&rename), [node(1), node(2)]);
        let mut setattr = Op::Setattr {
            node: node(3),
            handle: Some(Handle(4)),
            set: SetAttr::default(),
            by: strongroom_protocol::attr::Credentials { uid: 0, gid: 0 },
        };
        assert_eq!(handles(&setattr), [Handle(4)]);
        visit(&mut setattr, &mut |part| {
            match part {
                Part::Node(node) => node.grant = 9,
                Part::Handle(handle) => handle.0 = 8,
            }
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(nodes(&setattr), [Node { grant: 9, ino: 3 }]);
        assert_eq!(handles(&setattr), [Handle(8)]);
        let mut resolve = Op::Resolve { grant: 1, ino: 5 };
        visit(&mut resolve, &mut |part| {
            if let Part::Node(node) = part {
                node.grant = 2;
            }
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(resolve, Op::Resolve { grant: 2, ino: 5 });
    }

    #[test]
    fn appending_twice_is_not_appending_once() {
        let write = Op::Write { handle: Handle(1), offset: 0 };
        assert!(repeatable(&write, &|_| false));
        assert!(!repeatable(&write, &|_| true));
        assert!(!repeatable(&Op::Unlink { parent: node(1), name: Name::new(b"a").unwrap() }, &|_| false));
    }
}
