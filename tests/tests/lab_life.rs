//! Labs come and go: two at once do not collide, and nothing stays, however one ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use strongroom_tests::lab::{self, Lab, LabName, Options, StopHow};

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn empty(purpose: &str) -> Options {
    Options { empty: true, ..Options::for_test(purpose) }
}

/// The PID namespaces of a lab's guests: as long as any process of the lab lives, it is in one of them or above.
fn pid_namespaces(lab: &Lab) -> BTreeSet<String> {
    let link = ["readlink", "/proc/self/ns/pid"];
    let mut found = BTreeSet::from([lab.base(link).run().unwrap(), lab.storage(link).run().unwrap()]);
    for app in lab.applications().unwrap() {
        found.insert(lab.app(&app, link).run().unwrap());
    }
    found.into_iter().map(|line| line.trim().to_owned()).collect()
}

fn processes_in(namespaces: &BTreeSet<String>) -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<i32>().is_ok()))
        .filter(|entry| {
            fs::read_link(entry.path().join("ns/pid"))
                .is_ok_and(|link| namespaces.contains(link.to_string_lossy().as_ref()))
        })
        .map(|entry| fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default())
        .collect()
}

fn directories(name: &LabName) -> Vec<String> {
    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var("XDG_RUNTIME_DIR").unwrap_or_default();
    [
        format!("/run/strongroom-lab/{name}"),
        format!("{runtime}/strongroom-lab/{name}"),
        format!("/tmp/strongroom-lab-run-{user}/{name}"),
        format!("/var/tmp/strongroom-lab-{user}/{name}"),
    ]
    .into_iter()
    .filter(|path| Path::new(path).exists())
    .collect()
}

fn assert_gone(name: &LabName, namespaces: &BTreeSet<String>) {
    assert!(lab::status_of(name).unwrap().is_none(), "the lab still has a status");
    assert_eq!(processes_in(namespaces), Vec::<String>::new(), "processes are left");
    assert_eq!(directories(name), Vec::<String>::new(), "directories are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(name.as_str()), "mounts are left:\n{mounts}");
}

fn keeper_of(name: &LabName) -> Pid {
    Pid::from_raw(lab::status_of(name).unwrap().unwrap().keeper.unwrap()).unwrap()
}

/// Kill a process as a crash would, and wait until it is gone, its children with it.
fn kill_and_wait(pid: Pid) {
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&handle, Signal::KILL).unwrap();
    let mut waiting = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut waiting, None).unwrap();
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(120), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn down_leaves_nothing() {
    let options = Options::for_test("down");
    let lab = Lab::up(&options).unwrap();
    assert!(lab.status().unwrap().guests.iter().all(|g| g.problem.is_none()), "{:?}", lab.status());
    let namespaces = pid_namespaces(&lab);
    assert_eq!(namespaces.len(), 4, "each guest has processes of its own");
    assert!(!processes_in(&namespaces).is_empty());
    lab.down().unwrap();
    assert_gone(&options.name, &namespaces);
    lab::down(&options.name).expect("a second `down` finds nothing to do");
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let options = empty("drop");
    let lab = Lab::up(&options).unwrap();
    let namespaces = pid_namespaces(&lab);
    drop(lab);
    assert_gone(&options.name, &namespaces);
}

#[test]
fn a_failed_start_leaves_nothing() {
    let options = Options { data: Some("/no/such/directory".into()), ..empty("failed") };
    let error = Lab::up(&options).unwrap_err();
    assert!(format!("{error:#}").contains("/no/such/directory"), "{error:#}");
    assert_gone(&options.name, &BTreeSet::new());
}

#[test]
fn data_that_every_guest_would_see_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let options = Options { data: Some(data), shares: vec![dir.path().to_owned()], ..empty("visible") };
    let error = format!("{:#}", Lab::up(&options).unwrap_err());
    assert!(error.contains("which every guest sees"), "{error}");
    assert_gone(&options.name, &BTreeSet::new());
}

