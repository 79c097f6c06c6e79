//! The checks of a configuration: what may be served where, and the files that must be right before anything is.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use strongroom_contracts::{Network, SecretKey};

use super::{AdminListen, Config, ConfigError, Listen, netlink};

/// The ranges that count as internal (RFC 1918, RFC 4193, RFC 3927 and RFC 4291 link-local).
const INTERNAL: [&str; 6] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"];
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];

fn within(range: Network, ranges: &[&str]) -> bool {
    let covers = |text: &&str| {
        text.parse::<Network>()
            .is_ok_and(|outer| outer.meet(range) == Some(range) && outer.prefix() <= range.prefix())
    };
    ranges.iter().any(covers)
}

/// Refuses a network that is not internal.
pub(super) fn internal(range: Network, loopback: bool) -> Result<(), String> {
    if within(range, &INTERNAL) || loopback && within(range, &LOOPBACK) {
        return Ok(());
    }
    if within(range, &LOOPBACK) {
        return Err(format!("{range} is the loopback network: set interface = \"lo\" if that is meant"));
    }
    Err(format!(
        "{range} is not an internal network; write a range within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fc00::/7"
    ))
}

/// Refuses an address that is a wildcard, public or outside the network.
pub(super) fn address(address: SocketAddr, network: Network, loopback: bool) -> Result<(), String> {
    let ip = address.ip();
    if ip.to_canonical().is_unspecified() {
        return Err(format!(
            "{ip} is a wildcard: it would serve every network this machine is on; write one address of {network}"
        ));
    }
    if !network.contains(ip) {
        let public = internal(Network::host(ip), loopback).is_err();
        let what = if public { "a public address" } else { "not in the listed network" };
        return Err(format!("{ip} is {what}; write an address within {network}"));
    }
    if address.port() == 0 && !loopback {
        return Err("port 0 is no port that clients could know; write for instance 7070".into());
    }
    Ok(())
}

/// Refuses a name that no interface can have (IFNAMSIZ).
pub(super) fn interface_name(name: &str) -> Result<(), String> {
    let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name.contains(bad) {
        return Err(format!("`{}` is no interface name; `ip link` lists them", name.escape_debug()));
    }
    Ok(())
}

/// What a checked configuration has opened.
pub struct Checked {
    /// The gateway's key.
    pub key: SecretKey,
    /// The data root, without symlinks.
    pub data: PathBuf,
    /// The state directory, without symlinks.
    pub state: PathBuf,
}

impl Config {
    /// Checks everything that needs the system, and reads the key. Creates the state directory if it is missing.
    ///
    /// # Errors
    /// [`ConfigError`] at the first thing that is wrong.
    pub fn check(&self) -> Result<Checked, ConfigError> {
        let error = |text: String| self.error(text);
        let key = secret_key(&self.key).map_err(error)?;
        let data = data_root(&self.data).map_err(error)?;
        let state = place_of(&self.state).map_err(error)?;
        if state.starts_with(&data) {
            let text = format!(
                "state: {} lies inside the data root {}, where guests could reach it; choose a directory outside",
                state.display(),
                data.display()
            );
            return Err(self.error(text));
        }
        if data.starts_with(&state) {
            let text = format!(
                "data: {} lies inside the state directory {}; choose a directory outside",
                data.display(),
                state.display()
            );
            return Err(self.error(text));
        }
        self.native.check("listen").map_err(error)?;
        if let Some(AdminListen::Tcp(admin)) = &self.admin {
            admin.check("admin").map_err(error)?;
        }
        state_directory(&state).map_err(error)?;
        Ok(Checked { key, data, state })
    }
}

impl Listen {
    /// Checks the interface: it exists, has the address, and leads nowhere else.
    fn check(&self, door: &str) -> Result<(), String> {
        let name = &self.interface;
        let system = |error| format!("{door}: cannot ask the system about interface {name}: {error}");
        let Some(index) = netlink::interface(name).map_err(system)? else {
            return Err(format!("{door}: there is no interface `{name}`; `ip link` lists them"));
        };
        if netlink::carries_default_route(index).map_err(system)? {
            return Err(format!(
                "{door}: interface {name} carries a default route, so it may lead to other networks; \
                 serve on an interface of the internal network, or remove the route (`ip route`)"
            ));
        }
        let own = netlink::addresses(index).map_err(system)?;
        let ip = self.address.ip();
        // The whole loopback network answers on `lo` without being listed there.
        if own.contains(&ip) || (name == "lo" && ip.is_loopback()) {
            return Ok(());
        }
        let list = own.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        let list = if list.is_empty() { "none".to_owned() } else { list };
        Err(format!("{door}: interface {name} does not have the address {ip} (it has: {list})"))
    }
}

fn secret_key(file: &Path) -> Result<SecretKey, String> {
    let show = file.display();
    let meta = std::fs::metadata(file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            format!("key: there is no file {show}; `contract init` makes one")
        }
        _ => format!("key: cannot read {show}: {error}"),
    })?;
    if !meta.is_file() {
        return Err(format!("key: {show} is not a file"));
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Err(format!(
            "key: {show} belongs to user {}, not to the user {me} that runs the gateway; chown it",
            meta.uid()
        ));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!(
            "key: others can reach {show} (mode {:04o}); run `chmod 600 {show}`, and make a new key if somebody may have read it",
            meta.mode() & 0o7777
        ));
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("key: cannot read {show}: {error}"))?;
    SecretKey::from_file_text(&text).map_err(|error| format!("key: {show}: {error}"))
}

fn data_root(path: &Path) -> Result<PathBuf, String> {
    let show = path.display();
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("data: there is no directory {show}; create it, or correct the path"),
        _ => format!("data: cannot reach {show}: {error}"),
    })?;
    if !meta.is_dir() {
        return Err(format!("data: {show} is not a directory"));
    }
    std::fs::canonicalize(path).map_err(|error| format!("data: cannot reach {show}: {error}"))
}

/// Where the state directory is or will be, without symlinks.
fn place_of(path: &Path) -> Result<PathBuf, String> {
    let reach = |error| format!("state: cannot reach {}: {error}", path.display());
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let name =
                path.file_name().ok_or_else(|| format!("state: `{}` is no directory", path.display()))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(std::fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(reach)?.join(name))
        }
        other => other.map_err(reach),
    }
}

fn state_directory(path: &Path) -> Result<(), String> {
    let show = path.display();
    if let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(path)
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(format!("state: cannot create {show}: {error}"));
    }
    let meta = std::fs::metadata(path).map_err(|error| format!("state: cannot reach {show}: {error}"))?;
    if !meta.is_dir() {
        return Err(format!("state: {show} is not a directory"));
    }
    let mode = meta.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(format!(
            "state: others can write to {show} (mode {:04o}); run `chmod 700 {show}`",
            mode & 0o7777
        ));
    }
    Ok(())
}
