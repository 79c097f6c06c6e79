//! `contract attenuate`: a narrower contract for another key, offline, by the holder.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::terms::{Attenuation, Narrowed, VERSION};
use strongroom_contracts::{Chain, ContractId, Rights, SessionLimits, VerifyError};

use super::Context;
use crate::contract_file;
use crate::failure::Failure;
use crate::files::{self, Existing, PUBLIC};
use crate::keys::{self, KeyArgument};
use crate::narrowing::{NarrowArgs, Part, Wanted};
use crate::output::{Report, span};
use crate::view::{GrantView, View};

/// Make a narrower contract for another key; run this where the holder's key is
///
/// Needs neither the base domain nor the gateway. The result can only remove: paths, rights, time. Revoking a contract
/// voids everything made from it.
#[derive(Debug, Args)]
pub(super) struct Attenuate {
    /// The contract to narrow (`-`: the standard input)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The public key that may exercise the narrower contract, or its .pub file
    #[arg(long, value_name = "KEY")]
    holder: KeyArgument,
    /// The secret key of the contract's own holder
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    narrow: NarrowArgs,
    /// Grant for this long from now [default: as long as the contract lasts]
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::narrowing::duration)]
    lifetime: Option<u64>,
    /// Write the narrower contract to this file [default: the standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, requires = "out")]
    force: bool,
}

impl Attenuate {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let chain = contract_file::read(&self.file)?;
        let shown = self.file.display();
        let from = View::claimed(&chain)
            .map_err(|error| Failure::bad(format!("contract file `{shown}`: {error}")))?;
        let key = keys::read_secret(&self.key, "holder's key")?;
        if key.public() != from.holder {
            return Err(Failure::bad(format!(
                "`{}` is not the key of the contract's holder, {}",
                self.key.display(),
                from.holder
            ))
            .hint("name the key that the contract was issued for; only its owner can narrow it"));
        }
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        self.out.as_deref().map_or(Ok(()), |out| files::check_free(out, existing))?;
        let block = Attenuation {
            version: VERSION,
            id: ContractId::from_bytes(strongroom_contracts::keys::random().map_err(Failure::other)?),
            // Filled in by the chain.
            parent: [0; 32],
            holder: self.holder.read("new holder's public key")?,
            not_before: from.not_before,
            expires: self.expires(&from, context.clock.now())?,
            grants: kept(&from, &self.narrow)?,
            limits: SessionLimits::default(),
            networks: None,
        };
        let narrower = chain.attenuate(block, &key).map_err(|error| match error {
            VerifyError::Depth(_) => {
                Failure::denied("a contract can be narrowed at most 4 times, and this one was")
                    .hint("narrow an earlier contract of the chain, or have one issued: contract grant")
            }
            VerifyError::Terms { reason, .. } => {
                Failure::bad(format!("what was asked for is no contract: {reason}"))
            }
            other => Failure::other(other),
        })?;
        self.report(context, &narrower)
    }

    fn expires(&self, from: &View, now: u64) -> Result<u64, Failure> {
        if now >= from.expires {
            return Err(Failure::denied(format!(
                "the contract `{}` expired {} ago",
                self.file.display(),
                span(now - from.expires)
            ))
            .hint("have it renewed in the base domain: contract renew, then narrow the new one"));
        }
        match self.lifetime {
            None => Ok(from.expires),
            Some(0) => {
                Err(Failure::bad("a contract must last at least one second")
                    .hint("give a longer time: --for 1h"))
            }
            Some(secs) if now.saturating_add(secs) > from.expires => Err(Failure::denied(format!(
                "the contract lasts {} more, which is less than the {} asked for",
                span(from.expires - now),
                span(secs)
            ))
            .hint("ask for less with --for, or leave it away")),
            Some(secs) => Ok(now + secs),
        }
    }

    fn report(&self, context: &Context, chain: &Chain) -> Result<Report, Failure> {
        let text = contract_file::to_text(chain)?;
        let view = View::claimed(chain).map_err(Failure::other)?;
        let mut json = view.to_json();
        if let Value::Object(members) = &mut json {
            members.insert("file".into(), json!(self.out.as_ref().map(|out| out.display().to_string())));
            if self.out.is_none() {
                members.insert("armour".into(), text.clone().into());
            }
        }
        let summary = view.render(&context.clock, context.style);
        match &self.out {
            Some(out) => {
                let existing = if self.force { Existing::Replace } else { Existing::Keep };
                files::write(out, &text, PUBLIC, existing)?;
                Ok(Report::new(summary, json).note(format!("wrote {}", out.display())))
            }
            None => Ok(Report::new(text, json).note(summary.trim_end())),
        }
    }
}

fn kept(from: &View, args: &NarrowArgs) -> Result<Vec<Narrowed>, Failure> {
    if args.parts.is_empty() {
        return from.grants.iter().map(|grant| narrowed(grant, "", None)).collect();
    }
    let mut list = vec![];
    for part in &args.parts {
        match &part.path {
            None => {
                for grant in &from.grants {
                    list.push(narrowed(grant, "", part.rights)?);
                }
            }
            Some(path) => list.push(one(from, path, part)?),
        }
    }
    Ok(list)
}

fn one(from: &View, path: &str, part: &Part) -> Result<Narrowed, Failure> {
    let wanted = Wanted::parse(path)?;
    let holds = |grant: &&GrantView| match &wanted {
        Wanted::Data(data) => grant.data.contains(data),
        Wanted::Mount(mount) => grant.mount.contains(mount),
    };
    // The deepest grant that holds the path, or of those the first that has the rights.
    let mut over: Vec<&GrantView> = from.grants.iter().filter(holds).collect();
    over.sort_by_key(|grant| std::cmp::Reverse(grant.data.as_str().len()));
    let enough = over.iter().find(|grant| part.rights.is_none_or(|rights| grant.rights.covers(rights)));
    let Some(grant) = enough.or(over.first()) else {
        let list: Vec<_> =
            from.grants.iter().map(|grant| format!("{} at {}", grant.data, grant.mount)).collect();
        return Err(Failure::denied(format!("the contract does not grant `{path}`"))
            .hint(format!("it grants {}", list.join(", "))));
    };
    let tail = match &wanted {
        Wanted::Data(data) => data.as_str().strip_prefix(grant.data.as_str()),
        Wanted::Mount(mount) => mount.as_str().strip_prefix(grant.mount.as_str()),
    };
    narrowed(grant, tail.unwrap_or_default(), part.rights)
}

fn narrowed(grant: &GrantView, tail: &str, rights: Option<Rights>) -> Result<Narrowed, Failure> {
    let missing = rights.unwrap_or(Rights::NONE).without(grant.rights);
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|right| right.name()).collect();
        return Err(Failure::denied(format!("the contract lacks {} on {}", names.join(" "), grant.data))
            .hint(format!("it has {} there; ask for less with --rights", grant.rights)));
    }
    let too_long = |error: strongroom_contracts::NameError| Failure::bad(format!("--path: {error}"));
    Ok(Narrowed {
        data: format!("{}{tail}", grant.data).parse().map_err(too_long)?,
        mount: format!("{}{tail}", grant.mount).parse().map_err(too_long)?,
        rights: rights.unwrap_or(grant.rights),
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
    })
}
