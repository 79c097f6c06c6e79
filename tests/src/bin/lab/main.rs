//! `lab`: whole Strongroom installations on one machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use strongroom_tests::lab::{self, EnterOptions, Lab, LabName, LabStatus, Options, StopHow};

/// Bring up a base domain, a storage guest and app guests as namespaces on this machine.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the lab is up, but an app guest has no mount. `exec`, `storage` and `base` exit as their command does, with 128 plus the signal's number when a signal ended it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up: keys, gateway, and for each application a guest with its contract mounted on /mnt
    Up(Up),
    /// Run a command in an app guest, starting in /mnt
    Exec {
        #[command(flatten)]
        which: Which,
        /// The application, which names its guest
        app: String,
        #[command(flatten)]
        what: What,
    },
    /// Run a command in the storage guest
    Storage {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        what: What,
    },
    /// Run a command in the base domain, where `contract` finds its keys by itself
    Base {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        what: What,
    },
    /// Show the labs that run, and their guests
    Status {
        /// Only this lab
        #[arg(long)]
        name: Option<LabName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start or end the gateway, as a restart or a crash of the storage guest would
    Gateway {
        /// What to do with it
        action: GatewayAction,
        #[command(flatten)]
        which: Which,
    },
    /// Mount an application's contract again after `umount /mnt`
    Remount {
        #[command(flatten)]
        which: Which,
        /// The application
        app: String,
    },
    /// End a lab and remove everything it made
    Down {
        #[command(flatten)]
        which: Which,
        /// End all labs of this user
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// In the base domain of a lab: ask its hypervisor to restart an app guest
    #[command(hide = true)]
    AskHypervisor { app: String, secret: Option<PathBuf> },
    #[command(hide = true)]
    Keeper { plan: PathBuf },
    #[command(hide = true)]
    GuestInit { plan: PathBuf, index: usize },
    /// Do what standard input says, as the tests want it
    #[command(hide = true)]
    Agent,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    which: Which,
    /// Directory of policy files; one app guest for each [default: the sample policies, `mail` and `editor`]
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Directory with the user data; it stays when the lab ends [default: a small made-up one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Issue no contracts and mount nothing
    #[arg(long)]
    bare: bool,
    /// Only guests and network: run none of Strongroom's programs
    #[arg(long, conflicts_with = "bare")]
    empty: bool,
    /// Give the guests no /dev/cpu_dma_latency: their processors may always halt
    #[arg(long)]
    no_awake: bool,
    /// Let app guests reach this port of the storage guest too (repeatable)
    #[arg(long, value_name = "PORT")]
    open_port: Vec<u16>,
    /// Let app guests reach the base domain's enrolment address, for trying recovery
    #[arg(long)]
    enrolment: bool,
    /// Show this host directory to every guest, read-only (repeatable)
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
}

#[derive(Args)]
struct Which {
    /// The lab's name
    #[arg(long, default_value = "default")]
    name: LabName,
}

#[derive(Args)]
struct What {
    /// Where to start in the guest [default: /mnt in app guests]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    #[arg(long, hide = true)]
    service_log: Option<PathBuf>,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum GatewayAction {
    /// Start it and wait until it serves
    Start,
    /// End it cleanly
    Stop,
    /// End it with SIGKILL
    Kill,
    /// End it cleanly and start it again
    Restart,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Up(arguments) => up(arguments),
        Command::Exec { which, app, what } => enter(which, app, what),
        Command::Storage { which, what } => enter(which, "storage".to_owned(), what),
        Command::Base { which, what } => enter(which, "base".to_owned(), what),
        Command::Status { name, json } => status(name, json),
        Command::Gateway { action, which } => gateway(action, &which.name).map(|()| 0),
        Command::Remount { which, app } => Lab::find(&which.name)?.remount(&app).map(|()| 0),
        Command::Down { which, all } => down(&which.name, all).map(|()| 0),
        Command::AskHypervisor { app, secret } => {
            lab::ask_hypervisor(&app, secret.as_deref())?;
            Ok(0)
        }
        Command::Keeper { plan } => lab::run_keeper(&plan).map(|()| 0),
        Command::GuestInit { plan, index } => lab::run_guest_init(&plan, index).map(|()| 0),
        Command::Agent => strongroom_tests::agent::run().map(|()| 0),
    }
}

fn up(arguments: Up) -> Result<u8> {
    let options = Options {
        policy: arguments.policy,
        data: arguments.data,
        bare: arguments.bare,
        empty: arguments.empty,
        open_ports: arguments.open_port,
        enrolment: arguments.enrolment,
        awake: !arguments.no_awake,
        shares: arguments.share,
        detached: true,
        ..Options::named(arguments.which.name)
    };
    let lab = Lab::up(&options)?;
    let status = lab.status()?;
    print_status(&status);
    Ok(if status.guests.iter().any(|guest| guest.problem.is_some()) { 3 } else { 0 })
}

fn enter(which: Which, guest: String, what: What) -> Result<u8> {
    lab::enter(&EnterOptions {
        lab: which.name,
        guest,
        cwd: what.cwd,
        service_log: what.service_log,
        command: what.command,
    })
}

fn status(name: Option<LabName>, json: bool) -> Result<u8> {
    let found = match &name {
        Some(name) => lab::status_of(name)?.into_iter().collect(),
        None => lab::statuses()?,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else if found.is_empty() {
        println!("no lab is up");
    } else {
        found.iter().for_each(print_status);
    }
    Ok(u8::from(name.is_some() && found.is_empty()))
}

fn print_status(status: &LabStatus) {
    println!("lab {}: {}", status.name, status.state);
    if let (Some(data), "up") = (&status.data, status.state) {
        println!("  data root {}", data.display());
    }
    for guest in &status.guests {
        let state = match (guest.mounted, guest.gateway) {
            (Some(true), _) => "mounted on /mnt",
            (Some(false), _) => "no mount",
            (_, Some(true)) => "gateway runs",
            (_, Some(false)) => "no gateway",
            _ => "",
        };
        println!("  {:<20} {:<8} {:<12} {state}", guest.name, guest.role, guest.address);
        if let Some(problem) = &guest.problem {
            println!("    {problem}");
        }
    }
}

fn gateway(action: GatewayAction, name: &LabName) -> Result<()> {
    let lab = Lab::find(name)?;
    match action {
        GatewayAction::Start => lab.start_gateway(),
        GatewayAction::Stop => lab.stop_gateway(StopHow::Clean),
        GatewayAction::Kill => lab.stop_gateway(StopHow::Kill),
        GatewayAction::Restart => lab.stop_gateway(StopHow::Clean).and_then(|()| lab.start_gateway()),
    }
}

fn down(name: &LabName, all: bool) -> Result<()> {
    if !all {
        return lab::down(name);
    }
    for name in lab::down_all()? {
        println!("lab {name}: ended");
    }
    Ok(())
}
