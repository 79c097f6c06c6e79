//! From a wish and a policy to a signed contract that is on record and at the gateway.

use std::path::PathBuf;

use strongroom_contracts::{Application, Chain, ContractId, PublicKey, SecretKey, Terms};
use strongroom_policy::{CeilingError, Issue, Narrowing, NoPolicy, Policy, PolicySet};

use crate::admin::{AdminClient, AdminError, Generations};
use crate::archive::{Archive, Issued, Lock};
use crate::base::{Base, GatewayPlace, gateway_failure};
use crate::contract_file;
use crate::failure::{Exit, Failure};
use crate::revoking;
use crate::text::{span, tame};

/// How far the gateway's clock may be from this one when contracts are issued by it, in seconds.
const MAX_SKEW_SECS: u64 = 300;

/// Who signs, and for which gateway.
#[derive(Debug)]
pub struct Issuer {
    key: SecretKey,
    gateway: GatewayPlace,
}

/// What is wanted of a policy.
#[derive(Clone, Debug)]
pub struct Wish {
    /// For whom.
    pub holder: PublicKey,
    /// For how long, in seconds; `None`: as long as the policy allows.
    pub lifetime_secs: Option<u64>,
    /// Which part; empty: all.
    pub narrow: Vec<Narrowing>,
}

impl Wish {
    /// What an earlier contract granted, for as long a term.
    pub fn again(issued: &Issued, policy: &Policy) -> Wish {
        let narrow = issued
            .terms
            .grants
            .iter()
            .map(|grant| Narrowing { path: Some(grant.data.clone()), rights: Some(grant.rights) });
        let term = issued.terms.expires.saturating_sub(issued.terms.not_before);
        Wish {
            holder: issued.terms.holder,
            lifetime_secs: Some(term.min(policy.lifetime_secs.value)),
            narrow: narrow.collect(),
        }
    }
}

impl Issuer {
    /// The issuer of a base directory.
    pub fn open(base: &Base) -> Result<Issuer, Failure> {
        Ok(Issuer { key: base.issuer()?, gateway: base.gateway()? })
    }

    /// The key that signs.
    pub fn key(&self) -> &SecretKey {
        &self.key
    }

    /// The gateway that is addressed.
    pub fn gateway(&self) -> &GatewayPlace {
        &self.gateway
    }

    /// The terms of a contract, if the policy allows them.
    pub fn terms(&self, policy: &Policy, wish: &Wish, generation: u64, now: u64) -> Result<Terms, Failure> {
        let id = strongroom_contracts::keys::random().map_err(Failure::other)?;
        let issue = Issue {
            id: ContractId::from_bytes(id),
            issuer: self.key.public().id(),
            holder: wish.holder,
            gateway: self.gateway.key.gateway_id(),
            generation,
            now_secs: now,
            lifetime_secs: wish.lifetime_secs,
            narrow: wish.narrow.clone(),
        };
        policy.terms(&issue).map_err(|error| above_ceiling(&error))
    }

    /// Signs terms.
    pub fn sign(&self, terms: &Terms) -> Result<Chain, Failure> {
        Chain::issue(terms, &self.key).map_err(Failure::other)
    }
}

fn above_ceiling(error: &CeilingError) -> Failure {
    let failure = match error {
        CeilingError::NoLifetime => return Failure::bad(error).hint("give a longer time: --for 1h"),
        _ => Failure::denied(format!("the policy does not allow it: {error}")),
    };
    match error {
        CeilingError::Rights { .. } | CeilingError::Spread { .. } => {
            failure.hint("ask for less with --rights, or have that line of the policy changed")
        }
        CeilingError::NoGrant { .. } => {
            failure.hint("ask for a path that the policy grants, or have a [[grant]] added")
        }
        CeilingError::Lifetime { .. } => {
            failure.hint("ask for less with --for, or have `lifetime` of the policy changed")
        }
        CeilingError::Ended { .. } => failure.hint("have `until` of the policy changed"),
        _ => failure,
    }
}

/// The policy of an application.
pub fn policy_of<'a>(policies: &'a PolicySet, application: &Application) -> Result<&'a Policy, Failure> {
    policies.require(application).map_err(|error| match error {
        NoPolicy::Unknown { .. } => {
            let known: Vec<_> = policies.policies().keys().map(Application::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Failure::not_found(error).hint(format!("applications with a policy: {known}"))
        }
        NoPolicy::Disabled { .. } => Failure::bad(error).hint("see what is wrong: contract policy check"),
    })
}

/// A gateway that is ready to take contracts.
#[derive(Debug)]
pub struct Counter {
    /// The connection.
    pub client: AdminClient,
    /// Its clock, Unix seconds: contracts are dated by it.
    pub now: u64,
    /// What is worth a warning.
    pub warnings: Vec<String>,
}

