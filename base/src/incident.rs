//! Incidents on disk: what recovery does to one application, from the alert to its end.
//!
//! ```text
//! recovery/incidents/000007/journal.jsonl   one line for each thing that happened, synced before it is acted upon
//! recovery/incidents/000007/alerts.jsonl    the alerts that began it and those folded into it; bounded
//! recovery/incidents/000007/evidence/       audit.jsonl, sessions.json, the guest's overlay
//! recovery/incidents/000007/commands/       what each external command said
//! ```
//!
//! The journal is the truth: [`Incident`] is what its lines add up to. One process writes (`strongroom-recovery`), any
//! number read. A last line that a crash cut off did not happen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use strongroom_contracts::{Application, ContractId, PublicKey};

use crate::failure::Failure;
use crate::files;
use crate::text::as_text;

/// The longest journal that is read, in bytes; its writer stays far below.
const MAX_JOURNAL: usize = 16 << 20;

/// Where an incident is. Phases come in this order; those that the policy does not ask for are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It was noticed.
    Alert,
    /// The contract becomes void.
    Fence,
    /// Evidence is put aside.
    Preserve,
    /// What the contract changed is taken back.
    Undo,
    /// The guest starts from its clean image.
    Restart,
    /// The application gets a contract of the next generation.
    Reissue,
    /// The application is seen at work again, and a person confirms if the policy asks for it.
    Confirm,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 7] = [
        Phase::Alert,
        Phase::Fence,
        Phase::Preserve,
        Phase::Undo,
        Phase::Restart,
        Phase::Reissue,
        Phase::Confirm,
    ];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Phase::Alert => "alert",
            Phase::Fence => "fence",
            Phase::Preserve => "preserve",
            Phase::Undo => "undo",
            Phase::Restart => "restart",
            Phase::Reissue => "reissue",
            Phase::Confirm => "confirm",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Phase, String> {
        let found = Phase::ALL.into_iter().find(|phase| phase.word() == text);
        found.ok_or_else(|| format!("`{text}` is not a phase of an incident"))
    }
}

/// Why an incident began, or one more reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `gateway`, `suricata`, `snort` or `person`.
    pub source: String,
    /// `violation`, `ransomware`, `undo-space`, `ids` or `asked`.
    pub kind: String,
    /// When, microseconds since the Unix epoch, by the clock of the source; never later than it was heard.
    pub at_us: u64,
    /// The severity that intrusion detection gave; 1 is the gravest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    /// The session and the contract that an alert of the gateway was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whose: Option<(String, String)>,
    /// What was seen. Comes from elsewhere: to be tamed before it is shown.
    pub text: String,
    /// How many equal ones it stands for.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
}

fn one() -> u64 {
    1
}

fn is_one(count: &u64) -> bool {
    *count == 1
}

