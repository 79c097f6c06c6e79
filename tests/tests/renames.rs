//! Two guests rename and exchange the same names at the same time. The kernel of each takes along what it was told of a name to the new
//! one; afterwards both see the same.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use pair::{APPS, Dice, Guest};

/// Does each line: operations apart by `;`, one after the other, in as many threads as there are parts apart by `|`; or, after `L`, tells what
/// names stand for.
const GUEST: &str = r#"
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
def perform(steps):
    for step in steps.split(";"):
        what, *names = step.split()
        try:
            if what == "exchange": libc.renameat2(AT_FDCWD, names[0].encode(), AT_FDCWD, names[1].encode(), RENAME_EXCHANGE)
            elif what == "rename": os.rename(*names)
            elif what == "create": os.close(os.open(names[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            elif what == "unlink": os.unlink(names[0])
            else: os.stat(names[0])
        except OSError:
            pass
def stands_for(name):
    try:
        return str(os.stat(name).st_mtime_ns)
    except FileNotFoundError:
        return "-"
for line in sys.stdin:
    what, _, rest = line.strip().partition(" ")
    if what == "L":
        print(" ".join(map(stands_for, rest.split())), flush=True)
    else:
        threads = [threading.Thread(target=perform, args=[steps]) for steps in rest.split("|")]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("done", flush=True)
"#;

fn steps(dice: &mut Dice, names: &[String]) -> String {
    let mut one = || {
        let mut name = || names[usize::try_from(dice.roll(names.len() as u64)).unwrap()].clone();
        let (from, to) = (name(), name());
        match dice.roll(10) {
            0..3 => format!("exchange {from} {to}"),
            3..6 => format!("rename {from} {to}"),
            6..8 => format!("create {from}"),
            8 => format!("unlink {from}"),
            _ => format!("stat {from}"),
        }
    };
    let threads: Vec<String> = (0..3).map(|_| [one(), one()].join(";")).collect();
    format!("P {}", threads.join("|"))
}

#[test]
fn renamed_and_exchanged_at_the_same_time_a_name_stands_for_the_same_everywhere() {
    let lab = pair::lab("renames");
    lab.app("one", ["mkdir", "d0", "d1"]).cwd("/mnt/work").run().unwrap();
    let names: Vec<String> = ["", "d0/", "d1/"]
        .iter()
        .flat_map(|dir| ["a", "b", "c"].map(|name| format!("{dir}{name}")))
        .collect();
    let look = format!("L {}", names.join(" "));
    let mut guests = APPS.map(|app| Guest::start(&lab, app, &["python3", "-c", GUEST]));
    let mut dice = Dice::new(7);
    for round in 0..1000 {
        let lines = guests.each_ref().map(|_| steps(&mut dice, &names));
        for (guest, line) in guests.iter_mut().zip(&lines) {
            guest.tell(line);
        }
        // Nobody looks before both have ended.
        for guest in &mut guests {
            guest.hear();
        }
        for guest in &mut guests {
            guest.tell(&look);
        }
        let [one, two] = guests.each_mut().map(Guest::hear);
        assert_eq!(one, two, "round {round}, {names:?}, after {lines:#?}");
    }
    guests.iter_mut().for_each(Guest::kill);
    lab.down().unwrap();
}
