//! A lab with one application under detection, and the recovery daemon.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom_tests::attack::Attack;
use strongroom_tests::lab::{Lab, Options};
use tempfile::TempDir;

use super::{fill, names, names_and_sums};

pub const APP: &str = "mail";

pub struct House {
    pub lab: Lab,
    data: TempDir,
}

impl House {
    /// `detection`: lines of the policy beside the verdict.
    pub fn new(purpose: &str, detection: &str) -> House {
        let (data, policy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(&data.path().join(APP));
        let text = format!(
            "application = \"{APP}\"\nlifetime = \"8h\"\n\n[[grant]]\npath = \"{APP}\"\nmount = \"/work\"\nrights = \"read-write\"\n\
             undo = \"7d\"\n\n[detection]\nverdict = \"fence\"\n{detection}\n\n\
             [recovery]\non = [\"ransomware\"]\nsteps = [\"fence\", \"undo 15m\", \"reissue\"]\n"
        );
        fs::write(policy.path().join(format!("{APP}.toml")), text).unwrap();
        let lab = Lab::up(&Options {
            policy: Some(policy.path().to_owned()),
            data: Some(data.path().to_owned()),
            ..Options::for_test(purpose)
        })
        .unwrap();
        let limits = "[limits]\nincidents-per-hour = 1000\n";
        fs::write(lab.etc("base").join("base/recovery.toml"), limits).unwrap();
        lab.start_recovery(&[]).unwrap();
        House { lab, data }
    }

    pub fn root(&self) -> PathBuf {
        self.data.path().join(APP)
    }

    pub fn sums(&self) -> String {
        names_and_sums(&self.root())
    }

    /// Begins an attack on everything that `sums` lists, `pace` files a second.
    pub fn attack(&self, style: &str, pace: f64, sums: &str) -> Attack {
        Attack::begin(&self.lab, APP, "/mnt/work", style, pace, names(sums)).unwrap()
    }

    /// What a shell in the guest says.
    pub fn guest(&self, script: &str) -> String {
        self.lab.app(APP, ["sh", "-ec", script]).cwd("/mnt/work").run().unwrap()
    }

    /// Alerts of ransomware on the gateway's audit trail.
    pub fn alerts(&self) -> Vec<Value> {
        let trail = "cat /var/lib/strongroom/audit.jsonl* | grep '\"ransomware\"' || true";
        let lines = self.lab.storage(["sh", "-c", trail]).run().unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn incidents(&self) -> u64 {
        self.attacked().len() as u64
    }

    /// The contracts whose alerts began incidents.
    pub fn attacked(&self) -> Vec<String> {
        let said = self.lab.base(["contract", "--json", "incidents"]).output().unwrap().stdout;
        let json: Value = serde_json::from_slice(&said).unwrap_or_default();
        let all = json["incidents"].as_array().into_iter().flatten();
        all.map(|one| one["cause"]["whose"][1].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// What the last incidents are about, and what the gateway and the daemon say.
    pub fn causes(&self) -> String {
        let base = "cd \"$STRONGROOM_DIR\"/recovery/incidents && for n in $(ls | tail -n 3); do echo \"$n\"; tail -n 40 \"$n\"/*.jsonl; done";
        let said = |output: anyhow::Result<String>| output.unwrap_or_else(|error| format!("{error:#}"));
        let incidents = said(self.lab.base(["sh", "-c", base]).run());
        let gateway =
            said(self.lab.storage(["sh", "-c", "tail -n 60 /var/lib/strongroom/audit.jsonl"]).run());
        let log = fs::read_to_string(self.lab.log("base").join("recovery.log")).unwrap_or_default();
        let late: Vec<&str> = log.lines().rev().take(30).collect();
        format!("{incidents}\n{gateway}\n{}", late.join("\n"))
    }

    /// Waits until incident `number` is closed and the guest works again.
    pub fn recovers(&self, number: u64) {
        let mut incident = Value::Null;
        wait_until("the incident is closed", || {
            let number = number.to_string();
            let said = self.lab.base(["contract", "--json", "incidents", &number]).output().unwrap().stdout;
            incident = serde_json::from_slice(&said).unwrap_or_default();
            assert_ne!(incident["standing"], "stuck", "{incident:#}");
            incident["standing"] == "closed"
        });
        wait_until("the guest works", || {
            self.lab.app(APP, ["ls", "/mnt/work/d0"]).output().is_ok_and(|output| output.status.success())
        });
    }
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(120), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
