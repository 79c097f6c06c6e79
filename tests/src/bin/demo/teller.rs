//! How the demo speaks: headings, prose, and commands with their output as it comes.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use strongroom_tests::lab::{GuestCommand, Lab};

/// Where a command runs.
#[derive(Clone, Copy)]
pub enum Guest {
    Base,
    Storage,
    App(&'static str),
}

impl Guest {
    fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Storage => "storage",
            Self::App(app) => app,
        }
    }

    fn command(self, lab: &Lab, dir: &str, script: &str) -> GuestCommand {
        // One stream, so that complaints stand where they happened.
        let script = format!("exec 2>&1; {script}");
        let words = ["sh", "-c", script.as_str()];
        match self {
            Self::Base => lab.base(words),
            Self::Storage => lab.storage(words),
            Self::App(app) => lab.app(app, words),
        }
        .cwd(dir)
    }
}

/// What a command did.
pub struct Outcome {
    shown: String,
    code: i32,
    /// Everything it printed.
    pub text: String,
}

impl Outcome {
    /// It must have succeeded.
    pub fn good(self) -> Result<Self> {
        ensure!(self.code == 0, "`{}` failed with {}", self.shown, self.code);
        Ok(self)
    }

    /// It must have failed, saying `word`.
    pub fn refused(self, word: &str) -> Result<Self> {
        ensure!(self.code != 0, "`{}` succeeded", self.shown);
        self.says(word)
    }

    /// It must have printed `word`.
    pub fn says(self, word: &str) -> Result<Self> {
        ensure!(self.text.contains(word), "`{}` did not say `{word}`", self.shown);
        Ok(self)
    }

    /// It must not have printed `word`.
    pub fn hides(self, word: &str) -> Result<Self> {
        ensure!(!self.text.contains(word), "`{}` shows `{word}`", self.shown);
        Ok(self)
    }
}

/// The narrator.
pub struct Teller {
    colour: bool,
}

impl Teller {
    pub fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: !plain && std::io::stdout().is_terminal() }
    }

    pub fn title(&self, text: &str) {
        println!("\n{}", self.styled("1", &format!("== {text}")));
    }

    pub fn say(&self, text: &str) {
        println!("{}", self.styled("2", &format!("   {text}")));
    }

    fn styled(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn prompt(&self, guest: Guest, dir: &str, script: &str) -> String {
        let shown = script.replace('\n', "\n> ");
        println!("{} {shown}", self.styled("32", &format!("{}:{dir}#", guest.name())));
        shown
    }

    /// Show a command, run it, show what it prints as it prints it.
    pub fn run(&self, lab: &Lab, guest: Guest, dir: &str, script: &str) -> Result<Outcome> {
        let shown = self.prompt(guest, dir, script);
        let mut child = start(guest.command(lab, dir, script), &shown)?;
        let mut text = String::new();
        let stdout = child.stdout.take().context("no output to read")?;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            text.push_str(&line);
            text.push('\n');
        }
        let _ = std::io::stdout().flush();
        let code = child.wait()?.code().unwrap_or(-1);
        Ok(Outcome { shown, code, text })
    }

    /// Show a command and let it run while the story goes on.
    pub fn begin(&self, lab: &Lab, guest: Guest, dir: &str, script: &str) -> Result<Running> {
        let shown = self.prompt(guest, dir, &format!("{script} &"));
        let child = start(guest.command(lab, dir, script), &shown)?;
        Ok(Running { child, shown })
    }

    /// Show what a command that was begun has printed by its end.
    pub fn finish(&self, running: Running) -> Result<Outcome> {
        let output = running.child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{text}");
        Ok(Outcome { shown: running.shown, code: output.status.code().unwrap_or(-1), text })
    }
}

/// A command that runs beside the story.
pub struct Running {
    child: Child,
    shown: String,
}

fn start(command: GuestCommand, shown: &str) -> Result<Child> {
    command
        .into_command()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))
}
