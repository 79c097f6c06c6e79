//! The intake: whose alert is it, does the policy want an incident for it, and is it news.
//!
//! Everything here may have been written by an attacker: an alert that makes no sense is counted, said now and then, and
//! changes nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_base::base::gateway_failure;
use strongroom_base::incident::Cause;
use strongroom_contracts::Application;
use strongroom_policy::{Policy, Trigger};
use strongroom_protocol::admin::AlertKind;

use crate::daemon::{Daemon, Recent, Taken, guest_of};
use crate::journal::now_us;
use crate::policies::InForce;

/// Alerts older than this are no news to anybody: a day.
const OLDEST_US: u64 = 86_400_000_000;
/// How far ahead of ours another clock may be without being remarked upon.
const AHEAD_US: u64 = 2_000_000;
/// How long addresses of live sessions count without asking again.
const FRESH: Duration = Duration::from_secs(2);
/// The longest text that is kept of an alert, in bytes.
const MAX_TEXT: usize = 1024;

/// What kind of alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the gateway.
    Gateway(AlertKind),
    /// Of intrusion detection, with its severity; 1 is the gravest.
    Ids(u8),
}

/// Whom an alert is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// An application.
    Application(Application),
    /// A guest, by its name.
    Guest(String),
    /// Addresses of a connection's ends.
    Addresses(Vec<IpAddr>),
}

/// An alert.
#[derive(Clone, Debug)]
pub struct Heard {
    /// `gateway`, `suricata`, `snort`.
    pub source: &'static str,
    /// What kind.
    pub kind: Kind,
    /// When, by the clock of the source, microseconds since the Unix epoch; `None`: it does not say.
    pub at_us: Option<u64>,
    /// About whom.
    pub about: About,
    /// The session and the contract, if the source knows them.
    pub whose: Option<(String, String)>,
    /// What was seen.
    pub text: String,
    /// How many it stands for.
    pub count: u64,
}

/// Addresses of live sessions, and when they were asked for.
type Live = Option<(Instant, Arc<Vec<(Application, IpAddr)>>)>;

/// The intake.
#[derive(Default)]
pub struct Intake {
    live: Mutex<Live>,
}

impl Intake {
    /// Takes an alert in.
    pub fn hear(&self, daemon: &Arc<Daemon>, heard: Heard) {
        let now = now_us();
        let at_us = heard.at_us.unwrap_or(now);
        if at_us > now.saturating_add(AHEAD_US) {
            daemon.noise.say("alerts from the future", || format!("{}: taken as of now", heard.source));
        }
        let at_us = at_us.min(now);
        if at_us < now.saturating_sub(OLDEST_US) {
            daemon.noise.say("alerts older than a day", || format!("{}: {}", heard.source, heard.text));
            return;
        }
        let policies = daemon.policies.now();
        let whose = self.whose(daemon, &policies, &heard.about);
        if whose.is_empty() {
            let about = match &heard.about {
                About::Application(application) => application.to_string(),
                About::Guest(guest) => guest.clone(),
                About::Addresses(list) => list.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
            };
            daemon
                .noise
                .say("alerts about unknown guests", || format!("{}: {about}: {}", heard.source, heard.text));
            return;
        }
        for application in whose {
            let Some(policy) = policies.get(&application) else { continue };
            self.judge(daemon, policy, &heard, at_us);
        }
    }

