//! Programs that people use, on the mount, in a lab: git, Mercurial, SQLite, rsync, tar, a compiler.
//!
//! Each script runs in an app guest under `set -eu`; what it must have achieved is checked by the program's own means
//! (`fsck`, `verify`, `integrity_check`, a second run) and by comparing bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

mod build;
mod sqlite;
mod transfer;
mod versions;

use std::fs;

use strongroom_tests::lab::{Lab, Options};

/// A lab whose app guests `one` and `two` may do everything on the same path, which both see as `/mnt/work`.
fn lab(purpose: &str) -> Lab {
    let policy = tempfile::tempdir().unwrap();
    let data = "[[grant]]\npath = \"shared\"\nmount = \"/work\"\nrights = \"read-write\"\n";
    for app in ["one", "two"] {
        fs::write(
            policy.path().join(format!("{app}.toml")),
            format!("application = \"{app}\"\nlifetime = \"8h\"\n\n{data}"),
        )
        .unwrap();
    }
    let lab =
        Lab::up(&Options { policy: Some(policy.path().to_owned()), ..Options::for_test(purpose) }).unwrap();
    let status = lab.status().unwrap();
    assert!(status.guests.iter().all(|guest| guest.problem.is_none()), "{status:?}");
    lab
}

/// Run a shell script in a guest's `/mnt/work` and return what it printed.
fn script(lab: &Lab, app: &str, text: &str) -> String {
    lab.app(app, ["bash", "-euo", "pipefail", "-c", text]).cwd("/mnt/work").run().unwrap()
}
