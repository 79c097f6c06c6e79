//! Many small files in one directory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::stage::{Stage, rate};
use crate::rows::Row;

const SIZE: usize = 4096;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let directory = stage.path("small");
    fs::create_dir(&directory).context("cannot make the directory of small files")?;
    let count = stage.sizes().files;
    let path = |number: u64| -> PathBuf { directory.join(format!("file{number:05}")) };
    // Fewer than asked for when the time was over: the rows below use those that are there.
    let mut made = 0;
    stage.row(Row::Create, |stage| {
        let content = [b'x'; SIZE];
        rate(stage.deadline(), count, |number| {
            let mut file = File::create_new(path(number)).context("cannot make a small file")?;
            file.write_all(&content).context("cannot write a small file")?;
            made += 1;
            Ok(())
        })
    })?;
    if stage.wants(Row::ReaddirCold) {
        stage.cool()?;
        stage.row(Row::ReaddirCold, |_| {
            let begun = std::time::Instant::now();
            let found = fs::read_dir(&directory)?.try_fold(0, |sum, entry| entry.map(|_| sum + 1))?;
            let seconds = begun.elapsed().as_secs_f64();
            if found != made {
                bail!("{found} names in a directory of {made} files");
            }
            Ok(found as f64 / seconds)
        })?;
    }
    let stat = |number: u64| -> Result<()> {
        let found = fs::symlink_metadata(path(number)).context("cannot look at a small file")?;
        if found.len() != SIZE as u64 {
            bail!("a small file has {} bytes", found.len());
        }
        Ok(())
    };
    if stage.wants(Row::StatCold) || stage.wants(Row::StatWarm) {
        stage.cool()?;
        stage.row(Row::StatCold, |stage| rate(stage.deadline(), made, stat))?;
        stage.row(Row::StatWarm, |stage| rate(stage.deadline(), made, stat))?;
    }
    let read = |number: u64| -> Result<()> {
        let mut content = [0; SIZE];
        let mut file = File::open(path(number)).context("cannot open a small file")?;
        file.read_exact(&mut content).context("cannot read a small file")?;
        if content != [b'x'; SIZE] {
            bail!("a small file came back different");
        }
        Ok(())
    };
    if stage.wants(Row::ReadSmallCold) || stage.wants(Row::ReadSmallAgain) {
        stage.cool()?;
        stage.row(Row::ReadSmallCold, |stage| rate(stage.deadline(), made, read))?;
        stage.row(Row::ReadSmallAgain, |stage| rate(stage.deadline(), made, read))?;
    }
    if stage.wants(Row::Delete) {
        stage.row(Row::Delete, |stage| {
            rate(stage.deadline(), made, |number| {
                fs::remove_file(path(number)).context("cannot delete a small file")
            })
        })?;
    }
    Ok(())
}
