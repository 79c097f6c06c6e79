//! `bench`: the Strongroom mount beside what a user would take instead, measured in one run.
//!
//! The *conductor* (this process) brings up a lab and starts one *worker* per target inside the guest where that
//! target's user would sit. Workers mount, run workloads and unmount as they are told; the conductor keeps the order,
//! reads the processor time of clients and servers from outside, and makes the table.

mod conductor;
mod house;
mod limits;
mod machine;
mod options;
mod page;
mod peer;
mod profile;
mod report;
mod results;
mod rows;
mod target;
mod usage;
mod wire;
mod worker;

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use clap::Parser;

use house::House;
use options::{Options, Role};
use profile::Profiles;
use results::Results;

/// A row could not be measured: the rest of the table is good.
const INCOMPLETE: u8 = 3;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.role {
        Some(Role::Work) => worker::run().map(|()| true),
        Some(Role::Echo) => limits::echo().map(|()| true),
        Some(Role::Call { seconds }) => limits::call(*seconds).map(|()| true),
        None => bench(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INCOMPLETE),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row could be measured.
fn bench(options: &Options) -> Result<bool> {
    let (targets, rows) = (options.targets(), options.rows());
    if targets.is_empty() || rows.is_empty() {
        bail!("nothing to measure");
    }
    ctrlc::set_handler(|| conductor::INTERRUPTED.store(true, Ordering::Relaxed))
        .context("cannot listen for signals")?;
    let machine = machine::Machine::look();
    let house = House::build(&targets, options)?;
    let limits = limits::measure(&house, if options.quick { 1 } else { 3 })?;
    let mut results = Results::new(machine, options.sizes(), options.rounds(), targets.clone(), limits);
    let mut profiles = options.profile.then(Profiles::default);
    let (rounds, sizes) = (options.rounds(), options.sizes());
    conductor::run(&house, &targets, &rows, rounds, sizes, &mut results, profiles.as_mut())?;
    results.machine.finish();
    print!("{}", report::report(&results, options.markdown));
    if let Some(profiles) = &profiles {
        print!("{}", profiles.markdown(&results));
    }
    if let Some(path) = &options.json {
        results.write_json(path)?;
    }
    if let Some(path) = &options.html {
        page::write(&results, path)?;
    }
    house.clear()?;
    Ok(results.failures.is_empty())
}
