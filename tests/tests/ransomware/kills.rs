//! The gateway is killed around a verdict. Either the verdict was on the disk, and the application is fenced when the gateway is
//! back; or the next harmful operations bring one. Recovery hears of it either way, and nothing is lost.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use strongroom_tests::attack::styles;
use strongroom_tests::lab::StopHow;

use super::house::{House, wait_until};
use super::names;

/// Files a second: a verdict comes after 0.4 s, or one second of deleting, so that some kills are before it and some after.
const PACE: f64 = 20.0;

#[test]
fn a_kill_around_a_verdict_loses_nothing() {
    kills("ransomkill", 3, 0x5eed);
}

/// `RANSOMWARE_KILLS` and `RANSOMWARE_SEED` ask for others. When exactly a kill comes is the machine's own dice.
#[test]
#[ignore = "minutes; `make soak` runs it"]
fn tens_of_kills_around_a_verdict_lose_nothing() {
    let told = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    kills("ransomkills", told("RANSOMWARE_KILLS").unwrap_or(50), told("RANSOMWARE_SEED").unwrap_or(0xc0ffee));
}

fn kills(purpose: &str, rounds: u64, mut seed: u64) {
    let mut below = |end: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 8) % end
    };
    let house = House::new(purpose, "");
    let (styles, sums) = (styles().unwrap(), house.sums());
    let first = house.root().join(names(&sums).next().unwrap());
    let mut judged = 0;
    for round in 1..=rounds {
        let style = &styles[below(styles.len() as u64) as usize];
        let (alerts, was, incidents) = (house.alerts().len(), look(&first), house.incidents());
        let attack = house.attack(style, PACE, &sums);
        wait_until("the first file is harmed", || look(&first) != was);
        // Half of them where the verdict comes.
        let from = 350_000 * below(2);
        std::thread::sleep(Duration::from_micros(from + below(500_000 - from)));
        house.lab.stop_gateway(StopHow::Kill).unwrap();
        judged += u64::from(house.alerts().len() > alerts);
        house.lab.start_gateway().unwrap();
        let said = attack.said().unwrap();
        // No guest is restarted here, and recovery may be done between two files: then the attack goes on, and there is one more. So it may not even
        // see that it was cut.
        let cut = said.contains("Permission denied");
        assert!(cut || house.incidents() > incidents, "round {round}, {style}: {said}");
        wait_until("an incident has begun", || house.incidents() > incidents);
        wait_until("all is as it was", || house.sums() == sums);
        house.recovers(house.incidents());
        assert_eq!(house.sums(), sums, "round {round}, {style}: {}", house.causes());
        // But never two about one contract: the first has fenced it.
        let mut attacked = house.attacked();
        let all = attacked.len();
        attacked.sort();
        attacked.dedup();
        assert!(attacked.len() == all && attacked.iter().all(|one| !one.is_empty()), "{}", house.causes());
    }
    eprintln!("{rounds} kills, {judged} of them after the verdict");
}

/// What tells that a file was changed.
fn look(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec(), found.size()))
}