impl Counter {
    /// Compares clocks (`now`: this side's, Unix seconds) and sends revocations that are still pending: nothing is issued before they hold.
    pub fn open(
        mut client: AdminClient,
        archive: &Archive,
        issuer: &Issuer,
        now: u64,
    ) -> Result<Counter, Failure> {
        let status = client.status().map_err(gateway_failure)?;
        let skew = status.now.abs_diff(now);
        if skew > MAX_SKEW_SECS {
            let way = if status.now > now { "ahead of" } else { "behind" };
            return Err(Failure::other(format!("the gateway's clock is {} {way} this one", span(skew)))
                .hint(
                    "set both clocks right (timedatectl status); contracts are valid by the gateway's clock",
                ));
        }
        let warnings = revoking::send_pending(&mut client, archive, issuer)?;
        Ok(Counter { client, now: status.now, warnings })
    }

    /// What the gateway knows about an application's generations.
    pub fn generations(&mut self, application: &Application) -> Result<Generations, Failure> {
        self.client.generations(application).map_err(gateway_failure)
    }
}

/// A contract that is on record.
#[derive(Debug)]
pub struct Made {
    /// Its terms.
    pub terms: Terms,
    /// Its signed form.
    pub chain: Chain,
    /// Its file in the archive.
    pub archived: PathBuf,
    /// Live sessions that went on under it at once; `None`: it is not at the gateway.
    pub renewed: Option<u32>,
}

impl Made {
    /// The file form.
    pub fn text(&self) -> Result<String, Failure> {
        contract_file::to_text(&self.chain)
    }
}

/// Signs a contract, puts it on record, and hands it to the gateway if there is one.
pub fn make(
    issuer: &Issuer,
    archive: &Archive,
    lock: &Lock,
    terms: Terms,
    counter: Option<&mut Counter>,
) -> Result<Made, Failure> {
    let chain = issuer.sign(&terms)?;
    let archived = archive.keep(lock, &terms, &chain)?;
    let renewed = match counter {
        None => None,
        Some(counter) => Some(deposit(&mut counter.client, archive, lock, &terms, &chain, &archived)?),
    };
    Ok(Made { terms, chain, archived, renewed })
}

fn deposit(
    client: &mut AdminClient,
    archive: &Archive,
    lock: &Lock,
    terms: &Terms,
    chain: &Chain,
    archived: &std::path::Path,
) -> Result<u32, Failure> {
    match client.deposit(chain) {
        Ok(renewed) => Ok(renewed),
        Err(error @ AdminError::Refused(_)) => {
            // Nobody has it, so it never was.
            archive.discard(lock, archived)?;
            Err(gateway_failure(error).hint("nothing was issued"))
        }
        Err(error) => {
            let text = tame(&error.to_string());
            let exit = gateway_failure(error).exit();
            let exit = if exit == Exit::Refused { Exit::Unreachable } else { exit };
            Err(Failure::new(
                exit,
                format!("the contract {} may not have reached the gateway: {text}", terms.id),
            )
            .hint(format!("it is signed and archived: {}", archived.display()))
            .hint(format!("hand it over again: contract renew {}", terms.application))
            .hint(format!("or make it void: contract revoke {}", terms.id)))
        }
    }
}

/// The newest contract of each holder of the last generation, without those revoked by their number; oldest first.
pub fn last_of(archive: &Archive, application: &Application) -> Result<Vec<Issued>, Failure> {
    let revoked = archive.revoked_contracts()?;
    let shelf = archive.shelf(Some(application))?;
    let last = shelf.contracts.iter().map(|(issued, _)| issued.terms.generation).max().unwrap_or(0);
    let mut list: Vec<Issued> = vec![];
    for (issued, _) in shelf.contracts.into_iter().filter(|(issued, _)| issued.terms.generation == last) {
        list.retain(|other| other.terms.holder != issued.terms.holder);
        list.push(issued);
    }
    list.retain(|issued| !revoked.contains(&issued.terms.id));
    if list.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("there is no contract of `{}` to issue again", application),
        )
        .hint(format!("issue one: contract grant {} --holder KEY", application)));
    }
    Ok(list)
}

/// The generation of an application's next contract.
pub fn next_generation(
    archive: &Archive,
    application: &Application,
    counter: Option<&mut Counter>,
) -> Result<u64, Failure> {
    let known = match counter {
        Some(counter) => counter.generations(application)?,
        None => Generations::default(),
    };
    Ok(archive.record(application)?.unwrap_or_default().next(known))
}