/// One line of a journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// When, microseconds since the Unix epoch.
    pub at_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What can happen in an incident.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum Entry {
    /// It begins; the first line.
    Opened {
        /// Its number.
        number: u64,
        /// Whose.
        #[serde(with = "as_text")]
        application: Application,
        /// In which guest, by the policy.
        guest: Option<String>,
        /// What it will do.
        phases: Vec<Phase>,
        /// How far back `undo` goes, in seconds, if it is among the phases.
        undo_secs: Option<u64>,
        /// Whether a person is to confirm.
        ask: bool,
        /// Why.
        cause: Cause,
        /// Why it will stop after the evidence, if it will: the application was recovered too often.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<String>,
    },
    /// A phase begins, or is tried again.
    Entered {
        /// Which.
        phase: Phase,
        /// From 1.
        attempt: u32,
    },
    /// What a phase is about to do, fixed before it is done, so that a repetition does the same.
    Decided {
        /// Which.
        phase: Phase,
        /// What.
        facts: Map<String, Value>,
    },
    /// Something worth telling happened within a phase.
    Note {
        /// Which.
        phase: Phase,
        /// What.
        text: String,
    },
    /// A phase has done its work.
    Done {
        /// Which.
        phase: Phase,
        /// What came of it.
        facts: Map<String, Value>,
    },
    /// An attempt failed.
    Failed {
        /// In which phase.
        phase: Phase,
        /// Which attempt.
        attempt: u32,
        /// Why.
        error: String,
        /// What to do about it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        hints: Vec<String>,
        /// When the next begins, in milliseconds; `None`: there is none.
        retry_in_ms: Option<u64>,
    },
    /// It stays where it is until a person goes on with it.
    Stuck {
        /// In which phase.
        phase: Phase,
        /// Why.
        error: String,
    },
    /// A person goes on with it.
    Resumed {
        /// Who.
        by: String,
    },
    /// Alerts were folded into it; their number so far.
    Alerts {
        /// How many.
        count: u64,
    },
    /// An alert about what came after the fence, which this incident does not deal with: the next one does, and begins when this one ends.
    Again {
        /// The first such alert.
        cause: Cause,
    },
    /// A one-time secret for the fresh guest; an earlier one is void.
    Secret {
        /// What is derived from it, in hexadecimal digits; the secret itself is nowhere on this side.
        proof_key: String,
        /// Until when it is good, microseconds since the Unix epoch.
        until_us: u64,
    },
    /// The fresh guest has proven the secret for this key: it is used up.
    Enrolled {
        /// The key.
        holder: String,
        /// From which address.
        from: String,
    },
    /// A contract was issued.
    Issued {
        /// Its number.
        contract: String,
        /// Its generation.
        generation: u64,
        /// For which key.
        holder: String,
    },
    /// A person confirmed.
    Confirmed {
        /// Who.
        by: String,
    },
    /// It is over.
    Closed {
        /// In words.
        outcome: String,
    },
}

/// How an incident stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is under way.
    Running,
    /// It waits for a person, and why. The application is fenced if the phase is after [`Phase::Fence`].
    Stuck(String),
    /// It is over, and how it ended.
    Closed(String),
}

/// What became of one phase.
#[derive(Clone, Debug)]
pub struct Span {
    /// Which.
    pub phase: Phase,
    /// When it was first entered, microseconds since the Unix epoch.
    pub began_us: u64,
    /// When its work was done.
    pub ended_us: Option<u64>,
    /// How often it was tried.
    pub attempts: u32,
    /// What came of it.
    pub facts: Map<String, Value>,
    /// The last failure.
    pub error: Option<String>,
    /// What was worth telling.
    pub notes: Vec<String>,
}

/// An incident, as its journal tells it.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Its number.
    pub number: u64,
    /// Its directory.
    pub dir: PathBuf,
    /// Whose.
    pub application: Application,
    /// In which guest.
    pub guest: Option<String>,
    /// What it does.
    pub phases: Vec<Phase>,
    /// How far back `undo` goes, in seconds.
    pub undo_secs: Option<u64>,
    /// Whether a person is to confirm.
    pub ask: bool,
    /// Why it began.
    pub cause: Cause,
    /// Why it stops after the evidence, if it does.
    pub held: Option<String>,
    /// When it began, microseconds since the Unix epoch.
    pub opened_us: u64,
    /// The time of the last line.
    pub last_us: u64,
    /// How it stands.
    pub standing: Standing,
    /// The phases entered so far, in order.
    pub spans: Vec<Span>,
    /// What was decided, by phase.
    pub decided: Vec<(Phase, Map<String, Value>)>,
    /// Alerts folded into it, the first included.
    pub alerts: u64,
    /// Why the next one begins when this one ends, if it does.
    pub again: Option<Cause>,
    /// What is derived from the enrolment secret, and until when it is good, microseconds since the Unix epoch.
    pub secret: Option<(String, u64)>,
    /// The key for which the fresh guest has proven the secret.
    pub enrolled: Option<PublicKey>,
    /// Contracts issued: number, generation, key.
    pub issued: Vec<(ContractId, u64, PublicKey)>,
    /// Who confirmed.
    pub confirmed: Option<String>,
    /// What to do about the last failure.
    pub hints: Vec<String>,
    /// When it was closed.
    pub closed_us: Option<u64>,
}

