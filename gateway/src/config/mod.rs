//! `gateway.toml`: read, checked, and refused with one clear sentence.
//!
//! Checks that need the system (files, interfaces) are in [`check`]; a [`Config`] has passed only those that its text
//! allows. Unknown keys are refused, because a misspelt limit would otherwise be no limit.

pub mod check;
pub mod netlink;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use strongroom_contracts::{Network, PublicKey};

use crate::engine::SpecialFiles;

/// What is wrong with the configuration, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {text}", .file.display(), .line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct ConfigError {
    /// The configuration file.
    pub file: PathBuf,
    /// The line in it, from 1, where one is to blame.
    pub line: Option<usize>,
    /// One sentence.
    pub text: String,
}

/// Where a door listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The network interface.
    pub interface: String,
    /// The internal network that the address must lie in.
    pub network: Network,
    /// Address and port.
    pub address: SocketAddr,
}

/// Where the admin door listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminListen {
    /// On the management network.
    Tcp(Listen),
    /// Within the storage guest.
    Unix(PathBuf),
}

/// Bounds of the gateway. Contracts can only tighten those that concern one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live sessions.
    pub sessions: usize,
    /// Live sessions of one holder key.
    pub sessions_per_holder: usize,
    /// Open connections at the native door.
    pub connections: usize,
    /// Connections of one session.
    pub connections_per_session: usize,
    /// Connections of one address that have not been welcomed yet.
    pub pending_per_address: usize,
    /// Requests in flight in one session.
    pub in_flight: u32,
    /// Slots of a session's reply cache.
    pub slots: u16,
    /// Threads beside one per connection, for requests that take long.
    pub workers: usize,
    /// Of those, for one session.
    pub workers_per_session: usize,
    /// Open handles of a session.
    pub handles: usize,
    /// Nodes that a session may know.
    pub nodes: usize,
    /// Leases of a session.
    pub leases: usize,
    /// How long a client may take to answer a recall.
    pub recall: Duration,
    /// How long clients keep what they have leases on without asking again; `None`: as long as is sound.
    pub keep: Option<Duration>,
    /// Connections that wait for a contract.
    pub waiting: usize,
    /// How long a session outlives its last connection.
    pub session_grace: Duration,
    /// How long new locks wait for old ones to be reclaimed after a restart.
    pub lock_grace: Duration,
    /// How long a peer may take for the handshake and the hello, and for one frame or reply under way.
    pub stall: Duration,
    /// Size at which the audit file is rotated, in bytes.
    pub audit_bytes: u64,
    /// Rotated audit files kept.
    pub audit_files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sessions: 10_000,
            sessions_per_holder: 16,
            connections: 20_000,
            connections_per_session: 4,
            pending_per_address: 16,
            in_flight: 64,
            slots: 128,
            workers: 256,
            workers_per_session: 16,
            handles: 65_536,
            nodes: 1_000_000,
            leases: 65_536,
            recall: Duration::from_secs(1),
            keep: None,
            waiting: 1024,
            session_grace: Duration::from_secs(120),
            lock_grace: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            audit_bytes: 64 << 20,
            audit_files: 8,
        }
    }
}

/// The configuration of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// The data root.
    pub data: PathBuf,
    /// The directory of ledger, sessions and audit.
    pub state: PathBuf,
    /// The file of the gateway's secret key.
    pub key: PathBuf,
    /// The one issuer that is believed.
    pub issuer: PublicKey,
    /// Keys that the admin door admits.
    pub admin_keys: Vec<PublicKey>,
    /// The native door.
    pub native: Listen,
    /// The admin door, if there is one.
    pub admin: Option<AdminListen>,
    /// Bounds.
    pub limits: Limits,
    /// Special files.
    pub special_files: SpecialFiles,
    /// Whether processors are kept awake during bursts of requests.
    pub awake: bool,
    /// The undo log; `None`: nothing can be taken back.
    pub undo: Option<Undo>,
}

/// The undo log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    /// Its vault, on the file system of the data; `None`: inside the data root, where nobody can name it.
    pub vault: Option<PathBuf>,
    /// The space of an application whose contracts do not say, in bytes.
    pub space: u64,
}

/// 10 GiB.
const UNDO_SPACE: u64 = 10 << 30;

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawSpecialFiles {
    #[default]
    Refuse,
    Store,
}

