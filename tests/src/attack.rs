//! Ransomware of several styles, let loose in an app guest of a lab.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::lab::Lab;

/// The attacker. With a style, a pace and names it attacks; without, it tells its styles.
const PROGRAM: &str = include_str!("attack.py");

/// The names of its styles, as the program tells them.
///
/// # Errors
/// There is no Python.
pub fn styles() -> Result<Vec<String>> {
    let output = Command::new("python3").args(["-c", PROGRAM]).output().context("cannot start python3")?;
    ensure!(output.status.success(), "attack.py: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// One that is under way.
#[derive(Debug)]
pub struct Attack {
    child: Child,
}

impl Attack {
    /// Begins one on the files `names`, in that order, below the directory `place` of the guest; `pace` in files a second, 0: as
    /// fast as it can.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin<'a>(
        lab: &Lab,
        app: &str,
        place: &str,
        style: &str,
        pace: f64,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Attack> {
        let mut child = lab
            .app(app, ["/usr/bin/python3", "-c", PROGRAM, style, &pace.to_string()])
            .cwd(place)
            .into_command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot begin an attack")?;
        let names: String = names.into_iter().flat_map(|name| [name, "\n"]).collect();
        child.stdin.take().context("no input")?.write_all(names.as_bytes())?;
        Ok(Attack { child })
    }

    /// Waits for its end, and returns what it says: how many files it got through, and what stopped it.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn said(self) -> Result<String> {
        let output = self.child.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
