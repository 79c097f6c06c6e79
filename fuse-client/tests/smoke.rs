//! A real mount of a real gateway on this machine: work, a crash of the gateway in the middle of it, a revocation, a reissue.
//!
//! Needs root, `/dev/fuse`, and the programs `strongroom-gateway` and `contract` built beside this test; skipped, saying so,
//! where one is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Only against hanging for ever.
const HANG: Duration = Duration::from_secs(120);
const MOUNT: &str = env!("CARGO_BIN_EXE_mount-strongroom");

const POLICY: &str = r#"
application = "mail"
guest = "mail-guest"
lifetime = "8h"

[[grant]]
path = "users/alice/Mail"
mount = "/Mail"
rights = "read-write"

[[grant]]
path = "users/alice/Photos"
mount = "/home/alice/Photos"
rights = "append-only"
"#;

fn program(name: &str) -> PathBuf {
    Path::new(MOUNT).with_file_name(name)
}

/// Why this machine cannot run the test, if it cannot.
fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("needs /dev/fuse".into());
    }
    ["strongroom-gateway", "contract"].into_iter().find(|name| !program(name).is_file()).map(|name| {
        format!("needs `{}`: cargo build -p strongroom-gateway -p strongroom-cli", program(name).display())
    })
}

/// A gateway, a base domain and a mount; all is gone when this is dropped.
struct World {
    dir: tempfile::TempDir,
    port: u16,
    gateway: Option<Child>,
    holder: String,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        // Free now, and nobody else on this machine hands out ports in the moment until the gateway has it.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut world = World { dir, port, gateway: None, holder: String::new() };
        for part in
            ["data/users/alice/Mail", "data/users/alice/Photos", "data/users/bob", "state", "mnt", "app"]
        {
            fs::create_dir_all(world.at(part)).unwrap();
        }
        fs::write(world.at("data/users/alice/Mail/inbox"), "hello\n").unwrap();
        fs::write(world.at("data/users/bob/diary"), "secret\n").unwrap();
        let init = Command::new(program("contract"))
            .arg("init")
            .arg(world.at("base"))
            .args([
                "--address",
                &format!("127.0.0.1:{port}"),
                "--network",
                "127.0.0.0/8",
                "--interface",
                "lo",
            ])
            .arg("--admin")
            .arg(format!("unix:{}", world.at("admin.sock").display()))
            .arg("--data")
            .arg(world.at("data"))
            .arg("--state")
            .arg(world.at("state"))
            .arg("--no-sample-policy")
            .output()
            .unwrap();
        succeeded(&init);
        fs::write(world.at("base/policy.d/mail.toml"), POLICY).unwrap();
        world.start_gateway();
        let keygen = Command::new(program("contract"))
            .args(["keygen", "--out"])
            .arg(world.at("app/holder.key"))
            .output();
        let keygen = keygen.unwrap();
        succeeded(&keygen);
        world.holder = String::from_utf8(keygen.stdout).unwrap().trim().to_owned();
        let contract = world.at("app/contract");
        let holder = world.holder.clone();
        succeeded(&world.contract(&[
            "grant",
            "mail",
            "--holder",
            &holder,
            "--out",
            contract.to_str().unwrap(),
        ]));
        world
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn contract(&self, arguments: &[&str]) -> Output {
        let base = self.at("base");
        Command::new(program("contract")).arg("--dir").arg(base).args(arguments).output().unwrap()
    }

