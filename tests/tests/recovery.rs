//! Recovery, whole: an alert, the fence, a guest started anew, its contract, its mount; and the daemon killed anywhere in
//! between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom_tests::lab::{ENROL_ADDRESS, Hypervisor, Lab, Options, StopHow};

const MAIL: &str = r#"
application = "mail"
guest = "mail-guest"
lifetime = "8h"

[[grant]]
path = "users/alice/Mail"
mount = "/Mail"
rights = "read-write"
undo = "7d"

[[grant]]
path = "users/alice/Photos"
mount = "/Photos"
rights = "append-only"

[recovery]
on = ["violation", "ids.severity <= 2"]
steps = ["fence", "undo 15m", "restart", "reissue"]
addresses = ["10.77.1.2"]
"#;

const EDITOR: &str = r#"
application = "editor"

[[grant]]
path = "users/alice/Documents"
mount = "/Documents"
rights = "read-write"
"#;

struct House {
    hypervisor: Hypervisor,
    lab: Lab,
}

impl House {
    fn new(purpose: &str, more: &str) -> House {
        House::with_policy(purpose, MAIL, more)
    }

    fn with_policy(purpose: &str, mail: &str, more: &str) -> House {
        let policy = tempfile::tempdir().unwrap();
        fs::write(policy.path().join("mail.toml"), mail).unwrap();
        fs::write(policy.path().join("editor.toml"), EDITOR).unwrap();
        let lab = Lab::up(&Options {
            policy: Some(policy.path().to_owned()),
            enrolment: true,
            ..Options::for_test(purpose)
        })
        .unwrap();
        let hypervisor = Hypervisor::start(&lab).unwrap();
        let driver = format!(
            "[enrol]\naddress = \"{ENROL_ADDRESS}\"\n\n[guest.mail-guest]\ndriver = \"command\"\n\
             start = [\"lab\", \"ask-hypervisor\", \"{{application}}\", \"{{secret}}\"]\n\n{more}"
        );
        fs::write(lab.etc("base").join("base/recovery.toml"), driver).unwrap();
        House { hypervisor, lab }
    }

