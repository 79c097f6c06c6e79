//! What drivers do, one action at a time.

use std::fmt;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use strongroom_base::files::{self, Existing, SECRET};

use super::{argv, xenstore};
use crate::run::{NotRun, run, shown};

/// How often a state is asked for.
const ASK: Duration = Duration::from_millis(100);
/// How long a killed process may take to end: it may have to write memory to a slow disk.
const END: Duration = Duration::from_secs(30);
/// How long copying an overlay to another file system may take.
const COPY: Duration = Duration::from_secs(900);
const MAX_SECRET: usize = 4096;

/// One thing that a driver does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Runs a program.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it may take.
        timeout: Duration,
        /// Whether its failure counts: stopping a guest that does not run fails.
        may_fail: bool,
    },
    /// Asks a program until it says something, or until it fails.
    Await {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The word that it is to say; `None`: it is to fail.
        says: Option<String>,
        /// For how long.
        timeout: Duration,
    },
    /// Asks a program for a table, and insists on a line that ends with a word; or `xl` for a configuration with that disk.
    Insist {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The last word of a line.
        word: String,
        /// What is wrong without it.
        otherwise: String,
        /// How long the program may take.
        timeout: Duration,
    },
    /// Moves what a guest changed to the evidence, unless that was done before.
    Keep {
        /// From where.
        from: PathBuf,
        /// To where.
        to: PathBuf,
    },
    /// Puts the secret into a file that a hypervisor reads.
    HandOver {
        /// The secret.
        from: PathBuf,
        /// The file.
        to: PathBuf,
        /// User and group that get to read it.
        owner: Option<(u32, u32)>,
    },
    /// Empties a file.
    Empty {
        /// Which.
        file: PathBuf,
    },
    /// Writes the secret to a guest's part of XenStore.
    XenSecret {
        /// The guest.
        domain: String,
        /// The secret.
        from: PathBuf,
        /// How long finding the guest may take.
        timeout: Duration,
    },
    /// Kills the process that a file names, if it is the one that was started with that file.
    Kill {
        /// The file.
        pidfile: PathBuf,
    },
    /// Nothing.
    Nothing {
        /// What would be done.
        what: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Run { argv, may_fail, .. } => {
                write!(f, "{}{}", shown(argv), if *may_fail { " (may fail)" } else { "" })
            }
            Action::Await { argv, says: Some(word), .. } => {
                write!(f, "wait until `{}` says `{word}`", shown(argv))
            }
            Action::Await { argv, says: None, .. } => write!(f, "wait until `{}` fails", shown(argv)),
            Action::Insist { argv, word, .. } => write!(f, "insist that `{}` names {word}", shown(argv)),
            Action::Keep { from, to } => write!(f, "move {} to {}", from.display(), to.display()),
            Action::HandOver { to, .. } => write!(f, "hand the secret over in {}", to.display()),
            Action::Empty { file } => write!(f, "empty {}", file.display()),
            Action::XenSecret { domain, .. } => {
                write!(f, "write the secret to {} of {domain} in XenStore", xenstore::SECRET_NODE)
            }
            Action::Kill { pidfile } => write!(f, "kill the process of {}", pidfile.display()),
            Action::Nothing { what } => write!(f, "nothing: {what}"),
        }
    }
}

/// An action that failed.
#[derive(Debug)]
pub struct ActionError {
    /// Why.
    pub why: String,
    /// All that the program said: `why` has its last line, and a program may tell the cause first.
    pub output: String,
    /// Whether trying again is of no use.
    pub permanent: bool,
}

impl ActionError {
    fn new(why: impl fmt::Display) -> ActionError {
        ActionError { why: why.to_string(), output: String::new(), permanent: false }
    }
}

impl From<NotRun> for ActionError {
    fn from(error: NotRun) -> ActionError {
        ActionError { why: error.to_string(), permanent: error.missing, output: error.output }
    }
}

