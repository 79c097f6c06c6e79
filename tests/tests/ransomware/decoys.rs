//! Decoys, as a user and an attacker meet them: out of the way, alarming, back after an undo, planted again.

use std::fs;
use std::path::PathBuf;

use super::house::House;

#[test]
fn decoys_disturb_nobody_but_an_attacker() {
    let house = House::new("decoys", "decoys = 3");
    let sums = house.sums();
    let decoys = planted(&house);
    assert_eq!(decoys.len(), 3, "{sums}");

    // A user meets them in `ls -a` only, and reads, copies and packs them as anything else.
    assert!(!house.guest("ls; echo *").contains(".txt"));
    assert_eq!(house.guest("ls -a | grep -c '^\\.[a-z]'").trim(), "3");
    house.guest(
        "ls -laR . > /tmp/list; grep -rc reader . > /tmp/count; tar cf /tmp/all.tar .; cp -a . /tmp/copy",
    );
    // Removing what is shown, and a directory of it, leaves them alone.
    house.guest("mkdir new; cp d0/* new/; rm -rf new; echo more >> d1/f1.csv; rm -r d5");
    assert_eq!(house.alerts().len(), 0);
    assert_eq!(planted(&house), decoys);

    // Somebody removed one behind the gateway's back; the rest is found by whoever goes through everything.
    fs::remove_file(&decoys[0]).unwrap();
    let kept: Vec<_> = decoys[1..].iter().map(|decoy| fs::read(decoy).unwrap()).collect();
    let before = house.sums();
    let said = house.attack("overwrite-rename", 100.0, &before).said().unwrap();
    assert!(said.starts_with("0 files") || said.starts_with("1 files"), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    house.recovers(1);
    let alerts = house.alerts();
    assert!(alerts.iter().any(|alert| alert["text"].as_str().unwrap().contains("decoy")), "{alerts:?}");
    // The attacked one is as it was, the missing one is planted again with the new session; the policy's `undo 15m` has taken
    // back what the user did, too.
    assert_eq!(planted(&house), decoys);
    let now: Vec<_> = decoys[1..].iter().map(|decoy| fs::read(decoy).unwrap()).collect();
    assert!(now == kept, "a decoy came back different");
    let without =
        |sums: &str| sums.lines().filter(|line| !line.contains("./.")).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&house.sums()), without(&sums));

    // Who empties the whole grant is taken for an attacker: documented.
    for (number, script) in
        [(2, "find . -mindepth 1 -delete"), (3, "git init -q . ; git add d0; git clean -qfd; true")]
    {
        let output = house.lab.app("mail", ["sh", "-c", script]).cwd("/mnt/work").output().unwrap();
        println!("{script}: {}", String::from_utf8_lossy(&output.stderr));
        house.recovers(number);
        assert_eq!(planted(&house), decoys, "{script}");
        assert_eq!(without(&house.sums()), without(&sums), "{script}");
    }
}

/// The hidden files at the top.
fn planted(house: &House) -> Vec<PathBuf> {
    let entries = fs::read_dir(house.root()).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut found: Vec<_> = files.map(|entry| entry.path()).collect();
    found.sort();
    found
}
