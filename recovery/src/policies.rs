//! The policies, as the daemon knows them: read again when a file has changed, the last good version of each kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use strongroom_base::Base;
use strongroom_base::base::mistakes;
use strongroom_contracts::Application;
use strongroom_policy::Policy;

use crate::log::say;

/// How long what was read counts without another look at the files.
const FRESH: Duration = Duration::from_secs(1);

/// Names, times and sizes of the files.
type Stamp = Vec<(PathBuf, SystemTime, u64)>;
/// The policies in force.
pub type InForce = Arc<BTreeMap<Application, Policy>>;

/// The policies of a base directory.
pub struct Policies {
    base: Base,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    in_force: InForce,
}

impl Policies {
    /// Those of a base directory; nothing is read yet.
    pub fn new(base: &Base) -> Policies {
        Policies { base: base.clone(), known: Mutex::default() }
    }

    /// The policies in force now. Files that cannot be read change nothing.
    pub fn now(&self) -> InForce {
        let mut known = self.known.lock();
        if known.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return known.in_force.clone();
        }
        known.looked = Some(Instant::now());
        let stamp = self.stamp();
        if stamp.is_some() && stamp == known.stamp {
            return known.in_force.clone();
        }
        match self.base.policies() {
            Ok(read) => {
                mistakes(&read).iter().for_each(|warning| say(warning));
                let mut in_force = read.policies().clone();
                for application in read.disabled() {
                    if let Some(last) = known.in_force.get(application) {
                        in_force.insert(application.clone(), last.clone());
                    }
                }
                known.in_force = Arc::new(in_force);
                known.stamp = stamp;
            }
            Err(failure) => {
                say(&format!("the policies cannot be read, the last ones stay in force: {failure}"))
            }
        }
        known.in_force.clone()
    }

    fn stamp(&self) -> Option<Stamp> {
        let mut stamp = vec![];
        for entry in std::fs::read_dir(self.base.policy_dir()).ok()? {
            let entry = entry.ok()?;
            let meta = std::fs::metadata(entry.path()).ok()?;
            stamp.push((entry.path(), meta.modified().ok()?, meta.len()));
        }
        stamp.sort();
        Some(stamp)
    }
}
