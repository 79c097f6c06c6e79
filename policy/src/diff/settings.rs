//! Differences in what holds for the whole contract: life, limits, networks, audit, guest, recovery.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use strongroom_contracts::armour::rfc3339;
use strongroom_contracts::{Audit, Detection, Network, OnVerdict, UndoFull};

use super::{Change, Direction, Verb};
use crate::place::{Place, Setting};
use crate::policy::Policy;
use crate::recovery::{Recovery, Step, Trigger};
use crate::units::{show_duration, show_size};

pub(super) fn compare(base: &Change, old: &Policy, new: &Policy, out: &mut Vec<Change>) {
    let lifetime = |policy: &Policy| Some(policy.lifetime_secs.value);
    amount(
        base,
        "lifetime",
        lifetime(old),
        lifetime(new),
        show_duration,
        new.lifetime_secs.place.as_ref(),
        out,
    );
    let until = |policy: &Policy| policy.until_secs.as_ref().map(|until| until.value);
    let place = new.until_secs.as_ref().and_then(|until| until.place.as_ref());
    amount(base, "until", until(old), until(new), rfc3339, place, out);
    limits(base, old, new, out);
    networks(base, old, new, out);
    if old.audit.value != new.audit.value {
        let wider = new.audit.value == Audit::Normal;
        let direction = if wider { Direction::Wider } else { Direction::Narrower };
        let (from, to) = (old.audit.value.name(), new.audit.value.name());
        out.push(changes(base, "audit", direction, &from, &to, new.audit.place.as_ref()));
    }
    if old.detection.value != new.detection.value {
        let (a, b) = (old.detection.value, new.detection.value);
        // Less is noticed, or later.
        let rank = |detection: Detection| match detection.verdict {
            OnVerdict::Off => 0,
            OnVerdict::Alert => 1,
            OnVerdict::Fence => 2,
        };
        let wider = rank(b) < rank(a)
            || b.burst > a.burst
            || b.slow > a.slow
            || b.removed > a.removed
            || b.churn.unwrap_or(u32::MAX) > a.churn.unwrap_or(u32::MAX)
            || b.denied > a.denied
            || b.decoys < a.decoys;
        let direction = if wider { Direction::Wider } else { Direction::Narrower };
        let words = |detection: Detection| {
            format!(
                "{} at {} a minute, {} in hours, {} removed, {} changed a minute, {} denied; {} decoys",
                detection.verdict.name(),
                detection.burst,
                detection.slow,
                detection.removed,
                detection.churn.map_or_else(|| "any number".to_owned(), |churn| churn.to_string()),
                detection.denied,
                detection.decoys
            )
        };
        out.push(changes(base, "detection", direction, &words(a), &words(b), new.detection.place.as_ref()));
    }
    let undo_space = |policy: &Policy| policy.undo_space.as_ref().map(|space| space.value);
    if undo_space(old) != undo_space(new) {
        // Less room: less can be taken back, or the application is fenced sooner. The gateway's bound is not known here.
        let wider = match (undo_space(old), undo_space(new)) {
            (Some(from), Some(to)) => to < from,
            (None, Some(_)) => true,
            _ => false,
        };
        let direction = if wider { Direction::Wider } else { Direction::Narrower };
        let words = |space: Option<u64>| space.map_or("the gateway's bound".to_owned(), show_size);
        let place = new.undo_space.as_ref().and_then(|space| space.place.as_ref());
        let (from, to) = (words(undo_space(old)), words(undo_space(new)));
        out.push(changes(base, "undo-space", direction, &from, &to, place));
    }
    if old.undo_full.value != new.undo_full.value {
        let wider = new.undo_full.value == UndoFull::Forget;
        let direction = if wider { Direction::Wider } else { Direction::Narrower };
        let (from, to) = (old.undo_full.value.name(), new.undo_full.value.name());
        out.push(changes(base, "undo-full", direction, &from, &to, new.undo_full.place.as_ref()));
    }
    let guest =
        |policy: &Policy| policy.guest.as_ref().map_or("none".to_owned(), |guest| guest.value.clone());
    if guest(old) != guest(new) {
        let place = new.guest.as_ref().and_then(|guest| guest.place.as_ref());
        out.push(changes(base, "guest", Direction::Sideways, &guest(old), &guest(new), place));
    }
    recovery(base, old, new, out);
}

fn changes(
    base: &Change,
    setting: &'static str,
    direction: Direction,
    from: &dyn Display,
    to: &dyn Display,
    place: Option<&Place>,
) -> Change {
    Change {
        direction,
        setting: Some(setting),
        from: Some(from.to_string()),
        to: Some(to.to_string()),
        place: place.cloned(),
        ..base.clone()
    }
}

/// Compares amounts of which more is wider and `None` is without limit.
fn amount(
    base: &Change,
    setting: &'static str,
    from: Option<u64>,
    to: Option<u64>,
    show: impl Fn(u64) -> String,
    place: Option<&Place>,
    out: &mut Vec<Change>,
) {
    if from == to {
        return;
    }
    let (verb, direction) = match (from, to) {
        (Some(from), Some(to)) if to < from => (Verb::Lowers, Direction::Narrower),
        (None, Some(_)) => (Verb::Lowers, Direction::Narrower),
        _ => (Verb::Raises, Direction::Wider),
    };
    let words = |value: Option<u64>| value.map_or("unlimited".to_owned(), &show);
    out.push(Change { verb, ..changes(base, setting, direction, &words(from), &words(to), place) });
}