fn awake() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    data: PathBuf,
    state: PathBuf,
    key: PathBuf,
    issuer: String,
    #[serde(default)]
    admin_keys: Vec<String>,
    #[serde(default = "awake")]
    awake: bool,
    listen: RawListen,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    leases: RawLeases,
    #[serde(default)]
    store: RawStore,
    #[serde(default)]
    undo: RawUndo,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawListen {
    interface: String,
    network: String,
    address: String,
    admin: Option<String>,
    admin_interface: Option<String>,
    admin_network: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawLimits {
    sessions: Option<u64>,
    sessions_per_holder: Option<u64>,
    connections: Option<u64>,
    connections_per_session: Option<u64>,
    pending_per_address: Option<u64>,
    in_flight: Option<u64>,
    slots: Option<u64>,
    workers: Option<u64>,
    workers_per_session: Option<u64>,
    handles: Option<u64>,
    nodes: Option<u64>,
    waiting: Option<u64>,
    session_grace: Option<String>,
    lock_grace: Option<String>,
    stall: Option<String>,
    audit_size: Option<String>,
    audit_files: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawUndo {
    keep: Option<bool>,
    vault: Option<PathBuf>,
    space: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawLeases {
    recall: Option<String>,
    keep: Option<String>,
    most: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawStore {
    special_files: RawSpecialFiles,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read or its text is refused.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            line: None,
            text: format!("cannot read the configuration: {error}; name the right file with --config"),
        })?;
        Config::parse(file, &text)
    }

    /// Reads the text of a configuration file. Relative paths in it count from the directory of `file`.
    ///
    /// # Errors
    /// [`ConfigError`] if the text is refused.
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        let source = Source { file, text };
        let raw: Raw = toml_edit::de::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_at(text, span.start));
            source.error(line, one_line(error.message()))
        })?;
        let base = file.parent().unwrap_or(Path::new("."));
        let issuer = source.key("issuer", &raw.issuer)?;
        let admin_keys = raw
            .admin_keys
            .iter()
            .map(|text| source.key("admin-keys", text))
            .collect::<Result<Vec<_>, _>>()?;
        let native = source.listen(
            ("address", &raw.listen.address),
            ("interface", &raw.listen.interface),
            ("network", &raw.listen.network),
        )?;
        let admin = source.admin(&raw.listen, &admin_keys)?;
        if matches!(&admin, Some(AdminListen::Tcp(admin)) if admin.address == native.address && admin.address.port() != 0)
        {
            return Err(source.at("admin", "the admin door needs an address or port of its own".into()));
        }
        Ok(Config {
            file: file.to_owned(),
            data: base.join(raw.data),
            state: base.join(raw.state),
            key: base.join(raw.key),
            issuer,
            admin_keys,
            native,
            admin,
            limits: source.limits(&raw.limits, &raw.leases)?,
            undo: source.undo(&raw.undo, base)?,
            awake: raw.awake,
            special_files: match raw.store.special_files {
                RawSpecialFiles::Refuse => SpecialFiles::Refuse,
                RawSpecialFiles::Store => SpecialFiles::Store,
            },
        })
    }

    /// An error about this configuration, at a key of it.
    pub(crate) fn error(&self, text: String) -> ConfigError {
        ConfigError { file: self.file.clone(), line: None, text }
    }
}

