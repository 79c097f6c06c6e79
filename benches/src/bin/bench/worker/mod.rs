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
    let mut link = Link::standard();
    let Some(first) = link.next_order()? else { return Ok(()) };
    let Order::Begin { work, sizes } = first else { bail!("a worker must be told its target first") };
    let network = std::fs::read_link("/proc/self/ns/net").context("cannot read `/proc/self/ns/net`")?;
    link.say(&Word::Ready { network: network.to_string_lossy().into_owned() })?;
    while let Some(order) = link.next_order()? {
        match order {
            Order::Turn { group, wanted } => turn(&mut link, &work, sizes, group, &wanted)?,
            Order::Probe => {
                if let Err(error) = probe(&mut link, &work) {
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
            let mut stage = Stage::new(link, mounted, sizes, wanted)?;
            let done = match group {
                Group::File => file::run(&mut stage),
                Group::Small => small::run(&mut stage),
                Group::Tree => tree::run(&mut stage),
                Group::Sync => sync::run(&mut stage),
            };
            usage = stage.usage()?;
            if let Err(error) = done.and_then(|()| stage.clear()) {
                link.fail("between the rows", &error)?;
            }
        }
    }
    link.say(&Word::TurnOver { usage })
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
