//! `explain APP PATH`: which line of which file allows or denies each right.

use std::fmt;

use serde::Serialize;
use strongroom_contracts::{Application, DataPath, Right};

use crate::place::Place;
use crate::policy::{Policy, PolicyGrant};
use crate::set::PolicySet;
use crate::suggest::closest;
use crate::units::{show_duration, show_size};

/// What an application may do at a path, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The application.
    pub application: String,
    /// The path, from the data root.
    pub path: String,
    /// The policy file.
    pub file: String,
    /// Where the application sees the path; empty if no grant covers it.
    pub views: Vec<View>,
    /// One answer for each of the seven rights.
    pub rights: Vec<RightAnswer>,
    /// Limits that hold there.
    pub limits: Vec<LimitLine>,
    /// Grants that lie below the path.
    pub below: Vec<View>,
}

/// A place in the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// The data path.
    pub path: String,
    /// The path in the mount.
    pub mount: String,
    /// The `[[grant]]` line.
    pub place: Place,
}

/// Whether one right is allowed, and which lines say so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RightAnswer {
    /// The right.
    pub right: &'static str,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The lines that allow it; if it is denied, those that would have to change.
    pub places: Vec<Place>,
    /// The reason in words.
    pub why: String,
}

/// One limit in force at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitLine {
    /// The key of the policy (`quota`, `undo`, ...).
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// The subtree for which it holds.
    pub path: String,
    /// Its line; `None`: the default.
    pub place: Option<Place>,
}

/// There is no policy for the application.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPolicy {
    /// No file names it.
    #[error("no policy file is for `{application}`{}", meant.as_ref().map(|one| format!("; did you mean `{one}`?")).unwrap_or_default())]
    Unknown {
        /// The application asked for.
        application: Application,
        /// A similar name that has a policy.
        meant: Option<Application>,
    },
    /// Its file has mistakes.
    #[error("the policy of `{application}` is disabled by {errors} mistake(s), the first at {first}")]
    Disabled {
        /// The application asked for.
        application: Application,
        /// How many mistakes.
        errors: usize,
        /// Where the first is.
        first: Place,
    },
}

impl PolicySet {
    /// The policy of an application, or why there is none.
    ///
    /// # Errors
    /// [`NoPolicy`] if no file is for it, or if its file has mistakes.
    pub fn require(&self, application: &Application) -> Result<&Policy, NoPolicy> {
        if let Some(policy) = self.get(application) {
            return Ok(policy);
        }
        let mut errors = self.errors_of(application);
        if let Some(first) = errors.next() {
            let first = first.place();
            return Err(NoPolicy::Disabled {
                application: application.clone(),
                errors: 1 + errors.count(),
                first,
            });
        }
        let names = self.policies().keys();
        let meant = closest(application.as_str(), names.map(Application::as_str));
        let meant = meant.and_then(|name| name.parse().ok());
        Err(NoPolicy::Unknown { application: application.clone(), meant })
    }
}

/// What `application` may do at `path`, and which line of which file says so.
///
/// # Errors
/// [`NoPolicy`] if the application has no policy in force.
pub fn explain(set: &PolicySet, application: &Application, path: &DataPath) -> Result<Explanation, NoPolicy> {
    let policy = set.require(application)?;
    let over = policy.grants_over(path);
    let below = policy.grants.iter().filter(|one| one.grant.data != *path && path.contains(&one.grant.data));
    Ok(Explanation {
        application: application.to_string(),
        path: path.to_string(),
        file: policy.file.to_string(),
        views: over.iter().map(|one| view(one, path)).collect(),
        rights: Right::ALL.into_iter().map(|right| answer(policy, &over, path, right)).collect(),
        limits: over.iter().flat_map(|one| limits(one)).collect(),
        below: below.map(|one| view(one, &one.grant.data)).collect(),
    })
}

fn view(one: &PolicyGrant, path: &DataPath) -> View {
    let tail = path.as_str().strip_prefix(one.grant.data.as_str()).unwrap_or_default();
    View { path: path.to_string(), mount: format!("{}{tail}", one.grant.mount), place: one.place.clone() }
}

fn answer(policy: &Policy, over: &[&PolicyGrant], path: &DataPath, right: Right) -> RightAnswer {
    let giving: Vec<_> = over.iter().filter(|one| one.grant.rights.has(right)).collect();
    let allowed = !giving.is_empty();
    let (places, why) = if let Some(first) = giving.first() {
        let place = |one: &&&PolicyGrant| one.right_places.get(&right).unwrap_or(&one.place).clone();
        (giving.iter().map(place).collect(), format!("rights = {}", first.rights_text))
    } else if let Some(first) = over.first() {
        let places = over.iter().map(|one| one.key_place("rights").clone()).collect();
        (places, format!("rights = {} lacks {right}", first.rights_text))
    } else {
        (vec![], format!("no [[grant]] in {} covers {path}", policy.file))
    };
    RightAnswer { right: right.name(), allowed, places, why }
}

fn limits(one: &PolicyGrant) -> Vec<LimitLine> {
    let grant = &one.grant;
    let line = |key: &'static str, value: Option<String>| {
        let path = grant.data.to_string();
        value.map(|value| LimitLine { key, value, path, place: one.key_places.get(key).cloned() })
    };
    let undo = if grant.undo_secs == 0 { "none".to_owned() } else { show_duration(grant.undo_secs) };
    [
        line("quota", grant.quota_bytes.map(show_size)),
        line("files", grant.quota_files.map(|files| files.to_string())),
        line("max-file", grant.max_file_bytes.map(show_size)),
        line("undo", Some(undo)),
        line("ownership", Some(grant.ownership.name().to_owned())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}", self.application, self.path)?;
        for view in &self.views {
            writeln!(f, "  appears at {} ({})", view.mount, view.place)?;
        }
        for answer in &self.rights {
            let verdict = if answer.allowed { "allowed" } else { "denied" };
            let places: Vec<_> = answer.places.iter().map(Place::to_string).collect();
            let places = places.join(", ");
            let gap = if places.is_empty() { "" } else { ": " };
            writeln!(f, "  {:<7} {verdict:<8} {places}{gap}{}", answer.right, answer.why)?;
        }
        for limit in &self.limits {
            let place = limit.place.as_ref().map_or("default".to_owned(), Place::to_string);
            writeln!(f, "  {} {} on {} ({place})", limit.key, limit.value, limit.path)?;
        }
        for view in &self.below {
            writeln!(f, "  below it: {} at {} ({})", view.path, view.mount, view.place)?;
        }
        Ok(())
    }
}
