//! Two guests rename, exchange and remove the same names at the same time. The kernel of each takes along what it was told of a name to
//! the new one, and takes what it knew by a removed name for gone; afterwards both see the same.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use pair::{APPS, Dice, Guest};

/// Does each line: operations apart by `;`, one after the other, in as many threads as there are parts apart by `|`, and tells how many
/// have ended with ESTALE so far; or, after `L`, tells what names stand for; or, after `D`, whether those that stand for
/// directories can be used.
const GUEST: &str = r#"
import ctypes, errno, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
stale, held = [], []
def exchange(one, other):
    if libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "exchange")
def perform(steps):
    for step in steps.split(";"):
        what, *names = step.split()
        try:
            if what == "exchange": exchange(*names)
            elif what == "rename": os.rename(*names)
            elif what == "create": os.close(os.open(names[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            elif what == "unlink": os.unlink(names[0])
            elif what == "mkdir": os.mkdir(names[0])
            elif what == "rmdir": os.rmdir(names[0])
            elif what == "hold": held.append(os.open(names[0], os.O_RDONLY))
            else: os.stat(names[0])
        except OSError as error:
            if error.errno == errno.ESTALE: stale.append(step)
def stands_for(name):
    try:
        return str(os.stat(name).st_mtime_ns)
    except FileNotFoundError:
        return "-"
def used(name):
    try:
        os.mkdir(name + "/probe")
        listed = os.listdir(name)
        os.rmdir(name + "/probe")
        return "usable" if listed == ["probe"] else repr(listed).replace(" ", "")
    except OSError as error:
        return "-" if not os.path.lexists(name) else errno.errorcode[error.errno]
for line in sys.stdin:
    what, _, rest = line.strip().partition(" ")
    if what == "L":
        print(" ".join(map(stands_for, rest.split())), flush=True)
    elif what == "D":
        print(" ".join(map(used, rest.split())), flush=True)
        while held: os.close(held.pop())
    else:
        threads = [threading.Thread(target=perform, args=[steps]) for steps in rest.split("|")]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(stale), flush=True)
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

/// One moves directories about while the other takes their names away.
fn on_directories(dice: &mut Dice, app: usize, names: &[String]) -> String {
    let mut one = || {
        let what = dice.roll(3);
        let mut name = || names[usize::try_from(dice.roll(names.len() as u64)).unwrap()].clone();
        match (app, what) {
            (0, _) => format!("exchange {} {}", name(), name()),
            (_, 0) => format!("rmdir {}", name()),
            (_, 1) => format!("rename {} {}", name(), name()),
            _ => format!("stat {}", name()),
        }
    };
    let steps: Vec<String> = (0..[12, 4][app]).map(|_| one()).collect();
    format!("P {}", steps.join(";"))
}

#[test]
fn a_directory_is_not_taken_for_the_one_that_was_removed() {
    let lab = pair::lab("removals");
    let rounds = std::env::var("ROUNDS").map_or(300, |rounds| rounds.parse().unwrap());
    let names = ["a", "b", "c", "d"].map(str::to_owned);
    let look = format!("D {}", names.join(" "));
    let each = |what: &str| format!("P {}", names.each_ref().map(|name| format!("{what} {name}")).join(";"));
    let mut guests = APPS.map(|app| Guest::start(&lab, app, &["python3", "-c", GUEST]));
    let mut dice = Dice::new(11);
    for round in 0..rounds {
        guests[0].ask(&each("mkdir"));
        // A kernel forgets what it thinks of a directory that nobody has open.
        guests[1].ask(&each("hold"));
        let lines = [0, 1].map(|app| on_directories(&mut dice, app, &names));
        for (guest, line) in guests.iter_mut().zip(&lines) {
            guest.tell(line);
        }
        for guest in &mut guests {
            guest.hear();
        }
        let [one, two] = guests.each_mut().map(|guest| guest.ask(&look));
        let well = one.split(' ').all(|each| ["-", "usable"].contains(&each));
        assert!(well && one == two, "round {round}, {names:?}: {one}; {two}; after {lines:#?}");
    }
    let stale = guests.each_mut().map(|guest| guest.ask("P stat a"));
    eprintln!("{rounds} rounds; ESTALE was seen by the two {stale:?} times");
    guests.iter_mut().for_each(Guest::kill);
    lab.down().unwrap();
}