#[test]
fn a_killed_keeper_takes_everything_along_and_the_name_can_be_used_again() {
    let options = Options { detached: true, ..Options::for_test("killed") };
    let lab = Lab::up(&options).unwrap();
    let namespaces = pid_namespaces(&lab);
    kill_and_wait(keeper_of(&options.name));
    assert_eq!(processes_in(&namespaces), Vec::<String>::new(), "processes outlived the keeper");
    let error = format!("{:#}", lab.app("mail", ["true"]).run().unwrap_err());
    assert!(error.contains("has ended"), "{error}");

    let again = Lab::up(&Options { detached: false, ..options.clone() }).unwrap();
    assert!(again.app("mail", ["ls"]).run().unwrap().contains("Mail"));
    again.down().unwrap();
    assert_gone(&options.name, &namespaces);
}

#[test]
fn down_clears_away_after_a_killed_keeper() {
    let options = Options { detached: true, ..empty("crash") };
    let lab = Lab::up(&options).unwrap();
    let namespaces = pid_namespaces(&lab);
    kill_and_wait(keeper_of(&options.name));
    assert!(!directories(&options.name).is_empty(), "a crash leaves directories for `down`");
    lab::down(&options.name).unwrap();
    assert_gone(&options.name, &namespaces);
}

#[test]
fn a_lab_ends_with_its_owner_even_by_kill() {
    let mut owner = Command::new(DEMO).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let name: LabName = format!("t-demo-{}-0", owner.id()).parse().unwrap();
    let up = || lab::status_of(&name).unwrap().is_some_and(|status| status.state == "up");
    wait_until("the demo's lab comes up", || up() || owner.try_wait().unwrap().is_some());
    assert!(up(), "the demo ended early");
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("the lab is gone with its owner", || directories(&name).is_empty());
    assert_gone(&name, &BTreeSet::new());
}

#[test]
fn two_labs_do_not_collide() {
    let one = Lab::up(&Options::for_test("one")).unwrap();
    let two = Lab::up(&Options::for_test("two")).unwrap();
    one.app("editor", ["sh", "-c", "echo one > shared/which"]).run().unwrap();
    two.app("editor", ["sh", "-c", "echo two > shared/which"]).run().unwrap();
    assert_eq!(one.app("mail", ["cat", "shared/which"]).run().unwrap(), "one\n");
    assert_eq!(two.app("mail", ["cat", "shared/which"]).run().unwrap(), "two\n");
    // Same addresses, different gateways: the key tells them apart.
    one.down().unwrap();
    assert_eq!(two.app("mail", ["cat", "shared/which"]).run().unwrap(), "two\n");
    let taken = Lab::up(&Options { name: two.name().clone(), ..empty("x") }).unwrap_err();
    assert!(format!("{taken:#}").contains("is up already"), "{taken:#}");
    assert_eq!(
        two.app("mail", ["cat", "shared/which"]).run().unwrap(),
        "two\n",
        "the refused start did no harm"
    );
}

#[test]
fn a_policy_that_is_wrong_costs_only_its_own_guest_the_mount() {
    let policy = tempfile::tempdir().unwrap();
    fs::write(
        policy.path().join("good.toml"),
        "application = \"good\"\nlifetime = \"1h\"\n\n[[grant]]\npath = \"shared\"\nmount = \"/shared\"\nrights = \"read-only\"\n",
    )
    .unwrap();
    fs::write(policy.path().join("bad.toml"), "application = \"bad\"\nlifetime = \"1 fortnight\"\n").unwrap();
    let lab =
        Lab::up(&Options { policy: Some(policy.path().to_owned()), ..Options::for_test("policy") }).unwrap();
    assert_eq!(lab.applications().unwrap(), ["bad", "good"]);
    let status = lab.status().unwrap();
    let guest = |name: &str| status.guests.iter().find(|g| g.name == name).unwrap();
    assert_eq!(guest("good").mounted, Some(true), "{status:?}");
    assert_eq!(guest("bad").mounted, Some(false), "{status:?}");
    let problem = guest("bad").problem.clone().unwrap();
    assert!(problem.contains("fortnight") || problem.contains("bad.toml"), "{problem}");
    assert_eq!(lab.app("good", ["ls"]).run().unwrap(), "shared\n");
}

