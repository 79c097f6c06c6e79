//! `contract show`: what a contract says, from its signed bytes.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::{Chain, PublicKey, VerifyError};

use super::Context;
use crate::archive::{Archive, Issued, Standing};
use crate::base::Base;
use crate::contract_file;
use crate::failure::{Exit, Failure};
use crate::keys::KeyArgument;
use crate::output::Report;
use crate::view::View;

/// Show what a contract grants, to whom, until when
///
/// The signatures are verified if the issuer is known: from --issuer, or from the base directory. The text above the
/// contract's body is not believed. An expired contract is shown as such, with exit code 0; a forged one is not shown.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// A contract file (`-`: the standard input), or the number of a contract in the archive (its first digits are enough)
    #[arg(value_name = "FILE|ID")]
    what: String,
    /// Verify with this issuer's public key, or its .pub file [default: base/issuer.pub of the base directory]
    #[arg(long, value_name = "KEY")]
    issuer: Option<KeyArgument>,
}

impl Show {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base().ok();
        let path = Path::new(&self.what);
        let is_id = self.what.starts_with("c-") && !path.exists();
        let (chain, name) = if is_id {
            let archive = Archive::open(&context.base()?)?;
            let issued = find_one(&archive, &self.what)?.ok_or_else(|| {
                Failure::not_found(format!("no contract `{}` in the archive", self.what))
                    .hint("see what there is: contract list --all")
            })?;
            let name = issued.path.display().to_string();
            (issued.chain, name)
        } else {
            (contract_file::read(path)?, self.what.clone())
        };
        let issuer = match (&self.issuer, &base) {
            (Some(key), _) => Some(key.read("issuer's public key")?),
            (None, Some(base)) => Some(base.issuer_public()?),
            (None, None) => None,
        };
        let view = match &issuer {
            Some(issuer) => verified(&chain, issuer, &name)?,
            None => View::claimed(&chain)
                .map_err(|error| Failure::bad(format!("contract file `{name}`: {error}")))?,
        };
        let standing = base.as_ref().and_then(|base| standing(base, &view));
        Ok(report(context, &view, issuer.as_ref(), standing, &name))
    }
}

fn verified(chain: &Chain, issuer: &PublicKey, name: &str) -> Result<View, Failure> {
    let gateway = chain
        .verify_signed(issuer)
        .and_then(|effective| Ok(View::verified(&effective, chain.claimed_terms()?.gateway)));
    gateway.map_err(|error| match error {
        VerifyError::Codec(_) => Failure::bad(format!("contract file `{name}`: {error}")),
        VerifyError::Signature { block: 0 } => {
            Failure::denied(format!("contract file `{name}`: {error}, {issuer}"))
                .hint("it is forged, or another base domain's: give that one's key with --issuer KEY")
        }
        _ => Failure::denied(format!("contract file `{name}`: {error}")),
    })
}

/// What the archive knows about the contract, apart from its time.
fn standing(base: &Base, view: &View) -> Option<Standing> {
    let archive = Archive::open(base).ok()?;
    let shelf = archive.shelf(Some(&view.application)).ok()?;
    let revoked = archive.revoked_contracts().ok()?;
    if view.ids.iter().any(|id| revoked.contains(id)) {
        return Some(Standing::Revoked);
    }
    // Blocks after the first are made by holders, and stand and fall with it.
    let first = view.ids.first()?;
    let found = shelf.contracts.iter().find(|(issued, _)| issued.terms.id == *first);
    found.map(|(_, standing)| *standing)
}

fn report(
    context: &Context,
    view: &View,
    issuer: Option<&PublicKey>,
    standing: Option<Standing>,
    name: &str,
) -> Report {
    let time = view.time_word(context.clock.now());
    let state = match standing {
        Some(Standing::Revoked) => "revoked",
        Some(Standing::Superseded) if time == "valid" => "superseded",
        _ => time,
    };
    let mut json = view.to_json();
    if let Value::Object(members) = &mut json {
        members.insert("file".into(), name.into());
        members.insert("state".into(), state.into());
        members.insert("verified".into(), issuer.is_some().into());
        members.insert("issuer".into(), json!(issuer.map(PublicKey::to_string)));
    }
    let style = context.style;
    let state = match state {
        "valid" => style.green(state),
        "superseded" => style.yellow("superseded by a newer contract for the same holder"),
        other => style.red(other),
    };
    let trust = match issuer {
        Some(_) => "signatures verified".to_owned(),
        None => style.yellow("unverified: the issuer is not known here (--issuer KEY)"),
    };
    Report::new(format!("{state}, {trust}\n{}", view.render(&context.clock, style)), json)
}

/// The contract of the archive whose number begins with `prefix`.
pub(super) fn find_one(archive: &Archive, prefix: &str) -> Result<Option<Issued>, Failure> {
    let mut found = archive.find(prefix)?;
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|issued| issued.terms.id.to_string()).collect();
        return Err(Failure::new(
            Exit::BadInput,
            format!("`{prefix}` is the beginning of {} contracts", ids.len()),
        )
        .hint(format!("give more digits: {}", ids.join(", "))));
    }
    Ok(found.pop())
}
