//! Runs the rounds: every group of rows on one target after the other, so that a noisy minute falls on all of them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::house::House;
use crate::options::Sizes;
use crate::profile::{Profiles, Recording};
use crate::results::{Failure, Results};
use crate::rows::{Group, Row};
use crate::target::{Guest, Target, Work};
use crate::usage::{self, Networks};
use crate::wire::{Order, Span, Word};

/// A step that says nothing for so long hangs: the slowest row of a slow peer takes a tenth of it.
const HANG_GUARD: Duration = Duration::from_secs(120);
/// How soon an interruption is noticed.
const ATTENTION: Duration = Duration::from_millis(100);

/// Set by a signal: the run ends and clears up.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Fail once somebody has asked for the end of the run.
pub(crate) fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Measure `rows` on `targets` for `rounds` rounds.
pub(crate) fn run(
    house: &House,
    targets: &[Target],
    rows: &[Row],
    rounds: u32,
    sizes: Sizes,
    results: &mut Results,
    mut profiles: Option<&mut Profiles>,
) -> Result<()> {
    let mut workers = Vec::new();
    for target in targets {
        workers.push(Worker::start(house, *target, sizes)?);
    }
    probe(&mut workers, results)?;
    let groups: Vec<Group> =
        Group::ALL.into_iter().filter(|group| rows.iter().any(|row| row.group() == *group)).collect();
    for round in 1..=rounds {
        for group in &groups {
            let wanted: Vec<Row> = rows.iter().copied().filter(|row| row.group() == *group).collect();
            for worker in &mut workers {
                check_interrupted()?;
                eprintln!("round {round} of {rounds}: {} on {}", name(*group), worker.target.title());
                let recording = profiles.as_ref().map(|_| Recording::begin()).transpose()?;
                let spans = worker.turn(house, round, *group, &wanted, results)?;
                if let (Some(recording), Some(profiles)) = (recording, profiles.as_deref_mut()) {
                    recording.end(worker.target, &spans, profiles)?;
                }
            }
        }
        // Nobody is always the one after the same other.
        workers.rotate_left(1);
    }
    Ok(())
}

const fn name(group: Group) -> &'static str {
    match group {
        Group::File => "one large file",
        Group::Small => "small files",
        Group::Tree => "source tree",
        Group::Sync => "synced changes",
    }
}

fn probe(workers: &mut [Worker], results: &mut Results) -> Result<()> {
    let Some(worker) = workers.iter_mut().find(|worker| worker.target == Target::Passthrough) else {
        return Ok(());
    };
    worker.order(&Order::Probe)?;
    loop {
        match worker.next_word()? {
            Word::Probed { micros } => results.limits.fuse_request_us = Some(micros),
            Word::Failed { step, error } => bail!("{step}: {error}"),
            Word::TurnOver { .. } => return Ok(()),
            _ => {}
        }
    }
}

/// A process in a guest that works on one target.
struct Worker {
    target: Target,
    work: Work,
    sizes: Sizes,
    networks: Networks,
    process: Process,
    /// Groups that hung once: they would again.
    given_up: BTreeSet<&'static str>,
}

/// Killed when dropped; what it started inside the guest goes with it.
struct Process {
    child: Child,
    input: ChildStdin,
    words: Receiver<Result<Word>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    fn start(house: &House, target: Target, sizes: Sizes) -> Result<Self> {
        let work = target.work();
        let (process, client) = Process::start(house, target, &work, sizes)?;
        let networks = Networks { client, server: house.network(Guest::Storage)? };
        Ok(Self { target, work, sizes, networks, process, given_up: BTreeSet::new() })
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        self.process.order(order)
    }

    fn next_word(&mut self) -> Result<Word> {
        self.process.next_word()?.with_context(|| {
            format!(
                "the worker on {} gave no sign of life for {} s",
                self.target.title(),
                HANG_GUARD.as_secs()
            )
        })
    }

    /// When each row was measured.
    fn turn(
        &mut self,
        house: &House,
        round: u32,
        group: Group,
        wanted: &[Row],
        results: &mut Results,
    ) -> Result<Vec<(Row, Span)>> {
        let mut spans = Vec::new();
        if self.given_up.contains(name(group)) {
            return Ok(spans);
        }
        self.order(&Order::Turn { group, wanted: wanted.to_vec() })?;
        let mut step = String::new();
        loop {
            let Some(word) = self.process.next_word()? else {
                let error = format!("hung: nothing happened for {} s", HANG_GUARD.as_secs());
                results.fail(Failure { target: self.target, round, step, error });
                self.given_up.insert(name(group));
                self.replace(house)?;
                return Ok(spans);
            };
            match word {
                Word::Step { name } => step = name,
                Word::AskUsage => {
                    let usage = usage::of(self.target, &self.networks);
                    self.order(&Order::Usage(usage))?;
                }
                Word::Measured { row, value, cost, span } => {
                    results.add(self.target, row, value, cost);
                    spans.push((row, span));
                }
                Word::Failed { step, error } => {
                    results.fail(Failure { target: self.target, round, step, error });
                }
                Word::TurnOver { usage } => {
                    results.add_usage(self.target, usage);
                    return Ok(spans);
                }
                Word::Ready { .. } | Word::Probed { .. } => bail!("a worker spoke out of turn"),
            }
        }
    }

    /// Put a new worker in the place of one that hangs in a mount.
    fn replace(&mut self, house: &House) -> Result<()> {
        if let Some(mount) = &self.work.mount {
            let _ = house.break_mount(self.target.guest(), &mount.point);
        }
        let (process, _) = Process::start(house, self.target, &self.work, self.sizes)?;
        self.process = process;
        Ok(())
    }
}

impl Process {
    /// The process and the network namespace it is in.
    fn start(house: &House, target: Target, work: &Work, sizes: Sizes) -> Result<(Self, String)> {
        let mut child = house
            .role(target.guest(), &["work"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker")?;
        let input = child.stdin.take().context("a worker without an input")?;
        let output = child.stdout.take().context("a worker without an output")?;
        let (sender, words) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let word = line.map_err(anyhow::Error::from).and_then(|line| {
                    serde_json::from_str(&line).with_context(|| format!("a worker said `{line}`"))
                });
                if sender.send(word).is_err() {
                    break;
                }
            }
        });
        let mut process = Self { child, input, words };
        process.order(&Order::Begin { work: work.clone(), sizes })?;
        match process.next_word()? {
            Some(Word::Ready { network }) => Ok((process, network)),
            other => Err(anyhow!("a worker on {} did not start: {other:?}", target.title())),
        }
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input.write_all(&line).and_then(|()| self.input.flush()).context("a worker has ended")
    }

    /// Nothing when the worker hangs.
    fn next_word(&mut self) -> Result<Option<Word>> {
        let begun = Instant::now();
        loop {
            check_interrupted()?;
            match self.words.recv_timeout(ATTENTION) {
                Ok(word) => return word.map(Some),
                Err(RecvTimeoutError::Disconnected) => bail!("a worker has ended"),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() > HANG_GUARD => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
