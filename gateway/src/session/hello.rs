//! Who is welcome, and to which session.

use std::net::IpAddr;
use std::sync::Arc;

use strongroom_contracts::{PublicKey, Subject, VerifyError};
use strongroom_protocol::VERSION;
use strongroom_protocol::hello::{Hello, RefusedCode};
use strongroom_protocol::reply::FenceReason;

use crate::audit::Record;
use crate::gateway::Gateway;
use crate::ledger::{Change, Kept, LedgerError, Void};
use crate::session::registry::OpenError;
use crate::session::{Contract, Session};

/// Why a hello is not welcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What kind.
    pub code: RefusedCode,
    /// One sentence for people.
    pub text: String,
}

/// Who says hello.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The key proven in the handshake.
    pub key: PublicKey,
    /// From where; `None` over a socket without addresses.
    pub address: Option<IpAddr>,
}

/// Whether a contract is kept for its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It is not.
    No,
    /// As the issuer's.
    Issued,
    /// As another holder's.
    Lent,
}

/// A session that welcomes a caller.
pub struct Greeted {
    /// The session.
    pub session: Arc<Session>,
    /// Whether it existed before.
    pub resumed: bool,
}

fn refusal(code: RefusedCode, text: impl Into<String>) -> Refusal {
    Refusal { code, text: text.into() }
}

