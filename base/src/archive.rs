//! The archive: what this base domain issued and made void, so that generations rise and renewals know what to renew.
//!
//! ```text
//! issued/contracts/APP/ID.contract   each contract issued, armoured
//! issued/generations.json            per application: the highest generation issued, the lowest that is valid
//! issued/pending/, issued/fenced/    revocations (see `statement`)
//! issued/.lock                       held while a command changes any of it
//! ```
//!
//! INVARIANT: a generation is on record before a contract that carries it exists, and a contract is archived before it
//! is handed to anyone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use strongroom_contracts::{Application, Chain, ContractId, Effective, GatewayId, PublicKey, Subject, Terms};

use crate::admin::Generations;
use crate::base::Base;
use crate::contract_file;
use crate::failure::Failure;
use crate::files::{self, Existing};

const MAX_INDEX: usize = 16 << 20;
/// For how long an expired contract is kept once a newer one has taken its place, in seconds: 30 days.
const KEEP_SUPERSEDED_SECS: u64 = 30 * 86_400;

/// The archive of a base directory.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
    issuer: PublicKey,
    gateway: GatewayId,
}

/// Proof that no other command changes the archive.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// What is on record about an application's generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The highest generation issued; 0 if none.
    pub issued: u64,
    /// Contracts of lower generations are void.
    pub lowest: u64,
}

impl Record {
    /// The generation of the next contract, given what the gateway knows.
    pub fn next(self, gateway: Generations) -> u64 {
        [self.issued, self.lowest, gateway.highest, gateway.lowest, 1].into_iter().max().unwrap_or(1)
    }

    /// The lowest valid generation after everything issued so far is made void.
    pub fn above_all(self, gateway: Generations) -> u64 {
        let highest = self.issued.max(gateway.highest);
        [highest.saturating_add(1), self.lowest, gateway.lowest].into_iter().max().unwrap_or(1)
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u16,
    applications: BTreeMap<String, Record>,
}

/// A contract in the archive, verified.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The signed form.
    pub chain: Chain,
    /// Its first block.
    pub terms: Terms,
    /// What it permits.
    pub effective: Effective,
    /// Its file.
    pub path: PathBuf,
    written: SystemTime,
}

impl Issued {
    /// Rises with each contract that takes another's place.
    fn age(&self) -> (u64, u64, SystemTime) {
        (self.terms.generation, self.terms.not_before, self.written)
    }
}

/// What is known here about a contract, apart from its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In force.
    Newest,
    /// A newer contract for the same holder took its place.
    Superseded,
    /// Made void.
    Revoked,
}

/// All contracts of the archive, with their standing.
#[derive(Debug)]
pub struct Shelf {
    /// By application, then oldest first.
    pub contracts: Vec<(Issued, Standing)>,
    /// Files that are no readable contracts.
    pub warnings: Vec<String>,
}

