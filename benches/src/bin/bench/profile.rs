//! Where the processors' time goes while a row is measured: `perf record` of the whole machine beside each turn, cut to the
//! rows by their times (perf-record(1), perf-script(1)).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::results::Results;
use crate::rows::{Row, Unit};
use crate::target::Target;
use crate::wire::Span;

/// Samples a second on each processor. Not a round number, so that no timer keeps step with it.
const RATE: u32 = 4999;

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// The workload, in its own code and in system calls.
    Caller,
    Client,
    Server,
    /// Threads of the kernel (disks, network, work left for later), and `perf` itself.
    Kernel,
    /// What else runs on the machine.
    Others,
    Nobody,
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    OwnCode,
    CopyInProgram,
    CopyAcross,
    Encryption,
    Waking,
    Network,
    Fuse,
    Files,
    SystemCall,
    OtherKernel,
}

impl What {
    const ALL: [(Self, &'static str); 10] = [
        (Self::OwnCode, "programs' own code"),
        (Self::CopyInProgram, "copies within programs"),
        (Self::CopyAcross, "copies between kernel and programs"),
        (Self::Encryption, "encryption"),
        (Self::Waking, "waking, switching, locks"),
        (Self::Network, "TCP/IP, bridge, filters"),
        (Self::Fuse, "FUSE"),
        (Self::Files, "files, memory, disk"),
        (Self::SystemCall, "entering the kernel"),
        (Self::OtherKernel, "rest of the kernel"),
    ];

    /// By the name of a function.
    fn of(symbol: &str, kernel: bool) -> Self {
        let any = |parts: &str| parts.split_whitespace().any(|part| symbol.contains(part));
        if any(CIPHERS) {
            return Self::Encryption;
        }
        if !kernel {
            return if any("memmove memcpy") { Self::CopyInProgram } else { Self::OwnCode };
        }
        let bare = symbol.trim_start_matches('_');
        let begins = |parts: &str| parts.split_whitespace().any(|part| bare.starts_with(part));
        let rule = RULES.iter().find(|(_, first, within)| begins(first) || any(within));
        rule.map_or(Self::OtherKernel, |(what, ..)| *what)
    }
}

const CIPHERS: &str = "aes_gcm gcm_ ring_core chacha20 poly1305";

/// What functions of the kernel do, by the beginning of their names (without underscores) or by something within. The first rule
/// counts. Where interrupts are off no sample is taken: their time falls to the function that switches them on.
const RULES: [(What, &str, &str); 6] = [
    (
        What::CopyAcross,
        "memcpy clear_page fuse_copy pi_memcpy",
        "copy_to_iter copy_from_iter copy_to_user copy_from_user copy_user rep_movs copy_folio copy_page skb_copy_datagram \
         datagram_iter check_object_size gup_fast",
    ),
    (What::Fuse, "fuse_", ""),
    (
        What::Waking,
        "raw_spin_ pv_queued raw_callee_save finish_task schedule try_to_wake ttwu select_task enqueue_ dequeue_ pick_ update_ \
         futex native_write_msr native_send hrtimer tick_ switch_ sched_ available_idle read_tsc",
        "reschedule wake_ wait_woken _idle apic",
    ),
    (
        What::Network,
        "tcp_ ip_ inet sk_ sock skb veth br_ nft_ nf_ net dev_ napi eth_ csum alloc_skb kfree_skb tun_ udp conntrack \
         handle_softirqs bbr_ fdb_ neigh_ passthru",
        "",
    ),
    (What::SystemCall, "do_syscall entry_ syscall exit_to_user irqentry x64_sys its_return exc_", ""),
    (
        What::Files,
        "ext4 jbd2 blk bio submit_bio iowrite virt vring filemap xas page get_page free_ d_ dentry lookup_ link_path path_ inode iget \
         generic_ vfs iov_iter rmqueue alloc_pages writeback kmem_cache slab kmalloc kfree brelse find_get_block recently_deleted \
         fdget",
        "folio getattr statx xattr fanotify fsnotify",
    ),
];

impl Who {
    /// By the name of a thread.
    fn of(comm: &str, target: Target) -> Self {
        let is = |names: &[&str]| names.iter().any(|name| comm.starts_with(name));
        if comm.starts_with("swapper") {
            return Self::Nobody;
        }
        if is(&[
            "kworker",
            "ksoftirqd",
            "jbd2",
            "rcu_",
            "migration",
            "kswapd",
            "kcompactd",
            "kdamond",
            "perf",
        ]) {
            return Self::Kernel;
        }
        match target {
            Target::Strongroom
                if is(&["fuse", "reader-", "mount-strong", "sender", "keeper", "recall", "kernel"]) =>
            {
                Self::Client
            }
            Target::Strongroom if is(&["worker", "strongroom-g", "undo-log", "audit", "writeback"]) => {
                Self::Server
            }
            Target::Passthrough if is(&["bindfs"]) => Self::Client,
            Target::Sshfs | Target::SshfsTuned if is(&["sshfs", "ssh"]) && comm != "sshd" => Self::Client,
            Target::Sshfs | Target::SshfsTuned if is(&["sftp", "sshd"]) => Self::Server,
            _ if is(&["bench", "git", "tar", "find", "grep", "rm", "sqlite3", "sh", "gzip", "xz"]) => {
                Self::Caller
            }
            _ => Self::Others,
        }
    }
}

/// The samples of one row on one target, over all rounds.
#[derive(Debug, Default)]
struct Profile {
    /// Processor time that was looked at, in seconds.
    seconds: f64,
    samples: BTreeMap<(Who, What), u64>,
    all: u64,
}

impl Profile {
    fn share(&self, wanted: impl Fn(Who, What) -> bool) -> f64 {
        let count: u64 =
            self.samples.iter().filter(|((who, what), _)| wanted(*who, *what)).map(|(_, count)| count).sum();
        count as f64 / self.all.max(1) as f64
    }
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Profiles(BTreeMap<(Row, Target), Profile>);

/// `perf` at work. Killed when dropped.
pub(crate) struct Recording {
    perf: Child,
    place: TempDir,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

impl Recording {
    /// Begins.
    pub(crate) fn begin() -> Result<Self> {
        let place = tempfile::Builder::new()
            .prefix("strongroom-bench-perf-")
            .tempdir_in("/var/tmp")
            .context("cannot make a directory for perf")?;
        let rate = RATE.to_string();
        let (orders, answers) = (place.path().join("orders"), place.path().join("answers"));
        let mut control = std::ffi::OsString::from("--control=fifo:");
        control.push(&orders);
        control.push(",");
        control.push(&answers);
        let (mut orders, mut answers) = (fifo(&orders)?, fifo(&answers)?);
        let perf = Command::new("perf")
            .args(["record", "--all-cpus", "--event", "cpu-clock", "--freq", &rate])
            .args(["--clockid", "CLOCK_MONOTONIC", "--quiet", "--delay=-1"])
            .arg(control)
            .arg("--output")
            .arg(place.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run `perf`; install the package linux-perf")?;
        let mut recording = Self { perf, place };
        orders.write_all(b"enable\n").context("cannot tell perf to begin")?;
        // Until it says that it has begun: short rows are over before it would have.
        while !matches!(answers.read(&mut [0; 16]), Ok(1..)) {
            crate::conductor::check_interrupted()?;
            if let Some(status) = recording.perf.try_wait().context("cannot look after perf")? {
                bail!(
                    "`perf record` has ended ({status}); it needs root, or kernel.perf_event_paranoid at -1"
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(recording)
    }

    fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    /// Ends, and adds what the rows took.
    pub(crate) fn end(mut self, target: Target, rows: &[(Row, Span)], profiles: &mut Profiles) -> Result<()> {
        let pid = i32::try_from(self.perf.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("perf has no number")?, rustix::process::Signal::INT)
            .context("cannot end perf")?;
        self.perf.wait().context("cannot wait for perf")?;
        let output = Command::new("perf")
            .args(["script", "--fields", "comm,time,ip,sym,dso", "--input"])
            .arg(self.data())
            .output()
            .context("cannot run `perf script`")?;
        if !output.status.success() {
            bail!("`perf script`: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let processors = std::thread::available_parallelism()?.get() as f64;
        for (row, span) in rows {
            profiles.0.entry((*row, target)).or_default().seconds += (span.end - span.begin) * processors;
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(sample) = Sample::read(line) else { continue };
            let row = rows.iter().find(|(_, span)| (span.begin..span.end).contains(&sample.at));
            let Some((row, _)) = row else { continue };
            let profile = profiles.0.entry((*row, target)).or_default();
            let who = Who::of(sample.comm, target);
            *profile.samples.entry((who, What::of(sample.symbol, sample.kernel))).or_default() += 1;
            profile.all += 1;
        }
        Ok(())
    }
}

/// A FIFO, open for both directions so that nobody waits for the other end; reading it does not wait either.
fn fifo(path: &Path) -> Result<File> {
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    );
    made.with_context(|| format!("cannot make `{}`", path.display()))?;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).write(true).custom_flags(flags).open(path);
    opened.with_context(|| format!("cannot open `{}`", path.display()))
}

struct Sample<'a> {
    comm: &'a str,
    /// Seconds of the monotonic clock.
    at: f64,
    symbol: &'a str,
    kernel: bool,
}

impl Sample<'_> {
    /// A line such as `reader-1  2721.653069:  ffffffff81 tcp_ack ([kernel.kallsyms])`; names of threads may have spaces.
    fn read(line: &str) -> Option<Sample<'_>> {
        let (head, tail) = line.split_once(": ")?;
        let (comm, at) = head.trim().rsplit_once(char::is_whitespace)?;
        let (_, named) = tail.trim_start().split_once(' ')?;
        let (symbol, object) = named.rsplit_once(" (")?;
        let kernel = object.starts_with("[kernel") || object.contains("[vdso]") || object.ends_with(".ko)");
        Some(Sample { comm: comm.trim(), at: at.parse().ok()?, symbol, kernel })
    }
}

impl Profiles {
    /// As Markdown: who used the processors for each operation, and what for.
    pub(crate) fn markdown(&self, results: &Results) -> String {
        let mut text = String::from(
            "\nProcessor time of each operation (of the whole row where its unit is seconds or MiB), by `perf`, which slows everything down; shares are of the time that somebody used.\n\n\
             | workload | target | unit | caller | client | server | kernel threads | others | idle |",
        );
        let shares: Vec<_> = What::ALL.iter().map(|(_, title)| *title).collect();
        let _ = writeln!(text, " {} |", shares.join(" | "));
        let _ = writeln!(text, "|---|---|---|{}", "---:|".repeat(6 + shares.len()));
        for ((row, target), profile) in &self.0 {
            let Some(value) = results.median(*row, *target) else { continue };
            let rounds = results.samples(*row, *target).len().max(1) as f64;
            let (unit, scale) = match row.unit() {
                Unit::PerSecond => ("us", {
                    let took = profile.seconds
                        / std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
                    1e6 / (value * took / rounds).max(1.0)
                }),
                _ => ("ms", 1e3),
            };
            let time = |who| profile.share(|w, _| w == who) * profile.seconds / rounds * scale;
            let idle = profile.share(|who, _| who == Who::Nobody);
            let others = profile.share(|who, _| who == Who::Others);
            let _ = write!(
                text,
                "| {} | {} | {unit} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} % | {:.0} % |",
                row.title(),
                target.title(),
                time(Who::Caller),
                time(Who::Client),
                time(Who::Server),
                time(Who::Kernel),
                others * 100.0,
                idle * 100.0
            );
            for (what, _) in What::ALL {
                let share =
                    profile.share(|who, w| who < Who::Others && w == what) / (1.0 - idle - others).max(0.001);
                let _ = write!(text, " {:.0} % |", share * 100.0);
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn lines_of_perf_are_read() {
        let line = "        reader-1  2721.653069:  ffffffff8123 tcp_ack+0x12 ([kernel.kallsyms])";
        let sample = Sample::read(line).unwrap();
        assert_eq!((sample.comm, sample.at, sample.kernel), ("reader-1", 2_721.653_069, true));
        assert_eq!(What::of(sample.symbol, true), What::Network);
        let line = " my prog 1.5:   7f00 __memmove_evex_unaligned_erms (/usr/lib/libc.so.6)";
        let sample = Sample::read(line).unwrap();
        assert_eq!((sample.comm, sample.kernel), ("my prog", false));
        assert_eq!(What::of(sample.symbol, false), What::CopyInProgram);
        assert!(Sample::read("nonsense").is_none());
    }

    #[test]
    fn threads_are_told_apart() {
        assert_eq!(Who::of("fuser-1", Target::Strongroom), Who::Client);
        assert_eq!(Who::of("worker", Target::Strongroom), Who::Server);
        assert_eq!(Who::of("git", Target::Strongroom), Who::Caller);
        assert_eq!(Who::of("bindfs", Target::Passthrough), Who::Client);
        assert_eq!(Who::of("rustc", Target::Strongroom), Who::Others);
        assert_eq!(Who::of("swapper", Target::Local), Who::Nobody);
        assert_eq!(Who::of("kworker/0:1", Target::Local), Who::Kernel);
    }
}
