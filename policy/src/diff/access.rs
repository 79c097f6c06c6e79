//! Differences at paths: rights, and the limits of grants.

use std::collections::{BTreeMap, BTreeSet};

use strongroom_contracts::{DataPath, Ownership, Right, Rights};

use super::{Change, Direction, Verb};
use crate::policy::PolicyGrant;
use crate::units::{show_duration, show_size};

/// Rights with which a subtree can grow.
const GROWING: [Right; 3] = [Right::Create, Right::Append, Right::Write];
/// Rights with which what was there can be harmed.
const HARMING: [Right; 5] = [Right::Create, Right::Append, Right::Write, Right::Delete, Right::Attr];

pub(super) fn compare(base: &Change, old: &[&PolicyGrant], new: &[&PolicyGrant], out: &mut Vec<Change>) {
    let points: BTreeSet<&DataPath> = old.iter().chain(new).map(|one| &one.grant.data).collect();
    let points = Points(points.into_iter().collect());
    rights(base, &points, old, new, out);
    limits(base, &points, old, new, out);
    views(base, &points, old, new, out);
}

/// The paths at which grants begin.
struct Points<'a>(Vec<&'a DataPath>);

impl<'a> Points<'a> {
    /// The deepest point above `path`.
    fn parent(&self, path: &DataPath) -> Option<&'a DataPath> {
        let above = self.0.iter().filter(|point| **point != path && point.contains(path));
        above.max_by_key(|point| point.as_str().len()).copied()
    }
}

fn over<'a>(grants: &[&'a PolicyGrant], path: &DataPath) -> Vec<&'a PolicyGrant> {
    grants.iter().filter(|one| one.grant.data.contains(path)).copied().collect()
}

fn rights_at(grants: &[&PolicyGrant], path: &DataPath) -> Rights {
    over(grants, path).iter().flat_map(|one| one.grant.rights.iter()).collect()
}

fn rights(
    base: &Change,
    points: &Points<'_>,
    old: &[&PolicyGrant],
    new: &[&PolicyGrant],
    out: &mut Vec<Change>,
) {
    for (verb, direction, before, after) in
        [(Verb::Gains, Direction::Wider, old, new), (Verb::Loses, Direction::Narrower, new, old)]
    {
        let differ = |path: &DataPath| rights_at(after, path).without(rights_at(before, path));
        let differ_above = |path: &DataPath| points.parent(path).map_or(Rights::NONE, differ);
        for point in &points.0 {
            // Rights whose difference begins here; grouped by where it ends again further down.
            let begins = differ(point).without(differ_above(point));
            let mut groups: BTreeMap<Vec<String>, Vec<Right>> = BTreeMap::new();
            for right in begins.iter() {
                groups.entry(except(points, point, |path| differ(path).has(right))).or_default().push(right);
            }
            for (except, rights) in groups {
                let giving = over(after, point);
                let giving =
                    giving.iter().find(|one| rights.iter().any(|right| one.grant.rights.has(*right)));
                let place = match verb {
                    Verb::Gains => giving.map(|one| {
                        rights.iter().find_map(|right| one.right_places.get(right)).unwrap_or(&one.place)
                    }),
                    // What takes a right away is the new policy's line for the path, if there is one.
                    _ => over(before, point)
                        .last()
                        .copied()
                        .or(giving.copied())
                        .map(|one| one.key_place("rights")),
                };
                out.push(Change {
                    verb,
                    direction,
                    rights: rights.iter().map(|right| right.name()).collect(),
                    path: Some(point.to_string()),
                    except,
                    place: place.cloned(),
                    ..base.clone()
                });
            }
        }
    }
}

/// The topmost points below `from` at which the difference does not hold.
fn except(points: &Points<'_>, from: &DataPath, differs: impl Fn(&DataPath) -> bool) -> Vec<String> {
    let below = |path: &&&DataPath| **path != from && from.contains(path);
    let ends = |path: &&&DataPath| {
        !differs(path)
            && std::iter::successors(points.parent(path), |above| points.parent(above))
                .take_while(|above| from.contains(above))
                .all(&differs)
    };
    points.0.iter().filter(below).filter(ends).map(|path| path.to_string()).collect()
}

/// A count over a subtree: the amount and the subtree; `None` is no limit.
type Counted = Option<(u64, DataPath)>;