/// Carries an action out; returns what there is to tell about it.
///
/// # Errors
/// [`ActionError`].
pub fn perform(action: &Action) -> Result<String, ActionError> {
    match action {
        Action::Run { argv, timeout, may_fail } => match run(argv, *timeout, b"") {
            Ok(ran) => Ok(ran.output),
            Err(error) if *may_fail && !error.missing => Ok(error.output),
            Err(error) => Err(error.into()),
        },
        Action::Await { argv, says, timeout } => wait_for(argv, says.as_deref(), *timeout),
        Action::Insist { argv, word, otherwise, timeout } => {
            let ran = run(argv, *timeout, b"")?;
            let (bare, member) = (format!(" {word}"), format!("\"pdev_path\": \"{word}\""));
            let ends = |line: &str| {
                let line = line.trim_end();
                line.ends_with(&bare) || line.trim_end_matches(',').ends_with(&member)
            };
            match ran.output.lines().any(ends) {
                true => Ok(String::new()),
                // A domain does not come to name another disk by itself.
                false => Err(ActionError { permanent: true, ..ActionError::new(otherwise) }),
            }
        }
        Action::Keep { from, to } => keep(from, to),
        Action::HandOver { from, to, owner } => hand_over(from, to, *owner),
        Action::Empty { file } => {
            std::fs::write(file, b"\n")
                .map_err(|error| ActionError::new(format!("{}: {error}", file.display())))?;
            Ok(String::new())
        }
        Action::XenSecret { domain, from, timeout } => {
            let ran = run(&argv(["xl", "domid", domain]), *timeout, b"")?;
            let id: u32 = ran.output.trim().parse().map_err(|_| {
                ActionError::new(format!("`xl domid {domain}` gave no number: {}", ran.output.trim()))
            })?;
            xenstore::write_secret(id, &read_secret(from)?).map_err(ActionError::new)?;
            Ok(format!("domain {id}"))
        }
        Action::Kill { pidfile } => kill(pidfile),
        Action::Nothing { .. } => Ok(String::new()),
    }
}

fn read_secret(path: &Path) -> Result<String, ActionError> {
    files::read(path, "enrolment secret", MAX_SECRET).map_err(ActionError::new)
}

fn wait_for(argv: &[String], says: Option<&str>, timeout: Duration) -> Result<String, ActionError> {
    let begun = Instant::now();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let said = match run(argv, left.max(ASK), b"") {
            Ok(ran) if says.is_some_and(|word| ran.output.trim() == word) => return Ok(ran.output),
            Err(error) if error.missing => return Err(error.into()),
            Err(error) if says.is_none() => return Ok(error.output),
            Ok(ran) => ran.output,
            Err(error) => error.to_string(),
        };
        if begun.elapsed() >= timeout {
            let wanted = says.map_or("a failure".to_owned(), |word| format!("`{word}`"));
            let why = format!(
                "`{}` did not come to {wanted} within {} s; the last: {}",
                shown(argv),
                timeout.as_secs(),
                said.trim()
            );
            return Err(ActionError::new(why));
        }
        std::thread::sleep(ASK);
    }
}

