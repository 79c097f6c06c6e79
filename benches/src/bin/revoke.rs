//! How long a revocation takes, from the command to the fence, while the contract is used as hard as it can be.
//!
//! Each round: a session on two connections with eight writers, each with an open file and a pipeline of 64 KiB writes and
//! fsyncs that waits for no reply; then the revocation; then the receipt is verified. Two ways to revoke, in turn: a request
//! at the admin door, up to its receipt; and the command `contract revoke`, from its start until the fence (by the time
//! that the receipt tells) and until its end, when all is on record.

#[path = "../../../tests/tests/support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use strongroom_benches::statistics::percentile;
use strongroom_contracts::{Chain, Rights, SecretKey, Subject};
use strongroom_protocol::admin::{AdminAnswer, AdminRequest};
use strongroom_protocol::attr::Handle;
use strongroom_protocol::codec::encode_header;
use strongroom_protocol::op::{Op, Request, Slot};

use support::attacker::{Attacker, BOTH};
use support::gateway::{Gateway, grant, program};
use support::wait_for;

const APPLICATION: &str = "load";
const CHUNK: usize = 64 * 1024;
/// Writes that are sent before the revocation: by then every writer waits for the gateway, and the disk has work.
const WARM_UP: u64 = 1000;
/// Set by a signal.
static STOP: AtomicBool = AtomicBool::new(false);

/// Measure revocation under load.
#[derive(Parser)]
struct Options {
    /// Revocations for each measure
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Threads that write meanwhile
    #[arg(long, default_value_t = 8)]
    writers: u16,
    /// Print the samples as JSON, in milliseconds
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rounds > 0 && options.writers > 0, "--rounds and --writers are at least 1");
    let gateway = Gateway::start();
    let base = Base::make(&gateway)?;
    let mut inside = vec![];
    let mut at_door = vec![];
    let mut fenced = vec![];
    let mut command = vec![];
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("signals cannot be handled")?;
    // Interleaved, so that what else the machine does concerns both measures alike.
    for _ in 0..options.rounds {
        // Ended in between, so that nothing is left behind.
        ensure!(!STOP.load(Ordering::Relaxed), "interrupted");
        let mut admin = gateway.admin();
        let below_generation = generation(&gateway)? + 1;
        under_load(&gateway, options.writers, || {
            let subject = Subject::Application { application: APPLICATION.parse()?, below_generation };
            let start = Instant::now();
            let receipt = admin.revoke(&gateway, subject);
            at_door.push(milliseconds(start));
            inside.push(receipt.took_us as f64 / 1000.0);
            ensure!(receipt.sessions == 1, "{} sessions were cut instead of 1", receipt.sessions);
            Ok(())
        })?;
        under_load(&gateway, options.writers, || {
            let (to_fence, to_end) = base.revoke()?;
            fenced.push(to_fence);
            command.push(to_end);
            Ok(())
        })?;
    }
    let rows = [
        ("in the gateway, by its receipt", inside),
        ("admin request to receipt", at_door),
        ("`contract revoke`, start to fence", fenced),
        ("`contract revoke`, start to end", command),
    ];
    if options.json {
        let all: serde_json::Map<_, _> =
            rows.into_iter().map(|(name, samples)| (name.to_owned(), samples.into())).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{} revocations each, {} writers on 2 connections; milliseconds",
        options.rounds, options.writers
    );
    println!("{:<34} {:>8} {:>8} {:>8}", "", "p50", "p99", "max");
    for (name, samples) in rows {
        let at = |share| percentile(&samples, share).unwrap_or(f64::NAN);
        println!("{name:<34} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.99), at(1.0));
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// The lowest generation that is valid now.
fn generation(gateway: &Gateway) -> Result<u64> {
    let request = AdminRequest::Generation { application: APPLICATION.parse()? };
    match gateway.admin().ask(&request, &[]) {
        Some((AdminAnswer::Generation { lowest, .. }, _)) => Ok(lowest.max(1)),
        other => bail!("no generation but {other:?}"),
    }
}

/// Runs `revoke` while writers are at work; returns when they have all been cut off.
fn under_load(gateway: &Gateway, writers: u16, revoke: impl FnOnce() -> Result<()>) -> Result<()> {
    let holder = SecretKey::generate()?;
    let mut terms = gateway.terms(
        APPLICATION,
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    );
    terms.generation = generation(gateway)?;
    let chain = Chain::issue(&terms, &gateway.issuer)?;
    let mut first = gateway.enter(&holder, &chain);
    let second = gateway.join(&holder, first.welcome.session, 0);
    ensure!(writers < first.welcome.slots, "at most {} writers", first.welcome.slots - 1);
    first.slot = writers;
    let root = first.root(0);
    let handles: Vec<_> =
        (0..writers).map(|n| first.create(root, &format!("load{n}"), BOTH).handle()).collect();
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (slot, handle) in (0..writers).zip(handles) {
            let sender = if slot % 2 == 0 { &first } else { &second }.channel.sender.clone();
            let written = &written;
            scope.spawn(move || write_without_end(&sender, handle, slot, written));
        }
        let closers = [first.channel.closer.clone(), second.channel.closer.clone()];
        for mut connection in [first, second] {
            scope.spawn(move || while Attacker::receive(&mut connection).is_some() {});
        }
        wait_for("the writers to be busy", || (written.load(Ordering::Relaxed) > WARM_UP).then_some(()));
        let revoked = revoke();
        // What is measured is over: the gateway would close the connections too, but seconds later.
        closers.iter().for_each(strongroom_channel::Closer::close);
        revoked
    })
}

