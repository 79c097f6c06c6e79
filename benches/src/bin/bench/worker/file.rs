//! One large file: sequential and random reads and writes.
//!
//! Every 4 KiB block begins with its own number, so that a read of the wrong place, or of nothing, is noticed.
//! Random reads visit each block at most once, on a fresh mount, after `POSIX_FADV_RANDOM` as databases give it: no
//! cache in the client can answer, and read-ahead does not help or hurt.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::Advice;

use super::random::Random;
use super::stage::{Stage, rate};
use crate::rows::Row;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const BLOCKS_PER_MIB: u64 = (MIB / BLOCK) as u64;
const DEPTH: u64 = 16;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let path = stage.path("large");
    stage.bulk(Row::SequentialWrite, |stage| write(&path, stage.sizes().file_mib, stage.deadline()))?;
    if stage.wants(Row::SequentialReadCold) || stage.wants(Row::SequentialReadAgain) {
        stage.cool()?;
        stage.bulk(Row::SequentialReadCold, |stage| read(&path, stage.deadline()))?;
        stage.bulk(Row::SequentialReadAgain, |stage| read(&path, stage.deadline()))?;
    }
    if stage.wants(Row::RandomRead1) {
        stage.cool()?;
        stage.row(Row::RandomRead1, |stage| random_reads(stage, &path))?;
    }
    if stage.wants(Row::RandomRead16) {
        stage.cool()?;
        stage.row(Row::RandomRead16, |stage| random_reads_in_parallel(stage, &path))?;
    }
    if stage.wants(Row::RandomWrite) {
        stage.row(Row::RandomWrite, |stage| random_writes(stage, &path))?;
    }
    Ok(())
}

/// MiB written and seconds taken, with the fsync.
fn write(path: &Path, mib: u64, deadline: Instant) -> Result<(u64, f64)> {
    let mut buffer = vec![0; MIB];
    Random::new(1).fill(&mut buffer);
    let begun = Instant::now();
    let mut file = File::create(path).context("cannot make the large file")?;
    let mut done = 0;
    while done < mib {
        for (block, number) in buffer.chunks_exact_mut(BLOCK).zip(done * BLOCKS_PER_MIB..) {
            stamp(block, number);
        }
        file.write_all(&buffer).context("cannot write the large file")?;
        done += 1;
        if Instant::now() > deadline {
            break;
        }
    }
    file.sync_all().context("cannot sync the large file")?;
    drop(file);
    Ok((done, begun.elapsed().as_secs_f64()))
}

/// MiB read and seconds taken.
fn read(path: &Path, deadline: Instant) -> Result<(u64, f64)> {
    let mut buffer = vec![0; MIB];
    let begun = Instant::now();
    let mut file = File::open(path).context("cannot open the large file")?;
    let mib = file.metadata()?.len() / MIB as u64;
    let mut done = 0;
    while done < mib {
        file.read_exact(&mut buffer).context("cannot read the large file")?;
        check(&buffer, done * BLOCKS_PER_MIB)?;
        done += 1;
        if Instant::now() > deadline {
            break;
        }
    }
    drop(file);
    Ok((done, begun.elapsed().as_secs_f64()))
}

fn stamp(block: &mut [u8], number: u64) {
    if let Some(head) = block.first_chunk_mut() {
        *head = number.to_le_bytes();
    }
}

fn check(block: &[u8], number: u64) -> Result<()> {
    let found = block.first_chunk().copied().map(u64::from_le_bytes);
    if found != Some(number) {
        bail!("block {number} of the large file came back as {found:?}");
    }
    Ok(())
}

fn open_for_random(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).context("cannot open the large file")?;
    rustix::fs::fadvise(&file, 0, None, Advice::Random).context("cannot give advice on the large file")?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    Ok((file, blocks))
}

fn random_reads(stage: &Stage<'_>, path: &Path) -> Result<f64> {
    let (file, blocks) = open_for_random(path)?;
    let order = Random::new(2).distinct(blocks, stage.sizes().random_reads);
    let mut next = order.iter();
    let mut block = [0; BLOCK];
    rate(stage.deadline(), order.len() as u64, |_| match next.next() {
        Some(number) => read_block(&file, *number, &mut block),
        None => Ok(()),
    })
}

fn read_block(file: &File, number: u64, block: &mut [u8; BLOCK]) -> Result<()> {
    file.read_exact_at(block, number * BLOCK as u64).context("cannot read the large file")?;
    check(block, number)
}

fn random_reads_in_parallel(stage: &Stage<'_>, path: &Path) -> Result<f64> {
    let (file, blocks) = open_for_random(path)?;
    let order = Random::new(3).distinct(blocks, stage.sizes().random_reads * 4);
    let deadline = stage.deadline();
    let share = order.len().div_ceil(usize::try_from(DEPTH)?);
    let begun = Instant::now();
    let counts: Vec<Result<u64>> = std::thread::scope(|scope| {
        let file = &file;
        let readers: Vec<_> =
            order.chunks(share).map(|part| scope.spawn(move || read_part(file, part, deadline))).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or_else(|_| bail!("a reading thread panicked")))
            .collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let done = counts.into_iter().sum::<Result<u64>>()?;
    Ok(done as f64 / seconds)
}

fn read_part(file: &File, part: &[u64], deadline: Instant) -> Result<u64> {
    let mut block = [0; BLOCK];
    let mut done = 0;
    for number in part {
        read_block(file, *number, &mut block)?;
        done += 1;
        if Instant::now() > deadline {
            break;
        }
    }
    Ok(done)
}

fn random_writes(stage: &Stage<'_>, path: &Path) -> Result<f64> {
    let file = OpenOptions::new().write(true).open(path).context("cannot open the large file")?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let order = Random::new(4).distinct(blocks, stage.sizes().random_writes);
    let mut next = order.iter();
    let mut block = [0; BLOCK];
    rate(stage.deadline(), order.len() as u64, |_| {
        let Some(number) = next.next() else { return Ok(()) };
        stamp(&mut block, *number);
        file.write_all_at(&block, number * BLOCK as u64).context("cannot write the large file")?;
        file.sync_all().context("cannot sync the large file")
    })
}
