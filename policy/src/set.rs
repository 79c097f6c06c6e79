//! All policies of a directory together.

use std::collections::BTreeMap;

use strongroom_contracts::Application;

use crate::error::PolicyError;
use crate::place::SourceText;
use crate::policy::Policy;
use crate::reader::{self, Claim};

/// A policy file: its name as it shall appear in messages, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name, such as `policy.d/mail.toml`.
    pub file: String,
    /// The text.
    pub text: String,
}

/// The policies of all applications, and the mistakes of all files.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    policies: BTreeMap<Application, Policy>,
    errors: Vec<PolicyError>,
}

impl PolicySet {
    /// Reads policy files, in the order of their names. A file with a mistake gives no policy and disables its own
    /// application only; of two files for one application the later is a mistake.
    pub fn parse(mut sources: Vec<Source>) -> PolicySet {
        sources.sort_by(|a, b| a.file.cmp(&b.file));
        let mut set = PolicySet::default();
        let mut claims: BTreeMap<Application, Claim> = BTreeMap::new();
        for source in sources {
            let read = reader::read(&SourceText::new(&source.file, &source.text));
            let mut errors = read.errors;
            if let Some(claim) = read.claim {
                match claims.get(&claim.application) {
                    Some(first) => errors.push(duplicate(&claim, first)),
                    None => {
                        claims.insert(claim.application.clone(), claim);
                    }
                }
            }
            match read.policy {
                Some(policy) if errors.is_empty() => {
                    set.policies.insert(policy.application.clone(), policy);
                }
                _ => set.errors.append(&mut errors),
            }
        }
        set
    }

    /// The policies in force, by application.
    pub fn policies(&self) -> &BTreeMap<Application, Policy> {
        &self.policies
    }

    /// The policy of an application, if it is in force.
    pub fn get(&self, application: &Application) -> Option<&Policy> {
        self.policies.get(application)
    }

    /// All mistakes of all files, by file and line.
    pub fn errors(&self) -> &[PolicyError] {
        &self.errors
    }

    /// The mistakes of the files for one application.
    pub fn errors_of(&self, application: &Application) -> impl Iterator<Item = &PolicyError> {
        self.errors.iter().filter(move |error| error.application() == Some(application))
    }

    /// Applications that have a file and no policy in force, because each of their files has a mistake.
    pub fn disabled(&self) -> Vec<&Application> {
        let mut list: Vec<_> = self.errors.iter().filter_map(PolicyError::application).collect();
        list.retain(|application| !self.policies.contains_key(*application));
        list.sort();
        list.dedup();
        list
    }
}

fn duplicate(second: &Claim, first: &Claim) -> PolicyError {
    let place = first.source.place(&first.span);
    PolicyError::new(
        &second.source,
        second.span.clone(),
        format!("`{}` has a policy already, in {place}", second.application),
    )
    .label("the same application again")
    .related(&first.source, &first.span, "first said here")
    .help("one file for each application: merge the two, or rename one application")
    .of_application(Some(&second.application))
}
