//! The gate: the only place that decides.
//!
//! It decides by returning a [`Permit`], which holds the objects that an operation is about, found by the gate and
//! checked to lie inside the grant. INVARIANT: a permit is made in this module only (its members are private), from an
//! [`Admission`] that it borrows, so that no permit outlives the moment in which a fence begins; every function of the
//! store takes one.

pub(crate) mod grant;
pub(crate) mod lease;
pub(crate) mod refusal;
pub(crate) mod rules;
pub mod turnstile;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use strongroom_contracts::{Ownership, Right};
use strongroom_protocol::attr::{self, Attr, Credentials, Handle};
use strongroom_protocol::lease::Lease;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Entry, Failure};

pub use turnstile::{Admission, Turnstile};

use crate::detect::Watch;
use crate::engine::{EngineSession, LockReply, Shared, SpecialFiles};
use crate::handles::{Open, Released, Use};
use crate::leases::{Deal, Key};
use crate::locks::{Asked, Due, How, Owner};
use crate::quota::Limit;
use crate::sys::Identity;
use crate::tree::sections::Section;
use crate::tree::{Node, Stat, Tree};
use crate::undo::{Capture, Undo};
use grant::{GrantState, Root};
use refusal::{Checked, Refusal};
use rules::{Deed, Needs, Unless};

/// Where requests of a session are decided.
pub(crate) struct Gate<'a> {
    pub(crate) engine: &'a Shared,
    pub(crate) session: &'a EngineSession,
    pub(crate) admission: &'a Admission,
    /// The operation may not wait for the disk.
    pub(crate) inline: bool,
    /// What the operation does with leases.
    pub(crate) deal: &'a Deal,
}

/// A permit for one operation on some objects. See the module's invariant.
pub(crate) struct Permit<'a, On> {
    scope: Scope<'a>,
    on: On,
}

struct Scope<'a> {
    engine: &'a Shared,
    session: &'a EngineSession,
    grant: &'a GrantState,
    number: u16,
    /// Absent only where something is let go of.
    root: Option<Root>,
    /// The state of the tree before anything was checked.
    epoch: u64,
    /// The caller has the handle open that created the file.
    creator: bool,
    inline: bool,
    deal: &'a Deal,
    _section: Section<'a>,
    _admission: &'a Admission,
}

/// On a node.
pub(crate) struct OnNode {
    node: Arc<Node>,
    /// The handle that the client names with it, or that the session has.
    open: Option<Arc<Open>>,
}

/// On a name in a directory.
pub(crate) struct InDir {
    dir: Arc<Node>,
}

/// On names in two directories.
pub(crate) struct InDirs {
    from: Arc<Node>,
    to: Arc<Node>,
}

/// On a node that gets a name in a directory.
pub(crate) struct IntoDir {
    node: Arc<Node>,
    dir: Arc<Node>,
}

/// On an open file or directory.
pub(crate) struct OnHandle {
    open: Arc<Open>,
    handle: Handle,
}

/// On an open file or directory that is let go of.
pub(crate) struct Letting {
    open: Arc<Open>,
}

/// On two open files.
pub(crate) struct OnHandles {
    from: Arc<Open>,
    to: Arc<Open>,
}

/// On a grant.
pub(crate) struct OnGrant;

