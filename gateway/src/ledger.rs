//! The durable record of generations, revocations, kept contracts, sessions and receipts.
//!
//! Generations, revocations and local fences are also held in memory, because every hello and every fence asks for them.
//! INVARIANT: memory is made stricter before the file is, and never looser than it: [`Ledger::void`] takes effect in
//! memory at once, and [`Ledger::commit`] makes it survive. A generation in the file never falls.

use std::collections::{HashMap, HashSet};
use std::ops::Bound;
use std::path::Path;

use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use strongroom_contracts::{Application, ContractId, Effective, GatewayId, PublicKey, Subject};
use strongroom_protocol::hello::SessionId;

/// The version of the file's layout; another one is refused.
const FORMAT: &str = "strongroom ledger 1";
/// Kept contracts that have expired are forgotten after this time, in seconds.
const KEEP_EXPIRED: u64 = 90 * 86_400;

/// Contracts that a holder made for other keys and that are kept for those, for each application. A holder can make any
/// number of them: those that end first make room.
const MOST_LENT: usize = 64;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Application: lowest valid generation, highest seen.
const GENERATIONS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("generations");
/// Block: when (Unix microseconds), why.
const REVOKED: TableDefinition<&[u8; 16], (u64, &str)> = TableDefinition::new("revoked");
/// Application: since when (Unix microseconds).
const FENCED: TableDefinition<&str, u64> = TableDefinition::new("fenced");
/// Holder: generation, expiry, last use, chain.
const KEPT: TableDefinition<&[u8; 32], (u64, u64, u64, &[u8])> = TableDefinition::new("kept");
/// Holders whose kept contract another holder made for them: the application, and the contract's end (Unix seconds).
const LENT: TableDefinition<&[u8; 32], (&str, u64)> = TableDefinition::new("lent");
/// Session: holder, since when (Unix seconds), boot id of the machine, chain.
type SessionRow = (&'static [u8; 32], u64, &'static str, &'static [u8]);
const SESSIONS: TableDefinition<&[u8; 16], SessionRow> = TableDefinition::new("sessions");
/// Digest of a revocation: the signed receipt.
const RECEIPTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("receipts");

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It was written by another version of the program.
    #[error(
        "the ledger has the format `{0}`, and this program knows `{FORMAT}`; use the program that wrote it"
    )]
    Format(String),
    /// It is another gateway's.
    #[error("the ledger belongs to the gateway {0}; give this gateway a state directory of its own")]
    Gateway(String),
    /// The store under it failed.
    #[error("the ledger failed: {0}")]
    Store(#[from] Box<redb::Error>),
}

impl LedgerError {
    fn from<E: Into<redb::Error>>(error: E) -> LedgerError {
        LedgerError::Store(Box::new(error.into()))
    }
}

/// Generations of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generations {
    /// Contracts below are void.
    pub lowest: u64,
    /// The highest in a contract that was accepted; 0: none.
    pub highest: u64,
}

impl Default for Generations {
    fn default() -> Self {
        Generations { lowest: 1, highest: 0 }
    }
}

/// Why a rightly signed contract is void.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// A block of it was revoked.
    #[error("the contract {0} was revoked; ask for a new one")]
    Revoked(ContractId),
    /// Its generation is over.
    #[error(
        "the contract is of generation {generation}, and only {lowest} and later are valid; use the reissued one"
    )]
    Generation {
        /// Of the contract.
        generation: u64,
        /// Still valid.
        lowest: u64,
    },
    /// The operator fenced its application.
    #[error("the gateway's operator has fenced {0}; a newly deposited contract ends that")]
    Fenced(Application),
}

/// A contract that is kept for its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its holder.
    pub holder: PublicKey,
    /// Its generation.
    pub generation: u64,
    /// Its end, Unix seconds.
    pub expires: u64,
    /// Last use, Unix seconds; 0: never.
    pub last_used: u64,
    /// The chain's bytes.
    pub chain: Vec<u8>,
}

/// A session that can be resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its number.
    pub id: SessionId,
    /// Whose.
    pub holder: PublicKey,
    /// Since when, Unix seconds.
    pub since: u64,
    /// `/proc/sys/kernel/random/boot_id` at its opening: a session does not outlive the machine.
    pub machine: String,
    /// The chain's bytes.
    pub chain: Vec<u8>,
}