impl Incident {
    /// Reads an incident.
    ///
    /// # Errors
    /// If its journal is not there or its first line is damaged.
    pub fn read(dir: &Path) -> Result<Incident, Failure> {
        let path = dir.join("journal.jsonl");
        let text = files::read(&path, "journal of an incident", MAX_JOURNAL)?;
        Incident::parse(dir, &text).ok_or_else(|| {
            Failure::bad(format!(
                "the journal `{}` is damaged: its first line cannot be read",
                path.display()
            ))
            .hint("restore it from a backup, or move the incident's directory away")
        })
    }

    /// What the lines of a journal add up to; `None` if the first does not open an incident. A line that is not whole or
    /// that this version does not know is passed over.
    pub fn parse(dir: &Path, text: &str) -> Option<Incident> {
        let mut incident: Option<Incident> = None;
        for line in whole_lines(text) {
            let Ok(line) = serde_json::from_str::<Line>(line) else { continue };
            match &mut incident {
                None => incident = Some(Incident::opened(dir, line)?),
                Some(incident) => incident.add(&line),
            }
        }
        incident
    }

    fn opened(dir: &Path, line: Line) -> Option<Incident> {
        let Entry::Opened { number, application, guest, phases, undo_secs, ask, cause, held } = line.entry
        else {
            return None;
        };
        let alerts = cause.count;
        Some(Incident {
            number,
            dir: dir.to_owned(),
            application,
            guest,
            phases,
            undo_secs,
            ask,
            cause,
            held,
            opened_us: line.at_us,
            last_us: line.at_us,
            standing: Standing::Running,
            spans: vec![],
            decided: vec![],
            alerts,
            again: None,
            secret: None,
            enrolled: None,
            issued: vec![],
            confirmed: None,
            hints: vec![],
            closed_us: None,
        })
    }

    /// Takes one more line in.
    pub fn add(&mut self, line: &Line) {
        self.last_us = line.at_us;
        match &line.entry {
            Entry::Opened { .. } => {}
            Entry::Entered { phase, attempt } => {
                let at_us = line.at_us;
                let span = self.span(*phase, at_us);
                span.attempts = span.attempts.max(*attempt);
                span.ended_us = None;
            }
            Entry::Decided { phase, facts } => self.decided.push((*phase, facts.clone())),
            Entry::Note { phase, text } => self.span(*phase, line.at_us).notes.push(text.clone()),
            Entry::Done { phase, facts } => {
                let span = self.span(*phase, line.at_us);
                span.ended_us = Some(line.at_us);
                span.facts = facts.clone();
                span.error = None;
                self.hints.clear();
            }
            Entry::Failed { phase, error, hints, .. } => {
                self.span(*phase, line.at_us).error = Some(error.clone());
                self.hints = hints.clone();
            }
            Entry::Stuck { error, .. } => self.standing = Standing::Stuck(error.clone()),
            Entry::Resumed { .. } => {
                self.standing = Standing::Running;
                self.held = None;
            }
            Entry::Alerts { count } => self.alerts = *count,
            Entry::Again { cause } => self.again = Some(cause.clone()),
            Entry::Secret { proof_key, until_us } => {
                self.secret = Some((proof_key.clone(), *until_us));
                self.enrolled = None;
            }
            Entry::Enrolled { holder, .. } => self.enrolled = holder.parse().ok(),
            Entry::Issued { contract, generation, holder } => {
                if let (Ok(contract), Ok(holder)) = (contract.parse(), holder.parse()) {
                    self.issued.push((contract, *generation, holder));
                }
            }
            Entry::Confirmed { by } => self.confirmed = Some(by.clone()),
            Entry::Closed { outcome } => {
                self.standing = Standing::Closed(outcome.clone());
                self.closed_us = Some(line.at_us);
            }
        }
    }

