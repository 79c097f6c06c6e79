//! What every workload works on: a mounted target with an empty directory, and a way to report rows.

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::options::Sizes;
use crate::rows::Row;
use crate::target::{Mount, Work};
use crate::usage::{self, Usage};
use crate::wire::{Cost, Order, Span, Word};

/// The conductor's end of the standard streams.
pub(super) struct Link {
    input: Box<dyn BufRead>,
    output: Box<dyn Write>,
}

impl Link {
    pub(super) fn standard() -> Self {
        Self::over(std::io::stdin().lock(), std::io::stdout().lock())
    }

    pub(super) fn over(input: impl BufRead + 'static, output: impl Write + 'static) -> Self {
        Self { input: Box::new(input), output: Box::new(output) }
    }

    /// Nothing when the conductor has no more orders.
    pub(super) fn next_order(&mut self) -> Result<Option<Order>> {
        let mut line = String::new();
        if self.input.read_line(&mut line).context("the conductor is gone")? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).context("an order that is none")
    }

    pub(super) fn say(&mut self, word: &Word) -> Result<()> {
        serde_json::to_writer(&mut self.output, word)?;
        self.output.write_all(b"\n").and_then(|()| self.output.flush()).context("the conductor is gone")
    }

    pub(super) fn step(&mut self, name: &str) -> Result<()> {
        self.say(&Word::Step { name: name.to_owned() })
    }

    pub(super) fn fail(&mut self, step: &str, error: &anyhow::Error) -> Result<()> {
        self.say(&Word::Failed { step: step.to_owned(), error: format!("{error:#}") })
    }
}

/// A mounted target; unmounted when dropped.
pub(super) struct Mounted<'a> {
    work: &'a Work,
}

impl<'a> Mounted<'a> {
    pub(super) fn new(work: &'a Work) -> Result<Self> {
        if let Some(mount) = &work.mount {
            // A mount that was there before, or that an earlier worker lost, is not ours to measure.
            while is_mounted(&mount.point)? {
                unmount(&mount.point)?;
            }
            fs::create_dir_all(&mount.point)
                .with_context(|| format!("cannot make the mount point `{}`", mount.point))?;
            run_mount(mount)?;
        }
        Ok(Self { work })
    }

    /// Where to work.
    pub(super) fn directory(&self) -> &Path {
        Path::new(&self.work.directory)
    }

    /// Forget everything that the client has cached, by unmounting and mounting anew.
    fn again(&mut self) -> Result<()> {
        if let Some(mount) = &self.work.mount {
            unmount(&mount.point)?;
            run_mount(mount)?;
        }
        Ok(())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Some(mount) = &self.work.mount {
            // The next turn says so if it is still there.
            let _ = unmount(&mount.point);
        }
    }
}

