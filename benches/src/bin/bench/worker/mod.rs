//! The part of the bench that runs inside a guest: mounts its target, runs the workloads, reports each row.
//!
//! It takes orders on standard input and answers on standard output (see [`crate::wire`]), so nothing it starts may
//! write there. It ends with its input.

mod file;
mod random;
mod small;
mod source_tree;
mod stage;
mod sync;
mod tree;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use strongroom_benches::statistics::median;

use crate::options::Sizes;
use crate::rows::{Group, Row};
use crate::target::Work;
use crate::wire::{Order, Word};
use stage::{Link, Mounted, Stage};

/// Requests timed by [`Order::Probe`].
const PROBES: usize = 5000;

/// Be a worker until the conductor has no more orders.
pub(crate) fn run() -> Result<()> {
    follow(&mut Link::standard())
}

fn follow(link: &mut Link) -> Result<()> {
    let Some(first) = link.next_order()? else { return Ok(()) };
    let Order::Begin { work, sizes } = first else { bail!("a worker must be told its target first") };
    let network = std::fs::read_link("/proc/self/ns/net").context("cannot read `/proc/self/ns/net`")?;
    link.say(&Word::Ready { network: network.to_string_lossy().into_owned() })?;
    while let Some(order) = link.next_order()? {
        match order {
            Order::Turn { group, wanted } => turn(link, &work, sizes, group, &wanted)?,
            Order::Probe => {
                if let Err(error) = probe(link, &work) {
                    link.fail("probe", &error)?;
                }
                link.say(&Word::TurnOver { usage: crate::usage::Usage::default() })?;
            }
            Order::Begin { .. } | Order::Usage(_) => bail!("an order out of turn"),
        }
    }
    Ok(())
}

fn turn(link: &mut Link, work: &Work, sizes: Sizes, group: Group, wanted: &[Row]) -> Result<()> {
    let mut usage = crate::usage::Usage::default();
    link.step("mount")?;
    match Mounted::new(work) {
        Err(error) => link.fail("mount", &error)?,
        Ok(mounted) => {
            let done = workloads(link, mounted, sizes, group, wanted, &mut usage);
            if let Err(error) = done {
                link.fail("between the rows", &error)?;
            }
        }
    }
    link.say(&Word::TurnOver { usage })
}

fn workloads(
    link: &mut Link,
    mounted: Mounted<'_>,
    sizes: Sizes,
    group: Group,
    wanted: &[Row],
    usage: &mut crate::usage::Usage,
) -> Result<()> {
    let mut stage = Stage::new(link, mounted, sizes, wanted)?;
    let done = match group {
        Group::File => file::run(&mut stage),
        Group::Small => small::run(&mut stage),
        Group::Tree => tree::run(&mut stage),
        Group::Sync => sync::run(&mut stage),
    };
    *usage = stage.usage()?;
    let cleared = stage.clear();
    done.and(cleared)
}

/// The time of one request that the mount answers itself: what a FUSE round trip costs on this machine.
fn probe(link: &mut Link, work: &Work) -> Result<()> {
    link.step("probe")?;
    let mounted = Mounted::new(work)?;
    let mut times = Vec::with_capacity(PROBES);
    for _ in 0..PROBES {
        let begun = Instant::now();
        rustix::fs::statvfs(mounted.directory()).context("statfs failed")?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    link.say(&Word::Probed { micros: median(&times).context("no probes")? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use std::io::{Cursor, Seek, Write};

    use super::*;
    use crate::usage::Usage;

    const SIZES: Sizes = Sizes {
        file_mib: 2,
        random_reads: 64,
        random_writes: 8,
        files: 20,
        tree_files: 20,
        appends: 5,
        transactions: 5,
        limit_seconds: 60,
    };

    /// What a worker on a local directory says in a turn, in which it asks so many `questions`.
    fn words(directory: &std::path::Path, group: Group, wanted: &[Row], questions: u32) -> Vec<Word> {
        let work = Work { mount: None, directory: directory.to_str().unwrap().to_owned() };
        let mut orders =
            vec![Order::Begin { work, sizes: SIZES }, Order::Turn { group, wanted: wanted.to_vec() }];
        orders.extend((0..questions).map(|_| Order::Usage(Usage::default())));
        let mut input = Vec::new();
        for order in orders {
            serde_json::to_writer(&mut input, &order).unwrap();
            input.push(b'\n');
        }
        let mut output = tempfile::tempfile().unwrap();
        follow(&mut Link::over(Cursor::new(input), output.try_clone().unwrap())).unwrap();
        output.flush().unwrap();
        output.rewind().unwrap();
        serde_json::Deserializer::from_reader(output).into_iter().map(Result::unwrap).collect()
    }

    fn is_installed(program: &str) -> bool {
        std::process::Command::new(program).arg("--version").output().is_ok()
    }

    #[test]
    fn every_row_of_a_group_is_measured_once_and_nothing_stays() {
        for group in Group::ALL {
            let programs: &[&str] = match group {
                Group::Tree => &["git", "tar", "find", "grep"],
                Group::Sync => &["sqlite3"],
                Group::File | Group::Small => &[],
            };
            if !programs.iter().all(|program| is_installed(program)) {
                eprintln!("not tested here: {group:?} needs {}", programs.join(", "));
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let rows: Vec<Row> = Row::ALL.iter().copied().filter(|row| row.group() == group).collect();
            // Before and after each bulk row, and at the end.
            let questions = if group == Group::File { 7 } else { 1 };
            let mut measured = Vec::new();
            let mut over = false;
            for word in words(directory.path(), group, &rows, questions) {
                match word {
                    Word::Measured { row, value, .. } => {
                        assert!(value > 0.0 && value.is_finite(), "{row:?}: {value}");
                        measured.push(row);
                    }
                    Word::Failed { step, error } => panic!("{step}: {error}"),
                    Word::TurnOver { .. } => over = true,
                    _ => {}
                }
            }
            assert_eq!(measured, rows);
            assert!(over);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn only_what_is_wanted_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let measured: Vec<Row> = words(directory.path(), Group::Small, &[Row::StatWarm], 1)
            .into_iter()
            .filter_map(|word| if let Word::Measured { row, .. } = word { Some(row) } else { None })
            .collect();
        assert_eq!(measured, [Row::StatWarm]);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_a_failure_and_the_worker_lives_on() {
        let words = words(std::path::Path::new("/nowhere/at/all"), Group::Sync, &[Row::Append], 0);
        assert!(words.iter().any(|word| matches!(word, Word::Failed { .. })), "{words:?}");
        assert!(matches!(words.last(), Some(Word::TurnOver { .. })));
    }
}
