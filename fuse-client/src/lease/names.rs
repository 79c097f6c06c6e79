//! What is known of the names in one directory.

use std::collections::HashMap;
use std::time::Instant;

use strongroom_protocol::attr::Node;
use strongroom_protocol::name::Name;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// A node.
    Node(Node),
    /// There is no such name.
    Absent,
    /// The gateway must be asked, even if all other names are known.
    Unknown,
}

/// One name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) to: To,
    /// Until when that holds without asking.
    pub(super) until: Instant,
    /// The client's count of changes when this was learnt.
    pub(super) since: u64,
    /// Whether the kernel may have it for longer than no time.
    pub(super) told: bool,
}

/// The names of a directory on which a lease is held.
#[derive(Debug, Default)]
pub(super) struct Names {
    map: HashMap<Name, Link>,
    /// Until when a name that is not in the map is known to be absent.
    pub(super) complete: Option<Instant>,
    /// The client's count of changes when it became complete.
    pub(super) since: u64,
    /// A name found no room, so that the map must not be taken for complete.
    pub(super) partial: bool,
}

/// Names known of one directory; beyond, only some are.
const MOST: usize = 32 * 1024;

impl Names {
    pub(super) fn get(&self, name: &Name) -> Option<&Link> {
        self.map.get(name)
    }

    /// Sets what a name stands for; whether the kernel was told of it stays.
    pub(super) fn set(&mut self, name: &Name, to: To, until: Instant, since: u64) {
        if let Some(link) = self.map.get_mut(name) {
            *link = Link { to, until, since, told: link.told };
        } else if self.map.len() < MOST {
            self.map.insert(name.clone(), Link { to, until, since, told: false });
        } else {
            self.partial = true;
            self.complete = None;
        }
    }

    /// Notes that the kernel is told of a name; returns whether that could be noted.
    pub(super) fn tell(&mut self, name: &Name, until: Instant, since: u64) -> bool {
        if !self.map.contains_key(name) {
            // Known to be absent because all others are known.
            self.set(name, To::Absent, until, since);
        }
        self.map.get_mut(name).map(|link| link.told = true).is_some()
    }

    /// Notes that the kernel has this name from another one that stood for the same; returns whether it is known what that is.
    pub(super) fn moved_to(&mut self, name: &Name) -> bool {
        let link = self.map.get_mut(name).filter(|link| matches!(link.to, To::Node(_)));
        link.map(|link| link.told = true).is_some()
    }

    /// Nothing is known of this name any more, and the kernel is going to forget it; returns whether it may have it.
    pub(super) fn unknow(&mut self, name: &Name, now: u64) -> bool {
        let told = self.map.get(name).is_some_and(|link| link.told);
        if self.complete.is_some() {
            self.doubt(name, now);
            if let Some(link) = self.map.get_mut(name) {
                link.told = false;
            }
        } else {
            self.map.remove(name);
        }
        told
    }

    /// Nothing is known of this name any more.
    pub(super) fn doubt(&mut self, name: &Name, now: u64) {
        if let Some(link) = self.map.get_mut(name) {
            link.to = To::Unknown;
            link.since = now;
        } else if let Some(until) = self.complete {
            self.set(name, To::Unknown, until, now);
        }
    }

    /// Nothing is known of any name any more; what the kernel may have stays noted.
    pub(super) fn doubt_all(&mut self) {
        self.complete = None;
        self.map.retain(|_, link| link.told);
        self.map.values_mut().for_each(|link| link.to = To::Unknown);
    }

    /// The names that the kernel may have.
    pub(super) fn told(&self) -> impl Iterator<Item = &Name> {
        self.map.iter().filter(|(_, link)| link.told).map(|(name, _)| name)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}
