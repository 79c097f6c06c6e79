//! `scale`: what one operation costs as the world around it grows. Flat lines are the aim.
//!
//! A gateway of its own on the loopback interface, and guests that speak the protocol without a mount, so that nothing
//! but the gateway is measured.

mod guest;
mod house;
mod plot;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use serde::Serialize;
use strongroom_benches::statistics::median;
use strongroom_contracts::{ContractId, SecretKey, Subject, keys};
use strongroom_gateway::ledger::{Change, Ledger};

use guest::Guest;
use house::House;

/// Measure the cost of one operation against files, sessions and revocations.
#[derive(Debug, Parser)]
#[command(name = "scale", version)]
struct Options {
    /// Smaller worlds: to see that everything works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Only these parts; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Against files in the tree and in one directory.
    Files,
    /// Against live sessions.
    Sessions,
    /// Against sessions without a connection.
    Away,
    /// Guests at once.
    Guests,
    /// Against contracts revoked.
    Revocations,
}

/// One line of a plot: what an operation costs at each size.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) plot: &'static str,
    pub(crate) against: &'static str,
    pub(crate) operation: &'static str,
    pub(crate) unit: &'static str,
    /// Size, median cost.
    pub(crate) points: Vec<(u64, f64)>,
}

/// All lines, in the order in which they are shown.
#[derive(Default)]
struct Table(Vec<Series>);

impl Table {
    fn add(
        &mut self,
        (plot, against): (&'static str, &'static str),
        (operation, unit): (&'static str, &'static str),
        point: (u64, f64),
    ) {
        println!("{plot}: {} {against}: {operation} {:.2} {unit}", point.0, point.1);
        let line = self.0.iter_mut().find(|line| line.plot == plot && line.operation == operation);
        match line {
            Some(line) => line.points.push(point),
            None => self.0.push(Series { plot, against, operation, unit, points: vec![point] }),
        }
    }
}

/// Measures a part; briefly, if that is asked for.
type Measure = fn(&mut Table, bool) -> Result<()>;