#[test]
fn given_data_are_served_and_stay() {
    let data = tempfile::tempdir().unwrap();
    fs::create_dir_all(data.path().join("users/alice/Mail")).unwrap();
    fs::write(data.path().join("users/alice/Mail/mine.eml"), "kept").unwrap();
    fs::create_dir_all(data.path().join("users/alice/Photos")).unwrap();
    fs::create_dir_all(data.path().join("users/alice/Documents")).unwrap();
    fs::create_dir_all(data.path().join("shared")).unwrap();
    let lab = Lab::up(&Options { data: Some(data.path().to_owned()), ..Options::for_test("data") }).unwrap();
    assert_eq!(lab.app("mail", ["cat", "Mail/mine.eml"]).run().unwrap(), "kept");
    lab.app("mail", ["sh", "-c", "echo new > Mail/new.eml"]).run().unwrap();
    lab.down().unwrap();
    assert_eq!(fs::read_to_string(data.path().join("users/alice/Mail/new.eml")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(data.path().join("users/alice/Mail/mine.eml")).unwrap(), "kept");
}

#[test]
fn the_gateway_can_end_and_come_back_under_a_mount() {
    let lab = Lab::up(&Options::for_test("gateway")).unwrap();
    for how in [StopHow::Clean, StopHow::Kill] {
        lab.app("mail", ["sh", "-c", "echo before > Mail/note && sync Mail/note"]).run().unwrap();
        lab.stop_gateway(how).unwrap();
        let storage = |lab: &Lab| lab.status().unwrap().guests.iter().find_map(|g| g.gateway);
        assert_eq!(storage(&lab), Some(false));
        let waiting = lab.app("mail", ["cat", "Mail/note"]).cwd("/mnt");
        // Starts while the gateway is away and waits for it, as any program on the mount does.
        let reader = std::thread::spawn(move || waiting.run());
        lab.start_gateway().unwrap();
        assert_eq!(storage(&lab), Some(true));
        assert_eq!(reader.join().unwrap().unwrap(), "before\n");
    }
}

#[test]
fn remount_brings_a_mount_back() {
    let lab = Lab::up(&Options::for_test("remount")).unwrap();
    let mounted = |lab: &Lab| lab.status().unwrap().guests.iter().find(|g| g.name == "mail").unwrap().mounted;
    lab.remount("mail").expect("a mount that is there is fine");
    lab.app("mail", ["umount", "/mnt"]).cwd("/").run().unwrap();
    assert_eq!(mounted(&lab), Some(false));
    assert_eq!(lab.app("mail", ["ls"]).run().unwrap(), "");
    lab.remount("mail").unwrap();
    assert_eq!(mounted(&lab), Some(true));
    assert!(lab.app("mail", ["ls"]).run().unwrap().contains("Mail"));
}

#[test]
fn exec_is_transparent() {
    let lab = Lab::up(&empty("exec")).unwrap();
    let code = |script: &str| lab.app("mail", ["sh", "-c", script]).output().unwrap().status.code();
    assert_eq!(code("exit 0"), Some(0));
    assert_eq!(code("exit 42"), Some(42));
    assert_eq!(code("kill -KILL $$"), Some(128 + 9));
    assert_eq!(lab.app("mail", ["no-such-program"]).output().unwrap().status.code(), Some(127));
    assert_eq!(lab.app("mail", ["/etc/passwd"]).output().unwrap().status.code(), Some(126));

    let split = lab.app("mail", ["sh", "-c", "echo out; echo err >&2"]).output().unwrap();
    assert_eq!((split.stdout, split.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));

    // Bytes of every value, more than any pipe holds, there and back.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child =
        lab.app("mail", ["cat"]).into_command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    assert!(child.wait_with_output().unwrap().stdout == bytes, "the bytes changed on the way");
    writer.join().unwrap();

    assert_eq!(lab.app("mail", ["hostname"]).run().unwrap(), "mail\n");
    assert_eq!(lab.app("mail", ["pwd"]).run().unwrap(), "/mnt\n");
    assert_eq!(lab.app("mail", ["pwd"]).cwd("/tmp").run().unwrap(), "/tmp\n");
    assert_eq!(lab.base(["sh", "-c", "echo $STRONGROOM_DIR"]).run().unwrap(), "/etc/strongroom\n");
}

#[test]
fn exec_hands_signals_on_and_dies_with_its_command() {
    use std::io::{BufRead, BufReader};
    let lab = Lab::up(&empty("signals")).unwrap();
    let start = |script: &str| {
        let mut child =
            lab.app("mail", ["sh", "-c", script]).into_command().stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // The command says when it is ready for its signal.
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        (child, output)
    };
    let pid = |child: &std::process::Child| Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();

    let (mut child, mut output) =
        start("trap 'echo heard; exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    rustix::process::kill_process(pid(&child), Signal::TERM).unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("heard\n", Some(9)));

    let (mut child, _output) = start("echo ready; exec sleep 1000.125");
    let sleeping = || lab.app("mail", ["pgrep", "-f", "sleep 1000.125"]).output().unwrap().status.success();
    wait_until("the sleeper sleeps", sleeping);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the command ends with `lab exec`", || !sleeping());
}

#[test]
fn status_speaks_json() {
    let options = empty("status");
    let lab = Lab::up(&options).unwrap();
    let output =
        Command::new(LAB).args(["status", "--json", "--name", options.name.as_str()]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[0]["name"], options.name.as_str());
    assert_eq!(found[0]["state"], "up");
    let names: Vec<_> =
        found[0]["guests"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "storage", "mail", "editor"]);
    lab.down().unwrap();
    let output =
        Command::new(LAB).args(["status", "--json", "--name", options.name.as_str()]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b"[]\n"[..]));
}

