//! The leases on one node.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use strongroom_protocol::lease::{Lease, What};
use strongroom_protocol::name::Name;

use super::lessee::Need;
use crate::tree::Node;

/// Holders from which on they are found by hashing.
const MANY: usize = 16;
/// Names that a holder is told of one by one without having looked; then it loses the lease.
const MOST_TOLD: u8 = 16;

/// Who holds a lease: a session, by one of its grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    /// Sessions are numbered from 1 and never reach 2^48.
    pub(crate) fn new(session: u64, grant: u16) -> Key {
        Key(session << 16 | u64::from(grant))
    }

    pub(crate) fn session(self) -> u64 {
        self.0 >> 16
    }

    pub(crate) fn grant(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// Several.
    const MIXED: Key = Key(u64::MAX);
}

/// What an operation would like to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Only what is held already.
    Touch,
    /// Whatever lets reads be kept.
    Read,
    /// If possible, that nobody else holds anything, or has the file open: his kernel is to hear how long it is before a write is answered.
    Write,
    /// If possible, that nobody else holds anything.
    Lock,
}

/// What a change concerns.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'a> {
    /// A name in a directory.
    Name(&'a [u8]),
    /// Everything.
    All { data: bool, open: bool },
}

impl Change<'_> {
    /// What holders are told; `None` for a name that cannot be one.
    pub(super) fn what(&self) -> What {
        match self {
            Change::Name(name) => match Name::new(name) {
                Ok(name) => What::Name(name),
                Err(_) => What::All { data: false, open: false },
            },
            Change::All { data, open } => What::All { data: *data, open: *open },
        }
    }
}

impl Change<'_> {
    /// What everybody who may have something of a node is to be told, by session. `size`: of a file that may have become longer or shorter.
    pub(crate) fn all_concerned(&self, node: &Arc<Node>, size: Option<u64>) -> HashMap<u64, Vec<Need>> {
        let mut all: HashMap<u64, Vec<Need>> = HashMap::new();
        let mut state = node.leases.lock();
        state.for_others(Key::MIXED, |holder| {
            let need = Need::of_lease(holder.key, node, holder.is_told(self));
            all.entry(holder.key.session()).or_default().push(need);
        });
        if matches!(self, Change::All { data: true, .. }) {
            for key in state.take_strays(Key::MIXED) {
                all.entry(key.session()).or_default().push(Need::of_stray(key, node));
            }
            for (key, size) in state.other_openers(Key::MIXED).filter_map(|key| Some((key, size?))) {
                let told =
                    [What::Longer(size), What::Shorter(size)].map(|what| Need::of_opener(key, node, what));
                all.entry(key.session()).or_default().extend(told);
            }
        }
        all
    }
}

/// Whether who was told `told` need not be told `wanted`.
pub(super) fn covers(told: &What, wanted: &What) -> bool {
    match (told, wanted) {
        (What::All { data, open }, What::All { data: d, open: o }) => (*data || !*d) && (*open || !*o),
        (What::All { .. }, _) => true,
        (told, wanted) => told == wanted,
    }
}

/// A lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) key: Key,
    /// The number of the grant in the session: what was held before an operation began has a lower one.
    pub(super) since: u64,
    /// Its place in the session's table.
    pub(super) slot: u32,
    pub(super) exclusive: bool,
    /// Used since the table was last looked over.
    pub(super) used: bool,
    /// All of it is being recalled.
    pub(super) going: bool,
    /// It is being made a shared one.
    pub(super) sharing: bool,
    /// Names that it was told of since it last looked.
    pub(super) told: u8,
}

impl Holder {
    pub(super) fn lease(&self) -> Lease {
        if self.exclusive && !self.sharing { Lease::Exclusive } else { Lease::Shared }
    }

    /// What it is to be told of a change.
    pub(super) fn is_told(&mut self, change: &Change<'_>) -> What {
        if let Change::Name(_) = change {
            self.told = self.told.saturating_add(1);
            if self.told > MOST_TOLD {
                return What::All { data: false, open: false };
            }
        }
        change.what()
    }
}