    fn start_gateway(&mut self) {
        let log = File::create(self.at("gateway.log")).unwrap();
        let gateway = Command::new(program("strongroom-gateway"))
            .arg("--config")
            .arg(self.at("base/gateway/gateway.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.gateway = Some(gateway);
        let log = self.at("gateway.log");
        until("the gateway serves", || fs::read_to_string(&log).unwrap().contains("administrators at"));
    }

    fn kill_gateway(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
    }

    fn mount_with(&self, contract: &Path, more: &str) -> Output {
        Command::new(MOUNT)
            .arg(contract)
            .arg(self.at("mnt"))
            .arg("-o")
            .arg(format!("gateway=127.0.0.1:{},log={}{more}", self.port, self.at("mount.log").display()))
            .output()
            .unwrap()
    }

    fn mount(&self) {
        succeeded(&self.mount_with(&self.at("app/contract"), ""));
    }

    fn is_mounted(&self) -> bool {
        let point = self.at("mnt");
        fs::read_to_string("/proc/self/mounts").unwrap().contains(&format!(" {} ", point.display()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.is_mounted() {
            // Whatever state the test left it in.
            let _ = rustix::mount::unmount(self.at("mnt"), rustix::mount::UnmountFlags::DETACH);
        }
        self.kill_gateway();
    }
}

fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_mount_lives_through_crash_revocation_and_reissue() {
    if let Some(reason) = lacking() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut world = World::new();
    world.mount();
    let mail = world.at("mnt/Mail");
    shows_what_is_granted(&world, &mail);
    writes_survive_crashes(&mut world, &mail);
    revocation_and_reissue(&world, &mail);
    rustix::mount::unmount(world.at("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(!world.is_mounted());
}

fn shows_what_is_granted(world: &World, mail: &Path) {
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&world.at("mnt")), ["Mail", "home"]);
    assert_eq!(names(mail), ["inbox"]);
    assert_eq!(fs::read_to_string(mail.join("inbox")).unwrap(), "hello\n");
    fs::write(mail.join("new"), "text").unwrap();
    fs::rename(mail.join("new"), mail.join("newer")).unwrap();
    assert_eq!(fs::read_to_string(world.at("data/users/alice/Mail/newer")).unwrap(), "text");
    assert_eq!(errno(fs::create_dir(world.at("mnt/other"))), Some(libc::EACCES));
    let photos = world.at("mnt/home/alice/Photos");
    fs::write(photos.join("p"), "picture").unwrap();
    assert_eq!(errno(fs::remove_file(photos.join("p"))), Some(libc::EACCES));
    assert_eq!(errno(fs::rename(mail.join("newer"), photos.join("q"))), Some(libc::EXDEV));
}

/// Each operation happens exactly once, however often the gateway is killed meanwhile.
fn writes_survive_crashes(world: &mut World, mail: &Path) {
    let dir = mail.to_owned();
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
        let held = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("held")).unwrap();
        let mut count = 0_u64;
        while stopped.try_recv().is_err() {
            writeln!(log, "{count:08}").unwrap();
            held.write_at(&count.to_le_bytes(), 8 * (count % 1000)).unwrap();
            let name = dir.join(format!("f{count}"));
            OpenOptions::new().write(true).create_new(true).open(&name).unwrap().write_all(b"x").unwrap();
            fs::rename(&name, dir.join("moved")).unwrap();
            fs::remove_file(dir.join("moved")).unwrap();
            count += 1;
            tell.send(()).unwrap();
        }
        count
    });
    for _ in 0..3 {
        for _ in 0..20 {
            told.recv_timeout(HANG).unwrap();
        }
        world.kill_gateway();
        world.start_gateway();
    }
    for _ in 0..20 {
        told.recv_timeout(HANG).unwrap();
    }
    stop.send(()).unwrap();
    let count = writer.join().unwrap();
    let expected: String = (0..count).map(|n| format!("{n:08}\n")).collect();
    assert_eq!(fs::read_to_string(mail.join("log")).unwrap(), expected);
    assert_eq!(fs::read_to_string(world.at("data/users/alice/Mail/log")).unwrap(), expected);
}

fn revocation_and_reissue(world: &World, mail: &Path) {
    let inside = Command::new("sh")
        .args(["-c", "echo in; read go; cat inbox || echo refused; read go; cat inbox"])
        .current_dir(mail)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut inside = inside.unwrap();
    let mut shell = inside.stdin.take().unwrap();
    let mut said = inside.stdout.take().unwrap();
    let mut reader = File::open(mail.join("inbox")).unwrap();
    succeeded(&world.contract(&["revoke", "mail", "--why", "test"]));
    // The receipt is there: whatever is asked from now on is refused, and nothing waits.
    assert_eq!(errno(fs::write(mail.join("late"), "x")), Some(libc::EACCES));
    assert_eq!(errno(fs::read_dir(mail)), Some(libc::EACCES));
    assert_eq!(errno(fs::metadata(mail.join("inbox"))), Some(libc::EACCES));
    // Pages in the cache of the kernel are given up a moment later.
    until("cached pages are gone", || {
        reader.seek(SeekFrom::Start(0)).unwrap();
        errno(reader.read(&mut [0; 4])) == Some(libc::EACCES)
    });
    assert!(!world.at("data/users/alice/Mail/late").exists());
    shell.write_all(b"\n").unwrap();
    let mut seen = [0; 11];
    said.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"in\nrefused\n");
    succeeded(&world.contract(&["reissue", "mail"]));
    until("the mount is alive again", || fs::write(mail.join("again"), "x").is_ok());
    shell.write_all(b"\n").unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "hello\n", "a shell in a directory of the mount goes on");
    assert!(inside.wait().unwrap().success());
    let mut text = String::new();
    reader.seek(SeekFrom::Start(0)).unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n", "and so does an open file");
}