#[test]
fn errors_name_the_thing_and_the_way_out() {
    let complaint = |arguments: &[&str]| {
        let output = Command::new(LAB).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let absent = complaint(&["exec", "--name", "t-absent", "mail", "--", "true"]);
    assert!(absent.contains("t-absent") && absent.contains("lab up"), "{absent}");
    let named = complaint(&["up", "--name", "../x"]);
    assert!(named.contains("../x") && named.contains("lower-case"), "{named}");
    let lab = Lab::up(&empty("errors")).unwrap();
    let guest = complaint(&["exec", "--name", lab.name().as_str(), "nobody", "--", "true"]);
    assert!(guest.contains("nobody") && guest.contains("mail, editor"), "{guest}");
}

/// Root can try what an ordinary user meets: a device that is open to all, in a mount namespace of its own.
#[test]
fn an_ordinary_user_has_labs_too() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test of this file is this test.
        return;
    }
    let script = r#"
        set -eu
        dir=$(mktemp -d); trap 'umount /dev/fuse; rm -rf "$dir"' EXIT
        chmod 755 "$dir"; mknod -m 666 "$dir/fuse" c 10 229; mount --bind "$dir/fuse" /dev/fuse
        mkdir "$dir/bin" "$dir/run"; chown 65534:65534 "$dir/run"
        # The programs may be where an ordinary user cannot look.
        for program in contract strongroom-gateway mount-strongroom; do cp "$PROGRAMS/$program" "$dir/bin"; done
        cp "$LAB" "$dir/bin/lab"
        user() { setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH=/usr/bin:/bin XDG_RUNTIME_DIR="$dir/run" "$@"; }
        cd /
        user "$dir/bin/lab" up --name "$NAME"
        user "$dir/bin/lab" exec --name "$NAME" mail -- sh -c 'id -u; echo hello > Mail/new; cat Mail/new; ls'
        user "$dir/bin/lab" down --name "$NAME"
        find "$dir/run" /var/tmp/strongroom-lab-65534 -mindepth 1 2>/dev/null || true
    "#;
    let programs = std::env::var("STRONGROOM_BIN_DIR")
        .unwrap_or_else(|_| Path::new(LAB).parent().unwrap().to_str().unwrap().to_owned());
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .env("LAB", LAB)
        .env("PROGRAMS", programs)
        .env("NAME", LabName::unique("user").as_str())
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.ends_with("0\nhello\nMail\nPhotos\nshared\n"), "{said}\n{complained}");
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let script = r#"
        dir=$(mktemp -d); trap 'umount /dev/fuse; rm -rf "$dir"' EXIT
        chmod 755 "$dir"; mknod -m 600 "$dir/fuse" c 10 229; mount --bind "$dir/fuse" /dev/fuse
        cp "$LAB" "$dir/lab"; cd /
        setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH=/usr/bin:/bin "$dir/lab" up --name "$NAME"
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .env("LAB", LAB)
        .env("NAME", LabName::unique("lacking").as_str())
        .output()
        .unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complained}");
    for lack in ["chmod 666 /dev/fuse", "contract, strongroom-gateway, mount-strongroom", "make lab"] {
        assert!(complained.contains(lack), "{lack} is missing in: {complained}");
    }
}
