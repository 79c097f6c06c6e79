//! Revocation: from the word that a contract is void to the proof that nothing of it reaches the data.
//!
//! The order is what makes it hold: (1) the ledger's memory refuses new sessions, (2) the turnstiles refuse new
//! operations, (3) what is inside is waited for while the ledger's file is being written, (4) handles are closed and locks
//! released, (5) the receipt is signed. A crash before the file is written leaves the revocation unanswered, and the
//! issuer asks again; a crash after it leaves it done.

use std::sync::Arc;
use std::time::Instant;

use strongroom_contracts::{Application, FenceReceipt, SignedReceipt, SignedRevocation, Subject, codec};
use strongroom_protocol::reply::{Event, FenceReason};

use crate::audit::Record;
use crate::gateway::Gateway;
use crate::ledger::{Change, LedgerError};
use crate::session::Session;
use crate::sys::{Pace, set_pace};

/// What fencing took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Sessions that were cut.
    pub sessions: u32,
    /// The highest generation among them.
    pub generation: u64,
    /// The gateway-wide number of the last operation let in.
    pub last_operation: u64,
    /// Operations that were inside and were waited for.
    pub drained: u32,
    /// Handles that were closed.
    pub handles: u32,
}

/// Why a revocation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// It is not the issuer's, or not for this gateway.
    #[error("{0}")]
    Refused(String),
    /// It holds in this process, and may not survive its crash.
    #[error("the fence holds now, but could not be made durable: {0}; repair that and revoke again")]
    NotDurable(#[from] LedgerError),
    /// The receipt could not be made.
    #[error("the fence holds and is durable, but the receipt could not be made: {0}")]
    Receipt(String),
}

/// A revocation that holds.
pub struct Revoked {
    /// What it took.
    pub cut: Cut,
    /// The signed receipt, encoded.
    pub receipt: Vec<u8>,
    /// What it is a receipt for.
    pub revocation: [u8; 32],
    /// Whether it was given before.
    pub repeated: bool,
}

impl Gateway {
    /// Carries out a revocation statement. `asked`: when the request came.
    ///
    /// # Errors
    /// [`RevokeError`].
    pub fn revoke(self: &Arc<Self>, statement: &[u8], asked: Instant) -> Result<Revoked, RevokeError> {
        let refused = |error: String| RevokeError::Refused(error);
        let signed: SignedRevocation =
            codec::decode(statement).map_err(|error| refused(error.to_string()))?;
        let revocation = signed.verify(&self.issuer, &self.id).map_err(|error| refused(error.to_string()))?;
        let digest = signed.digest();
        self.ledger.void(&revocation.subject);
        let at_us = self.clock.now_us();
        let change = Change::Void { subject: &revocation.subject, at_us, why: &revocation.why };
        let (cut, durable) = std::thread::scope(|scope| {
            let commit = scope.spawn(|| self.commit_urgently(change));
            let cut = self.fence_subject(&revocation.subject);
            (cut, commit.join())
        });
        match durable {
            Ok(durable) => durable?,
            Err(_) => return Err(RevokeError::Receipt("the ledger's thread died".into())),
        }
        let took_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        let former = self.ledger.receipt(&digest).ok().flatten();
        let repeated = former.is_some() && cut == Cut::default();
        let receipt = match former.filter(|_| repeated) {
            Some(former) => former,
            None => self.receipt(digest, revocation.subject.clone(), cut, took_us)?,
        };
        self.audit.note(Record {
            event: "revoke",
            application: match &revocation.subject {
                Subject::Application { application, .. } => Some(application.as_str().to_owned()),
                Subject::Contract(_) => None,
            },
            contract: match &revocation.subject {
                Subject::Application { .. } => None,
                Subject::Contract(id) => Some(id.to_string()),
            },
            text: Some(format!(
                "{} sessions cut, {} operations drained, {} handles closed, {took_us} us; {}",
                cut.sessions, cut.drained, cut.handles, revocation.why
            )),
            ..Record::default()
        });
        Ok(Revoked { cut, receipt, revocation: digest, repeated })
    }

    /// Makes a fence durable, on a thread of its own.
    fn commit_urgently(&self, change: Change<'_>) -> Result<(), LedgerError> {
        // Without the privilege it takes its turn.
        let _ = set_pace(Pace::Urgent);
        self.ledger.commit(&[change])
    }

    fn receipt(
        &self,
        revocation: [u8; 32],
        subject: Subject,
        cut: Cut,
        took_us: u64,
    ) -> Result<Vec<u8>, RevokeError> {
        let receipt = FenceReceipt {
            version: 1,
            gateway: self.id,
            revocation,
            subject,
            generation: cut.generation,
            sessions: cut.sessions,
            last_operation: cut.last_operation,
            drained: cut.drained,
            handles_closed: cut.handles,
            fenced_at_us: self.clock.now_us(),
            took_us,
        };
        let sign = || -> Result<Vec<u8>, codec::CodecError> {
            let signed: SignedReceipt = receipt.sign(&self.key)?;
            codec::encode(&signed)
        };
        sign().map_err(|error| RevokeError::Receipt(error.to_string()))
    }