/// One durable change.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// Something is void.
    Void {
        /// What.
        subject: &'a Subject,
        /// When, Unix microseconds.
        at_us: u64,
        /// Why, for people.
        why: &'a str,
    },
    /// A contract of this generation was accepted: lower ones are void.
    Accepted {
        /// Whose.
        application: &'a Application,
        /// Its generation.
        generation: u64,
    },
    /// The operator fences an application.
    Fence {
        /// Which.
        application: &'a Application,
        /// When, Unix microseconds.
        at_us: u64,
    },
    /// A deposit ends the operator's fence.
    Unfence(&'a Application),
    /// A contract is kept for its holder.
    Keep(&'a Kept),
    /// The same, of one that another holder made; room for them is bounded.
    KeepLent {
        /// What is kept.
        kept: &'a Kept,
        /// Its application.
        application: &'a Application,
    },
    /// A session can be resumed.
    Session(&'a SessionRecord),
    /// A receipt was given for a revocation.
    Receipt {
        /// Digest of the revocation.
        revocation: &'a [u8; 32],
        /// The encoded signed receipt.
        receipt: &'a [u8],
    },
}

#[derive(Default)]
struct Memory {
    generations: HashMap<String, Generations>,
    revoked: HashSet<ContractId>,
    fenced: HashSet<String>,
}

/// The ledger.
pub struct Ledger {
    store: Database,
    memory: RwLock<Memory>,
    /// Held by all writers but fences, so that a fence waits for one of them at most, however many say hello.
    patient: Mutex<()>,
}

impl Ledger {
    /// Opens the ledger, or begins it.
    ///
    /// # Errors
    /// [`LedgerError`] if it is of another format or gateway, or cannot be read.
    pub fn open(file: &Path, gateway: &GatewayId, now: u64) -> Result<Ledger, LedgerError> {
        let store = Database::create(file).map_err(LedgerError::from)?;
        begin(&store, gateway)?;
        let memory = RwLock::new(read_memory(&store)?);
        let ledger = Ledger { store, memory, patient: Mutex::new(()) };
        ledger.forget_expired(now)?;
        Ok(ledger)
    }

    /// Whether a verified contract is void.
    ///
    /// # Errors
    /// [`Void`] if it is.
    pub fn verdict(&self, contract: &Effective) -> Result<(), Void> {
        let memory = self.memory.read();
        if let Some(id) = contract.ids.iter().find(|id| memory.revoked.contains(id)) {
            return Err(Void::Revoked(*id));
        }
        let lowest =
            memory.generations.get(contract.application.as_str()).copied().unwrap_or_default().lowest;
        if contract.generation < lowest {
            return Err(Void::Generation { generation: contract.generation, lowest });
        }
        if memory.fenced.contains(contract.application.as_str()) {
            return Err(Void::Fenced(contract.application.clone()));
        }
        Ok(())
    }

    /// Generations of an application.
    pub fn generations(&self, application: &Application) -> Generations {
        self.memory.read().generations.get(application.as_str()).copied().unwrap_or_default()
    }

    /// Makes something void from now on, in memory only.
    pub fn void(&self, subject: &Subject) {
        let mut memory = self.memory.write();
        match subject {
            Subject::Contract(id) => {
                memory.revoked.insert(*id);
            }
            Subject::Application { application, below_generation } => {
                let of = memory.generations.entry(application.as_str().to_owned()).or_default();
                of.lowest = of.lowest.max(*below_generation);
            }
        }
    }

    /// Fences an application from now on, in memory only.
    pub fn fence_locally(&self, application: &Application) {
        self.memory.write().fenced.insert(application.as_str().to_owned());
    }

    /// Makes changes durable together, and takes them into memory. When it returns, they survive any crash.
    ///
    /// # Errors
    /// [`LedgerError::Store`]; then none of them is in the file, and those that [`Ledger::void`] made hold until the
    /// process ends.
    pub fn commit(&self, changes: &[Change<'_>]) -> Result<(), LedgerError> {
        let urgent = |change: &Change<'_>| matches!(change, Change::Void { .. } | Change::Fence { .. });
        let turn = (!changes.iter().any(urgent)).then(|| self.patient.lock());
        self.write(Durability::Immediate, |tables| {
            changes.iter().try_for_each(|change| tables.apply(change))
        })?;
        drop(turn);
        let mut memory = self.memory.write();
        for change in changes {
            match change {
                Change::Void { subject: Subject::Contract(id), .. } => {
                    memory.revoked.insert(*id);
                }
                Change::Void { subject: Subject::Application { application, below_generation }, .. } => {
                    let of = memory.generations.entry(application.as_str().to_owned()).or_default();
                    of.lowest = of.lowest.max(*below_generation);
                }
                Change::Accepted { application, generation } => {
                    let of = memory.generations.entry(application.as_str().to_owned()).or_default();
                    of.lowest = of.lowest.max(*generation);
                    of.highest = of.highest.max(*generation);
                }
                Change::Fence { application, .. } => {
                    memory.fenced.insert(application.as_str().to_owned());
                }
                Change::Unfence(application) => {
                    memory.fenced.remove(application.as_str());
                }
                Change::Keep(_) | Change::KeepLent { .. } | Change::Session(_) | Change::Receipt { .. } => {}
            }
        }
        Ok(())
    }

    /// The contract that is kept for a holder.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn kept(&self, holder: &PublicKey) -> Result<Option<Kept>, LedgerError> {
        let read = self.store.begin_read().map_err(LedgerError::from)?;
        let table = read.open_table(KEPT).map_err(LedgerError::from)?;
        let row = table.get(holder.as_bytes()).map_err(LedgerError::from)?;
        Ok(row.map(|row| kept(holder.as_bytes(), row.value())))
    }

    /// Contracts that are kept, by holder: at most so many, after this one.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn kept_after(&self, after: Option<&PublicKey>, most: usize) -> Result<Vec<Kept>, LedgerError> {
        let read = self.store.begin_read().map_err(LedgerError::from)?;
        let table = read.open_table(KEPT).map_err(LedgerError::from)?;
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_bytes()));
        let rows = table.range::<&[u8; 32]>((from, Bound::Unbounded)).map_err(LedgerError::from)?;
        let mut all = vec![];
        for row in rows.take(most) {
            let (holder, value) = row.map_err(LedgerError::from)?;
            all.push(kept(holder.value(), value.value()));
        }
        Ok(all)
    }

    /// Notes that the contract kept for a holder was used; need not survive a crash.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn used(&self, holder: &PublicKey, now: u64) -> Result<(), LedgerError> {
        let Some(mut kept) = self.kept(holder)? else { return Ok(()) };
        kept.last_used = now;
        let _turn = self.patient.lock();
        self.write(Durability::None, |tables| tables.keep(&kept))
    }

    /// Whether the contract that is kept for a holder was made by another holder.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn is_lent(&self, holder: &PublicKey) -> Result<bool, LedgerError> {
        let read = self.store.begin_read().map_err(LedgerError::from)?;
        let table = read.open_table(LENT).map_err(LedgerError::from)?;
        Ok(table.get(holder.as_bytes()).map_err(LedgerError::from)?.is_some())
    }

    /// The sessions that were open.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn sessions(&self) -> Result<Vec<SessionRecord>, LedgerError> {
        let read = self.store.begin_read().map_err(LedgerError::from)?;
        let table = read.open_table(SESSIONS).map_err(LedgerError::from)?;
        let mut all = vec![];
        for row in table.iter().map_err(LedgerError::from)? {
            let (id, value) = row.map_err(LedgerError::from)?;
            let (holder, since, machine, chain) = value.value();
            all.push(SessionRecord {
                id: SessionId(*id.value()),
                holder: PublicKey::from_bytes(*holder),
                since,
                machine: machine.to_owned(),
                chain: chain.to_vec(),
            });
        }
        Ok(all)
    }

    /// Forgets sessions; after a crash they may be there again, and are then found closed.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn forget_sessions(&self, ids: &[SessionId]) -> Result<(), LedgerError> {
        let _turn = self.patient.lock();
        self.write(Durability::None, |tables| {
            let mut table = tables.0.open_table(SESSIONS).map_err(LedgerError::from)?;
            for id in ids {
                table.remove(&id.0).map_err(LedgerError::from)?;
            }
            Ok(())
        })
    }

    /// The receipt that was given for a revocation, encoded.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn receipt(&self, revocation: &[u8; 32]) -> Result<Option<Vec<u8>>, LedgerError> {
        let read = self.store.begin_read().map_err(LedgerError::from)?;
        let table = read.open_table(RECEIPTS).map_err(LedgerError::from)?;
        Ok(table.get(revocation).map_err(LedgerError::from)?.map(|row| row.value().to_vec()))
    }

    /// Contracts kept, and revocations on record (blocks and generations).
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn counts(&self) -> Result<(u64, u64), LedgerError> {
        let read = self.store.begin_read().map_err(LedgerError::from)?;
        let kept = read.open_table(KEPT).map_err(LedgerError::from)?.len().map_err(LedgerError::from)?;
        let memory = self.memory.read();
        let raised = memory.generations.values().filter(|of| of.lowest > 1).count();
        Ok((kept, (memory.revoked.len() + raised) as u64))
    }

    fn forget_expired(&self, now: u64) -> Result<(), LedgerError> {
        self.write(Durability::None, |tables| {
            let mut table = tables.0.open_table(KEPT).map_err(LedgerError::from)?;
            table
                .retain(|_, (_, expires, _, _)| expires.saturating_add(KEEP_EXPIRED) >= now)
                .map_err(LedgerError::from)?;
            let mut lent = tables.0.open_table(LENT).map_err(LedgerError::from)?;
            lent.retain(|_, (_, expires)| expires.saturating_add(KEEP_EXPIRED) >= now)
                .map_err(LedgerError::from)
        })
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&Tables) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let mut write = self.store.begin_write().map_err(LedgerError::from)?;
        write.set_durability(durability).map_err(LedgerError::from)?;
        let tables = Tables(write);
        change(&tables)?;
        tables.0.commit().map_err(LedgerError::from)
    }
}

