//! Preserve: what the gateway recorded about the application goes to the incident's evidence. The guest's disk is kept when
//! the guest is restarted.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use strongroom_base::Failure;
use strongroom_base::base::gateway_failure;
use strongroom_base::files::sync_dir;
use strongroom_protocol::admin::AuditPlace;

use crate::daemon::Daemon;
use crate::incident::{Open, StepError, StepResult};
use crate::journal::facts;

/// How far before the alert the records go, at least.
const BEFORE_US: u64 = 3_600_000_000;
/// The records that are kept, in bytes; a longer trail stays at the gateway.
const MAX_BYTES: u64 = 256 << 20;

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let back = now.undo_secs.unwrap_or(0).saturating_mul(1_000_000).max(BEFORE_US);
    let since = now.cause.at_us.min(now.opened_us).saturating_sub(back);
    let evidence = now.dir.join("evidence");
    let (part, whole) = (evidence.join("audit.jsonl.part"), evidence.join("audit.jsonl"));
    let failed =
        |error: std::io::Error| Failure::other(format!("cannot keep `{}`: {error}", whole.display()));
    let mut file =
        File::options().create(true).truncate(true).write(true).mode(0o600).open(&part).map_err(failed)?;
    let mut client = daemon.connect()?;
    let (mut place, mut bytes, mut cut) = (AuditPlace::default(), 0u64, false);
    loop {
        let (page, next) = client.audit_lines(&now.application, since, place).map_err(gateway_failure)?;
        file.write_all(&page).map_err(failed)?;
        bytes += page.len() as u64;
        match next {
            None => break,
            Some(_) if bytes >= MAX_BYTES => {
                cut = true;
                break;
            }
            Some(next) => place = next,
        }
        if daemon.is_stopping() {
            return Err(StepError::stopping());
        }
    }
    file.sync_all().map_err(failed)?;
    std::fs::rename(&part, &whole).map_err(failed)?;
    sync_dir(&evidence).map_err(failed)?;
    Ok(facts([("audit_bytes", bytes.into()), ("audit_since_us", since.into()), ("audit_cut", cut.into())]))
}
