//! `diff OLD NEW`: the difference in effective capabilities, never of text.
//!
//! What an application may do at a path is the union over all grants that hold the path. Both policies are compared at
//! every path at which either begins a grant; between those paths nothing can change.

mod access;
mod settings;

use std::fmt;

use serde::Serialize;
use strongroom_contracts::Application;

use crate::place::Place;
use crate::policy::{Policy, PolicyGrant};
use crate::set::PolicySet;

/// Whether a change lets the application do more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// It may do more, or less of what it does can be seen or taken back.
    Wider,
    /// It may do less.
    Narrower,
    /// Neither: the same is permitted in another way.
    Sideways,
}

/// What happens to a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// The application has a policy now.
    Appears,
    /// The application has no policy any more.
    Disappears,
    /// Rights are added.
    Gains,
    /// Rights are taken away.
    Loses,
    /// A limit is looser.
    Raises,
    /// A limit is tighter.
    Lowers,
    /// A setting is different.
    Changes,
}

/// One difference between two policies of an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Whose capabilities.
    pub application: String,
    /// Whether it lets the application do more.
    pub direction: Direction,
    /// What happens.
    pub verb: Verb,
    /// The rights gained or lost.
    pub rights: Vec<&'static str>,
    /// The setting that is different, by its key in the policy.
    pub setting: Option<&'static str>,
    /// The subtree concerned, from the data root.
    pub path: Option<String>,
    /// Subtrees of it that are not concerned.
    pub except: Vec<String>,
    /// The setting before.
    pub from: Option<String>,
    /// The setting after.
    pub to: Option<String>,
    /// The line that says so: of the new policy if it has one, otherwise of the old.
    pub place: Option<Place>,
}

/// What changes in effective capabilities from `old` to `new`; empty if they permit the same.
///
/// An application whose new file has mistakes is left out: its last good version stays in force.
pub fn diff(old: &PolicySet, new: &PolicySet) -> Vec<Change> {
    let disabled = new.disabled();
    let mut names: Vec<&Application> = old.policies().keys().chain(new.policies().keys()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| !disabled.contains(name));
    names.into_iter().flat_map(|name| one(name, old.get(name), new.get(name))).collect()
}

fn one(name: &Application, old: Option<&Policy>, new: Option<&Policy>) -> Vec<Change> {
    let base = Change {
        application: name.to_string(),
        direction: Direction::Sideways,
        verb: Verb::Changes,
        rights: vec![],
        setting: None,
        path: None,
        except: vec![],
        from: None,
        to: None,
        place: None,
    };
    let mut changes = vec![];
    match (old, new) {
        (None, Some(new)) => changes.push(Change {
            verb: Verb::Appears,
            direction: Direction::Wider,
            place: Some(new.place.clone()),
            ..base.clone()
        }),
        (Some(old), None) => changes.push(Change {
            verb: Verb::Disappears,
            direction: Direction::Narrower,
            place: Some(old.place.clone()),
            ..base.clone()
        }),
        _ => {}
    }
    access::compare(&base, &grants(old), &grants(new), &mut changes);
    if let (Some(old), Some(new)) = (old, new) {
        settings::compare(&base, old, new, &mut changes);
    }
    changes
}

fn grants(policy: Option<&Policy>) -> Vec<&PolicyGrant> {
    policy.map_or(vec![], |policy| policy.grants.iter().collect())
}

impl Verb {
    /// The word in output.
    pub const fn name(self) -> &'static str {
        match self {
            Verb::Appears => "APPEARS",
            Verb::Disappears => "DISAPPEARS",
            Verb::Gains => "GAINS",
            Verb::Loses => "LOSES",
            Verb::Raises => "RAISES",
            Verb::Lowers => "LOWERS",
            Verb::Changes => "CHANGES",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.application, self.verb.name())?;
        for right in &self.rights {
            write!(f, " {right}")?;
        }
        if let Some(setting) = self.setting {
            write!(f, " {setting}")?;
        }
        if let Some(path) = &self.path {
            write!(f, " on {path}")?;
        }
        if !self.except.is_empty() {
            write!(f, " except {}", self.except.join(", "))?;
        }
        if let (Some(from), Some(to)) = (&self.from, &self.to) {
            write!(f, " from {from} to {to}")?;
        }
        Ok(())
    }
}
