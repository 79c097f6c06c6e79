//! Two guests with the same grant, a program in each that is talked to line by line, and dice that fall the same everywhere.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use strongroom_tests::lab::{GATEWAY_ADDRESS, Lab, Options, StopHow};

/// The guests.
pub const APPS: [&str; 2] = ["one", "two"];

/// xorshift64*; the same everywhere for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

/// A lab of the two, both with all of `shared` at `/mnt/work`.
pub fn lab(purpose: &str) -> Lab {
    lab_with(Options::for_test(purpose), "")
}

/// The same, with more lines in each grant.
pub fn lab_with(options: Options, more: &str) -> Lab {
    lab_of(&APPS, options, more)
}

/// The same with these guests.
pub fn lab_of(apps: &[&str], options: Options, more: &str) -> Lab {
    let policy = tempfile::tempdir().unwrap();
    for app in apps {
        let grant = "[[grant]]\npath = \"shared\"\nmount = \"/work\"\nrights = \"read-write\"\n";
        let text = format!("application = \"{app}\"\nlifetime = \"8h\"\n\n{grant}{more}");
        fs::write(policy.path().join(format!("{app}.toml")), text).unwrap();
    }
    let options = Options { policy: Some(policy.path().to_owned()), ..options };
    let lab = Lab::up(&options).unwrap();
    let status = lab.status().unwrap();
    assert!(status.guests.iter().all(|guest| guest.problem.is_none()), "{status:?}");
    lab
}

/// A lab in which both have a file of these contents, and a Python program that has it open.
pub fn with_file(purpose: &str, contents: &[u8], program: &str) -> (Lab, [Guest; 2]) {
    let lab = lab(purpose);
    fs::write(lab.data().join("shared/file"), contents).unwrap();
    let guests = APPS.map(|app| Guest::start(&lab, app, &["/usr/bin/python3", "-c", program]));
    (lab, guests)
}

/// Breaks all connections of a guest with the gateway.
pub fn cut_off(lab: &Lab, app: &str) {
    let gateway = GATEWAY_ADDRESS.split(':').next().unwrap();
    lab.app(app, ["ss", "-K", "dst", gateway]).cwd("/").run().unwrap();
}

/// Kills the gateway, and starts another.
pub fn replace_gateway(lab: &Lab) {
    lab.stop_gateway(StopHow::Kill).unwrap();
    lab.start_gateway().unwrap();
}

/// The program in one guest.
pub struct Guest {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Guest {
    pub fn start(lab: &Lab, app: &str, program: &[&str]) -> Guest {
        let command = lab.app(app, program.iter().copied()).cwd("/mnt/work");
        let mut process =
            command.into_command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take(), process.stdout.take().unwrap());
        Guest { process, input, output: BufReader::new(output) }
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the program in the guest has ended");
        line.trim_end().to_owned()
    }

    /// Kills what was started, and returns when it is gone.
    #[allow(dead_code, reason = "each test program uses its part")]
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
    }
}