impl<'a> Gate<'a> {
    fn scope(&self, number: u16) -> Checked<Scope<'a>> {
        let mut scope = self.rootless(number)?;
        scope.root = Some(scope.grant.root(&self.engine.tree)?);
        Ok(scope)
    }

    fn rootless(&self, number: u16) -> Checked<Scope<'a>> {
        let grant = self.session.grants.get(usize::from(number)).ok_or(Refusal::STALE)?;
        let section = self.engine.tree.sections.enter();
        let epoch = self.engine.tree.epoch();
        Ok(Scope {
            engine: self.engine,
            session: self.session,
            grant,
            number,
            root: None,
            epoch,
            creator: false,
            inline: self.inline,
            deal: self.deal,
            _section: section,
            _admission: self.admission,
        })
    }

    /// For operations on a node, with or without a handle.
    pub(crate) fn node(
        &self,
        op: &Op,
        key: attr::Node,
        handle: Option<Handle>,
    ) -> Checked<Permit<'a, OnNode>> {
        let mut scope = self.scope(key.grant)?;
        let (node, open) = match handle {
            Some(handle) => {
                let open = self.session.handles.get(handle)?;
                scope.inside_open(&open)?;
                if (open.grant, open.node.ino) != (key.grant, key.ino) {
                    return Err(Refusal::MALFORMED);
                }
                (Arc::clone(&open.node), Some(open))
            }
            None => {
                let node = scope.known(key)?;
                let open = self.session.handles.of_node(&node).filter(|open| open.grant == key.grant);
                (node, open)
            }
        };
        scope.creator = open.as_ref().is_some_and(|open| open.created);
        scope.arrive(op, Some(&node))?;
        Ok(Permit { scope, on: OnNode { node, open } })
    }

    /// For operations on a name in a directory.
    pub(crate) fn entry(&self, op: &Op, parent: attr::Node) -> Checked<Permit<'a, InDir>> {
        let scope = self.scope(parent.grant)?;
        let dir = scope.known_dir(parent)?;
        if !matches!(op, Op::Lookup { .. }) {
            scope.arrive(op, None)?;
        }
        Ok(Permit { scope, on: InDir { dir } })
    }

    /// For operations on names in two directories.
    pub(crate) fn entries(&self, op: &Op, from: attr::Node, to: attr::Node) -> Checked<Permit<'a, InDirs>> {
        let scope = self.scope(from.grant)?;
        scope.arrive(op, None)?;
        if from.grant != to.grant {
            // The other node must be known all the same.
            self.session.nodes.get(to).ok_or(Refusal::STALE)?;
            return Err(Failure::CrossGrant.into());
        }
        let (from, to) = (scope.known_dir(from)?, scope.known_dir(to)?);
        Ok(Permit { scope, on: InDirs { from, to } })
    }

    /// For giving a node another name in a directory.
    pub(crate) fn naming(
        &self,
        op: &Op,
        key: attr::Node,
        parent: attr::Node,
    ) -> Checked<Permit<'a, IntoDir>> {
        let scope = self.scope(parent.grant)?;
        scope.arrive(op, None)?;
        if key.grant != parent.grant {
            self.session.nodes.get(key).ok_or(Refusal::STALE)?;
            return Err(Failure::CrossGrant.into());
        }
        let (node, dir) = (scope.known(key)?, scope.known_dir(parent)?);
        Ok(Permit { scope, on: IntoDir { node, dir } })
    }

    /// For operations on an open file or directory.
    pub(crate) fn handle(&self, op: &Op, handle: Handle) -> Checked<Permit<'a, OnHandle>> {
        let open = self.session.handles.get(handle)?;
        let mut scope = self.scope(open.grant).map_err(|_| Refusal::errno(Errno::STALE))?;
        scope.inside_open(&open)?;
        scope.creator = open.created;
        scope.arrive(op, None)?;
        Ok(Permit { scope, on: OnHandle { open, handle } })
    }

    /// For letting go of an open file or directory, wherever it lies by now.
    pub(crate) fn letting(&self, handle: Handle) -> Checked<Permit<'a, Letting>> {
        let open = self.session.handles.get(handle)?;
        Ok(Permit { scope: self.rootless(open.grant)?, on: Letting { open } })
    }

    /// For operations from one open file to another.
    pub(crate) fn handles(&self, op: &Op, from: Handle, to: Handle) -> Checked<Permit<'a, OnHandles>> {
        let (from, to) = (self.session.handles.get(from)?, self.session.handles.get(to)?);
        if from.grant != to.grant {
            // Both must be inside and the source readable before anything else is said.
            let source = self.scope(from.grant)?;
            source.inside_open(&from)?;
            source.arrive(op, None)?;
            return Err(Failure::CrossGrant.into());
        }
        let mut scope = self.scope(from.grant)?;
        scope.inside_open(&from)?;
        scope.inside_open(&to)?;
        scope.arrive(op, None)?;
        scope.creator = to.created;
        Ok(Permit { scope, on: OnHandles { from, to } })
    }

    /// For finding a node by its path from the root of a grant.
    pub(crate) fn grant(&self, number: u16) -> Checked<Permit<'a, OnGrant>> {
        if usize::from(number) >= self.session.grants.len() {
            return Err(Refusal::MALFORMED);
        }
        Ok(Permit { scope: self.scope(number)?, on: OnGrant })
    }
}