    fn base(&self, words: &[&str]) -> (i32, Value, String) {
        let mut all = vec!["contract", "--json"];
        all.extend(words);
        let output = self.lab.base(all).output().unwrap();
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code().unwrap(), json, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn incidents(&self) -> Vec<Value> {
        let (code, json, said) = self.base(&["incidents"]);
        assert_eq!(code, 0, "{said}");
        json["incidents"].as_array().unwrap().clone()
    }

    fn closed(&self, number: u64) -> Value {
        let begun = Instant::now();
        loop {
            let (_, json, said) = self.base(&["incidents", &number.to_string()]);
            if json["standing"] == "closed" {
                break;
            }
            let goes_on = json["standing"] != "stuck" && begun.elapsed() < LONGEST;
            assert!(goes_on, "{json:#}\n{said}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.base(&["incidents", &number.to_string()]).1
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.log("base").join("recovery.log")).unwrap_or_default()
    }

    fn generation(&self) -> u64 {
        let (_, json, _) = self.base(&["sessions", "mail"]);
        json["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["generation"].as_u64().unwrap())
            .max()
            .unwrap_or(0)
    }

    /// The guest works, as its user would see it: the mount is there and takes a file.
    fn works(&self, text: &str) {
        wait_until("the guest works", || {
            let wrote = self
                .lab
                .app("mail", ["sh", "-c", &format!("echo {text} > /mnt/Mail/note && cat /mnt/Mail/note")]);
            wrote.cwd("/").output().is_ok_and(|output| output.stdout == format!("{text}\n").as_bytes())
        });
    }

    /// What the undo of an incident is to take back.
    fn ruin(&self, text: &str) {
        let script = format!("echo ruined {text} > Mail/inbox/cur/1.eml; sync Mail");
        self.lab.app("mail", ["sh", "-c", &script]).run().unwrap();
    }

    /// So often that the gateway raises an alert.
    fn asks_for_what_it_may_not(&self) {
        let script = "for n in $(seq 400); do rm -f Photos/2026/README.txt; done; true";
        self.lab.app("mail", ["sh", "-c", script]).output().unwrap();
    }

    fn contracts_of(&self, generation: u64) -> usize {
        let (_, json, _) = self.base(&["list", "mail", "--all", "--offline"]);
        let list = json["contracts"].as_array().unwrap();
        list.iter().filter(|one| one["generation"] == generation).count()
    }
}

/// Whatever takes longer hangs.
const LONGEST: Duration = Duration::from_secs(120);

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONGEST, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn steps_of(incident: &Value) -> Vec<&str> {
    incident["steps"].as_array().unwrap().iter().map(|step| step["phase"].as_str().unwrap()).collect()
}

#[test]
fn an_attacked_guest_comes_back_clean_by_itself() {
    let house =
        House::new("recover", "[notify]\ncommand = [\"sh\", \"-c\", \"cat >> /var/log/strongroom/told\"]\n");
    house.lab.start_recovery(&[]).unwrap();
    assert_eq!(house.generation(), 1);
    house
        .lab
        .app("mail", ["sh", "-c", "echo evil > /tmp/implant; cp /etc/strongroom/holder.key /tmp"])
        .run()
        .unwrap();
    let old_key = house.lab.app("mail", ["cat", "/etc/strongroom/holder.pub"]).run().unwrap();

    // The editor goes on all the time.
    let editor = house.lab.app(
        "editor",
        ["sh", "-c", "for n in $(seq 2000); do echo $n > Documents/n || exit 1; read x < Documents/n; [ $x = $n ] || exit 2; done"],
    );
    let editor = std::thread::spawn(move || editor.output().unwrap());

    // It ruins what it may change, and deletes what it may only add to, again and again.
    house
        .lab
        .app("mail", ["sh", "-c", "for f in Mail/inbox/cur/*; do echo ruined > $f; mv $f $f.locked; done; rm -r Mail/drafts; sync Mail"])
        .run()
        .unwrap();
    let mail = house.lab.data().join("users/alice/Mail");
    assert!(mail.join("inbox/cur/1.eml.locked").exists() && !mail.join("drafts").exists());
    house.asks_for_what_it_may_not();
    wait_until("an incident has begun", || !house.incidents().is_empty());
    let incident = house.closed(1);
    assert_eq!(incident["cause"]["kind"], "violation", "{incident:#}");
    assert_eq!(steps_of(&incident), ["fence", "preserve", "undo", "restart", "reissue", "confirm"]);
    house.works("clean");
    assert_eq!(house.generation(), 2);
    assert!(fs::read_to_string(house.lab.data().join("users/alice/Photos/2026/README.txt")).is_ok());
    assert!(fs::read_to_string(mail.join("inbox/cur/1.eml")).unwrap().contains("Thursday at noon"));
    assert!(fs::read_to_string(mail.join("drafts/1.eml")).is_ok());
    assert!(!mail.join("inbox/cur/1.eml.locked").exists());
    let new_key = house.lab.app("mail", ["cat", "/etc/strongroom/holder.pub"]).run().unwrap();
    assert_ne!(old_key, new_key, "the fresh guest has a key of its own");
    assert!(!house.lab.app("mail", ["test", "-e", "/tmp/implant"]).output().unwrap().status.success());
    assert!(
        !house
            .lab
            .app("mail", ["test", "-e", "/etc/strongroom/enrolment"])
            .output()
            .unwrap()
            .status
            .success()
    );
    assert_eq!(editor.join().unwrap().status.code(), Some(0), "the editor noticed");

    // Evidence, and what people are told.
    let evidence = Path::new(incident["directory"].as_str().unwrap()).join("evidence");
    let read = |name: &str| house.lab.base(["cat", evidence.join(name).to_str().unwrap()]).run().unwrap();
    let audit = read("audit.jsonl");
    assert!(
        audit.contains("\"denied\"") && audit.lines().all(|line| line.contains("\"application\":\"mail\""))
    );
    assert!(read("sessions.json").contains("10.77.1.2"));
    // Also where the gateway was faster than the daemon, and the session is gone already.
    assert!(read("sessions.json").contains(incident["cause"]["whose"][0].as_str().unwrap()), "{incident:#}");
    assert!(read("blast.json").contains("inbox/cur/1.eml") && read("undo.json").contains("restored"));
    wait_until("the hook has told all", || {
        let told = fs::read_to_string(house.lab.log("base").join("told")).unwrap_or_default();
        ["begun", "fenced", "closed"].iter().all(|event| told.contains(&format!("\"event\":\"{event}\"")))
    });
    // No secret is left anywhere in the base domain.
    let found = house.lab.base([
        "sh",
        "-c",
        "grep -rIlx 'STRONGROOM ENROLMENT 1' /run /etc/strongroom /var /tmp 2>/dev/null; true",
    ]);
    assert_eq!(found.run().unwrap(), "");
    one_incident_is_taken_back_later(&house);
    eprintln!("alert to fence {} ms, to the end {} ms", incident["to_fence_ms"], incident["took_ms"]);
    house.lab.stop_recovery(StopHow::Clean).unwrap();
    house.lab.down().unwrap();
}

/// An incident whose steps take nothing back; what it was about is taken back afterwards, what the fresh guest did is not.
fn one_incident_is_taken_back_later(house: &House) {
    let mail = house.lab.data().join("users/alice/Mail");
    let ruin = "for f in Mail/inbox/cur/*; do echo ruined again > $f; done; sync Mail";
    house.lab.app("mail", ["sh", "-c", ruin]).run().unwrap();
    let (code, json, said) = house.base(&["recover", "mail", "--steps", "fence, restart, reissue"]);
    assert_eq!(code, 0, "{json:#} {said}");
    assert_eq!(house.incidents().len(), 2);
    assert_eq!(fs::read_to_string(mail.join("inbox/cur/1.eml")).unwrap(), "ruined again\n");
    house.works("third");
    let refused = |words: &[&str], exit: i32, says: &str| {
        let (code, _, said) = house.base(words);
        assert!(code == exit && said.contains(says), "{words:?}: {code} {said}");
    };
    refused(&["undo", "mail", "--incident", "99"], 4, "there is no incident 99");
    refused(&["undo", "editor", "--incident", "2"], 2, "is about `mail`, not about `editor`");
    refused(&["undo", "mail", "--incident", "2"], 2, "does not say how far back");
    let told = |more: &[&str]| {
        let words = [&["undo", "mail", "--incident", "2", "--since", "15m"], more].concat();
        let (code, json, said) = house.base(&words);
        assert_eq!(code, 0, "{json:#} {said}");
        json["paths"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| (item["path"].as_str().unwrap().to_owned(), item["verdict"].clone()))
            .collect::<Vec<_>>()
    };
    let one = ("users/alice/Mail/inbox/cur/1.eml".to_owned(), Value::from("restored"));
    let note = ("users/alice/Mail/note".to_owned(), Value::from("kept"));
    let dry = told(&["--dry-run"]);
    assert!(dry.contains(&one) && dry.contains(&note), "{dry:?}");
    assert_eq!(told(&["--path", "users/alice/Mail/inbox/cur/1.eml"]), std::slice::from_ref(&one));
    assert!(fs::read_to_string(mail.join("inbox/cur/1.eml")).unwrap().contains("Thursday at noon"));
    let rest = told(&[]);
    assert!(rest.contains(&note) && !rest.contains(&one), "{rest:?}");
    for file in fs::read_dir(mail.join("inbox/cur")).unwrap() {
        assert!(!fs::read_to_string(file.unwrap().path()).unwrap().contains("ruined"));
    }
    assert_eq!(fs::read_to_string(mail.join("note")).unwrap(), "third\n");
}

#[test]
fn killed_at_every_step_boundary_it_ends_right_and_nothing_is_done_twice() {
    killed_at_every_step_boundary("recoverkill", false);
}

/// The gateway dies with it, and is away for a while when the daemon is there again.
#[test]
fn the_gateway_killed_at_every_step_boundary_is_waited_for() {
    killed_at_every_step_boundary("recoverboth", true);
}

fn killed_at_every_step_boundary(purpose: &str, gateway_too: bool) {
    let house = House::new(purpose, "");
    let letter = house.lab.data().join("users/alice/Mail/inbox/cur/1.eml");
    let before = fs::read(&letter).unwrap();
    let mut generation = 1;
    let mut number = 0;
    for phase in ["fence", "preserve", "undo", "restart", "reissue", "confirm"] {
        for at in [phase.to_owned(), format!("{phase}:done")] {
            house.ruin(&at);
            assert_ne!(fs::read(&letter).unwrap(), before);
            house.lab.start_recovery(&["--abort-at", &at]).unwrap();
            let (code, json, said) = house.base(&["recover", "mail", "--detach", "--why", &at]);
            assert_eq!(code, 0, "{at}: {said}");
            number += 1;
            assert_eq!(json["incident"], number, "{at}: a new incident");
            wait_until("the daemon has ended", || !house.lab.recovery_runs().unwrap());
            if at != "fence" {
                // Whatever was under way: nobody but a contract of the next generation gets in.
                assert_ne!(house.generation(), generation, "{at}");
            }
            if gateway_too {
                house.lab.stop_gateway(StopHow::Kill).unwrap();
            }
            house.lab.start_recovery(&[]).unwrap();
            if gateway_too {
                // What was done before needs no gateway; the rest tries, more often than a step that fails by itself may.
                wait_until("the gateway was missed five times", || {
                    let incident = house.base(&["incidents", &number.to_string()]).1;
                    let tries = incident["steps"].as_array().unwrap().last().unwrap()["attempts"].as_u64();
                    assert_ne!(incident["standing"], "stuck", "{incident:#}");
                    incident["standing"] == "closed" || tries.unwrap() > 5
                });
                house.lab.start_gateway().unwrap();
            }
            let incident = house.closed(number);
            generation += 1;
            house.works(&at);
            assert_eq!(house.generation(), generation, "{at}: {incident:#}");
            assert_eq!(house.contracts_of(generation), 1, "{at}: issued once");
            assert_eq!(incident["contracts"].as_array().unwrap().len(), 1, "{at}");
            assert_eq!(fs::read(&letter).unwrap(), before, "{at}: {incident:#}");
            let twice = usize::from(at == "restart:done");
            assert!(house.hypervisor.restarts() <= usize::try_from(number).unwrap() + 1 + twice, "{at}");
            house.lab.stop_recovery(StopHow::Clean).unwrap();
        }
    }
    assert_eq!(house.incidents().len(), 12);
}

/// Who is killed at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Gateway,
    Daemon,
    Both,
}

/// At random moments of an incident somebody is killed, once or twice, and started again: it ends right, with one new
/// generation, one contract, and the damage of each round taken back once. The first is left alone and tells how long they take here.
fn killed_at_random(purpose: &str, rounds: u64, victims: &[Victim]) {
    let house = House::new(purpose, "");
    let letter = house.lab.data().join("users/alice/Mail/inbox/cur/1.eml");
    let before = fs::read(&letter).unwrap();
    let seed = std::env::var("SEED").map_or(0x5eed_0bad_cafe, |text| text.parse().unwrap());
    let mut state: u64 = seed;
    let mut below = |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % most
    };
    let mut killed_in = std::collections::BTreeMap::<(Victim, String), u64>::new();
    let mut reach = 0;
    for round in 1..=rounds {
        let generation = house.generation();
        house.ruin(&format!("round {round}"));
        assert_ne!(fs::read(&letter).unwrap(), before);
        house.lab.start_recovery(&[]).unwrap();
        let (code, json, said) =
            house.base(&["recover", "mail", "--detach", "--why", &format!("round {round}")]);
        assert_eq!(code, 0, "round {round}: {said}");
        assert_eq!(json["incident"], round, "a new incident");
        if round == 1 {
            let begun = Instant::now();
            house.closed(round);
            // Seeing that it is closed, and killing, take as long as a good part of it.
            reach = u64::try_from(begun.elapsed().as_micros()).unwrap() / 2;
        }
        let kills = if round == 1 { 0 } else { 1 + below(2) };
        for _ in 0..kills {
            std::thread::sleep(Duration::from_micros(below(reach)));
            let victim = victims[usize::try_from(below(victims.len() as u64)).unwrap()];
            if victim != Victim::Daemon {
                house.lab.stop_gateway(StopHow::Kill).unwrap();
            }
            if victim != Victim::Gateway {
                house.lab.stop_recovery(StopHow::Kill).unwrap();
            }
            let (_, json, _) = house.base(&["incidents", &round.to_string()]);
            let at = json["steps"].as_array().and_then(|steps| steps.last().cloned());
            let at = match at {
                _ if json["standing"] == "closed" => "closed".to_owned(),
                Some(step) => step["phase"].as_str().unwrap().to_owned(),
                None => "alert".to_owned(),
            };
            *killed_in.entry((victim, at)).or_default() += 1;
            let first = below(2) == 0;
            if first {
                house.lab.start_recovery(&[]).unwrap();
            }
            house.lab.start_gateway().unwrap();
            if !first {
                house.lab.start_recovery(&[]).unwrap();
            }
        }
        let incident = house.closed(round);
        house.works(&format!("round {round}"));
        assert_eq!(house.generation(), generation + 1, "round {round}: {incident:#}");
        assert_eq!(house.contracts_of(generation + 1), 1, "round {round}: issued once");
        assert_eq!(fs::read(&letter).unwrap(), before, "round {round}: {incident:#}");
        house.lab.stop_recovery(StopHow::Clean).unwrap();
    }
    assert_eq!(house.incidents().len() as u64, rounds);
    eprintln!("{rounds} incidents; killed in {killed_in:?}");
}

#[test]
fn killed_a_few_times_at_random_it_ends_right() {
    killed_at_random("recoverfew", 5, &[Victim::Gateway, Victim::Daemon, Victim::Both]);
}

#[test]
fn an_attack_that_comes_before_an_incident_is_over_begins_the_next() {
    let policy = MAIL.replace("\"reissue\"]", "\"reissue\", \"confirm\"]");
    let house = House::with_policy("recoveragain", &policy, "");
    house.lab.start_recovery(&[]).unwrap();
    let waits_for_a_person = |number: u64| {
        wait_until("the application is at work, and a person is waited for", || {
            let (_, json, _) = house.base(&["incidents", &number.to_string()]);
            json["steps"].to_string().contains("waits for a person")
        });
        house.works(&format!("after {number}"));
    };
    house.asks_for_what_it_may_not();
    waits_for_a_person(1);
    house.asks_for_what_it_may_not();
    let first = house.closed(1);
    assert_eq!(first["again"]["kind"], "violation", "{first:#}");
    waits_for_a_person(2);
    let (code, _, said) = house.base(&["recover", "mail", "--confirm"]);
    assert_eq!(code, 0, "{said}");
    let second = house.closed(2);
    assert_eq!((&second["again"], house.incidents().len()), (&Value::Null, 2), "{second:#}");
    assert_eq!(house.generation(), 3);
}

/// Rounds of the long kills at random; `ROUNDS` says another number, `SEED` other moments.
fn rounds() -> u64 {
    std::env::var("ROUNDS").map_or(200, |text| text.parse().unwrap())
}

#[test]
#[ignore = "takes ten minutes; a part of `make soak`"]
fn killed_at_random_moments_it_ends_right() {
    killed_at_random("recoverrandom", rounds(), &[Victim::Daemon]);
}

#[test]
#[ignore = "takes ten minutes; a part of `make soak`"]
fn the_gateway_and_the_daemon_killed_at_random_moments_it_ends_right() {
    killed_at_random("recovergateway", rounds(), &[Victim::Gateway, Victim::Both, Victim::Daemon]);
}

#[test]
fn two_people_at_once_get_one_incident_and_stuck_ones_go_on() {
    let house = House::new("recovertwo", "");
    // Without a daemon: the command brings its own.
    let both: Vec<_> = (0..2)
        .map(|_| {
            let command = house.lab.base(["contract", "--json", "recover", "mail"]);
            std::thread::spawn(move || command.output().unwrap())
        })
        .collect();
    for person in both {
        let output = person.join().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(
            (output.status.code(), &json["incident"], &json["standing"]),
            (Some(0), &1.into(), &"closed".into())
        );
    }
    house.works("once");
    wait_until("its own daemon has ended", || !house.lab.recovery_runs().unwrap());

    // A driver that is missing is named before anything is done to the guest, and the application stays fenced.
    let config = house.lab.etc("base").join("base/recovery.toml");
    let right = fs::read_to_string(&config).unwrap();
    fs::write(&config, right.replace("\"lab\"", "\"no-such-driver\"")).unwrap();
    let (code, _, said) = house.base(&["recover", "mail"]);
    assert_eq!(code, 1);
    assert!(said.contains("no-such-driver") && said.contains("the application is fenced"), "{said}");
    assert_eq!(house.generation(), 0);
    let (_, _, said) = house.base(&["recover", "mail", "--dry-run"]);
    assert_eq!(said, "");
    wait_until("its own daemon has ended", || !house.lab.recovery_runs().unwrap());
    fs::write(&config, right).unwrap();
    let (code, json, said) = house.base(&["recover", "mail"]);
    assert_eq!((code, &json["incident"]), (0, &2.into()), "{said}");
    house.works("again");

    // A person who asks for what cannot be.
    let (code, _, said) = house.base(&["recover", "nobody"]);
    assert_eq!(code, 4, "{said}");
    let (code, _, said) = house.base(&["recover", "editor"]);
    assert_eq!(code, 2, "{said}");
    let (code, _, said) = house.base(&["incidents", "77"]);
    assert_eq!(code, 4, "{said}");
    let (code, _, said) = house.base(&["recover", "mail", "--confirm"]);
    assert_eq!(code, 4, "{said}");
}

#[test]
fn an_old_ledger_is_told_what_it_forgot_and_a_gateway_that_is_away_is_waited_for() {
    let house = House::new("recoverold", "");
    let disk = house.lab.etc("base").ancestors().nth(3).unwrap().to_owned();
    let copy = |from: &str, to: &str| {
        let copied =
            std::process::Command::new("cp").arg("-a").arg(disk.join(from)).arg(disk.join(to)).status();
        assert!(copied.unwrap().success());
    };
    house.lab.stop_gateway(StopHow::Clean).unwrap();
    copy("state/ledger.redb", "old-ledger");
    house.lab.start_recovery(&[]).unwrap();
    // The gateway is away: the incident keeps trying, and its revocation is kept.
    let (code, _, said) = house.base(&["recover", "mail", "--detach"]);
    assert_eq!(code, 0, "{said}");
    let pending = house.lab.etc("base").join("issued/pending");
    let some = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut list| list.next().is_some());
    wait_until("the revocation is kept", || some(&pending));
    house.lab.start_gateway().unwrap();
    house.closed(1);
    house.works("back");
    assert!(!some(&pending));
    // Somebody puts an old backup of the ledger back. What was revoked since is not in it.
    let (code, _, said) = house.base(&["revoke", "editor"]);
    assert_eq!(code, 0, "{said}");
    house.lab.stop_gateway(StopHow::Clean).unwrap();
    copy("old-ledger", "state/ledger.redb");
    house.lab.start_gateway().unwrap();
    wait_until("the gateway is told", || house.log().contains("OLD LEDGER"));
    let read = house.lab.app("editor", ["cat", "/mnt/Documents/letter.txt"]).cwd("/").output().unwrap();
    assert!(!read.status.success() && String::from_utf8_lossy(&read.stderr).contains("Permission denied"));
    house.works("after");
    assert_eq!(house.generation(), 2);
}