/// The text of the file, to say where something is wrong.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, line: Option<usize>, text: String) -> ConfigError {
        ConfigError { file: self.file.to_owned(), line, text }
    }

    /// An error at the line that sets `key`.
    fn at(&self, key: &str, text: String) -> ConfigError {
        let sets = |line: &str| {
            line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        let line = self.text.lines().position(sets).map(|n| n + 1);
        self.error(line, format!("{key}: {text}"))
    }

    fn key(&self, name: &str, text: &str) -> Result<PublicKey, ConfigError> {
        text.parse().map_err(|error| self.at(name, format!("{error}; `contract keygen` prints one")))
    }

    fn listen(
        &self,
        address: (&str, &str),
        interface: (&str, &str),
        network: (&str, &str),
    ) -> Result<Listen, ConfigError> {
        let parsed: SocketAddr = address.1.parse().map_err(|_| {
            let text = format!("`{}` is no address and port; write for instance `10.77.0.1:7070`", address.1);
            self.at(address.0, text)
        })?;
        let range: Network = network.1.parse().map_err(|error| self.at(network.0, format!("{error}")))?;
        // Tests and trials on one machine; nothing outside reaches it.
        let loopback = interface.1 == "lo";
        check::internal(range, loopback).map_err(|text| self.at(network.0, text))?;
        check::address(parsed, range, loopback).map_err(|text| self.at(address.0, text))?;
        check::interface_name(interface.1).map_err(|text| self.at(interface.0, text))?;
        Ok(Listen { interface: interface.1.to_owned(), network: range, address: parsed })
    }

    fn admin(&self, raw: &RawListen, keys: &[PublicKey]) -> Result<Option<AdminListen>, ConfigError> {
        let Some(address) = &raw.admin else {
            return match (&raw.admin_interface, &raw.admin_network) {
                (None, None) => Ok(None),
                (Some(_), _) => Err(self.at("admin-interface", "set `admin` too, or remove this".into())),
                (None, Some(_)) => Err(self.at("admin-network", "set `admin` too, or remove this".into())),
            };
        };
        if keys.is_empty() {
            let text =
                "nobody could use the admin door: list the public key of the base domain in admin-keys";
            return Err(self.at("admin", text.into()));
        }
        if let Some(path) = address.strip_prefix("unix:") {
            if raw.admin_interface.is_some() || raw.admin_network.is_some() {
                let text =
                    "a Unix socket has no interface and no network; remove admin-interface and admin-network";
                return Err(self.at("admin", text.into()));
            }
            // sun_path, unix(7).
            if !path.starts_with('/') || path.len() > 107 {
                let text = format!("`{path}` must be an absolute path of at most 107 bytes");
                return Err(self.at("admin", text));
            }
            return Ok(Some(AdminListen::Unix(path.into())));
        }
        let interface = match &raw.admin_interface {
            Some(name) => ("admin-interface", name.as_str()),
            None => ("interface", raw.interface.as_str()),
        };
        let network = match &raw.admin_network {
            Some(range) => ("admin-network", range.as_str()),
            None => ("network", raw.network.as_str()),
        };
        self.listen(("admin", address), interface, network).map(|listen| Some(AdminListen::Tcp(listen)))
    }

    fn undo(&self, raw: &RawUndo, base: &Path) -> Result<Option<Undo>, ConfigError> {
        if raw.keep == Some(false) {
            return Ok(None);
        }
        let space = match &raw.space {
            None => UNDO_SPACE,
            Some(text) => units::size(text).map_err(|text| self.at("space", text))?,
        };
        Ok(Some(Undo { vault: raw.vault.as_ref().map(|vault| base.join(vault)), space }))
    }

    fn limits(&self, raw: &RawLimits, leases: &RawLeases) -> Result<Limits, ConfigError> {
        let default = Limits::default();
        let count = |key: &str, given: Option<u64>, default: u64, most: u64| match given {
            None => Ok(default),
            Some(value) if (1..=most).contains(&value) => Ok(value),
            Some(value) => Err(self.at(key, format!("{value} is out of range; write 1 to {most}"))),
        };
        let size = |key, given, default: usize, most| {
            count(key, given, default as u64, most).map(|value| usize::try_from(value).unwrap_or(usize::MAX))
        };
        let narrow = |key, given, default: u32, most: u32| {
            count(key, given, u64::from(default), u64::from(most))
                .map(|value| u32::try_from(value).unwrap_or(most))
        };
        let period = |key: &str, given: &Option<String>, default: Duration| match given {
            None => Ok(default),
            Some(text) => units::duration(text).map_err(|text| self.at(key, text)),
        };
        let recall = period("recall", &leases.recall, default.recall)?;
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&recall) {
            return Err(
                self.at("recall", "write `10ms` to `60s`: who changes a file waits for that long".into())
            );
        }
        let slots = narrow("slots", raw.slots, u32::from(default.slots), 1024)?;
        Ok(Limits {
            sessions: size("sessions", raw.sessions, default.sessions, 1_000_000)?,
            sessions_per_holder: size(
                "sessions-per-holder",
                raw.sessions_per_holder,
                default.sessions_per_holder,
                65_536,
            )?,
            connections: size("connections", raw.connections, default.connections, 1_000_000)?,
            connections_per_session: size(
                "connections-per-session",
                raw.connections_per_session,
                default.connections_per_session,
                1024,
            )?,
            pending_per_address: size(
                "pending-per-address",
                raw.pending_per_address,
                default.pending_per_address,
                65_536,
            )?,
            in_flight: narrow("in-flight", raw.in_flight, default.in_flight, 65_536)?,
            slots: u16::try_from(slots).unwrap_or(default.slots),
            workers: size("workers", raw.workers, default.workers, 65_536)?,
            workers_per_session: size(
                "workers-per-session",
                raw.workers_per_session,
                default.workers_per_session,
                65_536,
            )?,
            handles: size("handles", raw.handles, default.handles, 1 << 20)?,
            nodes: size("nodes", raw.nodes, default.nodes, 1 << 30)?,
            leases: size("most", leases.most, default.leases, 1 << 24)?,
            recall,
            keep: match &leases.keep {
                None => default.keep,
                Some(_) => Some(period("keep", &leases.keep, Duration::ZERO)?),
            },
            waiting: size("waiting", raw.waiting, default.waiting, 65_536)?,
            session_grace: period("session-grace", &raw.session_grace, default.session_grace)?,
            lock_grace: period("lock-grace", &raw.lock_grace, default.lock_grace)?,
            stall: period("stall", &raw.stall, default.stall)?,
            audit_bytes: match &raw.audit_size {
                None => default.audit_bytes,
                Some(text) => units::size(text).map_err(|text| self.at("audit-size", text))?,
            },
            audit_files: narrow("audit-files", raw.audit_files, default.audit_files, 10_000)?,
        })
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
