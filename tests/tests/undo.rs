//! `contract undo` in a lab: an application damages files through its mount, and all of it is taken back while another
//! application's work is kept.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::fs;

use strongroom_tests::lab::{Lab, Options};

fn lab() -> Lab {
    let policy = tempfile::tempdir().unwrap();
    for (app, undo) in [("mail", "undo = \"7d\"\n"), ("office", "")] {
        let text = format!(
            "application = \"{app}\"\nlifetime = \"8h\"\n\n[[grant]]\npath = \"shared\"\nmount = \"/work\"\nrights = \"read-write\"\n{undo}"
        );
        fs::write(policy.path().join(format!("{app}.toml")), text).unwrap();
    }
    let lab =
        Lab::up(&Options { policy: Some(policy.path().to_owned()), ..Options::for_test("undo") }).unwrap();
    let status = lab.status().unwrap();
    assert!(status.guests.iter().all(|guest| guest.problem.is_none()), "{status:?}");
    lab
}

fn script(lab: &Lab, app: &str, text: &str) -> String {
    lab.app(app, ["bash", "-euo", "pipefail", "-c", text]).cwd("/mnt/work").run().unwrap()
}

/// Everything that can be seen of the files: names, kinds, modes, sizes, times, sums.
const LOOK: &str =
    "find . -printf '%p %y %m %s %T@ %l\\n' | sort; find . -type f -exec sha256sum {} + | sort";

fn contract(lab: &Lab, args: &str) -> String {
    lab.base(["bash", "-c", &format!("contract {args}")]).run().unwrap()
}