impl Archive {
    /// The archive of a base directory.
    pub fn open(base: &Base) -> Result<Archive, Failure> {
        let (issuer, gateway) = (base.issuer_public()?, base.gateway()?.key.gateway_id());
        Ok(Archive { dir: base.issued_dir(), issuer, gateway })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn issuer(&self) -> &PublicKey {
        &self.issuer
    }

    pub(crate) fn gateway(&self) -> &GatewayId {
        &self.gateway
    }

    /// Waits until no other command changes the archive.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let path = self.dir.join(".lock");
        let failed =
            |error: std::io::Error| Failure::other(format!("cannot lock `{}`: {error}", path.display()));
        let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(failed)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| failed(error.into()))?;
        Ok(Lock { _file: file })
    }

    /// A folder of the archive, made if it does not exist.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.dir.join(name);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.and_then(|()| files::sync_dir(&files::parent(&path)))
            .map_err(|error| Failure::other(format!("cannot make `{}`: {error}", path.display())))?;
        Ok(path)
    }

    /// Files with an extension in a folder, sorted; none if there is no such folder.
    pub(crate) fn names_in(&self, folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Failure> {
        let failed = |error| Failure::other(format!("cannot read `{}`: {error}", folder.display()));
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(failed)?,
        };
        let mut paths = vec![];
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|found| found == extension) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("generations.json")
    }

    fn index(&self) -> Result<Index, Failure> {
        let path = self.index_path();
        if !path.exists() {
            return Ok(Index { version: 1, ..Index::default() });
        }
        let text = files::read(&path, "record of generations", MAX_INDEX)?;
        let index: Index = serde_json::from_str(&text).map_err(|error| {
            Failure::bad(format!("record of generations `{}` is damaged: {error}", path.display()))
                .hint("restore it from a backup; if there is none, remove it: the gateway knows the generations too")
        })?;
        if index.version == 1 {
            Ok(index)
        } else {
            Err(Failure::bad(format!("`{}` is of version {}, not 1", path.display(), index.version))
                .hint("use the version of `contract` that wrote it, or a newer one"))
        }
    }

    /// What is on record about an application; `None` if it was never issued a contract.
    pub fn record(&self, application: &Application) -> Result<Option<Record>, Failure> {
        Ok(self.index()?.applications.get(application.as_str()).copied())
    }

    /// Notes generations of an application; neither ever falls.
    pub fn note(&self, _lock: &Lock, application: &Application, seen: Record) -> Result<(), Failure> {
        let mut index = self.index()?;
        let record = index.applications.entry(application.to_string()).or_default();
        let risen = Record { issued: record.issued.max(seen.issued), lowest: record.lowest.max(seen.lowest) };
        if *record == risen && risen != Record::default() {
            return Ok(());
        }
        *record = risen;
        let text = serde_json::to_string_pretty(&index)
            .map_err(|error| Failure::other(format!("cannot write the record of generations: {error}")))?;
        files::write(&self.index_path(), &(text + "\n"), files::SECRET, Existing::Replace)
    }

    /// Keeps a contract; returns its file.
    pub fn keep(&self, lock: &Lock, terms: &Terms, chain: &Chain) -> Result<PathBuf, Failure> {
        self.note(lock, &terms.application, Record { issued: terms.generation, lowest: 0 })?;
        let path = self.contracts_of(&terms.application)?.join(format!("{}.contract", terms.id));
        files::write(&path, &contract_file::to_text(chain)?, files::PUBLIC, Existing::Keep)?;
        Ok(path)
    }

    fn contracts_of(&self, application: &Application) -> Result<PathBuf, Failure> {
        self.folder("contracts")?;
        self.folder(&format!("contracts/{application}"))
    }

    /// Removes a contract that nobody has been given.
    pub fn discard(&self, _lock: &Lock, path: &Path) -> Result<(), Failure> {
        std::fs::remove_file(path)
            .map_err(|error| Failure::other(format!("cannot remove `{}`: {error}", path.display())))
    }

    /// Reads all contracts, or those of one application.
    pub fn shelf(&self, application: Option<&Application>) -> Result<Shelf, Failure> {
        let root = self.dir.join("contracts");
        let folders = match application {
            Some(application) => vec![root.join(application.as_str())],
            None => self.subfolders(&root)?,
        };
        let (mut list, mut warnings) = (vec![], vec![]);
        for folder in folders {
            for path in self.names_in(&folder, "contract")? {
                match self.read_issued(&path) {
                    Ok(issued) => list.push(issued),
                    Err(failure) => warnings.push(format!("archive: {failure}")),
                }
            }
        }
        list.sort_by(|a: &Issued, b: &Issued| {
            (&a.terms.application, a.age()).cmp(&(&b.terms.application, b.age()))
        });
        let contracts = self.with_standing(list)?;
        Ok(Shelf { contracts, warnings })
    }

    /// The applications that contracts were issued to.
    pub fn applications(&self) -> Result<Vec<String>, Failure> {
        Ok(self.index()?.applications.into_keys().collect())
    }

    fn subfolders(&self, root: &Path) -> Result<Vec<PathBuf>, Failure> {
        let failed = |error| Failure::other(format!("cannot read `{}`: {error}", root.display()));
        let mut list = vec![];
        if root.exists() {
            for entry in std::fs::read_dir(root).map_err(failed)? {
                list.push(entry.map_err(failed)?.path());
            }
        }
        list.retain(|path| path.is_dir());
        list.sort();
        Ok(list)
    }

    fn read_issued(&self, path: &Path) -> Result<Issued, Failure> {
        let chain = contract_file::read(path)?;
        let foreign = |error| Failure::bad(format!("contract file `{}`: {error}", path.display()));
        let effective = chain.verify_signed(&self.issuer).map_err(foreign)?;
        let terms = chain.claimed_terms().map_err(foreign)?;
        let written = path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Issued { chain, terms, effective, path: path.to_owned(), written })
    }

    fn with_standing(&self, list: Vec<Issued>) -> Result<Vec<(Issued, Standing)>, Failure> {
        let revoked: BTreeSet<ContractId> = self.revoked_contracts()?;
        let index = self.index()?;
        let outlived = |issued: &Issued| {
            let record = index.applications.get(issued.terms.application.as_str());
            record.is_some_and(|record| issued.terms.generation < record.lowest)
        };
        let key = |issued: &Issued| (issued.terms.application.clone(), issued.terms.holder);
        // The list goes from old to new, so the last one stays. A revoked contract keeps its place: what it superseded
        // must not come back, least of all by a renewal.
        let newest: BTreeMap<(Application, PublicKey), ContractId> =
            list.iter().map(|issued| (key(issued), issued.terms.id)).collect();
        let standing = |issued: &Issued| {
            if outlived(issued) || revoked.contains(&issued.terms.id) {
                Standing::Revoked
            } else if newest.get(&key(issued)) == Some(&issued.terms.id) {
                Standing::Newest
            } else {
                Standing::Superseded
            }
        };
        let standings: Vec<_> = list.iter().map(standing).collect();
        Ok(list.into_iter().zip(standings).collect())
    }

    /// Contracts that were revoked by their numbers, whether or not the gateway has been told.
    pub fn revoked_contracts(&self) -> Result<BTreeSet<ContractId>, Failure> {
        let statements = self.pending()?.into_iter().chain(self.fenced()?);
        Ok(statements
            .filter_map(|statement| match statement.says.subject {
                Subject::Contract(id) => Some(id),
                Subject::Application { .. } => None,
            })
            .collect())
    }

    /// Contracts whose number begins with `prefix` (`c-` and some digits).
    pub fn find(&self, prefix: &str) -> Result<Vec<Issued>, Failure> {
        let mut found = vec![];
        for folder in self.subfolders(&self.dir.join("contracts"))? {
            for path in self.names_in(&folder, "contract")? {
                if path.file_stem().is_some_and(|stem| stem.to_string_lossy().starts_with(prefix)) {
                    found.push(self.read_issued(&path)?);
                }
            }
        }
        Ok(found)
    }

    /// Removes contracts that expired long ago and whose place newer ones took, so that renewals do not fill the disk.
    pub fn prune(&self, _lock: &Lock, application: &Application, now: u64) -> Result<usize, Failure> {
        let old = |(issued, standing): &(Issued, Standing)| {
            *standing == Standing::Superseded
                && issued.effective.expires.saturating_add(KEEP_SUPERSEDED_SECS) < now
        };
        let shelf = self.shelf(Some(application))?;
        let old: Vec<_> = shelf.contracts.into_iter().filter(old).collect();
        for (issued, _) in &old {
            std::fs::remove_file(&issued.path).map_err(|error| {
                Failure::other(format!("cannot remove `{}`: {error}", issued.path.display()))
            })?;
        }
        Ok(old.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_rise_above_everything_known() {
        let none = Generations::default();
        let fresh = Record::default();
        assert_eq!(fresh.next(none), 1);
        assert_eq!(fresh.above_all(none), 1);
        let record = Record { issued: 3, lowest: 2 };
        assert_eq!(record.next(none), 3);
        assert_eq!(record.above_all(none), 4);
        assert_eq!(record.next(Generations { lowest: 5, highest: 4 }), 5, "a restored backup learns");
        assert_eq!(record.above_all(Generations { lowest: 1, highest: 9 }), 10);
        let revoked = Record { issued: 3, lowest: 4 };
        assert_eq!(revoked.next(none), 4, "after a revocation the next contract is above it");
        assert_eq!(revoked.above_all(none), 4, "revoking again changes nothing");
    }
}
