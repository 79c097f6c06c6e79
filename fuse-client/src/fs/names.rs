//! Operations that make, remove and change names.

use fuser::{Errno, RenameFlags};
use strongroom_protocol::attr::Node;
use strongroom_protocol::name::{MAX_PATH, Name};
use strongroom_protocol::op::{Op, RenameMode};

use super::{Caller, Fs, PERMISSIONS, Told, entry};
use crate::errno::of_name;
use crate::transport::{Answer, Payload};

impl Fs {
    /// The directory and name of something to be made or removed.
    fn spot(&self, parent: u64, name: &[u8]) -> Result<(Node, Name), Errno> {
        Ok((self.granted(parent)?, Name::new(name).map_err(of_name)?))
    }

    /// Makes something by the request that `op` gives for its place.
    fn make(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        data: Payload,
        op: impl FnOnce(Node, Name) -> Op,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let (parent, name) = match self.spot(place.0, place.1) {
            Ok(spot) => spot,
            Err(errno) => return done(Err(errno)),
        };
        let fs = self.clone();
        let op = op(parent, name.clone());
        let read = move |answer: Answer<'_>| fs.told(parent, name, &entry(&answer)?);
        self.ask(caller, op, data, read, done);
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let by = caller.credentials();
        let mode = mode & PERMISSIONS;
        let op = |parent, name| Op::Mkdir { parent, name, mode, by };
        self.make(caller, (parent, name), Payload::default(), op, done);
    }

    /// Makes a file, fifo, socket or device node.
    pub fn mknod(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        mode: u32,
        rdev: u32,
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let by = caller.credentials();
        let op = |parent, name| Op::Mknod { parent, name, mode, rdev, by };
        self.make(caller, place, Payload::default(), op, done);
    }

    /// Makes a symlink.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        target: &[u8],
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        if target.len() >= MAX_PATH {
            return done(Err(Errno::ENAMETOOLONG));
        }
        let by = caller.credentials();
        let op = |parent, name| Op::Symlink { parent, name, by };
        self.make(caller, (parent, name), Payload::copy(target), op, done);
    }

    /// Makes another name for a file.
    pub fn link(
        &self,
        caller: Caller,
        number: u64,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<Told, Errno>) + Send + 'static,
    ) {
        let node = match (self.granted(number), self.granted(parent)) {
            (Ok(node), Ok(parent)) if node.grant != parent.grant => return done(Err(Errno::EXDEV)),
            (Ok(node), Ok(_)) => node,
            (Err(errno), _) | (_, Err(errno)) => return done(Err(errno)),
        };
        let op = |parent, name| Op::Link { node, parent, name };
        self.make(caller, (parent, name), Payload::default(), op, done);
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.remove(caller, (parent, name), |parent, name| Op::Unlink { parent, name }, done);
    }

    /// Removes an empty directory.
    pub fn rmdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.remove(caller, (parent, name), |parent, name| Op::Rmdir { parent, name }, done);
    }

    fn remove(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        op: impl FnOnce(Node, Name) -> Op,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let (parent, name) = match self.spot(place.0, place.1) {
            Ok(spot) => spot,
            Err(errno) => return done(Err(errno)),
        };
        let fs = self.clone();
        let op = op(parent, name.clone());
        self.ask_done(caller, op, Payload::default(), move |result| {
            if result.is_ok() {
                fs.state.nodes.lock().removed(parent, &name);
            }
            done(result);
        });
    }

    /// Renames (renameat2(2)).
    pub fn rename(
        &self,
        caller: Caller,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: RenameFlags,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return done(Err(Errno::EINVAL));
        };
        let ((parent, name), (new_parent, new_name)) =
            match (self.spot(from.0, from.1), self.spot(to.0, to.1)) {
                (Ok(from), Ok(to)) => (from, to),
                (Err(errno), _) | (_, Err(errno)) => return done(Err(errno)),
            };
        if parent.grant != new_parent.grant {
            return done(Err(Errno::EXDEV));
        }
        let fs = self.clone();
        let op = Op::Rename { parent, name: name.clone(), new_parent, new_name: new_name.clone(), mode };
        self.ask_done(caller, op, Payload::default(), move |result| {
            if result.is_ok() {
                let exchange = mode == RenameMode::Exchange;
                fs.state.nodes.lock().renamed((parent, name), (new_parent, new_name), exchange);
            }
            done(result);
        });
    }
}
