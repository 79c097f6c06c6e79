//! External programs: as argument vectors, never through a shell, with a time limit, and with their output kept up to a
//! bound. A program that hangs is killed with everything it started.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// The output that is kept, in bytes; what follows is read and dropped.
const MAX_OUTPUT: usize = 64 * 1024;
/// Where programs are looked for; the daemon's own environment does not decide it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program said, and that it succeeded.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Standard output and standard error as they came, at most 64 KiB.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

/// Why a program did not do its work.
#[derive(Clone, Debug)]
pub struct NotRun {
    /// In one sentence.
    pub why: String,
    /// What it said.
    pub output: String,
    /// Whether trying again is of no use: it is not there.
    pub missing: bool,
}

impl std::fmt::Display for NotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)?;
        match self.output.trim().lines().last() {
            Some(last) => write!(f, ": {last}"),
            None => Ok(()),
        }
    }
}

/// The words of a command, as a person would type them.
pub fn shown(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Where a program is; `None`: nowhere.
pub fn find(program: &str) -> Option<PathBuf> {
    let runnable =
        |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| runnable(path));
    }
    let own = std::env::var("PATH").unwrap_or_default();
    let dirs = PATH.split(':').chain(own.split(':')).filter(|dir| dir.starts_with('/'));
    dirs.map(|dir| Path::new(dir).join(program)).find(|path| runnable(path))
}

/// Runs a program to its end; `input` is its standard input.
///
/// # Errors
/// [`NotRun`] if it is not there, fails, or takes longer than `timeout`.
pub fn run(argv: &[String], timeout: Duration, input: &[u8]) -> Result<Ran, NotRun> {
    let fail = |why: String, missing| NotRun { why, output: String::new(), missing };
    let name = argv.first().map_or("", String::as_str);
    let Some(program) = find(name) else {
        return Err(fail(format!("there is no program `{name}`"), true));
    };
    let begun = Instant::now();
    let broken = |error: std::io::Error| fail(format!("cannot run `{name}`: {error}"), false);
    let (mut reader, writer) = std::io::pipe().map_err(broken)?;
    let mut command = Command::new(program);
    command
        .args(argv.get(1..).unwrap_or_default())
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(writer.try_clone().map_err(broken)?)
        .stderr(writer)
        .process_group(0)
        .current_dir("/");
    let mut child = command.spawn().map_err(broken)?;
    // Its copies of the pipe's end would keep the end of the output from showing.
    drop(command);
    let ended = watch(&mut child, &mut reader, input, begun + timeout);
    let (output, in_time) = match ended {
        Ok(ended) => ended,
        Err(error) => {
            end(&mut child);
            return Err(broken(error));
        }
    };
    if !in_time {
        end(&mut child);
        let why = format!("`{}` did not end within {} s and was killed", shown(argv), timeout.as_secs());
        return Err(NotRun { why, output, missing: false });
    }
    let status = child.wait().map_err(broken)?;
    if status.success() {
        return Ok(Ran { output, took: begun.elapsed() });
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "an unknown end".to_owned(),
    };
    Err(NotRun { why: format!("`{}` failed with {how}", shown(argv)), output, missing: false })
}

fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Gone already is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads and writes until the program has ended; `false`: it has not by `until`. What it leaves running keeps nobody here.
fn watch(
    child: &mut Child,
    reader: &mut std::io::PipeReader,
    input: &[u8],
    until: Instant,
) -> std::io::Result<(String, bool)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::from(ErrorKind::InvalidInput))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    rustix::io::ioctl_fionbio(&*reader, true)?;
    let mut stdin = child.stdin.take();
    if let Some(stdin) = &stdin {
        rustix::io::ioctl_fionbio(stdin, true)?;
    }
    let (mut output, mut rest, mut open) = (vec![], input, true);
    let in_time = loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break false;
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut waiting = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if open {
            waiting.push(PollFd::new(&*reader, PollFlags::IN));
        }
        if let Some(stdin) = &stdin {
            waiting.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
        }
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = waiting.first().is_some_and(|fd| !fd.revents().is_empty());
        drop(waiting);
        if let Some(to) = &mut stdin {
            match to.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // It does not want to read: its own affair.
                Err(_) => rest = &[],
            }
            if rest.is_empty() {
                stdin = None;
            }
        }
        open = open && read_some(reader, &mut output)?;
        if ended {
            break true;
        }
    };
    Ok((String::from_utf8_lossy(&output).into_owned(), in_time))
}

/// Reads what is there; `false` at the end.
fn read_some(reader: &mut std::io::PipeReader, output: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 8192];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                let room = MAX_OUTPUT.saturating_sub(output.len());
                output.extend_from_slice(buffer.get(..count.min(room)).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> Result<Ran, NotRun> {
        run(&["sh".into(), "-c".into(), script.into()], timeout, b"in")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_and_end_are_told() {
        assert_eq!(sh("echo out; echo err >&2; cat", LONG).unwrap().output, "out\nerr\nin");
        let failed = sh("echo why; exit 3", LONG).unwrap_err();
        assert!(failed.to_string().ends_with("failed with exit code 3: why"), "{failed}");
        assert!(sh("kill -9 $$", LONG).unwrap_err().to_string().contains("signal 9"));
        let missing = run(&["no-such-program-here".into()], LONG, b"").unwrap_err();
        assert!(missing.missing && missing.to_string().contains("`no-such-program-here`"));
        assert!(run(&[], LONG, b"").unwrap_err().missing);
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let failed = sh("sleep 1000 & echo $!; sleep 1000", Duration::from_millis(300)).unwrap_err();
        assert!(failed.why.contains("did not end"), "{failed}");
        let child = failed.output.trim().to_owned();
        let gone = || {
            let status = std::fs::read_to_string(format!("/proc/{child}/stat"));
            status.map_or(true, |stat| stat.contains(") Z"))
        };
        let begun = Instant::now();
        while !gone() && begun.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone());
    }

    #[test]
    fn what_it_leaves_running_keeps_nobody() {
        let begun = Instant::now();
        let ran = sh("sleep 1000 & echo $!", LONG).unwrap();
        assert!(begun.elapsed() < LONG);
        run(&["kill".into(), ran.output.trim().into()], LONG, b"").unwrap();
    }

    #[test]
    fn output_is_bounded_and_input_of_any_length_goes_in() {
        let ran = sh("yes | head -c 1000000", LONG).unwrap();
        assert_eq!(ran.output.len(), MAX_OUTPUT);
        let long = vec![b'x'; 1_000_000];
        assert_eq!(run(&["wc".into(), "-c".into()], LONG, &long).unwrap().output.trim(), "1000000");
        assert!(run(&["true".into()], LONG, &long).is_ok(), "one that does not read is no failure");
    }

    #[test]
    fn commands_are_shown_as_typed() {
        let argv = ["a".into(), "b c".into(), "it's".into(), String::new()];
        assert_eq!(shown(&argv), "a 'b c' 'it'\\''s' ''");
    }
}
