//! Signing revocations, having them carried out, and believing the gateway only by its receipt.

use std::path::PathBuf;

use strongroom_contracts::revocation::{Revocation, VERSION};
use strongroom_contracts::{Application, FenceReceipt, SignedReceipt, Subject};

use crate::admin::{AdminClient, AdminError};
use crate::archive::{Archive, Lock, Record};
use crate::base::gateway_failure;
use crate::failure::{Exit, Failure};
use crate::issuing::Issuer;
use crate::statement::{Statement, subject_words};

/// Signs a revocation for the gateway.
pub fn sign(issuer: &Issuer, subject: Subject, why: &str, now: u64) -> Result<Statement, Failure> {
    let says = Revocation {
        version: VERSION,
        issuer: issuer.key().public().id(),
        gateway: issuer.gateway().key.gateway_id(),
        subject,
        issued_at: now,
        why: why.to_owned(),
    };
    let signed = says.sign(issuer.key()).map_err(|error| Failure::bad(format!("--why: {error}")))?;
    Ok(Statement { says, signed })
}

/// A fence that holds, by the gateway's signed word.
#[derive(Clone, Debug)]
pub struct Held {
    /// What the gateway signed.
    pub receipt: FenceReceipt,
    /// The signed form.
    pub signed: SignedReceipt,
}

/// Has a revocation carried out.
///
/// The error of the connection is kept apart from a receipt that is not to be believed.
pub fn send(client: &mut AdminClient, issuer: &Issuer, statement: &Statement) -> Result<Held, SendError> {
    let fenced = client.revoke(&statement.signed).map_err(SendError::Admin)?;
    let doubt = |what: &str| SendError::Doubt(what.to_owned());
    let signed = fenced.receipt.ok_or_else(|| doubt("it sent no receipt"))?;
    let receipt =
        signed.verify(&issuer.gateway().key).map_err(|error| SendError::Doubt(error.to_string()))?;
    if receipt.revocation != statement.signed.digest() || receipt.subject != statement.says.subject {
        return Err(doubt("its receipt is for another revocation"));
    }
    Ok(Held { receipt, signed })
}

/// Why a revocation is not known to hold.
#[derive(Debug)]
pub enum SendError {
    /// The gateway did not say that it does.
    Admin(AdminError),
    /// It said so, and is not to be believed.
    Doubt(String),
}

impl SendError {
    /// Whether it may help to send the statement again: always, unless the gateway said no to it.
    pub fn again(&self) -> bool {
        !matches!(self, SendError::Admin(AdminError::Refused(_) | AdminError::NotFound(_)))
    }

    /// The failure, for a person who pressed the button.
    pub fn failure(self) -> Failure {
        match self {
            SendError::Admin(error) => gateway_failure(error),
            SendError::Doubt(what) => Failure::new(Exit::Refused, format!("the gateway's answer is not to be believed: {what}"))
                .hint("treat the storage guest as broken: cut it off the network (virsh domif-setlink, xl network-detach)"),
        }
    }
}

/// Notes that a revocation is signed: later contracts get a generation above it, whether or not the gateway knows yet.
fn note(archive: &Archive, lock: &Lock, subject: &Subject) -> Result<(), Failure> {
    match subject {
        Subject::Contract(_) => Ok(()),
        Subject::Application { application, below_generation } => {
            archive.note(lock, application, Record { issued: 0, lowest: *below_generation })
        }
    }
}

/// Keeps a revocation that is not known to hold: it counts here at once, and is sent before anything else is issued.
pub fn keep_pending(archive: &Archive, lock: &Lock, statement: &Statement) -> Result<PathBuf, Failure> {
    note(archive, lock, &statement.says.subject)?;
    archive.keep_pending(statement)
}

/// Notes that a revocation holds, and that those it covers need not be sent any more.
pub fn settle(
    archive: &Archive,
    lock: &Lock,
    statement: &Statement,
    held: &Held,
) -> Result<PathBuf, Failure> {
    note(archive, lock, &statement.says.subject)?;
    let path = archive.keep_fenced(statement, &held.signed)?;
    for other in archive.pending()? {
        if covers(&statement.says.subject, &other.says.subject) {
            archive.keep_fenced(&other, &held.signed)?;
        }
    }
    Ok(path)
}

/// Whether carrying out `done` also carries out `other`.
fn covers(done: &Subject, other: &Subject) -> bool {
    match (done, other) {
        (Subject::Contract(done), Subject::Contract(other)) => done == other,
        (
            Subject::Application { application, below_generation },
            Subject::Application { application: theirs, below_generation: older },
        ) => application == theirs && below_generation >= older,
        _ => false,
    }
}

/// Sends revocations that no gateway has acknowledged; returns a line about each that holds now.
pub fn send_pending(
    client: &mut AdminClient,
    archive: &Archive,
    issuer: &Issuer,
) -> Result<Vec<String>, Failure> {
    let mut lines = vec![];
    // The lock is not needed to read, and most of the time there is nothing to do.
    for statement in archive.pending()? {
        let held = send(client, issuer, &statement).map_err(|error| {
            error.failure().hint(format!(
                "a revocation of {} is still pending; nothing is issued before it holds",
                subject_words(&statement.says.subject)
            ))
        })?;
        settle(archive, &archive.lock()?, &statement, &held)?;
        lines.push(format!(
            "the pending revocation of {} was carried out now",
            subject_words(&statement.says.subject)
        ));
    }
    Ok(lines)
}

/// Sends revocations again that a gateway has forgotten, because its ledger was put back from an old backup: its lowest
/// valid generation of an application is below the one on record here, or `fewer`: it has fewer revocations than it had.
/// Returns how many were sent; they hold, by the gateway's signed word.
pub fn send_forgotten(
    client: &mut AdminClient,
    archive: &Archive,
    issuer: &Issuer,
    fewer: bool,
) -> Result<usize, Failure> {
    let mut forgotten = fewer;
    for name in archive.applications()? {
        let Ok(application) = name.parse::<Application>() else { continue };
        let lowest = archive.record(&application)?.map_or(1, |record| record.lowest);
        forgotten |= lowest > 1 && client.generations(&application).map_err(gateway_failure)?.lowest < lowest;
    }
    if !forgotten {
        return Ok(0);
    }
    // All of them: which were lost cannot be asked, and one that is known already changes nothing.
    let statements = archive.fenced()?;
    for statement in &statements {
        send(client, issuer, statement).map_err(SendError::failure)?;
    }
    Ok(statements.len())
}

/// The subject that voids everything issued to an application so far.
pub fn all_of(application: &Application, below_generation: u64) -> Subject {
    Subject::Application { application: application.clone(), below_generation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_contracts::ContractId;

    #[test]
    fn a_fence_covers_what_lies_below_it() {
        let app = |name: &str, below| all_of(&name.parse().unwrap(), below);
        let id = |byte| Subject::Contract(ContractId::from_bytes([byte; 16]));
        assert!(covers(&app("mail", 4), &app("mail", 3)));
        assert!(covers(&app("mail", 4), &app("mail", 4)));
        assert!(!covers(&app("mail", 4), &app("mail", 5)));
        assert!(!covers(&app("mail", 4), &app("editor", 1)));
        assert!(covers(&id(1), &id(1)));
        assert!(!covers(&id(1), &id(2)));
        assert!(!covers(&app("mail", 4), &id(1)));
    }
}
