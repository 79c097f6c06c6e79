//! Revocations on disk: those still to be sent, and those that were carried out with the gateway's receipt.
//!
//! `issued/pending/NAME.json` is a signed statement that no gateway has acknowledged; once one has, it becomes
//! `issued/fenced/NAME.json` with the receipt beside it. NAME tells when and what. The members that people read are
//! information; what counts is the signed statement in `statement` (base64 of its encoding).

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use strongroom_contracts::armour::rfc3339;
use strongroom_contracts::{Revocation, SignedReceipt, SignedRevocation, Subject, codec};

use crate::archive::Archive;
use crate::failure::Failure;
use crate::files::{self, Existing};

const MAX_STATEMENT: usize = 64 * 1024;

/// A signed revocation and what it says.
#[derive(Clone, Debug)]
pub struct Statement {
    /// What it says.
    pub says: Revocation,
    /// What is sent.
    pub signed: SignedRevocation,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    subject: String,
    why: String,
    signed_at: String,
    statement: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    receipt: Option<String>,
}

/// The subject in words.
pub fn subject_words(subject: &Subject) -> String {
    match subject {
        Subject::Contract(id) => id.to_string(),
        Subject::Application { application, below_generation } => {
            format!("{application} below generation {below_generation}")
        }
    }
}

impl Statement {
    fn name(&self) -> String {
        let digest = self.signed.digest();
        let tail: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let subject = match &self.says.subject {
            Subject::Contract(id) => id.to_string(),
            Subject::Application { application, .. } => application.to_string(),
        };
        format!("{}-{subject}-{tail}.json", self.says.issued_at)
    }

    fn to_text(&self, receipt: Option<&SignedReceipt>) -> Result<String, Failure> {
        let encode = |bytes: Result<Vec<u8>, codec::CodecError>| match bytes {
            Ok(bytes) => Ok(STANDARD.encode(bytes)),
            Err(error) => Err(Failure::other(format!("cannot write the statement: {error}"))),
        };
        let disk = OnDisk {
            subject: subject_words(&self.says.subject),
            why: self.says.why.clone(),
            signed_at: rfc3339(self.says.issued_at),
            statement: encode(codec::encode(&self.signed))?,
            receipt: receipt.map(|receipt| encode(codec::encode(receipt))).transpose()?,
        };
        let text = serde_json::to_string_pretty(&disk)
            .map_err(|error| Failure::other(format!("cannot write the statement: {error}")))?;
        Ok(text + "\n")
    }
}

impl Archive {
    /// Keeps a statement that no gateway has acknowledged; returns its file.
    pub fn keep_pending(&self, statement: &Statement) -> Result<PathBuf, Failure> {
        let path = self.folder("pending")?.join(statement.name());
        files::write(&path, &statement.to_text(None)?, files::SECRET, Existing::Replace)?;
        Ok(path)
    }

    /// Keeps a statement that was carried out, with its receipt; it is pending no more.
    pub fn keep_fenced(&self, statement: &Statement, receipt: &SignedReceipt) -> Result<PathBuf, Failure> {
        let path = self.folder("fenced")?.join(statement.name());
        files::write(&path, &statement.to_text(Some(receipt))?, files::SECRET, Existing::Replace)?;
        let pending = self.dir().join("pending").join(statement.name());
        match std::fs::remove_file(&pending) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::other(format!("cannot remove `{}`: {error}", pending.display())))
            }
            _ => Ok(path),
        }
    }

    /// Statements that no gateway has acknowledged, oldest first.
    pub fn pending(&self) -> Result<Vec<Statement>, Failure> {
        self.statements("pending")
    }

    /// Statements that were carried out, oldest first.
    pub fn fenced(&self) -> Result<Vec<Statement>, Failure> {
        self.statements("fenced")
    }

    fn statements(&self, folder: &str) -> Result<Vec<Statement>, Failure> {
        let mut list = vec![];
        for path in self.names_in(&self.dir().join(folder), "json")? {
            let text = files::read(&path, "revocation", MAX_STATEMENT)?;
            let damaged = |what: String| {
                Failure::bad(format!("revocation `{}` is damaged: {what}", path.display()))
                    .hint("restore it from a backup, or remove it and revoke again")
            };
            let disk: OnDisk = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
            let bytes = STANDARD.decode(disk.statement).map_err(|error| damaged(error.to_string()))?;
            let signed: SignedRevocation =
                codec::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
            let says =
                signed.verify(self.issuer(), self.gateway()).map_err(|error| damaged(error.to_string()))?;
            list.push(Statement { says, signed });
        }
        list.sort_by_key(|statement| statement.says.issued_at);
        Ok(list)
    }
}
