//! A guest without a mount: one connection, one request at a time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use strongroom_channel::{Channel, ClientTls, Frame, Peer, Socket};
use strongroom_contracts::{GatewayId, SecretKey};
use strongroom_protocol::attr::{Credentials, Node, OpenFlags};
use strongroom_protocol::codec::{decode_header, decode_list, encode_header};
use strongroom_protocol::hello::{Answer, GrantInfo, Hello};
use strongroom_protocol::name::Name;
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::{FromGateway, Outcome};
use strongroom_protocol::{ALPN_NATIVE, VERSION};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Guest {
    channel: Channel,
    frame: Frame,
    root: Node,
    directories: HashMap<String, Node>,
    next: u64,
    sequence: u64,
}

impl Guest {
    /// Handshake, contract, welcome.
    pub(crate) fn enter(
        key: &SecretKey,
        gateway: GatewayId,
        address: SocketAddr,
        chain: &[u8],
    ) -> Result<Guest> {
        let tls = ClientTls::new(key, Peer::Gateway(gateway), ALPN_NATIVE)?;
        let socket = std::net::TcpStream::connect(address)?;
        let mut channel = tls.handshake(Socket::Tcp(socket), PATIENCE)?;
        channel.receiver.set_timeout(Some(PATIENCE))?;
        let mut header = vec![];
        encode_header(&Hello { version: VERSION, resume: None, wait: false }, &mut header)?;
        channel.sender.send(&header, chain)?;
        let mut frame = Frame::new();
        if !channel.receiver.recv(&mut frame)? {
            bail!("the gateway closed the connection instead of a welcome");
        }
        if let Answer::Refused(refused) = decode_header(frame.header())? {
            bail!("refused: {}", refused.text);
        }
        let grants: Vec<GrantInfo> = decode_list(frame.data())?;
        let root = grants.first().and_then(|grant| grant.root).context("the grant has no root")?;
        let root = Node { grant: 0, ino: root.ino };
        Ok(Guest { channel, frame, root, directories: HashMap::new(), next: 0, sequence: 0 })
    }

    fn call(&mut self, op: Op) -> Result<Outcome> {
        self.next += 1;
        let slot = if op.needs_slot() {
            self.sequence += 1;
            Slot { index: 0, sequence: self.sequence }
        } else {
            Slot::default()
        };
        let mut header = vec![];
        encode_header(&Request { id: self.next, slot, op }, &mut header)?;
        self.channel.sender.send(&header, &[])?;
        loop {
            if !self.channel.receiver.recv(&mut self.frame)? {
                bail!("the gateway closed the connection");
            }
            match decode_header(self.frame.header())? {
                FromGateway::Reply { id, outcome } if id == self.next => return Ok(outcome),
                _ => {}
            }
        }
    }

    /// A directory below the grant, looked up once; empty: the grant's root.
    pub(crate) fn directory(&mut self, name: &str) -> Result<Node> {
        if name.is_empty() {
            return Ok(self.root);
        }
        if let Some(node) = self.directories.get(name) {
            return Ok(*node);
        }
        let node = self.lookup(self.root, name)?;
        self.directories.insert(name.to_owned(), node);
        Ok(node)
    }

    pub(crate) fn lookup(&mut self, parent: Node, name: &str) -> Result<Node> {
        match self.call(Op::Lookup { parent, name: Name::new(name.as_bytes())? })? {
            Outcome::Entry(entry) => Ok(entry.node),
            other => bail!("lookup of `{name}`: {other:?}"),
        }
    }

    pub(crate) fn attributes(&mut self, node: Node) -> Result<()> {
        match self.call(Op::Getattr { node, handle: None })? {
            Outcome::Attr(_) => Ok(()),
            other => bail!("attributes: {other:?}"),
        }
    }

    /// Creates a file and closes it.
    pub(crate) fn create(&mut self, parent: Node, name: &str) -> Result<()> {
        let op = Op::Create {
            parent,
            name: Name::new(name.as_bytes())?,
            mode: 0o600,
            flags: OpenFlags { write: true, exclusive: true, ..OpenFlags::default() },
            by: Credentials { uid: 0, gid: 0 },
        };
        match self.call(op)? {
            Outcome::Created(handle, _) => match self.call(Op::Release { handle, lock_owner: None })? {
                Outcome::Done => Ok(()),
                other => bail!("closing `{name}`: {other:?}"),
            },
            other => bail!("creating `{name}`: {other:?}"),
        }
    }

    pub(crate) fn remove(&mut self, parent: Node, name: &str) -> Result<()> {
        match self.call(Op::Unlink { parent, name: Name::new(name.as_bytes())? })? {
            Outcome::Done => Ok(()),
            other => bail!("removing `{name}`: {other:?}"),
        }
    }
}