    fn span(&mut self, phase: Phase, at_us: u64) -> &mut Span {
        let place = match self.spans.iter().position(|span| span.phase == phase) {
            Some(place) => place,
            None => {
                self.spans.push(Span {
                    phase,
                    began_us: at_us,
                    ended_us: None,
                    attempts: 0,
                    facts: Map::new(),
                    error: None,
                    notes: vec![],
                });
                self.spans.len() - 1
            }
        };
        &mut self.spans[place]
    }

    /// Whether it is not over.
    pub fn is_open(&self) -> bool {
        !matches!(self.standing, Standing::Closed(_))
    }

    /// Whether the work of a phase is done.
    pub fn is_done(&self, phase: Phase) -> bool {
        self.spans.iter().any(|span| span.phase == phase && span.ended_us.is_some())
    }

    /// The first phase whose work is not done; `None`: all are.
    pub fn next(&self) -> Option<Phase> {
        self.phases.iter().copied().find(|phase| !self.is_done(*phase))
    }

    /// What a phase came to, or decided, by name.
    pub fn fact(&self, phase: Phase, name: &str) -> Option<&Value> {
        let done = self.spans.iter().find(|span| span.phase == phase).and_then(|span| span.facts.get(name));
        let decided = || {
            self.decided.iter().rev().filter(|(of, _)| *of == phase).find_map(|(_, facts)| facts.get(name))
        };
        done.or_else(decided)
    }

    /// When the fence held, microseconds since the Unix epoch, by this side's clock.
    pub fn fenced_us(&self) -> Option<u64> {
        self.spans.iter().find(|span| span.phase == Phase::Fence).and_then(|span| span.ended_us)
    }

    /// The generation below which the fence made contracts void; `None`: nothing is fenced yet.
    pub fn fenced_below(&self) -> Option<u64> {
        self.is_done(Phase::Fence).then(|| self.fact(Phase::Fence, "below").and_then(Value::as_u64)).flatten()
    }

    /// The time so many seconds before the alert, by the gateway's clock: Unix seconds.
    pub fn reach(&self, secs: u64) -> u64 {
        let alert_us = self.cause.at_us.min(self.opened_us);
        let fenced_us = self.fenced_us().unwrap_or(self.opened_us);
        let gateway_us = self.fact(Phase::Fence, "fenced_at_us").and_then(Value::as_u64).unwrap_or(fenced_us);
        let at_alert = gateway_us.saturating_sub(fenced_us.saturating_sub(alert_us));
        (at_alert / 1_000_000).saturating_sub(secs)
    }

    /// The `--json` form.
    pub fn to_json(&self) -> Value {
        let (standing, reason) = match &self.standing {
            Standing::Running => ("running", None),
            Standing::Stuck(why) => ("stuck", Some(why)),
            Standing::Closed(how) => ("closed", Some(how)),
        };
        let spans: Vec<Value> = self
            .spans
            .iter()
            .map(|span| {
                serde_json::json!({
                    "phase": span.phase,
                    "began_us": span.began_us,
                    "ended_us": span.ended_us,
                    "took_ms": span.ended_us.map(|end| end.saturating_sub(span.began_us) as f64 / 1e3),
                    "attempts": span.attempts,
                    "facts": span.facts,
                    "error": span.error,
                    "notes": span.notes,
                })
            })
            .collect();
        serde_json::json!({
            "incident": self.number,
            "application": self.application.as_str(),
            "guest": self.guest,
            "standing": standing,
            "reason": reason,
            "phase": self.next().filter(|_| self.is_open()),
            "phases": self.phases,
            "fenced": self.is_done(Phase::Fence),
            "cause": self.cause,
            "alerts": self.alerts,
            "again": self.again,
            "opened_us": self.opened_us,
            "closed_us": self.closed_us,
            "took_ms": self.closed_us.map(|end| end.saturating_sub(self.opened_us) as f64 / 1e3),
            "to_fence_ms": self.fenced_us().map(|end| end.saturating_sub(self.opened_us) as f64 / 1e3),
            "steps": spans,
            "contracts": self.issued.iter().map(|(id, ..)| id.to_string()).collect::<Vec<_>>(),
            "hints": self.hints,
            "directory": self.dir.display().to_string(),
        })
    }
}