#[test]
fn an_attack_is_taken_back_and_the_work_of_others_is_kept() {
    let lab = lab();
    script(
        &lab,
        "office",
        "mkdir -p docs photos/2026
         for n in $(seq 60); do seq $n 500 > docs/$n.txt; done
         head -c 3000000 /dev/urandom > photos/2026/big.raw
         ln -s docs/1.txt newest; ln docs/2.txt docs/two.txt
         chmod 640 docs/3.txt; touch -d '2020-02-02 02:02:02' docs/*.txt photos photos/2026 docs .
         sync",
    );
    let before = script(&lab, "office", LOOK);
    // Of what was changed within ten seconds before, nothing is told apart.
    std::thread::sleep(std::time::Duration::from_secs(11));
    script(
        &lab,
        "mail",
        "for n in $(seq 1 20); do tr '0-9' 'a-j' < docs/$n.txt > docs/$n.txt.locked; rm docs/$n.txt; done
         for n in $(seq 21 40); do dd if=/dev/urandom of=docs/$n.txt bs=512 count=2 conv=notrunc status=none; done
         for n in $(seq 41 50); do echo gone > docs/$n.txt; mv docs/$n.txt docs/$n.enc; done
         truncate -s 0 photos/2026/big.raw; mv photos pictures; rm newest
         chmod 000 docs/60.txt; touch docs/59.txt; setfattr -n user.ransom -v pay docs/58.txt
         echo pay > README; sync",
    );
    // The user goes on working in the other guest.
    script(&lab, "office", "echo more >> docs/30.txt; echo new > docs/new.txt");
    let json = contract(&lab, "undo mail --since 10m --dry-run --json");
    assert!(json.contains("\"kept\": 1"), "{json}");
    let blast = contract(&lab, "blast mail --since 10m");
    assert!(blast.contains("shared/docs/30.txt"), "{blast}");
    let told = contract(&lab, "undo mail --since 10m --json");
    assert!(told.contains("\"kept\": 1") && told.contains("\"failed\": 0"), "{told}");
    assert!(told.contains("\"expired\": 0") && told.contains("(before mail 20"), "{told}");
    // Theirs is kept, the old version beside it; all else is as before.
    assert_eq!(script(&lab, "office", "tail -n 1 docs/30.txt; cat docs/new.txt"), "more\nnew\n");
    assert_eq!(script(&lab, "office", "seq 30 500 | cmp - docs/30.txt\\ \\(before*; echo same"), "same\n");
    script(
        &lab,
        "office",
        "rm docs/30.txt docs/new.txt; mv docs/30.txt\\ \\(before* docs/30.txt; touch -d '2020-02-02 02:02:02' docs",
    );
    assert_eq!(script(&lab, "office", LOOK), before);
    // The past can be looked at.
    let history = contract(&lab, "history shared/docs/1.txt");
    assert!(history.contains("deleted") && history.contains("mail"), "{history}");
    // What makes no sense is refused.
    for (args, says) in [
        ("undo nobody --since 5m", "nothing that could be undone"),
        ("undo mail", "how far back"),
        ("undo mail --since 5m --path /etc", "starts with `/`"),
        ("undo mail --since 5m --path a/../b", "`..`"),
        ("cat shared/none --at 1m", "no file had this path"),
    ] {
        let refused = lab.base(["bash", "-c", &format!("! contract {args} 2>&1")]).run().unwrap();
        assert!(refused.contains(says), "{args}: {refused}");
    }
}

/// What a command says, and how it ends.
fn ends(lab: &Lab, args: &str) -> (i32, String) {
    let output = lab.base(["bash", "-c", &format!("contract {args} 2>&1")]).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_makes_no_sense_ends_with_its_own_code() {
    let lab = lab();
    script(&lab, "office", "echo before > f; echo other > g; sync");
    std::thread::sleep(std::time::Duration::from_secs(11));
    script(&lab, "mail", "echo after > f; rm g; sync");
    for (args, code, says) in [
        ("undo nobody --since 5m", 4, "nothing that could be undone"),
        ("undo mail", 2, "how far back"),
        ("undo mail --since 5m --path /etc", 2, "starts with `/`"),
        ("undo mail --since 5m --path a/../b", 2, "`..`"),
        ("undo mail --since 5m --path elsewhere", 0, "nothing"),
        ("undo mail --incident 77", 4, "77"),
        ("history shared/none", 0, "the undo log tells nothing of shared/none"),
        ("cat shared/none --at 1m", 4, "no file had this path"),
        ("cat shared/f --at 2126-01-01T00:00:00Z", 2, "has not come yet"),
        ("cat shared/f --at yesterday", 2, "yesterday"),
    ] {
        let (ended, said) = ends(&lab, args);
        assert!(ended == code && said.contains(says), "{args}: {ended}: {said}");
    }
    // A dry run tells, and changes nothing.
    let (code, said) = ends(&lab, "undo mail --since 10m --dry-run");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("shared/f") && said.contains("shared/g"), "{said}");
    assert_eq!(script(&lab, "office", "cat f; ls ?"), "after\nf\n");
    // Two people at once: one after the other, and nothing is undone twice.
    let both: Vec<_> = (0..2)
        .map(|_| {
            let command = lab.base(["contract", "--json", "undo", "mail", "--since", "10m"]);
            std::thread::spawn(move || command.output().unwrap())
        })
        .collect();
    let told: Vec<serde_json::Value> = both
        .into_iter()
        .map(|person| {
            let output = person.join().unwrap();
            assert_eq!(output.status.code(), Some(0));
            serde_json::from_slice(&output.stdout).unwrap()
        })
        .collect();
    assert!(told.iter().all(|told| told["kept"] == 0 && told["failed"] == 0), "{told:?}");
    assert_eq!(script(&lab, "office", "cat f g"), "before\nother\n");
    // An undo is undone, by its own number: what the application had done is there again.
    let first = told.iter().max_by_key(|told| told["restored"].as_u64()).unwrap();
    let (code, said) = ends(&lab, &format!("undo mail --undo {}", first["undo"].as_str().unwrap()));
    assert_eq!(code, 0, "{said}");
    assert_eq!(script(&lab, "office", "cat f; ls ?"), "after\nf\n");
}