#[test]
fn a_secret_is_good_once_for_its_guest_and_for_a_short_time() {
    let house = House::new("recoversecret", "");
    // A guest that does not boot by itself: its secret lies where the test can take it.
    let config = |lifetime: &str| {
        let text = format!(
            "[enrol]\naddress = \"{ENROL_ADDRESS}\"\nlifetime = \"{lifetime}\"\n\n[guest.mail-guest]\ndriver = \"command\"\n\
             start = [\"cp\", \"{{secret}}\", \"/var/log/strongroom/handed\"]\n"
        );
        fs::write(house.lab.etc("base").join("base/recovery.toml"), text).unwrap();
    };
    let handed = house.lab.log("base").join("handed");
    let secret = || {
        wait_until("the secret is handed over", || {
            fs::read_to_string(&handed).is_ok_and(|text| text.ends_with('\n'))
        });
        let text = fs::read_to_string(&handed).unwrap();
        fs::remove_file(&handed).unwrap();
        text
    };
    let enroll = |app: &str, text: &str, out: &str| {
        fs::write(house.lab.etc(app).join("secret"), text).unwrap();
        house.lab.app(app, ["mkdir", "-p", out]).cwd("/").run().unwrap();
        let words = [
            "contract",
            "enroll",
            "--secret",
            "/etc/strongroom/secret",
            "--at",
            ENROL_ADDRESS,
            "--out",
            out,
            "--for",
            "20s",
        ];
        let output = house.lab.app(app, words).cwd("/").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    config("2s");
    house.lab.start_recovery(&[]).unwrap();
    house.base(&["recover", "mail", "--detach"]);
    let old = secret();
    wait_until("it is stuck", || house.incidents()[0]["standing"] == "stuck");
    assert_eq!(house.incidents()[0]["fenced"], true);
    let (code, said) = enroll("mail", &old, "/tmp/late");
    assert_eq!(code, 3, "too late: {said}");
    house.lab.stop_recovery(StopHow::Clean).unwrap();
    config("10m");
    house.lab.start_recovery(&[]).unwrap();

    // Whoever goes on with it gets the guest started once more, with another secret.
    let (code, json, said) = house.base(&["recover", "mail", "--detach"]);
    assert_eq!((code, &json["incident"]), (0, &1.into()), "{said}");
    let new = secret();
    assert_ne!(old, new);
    let (code, said) = enroll("mail", &old, "/tmp/old");
    assert_eq!(code, 3, "the former secret: {said}");
    let secret_line = new.lines().last().unwrap();
    let forged = new.replace(secret_line, &format!("secret {}", "A".repeat(43)));
    let (code, said) = enroll("editor", &forged, "/tmp/forged");
    assert_eq!(code, 3, "a guessed secret: {said}");
    let (code, said) = enroll("editor", &new.replace("incident 1", "incident 2"), "/tmp/other");
    assert_eq!(code, 3, "another incident: {said}");
    let (code, said) = enroll("editor", &new.replace("application mail", "application editor"), "/tmp/other");
    assert_eq!(code, 3, "another application: {said}");
    let (code, said) = enroll("editor", "", "/tmp/other");
    assert_eq!(code, 4, "none at all: {said}");
    let (code, said) = enroll("mail", &new, "/tmp/right");
    assert_eq!(code, 0, "{said}");
    let (code, said) = enroll("mail", &new, "/tmp/again");
    assert_eq!(code, 3, "a second key: {said}");
    assert_eq!(house.contracts_of(2), 1);

    // One that knocks with the wrong secret again and again is not listened to any more.
    let turned_away = (0..5).any(|_| enroll("editor", &forged, "/tmp/forged").0 == 5);
    assert!(turned_away);
}

#[test]
fn two_applications_are_recovered_at_the_same_time() {
    let house = House::new(
        "recoverpair",
        "[guest.editor]\ndriver = \"command\"\nstart = [\"lab\", \"ask-hypervisor\", \"editor\", \"{secret}\"]\n",
    );
    house.lab.start_recovery(&[]).unwrap();
    for app in ["mail", "editor"] {
        let (code, _, said) = house.base(&["recover", app, "--detach", "--steps", "fence,restart,reissue"]);
        assert_eq!(code, 0, "{said}");
    }
    let (one, two) = (house.closed(1), house.closed(2));
    let time = |incident: &Value, name: &str| incident[name].as_u64().unwrap();
    assert!(time(&two, "opened_us") < time(&one, "closed_us"), "one after the other");
    house.works("both");
    let read = house.lab.app("editor", ["cat", "/mnt/Documents/letter.txt"]).cwd("/");
    wait_until("the editor works", || read.clone().output().is_ok_and(|output| output.status.success()));
}

#[test]
fn a_driver_that_hangs_or_fails_leaves_it_fenced_and_alerts_are_folded_meanwhile() {
    let house = House::new("recoverhang", "");
    let config = house.lab.etc("base").join("base/recovery.toml");
    let right = fs::read_to_string(&config).unwrap();
    let driver = |start: &str| {
        let text = format!(
            "[enrol]\naddress = \"{ENROL_ADDRESS}\"\n\n[limits]\nattempts = 2\n\n\
             [[ids]]\nformat = \"suricata\"\nfile = \"/var/log/strongroom/eve.json\"\n\n\
             [guest.mail-guest]\ndriver = \"command\"\ntimeout = \"1s\"\nstart = [\"sh\", \"-c\", \"{start}\"]\n"
        );
        fs::write(&config, text).unwrap();
    };
    let eve = house.lab.log("base").join("eve.json");
    fs::write(&eve, "").unwrap();

    driver("sleep 1000 & echo $! >>/var/log/strongroom/children; wait");
    let (code, _, said) = house.base(&["recover", "mail"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("did not end within 1 s and was killed"), "{said}");
    assert!(said.contains("the application is fenced"), "{said}");
    let children = fs::read_to_string(house.lab.log("base").join("children")).unwrap();
    assert_eq!(children.lines().count(), 2, "tried twice");
    wait_until("what the driver started is gone", || {
        children.lines().all(|child| {
            let running = format!("grep -q '^State:.[^Z]' /proc/{child}/status");
            !house.lab.base(["sh", "-c", &running]).output().unwrap().status.success()
        })
    });
    let fenced = || {
        assert_eq!(house.generation(), 0);
        let read = house.lab.app("mail", ["ls", "/mnt/Mail"]).cwd("/").output().unwrap();
        assert!(String::from_utf8_lossy(&read.stderr).contains("Permission denied"), "{read:?}");
    };
    fenced();
    wait_until("its own daemon has ended", || !house.lab.recovery_runs().unwrap());

    driver("echo no such guest >&2; exit 7");
    house.lab.start_recovery(&[]).unwrap();
    let (code, _, said) = house.base(&["recover", "mail"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("\"incident\": 1,"), "the same one goes on: {said}");
    assert!(said.contains("exit code 7") && said.contains("no such guest"), "{said}");
    fenced();

    // Alerts about what is being dealt with begin nothing, however many there are.
    let line = "{\"timestamp\":\"2037-01-01T00:00:00.000000+0000\",\"event_type\":\"alert\",\"src_ip\":\"10.77.1.2\",\
                \"dest_ip\":\"203.0.113.9\",\"alert\":{\"signature\":\"ET x\",\"severity\":1}}\n";
    let append = |text: &str| {
        use std::io::Write;
        fs::OpenOptions::new().append(true).open(&eve).unwrap().write_all(text.as_bytes()).unwrap();
    };
    append(&line.repeat(1200));
    let kept = Path::new(house.incidents()[0]["directory"].as_str().unwrap()).join("alerts.jsonl");
    let kept = || {
        let text = house.lab.base(["cat", kept.to_str().unwrap()]).run().unwrap();
        text.lines().count()
    };
    wait_until("as many are kept as may be", || kept() == 1000);
    append(&line.repeat(3));
    assert_eq!(house.incidents().len(), 1);
    assert_eq!(house.incidents()[0]["standing"], "stuck");
    house.lab.stop_recovery(StopHow::Clean).unwrap();

    fs::write(&config, right).unwrap();
    let (code, json, said) = house.base(&["recover", "mail"]);
    assert_eq!((code, &json["incident"]), (0, &1.into()), "{said}");
    house.works("at last");
    assert_eq!((house.incidents().len(), house.generation()), (1, 2));
    assert_eq!(kept(), 1000);
}

#[test]
fn a_sensors_alerts_lead_to_the_guest_and_junk_leads_nowhere() {
    let house = House::new(
        "recoverids",
        "[[ids]]\nformat = \"suricata\"\nfile = \"/var/log/strongroom/eve.json\"\n\n\
         [[ids]]\nformat = \"snort\"\nfile = \"/var/log/strongroom/alert\"\n",
    );
    let eve = house.lab.log("base").join("eve.json");
    fs::write(&eve, "").unwrap();
    house.lab.start_recovery(&[]).unwrap();
    let append = |path: &Path, text: &[u8]| {
        use std::io::Write;
        fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text).unwrap();
    };
    let alert = |severity: u8, from: &str, time: &str| {
        format!(
            "{{\"timestamp\":\"{time}\",\"event_type\":\"alert\",\"src_ip\":\"{from}\",\"dest_ip\":\"203.0.113.9\",\
             \"alert\":{{\"signature\":\"ET x\",\"severity\":{severity}}}}}\n"
        )
    };
    let future = "2037-01-01T00:00:00.000000+0000";
    append(&eve, b"\xff\xfe\0junk\n{\"event_type\":\"alert\"\n");
    append(&eve, &[b'x'; 3_000_000]);
    append(&eve, b"\n");
    append(&eve, alert(1, "10.77.99.99", future).as_bytes());
    append(&eve, alert(3, "10.77.1.2", future).as_bytes());
    append(&eve, alert(1, "10.77.1.2", "2001-01-01T00:00:00.000000+0000").as_bytes());
    for kind in ["no alerts", "too long", "unknown guests", "no policy acts on", "older than a day", "future"]
    {
        let begun = Instant::now();
        while !house.log().contains(kind) {
            assert!(begun.elapsed() < Duration::from_secs(60), "`{kind}` was not said: {}", house.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(house.incidents().is_empty());
    // Rotated, and cut in the middle of a line.
    let line = alert(2, "10.77.1.2", future);
    append(&eve, &line.as_bytes()[..40]);
    fs::rename(&eve, eve.with_extension("json.1")).unwrap();
    append(&eve.with_extension("json.1"), &line.as_bytes()[40..]);
    fs::write(&eve, "").unwrap();
    wait_until("an incident has begun", || !house.incidents().is_empty());
    let incident = house.closed(1);
    assert_eq!(
        (&incident["cause"]["source"], &incident["cause"]["severity"]),
        (&"suricata".into(), &2.into())
    );
    house.works("suricata");
    let time = house.lab.base(["date", "+%m/%d-%H:%M:%S.000000", "-d", "+1 second"]).run().unwrap();
    append(
        &house.lab.log("base").join("alert"),
        format!(
            "{}  [**] [1:1:1] ET y [**] [Priority: 1] {{TCP}} 203.0.113.9:80 -> 10.77.1.2:4444\n",
            time.trim()
        )
        .as_bytes(),
    );
    wait_until("another has begun", || house.incidents().len() == 2);
    assert_eq!(house.closed(2)["cause"]["source"], "snort");
    house.works("snort");
}
