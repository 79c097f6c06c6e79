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
    lab_with("", "7d")
}

/// Two applications that share their files; what `mail` does can be taken back. `top` comes first in its policy.
fn lab_with(top: &str, window: &str) -> Lab {
    let policy = tempfile::tempdir().unwrap();
    for (app, top, undo) in [("mail", top, format!("undo = \"{window}\"\n")), ("office", "", String::new())] {
        let text = format!(
            "application = \"{app}\"\nlifetime = \"8h\"\n{top}\n[[grant]]\npath = \"shared\"\nmount = \"/work\"\nrights = \"read-write\"\n{undo}"
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
    let dry = contract(&lab, "undo mail --since 10m --dry-run --json");
    assert!(dry.contains("\"kept\": 1"), "{dry}");
    let blast = contract(&lab, "blast mail --since 10m");
    assert!(blast.contains("shared/docs/30.txt"), "{blast}");
    let told = contract(&lab, "undo mail --since 10m --json");
    assert!(told.contains("\"kept\": 1") && told.contains("\"failed\": 0"), "{told}");
    assert!(told.contains("\"expired\": 0") && told.contains("(before mail 20"), "{told}");
    assert_eq!(json(&told)["paths"], json(&dry)["paths"], "a dry run tells what will be");
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

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
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
        ("undo office --since 5m", 0, "nothing there that is still to be taken back"),
        ("undo Mail --since 5m", 2, "Mail"),
        ("undo mail --since 5m --path shared/../../etc", 2, "`..`"),
        ("blast nobody --since 5m", 4, "nobody"),
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

/// Every way in which a program can change files, through the kernel's cache and mappings too.
const CHANGES: &str = r#"
import ctypes, fcntl, mmap, os, stat
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(path, mode, offset, length):
    with open(path, "r+b") as file:
        call = libc.fallocate
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
        if call(file.fileno(), mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), path)
def exchange(one, other):
    assert libc.renameat2(-100, one.encode(), -100, other.encode(), 2) == 0
with open("mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    memory[5000:5000 + 70000] = b"m" * 70000
    memory[-1:] = b"!"
with open("behind", "r+b") as file:   # written to the cache, and out when the kernel likes
    for at in range(0, 400000, 1000):
        file.seek(at)
        file.write(b"w" * 700)
with open("overwritten", "r+b", buffering=0) as file:
    file.write(b"o" * 300000)
os.truncate("truncated", 10)
os.truncate("extended", 900000)
with open("appended", "ab") as file:
    file.write(b"a" * 5000)
with open("created", "wb") as file:
    file.write(b"c")
os.unlink("unlinked")
os.rmdir("empty")
os.mkdir("made")
os.rename("renamed", "made/renamed")
os.rename("replacing", "replaced")
exchange("one", "other")
os.link("linked", "made/linked")
os.symlink("linked", "made/symlink")
os.chmod("chmoded", 0o600)
os.utime("touched", (1, 2))
os.setxattr("attributed", "user.new", b"new")
os.removexattr("attributed", "user.old")
fallocate("allocated", 0, 400000, 300000)
fallocate("punched", 3, 5000, 100000)
fallocate("zeroed", 16, 100, 90000)   # the kernel hands neither collapse nor insert on to a FUSE file system
with open("one", "rb") as source, open("copied", "r+b") as target:
    left = 200000
    while left > 0:
        done = os.copy_file_range(source.fileno(), target.fileno(), left, None, 1000)
        assert done > 0
        left -= done
os.sync()
"#;

#[test]
fn each_kind_of_change_through_a_mount() {
    let lab = lab();
    let files = "mapped behind overwritten truncated extended appended unlinked renamed replacing replaced one other linked \
                 chmoded touched attributed allocated punched zeroed copied";
    script(
        &lab,
        "office",
        &format!(
            "for name in {files}; do head -c 400000 /dev/urandom > $name; done
             mkdir empty; setfattr -n user.old -v old attributed
             touch -d '2020-02-02 02:02:02' *; touch -d '2020-02-02 02:02:02' .; sync"
        ),
    );
    let look =
        format!("{LOOK}; for f in *; do echo \"$f: $(getfattr -d $f 2> /dev/null | tr '\\n' ' ')\"; done");
    let before = script(&lab, "office", &look);
    std::thread::sleep(std::time::Duration::from_secs(11));
    lab.app("mail", ["python3", "-c", CHANGES]).cwd("/mnt/work").run().unwrap();
    let after = script(&lab, "office", &look);
    for name in files.split_whitespace() {
        // All but the name that is linked, whose contents stay.
        let lines = |text: &str| {
            text.lines().filter(|line| line.contains(name)).map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(name == "linked" || lines(&before) != lines(&after), "{name} was not changed");
    }
    let dry = json(&contract(&lab, "undo mail --since 10m --dry-run --json"));
    assert_eq!(script(&lab, "office", &look), after, "a dry run changes nothing");
    let told = json(&contract(&lab, "undo mail --since 10m --json"));
    assert_eq!(told["paths"], dry["paths"], "a dry run tells what will be");
    assert_eq!(
        (&told["kept"], &told["failed"], &told["expired"]),
        (&0.into(), &0.into(), &0.into()),
        "{told}"
    );
    assert_eq!(script(&lab, "office", &look), before);
    // And once more the other way round: all that the application had done, apart from times.
    let contents = "find . -type f -exec sha256sum {} + | sort";
    let undo = told["undo"].as_str().unwrap();
    assert_eq!(ends(&lab, &format!("undo mail --undo {undo}")).0, 0);
    let lines = |text: &str| {
        text.lines().filter(|line| line.split_once("  ./").is_some()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&script(&lab, "office", contents)), lines(&after));
}

/// An application that outruns its room is fenced before it destroys what could not be brought back.
#[test]
fn a_full_store_fences_and_all_comes_back() {
    let lab = lab_with("undo-space = \"4 MiB\"\nundo-full = \"fence\"\n", "7d");
    script(&lab, "office", "for n in 1 2 3; do head -c 3000000 /dev/urandom > $n; done; sync");
    let before = script(&lab, "office", LOOK);
    std::thread::sleep(std::time::Duration::from_secs(11));
    let attack = "for n in 1 2 3; do dd if=/dev/zero of=$n bs=64k count=45 conv=notrunc,fsync status=none || exit 9; done";
    let output = lab.app("mail", ["bash", "-c", attack]).cwd("/mnt/work").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(9) && said.contains("denied"), "{:?}: {said}", output.status);
    // Every call of it, from now on.
    let output = lab.app("mail", ["cat", "/mnt/work/3"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("denied"), "{said}");
    assert_ne!(script(&lab, "office", LOOK), before);
    // Nothing of what it did is lost, and the undo says so.
    let told = json(&contract(&lab, "undo mail --since 10m --json"));
    assert_eq!(told["complete"], true, "{told}");
    assert_eq!(
        (&told["kept"], &told["failed"], &told["expired"]),
        (&0.into(), &0.into(), &0.into()),
        "{told}"
    );
    assert!(told["restored"].as_u64().unwrap() >= 1, "{told}");
    assert_eq!(script(&lab, "office", LOOK), before);
    // It stays fenced.
    assert!(!lab.app("mail", ["cat", "/mnt/work/3"]).output().unwrap().status.success());
}

/// Where the oldest is forgotten instead, it is told for each path what cannot be taken back any more.
#[test]
fn a_full_store_that_forgets_tells_what_is_gone() {
    let lab = lab_with("undo-space = \"4 MiB\"\nundo-full = \"forget\"\n", "7d");
    script(&lab, "office", "for n in 1 2 3 4 5 6; do head -c 1000000 /dev/urandom > $n; done; sync");
    let sum = |n: usize| script(&lab, "office", &format!("sha256sum < {n}"));
    let before: Vec<String> = (1..=6).map(sum).collect();
    std::thread::sleep(std::time::Duration::from_secs(11));
    let overwrite = "for n in 1 2 3 4 5 6; do head -c 1000000 /dev/zero | dd of=$n bs=64k conv=notrunc,fsync iflag=fullblock status=none; done";
    script(&lab, "mail", overwrite);
    let dry = json(&contract(&lab, "undo mail --since 10m --dry-run --json"));
    let output = lab.base(["contract", "--json", "undo", "mail", "--since", "10m"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(told["paths"], dry["paths"], "a dry run tells what will be");
    assert_eq!(told["complete"], false, "{told}");
    let paths = told["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 6, "{told}");
    for (n, before) in before.iter().enumerate() {
        let path = format!("shared/{}", n + 1);
        let item = paths.iter().find(|item| item["path"] == path.as_str()).unwrap();
        let same = sum(n + 1) == *before;
        let verdict = if same { "restored" } else { "expired" };
        assert_eq!(item["verdict"], verdict, "{told}");
    }
    let number = |verdict: &str| told[verdict].as_u64().unwrap();
    assert!(number("restored") > 0 && number("expired") > 0, "{told}");
    // A second one has only those left that are gone.
    let (code, said) = ends(&lab, "undo mail --since 10m");
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("expired") && said.contains("older changes of that time are forgotten"), "{said}");
}

/// What is over its window is forgotten in the background, and told as such.
#[test]
fn what_is_over_its_window_is_told_as_expired() {
    let lab = lab_with("", "1s");
    script(&lab, "office", "echo before > f; echo other > g; sync");
    std::thread::sleep(std::time::Duration::from_secs(11));
    script(&lab, "mail", "echo after > f; rm g; sync");
    // A start closes what the former process wrote to; what is closed and over its window is forgotten within a minute.
    lab.stop_gateway(strongroom_tests::lab::StopHow::Kill).unwrap();
    lab.start_gateway().unwrap();
    let forgotten = lab.data().join(".strongroom-undo/logs/mail/forgotten");
    while !forgotten.exists() {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let (code, said) = ends(&lab, "undo mail --since 10m");
    assert_eq!(code, 4, "{said}");
    for path in ["shared/f", "shared/g"] {
        let told = said.lines().any(|line| line.starts_with("expired") && line.contains(path));
        assert!(told, "{said}");
    }
    assert!(said.contains("older changes of that time are forgotten"), "{said}");
    let output = lab.base(["contract", "--json", "undo", "mail", "--since", "10m"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let told = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(
        (&told["complete"], &told["expired"], &told["restored"]),
        (&false.into(), &2.into(), &0.into())
    );
    assert_eq!(script(&lab, "office", "cat f; ls ?"), "after\nf\n");
}

/// On a terminal a bar shows how far an undo is; in a pipe there is none.
#[test]
fn a_terminal_sees_how_far_it_is() {
    let lab = lab();
    script(&lab, "office", "for n in $(seq 300); do echo before > $n; done; sync");
    std::thread::sleep(std::time::Duration::from_secs(11));
    script(&lab, "mail", "for n in $(seq 300); do echo after > $n; done; sync");
    let (_, said) = ends(&lab, "undo mail --since 10m --dry-run");
    assert!(said.contains("300 paths would be restored") && !said.contains("undoing"), "{said}");
    let seen =
        lab.base(["script", "-qec", "TERM=xterm contract undo mail --since 10m", "/dev/null"]).run().unwrap();
    assert!(seen.contains("undoing"), "{seen}");
    assert!(seen.contains("300 paths restored"), "{seen}");
    assert_eq!(script(&lab, "office", "cat 1 300"), "before\nbefore\n");
}