/// The tables within one write transaction.
struct Tables(redb::WriteTransaction);

impl Tables {
    fn apply(&self, change: &Change<'_>) -> Result<(), LedgerError> {
        match change {
            Change::Void { subject: Subject::Contract(id), at_us, why } => {
                let mut table = self.0.open_table(REVOKED).map_err(LedgerError::from)?;
                // The first word on it stands.
                if table.get(id.as_bytes()).map_err(LedgerError::from)?.is_none() {
                    table.insert(id.as_bytes(), (*at_us, *why)).map_err(LedgerError::from)?;
                }
            }
            Change::Void { subject: Subject::Application { application, below_generation }, .. } => {
                self.raise(application, *below_generation, 0)?;
            }
            Change::Accepted { application, generation } => {
                self.raise(application, *generation, *generation)?;
            }
            Change::Fence { application, at_us } => {
                let mut table = self.0.open_table(FENCED).map_err(LedgerError::from)?;
                table.insert(application.as_str(), at_us).map_err(LedgerError::from)?;
            }
            Change::Unfence(application) => {
                let mut table = self.0.open_table(FENCED).map_err(LedgerError::from)?;
                table.remove(application.as_str()).map_err(LedgerError::from)?;
            }
            Change::Keep(kept) => {
                self.keep(kept)?;
                let mut lent = self.0.open_table(LENT).map_err(LedgerError::from)?;
                lent.remove(kept.holder.as_bytes()).map_err(LedgerError::from)?;
            }
            Change::KeepLent { kept, application } => {
                self.keep(kept)?;
                self.lend(&kept.holder, application, kept.expires)?;
            }
            Change::Session(session) => {
                let mut table = self.0.open_table(SESSIONS).map_err(LedgerError::from)?;
                let row =
                    (session.holder.as_bytes(), session.since, session.machine.as_str(), &session.chain[..]);
                table.insert(&session.id.0, row).map_err(LedgerError::from)?;
            }
            Change::Receipt { revocation, receipt } => {
                let mut table = self.0.open_table(RECEIPTS).map_err(LedgerError::from)?;
                table.insert(*revocation, *receipt).map_err(LedgerError::from)?;
            }
        }
        Ok(())
    }