fn keep(from: &Path, to: &Path) -> Result<String, ActionError> {
    if to.exists() {
        // Kept by an earlier attempt: what lies there now is a clean overlay of ours.
        return Ok("kept before".to_owned());
    }
    let failed = |error: std::io::Error| {
        ActionError::new(format!("cannot keep {} as {}: {error}", from.display(), to.display()))
    };
    match std::fs::rename(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok("there was none".to_owned()),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let part = to.with_extension("part");
            let (source, target) = (from.display().to_string(), part.display().to_string());
            run(&argv(["cp", "--reflink=auto", "--sparse=always", "-f", &source, &target]), COPY, b"")?;
            std::fs::File::open(&part).and_then(|file| file.sync_all()).map_err(failed)?;
            std::fs::rename(&part, to).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    files::sync_dir(&files::parent(to)).map_err(failed)?;
    Ok(String::new())
}

fn hand_over(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Result<String, ActionError> {
    files::write(to, &read_secret(from)?, SECRET, Existing::Replace).map_err(ActionError::new)?;
    if let Some((user, group)) = owner {
        let failed =
            |error: std::io::Error| ActionError::new(format!("cannot give {} away: {error}", to.display()));
        std::os::unix::fs::chown(to, Some(user), Some(group)).map_err(failed)?;
        std::fs::set_permissions(to, Permissions::from_mode(SECRET)).map_err(failed)?;
    }
    Ok(String::new())
}

fn kill(pidfile: &Path) -> Result<String, ActionError> {
    let failed = |error: std::io::Error| ActionError::new(format!("{}: {error}", pidfile.display()));
    let text = match std::fs::read_to_string(pidfile) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok("it does not run".to_owned()),
        text => text.map_err(failed)?,
    };
    let pid = text.trim().parse::<i32>().ok().and_then(Pid::from_raw);
    let pid =
        pid.ok_or_else(|| ActionError::new(format!("{} holds no process number", pidfile.display())))?;
    // The descriptor first: from here on the number cannot come to mean another process.
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok("it has ended".to_owned()),
        process => process.map_err(|error| failed(error.into()))?,
    };
    let words = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let name = pidfile.as_os_str().as_encoded_bytes();
    if !words.split(|byte| *byte == 0).any(|word| word == name) {
        // The number was given to somebody else after a restart of the machine.
        return Ok("it has ended, and its number is another process's".to_owned());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let timeout = Timespec { tv_sec: i64::try_from(END.as_secs()).unwrap_or(30), tv_nsec: 0 };
    let mut waiting = [PollFd::new(&process, PollFlags::IN)];
    match poll(&mut waiting, Some(&timeout)) {
        Ok(0) => Err(ActionError::new(format!(
            "process {} did not end within {} s",
            pid.as_raw_nonzero(),
            END.as_secs()
        ))),
        Ok(_) => Ok(format!("process {}", pid.as_raw_nonzero())),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_not_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("overlay"), dir.path().join("kept"));
        assert_eq!(keep(&from, &to).unwrap(), "there was none");
        std::fs::write(&from, "dirty").unwrap();
        keep(&from, &to).unwrap();
        std::fs::write(&from, "clean").unwrap();
        assert_eq!(keep(&from, &to).unwrap(), "kept before");
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "dirty");
    }

    #[test]
    fn all_that_a_failed_program_said_is_told() {
        let words = argv(["sh", "-c", "echo the cause; echo what came of it; exit 3"]);
        let failed = perform(&Action::Run { argv: words, timeout: Duration::from_secs(60), may_fail: false })
            .unwrap_err();
        assert!(failed.why.ends_with("exit code 3: what came of it"), "{}", failed.why);
        assert_eq!(failed.output, "the cause\nwhat came of it\n");
    }

    #[test]
    fn only_the_process_that_was_started_with_the_file_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pidfile = dir.path().join("pid");
        assert_eq!(kill(&pidfile).unwrap(), "it does not run");
        std::fs::write(&pidfile, "1\n").unwrap();
        assert!(kill(&pidfile).unwrap().contains("another process"), "this machine's init lives on");
        std::fs::write(&pidfile, "junk").unwrap();
        assert!(kill(&pidfile).is_err());
        // A stand-in for QEMU: it has the file's name among its words.
        // It waits for the end of its input, so that nothing of it is left when it is killed.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", "-pidfile"])
            .arg(&pidfile)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(&pidfile, child.id().to_string()).unwrap();
        kill(&pidfile).unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_table_is_to_name_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("table").display().to_string();
        std::fs::write(&file, " Target   Source\n-------\n vda      /i/the mail.qcow2\n sda      -\n\n")
            .unwrap();
        let insist = |word: &str| {
            perform(&Action::Insist {
                argv: argv(["cat", &file]),
                word: word.to_owned(),
                otherwise: "another disk".to_owned(),
                timeout: Duration::from_secs(60),
            })
        };
        insist("/i/the mail.qcow2").unwrap();
        for other in ["/i/mail.qcow2", "/the mail.qcow2", "/i/the mail", "/i/the mail.qcow2.old"] {
            let refused = insist(other).unwrap_err();
            assert!(refused.permanent && refused.why == "another disk", "{other}");
        }
        // As `xl -N create` has it.
        let json = "Parsing config from /e/mail.cfg\n{\n \"disks\": [\n  {\n   \"pdev_path\": \"/i/mail.qcow2\",\n   \"vdev\": \"xvda\"\n";
        std::fs::write(&file, json).unwrap();
        insist("/i/mail.qcow2").unwrap();
        for other in ["mail.qcow2", "/i/mail", "/i/mail.qcow2.old"] {
            insist(other).unwrap_err();
        }
        std::fs::remove_file(&file).unwrap();
        assert!(!insist("/i/mail.qcow2").unwrap_err().permanent, "one that fails is asked again");
    }

    #[test]
    fn a_state_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state").display().to_string();
        std::fs::write(&file, "running\n").unwrap();
        let cat = argv(["cat", &file]);
        let short = Duration::from_millis(300);
        assert!(wait_for(&cat, Some("shut off"), short).unwrap_err().why.contains("running"));
        std::fs::write(&file, "shut off\n").unwrap();
        wait_for(&cat, Some("shut off"), short).unwrap();
        std::fs::remove_file(&file).unwrap();
        wait_for(&cat, None, short).unwrap();
    }
}
