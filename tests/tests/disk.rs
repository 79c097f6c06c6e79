//! A disk that is full, that fails, or that does not answer, under a gateway with guests at work: programs hear of it where they hear of it
//! on a disk of their own (write, fsync or close), nothing that was synced is lost, and everything works again afterwards.
//!
//! The disk is an ext4 image on a tmpfs, in a mount namespace of the test's own. It fails by losing its far end: what the kernel has promised to
//! write there it learns in the midst of writing back to be impossible.
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
use std::path::PathBuf;
use std::process::Command;

use pair::lab_with;
use python::{Python, in_own_mounts};
use strongroom_tests::lab::{Lab, Options};

/// The disk. What is mounted goes with the namespace.
struct Disk {
    /// Below it `room` is the tmpfs with the image, `data` the file system in it.
    top: tempfile::TempDir,
}

fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    /// A file system of so many MiB.
    fn new(size: u32) -> Disk {
        let top = tempfile::Builder::new().prefix("strongroom-disk-").tempdir_in("/var/tmp").unwrap();
        let disk = Disk { top };
        let (tmpfs, data, image) = (disk.path("room"), disk.path("data"), disk.path("room/image"));
        fs::create_dir(&tmpfs).unwrap();
        fs::create_dir(&data).unwrap();
        must("mount", &["-t", "tmpfs", "-o", &format!("size={}m", size + 10), "none", &tmpfs]);
        must("truncate", &["-s", &format!("{size}M"), &image]);
        // No journal, which would end the file system with the first failure; everything but data is there from the start.
        let features = "^has_journal,^resize_inode";
        let at_once = "lazy_itable_init=0,nodiscard";
        must("mkfs.ext4", &["-q", "-m", "0", "-O", features, "-E", at_once, "-N", "1024", &image]);
        must("mount", &["-o", "loop,errors=continue", &image, &data]);
        fs::create_dir(disk.top.path().join("data/shared")).unwrap();
        disk
    }

    /// As if the disk ended after so many MiB, until it is made longer again. What describes the file system lies at its start.
    fn ends_at(&self, size: u32) {
        let image = self.path("room/image");
        must("truncate", &["-s", &format!("{size}M"), &image]);
        let found = Command::new("losetup").args(["-n", "-O", "NAME", "-j", &image]).output().unwrap();
        let device = String::from_utf8(found.stdout).unwrap();
        must("losetup", &["-c", device.trim()]);
    }

    fn path(&self, name: &str) -> String {
        self.top.path().join(name).to_str().unwrap().to_owned()
    }

    fn lab(&self, purpose: &str) -> Lab {
        lab_with(Options { data: Some(PathBuf::from(self.path("data"))), ..Options::for_test(purpose) }, "")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for name in ["data", "room"] {
            // Without it the directory could not be removed.
            let _ = Command::new("umount").args(["-l", &self.path(name)]).status();
        }
    }
}

/// Writes until something says no, then syncs and closes; which step said what.
const FILL: &str = "def fill(name, most):
    f = os.open(name, os.O_RDWR | os.O_CREAT); told = []; block = b'x' * 65536
    try:
        for _ in range(most * 16): assert os.write(f, block) == len(block)
    except OSError as e: told.append(errno.errorcode[e.errno])
    for last in (os.fsync, os.close):
        try: last(f)
        except OSError as e: told.append(errno.errorcode[e.errno])
    return sorted(set(told))";

/// A small file, written, synced and read again.
const WORKS: &str = "def works(name):
    f = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL); os.write(f, name.encode() * 1000); os.fsync(f); os.close(f)
    assert open(name, 'rb').read() == name.encode() * 1000
    os.rename(name, name + '.new'); os.unlink(name + '.new'); os.mkdir(name); os.rmdir(name)
    return 'yes'";

#[test]
fn a_full_disk_is_told_and_room_helps() {
    if !in_own_mounts("a_full_disk_is_told_and_room_helps") {
        return;
    }
    let disk = Disk::new(48);
    let lab = disk.lab("diskfull");
    let [mut one, mut two] = Python::pair(&lab);
    for guest in [&mut one, &mut two] {
        guest.run(FILL);
        guest.run(WORKS);
    }
    two.run("f = os.open('kept', os.O_RDWR | os.O_CREAT); os.write(f, b'kept' * 5000); os.fsync(f)");
    assert_eq!(one.ask("fill('big', 200)"), "['ENOSPC']");
    // It is full for everybody, and what was synced is there.
    assert_eq!(two.ask("fill('more', 1)"), "['ENOSPC']");
    assert_eq!(
        two.ask("os.pread(f, 30000, 0) == b'kept' * 5000, os.statvfs('.').f_bfree < 100"),
        "(True, True)"
    );
    // Reading, looking and removing need no room.
    assert_eq!(
        one.ask("open('kept', 'rb').read() == b'kept' * 5000, sorted(os.listdir('.'))"),
        "(True, ['big', 'kept', 'more'])"
    );
    two.run("os.unlink('big'); os.unlink('more')");
    for (number, guest) in [&mut one, &mut two].into_iter().enumerate() {
        assert_eq!(guest.ask(&format!("works('again{number}')")), "'yes'");
    }
    assert_eq!(one.ask("fill('fits', 20)"), "[]");
    assert_eq!(
        two.ask("os.stat('fits').st_size, set(open('fits', 'rb').read()) == {120}"),
        "(20971520, True)"
    );
    drop((one, two));
    lab.down().unwrap();
}

