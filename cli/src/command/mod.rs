//! The subcommands, one file each, and what they share: where the base directory is, what time it is, how to speak.

mod attenuate;
mod blast;
mod cat;
mod enroll;
mod grant;
mod history;
mod incidents;
mod init;
mod keygen;
mod list;
mod policy;
mod recover;
mod reissue;
mod renew;
mod revoke;
mod sessions;
mod show;
mod undo;

use std::io::{stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::admin::AdminClient;
use crate::base::Base;
use crate::failure::{Exit, Failure};
use crate::output::{Clock, Report, Style, print_failure};
use crate::sys::{Pace, set_pace};

const DEFAULT_DIR: &str = "/etc/strongroom";

const COMMON: &str = "Common options";

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 failed for another reason; 2 bad input; 3 denied by the policy or the contract; 4 not found; \
5 gateway unreachable (after `revoke`: NOT fenced); 6 gateway refused.";

/// Issue, renew, revoke and inspect contracts.
///
/// A contract grants an application the use of some paths of the storage guest for some time. Contracts are issued in the
/// base domain, within the ceiling of the policy files; the gateway in the storage guest enforces them.
#[derive(Debug, Parser)]
#[command(name = "contract", version, after_help = AFTER_HELP, propagate_version = true)]
struct Cli {
    /// Use this base directory [default: $STRONGROOM_DIR, or /etc/strongroom]
    #[arg(long, global = true, value_name = "DIR", help_heading = COMMON)]
    dir: Option<PathBuf>,
    /// Write the result as JSON
    #[arg(long, global = true, help_heading = COMMON)]
    json: bool,
    /// Wait at most this long for the gateway, for each answer [default: 10s]
    #[arg(long, global = true, value_name = "DURATION", help_heading = COMMON,
        value_parser = crate::narrowing::duration)]
    timeout: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Keygen(keygen::Keygen),
    Grant(grant::Grant),
    Revoke(revoke::Revoke),
    Reissue(reissue::Reissue),
    Renew(renew::Renew),
    Attenuate(attenuate::Attenuate),
    Show(show::Show),
    List(list::List),
    Sessions(sessions::Sessions),
    Undo(undo::Undo),
    Blast(blast::Blast),
    History(history::History),
    Cat(cat::Cat),
    Policy(policy::Policy),
    Recover(recover::Recover),
    Incidents(incidents::Incidents),
    Enroll(enroll::Enroll),
}

/// What every command may need.
#[derive(Debug)]
pub(crate) struct Context {
    dir: PathBuf,
    /// The time and the zone.
    pub clock: Clock,
    /// How to paint the result.
    pub style: Style,
    /// When the command began.
    pub started: Instant,
    timeout: Duration,
    /// The result is wanted as JSON.
    pub json: bool,
}

impl Context {
    /// The base directory, which must exist.
    pub fn base(&self) -> Result<Base, Failure> {
        Base::open(&self.dir)
    }

    /// Where the base directory is, or would be.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How long to wait for an answer of another program.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Tells a person what goes on, before there is a result.
    pub fn progress(&self, line: &str) {
        if !self.json {
            use std::io::Write;
            // Nobody is left to be told if the standard error is gone.
            let _ = writeln!(stderr(), "{line}");
        }
    }

    /// Connects to the gateway.
    pub fn connect(&self, base: &Base) -> Result<AdminClient, Failure> {
        base.connect(self.timeout)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let started = Instant::now();
    if std::env::args_os().any(|arg| arg == "revoke") {
        // Before anything else.
        set_pace(Pace::Urgent);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return ExitCode::from(not_run(&error) as u8);
        }
    };
    if !matches!(cli.command, Command::Revoke(_)) {
        set_pace(Pace::Usual);
    }
    let json = cli.json;
    let errors = Style::of(&stderr());
    let from_environment =
        || std::env::var_os("STRONGROOM_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let context = Context {
        dir: cli.dir.or_else(from_environment).unwrap_or_else(|| DEFAULT_DIR.into()),
        clock: Clock::system(),
        style: if json { Style::PLAIN } else { Style::of(&stdout()) },
        started,
        timeout: Duration::from_secs(cli.timeout.unwrap_or(10).max(1)),
        json,
    };
    let exit = match run(cli.command, &context) {
        Ok(report) => report.print(json, errors),
        Err(failure) => print_failure(&failure, json, errors),
    };
    ExitCode::from(exit as u8)
}

/// Help and version are results, everything else is bad input.
fn not_run(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Done;
    }
    if !std::env::args_os().any(|arg| arg == "--json") {
        let _ = error.print();
        return Exit::BadInput;
    }
    let text = error.to_string();
    let first = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
    let message = first.strip_prefix("error: ").unwrap_or(&first);
    print_failure(&Failure::bad(message).hint("see how it is used: --help"), true, Style::PLAIN)
}

fn run(command: Command, context: &Context) -> Result<Report, Failure> {
    match command {
        Command::Init(args) => args.run(context),
        Command::Keygen(args) => args.run(context),
        Command::Grant(args) => args.run(context),
        Command::Revoke(args) => args.run(context),
        Command::Reissue(args) => args.run(context),
        Command::Renew(args) => args.run(context),
        Command::Attenuate(args) => args.run(context),
        Command::Show(args) => args.run(context),
        Command::List(args) => args.run(context),
        Command::Sessions(args) => args.run(context),
        Command::Undo(args) => args.run(context),
        Command::Blast(args) => args.run(context),
        Command::History(args) => args.run(context),
        Command::Cat(args) => args.run(context),
        Command::Policy(args) => args.run(context),
        Command::Recover(args) => args.run(context),
        Command::Incidents(args) => args.run(context),
        Command::Enroll(args) => args.run(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_is_explained() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {} has no help", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn the_reference_names_every_command_option_and_exit_code() {
        let reference = include_str!("../../../docs/contract-command.md");
        fn check(command: &clap::Command, reference: &str) {
            for arg in command.get_arguments().filter_map(|arg| arg.get_long()) {
                let known = ["help", "version"].contains(&arg) || reference.contains(&format!("--{arg}"));
                assert!(known, "{}: --{arg} is not in the reference", command.get_name());
            }
            for sub in command.get_subcommands() {
                let (name, parent) = (sub.get_name(), command.get_name());
                let heading = format!("\n## {name}\n");
                let usage = format!("contract {parent} {name}");
                assert!(
                    reference.contains(&heading) || reference.contains(&usage),
                    "{name} is not in the reference"
                );
                check(sub, reference);
            }
        }
        check(&Cli::command(), reference);
        for exit in
            [Exit::Other, Exit::BadInput, Exit::Denied, Exit::NotFound, Exit::Unreachable, Exit::Refused]
        {
            let row = format!("| {} | `{}` |", exit as u8, exit.word());
            assert!(reference.contains(&row), "{row}");
        }
    }
}