fn main() -> Result<()> {
    let options = Options::parse();
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark needs root: files of the data root belong to other users");
    }
    let mut table = Table::default();
    let parts: [(Part, Measure); 5] = [
        (Part::Files, files),
        (Part::Sessions, sessions),
        (Part::Away, absent_sessions),
        (Part::Guests, halves),
        (Part::Revocations, revocations),
    ];
    for (part, measure) in parts {
        if options.only.is_empty() || options.only.contains(&part) {
            measure(&mut table, options.quick)?;
        }
    }
    if let Some(path) = &options.json {
        write(path, &serde_json::to_string_pretty(&table.0)?)?;
    }
    if let Some(path) = &options.html {
        write(path, &plot::page(&table.0))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory `{}`", directory.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// How often each operation is measured.
const SAMPLES: usize = 400;

fn sizes(quick: bool, most: u64) -> Vec<u64> {
    let most = if quick { most.min(10_000) } else { most };
    std::iter::successors(Some(100), |size| Some(size * 10)).take_while(|size| *size <= most).collect()
}

/// Against files in the tree, a hundred in each directory, and against files in one directory.
fn files(table: &mut Table, quick: bool) -> Result<()> {
    for (plot, against, per_directory) in [
        ("files in the tree", "files, a hundred in each directory", 100),
        ("files in one directory", "files", u64::MAX),
    ] {
        let house = House::start(100)?;
        let mut made = 0;
        for size in sizes(quick, 1_000_000) {
            house.fill(per_directory, made..size)?;
            made = size;
            // A new session knows nothing yet.
            let mut guest = house.guest()?;
            let mut pick = Pick(size);
            let mut costs = [const { Costs::new() }; 4];
            for sample in 0..SAMPLES {
                let (directory, name) = House::place(per_directory, pick.below(size));
                let parent = guest.directory(&directory)?;
                costs[0].take(&house, || guest.lookup(parent, &name))?;
                let node = guest.lookup(parent, &name)?;
                costs[1].take(&house, || guest.attributes(node))?;
                let new = format!("new-{sample}");
                costs[2].take(&house, || guest.create(parent, &new))?;
                costs[3].take(&house, || guest.remove(parent, &new))?;
            }
            for (name, costs) in OPERATIONS.into_iter().zip(&costs) {
                costs.show(table, (plot, against), name, size);
            }
        }
    }
    Ok(())
}

/// What each operation is called, and what its share of the processor is.
const OPERATIONS: [(&str, &str); 4] = [
    ("lookup", "lookup: processor"),
    ("attributes", "attributes: processor"),
    ("create and close", "create and close: processor"),
    ("remove", "remove: processor"),
];

const ENTERING: (&str, &str) = ("handshake, contract, welcome", "handshake, contract, welcome: processor");

/// How long one operation took, and what the gateway's processor did for it.
struct Costs {
    times: Vec<f64>,
    processor: Vec<f64>,
}

impl Costs {
    const fn new() -> Costs {
        Costs { times: Vec::new(), processor: Vec::new() }
    }

    fn take<T>(&mut self, house: &House, act: impl FnOnce() -> Result<T>) -> Result<()> {
        let before = house.processor_ns()?;
        self.times.push(timed(act)?);
        self.processor.push(house.processor_ns()?.saturating_sub(before) as f64 / 1e3);
        Ok(())
    }

    /// Many of the same in a row. The gateway's threads are looked at before and after only: with a thread for each connection that
    /// takes longer than what is measured, and leaves the processor's caches cold.
    fn take_many(&mut self, house: &House, mut act: impl FnMut() -> Result<()>) -> Result<()> {
        for _ in 0..10 {
            act()?;
        }
        let before = house.processor_ns()?;
        for _ in 0..SAMPLES {
            self.times.push(timed(&mut act)?);
        }
        let used = house.processor_ns()?.saturating_sub(before);
        self.processor.push(used as f64 / 1e3 / SAMPLES as f64);
        Ok(())
    }

    fn show(
        &self,
        table: &mut Table,
        key: (&'static str, &'static str),
        (operation, processor): (&'static str, &'static str),
        size: u64,
    ) {
        table.add(key, (operation, "us"), (size, median(&self.times).unwrap_or_default()));
        table.add(key, (processor, "us"), (size, median(&self.processor).unwrap_or_default()));
    }
}

/// Against live sessions that do nothing.
fn sessions(table: &mut Table, quick: bool) -> Result<()> {
    let key = ("live sessions", "sessions, each with a connection of its own");
    let house = House::start(20_000)?;
    house.fill(100, 0..1000)?;
    let mut guest = house.guest()?;
    let node = {
        let parent = guest.directory("d0")?;
        guest.lookup(parent, "f0")?
    };
    let mut idle: Vec<Guest> = Vec::new();
    let empty = house.memory_kib()?;
    for size in [1, 10, 100, 1000].into_iter().filter(|size| !quick || *size <= 100) {
        let mut opened = Vec::new();
        while (idle.len() as u64) + 1 < size {
            opened.push(timed(|| {
                idle.push(house.guest()?);
                Ok(())
            })?);
        }
        let mut costs = Costs::new();
        for _ in 0..5 {
            costs.take_many(&house, || guest.attributes(node))?;
        }
        costs.show(table, key, OPERATIONS[1], size);
        if let Some(opening) = median(&opened) {
            table.add(key, ("handshake, contract, welcome", "us"), (size, opening));
        }
        let memory = house.memory_kib()?.saturating_sub(empty);
        if size >= 100 {
            table.add(key, ("memory of a session", "KiB"), (size, memory as f64 / (size - 1) as f64));
        }
    }
    Ok(())
}

/// Against sessions whose guests are away for now: the gateway keeps what they know, a few nodes each.
fn absent_sessions(table: &mut Table, quick: bool) -> Result<()> {
    let key = ("sessions without a connection", "sessions, each with the nodes that it knows");
    let house = House::start(20_000)?;
    house.fill(100, 0..1000)?;
    let mut guest = house.guest()?;
    let parent = guest.directory("d0")?;
    let node = guest.lookup(parent, "f0")?;
    let empty = house.memory_kib()?;
    let mut away = 0;
    for size in [1, 100, 1000, 10_000].into_iter().filter(|size| !quick || *size <= 1000) {
        while away + 1 < size {
            let mut other = house.guest()?;
            let parent = other.directory("d0")?;
            let node = other.lookup(parent, "f0")?;
            other.attributes(node)?;
            away += 1;
        }
        let mut costs = [const { Costs::new() }; 4];
        for sample in 0..SAMPLES {
            costs[0].take(&house, || guest.lookup(parent, "f1"))?;
            costs[1].take(&house, || guest.attributes(node))?;
            let new = format!("new-{sample}");
            costs[2].take(&house, || guest.create(parent, &new))?;
            costs[3].take(&house, || guest.remove(parent, &new))?;
        }
        for (name, costs) in OPERATIONS.into_iter().zip(&costs) {
            costs.show(table, key, name, size);
        }
        if size >= 100 {
            let memory = house.memory_kib()?.saturating_sub(empty);
            table.add(key, ("memory of a session", "KiB"), (size, memory as f64 / (size - 1) as f64));
        }
    }
    Ok(())
}

/// Guests that ask for as much as they can get at the same time: what the one gets that gets least.
fn halves(table: &mut Table, quick: bool) -> Result<()> {
    let key = ("guests at once", "guests that ask as fast as they can");
    let time = Duration::from_secs(if quick { 1 } else { 5 });
    let house = House::start(100)?;
    house.fill(100, 0..200)?;
    for (rate, share, makes) in [
        (
            "attributes of the guest with the fewest",
            "attributes: its share of what all got, times the guests",
            false,
        ),
        (
            "create and remove of the guest with the fewest",
            "create and remove: its share of what all got, times the guests",
            true,
        ),
    ] {
        for size in [1, 2, 4] {
            let start = Barrier::new(size);
            let rates = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..size)
                    .map(|which| {
                        let (house, start) = (&house, &start);
                        scope.spawn(move || {
                            let guest = house.guest();
                            start.wait();
                            work(guest?, which, makes, time)
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().map_err(|_| anyhow!("a guest panicked"))?)
                    .collect::<Result<Vec<f64>>>()
            })?;
            let least = rates.iter().copied().fold(f64::MAX, f64::min);
            table.add(key, (rate, "/s"), (size as u64, least));
            let all: f64 = rates.iter().sum();
            table.add(key, (share, "%"), (size as u64, least / all * size as f64 * 100.0));
        }
    }
    Ok(())
}

/// Operations a second of one guest.
fn work(mut guest: Guest, which: usize, makes: bool, time: Duration) -> Result<f64> {
    let parent = guest.directory("d0")?;
    let node = guest.lookup(parent, "f0")?;
    let (began, mut done, name) = (Instant::now(), 0u32, format!("of-{which}"));
    while began.elapsed() < time {
        if makes {
            guest.create(parent, &name)?;
            guest.remove(parent, &name)?;
        } else {
            guest.attributes(node)?;
        }
        done += 1;
    }
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}

/// Against revoked contracts on record.
fn revocations(table: &mut Table, quick: bool) -> Result<()> {
    let key = ("revocations", "contracts revoked in the ledger");
    let sizes = std::iter::once(0).chain(sizes(quick, 1_000_000));
    for size in sizes.filter(|size| *size == 0 || *size >= 1000) {
        let mut house = House::prepare(1000)?;
        revoke(&house, size)?;
        let starting = Instant::now();
        house.launch()?;
        table.add(key, ("start of the gateway", "ms"), (size.max(1), starting.elapsed().as_secs_f64() * 1e3));
        house.fill(100, 0..100)?;
        let mut entering = Costs::new();
        for _ in 0..50 {
            entering.take(&house, || house.guest().map(drop))?;
        }
        entering.show(table, key, ENTERING, size.max(1));
        let mut guest = house.guest()?;
        let parent = guest.directory("d0")?;
        let node = guest.lookup(parent, "f0")?;
        let mut costs = Costs::new();
        for _ in 0..SAMPLES {
            costs.take(&house, || guest.attributes(node))?;
        }
        costs.show(table, key, OPERATIONS[1], size.max(1));
        table.add(key, ("memory of the gateway", "MiB"), (size.max(1), house.memory_kib()? as f64 / 1024.0));
    }
    Ok(())
}

/// Puts revocations into the ledger of a gateway that does not run yet.
fn revoke(house: &House, number: u64) -> Result<()> {
    let now = house::now();
    let ledger = Ledger::open(&house.ledger(), &house.gateway_id(), now).context("cannot open the ledger")?;
    let mut left = number;
    while left > 0 {
        let subjects: Vec<Subject> = (0..left.min(50_000))
            .map(|_| Ok(Subject::Contract(ContractId::from_bytes(keys::random()?))))
            .collect::<Result<_>>()?;
        let changes: Vec<Change<'_>> = subjects
            .iter()
            .map(|subject| Change::Void { subject, at_us: now * 1_000_000, why: "" })
            .collect();
        ledger.commit(&changes).context("cannot write the ledger")?;
        left -= subjects.len() as u64;
    }
    Ok(())
}

/// Microseconds that something took.
fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<f64> {
    let began = Instant::now();
    act()?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// Numbers without an order, the same in every run (Knuth's multiplicative hash).
struct Pick(u64);

impl Pick {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// A key, or why there is none.
fn fresh_key() -> Result<SecretKey> {
    SecretKey::generate().context("cannot make a key")
}