#[derive(Default)]
#[expect(clippy::box_collection, reason = "every node has one of these, and hardly any has many holders")]
enum Holders {
    #[default]
    None,
    One(Holder),
    Few(Vec<Holder>),
    Many(Box<HashMap<Key, Holder>>),
}

/// The leases on one node, and the operations that are about to break them.
#[derive(Default)]
pub(super) struct State {
    holders: Holders,
    /// Operations that change the node.
    changing: u32,
    /// Operations that need what is exclusive to be shared.
    sharing: u32,
    /// By whom it is being changed, if `changing`.
    by: Option<Key>,
    /// The only holder has an exclusive lease.
    exclusive: bool,
    /// It has ever been changed, or was about to be, since the gateway knows of it.
    changed: bool,
    /// Who was given contents and no lease with them: their kernels have them all the same, and use them for mappings, and for
    /// sendfile(2), without asking. They are told when a change is done.
    #[expect(clippy::box_collection, reason = "every node has one of these, and hardly any has strays")]
    strays: Option<Box<Vec<Key>>>,
    /// Who has the file open, and how often. Their kernels believe the size that they were told last, for mappings and for sendfile(2).
    #[expect(clippy::box_collection, reason = "every node has one of these, and few are open")]
    openers: Option<Box<Vec<(Key, u32)>>>,
}

impl State {
    /// Whether somebody else changes the node.
    pub(super) fn changed_by_others(&self, key: Key) -> bool {
        self.changing > 0 && self.by != Some(key)
    }

    pub(super) fn begin_change(&mut self, key: Key) {
        if self.changing == 0 {
            self.by = Some(key);
        } else if self.by != Some(key) {
            self.by = Some(Key::MIXED);
        }
        self.changing += 1;
        self.changed = true;
    }

    pub(super) fn end_change(&mut self) {
        self.changing = self.changing.saturating_sub(1);
    }

    /// Contents are about to be given to a session that has no lease. Returns all such, if there are so many more than before that it
    /// is worth a look whether they are all there still.
    pub(super) fn add_stray(&mut self, key: Key) -> Option<Vec<Key>> {
        let strays = self.strays.get_or_insert_default();
        if strays.contains(&key) {
            return None;
        }
        strays.push(key);
        (strays.len() >= MANY && strays.len().is_power_of_two()).then(|| (**strays).clone())
    }

    /// Sessions are over; in ascending order.
    pub(super) fn remove_strays(&mut self, gone: &[Key]) {
        if let Some(strays) = &mut self.strays {
            strays.retain(|stray| gone.binary_search(stray).is_err());
        }
    }

    /// Everybody but `key` who was given contents without a lease, to be told of a change that is done. While others change
    /// the node, they tell them as well.
    pub(super) fn take_strays(&mut self, key: Key) -> Vec<Key> {
        let Some(mut strays) = self.strays.take() else { return vec![] };
        let told = strays.iter().copied().filter(|stray| *stray != key).collect();
        if self.changing == 0 {
            strays.retain(|stray| *stray == key);
        }
        self.strays = Some(strays).filter(|strays| !strays.is_empty());
        told
    }

    /// Somebody is about to open the file: before its size is read for the answer.
    pub(super) fn add_opener(&mut self, key: Key) {
        let openers = self.openers.get_or_insert_default();
        match openers.iter_mut().find(|(opener, _)| *opener == key) {
            Some((_, count)) => *count += 1,
            None => openers.push((key, 1)),
        }
    }

    /// The end of [`State::add_opener`].
    pub(super) fn remove_opener(&mut self, key: Key) {
        let Some(openers) = &mut self.openers else { return };
        if let Some(at) = openers.iter().position(|(opener, _)| *opener == key)
            && let Some((_, count)) = openers.get_mut(at)
        {
            *count -= 1;
            if *count == 0 {
                openers.swap_remove(at);
            }
        }
        if openers.is_empty() {
            self.openers = None;
        }
    }