    fn keep(&self, kept: &Kept) -> Result<(), LedgerError> {
        let mut table = self.0.open_table(KEPT).map_err(LedgerError::from)?;
        let row = (kept.generation, kept.expires, kept.last_used, &kept.chain[..]);
        table.insert(kept.holder.as_bytes(), row).map_err(LedgerError::from)?;
        Ok(())
    }

    /// Notes that what is kept for a holder is lent, and makes room among the application's.
    fn lend(&self, holder: &PublicKey, application: &Application, expires: u64) -> Result<(), LedgerError> {
        let mut lent = self.0.open_table(LENT).map_err(LedgerError::from)?;
        let mut others = vec![];
        for row in lent.iter().map_err(LedgerError::from)? {
            let (key, value) = row.map_err(LedgerError::from)?;
            let (of, end) = value.value();
            if of == application.as_str() && key.value() != holder.as_bytes() {
                others.push((end, *key.value()));
            }
        }
        others.sort_unstable();
        let mut kept = self.0.open_table(KEPT).map_err(LedgerError::from)?;
        for (_, key) in others.iter().take((others.len() + 1).saturating_sub(MOST_LENT)) {
            lent.remove(key).map_err(LedgerError::from)?;
            kept.remove(key).map_err(LedgerError::from)?;
        }
        lent.insert(holder.as_bytes(), (application.as_str(), expires)).map_err(LedgerError::from)?;
        Ok(())
    }