impl Gateway {
    /// Judges a hello, and finds or opens its session.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn greet(self: &Arc<Self>, caller: Caller, hello: &Hello, chain: &[u8]) -> Result<Greeted, Refusal> {
        if hello.version != VERSION {
            let text =
                format!("this gateway speaks version {VERSION} of the protocol, not {}", hello.version);
            return Err(refusal(RefusedCode::Version, text));
        }
        let presented = if chain.is_empty() { None } else { Some(self.judge(caller, chain)) };
        if let Some(id) = hello.resume {
            let known = self.find_session(&id).filter(|session| session.holder == caller.key);
            let session = known.ok_or_else(|| {
                refusal(
                    RefusedCode::NoSession,
                    format!("there is no session {id} of this key; open a new one"),
                )
            })?;
            return self.resume(caller, session, presented);
        }
        let contract = self.choose(caller, presented)?;
        let session = self.open(contract)?;
        Ok(Greeted { session, resumed: false })
    }

    /// Whether this key has, or had, a contract that the gateway knows: only such keys may wait for one.
    pub fn knows(&self, key: &PublicKey) -> bool {
        self.ledger.kept(key).is_ok_and(|kept| kept.is_some())
            || !self.sessions_where(|session| session.holder == *key).is_empty()
    }

    /// Records a hello that was not welcome.
    pub fn record_refused(&self, caller: Caller, refusal: &Refusal) {
        self.audit.count(Record {
            event: "refused",
            key: Some(caller.key.to_string()),
            address: caller.address.map(|address| address.to_string()),
            outcome: Some(format!("{:?}", refusal.code).to_lowercase()),
            text: Some(refusal.text.clone()),
            // Counted by key, as a session is not there to count by.
            session: None,
            ..Record::default()
        });
    }

    /// Whether a chain is a contract that this caller may use, here and now.
    pub(crate) fn judge(&self, caller: Caller, chain: &[u8]) -> Result<Contract, Refusal> {
        let contract = self.verified(chain).map_err(|error| {
            let code = match &error {
                VerifyError::NotYetValid { .. } => RefusedCode::NotYet,
                VerifyError::Expired { .. } => RefusedCode::Expired,
                _ => RefusedCode::Contract,
            };
            refusal(code, error.to_string())
        })?;
        self.judge_use(caller, &contract)?;
        Ok(contract)
    }

    fn judge_use(&self, caller: Caller, contract: &Contract) -> Result<(), Refusal> {
        let effective = &contract.effective;
        if effective.holder != caller.key {
            let text = "the contract belongs to another key; use the key file that it was issued for";
            return Err(refusal(RefusedCode::Contract, text));
        }
        let allowed = match (caller.address, &effective.networks) {
            (_, None) => true,
            (Some(address), Some(_)) => effective.allows_address(address),
            (None, Some(_)) => false,
        };
        if !allowed {
            let from = caller.address.map_or_else(|| "here".to_owned(), |address| address.to_string());
            let text = format!("the contract may not be used from {from}");
            return Err(refusal(RefusedCode::Contract, text));
        }
        self.ledger.verdict(effective).map_err(|void| refusal(RefusedCode::Revoked, void.to_string()))
    }

    /// The newest of the contract presented and the one kept. What is forged or another's is refused, whatever is kept.
    fn choose(
        &self,
        caller: Caller,
        presented: Option<Result<Contract, Refusal>>,
    ) -> Result<Contract, Refusal> {
        if let Some(Err(error)) = &presented
            && error.code == RefusedCode::Contract
        {
            return Err(error.clone());
        }
        let busy = |error: LedgerError| refusal(RefusedCode::Busy, error.to_string());
        let kept = self.ledger.kept(&caller.key).map_err(busy)?;
        let kept = kept.map(|kept| self.judge(caller, &kept.chain));
        match (presented, kept) {
            (Some(Ok(presented)), Some(Ok(kept))) => {
                let same = presented.effective.application == kept.effective.application;
                let newer = same && kept.age() > presented.age();
                // What a holder lent is one of several, perhaps: the one that is presented is meant.
                let lent = newer && self.ledger.is_lent(&caller.key).map_err(busy)?;
                Ok(if newer && !lent { kept } else { presented })
            }
            (Some(Ok(contract)), _) | (_, Some(Ok(contract))) => Ok(contract),
            (Some(Err(error)), _) | (None, Some(Err(error))) => Err(error),
            (None, None) => {
                let text = "the gateway keeps no contract for this key; present one, or have one deposited";
                Err(refusal(RefusedCode::NoContract, text))
            }
        }
    }

    fn resume(
        self: &Arc<Self>,
        caller: Caller,
        session: Arc<Session>,
        presented: Option<Result<Contract, Refusal>>,
    ) -> Result<Greeted, Refusal> {
        if let Some(Ok(contract)) = presented {
            self.adopt(&contract)?;
            // Those of the other sessions are the issuer's to renew; a holder's narrower contract is for the session it comes with.
            if contract.effective.ids.len() > 1 {
                self.renew_these(vec![session.clone()], &contract);
            }
        }
        if session.turnstile.is_fenced() {
            let text = "the session is over; open a new one";
            return Err(refusal(RefusedCode::NoSession, text));
        }
        let contract = session.contract();
        if self.clock.now() >= contract.effective.expires {
            let text = "the session's contract has expired; renew it";
            return Err(refusal(RefusedCode::Expired, text));
        }
        self.judge_use(caller, &contract)?;
        Ok(Greeted { session, resumed: true })
    }

    /// Opens a session under a contract that is valid.
    fn open(self: &Arc<Self>, contract: Contract) -> Result<Arc<Session>, Refusal> {
        self.adopt(&contract)?;
        let session = self.open_session(contract, &[]).map_err(|error| {
            let code = match &error {
                OpenError::Void(_) => RefusedCode::Revoked,
                _ => RefusedCode::Busy,
            };
            refusal(code, error.to_string())
        })?;
        if let Err(error) = self.ledger.used(&session.holder, self.clock.now()) {
            let text = format!("the last use of a contract was not noted: {error}");
            self.audit.note(Record { text: Some(text), ..session.record("lost") });
        }
        Ok(session)
    }

    /// Takes notice of a valid contract that a holder presents: its generation voids lower ones, it is kept if it is newer
    /// than the one kept, and live sessions go on under it.
    fn adopt(self: &Arc<Self>, contract: &Contract) -> Result<(), Refusal> {
        let busy = |error: LedgerError| refusal(RefusedCode::Busy, error.to_string());
        let effective = &contract.effective;
        let generations = self.ledger.generations(&effective.application);
        let kept = self.ledger.kept(&effective.holder).map_err(busy)?;
        let newer = kept.as_ref().is_none_or(|kept| {
            kept.chain != contract.chain
                && self.verified(&kept.chain).is_ok_and(|old| {
                    old.effective.application != effective.application || old.age() < contract.age()
                })
                || self.verified(&kept.chain).is_err()
        });
        let lent = effective.ids.len() > 1;
        let keep = match (newer, lent) {
            (false, _) => Keep::No,
            (true, false) => Keep::Issued,
            // Never in the place of what the issuer signed for the key.
            (true, true) if kept.is_none() || self.ledger.is_lent(&effective.holder).map_err(busy)? => {
                Keep::Lent
            }
            (true, true) => Keep::No,
        };
        let raise = generations.highest < effective.generation;
        if keep != Keep::No || raise {
            self.accept(contract, keep, false).map_err(busy)?;
        }
        if keep == Keep::Issued {
            self.renew_sessions(contract);
        }
        Ok(())
    }

    /// Makes a valid contract durable, and fences what it supersedes.
    pub(crate) fn accept(
        self: &Arc<Self>,
        contract: &Contract,
        keep: Keep,
        unfence: bool,
    ) -> Result<(), LedgerError> {
        let effective = &contract.effective;
        let subject = Subject::Application {
            application: effective.application.clone(),
            below_generation: effective.generation,
        };
        self.ledger.void(&subject);
        let kept = Kept {
            holder: effective.holder,
            generation: effective.generation,
            expires: effective.expires,
            last_used: 0,
            chain: contract.chain.clone(),
        };
        let mut changes =
            vec![Change::Accepted { application: &effective.application, generation: effective.generation }];
        match keep {
            Keep::No => {}
            Keep::Issued => changes.push(Change::Keep(&kept)),
            Keep::Lent => {
                changes.push(Change::KeepLent { kept: &kept, application: &effective.application });
            }
        }
        if unfence {
            changes.push(Change::Unfence(&effective.application));
        }
        self.ledger.commit(&changes)?;
        let lower = self.sessions_where(|session| {
            session.application == effective.application
                && session.contract().effective.generation < effective.generation
        });
        self.fence_sessions(&lower, FenceReason::Superseded);
        Ok(())
    }

    /// Keeps a contract that an administrator deposits, and hands it over. Returns how many sessions went on under it.
    ///
    /// # Errors
    /// [`Refusal`] with the reason.
    pub fn deposit(self: &Arc<Self>, chain: &[u8]) -> Result<(Contract, u32), Refusal> {
        let contract = self.verified(chain).map_err(|error| {
            let code = match &error {
                VerifyError::NotYetValid { .. } => RefusedCode::NotYet,
                VerifyError::Expired { .. } => RefusedCode::Expired,
                _ => RefusedCode::Contract,
            };
            refusal(code, error.to_string())
        })?;
        match self.ledger.verdict(&contract.effective) {
            // The operator's fence lasts until the next deposit.
            Ok(()) | Err(Void::Fenced(_)) => {}
            Err(void) => return Err(refusal(RefusedCode::Revoked, void.to_string())),
        }
        self.accept(&contract, Keep::Issued, true)
            .map_err(|error| refusal(RefusedCode::Busy, error.to_string()))?;
        let effective = &contract.effective;
        self.audit.note(Record {
            event: "deposit",
            application: Some(effective.application.as_str().to_owned()),
            contract: Some(effective.id().to_string()),
            key: Some(effective.holder.to_string()),
            text: Some(format!("generation {}, until {}", effective.generation, effective.expires)),
            ..Record::default()
        });
        let renewed = self.renew_sessions(&contract);
        self.parked.call(&effective.holder);
        Ok((contract, renewed))
    }
}
