//! `contract list`: the contracts issued, and what the gateway says of them.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::armour::rfc3339;
use strongroom_contracts::{Application, ContractId, PublicKey, Subject};
use strongroom_protocol::admin::ContractInfo;

use super::Context;
use crate::archive::{Archive, Standing};
use crate::base::gateway_failure;
use crate::failure::Failure;
use crate::output::{Report, Table};
use crate::statement::subject_words;

/// List the contracts issued, and whether they are valid and used
///
/// Without --all, only the newest contract of each holder, and revoked ones until they expire. What the gateway knows (use, voidness) is left out
/// if it cannot be reached.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Only this application's
    #[arg(value_name = "APP")]
    application: Option<Application>,
    /// Also those that were superseded, and revoked ones that expired
    #[arg(long)]
    all: bool,
    /// Only valid ones that nobody has used; asks the gateway
    #[arg(long, conflicts_with = "offline")]
    unused: bool,
    /// Do not ask the gateway
    #[arg(long)]
    offline: bool,
}

/// One line of the list.
struct Row {
    contract: ContractId,
    application: Application,
    generation: u64,
    holder: PublicKey,
    expires: u64,
    state: &'static str,
    /// Unix seconds; 0: never; `None`: the gateway does not know it, or was not asked.
    last_used: Option<u64>,
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let archive = Archive::open(&base)?;
        let shelf = archive.shelf(self.application.as_ref())?;
        let mut warnings = shelf.warnings;
        let asked = if self.offline {
            None
        } else {
            Some(context.connect(&base).and_then(|mut client| client.contracts().map_err(gateway_failure)))
        };
        let kept = match asked {
            None => None,
            Some(Ok(list)) => Some(list),
            Some(Err(failure)) if self.unused => return Err(failure),
            Some(Err(failure)) => {
                warnings.push(format!("without what the gateway knows: {}", failure.message()));
                None
            }
        };
        for statement in archive.pending()? {
            let subject = match &statement.says.subject {
                Subject::Contract(id) => id.to_string(),
                Subject::Application { application, .. } => application.to_string(),
            };
            warnings.push(format!(
                "NOT FENCED: the revocation of {} has not reached the gateway; send it: contract revoke {subject}",
                subject_words(&statement.says.subject)
            ));
        }
        let now = context.clock.now();
        let mut known: BTreeMap<ContractId, ContractInfo> =
            kept.iter().flatten().map(|info| (info.contract, info.clone())).collect();
        let mut rows: Vec<Row> = vec![];
        for (issued, standing) in &shelf.contracts {
            let info = known.remove(&issued.terms.id);
            let expired = now >= issued.terms.expires;
            let state = match (standing, &info) {
                (Standing::Revoked, _) => "revoked",
                _ if expired => "expired",
                (Standing::Superseded, _) => "superseded",
                (Standing::Newest, Some(info)) if info.void => "void",
                (Standing::Newest, None) if kept.is_some() => "not deposited",
                (Standing::Newest, _) => "valid",
            };
            let cut = *standing == Standing::Revoked && !expired;
            let shown = self.all || cut || *standing == Standing::Newest;
            if shown {
                rows.push(Row {
                    contract: issued.terms.id,
                    application: issued.terms.application.clone(),
                    generation: issued.terms.generation,
                    holder: issued.terms.holder,
                    expires: issued.terms.expires,
                    state,
                    last_used: info.map(|info| info.last_used),
                });
            }
        }
        let ours = |info: &ContractInfo| self.application.as_ref().is_none_or(|one| *one == info.application);
        for info in known.into_values().filter(ours) {
            let state = match () {
                () if info.void => "void",
                () if now >= info.expires => "expired",
                () => "made by a holder",
            };
            if self.all || state == "made by a holder" {
                rows.push(Row {
                    contract: info.contract,
                    application: info.application,
                    generation: info.generation,
                    holder: info.holder,
                    expires: info.expires,
                    state,
                    last_used: Some(info.last_used),
                });
            }
        }
        if self.unused {
            rows.retain(|row| {
                row.last_used.unwrap_or(0) == 0
                    && now < row.expires
                    && row.state != "revoked"
                    && row.state != "void"
            });
        }
        let mut report = render(context, &rows, kept.is_some());
        report.warnings = warnings;
        Ok(report)
    }
}

fn render(context: &Context, rows: &[Row], asked: bool) -> Report {
    let (style, clock) = (context.style, &context.clock);
    let mut table = Table::new(style, &["APP", "CONTRACT", "GEN", "STATE", "EXPIRES", "LAST USED", "HOLDER"]);
    for row in rows {
        table.row([
            row.application.to_string(),
            row.contract.to_string(),
            row.generation.to_string(),
            match row.state {
                "valid" => style.green(row.state),
                "revoked" | "void" => style.red(row.state),
                other => style.yellow(other),
            },
            clock.show(row.expires),
            match row.last_used {
                None => "-".to_owned(),
                Some(0) => "never".to_owned(),
                Some(secs) => clock.relative(secs),
            },
            row.holder.to_string(),
        ]);
    }
    let human = if rows.is_empty() { "no contracts\n".to_owned() } else { table.render("") };
    let json: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "contract": row.contract.to_string(),
                "application": row.application.as_str(),
                "generation": row.generation,
                "holder": row.holder.to_string(),
                "state": row.state,
                "expires": row.expires,
                "expires_at": rfc3339(row.expires),
                "last_used": row.last_used,
            })
        })
        .collect();
    Report::new(human, json!({ "contracts": json, "gateway_asked": asked }))
}
