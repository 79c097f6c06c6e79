//! Unmounting, revoking and killing in the middle of everything: no program hangs, nobody is told what is not true, and the guest works
//! again afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

#[path = "support/pair.rs"]
mod pair;
#[path = "support/python.rs"]
mod python;

use std::fs;
use std::process::{Child, Stdio};

use pair::lab;
use python::Python;
use rustix::event::{PollFd, PollFlags};
use strongroom_tests::lab::{Lab, StopHow};

/// Everything at once, in six processes, until they are told that they may not: each ends by itself with an error that says so.
const BUSY: &str = r#"
import errno, fcntl, mmap, os, sys, time
me = sys.argv[1]
def files():
    for n in range(1 << 30):
        with open(f"{me}.{n % 50}", "wb") as f: f.write(b"x" * (n % 70_000))
        os.rename(f"{me}.{n % 50}", f"{me}.moved")
def writing():
    f = os.open(f"{me}.w", os.O_RDWR | os.O_CREAT)
    for n in range(1 << 30):
        os.pwrite(f, b"y" * 100_000, n % 97 * 4096)
        if n % 10 == 0: os.fsync(f)
def mapping():
    f = os.open(f"{me}.m", os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 20)
    m = mmap.mmap(f, 1 << 20)
    for n in range(1 << 30):
        m[n % 200 * 4096] = n % 256
        m.flush()
        os.fstat(f)
def reading():
    for n in range(1 << 30):
        for name in os.listdir("."):
            try:
                with open(name, "rb") as f: f.read()
            except (FileNotFoundError, IsADirectoryError): pass
def locking():
    f = os.open("lock", os.O_RDWR | os.O_CREAT)
    for n in range(1 << 30): fcntl.lockf(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_UN)
def tree():
    for n in range(1 << 30):
        os.makedirs(f"{me}.d/{n % 7}/{n % 3}", exist_ok=True); os.chmod(f"{me}.d", 0o700 + n % 8)
        os.rmdir(f"{me}.d/{n % 7}/{n % 3}")
children = []
for act in files, writing, mapping, reading, locking, tree:
    child = os.fork()
    if child == 0:
        try: act()
        # A page that cannot be had any more is a signal, which ends the process as well.
        except OSError as e: print(act.__name__, errno.errorcode.get(e.errno), flush=True)
        os._exit(0)
    children.append(child)
print("busy", flush=True)
for child in children: os.waitpid(child, 0)
print("ended", flush=True)
"#;

fn busy(lab: &Lab, app: &str) -> Child {
    let mut child = lab
        .app(app, ["/usr/bin/python3", "-c", BUSY, app])
        .cwd("/mnt/work")
        .into_command()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(String::from_utf8_lossy(&first), "busy\n");
    child
}

/// Until each of its kinds of work has left a trace. One that ends before has failed, and leaves none.
fn at_work(lab: &Lab, app: &str, worker: &Child) {
    let shared = lab.data().join("shared");
    let traces = [".moved", ".w", ".m", ".d"].map(|trace| shared.join(format!("{app}{trace}")));
    let said = worker.stdout.as_ref().unwrap();
    while !traces.iter().all(|trace| trace.exists()) {
        let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        if rustix::event::poll(&mut [PollFd::new(said, PollFlags::IN)], Some(&pause)).unwrap() > 0 {
            let mut line = [0; 200];
            let length = rustix::io::read(said, &mut line).unwrap();
            panic!("{app} ended too early: {:?}", String::from_utf8_lossy(&line[..length]));
        }
    }
}

