//! Small changes, each made durable before the next.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::stage::{Stage, program, rate};
use crate::rows::Row;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    if stage.wants(Row::Append) {
        stage.row(Row::Append, append)?;
    }
    if stage.wants(Row::Sqlite) {
        stage.row(Row::Sqlite, |stage| {
            let script = std::env::temp_dir().join(format!("bench-sql-{}", std::process::id()));
            let done = transactions(&stage.path("database"), &script, stage.sizes().transactions);
            let _ = fs::remove_file(&script);
            done
        })?;
    }
    Ok(())
}

fn append(stage: &mut Stage<'_>) -> Result<f64> {
    let mut file = OpenOptions::new().create_new(true).append(true).open(stage.path("log"))?;
    let block = [b'x'; 4096];
    rate(stage.deadline(), stage.sizes().appends, |_| {
        file.write_all(&block).context("cannot append")?;
        file.sync_all().context("cannot sync")
    })
}

/// Transactions per second of the `sqlite3` shell with a rollback journal: each creates the journal, syncs it, writes
/// and syncs the database, deletes the journal.
fn transactions(database: &Path, script: &Path, count: u64) -> Result<f64> {
    let mut insertions = String::from("PRAGMA synchronous=FULL;\n");
    for number in 0..count {
        writeln!(insertions, "INSERT INTO t VALUES({number}, '{}');", "x".repeat(100))?;
    }
    sql(database, script, "PRAGMA journal_mode=DELETE;\nCREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);\n")?;
    let seconds = sql(database, script, &insertions)?;
    let counted = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(database)
        .arg("SELECT count(*) FROM t;")
        .stdin(Stdio::null())
        .output()
        .context("cannot run `sqlite3`")?;
    let counted = String::from_utf8_lossy(&counted.stdout).trim().to_owned();
    if counted != count.to_string() {
        bail!("{count} transactions were made and the database holds `{counted}`");
    }
    Ok(count as f64 / seconds)
}

fn sql(database: &Path, script: &Path, text: &str) -> Result<f64> {
    fs::write(script, text).with_context(|| format!("cannot write `{}`", script.display()))?;
    let input = File::open(script).with_context(|| format!("cannot read `{}`", script.display()))?;
    program(Command::new("sqlite3").args(["-batch", "-bail"]).arg(database).stdin(input), &[0])
}
