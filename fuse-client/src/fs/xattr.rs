//! Extended attributes. Those of users travel; the others are answered here, because programs and the kernel ask for them all
//! the time and the gateway stores none.

use fuser::Errno;
use strongroom_protocol::attr::Node;
use strongroom_protocol::op::Op;

use super::{Caller, Fs, Place, nothing};
use crate::lease::OwnChange;
use crate::transport::{Answer, Payload};

/// The longest name, in bytes (xattr(7)).
const MAX_NAME: usize = 255;
/// The longest value, in bytes (xattr(7)).
const MAX_VALUE: usize = 64 * 1024;

/// The answer to reading an attribute that does not travel.
fn read_elsewhere(name: &[u8]) -> Errno {
    // The kernel asks before each write whether there are capabilities to drop.
    if name == b"security.capability" { Errno::ENODATA } else { Errno::EOPNOTSUPP }
}

fn travels(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

impl Fs {
    /// The value of an attribute.
    pub fn getxattr(
        &self,
        caller: Caller,
        number: u64,
        name: &[u8],
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        match self.place(number) {
            _ if !travels(name) => done(Err(read_elsewhere(name))),
            Place::Skeleton(_) => done(Err(Errno::ENODATA)),
            Place::Granted(node) => self.ask_data(caller, Op::Getxattr { node }, Payload::copy(name), done),
        }
    }

    /// The names of attributes, each ended by NUL.
    pub fn listxattr(
        &self,
        caller: Caller,
        number: u64,
        done: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        match self.place(number) {
            Place::Skeleton(_) => done(Ok(&[])),
            Place::Granted(node) => self.ask_data(caller, Op::Listxattr { node }, Payload::default(), done),
        }
    }

    /// Sets an attribute; `flags` as in setxattr(2).
    pub fn setxattr(
        &self,
        caller: Caller,
        number: u64,
        attribute: (&[u8], &[u8]),
        flags: i32,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let (name, value) = attribute;
        let node = match self.granted(number) {
            _ if !travels(name) => return done(Err(Errno::EOPNOTSUPP)),
            _ if name.len() > MAX_NAME => return done(Err(Errno::ERANGE)),
            _ if value.len() > MAX_VALUE => return done(Err(Errno::E2BIG)),
            Ok(node) => node,
            Err(errno) => return done(Err(errno)),
        };
        let data = Payload::from([name, value].concat());
        // At most MAX_NAME; the bits as they are.
        let op = Op::Setxattr { node, name_length: name.len() as u16, flags: flags as u32 };
        self.change_xattr(caller, node, (op, data), done);
    }

    /// Removes an attribute.
    pub fn removexattr(
        &self,
        caller: Caller,
        number: u64,
        name: &[u8],
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        match self.granted(number) {
            _ if !travels(name) => done(Err(Errno::EOPNOTSUPP)),
            Ok(node) => {
                let asking = (Op::Removexattr { node }, Payload::copy(name));
                self.change_xattr(caller, node, asking, done);
            }
            Err(errno) => done(Err(errno)),
        }
    }

    fn change_xattr(
        &self,
        caller: Caller,
        node: Node,
        asking: (Op, Payload),
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let fs = self.clone();
        let read = move |result: Result<Answer<'_>, Errno>, change: OwnChange| {
            fs.ended_plainly(&change, result.as_ref().ok(), node);
            nothing(result?)
        };
        self.change(caller, asking, &[node], read, done);
    }
}
