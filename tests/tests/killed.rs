//! The client of a mount is killed while nothing closes its connection: what waits for it ends all the same, and the guest can mount again.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use strongroom_tests::lab::Lab;

/// The processes in an app guest, by their numbers here.
fn processes(lab: &Lab, app: &str) -> Vec<Pid> {
    let namespace = lab.app(app, ["readlink", "/proc/self/ns/pid"]).cwd("/").run().unwrap();
    let inside = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == Path::new(namespace.trim()))
    };
    let numbers =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(inside).filter_map(Pid::from_raw).collect()
}

fn command_line(pid: Pid) -> String {
    String::from_utf8_lossy(&fs::read(of(pid, "cmdline")).unwrap_or_default()).replace('\0', " ")
}

fn of(pid: Pid, file: &str) -> PathBuf {
    format!("/proc/{}/{file}", pid.as_raw_nonzero()).into()
}

fn client(lab: &Lab, app: &str) -> Pid {
    let is_client = |pid: &Pid| command_line(*pid).contains("mount-strongroom /etc/strongroom");
    processes(lab, app).into_iter().find(is_client).unwrap()
}

/// What a thread of the client that the kernel does not let go would keep: its descriptors of the connection.
fn connection(client: Pid) -> Vec<OwnedFd> {
    let process = pidfd_open(client, PidfdFlags::empty()).unwrap();
    let descriptors = fs::read_dir(of(client, "fd")).unwrap().flatten();
    let fuse =
        descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("/dev/fuse")));
    let numbers = fuse.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap());
    numbers.map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap()).collect()
}

/// Starts a program in the guest that waits for the gateway, which has been stopped.
fn waits(lab: &Lab, command: &[&str]) -> Child {
    let program = lab
        .app("one", command.iter().copied())
        .cwd("/mnt/work")
        .into_command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let line = format!("{} ", command.join(" "));
    let asleep = |pid: Pid| {
        command_line(pid) == line
            && fs::read_to_string(of(pid, "wchan")).is_ok_and(|at| at == "request_wait_answer")
    };
    while !processes(lab, "one").into_iter().any(asleep) {}
    program
}

#[test]
fn whoever_waits_for_a_killed_client_is_let_go() {
    let lab = pair::lab("killed");
    for round in 0..2 {
        let client = client(&lab, "one");
        // So that the program gets as far as its own request.
        lab.app("one", ["ls", "-la", "/mnt/work"]).run().unwrap();
        lab.storage(["pkill", "-STOP", "strongroom-gate"]).run().unwrap();
        let name = format!("made{round}");
        let program = waits(&lab, &["mkdir", &name]);
        let kept = connection(client);
        assert!(!kept.is_empty());
        kill_process(client, Signal::KILL).unwrap();
        let output = program.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(&name), "{said}");
        lab.storage(["pkill", "-CONT", "strongroom-gate"]).run().unwrap();
        // The dead mount is in its place: nobody goes on in the directory below.
        let look = lab.app("one", ["stat", "/mnt/work"]).cwd("/").output().unwrap();
        let said = String::from_utf8_lossy(&look.stderr).into_owned();
        assert!(said.contains("not connected") || said.contains("abort"), "{said}");
        drop(kept);
        lab.app("one", ["umount", "/mnt"]).cwd("/").run().unwrap();
        lab.remount("one").unwrap();
        lab.app("one", ["rm", "-rf", "/mnt/work/made0", "/mnt/work/made1"]).cwd("/").run().unwrap();
        // Nobody watches over what has gone.
        while processes(&lab, "one").into_iter().filter(|pid| command_line(*pid).contains("-guard")).count()
            > 1
        {}
    }
    lab.down().unwrap();
}
