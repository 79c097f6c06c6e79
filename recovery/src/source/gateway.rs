//! Alerts of the gateway, over the admin door. How far they were read is kept, so that none is missed while this daemon
//! is away, and none is taken for news twice.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_base::admin::AlertPlace;
use strongroom_base::base::gateway_failure;
use strongroom_base::files::{self, Existing, SECRET};
use strongroom_base::{Base, Failure};

use crate::daemon::Daemon;
use crate::intake::{About, Heard, Intake, Kind};
use crate::log::say;

/// How long the gateway is to wait for an alert.
const WAIT: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Default, Serialize, Deserialize)]
struct OnDisk {
    boot: u64,
    number: u64,
}

/// Listens for as long as the daemon runs.
pub(super) fn listen(daemon: &Arc<Daemon>, intake: &Intake) {
    let mut place = read_place(&daemon.base);
    let (mut pause, mut away) = (FIRST_PAUSE, false);
    while !daemon.is_stopping() {
        let heard = hear(daemon, intake, &mut place, &mut || {
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
    place: &mut AlertPlace,
    there: &mut dyn FnMut(),
) -> Result<(), Failure> {
    let mut client = daemon.base.connect(WAIT + daemon.config.limits.gateway_timeout.0)?;
    while !daemon.is_stopping() {
        let alerts = client.alerts(*place, WAIT).map_err(gateway_failure)?;
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
                text: alert.evidence,
                count: alert.count.into(),
            };
            intake.hear(daemon, heard);
        }
        if *place != alerts.place {
            *place = alerts.place;
            keep_place(&daemon.base, *place)?;
        }
    }
    Ok(())
}

fn read_place(base: &Base) -> AlertPlace {
    let text = std::fs::read_to_string(base.recovery_dir().join("gateway.json")).unwrap_or_default();
    let kept: OnDisk = serde_json::from_str(&text).unwrap_or_default();
    AlertPlace { boot: kept.boot, number: kept.number }
}

fn keep_place(base: &Base, place: AlertPlace) -> Result<(), Failure> {
    let kept = OnDisk { boot: place.boot, number: place.number };
    let text = serde_json::to_string(&kept).map_err(Failure::other)?;
    files::write(&base.recovery_dir().join("gateway.json"), &(text + "\n"), SECRET, Existing::Replace)
}