    fn judge(&self, daemon: &Arc<Daemon>, policy: &Policy, heard: &Heard, at_us: u64) {
        let wanted = policy.recovery.as_ref().is_some_and(|recovery| match heard.kind {
            Kind::Gateway(AlertKind::Violation) => recovery.on(Trigger::Violation),
            Kind::Gateway(AlertKind::Ransomware) => recovery.on(Trigger::Ransomware),
            Kind::Gateway(AlertKind::UndoSpace) => recovery.on(Trigger::UndoSpace),
            Kind::Ids(severity) => recovery.on_ids(severity),
        });
        let mut text = heard.text.clone();
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        let (kind, severity) = match heard.kind {
            Kind::Gateway(kind) => (kind.word(), None),
            Kind::Ids(severity) => ("ids", Some(severity)),
        };
        let cause = Cause {
            source: heard.source.to_owned(),
            kind: kind.to_owned(),
            at_us,
            severity,
            whose: heard.whose.clone(),
            text,
            count: heard.count.max(1),
        };
        // What happened before the last fence was dealt with by it.
        let dealt_with = |recent: &Recent| match heard.kind {
            Kind::Gateway(_) => heard.at_us.unwrap_or(0) <= recent.fenced_gateway_us,
            Kind::Ids(_) => at_us <= recent.clean_us,
        };
        let about = || format!("{}: {}: {}", policy.application, heard.source, heard.text);
        match daemon.alert(policy, cause, wanted, dealt_with) {
            Ok(Taken::Incident) => {}
            Ok(Taken::Unwanted) => daemon.noise.say("alerts that no policy acts on", about),
            Ok(Taken::Late { incident }) => daemon.noise.say("late alerts", || {
                format!("{}: dealt with by incident {incident}: {}", policy.application, heard.text)
            }),
            Err(failure) => daemon
                .noise
                .say("incidents that could not begin", || format!("{}: {failure}", policy.application)),
        }
    }

    fn whose(&self, daemon: &Daemon, policies: &InForce, about: &About) -> Vec<Application> {
        match about {
            About::Application(application) => vec![application.clone()],
            About::Guest(guest) => policies
                .values()
                .filter(|policy| guest_of(policy) == *guest)
                .map(|policy| policy.application.clone())
                .collect(),
            About::Addresses(list) => {
                let mut found: Vec<Application> =
                    list.iter().flat_map(|address| self.at(daemon, policies, *address)).collect();
                found.sort();
                found.dedup();
                found
            }
        }
    }

    /// The applications at an address: those whose policy says so; else those with a session from it; else the only one
    /// that may have one.
    fn at(&self, daemon: &Daemon, policies: &InForce, address: IpAddr) -> Vec<Application> {
        let named = |policy: &&Policy| {
            let addresses = policy.recovery.iter().flat_map(|recovery| &recovery.addresses);
            addresses.into_iter().any(|one| one.value.contains(address))
        };
        let list: Vec<_> = policies.values().filter(named).map(|one| one.application.clone()).collect();
        if !list.is_empty() {
            return list;
        }
        let live = self.live(daemon);
        let list: Vec<_> =
            live.iter().filter(|(_, from)| *from == address).map(|(whose, _)| whose.clone()).collect();
        if !list.is_empty() {
            return list;
        }
        let bound = |policy: &&Policy| {
            policy
                .networks
                .as_ref()
                .is_some_and(|networks| networks.value.iter().any(|network| network.contains(address)))
        };
        match policies.values().filter(bound).collect::<Vec<_>>().as_slice() {
            [only] => vec![only.application.clone()],
            _ => vec![],
        }
    }

    /// Addresses of live sessions. While the gateway does not answer, the last ones count.
    fn live(&self, daemon: &Daemon) -> Arc<Vec<(Application, IpAddr)>> {
        let mut live = self.live.lock();
        if let Some((asked, list)) = live.as_ref()
            && asked.elapsed() < FRESH
        {
            return list.clone();
        }
        let asked = daemon.connect().and_then(|mut client| client.sessions().map_err(gateway_failure));
        let list = match asked {
            Ok(sessions) => {
                let all = sessions.iter().flat_map(|session| {
                    let addresses = session.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
                    addresses.map(|address| (session.application.clone(), address.to_canonical()))
                });
                Arc::new(all.collect())
            }
            Err(failure) => {
                daemon.noise.say("the gateway does not tell who is there", || failure.to_string());
                live.as_ref().map_or_else(Arc::default, |(_, list)| list.clone())
            }
        };
        *live = Some((Instant::now(), list.clone()));
        list
    }
}