impl Scope<'_> {
    fn tree(&self) -> &Arc<Tree> {
        &self.engine.tree
    }

    /// The state of the tree in which a node is inside: what makes an earlier look still good.
    fn stamp(&self, node: &Node) -> u64 {
        self.epoch.wrapping_add(node.moves.load(Ordering::SeqCst))
    }

    /// Whether the node lies inside the grant, looked up afresh unless nothing has moved since `seen`. Returns the
    /// state in which that is so.
    fn inside(&self, node: &Arc<Node>, seen: Option<u64>) -> Checked<u64> {
        self.tree().confirm(node);
        let stamp = self.stamp(node);
        let root = self.root.as_ref().ok_or(Refusal::STALE)?;
        if seen == Some(stamp) || self.tree().beneath(node, &root.node) {
            Ok(stamp)
        } else {
            Err(Refusal::STALE)
        }
    }

    /// A node that the session was told of, inside the grant.
    fn known(&self, key: attr::Node) -> Checked<Arc<Node>> {
        let known = self.session.nodes.get(key).ok_or(Refusal::STALE)?;
        let stamp = self.inside(&known.node, Some(known.seen))?;
        if stamp != known.seen {
            self.session.nodes.learn(key, &known.node, Some(stamp));
        }
        Ok(known.node)
    }

    fn known_dir(&self, key: attr::Node) -> Checked<Arc<Node>> {
        let node = self.known(key)?;
        if node.is_dir() { Ok(node) } else { Err(Refusal::errno(Errno::NOTDIR)) }
    }

    /// Checks that what is open lies inside the grant, or did when it lost its last name.
    fn inside_open(&self, open: &Open) -> Checked<()> {
        let seen = open.seen.load(Ordering::Relaxed);
        let stamp = self.inside(&open.node, Some(seen)).map_err(|_| Refusal::errno(Errno::STALE))?;
        if stamp != seen {
            open.seen.store(stamp, Ordering::Relaxed);
        }
        Ok(())
    }

    fn has(&self, right: Right) -> bool {
        self.grant.terms.rights.has(right)
    }

    fn arrive(&self, op: &Op, node: Option<&Node>) -> Checked<()> {
        self.decide(rules::on_arrival(op), node)
    }

    fn decide(&self, (needs, unless): (Needs, Unless), node: Option<&Node>) -> Checked<()> {
        let Some(missing) = rules::missing(needs, self.grant.terms.rights) else { return Ok(()) };
        let exempt = match unless {
            Unless::Never => false,
            Unless::Creator => self.creator,
            Unless::Own => node.is_some_and(|node| self.is_own(node) || self.is_root(node.ino)),
        };
        if exempt { Ok(()) } else { Err(Refusal::denied(missing)) }
    }

    fn key(&self, node: &Node) -> attr::Node {
        attr::Node { grant: self.number, ino: node.ino }
    }

    fn is_root(&self, ino: u64) -> bool {
        self.root.as_ref().is_some_and(|root| root.node.ino == ino)
    }

    fn is_own(&self, node: &Node) -> bool {
        self.session.nodes.is_own(self.key(node), node.generation)
    }

    fn keeps_special(&self) -> bool {
        self.engine.options.special_files == SpecialFiles::Store
            && self.grant.terms.ownership == Ownership::Preserve
    }
}

