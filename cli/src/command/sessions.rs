//! `contract sessions`: who is using what now.

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::Application;
use strongroom_protocol::admin::SessionInfo;

use super::Context;
use crate::base::gateway_failure;
use crate::failure::Failure;
use crate::output::{Report, Table, bytes, tame};

/// List the live sessions at the gateway
#[derive(Debug, Args)]
pub(super) struct Sessions {
    /// Only this application's
    #[arg(value_name = "APP")]
    application: Option<Application>,
}

impl Sessions {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let mut sessions = context.connect(&base)?.sessions().map_err(gateway_failure)?;
        sessions.retain(|session| self.application.as_ref().is_none_or(|one| *one == session.application));
        sessions
            .sort_by(|a, b| (&a.application, a.since, a.session).cmp(&(&b.application, b.since, b.session)));
        Ok(render(context, &sessions))
    }
}

fn render(context: &Context, sessions: &[SessionInfo]) -> Report {
    let clock = &context.clock;
    let mut table = Table::new(
        context.style,
        &[
            "APP", "SESSION", "CONTRACT", "GEN", "FROM", "SINCE", "EXPIRES", "OPEN", "OPS", "DENIED", "READ",
            "WRITTEN",
        ],
    );
    for session in sessions {
        let addresses = tame(&session.addresses.join(" "));
        table.row([
            session.application.to_string(),
            session.session.to_string(),
            session.contract.to_string(),
            session.generation.to_string(),
            if addresses.is_empty() { "(reconnecting)".to_owned() } else { addresses },
            clock.relative(session.since),
            clock.relative(session.expires),
            session.handles.to_string(),
            session.operations.to_string(),
            session.denied.to_string(),
            bytes(session.bytes_read),
            bytes(session.bytes_written),
        ]);
    }
    let human = if sessions.is_empty() { "no sessions\n".to_owned() } else { table.render("") };
    let json: Vec<Value> = sessions
        .iter()
        .map(|session| {
            json!({
                "session": session.session.to_string(),
                "application": session.application.as_str(),
                "contract": session.contract.to_string(),
                "generation": session.generation,
                "holder": session.holder.to_string(),
                "addresses": session.addresses,
                "since": session.since,
                "expires": session.expires,
                "handles": session.handles,
                "nodes": session.nodes,
                "operations": session.operations,
                "denied": session.denied,
                "bytes_read": session.bytes_read,
                "bytes_written": session.bytes_written,
            })
        })
        .collect();
    Report::new(human, json!({ "sessions": json }))
}
