//! `base/recovery.toml`: how recovery hears of attacks, drives guests and tells people. Without the file there is only the
//! gateway to listen to and no guest to drive.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use strongroom_base::files;
use strongroom_base::{Base, Failure};
use strongroom_policy::units::parse_duration;

use crate::guest::GuestConfig;

const MAX_TOML: usize = 1 << 20;

/// The configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Where fresh guests get their contracts; without it, `reissue` serves the former holders.
    pub enrol: Option<Enrol>,
    /// What is told of incidents, and how.
    pub notify: Option<Notify>,
    /// Intrusion detection.
    pub ids: Vec<Ids>,
    /// Bounds.
    pub limits: Limits,
    /// Where secrets are on their way to a guest; a directory in memory.
    pub secrets: Option<PathBuf>,
    /// How guests are driven, by the names that policies give them (`guest`; without one, the application's name).
    pub guest: BTreeMap<String, GuestConfig>,
}

/// The enrolment listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Enrol {
    /// One address of the base domain on a network that it shares with app guests.
    pub address: SocketAddr,
    /// How long a secret is good.
    #[serde(default = "ten_minutes")]
    pub lifetime: Span,
}

/// The notification hook.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Notify {
    /// The program and its arguments; gets the incident as JSON on its standard input.
    pub command: Vec<String>,
    /// How long it may take.
    #[serde(default = "ten_seconds")]
    pub timeout: Span,
}

/// A source of intrusion alerts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ids {
    /// What its lines look like.
    pub format: Format,
    /// A file to follow.
    pub file: Option<PathBuf>,
    /// A Unix socket to listen on.
    pub socket: Option<PathBuf>,
    /// The socket's type, as Suricata's `filetype` names it.
    #[serde(default)]
    pub filetype: SocketType,
    /// The guest that all its alerts are about, for a sensor on one guest's wire.
    pub guest: Option<String>,
}

/// Forms of intrusion alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Suricata's EVE JSON.
    Suricata,
    /// Snort 2's `alert_fast`.
    Snort,
}

/// Types of Unix sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SocketType {
    /// A connection of lines.
    #[default]
    #[serde(rename = "unix_stream")]
    Stream,
    /// One alert for each datagram.
    #[serde(rename = "unix_dgram")]
    Datagram,
}

/// Bounds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// How often a step is tried before a person is asked; fencing is tried ten times as often.
    pub attempts: u32,
    /// Incidents of one application that alerts may begin within an hour; one more is fenced and waits for a person.
    pub incidents_per_hour: u32,
    /// How long the application may take to be seen at work again.
    pub confirm_within: Span,
    /// How long to wait for an answer of the gateway.
    pub gateway_timeout: Span,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            attempts: 4,
            incidents_per_hour: 3,
            confirm_within: Span(Duration::from_secs(300)),
            gateway_timeout: ten_seconds(),
        }
    }
}

/// A span of time, written `90s`, `15m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Span, D::Error> {
        let text = String::deserialize(from)?;
        let secs = parse_duration(&text)
            .map_err(|error| serde::de::Error::custom(format!("{}; {}", error.message, error.help)))?;
        Ok(Span(Duration::from_secs(secs.max(1))))
    }
}

fn ten_minutes() -> Span {
    Span(Duration::from_secs(600))
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

impl Config {
    /// Reads and checks the configuration of a base directory.
    ///
    /// # Errors
    /// A [`Failure`] that names the file and what is wrong in it.
    pub fn load(base: &Base) -> Result<Config, Failure> {
        let path = base.recovery_config_path();
        if !path.exists() {
            return Ok(Config::default());
        }
        Config::parse(&path, &files::read(&path, "configuration", MAX_TOML)?)
    }

    /// Reads and checks its text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Config, Failure> {
        let bad = |what: String| {
            Failure::bad(format!("configuration `{}`: {what}", path.display()))
                .hint("docs/recovery.md explains every key")
        };
        let config: Config =
            toml_edit::de::from_str(text).map_err(|error| bad(error.to_string().trim_end().to_owned()))?;
        if let Some(enrol) = &config.enrol {
            let ip = enrol.address.ip().to_canonical();
            if ip.is_unspecified() || ip.is_multicast() {
                return Err(bad(format!(
                    "[enrol] address: {ip} would serve every network this machine is on; write its address on the guests' network"
                )));
            }
        }
        for (n, ids) in config.ids.iter().enumerate() {
            if ids.file.is_some() == ids.socket.is_some() {
                return Err(bad(format!("[[ids]] number {}: write either `file` or `socket`", n + 1)));
            }
        }
        if config.notify.as_ref().is_some_and(|notify| notify.command.is_empty()) {
            return Err(bad("[notify] command: it is empty; write the program and its arguments".to_owned()));
        }
        if config.limits.attempts == 0 {
            return Err(bad("[limits] attempts: 0 would never try; write at least 1".to_owned()));
        }
        for (name, guest) in &config.guest {
            guest.check().map_err(|what| bad(format!("[guest.{name}] {what}")))?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        Config::parse(Path::new("recovery.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn the_sample_is_right_and_every_commented_line_of_it_too() {
        let sample = include_str!("../../cli/src/command/samples/recovery.toml");
        Config::parse(Path::new("recovery.toml"), sample).unwrap();
        let all: String = sample
            .lines()
            .map(|line| line.strip_prefix("#: ").or(line.strip_prefix("#:")).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let config = Config::parse(Path::new("recovery.toml"), &all).unwrap();
        assert!(config.enrol.is_some() && config.notify.is_some());
        assert_eq!((config.ids.len(), config.guest.len()), (3, 5));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(complaint("[enrol]\naddress = \"0.0.0.0:7072\"").contains("every network"));
        assert!(complaint("[enrol]\naddress = \"[::]:7072\"").contains("every network"));
        assert!(complaint("[[ids]]\nformat = \"suricata\"").contains("either `file` or `socket`"));
        assert!(complaint("[enrole]").contains("enrole"));
        assert!(complaint("[notify]\ncommand = []").contains("empty"));
        assert!(complaint("[limits]\nattempts = 0").contains("at least 1"));
        assert!(complaint("[guest.a]\ndriver = \"vmware\"").contains("vmware"));
        assert!(complaint("[guest.a]\ndriver = \"command\"\nstart = []").contains("start"));
        assert!(
            complaint("[guest.a]\ndriver = \"command\"\nstart = [\"x\", \"{sekret}\"]").contains("{sekret}")
        );
        assert!(complaint("[limits]\nconfirm-within = \"soon\"").contains("soon"));
    }
}