    fn raise(&self, application: &Application, lowest: u64, highest: u64) -> Result<(), LedgerError> {
        let mut table = self.0.open_table(GENERATIONS).map_err(LedgerError::from)?;
        let before = table.get(application.as_str()).map_err(LedgerError::from)?.map(|row| row.value());
        let (low, high) = before.unwrap_or((1, 0));
        table
            .insert(application.as_str(), (low.max(lowest), high.max(highest)))
            .map_err(LedgerError::from)?;
        Ok(())
    }
}

/// Makes the tables, and checks whose ledger it is.
fn begin(store: &Database, gateway: &GatewayId) -> Result<(), LedgerError> {
    let write = store.begin_write().map_err(LedgerError::from)?;
    {
        let mut meta = write.open_table(META).map_err(LedgerError::from)?;
        let text = |key| -> Result<Option<String>, LedgerError> {
            let row = meta.get(key).map_err(LedgerError::from)?;
            Ok(row.map(|row| String::from_utf8_lossy(row.value()).into_owned()))
        };
        let own = gateway.to_string();
        match (text("format")?, text("gateway")?) {
            (None, _) => {
                meta.insert("format", FORMAT.as_bytes()).map_err(LedgerError::from)?;
                meta.insert("gateway", own.as_bytes()).map_err(LedgerError::from)?;
            }
            (Some(format), _) if format != FORMAT => return Err(LedgerError::Format(format)),
            (Some(_), found) if found.as_ref() != Some(&own) => {
                return Err(LedgerError::Gateway(found.unwrap_or_else(|| "(unknown)".into())));
            }
            _ => {}
        }
        write.open_table(GENERATIONS).map_err(LedgerError::from)?;
        write.open_table(REVOKED).map_err(LedgerError::from)?;
        write.open_table(FENCED).map_err(LedgerError::from)?;
        write.open_table(KEPT).map_err(LedgerError::from)?;
        write.open_table(LENT).map_err(LedgerError::from)?;
        write.open_table(SESSIONS).map_err(LedgerError::from)?;
        write.open_table(RECEIPTS).map_err(LedgerError::from)?;
    }
    write.commit().map_err(LedgerError::from)
}

fn read_memory(store: &Database) -> Result<Memory, LedgerError> {
    let read = store.begin_read().map_err(LedgerError::from)?;
    let mut memory = Memory::default();
    for row in read.open_table(GENERATIONS).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (application, value) = row.map_err(LedgerError::from)?;
        let (lowest, highest) = value.value();
        memory.generations.insert(application.value().to_owned(), Generations { lowest, highest });
    }
    for row in read.open_table(REVOKED).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (id, _) = row.map_err(LedgerError::from)?;
        memory.revoked.insert(ContractId::from_bytes(*id.value()));
    }
    for row in read.open_table(FENCED).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (application, _) = row.map_err(LedgerError::from)?;
        memory.fenced.insert(application.value().to_owned());
    }
    Ok(memory)
}