fn run_mount(mount: &Mount) -> Result<()> {
    let Some((program, arguments)) = mount.command.split_first() else { bail!("no mount command") };
    // A file, not a pipe: the daemon that stays behind may keep it open for ever.
    let path = std::env::temp_dir().join(format!("bench-mount-{}", std::process::id()));
    let said = fs::File::create(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .status()
        .with_context(|| format!("cannot run `{program}`"));
    let text = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::remove_file(&path);
    let status = status?;
    if !status.success() {
        bail!("`{program}`: {status}: {}", text.trim());
    }
    if !is_mounted(&mount.point)? {
        bail!("`{program}` returned before `{}` was mounted", mount.point);
    }
    Ok(())
}

fn is_mounted(point: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read `/proc/self/mounts`")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(point)))
}

fn unmount(point: &str) -> Result<()> {
    // A file that a program has just closed may keep the mount busy for a moment.
    let patience = Instant::now();
    loop {
        let output =
            Command::new("umount").arg(point).stdin(Stdio::null()).output().context("cannot run `umount`")?;
        if output.status.success() {
            return Ok(());
        }
        if patience.elapsed() > Duration::from_secs(10) {
            bail!("cannot unmount `{point}`: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a workload is run with.
pub(super) struct Stage<'a> {
    link: &'a mut Link,
    mounted: Mounted<'a>,
    sizes: Sizes,
    wanted: &'a [Row],
    directory: PathBuf,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        link: &'a mut Link,
        mounted: Mounted<'a>,
        sizes: Sizes,
        wanted: &'a [Row],
    ) -> Result<Self> {
        let directory = mounted.directory().join("work");
        link.step("prepare")?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot clear `{}`", directory.display()));
            }
            _ => {}
        }
        fs::create_dir(&directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
        Ok(Self { link, mounted, sizes, wanted, directory })
    }

    pub(super) const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// A path in the empty directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn wants(&self, row: Row) -> bool {
        self.wanted.contains(&row)
    }

    /// When an operation that begins now has gone on for long enough.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.sizes.limit_seconds)
    }

    /// Restart the conductor's hang guard for work that is no row.
    pub(super) fn step(&mut self, name: &str) -> Result<()> {
        self.link.step(name)
    }

    /// Make the client cold. The server's page cache stays warm.
    pub(super) fn cool(&mut self) -> Result<()> {
        self.link.step("remount")?;
        self.mounted.again().context("cannot mount anew")
    }

    /// What the target's processes have used.
    pub(super) fn usage(&mut self) -> Result<Usage> {
        self.link.say(&Word::AskUsage)?;
        match self.link.next_order()? {
            Some(Order::Usage(usage)) => Ok(usage),
            _ => bail!("the conductor did not answer"),
        }
    }

    /// Run a row that later rows build on, or that is wanted. `work` returns the row's value.
    ///
    /// A failure is reported and ends this row, not the turn.
    pub(super) fn row(&mut self, row: Row, work: impl FnOnce(&mut Self) -> Result<f64>) -> Result<()> {
        self.link.step(row.key())?;
        let begin = monotonic();
        match work(self) {
            Ok(value) => self.report(row, value, None, begin),
            Err(error) => self.link.fail(row.key(), &error),
        }
    }

    /// A row of bulk data: like [`Stage::row`], with what it cost. `work` returns MiB moved and seconds taken.
    pub(super) fn bulk(
        &mut self,
        row: Row,
        work: impl FnOnce(&mut Self) -> Result<(u64, f64)>,
    ) -> Result<()> {
        self.link.step(row.key())?;
        let (before, own_before) = (self.usage()?, usage::own_cpu_seconds()?);
        let begin = monotonic();
        match work(self) {
            Ok((mib, seconds)) => {
                let (own_after, after) = (usage::own_cpu_seconds()?, self.usage()?);
                let gib = mib as f64 / 1024.0;
                let cost = Cost {
                    caller: (own_after - own_before) / gib,
                    client: (after.client.cpu_seconds - before.client.cpu_seconds) / gib,
                    server: (after.server.cpu_seconds - before.server.cpu_seconds) / gib,
                };
                self.report(row, mib as f64 / seconds, Some(cost), begin)
            }
            Err(error) => self.link.fail(row.key(), &error),
        }
    }

    fn report(&mut self, row: Row, value: f64, cost: Option<Cost>, begin: f64) -> Result<()> {
        if !self.wants(row) {
            return Ok(());
        }
        self.link.say(&Word::Measured { row, value, cost, span: Span { begin, end: monotonic() } })
    }

    /// Leave the target as it was.
    pub(super) fn clear(self) -> Result<()> {
        self.link.step("clear")?;
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot clear `{}`", self.directory.display()))
    }
}

fn monotonic() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Operations per second of up to `count` operations, fewer when the time is over.
pub(super) fn rate(deadline: Instant, count: u64, mut one: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    let mut done = 0;
    while done < count {
        one(done)?;
        done += 1;
        if Instant::now() > deadline {
            break;
        }
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Run a program to its end and return the seconds it took. Exit codes other than `good` are errors.
pub(super) fn program(command: &mut Command, good: &[i32]) -> Result<f64> {
    let name = command.get_program().to_string_lossy().into_owned();
    let begun = Instant::now();
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot run `{name}`"))?;
    let seconds = begun.elapsed().as_secs_f64();
    if !output.status.code().is_some_and(|code| good.contains(&code)) {
        bail!("`{name}`: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(seconds)
}