/// What every permit offers.
impl<On> Permit<'_, On> {
    pub(crate) fn tree(&self) -> &Arc<Tree> {
        self.scope.tree()
    }

    pub(crate) fn session(&self) -> &EngineSession {
        self.scope.session
    }

    pub(crate) fn deal(&self) -> &Deal {
        self.scope.deal
    }

    /// To be called before a file is opened for the session.
    pub(crate) fn opening(&self, node: &Arc<Node>) -> Use {
        Use::of_file(node, crate::leases::Key::new(self.scope.session.number, self.scope.number))
    }

    /// The operation may not wait for the disk.
    pub(crate) fn inline(&self) -> bool {
        self.scope.inline
    }

    /// The number of the grant.
    pub(crate) fn grant(&self) -> u16 {
        self.scope.number
    }

    pub(crate) fn ownership(&self) -> Ownership {
        self.scope.grant.terms.ownership
    }

    /// Whether set-id bits and device nodes are kept.
    pub(crate) fn keeps_special(&self) -> bool {
        self.scope.keeps_special()
    }

    /// Whether the contract allows what an operation turns out to do.
    ///
    /// # Errors
    /// `Denied`.
    pub(crate) fn require(&self, deed: Deed) -> Checked<()> {
        self.scope.decide(rules::for_deed(deed), None)
    }

    /// Whether the session may learn that this object exists.
    ///
    /// # Errors
    /// `ENOENT` if names may be made here and not seen (a drop-box: programs look before they create), else `Denied`.
    pub(crate) fn may_see(&self, node: Option<&Node>) -> Checked<()> {
        if self.scope.has(Right::List) || node.is_some_and(|node| self.scope.is_own(node)) {
            return Ok(());
        }
        Err(if self.scope.has(Right::Create) {
            Refusal::errno(Errno::NOENT)
        } else {
            Refusal::lacks(Right::List)
        })
    }

    /// What watches the application's changes, if anything does.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.scope.session.watch.as_deref()
    }

    /// What keeps what is about to be changed.
    pub(crate) fn undo(&self) -> Capture<'_> {
        let Scope { engine, session, grant, .. } = &self.scope;
        Capture::new(engine.undo.as_deref(), session.actor.as_ref(), &engine.tree, grant.terms.undo_secs)
    }

    /// The undo log, if there is one.
    pub(crate) fn undo_log(&self) -> Option<&Arc<Undo>> {
        self.scope.engine.undo.as_ref()
    }

    /// Bytes were appended to an open file.
    pub(crate) fn appended(&self, open: &Arc<Open>, count: u64) {
        self.scope.engine.writeback.appended(open, count);
    }

    /// Brings what could bring old bytes back to the disk.
    pub(crate) fn sync_undo(&self) -> Checked<()> {
        Ok(self.undo_log().map_or(Ok(()), |undo| undo.sync())?)
    }

    /// The limits on what may be held here.
    pub(crate) fn limits(&self) -> Checked<Arc<[Limit]>> {
        self.scope.grant.limits(self.tree())
    }

    /// Refuses a file size above the grant's limit.
    ///
    /// # Errors
    /// `EFBIG`.
    pub(crate) fn check_size(&self, size: u64) -> Checked<()> {
        match self.scope.grant.terms.max_file_bytes {
            Some(most) if size > most => Err(Refusal::errno(Errno::FBIG)),
            _ if i64::try_from(size).is_err() => Err(Refusal::errno(Errno::FBIG)),
            _ => Ok(()),
        }
    }

    /// Who new objects belong to.
    pub(crate) fn identity(&self, by: Credentials) -> Checked<Identity> {
        if !self.scope.engine.privileged {
            return Ok(Identity::own());
        }
        match self.ownership() {
            Ownership::Preserve => Ok(Identity::become_user(by.uid, by.gid)?),
            Ownership::Single => {
                let (uid, gid) = self.scope.root.as_ref().ok_or(Refusal::STALE)?.owner;
                // In a user namespace the owner may have no number here; then the files are the gateway's.
                Ok(Identity::become_user(uid, gid).unwrap_or_else(|_| Identity::own()))
            }
        }
    }

    /// Permission bits as they are stored.
    pub(crate) fn mode(&self, mode: u32, directory: bool) -> u32 {
        let kept = match (self.keeps_special(), directory && self.ownership() == Ownership::Preserve) {
            (true, _) => 0o7777,
            // Set-gid of a directory is about inheriting the group, not about running programs.
            (false, true) => 0o3777,
            (false, false) => 0o1777,
        };
        mode & kept
    }

    /// Attributes as the session may see them.
    pub(crate) fn show(&self, stat: &Stat) -> Attr {
        let mut attr = stat.attr();
        attr.nlink = self.tree().links(stat);
        if self.ownership() == Ownership::Single {
            (attr.uid, attr.gid) = (0, 0);
        }
        if !self.keeps_special() && stat.kind() == rustix::fs::FileType::RegularFile {
            attr.mode &= !0o6000;
        }
        if !self.scope.has(Right::List) && self.scope.is_root(stat.ino()) {
            // A drop-box must be there to be used; how full it is and when it changed is nobody's business.
            let never = attr::Time::default();
            attr = Attr {
                nlink: 2,
                size: 0,
                blocks: 0,
                atime: never,
                mtime: never,
                ctime: never,
                btime: never,
                ..attr
            };
        }
        attr
    }

    /// Tells the session of an object.
    pub(crate) fn tell(&self, node: &Arc<Node>, stat: &Stat) -> Entry {
        // Whether it still lies inside is looked at when it is used.
        self.scope.session.nodes.learn(self.scope.key(node), node, None);
        Entry { node: self.scope.key(node), attr: self.show(stat) }
    }

    /// Tells the session of an object that it has just made.
    pub(crate) fn tell_made(&self, node: &Arc<Node>, stat: &Stat) -> Entry {
        self.scope.session.nodes.made(self.scope.key(node), node.generation);
        self.tell(node, stat)
    }

    /// Gives the session a handle.
    pub(crate) fn open(
        &self,
        used: Use,
        file: std::os::fd::OwnedFd,
        flags: attr::OpenFlags,
        created: bool,
    ) -> Checked<Handle> {
        let open = Open::new(used, file, self.grant(), flags, created, crate::nodes::NEVER);
        self.scope.session.handles.add(open)
    }

    /// Whether a handle that created this file was recorded by a former process.
    pub(crate) fn has_claim(&self, node: &Node) -> bool {
        let claim = crate::engine::Claim { grant: self.grant(), ino: node.ino, generation: node.generation };
        self.scope.session.claims.lock().contains(&claim)
    }

    /// The root of the grant.
    pub(crate) fn root(&self) -> Checked<&Arc<Node>> {
        self.scope.root.as_ref().map(|root| &root.node).ok_or(Refusal::STALE)
    }
}