    /// Everybody but `key` who has the file open.
    pub(super) fn other_openers(&self, key: Key) -> impl Iterator<Item = Key> {
        let openers = self.openers.iter().flat_map(|openers| openers.iter());
        openers.map(|(opener, _)| *opener).filter(move |opener| *opener != key)
    }

    pub(super) fn begin_sharing(&mut self) {
        self.sharing += 1;
    }

    pub(super) fn end_sharing(&mut self) {
        self.sharing = self.sharing.saturating_sub(1);
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Holder> {
        match &mut self.holders {
            Holders::None => None,
            Holders::One(one) => Some(one).filter(|one| one.key == key),
            Holders::Few(few) => few.iter_mut().find(|holder| holder.key == key),
            Holders::Many(many) => many.get_mut(&key),
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.holders {
            Holders::None => 0,
            Holders::One(_) => 1,
            Holders::Few(few) => few.len(),
            Holders::Many(many) => many.len(),
        }
    }

    /// The holder of an exclusive lease, if it is not `key`.
    pub(super) fn exclusive_other(&mut self, key: Key) -> Option<&mut Holder> {
        if !self.exclusive {
            return None;
        }
        match &mut self.holders {
            Holders::One(one) => Some(one).filter(|one| one.key != key),
            _ => None,
        }
    }

    /// Whether a lease could be exclusive now, for its only holder or the first.
    pub(super) fn may_be_exclusive(&mut self, key: Key, wish: Wish) -> bool {
        let wanted = match wish {
            Wish::Touch | Wish::Read => false,
            Wish::Write => self.other_openers(key).next().is_none(),
            Wish::Lock => true,
        };
        let alone = self.len() == 0 || (self.len() == 1 && self.get(key).is_some());
        wanted && alone && self.sharing == 0 && !self.changed_by_others(key)
    }

    /// Whether the client of this holder may answer for the locks of the file: nobody else holds anything, or is about to.
    pub(super) fn may_keep_locks(&mut self, key: Key) -> bool {
        let alone = self.exclusive && self.sharing == 0 && !self.changed_by_others(key);
        alone && self.get(key).is_some_and(|holder| !holder.going && !holder.sharing)
    }

    /// Makes the only lease exclusive, which is a new one of this number. `false`: it is being recalled, or not the only one.
    pub(super) fn make_exclusive(&mut self, since: u64) -> bool {
        match &mut self.holders {
            Holders::One(one) if !one.going && !one.sharing => {
                (one.exclusive, one.since) = (true, since);
                self.exclusive = true;
                true
            }
            _ => false,
        }
    }

    /// Makes an exclusive lease shared. `false`: it is not being recalled, or another one.
    pub(super) fn make_shared(&mut self, key: Key, since: u64) -> bool {
        let Some(holder) = self.get(key).filter(|holder| holder.sharing && holder.since == since) else {
            return false;
        };
        (holder.sharing, holder.exclusive) = (false, false);
        self.exclusive = false;
        true
    }

    /// Adds a holder that is not there yet.
    pub(super) fn add(&mut self, holder: Holder) {
        self.exclusive = false;
        self.holders = match std::mem::take(&mut self.holders) {
            Holders::None => Holders::One(holder),
            Holders::One(one) => Holders::Few(vec![one, holder]),
            Holders::Few(mut few) if few.len() < MANY => {
                few.push(holder);
                Holders::Few(few)
            }
            Holders::Few(few) => Holders::Many(Box::new(
                few.into_iter().chain([holder]).map(|holder| (holder.key, holder)).collect(),
            )),
            Holders::Many(mut many) => {
                many.insert(holder.key, holder);
                Holders::Many(many)
            }
        };
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Holder> {
        let (left, removed) = match std::mem::take(&mut self.holders) {
            Holders::None => (Holders::None, None),
            Holders::One(one) if one.key == key => {
                self.exclusive = false;
                (Holders::None, Some(one))
            }
            Holders::One(one) => (Holders::One(one), None),
            Holders::Few(mut few) => {
                let at = few.iter().position(|holder| holder.key == key);
                let removed = at.map(|at| few.swap_remove(at));
                match (few.len(), few.first()) {
                    (1, Some(last)) => (Holders::One(*last), removed),
                    _ => (Holders::Few(few), removed),
                }
            }
            Holders::Many(mut many) => {
                let removed = many.remove(&key);
                if many.len() <= MANY / 2 {
                    (Holders::Few(many.into_values().collect()), removed)
                } else {
                    (Holders::Many(many), removed)
                }
            }
        };
        self.holders = left;
        removed
    }

    /// Everybody but `key`.
    pub(super) fn for_others(&mut self, key: Key, act: impl FnMut(&mut Holder)) {
        match &mut self.holders {
            Holders::None => {}
            Holders::One(one) => Some(one).into_iter().filter(|one| one.key != key).for_each(act),
            Holders::Few(few) => few.iter_mut().filter(|holder| holder.key != key).for_each(act),
            Holders::Many(many) => {
                many.values_mut().filter(|holder| holder.key != key).for_each(act);
            }
        }
    }
}

/// The leases on one node.
#[derive(Default)]
pub(crate) struct NodeLeases(Mutex<State>);

impl NodeLeases {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Whether nothing of it was changed through the gateway since the gateway knows of it.
    pub(crate) fn is_pristine(&self) -> bool {
        !self.0.lock().changed
    }

    /// Notes that a session has the file open, until [`NodeLeases::closed`].
    pub(crate) fn opened(&self, key: Key) {
        self.0.lock().add_opener(key);
    }

    /// The end of [`NodeLeases::opened`].
    pub(crate) fn closed(&self, key: Key) {
        self.0.lock().remove_opener(key);
    }

    /// Whether anybody but `key` holds a lease.
    pub(crate) fn has_others(&self, key: Key) -> bool {
        let mut state = self.0.lock();
        let own = usize::from(state.get(key).is_some());
        state.len() > own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(session: u64) -> Holder {
        Holder {
            key: Key::new(session, 3),
            since: 0,
            slot: 0,
            exclusive: false,
            used: false,
            going: false,
            sharing: false,
            told: 0,
        }
    }

    #[test]
    fn holders_come_and_go_in_any_number() {
        let mut state = State::default();
        for round in 0..2 {
            for n in 1..=100 {
                state.add(holder(n));
                assert_eq!(state.len(), n as usize);
                assert!(state.get(Key::new(n, 3)).is_some() && state.get(Key::new(n, 2)).is_none());
            }
            for n in 1..=100 {
                let key = Key::new(if round == 0 { n } else { 101 - n }, 3);
                let mut others = 0;
                state.for_others(key, |_| others += 1);
                assert_eq!(others, 100 - n);
                assert_eq!(state.remove(key).map(|holder| holder.key), Some(key));
                assert!(state.remove(key).is_none());
            }
            assert_eq!(state.len(), 0);
        }
    }

    #[test]
    fn an_exclusive_lease_has_no_company() {
        let (mine, theirs) = (Key::new(1, 3), Key::new(2, 3));
        let mut state = State::default();
        assert!(state.may_be_exclusive(mine, Wish::Write));
        state.add(holder(1));
        assert!(state.make_exclusive(7));
        assert!(state.exclusive_other(theirs).is_some() && state.exclusive_other(mine).is_none());
        state.get(mine).unwrap().sharing = true;
        assert_eq!(state.get(mine).unwrap().lease(), Lease::Shared);
        assert!(!state.make_exclusive(8), "it is being recalled");
        assert!(!state.make_shared(mine, 6));
        assert!(state.exclusive_other(theirs).is_some(), "that was another one");
        assert!(state.make_shared(mine, 7));
        assert!(state.exclusive_other(theirs).is_none());
        state.begin_sharing();
        assert!(!state.may_be_exclusive(mine, Wish::Write));
        state.end_sharing();
        assert!(state.may_be_exclusive(mine, Wish::Write));
        state.begin_change(theirs);
        assert!(!state.may_be_exclusive(mine, Wish::Write));
        state.begin_change(mine);
        state.end_change();
        assert!(state.changed_by_others(mine) && state.changed_by_others(theirs), "not known whose is left");
        state.end_change();
        assert!(state.may_be_exclusive(mine, Wish::Write));
        state.add(holder(2));
        assert!(!state.may_be_exclusive(mine, Wish::Write));
    }

    #[test]
    fn a_recall_covers_what_is_weaker() {
        let all = |data, open| What::All { data, open };
        let name = |text: &[u8]| What::Name(Name::new(text).unwrap());
        assert!(covers(&all(true, true), &all(false, true)) && !covers(&all(false, true), &all(true, true)));
        assert!(covers(&all(false, false), &name(b"a")) && covers(&all(false, false), &What::Shared));
        assert!(covers(&name(b"a"), &name(b"a")) && !covers(&name(b"a"), &name(b"b")));
        assert!(!covers(&What::Shared, &all(false, false)));
    }

    #[test]
    fn who_never_looks_is_told_of_names_only_so_often() {
        let mut holder = holder(1);
        for _ in 0..MOST_TOLD {
            assert!(matches!(holder.is_told(&Change::Name(b"a")), What::Name(_)));
        }
        assert_eq!(holder.is_told(&Change::Name(b"a")), What::All { data: false, open: false });
    }

    #[test]
    fn who_has_contents_without_a_lease_is_told_by_every_change_under_way() {
        let [mine, theirs, third] = [1, 2, 3].map(|session| Key::new(session, 3));
        let mut state = State::default();
        assert!(state.take_strays(mine).is_empty());
        state.begin_change(mine);
        state.begin_change(theirs);
        state.add_stray(third);
        state.add_stray(third);
        state.add_stray(mine);
        state.end_change();
        assert_eq!(state.take_strays(mine), [third]);
        state.end_change();
        assert_eq!(
            state.take_strays(theirs),
            [third, mine],
            "what it was told before may have been read again"
        );
        assert!(state.take_strays(theirs).is_empty() && state.take_strays(mine).is_empty());
        // A change of one's own leaves what others must tell.
        state.add_stray(mine);
        assert!(state.take_strays(mine).is_empty());
        assert_eq!(state.take_strays(theirs), [mine]);
        assert!(state.strays.is_none(), "no room is taken by what is over");
    }

    #[test]
    fn who_has_a_file_open_is_known_until_the_last_handle_is_closed() {
        let [mine, theirs] = [1, 2].map(|session| Key::new(session, 3));
        let mut state = State::default();
        [mine, theirs, theirs].into_iter().for_each(|key| state.add_opener(key));
        assert_eq!(state.other_openers(mine).collect::<Vec<_>>(), [theirs]);
        state.remove_opener(theirs);
        state.remove_opener(mine);
        assert_eq!(state.other_openers(mine).collect::<Vec<_>>(), [theirs]);
        assert_eq!(state.other_openers(theirs).count(), 0);
        state.remove_opener(theirs);
        state.remove_opener(theirs);
        assert!(state.openers.is_none(), "no room is taken by what is over");
    }

    #[test]
    fn strays_that_are_gone_are_looked_for_now_and_then() {
        let mut state = State::default();
        let mut looks = 0;
        for session in 1..=10_000 {
            if let Some(all) = state.add_stray(Key::new(session, 0)) {
                looks += 1;
                state.remove_strays(&all[..all.len() - 1]);
            }
        }
        assert!(looks > 100);
        assert!(state.take_strays(Key::MIXED).len() <= MANY);
    }

    #[test]
    fn a_lease_takes_few_bytes() {
        // Stated in docs/performance.md.
        assert_eq!(size_of::<Holder>(), 32);
        assert_eq!(size_of::<NodeLeases>(), 88);
    }
}
