//! `contract keygen`: a holder key.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use strongroom_contracts::SecretKey;

use super::Context;
use crate::failure::Failure;
use crate::files::Existing;
use crate::keys;
use crate::output::Report;

/// Make a holder key; run this in the app guest, which its private half never leaves
///
/// Writes the private half with mode 0600, the public half beside it as `.pub`, and prints the public half: give it to
/// the base domain, which issues contracts for it.
#[derive(Debug, Args)]
pub(super) struct Keygen {
    /// Write the private half to this file
    #[arg(long, value_name = "FILE", default_value = "holder.key")]
    out: PathBuf,
    /// Replace an existing key; contracts for the old one are of no more use then
    #[arg(long)]
    force: bool,
}

impl Keygen {
    pub(super) fn run(self, _context: &Context) -> Result<Report, Failure> {
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        let key = SecretKey::generate().map_err(Failure::other)?;
        let public = keys::write_pair(&key, &self.out, existing)?;
        let (secret, public) = (self.out.display(), public.display());
        let json = json!({
            "public_key": key.public().to_string(),
            "key_id": key.public().id().to_string(),
            "secret_file": secret.to_string(),
            "public_file": public.to_string(),
        });
        Ok(Report::new(format!("{}\n", key.public()), json)
            .note(format!("wrote {secret} (secret, mode 0600) and {public}"))
            .note(format!("next, in the base domain: contract grant APP --holder {}", key.public())))
    }
}
