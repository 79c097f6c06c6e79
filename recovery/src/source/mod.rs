//! Where alerts come from. Each source has a thread, and none can stop the daemon: a source that fails says so and is
//! tried again.

mod eve;
mod follow;
mod gateway;
mod snort;
mod socket;

use std::net::IpAddr;
use std::sync::Arc;

use strongroom_base::Failure;

use crate::config::{Format, Ids};
use crate::daemon::Daemon;
use crate::intake::{About, Heard, Intake, Kind};
use crate::journal::now_us;

/// The longest line of an alert, in bytes. EVE lines carry payloads.
const MAX_LINE: usize = 1 << 20;

/// An alert of intrusion detection, as its line tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct IdsAlert {
    at_us: Option<u64>,
    severity: u8,
    text: String,
    addresses: Vec<IpAddr>,
}

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LineOf {
    /// An alert.
    Alert(IdsAlert),
    /// Something else that belongs there.
    Other,
    /// Nothing that can be understood, and why.
    Malformed(String),
}

/// A source of lines and what is done with them.
struct Sensor {
    daemon: Arc<Daemon>,
    intake: Arc<Intake>,
    ids: Ids,
}

impl Sensor {
    fn line(&self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let (source, parsed) = match self.ids.format {
            Format::Suricata => ("suricata", eve::parse(line)),
            Format::Snort => ("snort", snort::parse(line, now_us())),
        };
        match parsed {
            LineOf::Other => {}
            LineOf::Malformed(why) => {
                self.daemon.noise.say("lines that are no alerts", || format!("{source}: {why}"))
            }
            LineOf::Alert(alert) => {
                let about = match &self.ids.guest {
                    Some(guest) => About::Guest(guest.clone()),
                    None => About::Addresses(alert.addresses),
                };
                let kind = Kind::Ids(alert.severity);
                let heard = Heard {
                    source,
                    kind,
                    at_us: alert.at_us,
                    about,
                    whose: None,
                    text: alert.text,
                    count: 1,
                };
                self.intake.hear(&self.daemon, heard);
            }
        }
    }

    fn too_long(&self) {
        self.daemon
            .noise
            .say("lines that are too long", || format!("more than {MAX_LINE} bytes: passed over"));
    }
}

/// Listens to all of them.
pub fn start(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let intake = Arc::new(Intake::default());
    let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        spawned.map(drop).map_err(|error| Failure::other(format!("no thread for {name}: {error}")))
    };
    let (own, alerts) = (daemon.clone(), intake.clone());
    thread("gateway", Box::new(move || gateway::listen(&own, &alerts)))?;
    for ids in &daemon.config.ids {
        let sensor = Sensor { daemon: daemon.clone(), intake: intake.clone(), ids: ids.clone() };
        match (&ids.file, &ids.socket) {
            (Some(file), _) => {
                let followed = follow::open(&sensor, file);
                thread("follow", Box::new(move || follow::follow(&sensor, followed)))?;
            }
            (None, Some(path)) => {
                let socket = socket::open(path, ids.filetype)?;
                thread("socket", Box::new(move || socket::listen(Arc::new(sensor), socket)))?;
            }
            (None, None) => {}
        }
    }
    Ok(())
}

/// Cuts a stream of bytes into lines; one that is too long is passed over.
#[derive(Default)]
struct Lines {
    part: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// Takes bytes in; calls back for each whole line, with `None` for one that was too long.
    fn take(&mut self, mut bytes: &[u8], mut line: impl FnMut(Option<&[u8]>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.part.len() + head.len() > MAX_LINE {
                line(None);
            } else if self.part.is_empty() {
                line(Some(head));
            } else {
                self.part.extend_from_slice(head);
                line(Some(&self.part));
            }
            self.part.clear();
        }
        if self.skipping {
            return;
        }
        if self.part.len() + bytes.len() > MAX_LINE {
            self.part = vec![];
            self.skipping = true;
            line(None);
        } else {
            self.part.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let text = b"one\n\ntwo\r\nthr\xffee\npart";
        for size in 1..=text.len() {
            let (mut lines, mut found) = (Lines::default(), vec![]);
            for piece in text.chunks(size) {
                lines.take(piece, |line| found.push(line.unwrap().to_vec()));
            }
            let wanted: [&[u8]; 4] = [b"one", b"", b"two\r", b"thr\xffee"];
            assert_eq!(found, wanted);
            assert_eq!(lines.part, b"part");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let (mut lines, mut long, mut whole) = (Lines::default(), 0, 0);
        let mut count = |line: Option<&[u8]>| if line.is_some() { whole += 1 } else { long += 1 };
        for _ in 0..100 {
            lines.take(&[b'x'; 65_536], &mut count);
            assert!(lines.part.capacity() <= 2 * MAX_LINE + 65_536);
        }
        lines.take(b"tail\nnext\n", &mut count);
        assert_eq!((long, whole), (1, 1));
    }
}
