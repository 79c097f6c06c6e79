//! What the programs at both ends keep in memory, at its peak: with bulk data under way from many programs, and with a tree of many files.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use strongroom_tests::lab::{Lab, Options, StopHow};

use pair::{lab, lab_with};

/// Reads and writes whole files of 32 MiB, as many at a time as there are programs.
const BULK: &str = r#"
import os, sys, threading
programs, size = int(sys.argv[1]), 1 << 20
def write(number):
    data = os.urandom(size)
    with open(f"bulk-{number}", "wb", buffering=0) as file:
        for _ in range(32):
            file.write(data)
        os.fsync(file.fileno())
def read(number):
    with open(f"bulk-{number}", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(size):
            pass
for works in [lambda number: write, lambda number: (read, write)[number % 2]]:
    threads = [threading.Thread(target=works(number), args=[number]) for number in range(programs)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"#;

const TREE: &str = r#"
import os
for directory in range(100):
    os.mkdir(f"tree-{directory}")
    for number in range(100):
        open(f"tree-{directory}/file-{number}", "w").close()
"#;

/// MiB of the client in the guest `one` and of the gateway, by a line of proc_pid_status(5): `VmHWM`, the most so far, or `VmRSS`, now.
fn memory(lab: &Lab, line: &str) -> [f64; 2] {
    let of = |program: &str| {
        format!("sed -n 's/^{line}:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pgrep -o -f '{program}')/status")
    };
    let client = lab.app("one", ["sh", "-c", &of("^[^ ]*mount-strongroom ")]).cwd("/").run().unwrap();
    let gateway = lab.storage(["sh", "-c", &of("^[^ ]*strongroom-gateway ")]).run().unwrap();
    let memory = [client, gateway].map(|kib| kib.trim().parse::<f64>().unwrap() / 1024.0);
    eprintln!("{line}: client {:.1} MiB, gateway {:.1} MiB", memory[0], memory[1]);
    memory
}

fn python(lab: &Lab, script: &str, arguments: &[&str]) {
    let command: Vec<&str> = ["python3", "-c", script].iter().chain(arguments).copied().collect();
    lab.app("one", command).cwd("/mnt/work").run().unwrap();
}

#[test]
fn bulk_data_under_way_is_bounded() {
    let lab = lab("bulk");
    python(&lab, BULK, &["4"]);
    let [client, gateway] = memory(&lab, "VmHWM");
    assert!(client <= 32.0 && gateway <= 48.0, "a few programs at a time");
    python(&lab, BULK, &["64"]);
    let [client, gateway] = memory(&lab, "VmHWM");
    assert!(client <= 96.0 && gateway <= 96.0, "as many as may have requests under way");
}

#[test]
fn a_tree_listed_again_and_again_takes_no_more_than_once() {
    let lab = lab_with(Options::for_test("tree"), "");
    // So that leases come and go.
    lab.stop_gateway(StopHow::Clean).unwrap();
    let fewer = "printf '\\n[leases]\\nmost = 1000\\n' >> /etc/strongroom/gateway.toml";
    lab.storage(["sh", "-c", fewer]).run().unwrap();
    lab.start_gateway().unwrap();
    let before = memory(&lab, "VmRSS");
    python(&lab, TREE, &[]);
    let list = |times: usize| {
        for _ in 0..times {
            let listed =
                lab.app("one", ["sh", "-c", "find tree-* -ls | wc -l"]).cwd("/mnt/work").run().unwrap();
            assert_eq!(listed.trim(), "10100");
        }
        memory(&lab, "VmRSS")
    };
    let twice = list(2);
    for (before, then) in before.iter().zip(twice) {
        assert!(then - before <= 24.0, "10,000 files");
    }
    for (twice, often) in twice.iter().zip(list(10)) {
        assert!(often - twice <= 4.0, "the same files");
    }
}
