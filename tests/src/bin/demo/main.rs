//! `demo`: the main job on real input, step by step, each claim checked as it is shown.
//!
//! Brings up a lab of its own and removes it, whatever happens. Ends with 1 at the first thing that is not as claimed.

mod story;
mod teller;

use std::process::ExitCode;

use anyhow::{Context, Result};
use strongroom_tests::lab::{Lab, LabName, Options, status_of};

use teller::Teller;

fn main() -> ExitCode {
    match tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: not as it should be: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tell() -> Result<()> {
    let name = LabName::unique("demo");
    let teller = Teller::new();
    teller.title("Strongroom: a storage guest, a base domain and two app guests on this machine");
    teller.say("Every prompt below names the guest in which its command runs; `lab up` makes the same guests for you to try.");
    let lab = Lab::up(&Options { bare: true, ..Options::named(name.clone()) })?;
    story::tell(&teller, &lab)?;
    lab.down()?;
    let left = status_of(&name).context("cannot see whether the lab is gone")?;
    anyhow::ensure!(left.is_none(), "the lab left something behind");
    teller.title("Done: everything was as claimed, and the guests are gone");
    Ok(())
}