/// The lines that end in a line feed.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

/// The directory of an incident by its number.
pub fn dir_of(incidents: &Path, number: u64) -> PathBuf {
    incidents.join(format!("{number:06}"))
}

/// All incidents of a directory, oldest first, and what is wrong with those that cannot be read.
///
/// # Errors
/// If the directory cannot be read; that it does not exist is no error.
pub fn all(incidents: &Path) -> Result<(Vec<Incident>, Vec<String>), Failure> {
    let failed = |error| Failure::other(format!("cannot read `{}`: {error}", incidents.display()));
    let entries = match std::fs::read_dir(incidents) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((vec![], vec![])),
        entries => entries.map_err(failed)?,
    };
    let (mut list, mut warnings) = (vec![], vec![]);
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        if number.is_none() {
            continue;
        }
        match Incident::read(&path) {
            Ok(incident) => list.push(incident),
            Err(failure) => warnings.push(failure.to_string()),
        }
    }
    list.sort_by_key(|incident| incident.number);
    Ok((list, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENED: &str = r#"{"at_us":1000,"entry":"opened","number":7,"application":"mail","guest":null,"phases":["fence","preserve","reissue"],"undo_secs":null,"ask":false,"cause":{"source":"person","kind":"asked","at_us":1000,"text":"x"}}"#;

    fn parse(lines: &[&str]) -> Incident {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Incident::parse(Path::new("x"), &text).unwrap()
    }

    #[test]
    fn a_journal_adds_up() {
        let incident = parse(&[
            OPENED,
            r#"{"at_us":2000,"entry":"entered","phase":"fence","attempt":1}"#,
            r#"{"at_us":2500,"entry":"decided","phase":"fence","facts":{"below":4}}"#,
            r#"{"at_us":3000,"entry":"failed","phase":"fence","attempt":1,"error":"no","retry_in_ms":5}"#,
            r#"{"at_us":4000,"entry":"entered","phase":"fence","attempt":2}"#,
            r#"{"at_us":6000,"entry":"done","phase":"fence","facts":{"sessions":1}}"#,
            r#"{"at_us":7000,"entry":"of a later version"}"#,
            r#"{"at_us":8000,"entry":"stuck","phase":"preserve","error":"full"}"#,
        ]);
        assert_eq!((incident.number, incident.next()), (7, Some(Phase::Preserve)));
        assert_eq!((incident.fenced_us(), incident.spans[0].attempts), (Some(6000), 2));
        assert_eq!(incident.fact(Phase::Fence, "below"), Some(&4.into()));
        assert_eq!(incident.standing, Standing::Stuck("full".into()));
        assert!(incident.is_open() && incident.is_done(Phase::Fence) && !incident.is_done(Phase::Preserve));
    }

    #[test]
    fn a_line_that_a_crash_cut_off_did_not_happen() {
        let text = format!("{OPENED}\n{{\"at_us\":2000,\"entry\":\"closed\",\"outcome\":\"x\"}}");
        let incident = Incident::parse(Path::new("x"), &text).unwrap();
        assert_eq!(incident.standing, Standing::Running);
        assert!(Incident::parse(Path::new("x"), OPENED).is_none(), "not even opened");
        assert!(Incident::parse(Path::new("x"), "junk\n").is_none());
    }

    #[test]
    fn a_new_secret_voids_what_was_proven_with_the_old_one() {
        let key = strongroom_contracts::SecretKey::generate().unwrap().public();
        let enrolled = format!(r#"{{"at_us":3,"entry":"enrolled","holder":"{key}","from":"a"}}"#);
        let secret = r#"{"at_us":2,"entry":"secret","proof_key":"aa","until_us":9}"#;
        assert_eq!(parse(&[OPENED, secret, &enrolled]).enrolled, Some(key));
        assert_eq!(parse(&[OPENED, secret, &enrolled, secret]).enrolled, None);
    }
}