#[test]
fn what_is_replaced_makes_room_at_once() {
    if !in_own_mounts("what_is_replaced_makes_room_at_once") {
        return;
    }
    let disk = Disk::new(48);
    let lab = disk.lab("diskroom");
    let [mut one, mut two] = Python::pair(&lab);
    one.run(FILL);
    // The other guest knows them all, and does not forget at once what loses its name: such files are held, but not for want of room.
    for round in 0..5 {
        one.run(&format!("told = [fill(f'{round}.{{n}}', 4) for n in range(13)]"));
        assert_eq!(one.ask("told[0], told[-1]"), "([], ['ENOSPC'])");
        two.run(&format!("sizes = [os.stat(f'{round}.{{n}}').st_size for n in range(13)]"));
        one.run(&format!("for n in range(13): open('new', 'w').close(), os.rename('new', f'{round}.{{n}}')"));
    }
    drop((one, two));
    lab.down().unwrap();
}

#[test]
fn a_failing_disk_is_told_and_later_work_goes_well() {
    if !in_own_mounts("a_failing_disk_is_told_and_later_work_goes_well") {
        return;
    }
    let disk = Disk::new(200);
    let lab = disk.lab("diskfails");
    let [mut one, mut two] = Python::pair(&lab);
    for guest in [&mut one, &mut two] {
        guest.run(FILL);
        guest.run(WORKS);
    }
    two.run("f = os.open('kept', os.O_RDWR | os.O_CREAT); os.write(f, b'kept' * 5000); os.fsync(f)");
    disk.ends_at(60);
    // Somebody hears of it, at a write, at fsync or at close, and in its own words.
    assert_eq!(one.ask("fill('big', 100)"), "['EIO']");
    assert_eq!(
        one.ask("g = os.open('other', os.O_RDWR | os.O_CREAT); os.write(g, b'x' * (8 << 20))"),
        (8 << 20).to_string()
    );
    assert_eq!(one.ask("os.fsync(g)"), "EIO");
    // Others are not told of it, and read what they had synced.
    assert_eq!(
        two.ask("os.pread(f, 30000, 0) == b'kept' * 5000, os.stat('big').st_size > 0"),
        "(True, True)"
    );
    // The disk is well again: so is work, on the same handle, on the same files and on new ones.
    disk.ends_at(200);
    assert_eq!(one.ask("os.pwrite(g, b'y' * (8 << 20), 0)"), (8 << 20).to_string());
    assert_eq!(one.ask("os.fsync(g)"), "None");
    assert_eq!(two.ask("set(open('other', 'rb').read()) == {121}"), "True");
    for (number, guest) in [&mut one, &mut two].into_iter().enumerate() {
        assert_eq!(guest.ask(&format!("works('again{number}')")), "'yes'");
    }
    two.run("os.unlink('big')");
    assert_eq!(two.ask("fill('new', 16)"), "[]");
    drop((one, two));
    lab.down().unwrap();
}

#[test]
fn a_disk_that_does_not_answer_stops_only_who_needs_it() {
    if !in_own_mounts("a_disk_that_does_not_answer_stops_only_who_needs_it") {
        return;
    }
    let disk = Disk::new(100);
    let lab = disk.lab("diskslow");
    let [mut one, mut two] = Python::pair(&lab);
    one.run("f = os.open('f', os.O_RDWR | os.O_CREAT); os.write(f, b'before'); os.fsync(f)");
    two.run("open('read', 'wb').write(b'r' * 1_000_000); os.mkdir('d')");
    assert_eq!(one.ask("os.stat('d').st_nlink"), "2");
    // Nothing can be written any more, and nobody is told so: it just takes.
    must("fsfreeze", &["-f", &disk.path("data")]);
    one.tell("os.write(f, b' and after'); os.fsync(f); os.mkdir('d/e')");
    // Who only reads goes on, from the gateway too, and so does the gateway itself.
    assert_eq!(two.ask("g = os.open('read', os.O_RDONLY); os.posix_fadvise(g, 0, 0, os.POSIX_FADV_DONTNEED); os.read(g, 2_000_000) == b'r' * 1_000_000"), "True");
    assert_eq!(two.ask("sorted(os.listdir('.')), os.stat('f').st_size >= 6"), "(['d', 'f', 'read'], True)");
    lab.base(["contract", "sessions"]).run().unwrap();
    must("fsfreeze", &["-u", &disk.path("data")]);
    assert_eq!(one.hear(), "None");
    assert_eq!(two.ask("open('f').read(), os.listdir('d')"), "('before and after', ['e'])");
    drop((one, two));
    lab.down().unwrap();
}