/// Changes every page of a mapped file, and syncs, until the system says no.
const MAPPED: &str = "
import mmap, sys
with open(sys.argv[1], 'r+b') as file:
    pages = mmap.mmap(file.fileno(), 0)
    n = 0
    while True:
        n += 1
        for at in range(0, len(pages), 4096):
            pages[at:at + 8] = n.to_bytes(8, 'little')
        pages.flush()
";

/// Names and contents of what lies below a directory.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.append(&mut snapshot(&path));
        } else {
            all.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn nothing_of_a_busy_mount_reaches_the_data_after_the_receipt() {
    if let Some(reason) = lacking() {
        eprintln!("skipped: {reason}");
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: needs python3, which maps a file");
        return;
    }
    let world = World::new();
    world.mount();
    let mail = world.at("mnt/Mail");
    let data = world.at("data/users/alice/Mail");
    fs::write(mail.join("mapped"), vec![0; 1 << 20]).unwrap();
    let mut mapper = Command::new("python3")
        .args(["-c", MAPPED])
        .arg(mail.join("mapped"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let after = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..7)
            .map(|n| {
                let path = mail.join(format!("w{n}"));
                scope.spawn(move || {
                    let file = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
                    for round in 1_u64.. {
                        let block = [round as u8; 64 << 10];
                        let written = file.write_all_at(&block, round % 16 * block.len() as u64);
                        if let Err(error) = written.and_then(|()| file.sync_data()) {
                            return error.raw_os_error();
                        }
                    }
                    None
                })
            })
            .collect();
        until("all are at work", || {
            let read = |name: &str| fs::read(data.join(name)).unwrap_or_default();
            read("mapped").first().is_some_and(|byte| *byte > 2)
                && (0..7).all(|n| read(&format!("w{n}")).len() > 1 << 19)
        });
        succeeded(&world.contract(&["revoke", "mail", "--why", "test"]));
        let after = snapshot(&world.at("data"));
        for writer in writers {
            assert_eq!(writer.join().unwrap(), Some(libc::EACCES));
        }
        after
    });
    // Its sync fails, or a page of it cannot be had any more (SIGBUS).
    assert!(!mapper.wait().unwrap().success());
    rustix::mount::unmount(world.at("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(snapshot(&world.at("data")) == after, "the data changed after the receipt");
}

#[test]
fn umount_f_frees_calls_that_wait_for_a_gateway_that_is_gone() {
    if let Some(reason) = lacking() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut world = World::new();
    world.mount();
    world.kill_gateway();
    let inbox = world.at("mnt/Mail/inbox");
    let (began, begun) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        began.send(rustix::thread::gettid()).unwrap();
        errno(fs::read(inbox))
    });
    let thread = begun.recv().unwrap();
    // Asleep in the request: FUSE waits there.
    until("the call waits", || {
        let file = format!("/proc/self/task/{}/wchan", thread.as_raw_nonzero());
        fs::read_to_string(file).is_ok_and(|place| place.contains("request_wait_answer"))
    });
    assert!(!waiting.is_finished());
    // It frees the call, and may find the mount busy until the call has returned.
    Command::new("umount").arg("-f").arg(world.at("mnt")).output().unwrap();
    let told = waiting.join().unwrap();
    assert!([Some(libc::ECONNABORTED), Some(libc::ENOTCONN), Some(libc::EIO)].contains(&told), "{told:?}");
    if world.is_mounted() {
        succeeded(&Command::new("umount").arg(world.at("mnt")).output().unwrap());
    }
    assert!(!world.is_mounted());
}