fn limits(base: &Change, old: &Policy, new: &Policy, out: &mut Vec<Change>) {
    let bytes = |rate: u64| format!("{}/s", show_size(rate));
    let per_second = |rate: u64| format!("{rate}/s");
    let plain = |count: u64| count.to_string();
    let place = |key: &str| new.limit_places.get(key);
    let (from, to) = (&old.limits, &new.limits);
    amount(base, "read-rate", from.read_rate, to.read_rate, bytes, place("read-rate"), out);
    amount(base, "write-rate", from.write_rate, to.write_rate, bytes, place("write-rate"), out);
    amount(base, "op-rate", from.op_rate, to.op_rate, per_second, place("op-rate"), out);
    let wide = |count: Option<u32>| count.map(u64::from);
    amount(base, "in-flight", wide(from.in_flight), wide(to.in_flight), plain, place("in-flight"), out);
    let key = "open-handles";
    amount(base, key, wide(from.open_handles), wide(to.open_handles), plain, place(key), out);
}

fn networks(base: &Change, old: &Policy, new: &Policy, out: &mut Vec<Change>) {
    let list = |policy: &Policy| policy.networks.as_ref().map(|networks| networks.value.clone());
    let (from, to) = (list(old), list(new));
    let (from_set, to_set) = (from.as_deref().map(addresses), to.as_deref().map(addresses));
    if from_set == to_set {
        return;
    }
    let narrower = match (&from_set, &to_set) {
        (None, _) => true,
        (_, None) => false,
        (Some(from), Some(to)) => {
            to.iter().all(|one| from.iter().any(|other| other.0 <= one.0 && one.1 <= other.1))
        }
    };
    let direction = if narrower { Direction::Narrower } else { Direction::Wider };
    let words = |list: Option<Vec<Network>>| {
        list.map_or("any address".to_owned(), |list| {
            list.iter().map(Network::to_string).collect::<Vec<_>>().join(", ")
        })
    };
    let place = new.networks.as_ref().and_then(|networks| networks.place.as_ref());
    out.push(changes(base, "networks", direction, &words(from), &words(to), place));
}

/// The addresses of networks as ranges, family first, joined where they touch: equal sets are equal lists.
fn addresses(networks: &[Network]) -> Vec<((bool, u128), (bool, u128))> {
    let mut ranges: Vec<_> = networks
        .iter()
        .map(|network| {
            let (v6, first, width) = match network.address() {
                IpAddr::V4(v4) => (false, u128::from(u32::from(v4)), 32),
                IpAddr::V6(v6) => (true, u128::from(v6), 128),
            };
            let host_bits = u32::from(network.prefix().abs_diff(width));
            let hosts = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
            ((v6, first), (v6, first | hosts))
        })
        .collect();
    ranges.sort();
    let mut joined: Vec<((bool, u128), (bool, u128))> = vec![];
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if before.1.0 == first.0 && first.1 <= before.1.1.saturating_add(1) => {
                before.1 = before.1.max(last);
            }
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn recovery(base: &Change, old: &Policy, new: &Policy, out: &mut Vec<Change>) {
    let triggers = |recovery: &Option<Recovery>| -> BTreeSet<Trigger> {
        recovery.iter().flat_map(|recovery| &recovery.on).map(|on| on.value).collect()
    };
    let steps = |recovery: &Option<Recovery>| -> Vec<Step> {
        recovery.iter().flat_map(|recovery| &recovery.steps).map(|step: &Setting<Step>| step.value).collect()
    };
    let place = new.recovery.as_ref().map(|recovery| &recovery.place);
    let (from, to) = (triggers(&old.recovery), triggers(&new.recovery));
    if from != to {
        // Fewer alerts leave an attacked application alone for longer.
        let direction = if from.is_subset(&to) { Direction::Narrower } else { Direction::Wider };
        out.push(changes(base, "recovery on", direction, &list(&from), &list(&to), place));
    }
    let (from, to) = (steps(&old.recovery), steps(&new.recovery));
    if from != to {
        let direction = if from.iter().all(|step| to.contains(step)) {
            Direction::Sideways
        } else {
            // A step less, or another reach of undo: less is taken back or cut than before.
            Direction::Wider
        };
        out.push(changes(base, "recovery steps", direction, &list(&from), &list(&to), place));
    }
    let (from, to) = (addresses_of(&old.recovery), addresses_of(&new.recovery));
    if from != to {
        let direction = Direction::Sideways;
        out.push(changes(base, "recovery addresses", direction, &list(&from), &list(&to), place));
    }
}

fn addresses_of(recovery: &Option<Recovery>) -> Vec<Network> {
    recovery.iter().flat_map(|recovery| &recovery.addresses).map(|one| one.value).collect()
}

fn list<'a, T: Display + 'a>(items: impl IntoIterator<Item = &'a T>) -> String {
    let words: Vec<_> = items.into_iter().map(T::to_string).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
