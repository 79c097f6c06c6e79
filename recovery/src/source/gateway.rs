//! Alerts of the gateway, over the admin door. How far they were read is kept, so that none is missed while this daemon
//! is away, and none is taken for news twice.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_base::admin::{AdminClient, AlertPlace};
use strongroom_base::archive::Archive;
use strongroom_base::base::gateway_failure;
use strongroom_base::files::{self, Existing, SECRET};
use strongroom_base::issuing::Issuer;
use strongroom_base::revoking;
use strongroom_base::sys::{Pace, set_pace};
use strongroom_base::{Base, Failure};

use crate::daemon::Daemon;
use crate::intake::{About, Heard, Intake, Kind};
use crate::log::say;

/// How long the gateway is to wait for an alert.
const WAIT: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is kept: how far alerts were read, and how many revocations the gateway had on record at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    boot: u64,
    number: u64,
    #[serde(default)]
    revocations: u32,
}

/// Listens for as long as the daemon runs.
pub(super) fn listen(daemon: &Arc<Daemon>, intake: &Intake) {
    // An alert leads to a fence.
    set_pace(Pace::Urgent);
    let mut kept = read(&daemon.base);
    let (mut pause, mut away) = (FIRST_PAUSE, false);
    while !daemon.is_stopping() {
        let heard = hear(daemon, intake, &mut kept, &mut || {
            pause = FIRST_PAUSE;
            if std::mem::take(&mut away) {
                say("the gateway is there again");
            }
        });
        if let Err(failure) = heard {
            away = true;
            daemon.noise.say("the gateway's alerts cannot be heard", || failure.to_string());
            daemon.pause(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn hear(
    daemon: &Arc<Daemon>,
    intake: &Intake,
    kept: &mut Kept,
    there: &mut dyn FnMut(),
) -> Result<(), Failure> {
    let mut client = daemon.base.connect(WAIT + daemon.config.limits.gateway_timeout.0)?;
    mend(daemon, &mut client, kept)?;
    while !daemon.is_stopping() {
        let place = AlertPlace { boot: kept.boot, number: kept.number };
        let alerts = client.alerts(place, WAIT).map_err(gateway_failure)?;
        there();
        if alerts.missed > 0 {
            let missed = alerts.missed;
            daemon.noise.say("alerts of the gateway that were missed", || format!("{missed} in a row"));
        }
        for alert in alerts.list {
            let heard = Heard {
                source: "gateway",
                kind: Kind::Gateway(alert.kind),
                at_us: Some(alert.at_us),
                about: About::Application(alert.application),
                whose: alert
                    .session
                    .zip(alert.contract)
                    .map(|(session, contract)| (session.to_string(), contract.to_string())),
                text: alert.evidence,
                count: alert.count.into(),
            };
            intake.hear(daemon, heard);
        }
        if place != alerts.place {
            (kept.boot, kept.number) = (alerts.place.boot, alerts.place.number);
            keep(&daemon.base, *kept)?;
        }
    }
    Ok(())
}

/// What is void stays void: a gateway that has fewer revocations on record than it had, or lower generations than the
/// archive, was started from an old backup of its ledger, and is told again what it has forgotten.
fn mend(daemon: &Daemon, client: &mut AdminClient, kept: &mut Kept) -> Result<(), Failure> {
    let status = client.status().map_err(gateway_failure)?;
    let (issuer, archive) = (Issuer::open(&daemon.base)?, Archive::open(&daemon.base)?);
    revoking::send_pending(client, &archive, &issuer)?.iter().for_each(|line| say(line));
    let fewer = status.revocations < kept.revocations;
    let again = revoking::send_forgotten(client, &archive, &issuer, fewer)?;
    if again > 0 {
        say(&format!(
            "the gateway has an OLD LEDGER (boot {:016x}): {again} revocations were sent again and hold now",
            status.boot
        ));
    }
    let now = client.status().map_err(gateway_failure)?.revocations.max(kept.revocations);
    if now != kept.revocations {
        kept.revocations = now;
        keep(&daemon.base, *kept)?;
    }
    Ok(())
}

fn read(base: &Base) -> Kept {
    let text = std::fs::read_to_string(base.recovery_dir().join("gateway.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn keep(base: &Base, kept: Kept) -> Result<(), Failure> {
    let text = serde_json::to_string(&kept).map_err(Failure::other)?;
    files::write(&base.recovery_dir().join("gateway.json"), &(text + "\n"), SECRET, Existing::Replace)
}