fn limits(
    base: &Change,
    points: &Points<'_>,
    old: &[&PolicyGrant],
    new: &[&PolicyGrant],
    out: &mut Vec<Change>,
) {
    let sides = Sides { base, points, old, new };
    type Read = fn(&PolicyGrant) -> Option<u64>;
    type Show = fn(u64) -> String;
    let counted: [(&'static str, Read, Show); 2] = [
        ("quota", |one| one.grant.quota_bytes, show_size),
        ("files", |one| one.grant.quota_files, |files| files.to_string()),
    ];
    for (setting, read, show) in counted {
        sides.compare(
            setting,
            out,
            Facet {
                read: &|grants, path| {
                    let limit = |one: &PolicyGrant| read(one).map(|amount| (amount, one.grant.data.clone()));
                    with_any(grants, path, &GROWING).map(limit).reduce(looser)
                },
                wider: &|from: &Counted, to: &Counted| looser(from.clone(), to.clone()) == *to,
                show: &|limit: &Counted| match limit {
                    None => "unlimited".to_owned(),
                    Some((amount, scope)) => format!("{} for all of {scope}", show(*amount)),
                },
            },
        );
    }
    let unlimited = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    sides.compare(
        "max-file",
        out,
        Facet {
            read: &|grants, path| {
                with_any(grants, path, &GROWING)
                    .map(|one| one.grant.max_file_bytes)
                    .max_by_key(|max| unlimited(*max))
            },
            wider: &|from: &Option<u64>, to: &Option<u64>| unlimited(*to) > unlimited(*from),
            show: &|limit: &Option<u64>| limit.map_or("unlimited".to_owned(), show_size),
        },
    );
    // The shorter the window, the more can be done that is never taken back.
    sides.compare(
        "undo",
        out,
        Facet {
            read: &|grants, path| with_any(grants, path, &HARMING).map(|one| one.grant.undo_secs).min(),
            wider: &|from: &u64, to: &u64| to < from,
            show: &|secs: &u64| if *secs == 0 { "none".to_owned() } else { show_duration(*secs) },
        },
    );
    sides.compare(
        "ownership",
        out,
        Facet {
            read: &|grants, path| {
                let found: BTreeSet<&'static str> =
                    over(grants, path).iter().map(|one| one.grant.ownership.name()).collect();
                (!found.is_empty()).then_some(found)
            },
            // Under `preserve` the guest chooses whose the files are.
            wider: &|from: &BTreeSet<&'static str>, to: &BTreeSet<&'static str>| {
                let preserve = Ownership::Preserve.name();
                to.contains(preserve) && !from.contains(preserve)
            },
            show: &|found: &BTreeSet<&'static str>| found.iter().copied().collect::<Vec<_>>().join(" and "),
        },
    );
}

/// The looser of two limits; of equal amounts the one over the smaller subtree, because more such subtrees fit.
fn looser(a: Counted, b: Counted) -> Counted {
    let (Some(one), Some(other)) = (&a, &b) else { return None };
    let key = |limit: &(u64, DataPath)| (limit.0, limit.1.as_str().len());
    if key(one) >= key(other) { a } else { b }
}

fn with_any<'a>(
    grants: &[&'a PolicyGrant],
    path: &DataPath,
    rights: &[Right],
) -> impl Iterator<Item = &'a PolicyGrant> {
    over(grants, path).into_iter().filter(|one| rights.iter().any(|right| one.grant.rights.has(*right)))
}

/// One thing that holds at a path, how to compare it and how to show it.
struct Facet<'f, V> {
    /// What holds at a path; nothing if the matter does not arise there.
    read: &'f dyn Fn(&[&PolicyGrant], &DataPath) -> Option<V>,
    /// Whether the second lets the application do more than the first.
    wider: &'f dyn Fn(&V, &V) -> bool,
    show: &'f dyn Fn(&V) -> String,
}

struct Sides<'a> {
    base: &'a Change,
    points: &'a Points<'a>,
    old: &'a [&'a PolicyGrant],
    new: &'a [&'a PolicyGrant],
}

impl Sides<'_> {
    /// Reports the points at which a facet differs, unless the same difference holds already above.
    fn compare<V: PartialEq>(&self, setting: &'static str, out: &mut Vec<Change>, facet: Facet<'_, V>) {
        let values = |path: &DataPath| Some(((facet.read)(self.old, path)?, (facet.read)(self.new, path)?));
        for point in &self.points.0 {
            let Some(here) = values(point) else { continue };
            if here.0 == here.1
                || self.points.parent(point).and_then(values).is_some_and(|above| above == here)
            {
                continue;
            }
            let (from, to) = here;
            let (verb, direction) = if (facet.wider)(&from, &to) {
                (Verb::Raises, Direction::Wider)
            } else {
                (Verb::Lowers, Direction::Narrower)
            };
            let worded = !matches!(setting, "undo" | "ownership");
            let giving = over(self.new, point);
            let line = giving.iter().find_map(|one| one.key_places.get(setting));
            out.push(Change {
                verb: if worded { verb } else { Verb::Changes },
                direction,
                setting: Some(setting),
                path: Some(point.to_string()),
                from: Some((facet.show)(&from)),
                to: Some((facet.show)(&to)),
                place: line.or(giving.first().map(|one| &one.place)).cloned(),
                ..self.base.clone()
            });
        }
    }
}

/// Where data appears in the mount: the same rights under another name.
fn views(
    base: &Change,
    points: &Points<'_>,
    old: &[&PolicyGrant],
    new: &[&PolicyGrant],
    out: &mut Vec<Change>,
) {
    let seen = |grants: &[&PolicyGrant], path: &DataPath, tail: &str| -> BTreeSet<String> {
        let views = over(grants, path).into_iter().map(|one| {
            let below = path.as_str().strip_prefix(one.grant.data.as_str()).unwrap_or_default();
            format!("{}{below}{tail}", one.grant.mount)
        });
        views.collect()
    };
    for point in &points.0 {
        let (from, to) = (seen(old, point, ""), seen(new, point, ""));
        if from == to || from.is_empty() || to.is_empty() {
            continue;
        }
        let same_above = points.parent(point).is_some_and(|above| {
            let tail = point.as_str().strip_prefix(above.as_str()).unwrap_or_default();
            seen(old, above, tail) == from && seen(new, above, tail) == to
        });
        if !same_above {
            let words = |views: BTreeSet<String>| views.into_iter().collect::<Vec<_>>().join(" and ");
            out.push(Change {
                setting: Some("mount"),
                path: Some(point.to_string()),
                from: Some(words(from)),
                to: Some(words(to)),
                place: over(new, point).first().map(|one| one.key_place("mount").clone()),
                ..base.clone()
            });
        }
    }
}
