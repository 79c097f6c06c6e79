//! How long a recovery takes, from the alert to the fence and to the application at work again, in a lab.
//!
//! Each round: the application in one guest does what its contract does not allow until the gateway raises an alert; the
//! recovery daemon fences it, has the guest ended and started anew, enrols it, and sees it mount. The times are those of
//! the alert and of the receipt by the gateway's clock, and of the incident's journal; a lab has one clock.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;
use strongroom_benches::statistics::percentile;
use strongroom_tests::lab::{ENROL_ADDRESS, Hypervisor, Lab, LabName, Options as LabOptions};

const POLICY: &str = r#"
application = "mail"

[[grant]]
path = "users/alice/Photos"
mount = "/Photos"
rights = "append-only"

[recovery]
on = ["violation"]
steps = ["fence", "restart", "reissue"]
"#;

/// Tries to delete what it may only add to.
const ATTACK: &str = r#"
import os
for _ in range(400):
    try:
        os.unlink("/mnt/Photos/2026/README.txt")
    except OSError:
        pass
"#;

/// Only a guard against hanging for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measure recovery in a lab: alert to fence, alert to work.
#[derive(Parser)]
struct Options {
    /// Incidents
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Print the samples as JSON, in milliseconds
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rounds > 0, "--rounds is at least 1");
    let policy = tempfile::tempdir()?;
    fs::write(policy.path().join("mail.toml"), POLICY)?;
    let lab = Lab::up(&LabOptions {
        policy: Some(policy.path().to_owned()),
        enrolment: true,
        ..LabOptions::named(LabName::unique("benchrecovery"))
    })?;
    let _hypervisor = Hypervisor::start(&lab)?;
    fs::write(
        lab.etc("base").join("base/recovery.toml"),
        format!(
            "[enrol]\naddress = \"{ENROL_ADDRESS}\"\n\n[limits]\nincidents-per-hour = 1000000\n\n[guest.mail]\n\
             driver = \"command\"\nstart = [\"lab\", \"ask-hypervisor\", \"{{application}}\", \"{{secret}}\"]\n"
        ),
    )?;
    lab.start_recovery(&[])?;
    let mut rows: [(&str, Vec<f64>); 4] = [
        ("alert to fence", vec![]),
        ("alert to guest started anew", vec![]),
        ("alert to contract issued", vec![]),
        ("alert to application at work", vec![]),
    ];
    for number in 1..=options.rounds {
        let incident = round(&lab, number)?;
        let alert = incident["cause"]["at_us"].as_u64().context("no time of the alert")?;
        let end_of = |phase: &str, name: &str| {
            let steps = incident["steps"].as_array().into_iter().flatten();
            let step = steps.into_iter().find(|step| step["phase"] == phase);
            let value = step.map(|step| if name == "ended_us" { &step[name] } else { &step["facts"][name] });
            value.and_then(Value::as_u64).with_context(|| format!("incident {number} has no {phase}"))
        };
        let ends = [
            end_of("fence", "fenced_at_us")?,
            end_of("restart", "ended_us")?,
            end_of("reissue", "ended_us")?,
            end_of("confirm", "ended_us")?,
        ];
        for ((_, samples), end) in rows.iter_mut().zip(ends) {
            samples.push(end.saturating_sub(alert) as f64 / 1000.0);
        }
    }
    lab.down()?;
    if options.json {
        let all: serde_json::Map<_, _> =
            rows.into_iter().map(|(name, samples)| (name.to_owned(), samples.into())).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("{} incidents, guests as namespaces; milliseconds", options.rounds);
    println!("{:<32} {:>8} {:>8} {:>8}", "", "p50", "p99", "max");
    for (name, samples) in rows {
        let at = |share| percentile(&samples, share).unwrap_or(f64::NAN);
        println!("{name:<32} {:>8.1} {:>8.1} {:>8.1}", at(0.5), at(0.99), at(1.0));
    }
    Ok(())
}

/// One attack and its incident, to the end.
fn round(lab: &Lab, number: u64) -> Result<Value> {
    let begun = Instant::now();
    let text = number.to_string();
    loop {
        // Denied calls end with the fence; what the attacker makes of that is nobody's concern.
        let _ = lab.app("mail", ["python3", "-c", ATTACK]).cwd("/").output()?;
        let output = lab.base(["contract", "--json", "incidents", &text]).output()?;
        if output.status.success() {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "no alert came of the attack");
    }
    loop {
        let incident: Value =
            serde_json::from_str(&lab.base(["contract", "--json", "incidents", &text]).run()?)?;
        match incident["standing"].as_str() {
            Some("closed") => {
                // The next attack needs the mount, which may be a moment behind the session.
                while !is_mounted(lab)? {
                    ensure!(begun.elapsed() < PATIENCE, "the guest did not mount");
                    std::thread::sleep(Duration::from_millis(20));
                }
                return Ok(incident);
            }
            Some("running") if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            other => bail!("incident {number} is {other:?}: {incident:#}"),
        }
    }
}

fn is_mounted(lab: &Lab) -> Result<bool> {
    Ok(lab.status()?.guests.iter().any(|guest| guest.name == "mail" && guest.mounted == Some(true)))
}