/// What it said, at its end.
fn ended(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Files that take each other's place without end, so that the storage guest gives inode numbers out again at once, while they are read.
const PLACES: &str = r#"
import os, sys
def files():
    for n in range(6000):
        with open(f"{n % 50}", "wb") as f: f.write(b"x" * (n % 70_000))
        os.rename(f"{n % 50}", "moved")
    open("ended", "w").close()
def reading():
    while not os.path.exists("ended"):
        for name in os.listdir("."):
            try:
                with open(name, "rb") as f: f.read()
            except FileNotFoundError: pass
os.mkdir("places"); os.chdir("places")
child = os.fork()
if child == 0: files(); os._exit(0)
reading()
sys.exit(os.waitpid(child, 0)[1])
"#;

#[test]
fn a_file_that_was_replaced_is_read_to_its_end_whoever_has_its_number_by_then() {
    let lab = lab("places");
    lab.app("one", ["/usr/bin/python3", "-c", PLACES]).cwd("/mnt/work").run().unwrap();
}

#[test]
fn revoked_in_the_middle_of_everything_and_back_again() {
    let lab = lab("upheave");
    for round in 0..3 {
        let workers = [busy(&lab, "one"), busy(&lab, "two")];
        at_work(&lab, "one", &workers[0]);
        at_work(&lab, "two", &workers[1]);
        lab.base(["contract", "revoke", "one"]).run().unwrap();
        let before = fs::metadata(lab.data().join("shared/one.w")).unwrap().modified().unwrap();
        let [one, two] = workers;
        let said = ended(one);
        assert_eq!(said.last().map(String::as_str), Some("ended"), "round {round}: {said:?}");
        // Each was refused, or ended by a signal for a page that it may not have.
        let others = &said[..said.len() - 1];
        assert!(others.iter().all(|line| line.ends_with(" EACCES")), "round {round}: {said:?}");
        assert!(others.len() >= 5, "round {round}: {said:?}");
        assert_eq!(fs::metadata(lab.data().join("shared/one.w")).unwrap().modified().unwrap(), before);
        // The other works on, and is revoked as well.
        lab.app("two", ["ls", "/mnt/work"]).run().unwrap();
        lab.base(["contract", "revoke", "two"]).run().unwrap();
        assert_eq!(ended(two).last().map(String::as_str), Some("ended"));
        for app in pair::APPS {
            lab.base(["contract", "reissue", app]).run().unwrap();
            // The same mount comes back to life by itself.
            while !lab
                .app(app, ["sh", "-c", "echo again > /mnt/work/again"])
                .output()
                .unwrap()
                .status
                .success()
            {}
        }
        // By a guest: what is done behind the gateway's back the others notice only a little later.
        lab.app("two", ["sh", "-c", "rm -rf /mnt/work/*"]).run().unwrap();
    }
    lab.down().unwrap();
}

#[test]
fn unmounted_in_the_middle_of_everything_and_mounted_again() {
    let lab = lab("upheaveu");
    for how in ["-l", "-f"] {
        let worker = busy(&lab, "one");
        at_work(&lab, "one", &worker);
        if how == "-f" {
            // As an administrator does it: first the calls, then the mount.
            let _ = lab.app("one", ["umount", "-f", "/mnt"]).cwd("/").output().unwrap();
            lab.app("one", ["sh", "-c", "umount -l /mnt || ! mountpoint -q /mnt"]).cwd("/").run().unwrap();
            let said = ended(worker);
            assert_eq!(said.last().map(String::as_str), Some("ended"), "{said:?}");
        } else {
            // Who was there works on until it leaves; nobody new gets in.
            lab.app("one", ["umount", "-l", "/mnt"]).cwd("/").run().unwrap();
            assert!(
                !lab.app("one", ["mountpoint", "-q", "/mnt"]).cwd("/").output().unwrap().status.success()
            );
            lab.base(["contract", "revoke", "one"]).run().unwrap();
            let said = ended(worker);
            assert_eq!(said.last().map(String::as_str), Some("ended"), "{said:?}");
            lab.base(["contract", "reissue", "one"]).run().unwrap();
        }
        lab.remount("one").unwrap();
        lab.app("one", ["sh", "-c", "rm -rf /mnt/work/* && echo well > /mnt/work/well"]).run().unwrap();
        assert_eq!(lab.app("two", ["cat", "/mnt/work/well"]).run().unwrap(), "well\n");
    }
    lab.down().unwrap();
}

#[test]
fn a_gateway_restarts_with_thousands_of_leases_out() {
    const FILES: usize = 3000;
    let lab = lab("upheavel");
    let shared = lab.data().join("shared");
    for n in 0..FILES {
        fs::create_dir_all(shared.join(format!("d{}", n % 30))).unwrap();
        fs::write(shared.join(format!("d{}/f{n}", n % 30)), format!("old {n}")).unwrap();
    }
    let [mut one, mut two] = Python::pair(&lab);
    let look = "def look(): return [(os.stat(p).st_size, open(p).read()) for p in (f'd{n % 30}/f{n}' for n in range(3000))]
def names(): return [sorted(os.listdir(f'd{n}')) for n in range(30)]";
    for guest in [&mut one, &mut two] {
        guest.run(look);
        // All of it is in the caches now: names, absent names, attributes, contents, listings; and some files are open.
        guest.run("before = look(), names(), [os.path.exists(f'd{n}/none') for n in range(30)]; look()");
        guest.run("held = [os.open(f'd{n % 30}/f{n}', os.O_RDWR) for n in range(0, 3000, 30)]");
    }
    for round in 0..3 {
        lab.stop_gateway(StopHow::Kill).unwrap();
        lab.start_gateway().unwrap();
        // One changes things at once: written, replaced, removed, made.
        one.run(&format!(
            "for n in range(3000):
    p = f'd{{n % 30}}/f{{n}}'
    if n % 30 == 0: os.pwrite(held[n // 30], b'round {round}!', 0)
    elif n % 3 == 0: open(p, 'w').write(f'new {round} {{n}}')
    elif n % 97 == 1: open(p + '.t', 'w').write(f'moved {round} {{n}}'); os.rename(p + '.t', p)
for n in range(30):
    open(f'd{{n}}/made{round}', 'w').close()
    if {round}: os.unlink(f'd{{n}}/made{{{round} - 1}}')"
        ));
        // The other sees all of it, with caches that were full of what was before.
        for n in 0..FILES {
            let path = format!("d{}/f{n}", n % 30);
            let truth = fs::read_to_string(shared.join(&path)).unwrap();
            if n % 30 == 0 {
                assert!(truth.starts_with(&format!("round {round}!")), "{truth}");
            }
        }
        let seen = two.ask("import hashlib; hashlib.sha256(repr((look(), names(), [os.path.exists(f'd{n}/none') for n in range(30)])).encode()).hexdigest()");
        let own = one.ask("import hashlib; hashlib.sha256(repr((look(), names(), [os.path.exists(f'd{n}/none') for n in range(30)])).encode()).hexdigest()");
        assert_eq!(seen, own, "round {round}");
        let texts: Vec<String> = (0..FILES)
            .map(|n| fs::read_to_string(shared.join(format!("d{}/f{n}", n % 30))).unwrap())
            .collect();
        let told =
            two.ask("import hashlib; hashlib.sha256(''.join(t for _, t in look()).encode()).hexdigest()");
        let truth: String = ring::digest::digest(&ring::digest::SHA256, texts.concat().as_bytes())
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(told, format!("'{truth}'"), "round {round}");
        assert_eq!(
            two.ask("[os.pread(f, 8, 0) for f in held] == [os.pread(os.open(f'd{n % 30}/f{n}', os.O_RDONLY), 8, 0) for n in range(0, 3000, 30)]"),
            "True"
        );
    }
    drop((one, two));
    lab.down().unwrap();
}