    /// Keeps a receipt for whoever asks again. Not needed for the fence to hold, so it may come after the answer.
    pub fn keep_receipt(&self, revoked: &Revoked) {
        if revoked.repeated {
            return;
        }
        let change = Change::Receipt { revocation: &revoked.revocation, receipt: &revoked.receipt };
        if let Err(error) = self.ledger.commit(&[change]) {
            let text = format!("a receipt was given and not kept: {error}");
            self.audit.note(Record { event: "lost", text: Some(text), ..Record::default() });
        }
    }

    /// Fences all sessions of an application by the operator's word, until the next deposit for it.
    ///
    /// # Errors
    /// [`LedgerError`] if that is not durable; it holds in this process then.
    pub fn fence_locally(self: &Arc<Self>, application: &Application) -> Result<Cut, LedgerError> {
        self.ledger.fence_locally(application);
        let change = Change::Fence { application, at_us: self.clock.now_us() };
        let (cut, durable) = std::thread::scope(|scope| {
            let commit = scope.spawn(|| self.commit_urgently(change));
            let own = self.sessions_where(|session| session.application == *application);
            let cut = self.fence_sessions(&own, FenceReason::Revoked);
            (cut, commit.join())
        });
        if let Ok(durable) = durable {
            durable?;
        }
        self.audit.note(Record {
            event: "fence",
            application: Some(application.as_str().to_owned()),
            text: Some(format!("{} sessions cut", cut.sessions)),
            ..Record::default()
        });
        Ok(cut)
    }

    fn fence_subject(self: &Arc<Self>, subject: &Subject) -> Cut {
        let affected = self.sessions_where(|session| {
            let contract = session.contract();
            match subject {
                Subject::Contract(id) => contract.effective.ids.contains(id),
                Subject::Application { application, below_generation } => {
                    session.application == *application && contract.effective.generation < *below_generation
                }
            }
        });
        self.fence_sessions(&affected, FenceReason::Revoked)
    }

    /// Ends sessions because their contract is void. When this returns, no effect of them can reach the data.
    pub(crate) fn fence_sessions(self: &Arc<Self>, sessions: &[Arc<Session>], reason: FenceReason) -> Cut {
        let mut cut = Cut::default();
        // All doors shut first, then each room emptied.
        for session in sessions {
            session.fence();
            cut.drained =
                cut.drained.saturating_add(u32::try_from(session.turnstile.inside()).unwrap_or(u32::MAX));
        }
        let mut ended = vec![];
        for session in sessions {
            if let Some(handles) = self.empty(session) {
                cut.sessions += 1;
                cut.handles = cut.handles.saturating_add(handles);
                ended.push(session);
            }
            cut.generation = cut.generation.max(session.contract().effective.generation);
            cut.last_operation = cut.last_operation.max(session.last_operation());
        }
        for session in &ended {
            self.audit.note(Record {
                outcome: Some(format!("{reason:?}").to_lowercase()),
                ..session.record("fenced")
            });
            self.dismiss(session, Some(reason));
        }
        self.forget_later(ended.iter().map(|session| session.id).collect());
        cut
    }

    /// Ends a session that is not needed any more.
    pub fn close_session(self: &Arc<Self>, session: &Arc<Session>, why: &str) {
        session.fence();
        if self.empty(session).is_some() {
            self.audit.note(Record { text: Some(why.to_owned()), ..session.record("close") });
            self.dismiss(session, None);
            self.forget(&[session.id]);
        }
    }

    /// Waits for what is inside a fenced session, and closes what it has. `None` if another thread has done so.
    fn empty(&self, session: &Session) -> Option<u32> {
        let mut closed = session.closing.lock();
        session.turnstile.drain(None);
        if *closed {
            return None;
        }
        *closed = true;
        Some(session.engine.close().handles)
    }

    /// Says good-bye to the clients of a session that is over.
    fn dismiss(self: &Arc<Self>, session: &Session, reason: Option<FenceReason>) {
        for link in session.links() {
            self.close_soon(link.clone());
            if let Some(reason) = reason {
                // Without a thread the client hears it with the answer to its next request.
                let _ = self.threads.run(Box::new(move |_| link.tell(&Event::Fenced(reason))));
            }
        }
    }

    /// Forgets sessions that are over; that need not be waited for.
    fn forget_later(self: &Arc<Self>, ids: Vec<strongroom_protocol::hello::SessionId>) {
        if ids.is_empty() {
            return;
        }
        {
            let mut registry = self.registry.lock();
            ids.iter().for_each(|id| drop(registry.sessions.remove(id)));
        }
        let gateway = self.clone();
        let list = ids.clone();
        if self.threads.run(Box::new(move |_| gateway.forget(&list))).is_err() {
            self.forget(&ids);
        }
    }
}