impl Permit<'_, OnNode> {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.on.node
    }

    /// A handle of the node, if the session has one.
    pub(crate) fn handle(&self) -> Option<&Arc<Open>> {
        self.on.open.as_ref()
    }

    /// Whether the session may see the node's attributes.
    ///
    /// # Errors
    /// `Denied`.
    pub(crate) fn may_see_attributes(&self) -> Checked<()> {
        let getattr = Op::Getattr { node: self.scope.key(&self.on.node), handle: None };
        self.scope.arrive(&getattr, Some(&self.on.node))
    }
}

impl Permit<'_, InDir> {
    pub(crate) fn dir(&self) -> &Arc<Node> {
        &self.on.dir
    }
}

impl Permit<'_, InDirs> {
    pub(crate) fn from(&self) -> &Arc<Node> {
        &self.on.from
    }

    pub(crate) fn to(&self) -> &Arc<Node> {
        &self.on.to
    }
}

impl Permit<'_, IntoDir> {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.on.node
    }

    pub(crate) fn dir(&self) -> &Arc<Node> {
        &self.on.dir
    }
}

impl Permit<'_, OnHandle> {
    pub(crate) fn target(&self) -> &Arc<Open> {
        &self.on.open
    }

    fn lock_key(&self) -> Key {
        Key::new(self.scope.session.number, self.scope.number)
    }

    /// The lock that stands against this one.
    pub(crate) fn query_lock(&self, lock: &attr::Lock) -> Option<attr::Lock> {
        let owner = Owner { session: self.scope.session.number, owner: lock.owner };
        self.scope.engine.locks.query(self.on.open.node.id, owner, self.lock_key(), lock)
    }

    /// Sets or gives up a lock. The reply says so if the client may answer for the locks of the file from now on.
    ///
    /// # Errors
    /// `BadHandle` if the handle was closed meanwhile: its locks are gone, and this one would stay behind.
    pub(crate) fn set_lock(
        &self,
        lock: &attr::Lock,
        wait: Option<(u64, &dyn Fn() -> LockReply)>,
        reclaim: bool,
    ) -> Checked<Asked> {
        let Scope { engine, session, deal, number, .. } = &self.scope;
        let owner = Owner { session: session.number, owner: lock.owner };
        let node = &self.on.open.node;
        let (by, most) = (self.lock_key(), session.bounds.locks);
        let (asked, due) = deal.with_locks(node, *number, |may_keep| {
            let how = How { wait, reclaim, most, by, may_keep };
            session.handles.while_open(self.on.handle, || engine.locks.set(node.id, owner, lock, how))
        })?;
        due.send();
        if asked == Asked::Kept {
            deal.note_node(Lease::Exclusive);
        }
        Ok(asked)
    }
}

impl Permit<'_, OnHandles> {
    pub(crate) fn source(&self) -> &Arc<Open> {
        &self.on.from
    }

    pub(crate) fn target(&self) -> &Arc<Open> {
        &self.on.to
    }
}

/// Takes a handle out. With the session's last one of the file go all its locks: no descriptor is left through which one could be given
/// up.
pub(crate) fn close(engine: &Shared, session: &EngineSession, handle: Handle) -> Checked<Released> {
    let mut due = Due::default();
    let released =
        session.handles.remove(handle, |node| due = engine.locks.release_node(node.id, session.number));
    due.send();
    released
}

impl Permit<'_, Letting> {
    /// Gives up the locks of an owner on the file.
    pub(crate) fn release_locks(&self, owner: u64) {
        let owner = Owner { session: self.scope.session.number, owner };
        self.scope.engine.locks.release_owner(self.on.open.node.id, owner);
    }

    /// Takes the handle out.
    ///
    /// # Errors
    /// `BadHandle`.
    pub(crate) fn close(&self, handle: Handle) -> Checked<Released> {
        close(self.scope.engine, self.scope.session, handle)
    }
}