fn write_without_end(sender: &strongroom_channel::Sender, handle: Handle, slot: u16, written: &AtomicU64) {
    let data = vec![0x5a; CHUNK];
    for n in 1.. {
        let write = Op::Write { handle, offset: (n % 64) * CHUNK as u64 };
        let fsync = Op::Fsync { handle, data_only: false };
        for (op, data) in [(write, &data[..]), (fsync, &[])] {
            if n % 16 != 0 && matches!(op, Op::Fsync { .. }) {
                continue;
            }
            let slot = if op.needs_slot() { Slot { index: slot, sequence: n } } else { Slot::default() };
            let mut header = vec![];
            let sent = encode_header(&Request { id: n, slot, op }, &mut header)
                .is_ok_and(|()| sender.send(&header, data).is_ok());
            if !sent {
                return;
            }
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// A base directory for `contract`, with the keys of the gateway under test.
struct Base {
    directory: PathBuf,
    contract: PathBuf,
}

impl Base {
    fn make(gateway: &Gateway) -> Result<Base> {
        let directory = gateway.dir().join("home");
        for part in ["base", "policy.d", "issued"] {
            fs::create_dir_all(directory.join(part))?;
        }
        for (name, key) in [("issuer", &gateway.issuer), ("admin", &gateway.admin)] {
            secret(&directory.join(format!("base/{name}.key")), key)?;
            fs::write(directory.join(format!("base/{name}.pub")), format!("{}\n", key.public()))?;
        }
        let config =
            format!("gateway = \"{}\"\nadmin = \"{}\"\n", gateway.key.public(), gateway.admin_address);
        fs::write(directory.join("base/base.toml"), config)?;
        Ok(Base { directory, contract: program("contract") })
    }

    /// Runs the command; returns the time from its start to the fence and to its end, in milliseconds.
    fn revoke(&self) -> Result<(f64, f64)> {
        let mut command = Command::new(&self.contract);
        command.arg("--dir").arg(&self.directory).args([
            "--json",
            "revoke",
            APPLICATION,
            "--why",
            "benchmark",
        ]);
        let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as f64;
        let start = Instant::now();
        let output = command.output().context("`contract` cannot be run")?;
        let to_end = milliseconds(start);
        ensure!(
            output.status.success(),
            "`contract revoke` failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let fenced_at = told["fenced_at_us"].as_f64().with_context(|| format!("no time in {told}"))?;
        Ok(((fenced_at - started) / 1000.0, to_end))
    }
}

fn secret(path: &Path, key: &SecretKey) -> Result<()> {
    let mut options = fs::File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, key.to_file_text().as_bytes())?;
    Ok(())
}
