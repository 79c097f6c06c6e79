//! Orders of people, through the socket in the base directory that only its owner can reach.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use strongroom_base::Failure;
use strongroom_base::control::{Ask, MAX_LINE, Told};
use strongroom_base::incident::{Entry, Phase, Standing};
use strongroom_contracts::Application;
use strongroom_policy::Step;

use crate::daemon::Daemon;
use crate::journal::facts;
use crate::log::say;

const MAX_CONNECTIONS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens.
pub fn start(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let path = daemon.base.control_path();
    let failed =
        |error: std::io::Error| Failure::other(format!("cannot listen on `{}`: {error}", path.display()));
    match std::fs::remove_file(&path) {
        // Left behind by a killed process; this one holds the lock.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let daemon = daemon.clone();
    let run = move || accept(&daemon, &listener);
    std::thread::Builder::new().name("control".into()).spawn(run).map(drop).map_err(failed)
}

fn accept(daemon: &Arc<Daemon>, listener: &UnixListener) {
    let open = Arc::new(AtomicUsize::new(0));
    while !daemon.is_stopping() {
        let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout));
        let Ok((stream, _)) = listener.accept() else { continue };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (daemon, count) = (daemon.clone(), open.clone());
        let run = move || {
            if let Err(error) = serve(&daemon, stream) {
                daemon.noise.say("an order was broken off", || error.to_string());
            }
            count.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("order".into()).spawn(run).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(daemon: &Arc<Daemon>, mut stream: UnixStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE)).read_line(&mut line)?;
    let told = match serde_json::from_str(&line) {
        Ok(ask) => answer(daemon, ask),
        Err(error) => Err(Failure::bad(format!("an order that is not understood: {error}"))
            .hint("`contract` and `strongroom-recovery` must be of the same version")),
    };
    let told = told.unwrap_or_else(|failure| {
        say(&format!("an order is refused: {failure}"));
        Told::Refused {
            kind: failure.exit().word().to_owned(),
            message: failure.message().to_owned(),
            hints: failure.hints().to_vec(),
        }
    });
    let mut text = serde_json::to_vec(&told)?;
    text.push(b'\n');
    stream.write_all(&text)
}

fn answer(daemon: &Arc<Daemon>, ask: Ask) -> Result<Told, Failure> {
    match ask {
        Ask::Recover { application, why, by, steps } => {
            let steps = steps.map(|steps| read_steps(&steps)).transpose()?;
            daemon.order(&application, &why, &by, steps.as_deref())
        }
        Ask::Skip { application, by } => skip(daemon, &application, &by),
        Ask::Confirm { application, by } => confirm(daemon, &application, by),
        Ask::Status => Ok(Told::Status(Box::new(daemon.status()))),
    }
}

/// Reads steps as policies write them.
///
/// # Errors
/// At the first that is none.
pub fn read_steps(texts: &[String]) -> Result<Vec<Step>, Failure> {
    let read = |text: &String| {
        Step::parse(text)
            .map_err(|error| Failure::bad(format!("--steps: {}", error.message)).hint(error.help))
    };
    texts.iter().map(read).collect()
}

fn none(application: &Application) -> Failure {
    Failure::not_found(format!("no incident of `{application}` is under way")).hint("see: contract incidents")
}

fn skip(daemon: &Arc<Daemon>, application: &Application, by: &str) -> Result<Told, Failure> {
    let open = daemon.open_incident(application).ok_or_else(|| none(application))?;
    let skipped = open.put_if(|now| {
        let phase = now.next();
        match (phase, &now.standing) {
            (Some(Phase::Fence), _) => {
                (None, Err(Failure::bad("an application that is not fenced cannot be recovered")))
            }
            (Some(phase), Standing::Stuck(_)) => {
                (Some(Entry::Done { phase, facts: facts([("skipped_by", by.into())]) }), Ok(()))
            }
            _ => {
                let text = format!("incident {} is not stuck: there is nothing to skip", now.number);
                (None, Err(Failure::bad(text).hint("see: contract incidents")))
            }
        }
    })?;
    skipped?;
    daemon.order(application, "", by, None)
}

fn confirm(daemon: &Arc<Daemon>, application: &Application, by: String) -> Result<Told, Failure> {
    let open = daemon.open_incident(application).ok_or_else(|| none(application))?;
    if !open.incident().ask {
        return Err(Failure::bad(format!("incident {} waits for nobody", open.number))
            .hint("only the step `confirm` of a policy asks for a person"));
    }
    open.put_if(|now| (now.confirmed.is_none().then_some(Entry::Confirmed { by }), ()))?;
    Ok(Told::Confirmed { incident: open.number })
}
