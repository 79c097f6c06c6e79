//! A source tree, worked on by the programs people use.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::source_tree::Archive;
use super::stage::{Stage, program};
use crate::rows::Row;

/// Occurs in no file, so that grep reads them all.
const ABSENT: &str = "no-such-word-anywhere";

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    stage.step("source tree")?;
    let archive = Archive::make(stage.sizes().tree_files)?;
    let tree = stage.path("tree");
    let tree = tree.as_path();
    let here = stage.path("");
    stage.row(Row::Untar, |_| {
        program(
            Command::new("tar")
                .arg("xf")
                .arg(archive.path())
                .arg("--no-same-owner")
                .arg("--directory")
                .arg(&here),
            &[0],
        )
    })?;
    if stage.wants(Row::FindCold) || stage.wants(Row::FindWarm) {
        stage.cool()?;
        for row in [Row::FindCold, Row::FindWarm] {
            stage.row(row, |_| program(Command::new("find").arg(tree).arg("-ls"), &[0]))?;
        }
    }
    if stage.wants(Row::GrepCold) || stage.wants(Row::GrepAgain) {
        stage.cool()?;
        for row in [Row::GrepCold, Row::GrepAgain] {
            stage.row(row, |_| program(Command::new("grep").args(["-rF", ABSENT]).arg(tree), &[1]))?;
        }
    }
    if GIT_ROWS.iter().any(|row| stage.wants(*row)) {
        git_rows(stage, tree)?;
    }
    stage.row(Row::RemoveTree, |_| program(Command::new("rm").arg("-rf").arg(tree), &[0]))
}

const GIT_ROWS: [Row; 4] = [Row::GitAdd, Row::GitCommit, Row::GitStatusWarm, Row::GitStatusCold];

fn git_rows(stage: &mut Stage<'_>, tree: &Path) -> Result<()> {
    stage.step("git init")?;
    program(&mut git(tree, ["init", "--quiet"]), &[0])?;
    stage.row(Row::GitAdd, |_| program(&mut git(tree, ["add", "--all"]), &[0]))?;
    stage.row(Row::GitCommit, |_| program(&mut git(tree, ["commit", "--quiet", "--message=all"]), &[0]))?;
    stage.row(Row::GitStatusWarm, |_| program(&mut git(tree, ["status", "--short"]), &[0]))?;
    if stage.wants(Row::GitStatusCold) {
        stage.cool()?;
        stage.row(Row::GitStatusCold, |_| program(&mut git(tree, ["status", "--short"]), &[0]))?;
    }
    Ok(())
}

/// Git without anybody's settings, and without work in the background that would fall into the next row.
fn git<'a>(tree: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("git");
    command.args(["-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "init.defaultBranch=main"]);
    command.args(arguments.into_iter().map(OsStr::new)).current_dir(tree);
    for (key, value) in [
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_AUTHOR_NAME", "bench"),
        ("GIT_AUTHOR_EMAIL", "bench@example.org"),
        ("GIT_COMMITTER_NAME", "bench"),
        ("GIT_COMMITTER_EMAIL", "bench@example.org"),
    ] {
        command.env(key, value);
    }
    command
}