fn kept(holder: &[u8; 32], row: (u64, u64, u64, &[u8])) -> Kept {
    let (generation, expires, last_used, chain) = row;
    Kept { holder: PublicKey::from_bytes(*holder), generation, expires, last_used, chain: chain.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> Application {
        name.parse().unwrap()
    }

    fn gateway(n: u8) -> GatewayId {
        GatewayId::from_bytes([n; 32])
    }

    #[test]
    fn what_is_void_stays_void_and_generations_never_fall() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ledger");
        let id = ContractId::from_bytes([7; 16]);
        let below = |n| Subject::Application { application: app("mail"), below_generation: n };
        {
            let ledger = Ledger::open(&file, &gateway(1), 0).unwrap();
            for subject in [below(5), Subject::Contract(id), below(3)] {
                ledger.commit(&[Change::Void { subject: &subject, at_us: 1, why: "test" }]).unwrap();
            }
            ledger.commit(&[Change::Accepted { application: &app("mail"), generation: 4 }]).unwrap();
            assert_eq!(ledger.generations(&app("mail")), Generations { lowest: 5, highest: 4 });
            // In memory only: holds now, and not after a crash.
            ledger.void(&below(9));
            assert_eq!(ledger.generations(&app("mail")).lowest, 9);
            ledger.commit(&[Change::Fence { application: &app("editor"), at_us: 1 }]).unwrap();
            ledger.commit(&[Change::Fence { application: &app("other"), at_us: 1 }]).unwrap();
            ledger.commit(&[Change::Unfence(&app("other"))]).unwrap();
        }
        let ledger = Ledger::open(&file, &gateway(1), 0).unwrap();
        assert_eq!(ledger.generations(&app("mail")), Generations { lowest: 5, highest: 4 });
        let memory = ledger.memory.read();
        assert!(memory.revoked.contains(&id));
        assert_eq!(memory.fenced.iter().collect::<Vec<_>>(), ["editor"]);
        drop(memory);
        assert_eq!(ledger.counts().unwrap(), (0, 2));
    }

    #[test]
    fn another_gateways_or_formats_ledger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ledger");
        drop(Ledger::open(&file, &gateway(1), 0).unwrap());
        assert!(matches!(Ledger::open(&file, &gateway(2), 0), Err(LedgerError::Gateway(_))));
        {
            let store = Database::create(&file).unwrap();
            let write = store.begin_write().unwrap();
            write.open_table(META).unwrap().insert("format", &b"strongroom ledger 2"[..]).unwrap();
            write.commit().unwrap();
        }
        let error = Ledger::open(&file, &gateway(1), 0).err().unwrap();
        assert!(error.to_string().contains("strongroom ledger 2"), "{error}");
        std::fs::write(&file, b"not a ledger at all").unwrap();
        assert!(matches!(Ledger::open(&file, &gateway(1), 0), Err(LedgerError::Store(_))));
    }

    #[test]
    fn lent_contracts_have_bounded_room_and_displace_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger"), &gateway(1), 0).unwrap();
        let key = |n: u64| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            PublicKey::from_bytes(bytes)
        };
        let kept = |n, expires| Kept { holder: key(n), generation: 1, expires, last_used: 0, chain: vec![1] };
        let has = |n| ledger.kept(&key(n)).unwrap().is_some();
        let lend = |application: &str, n, expires| {
            let change = Change::KeepLent { kept: &kept(n, expires), application: &app(application) };
            ledger.commit(&[change]).unwrap();
        };
        ledger.commit(&[Change::Keep(&kept(9000, 1))]).unwrap();
        lend("editor", 9001, 1);
        for n in 0..200 {
            lend("mail", n, 1000 + n);
            lend("mail", n, 1000 + n);
        }
        assert_eq!((0..200).filter(|n| has(*n)).count(), MOST_LENT);
        assert!(has(199) && !has(0), "those that end first made room");
        assert!(has(9000) && has(9001), "of one application's own only");
        assert!(ledger.is_lent(&key(199)).unwrap() && !ledger.is_lent(&key(9000)).unwrap());
        // Used, it is still lent; issued, it is not, and counts no more.
        ledger.used(&key(199), 5).unwrap();
        assert!(ledger.is_lent(&key(199)).unwrap());
        ledger.commit(&[Change::Keep(&kept(199, 1))]).unwrap();
        assert!(!ledger.is_lent(&key(199)).unwrap());
        (300..400).for_each(|n| lend("mail", n, 5000));
        assert!(has(199) && !has(198));
    }

    #[test]
    fn kept_contracts_are_forgotten_long_after_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ledger");
        let kept = |n: u8, expires| Kept {
            holder: PublicKey::from_bytes([n; 32]),
            generation: 1,
            expires,
            last_used: 0,
            chain: vec![n; 10],
        };
        let ledger = Ledger::open(&file, &gateway(1), 0).unwrap();
        ledger.commit(&[Change::Keep(&kept(1, 1000)), Change::Keep(&kept(2, 2000))]).unwrap();
        ledger.used(&PublicKey::from_bytes([1; 32]), 77).unwrap();
        assert_eq!(ledger.kept(&PublicKey::from_bytes([1; 32])).unwrap().unwrap().last_used, 77);
        drop(ledger);
        let ledger = Ledger::open(&file, &gateway(1), 1500 + KEEP_EXPIRED).unwrap();
        let left: Vec<_> = ledger.kept_after(None, 9).unwrap().iter().map(|kept| kept.expires).collect();
        assert_eq!(left, [2000]);
    }
}
