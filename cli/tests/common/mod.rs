//! What the tests of the command share: a base directory of their own, and the real binary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]
// A failed step of a test ends the test; not every test file uses every helper.

pub mod fake_gateway;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A directory with a base directory in it, gone when the test ends.
pub struct World {
    dir: tempfile::TempDir,
    admin: String,
}

/// How a run of the command ended.
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The command, without what the environment of the tests might add.
pub fn contract() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_contract"));
    command.env_remove("STRONGROOM_DIR").env_remove("NO_COLOR").env("TZ", "UTC");
    command
}

pub fn run(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().expect("the command starts");
    let run = Run {
        code: status.code().unwrap_or_else(|| panic!("killed: {status}")),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    };
    assert!(!run.err.contains("panicked"), "{}", run.err);
    for text in [&run.out, &run.err] {
        assert!(!text.contains('\x1b'), "colour without a terminal: {text:?}");
    }
    run
}

impl Run {
    #[track_caller]
    pub fn ok(self) -> Run {
        assert_eq!(self.code, 0, "out: {}\nerr: {}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn fails(self, code: i32, message: &str) -> Run {
        assert_eq!(self.code, code, "out: {}\nerr: {}", self.out, self.err);
        assert!(self.err.contains(message), "no `{message}` in: {}", self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in: {}", self.out))
    }

    /// The object that a failure with `--json` writes.
    #[track_caller]
    pub fn error_json(&self) -> Value {
        assert_eq!(self.out, "", "a failure has no result");
        let value: Value =
            serde_json::from_str(&self.err).unwrap_or_else(|error| panic!("{error} in: {}", self.err));
        value["error"].clone()
    }
}

impl World {
    /// A base directory whose gateway does not answer: nobody listens at port 1 of the loopback.
    pub fn new() -> World {
        World::with_admin("127.0.0.1:1")
    }

    pub fn with_admin(admin: &str) -> World {
        let world = World { dir: tempfile::tempdir().unwrap(), admin: admin.to_owned() };
        let base = world.base();
        run(contract().args(["init", "--address", "127.0.0.1:7070", "--interface", "lo"]).args([
            "--admin",
            &world.admin,
            "--admin-interface",
            "lo",
            base.to_str().unwrap(),
        ]))
        .ok();
        world.keygen("holder");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn base(&self) -> PathBuf {
        self.path("base")
    }

    /// The command in the world's directory, with its base directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = contract();
        command.current_dir(self.dir.path()).env("STRONGROOM_DIR", self.base()).args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        run(&mut self.command(args))
    }

    pub fn keygen(&self, name: &str) -> String {
        let run = self.run(&["keygen", "--out", &format!("{name}.key")]).ok();
        run.out.trim().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// All files below the world's directory, with their contents: what must not change when a command fails.
    pub fn snapshot(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut list = vec![];
        walk(self.dir.path(), &mut list);
        list.sort();
        list
    }
}

fn walk(dir: &Path, list: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, list);
        } else if path.file_name().unwrap() != ".lock" {
            list.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
}

pub fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