#[test]
fn a_contract_file_that_is_replaced_is_gone_on_under() {
    if let Some(reason) = lacking() {
        eprintln!("skipped: {reason}");
        return;
    }
    let world = World::new();
    world.mount();
    let photos = world.at("mnt/home/alice/Photos");
    assert!(photos.is_dir());
    // Of two contracts the one that begins later counts, in seconds.
    let seconds = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let issued = seconds();
    until("a second has passed", || seconds() > issued);
    let new = world.at("app/new");
    // Not handed to the gateway: the file alone tells the mount.
    succeeded(&world.contract(&[
        "grant",
        "mail",
        "--holder",
        &world.holder,
        "--offline",
        "--path",
        "users/alice/Mail",
        "--out",
        new.to_str().unwrap(),
    ]));
    let mut open = File::open(world.at("mnt/Mail/inbox")).unwrap();
    fs::rename(&new, world.at("app/contract")).unwrap();
    until("the mount shows what the new contract grants", || !photos.exists());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n", "an open file stays open");
    if let Err(error) = fs::write(world.at("mnt/Mail/more"), "x") {
        panic!("{error}\n{}", fs::read_to_string(world.at("mount.log")).unwrap());
    }
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_mounted() {
    if let Some(reason) = lacking() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut world = World::new();
    let contract = world.at("app/contract");
    let key = world.at("app/holder.key");
    let good_key = fs::read(&key).unwrap();
    let refused = |world: &World, contract: &Path, more: &str, code: i32, words: &[&str]| {
        let output = world.mount_with(contract, more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        assert!(!world.is_mounted());
    };

    refused(&world, &world.at("app/none"), "", 32, &["app/none", "No such file"]);
    fs::write(world.at("app/cut"), &fs::read(&contract).unwrap()[..300]).unwrap();
    refused(&world, &world.at("app/cut"), "", 32, &["app/cut", "cut off"]);
    fs::write(world.at("app/noise"), "what is this").unwrap();
    refused(&world, &world.at("app/noise"), "", 32, &["not a contract file"]);

    set_mode(&key, 0o644);
    refused(&world, &contract, "", 32, &["holder.key", "0644", "chmod 600"]);
    set_mode(&key, 0o600);
    fs::write(&key, &good_key[..60]).unwrap();
    refused(&world, &contract, "", 32, &["holder.key", "damaged"]);
    fs::remove_file(&key).unwrap();
    refused(&world, &contract, "", 32, &["holder.key", "contract keygen"]);
    let other =
        Command::new(program("contract")).args(["keygen", "--force", "--out"]).arg(&key).output().unwrap();
    succeeded(&other);
    refused(&world, &contract, "", 32, &["is for the holder", &world.holder.clone()]);
    fs::write(&key, &good_key).unwrap();

    fs::write(world.at("mnt/something"), "").unwrap();
    refused(&world, &contract, "", 32, &["not empty", "nonempty"]);
    fs::remove_file(world.at("mnt/something")).unwrap();
    refused(&world, &contract, ",deadline=soon", 1, &["deadline=soon"]);
    refused(&world, &contract, ",gateway=nowhere", 1, &["gateway=nowhere", "10.77.0.1:7070"]);

    fs::rename(world.at("mnt"), world.at("elsewhere")).unwrap();
    refused(&world, &contract, "", 32, &["/mnt", "mkdir"]);
    fs::rename(world.at("elsewhere"), world.at("mnt")).unwrap();
    let without_device = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec \"$0\" \"$@\"",
        ])
        .arg(MOUNT)
        .arg(&contract)
        .arg(world.at("mnt"))
        .args(["-o", "gateway=127.0.0.1:1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&without_device.stderr).into_owned();
    assert!(without_device.status.code() == Some(32) && said.contains("modprobe fuse"), "{said}");
    let other = World::new();
    let wrong = other.mount_with(&contract, &format!(",key={}", key.display()));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(32) && said.contains("not the expected gateway"), "{said}");
    assert!(!other.is_mounted());
    // Of a key for which the gateway keeps nothing better.
    let (short, late) = (world.at("app/short"), world.at("app/late.key"));
    let keygen = Command::new(program("contract")).args(["keygen", "--out"]).arg(&late).output().unwrap();
    succeeded(&keygen);
    let holder = String::from_utf8(keygen.stdout).unwrap();
    let granted = world.contract(&[
        "grant",
        "mail",
        "--holder",
        holder.trim(),
        "--for",
        "1s",
        "--offline",
        "--out",
        short.to_str().unwrap(),
    ]);
    succeeded(&granted);
    until("the contract has expired", || {
        let shown = world.contract(&["--json", "show", short.to_str().unwrap()]);
        String::from_utf8_lossy(&shown.stdout).contains("expired")
    });
    refused(&world, &short, &format!(",key={}", late.display()), 32, &["expired"]);

    world.mount();
    let busy = world.mount_with(&contract, "");
    assert_eq!(busy.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("mounted on"));
    rustix::mount::unmount(world.at("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();

    world.kill_gateway();
    refused(&world, &contract, "", 32, &["cannot connect to 127.0.0.1", "check `gateway=`"]);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
